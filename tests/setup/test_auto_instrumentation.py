"""The exporter behind `OTEL_TRACES_EXPORTER=mlflow`; its constructor never raises."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from mlflow_otlp_exporter import Stats, configure, shutdown, trace_context
from mlflow_otlp_exporter._internal.setup.auto_instrumentation import (
    AutoInstrumentationSpanExporter,
    after_instrumentation,
)
from support.scripted_server import Answer, ScriptedServer
from support.spans import make_spans


@contextmanager
def attach_context(other: Context) -> Iterator[None]:
    token = context.attach(other)
    yield
    context.detach(token)


@pytest.mark.parametrize("arguments", [{"timeout": "soon"}, {"tracking_uri": "databricks"}, {"nonsense": 1}])
def test_wrong_setting_is_logged_and_the_exporter_is_off(
    arguments: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = AutoInstrumentationSpanExporter(**arguments)
    assert next(iter(arguments)) in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    assert exporter.export(make_spans("a")) is SpanExportResult.FAILURE
    assert exporter.stats() == Stats()
    assert exporter.trace_url(1) is None
    assert exporter.force_flush()
    exporter.shutdown()


def test_arguments_of_a_configuration_file_are_applied(scripted_server: ScriptedServer) -> None:
    headers = [{"name": "x-a", "value": "1"}]
    arguments = {"experiment_id": "77", "timeout": 5, "compression": "gzip", "headers": headers}
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, **arguments)
    assert exporter.export(make_spans("a" * 2000)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sent = scripted_server.requests[0].headers
    assert (sent["x-a"], sent["content-encoding"], sent["x-mlflow-experiment-id"]) == ("1", "gzip", "77")


def test_missing_experiment_is_created(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    api, kind = "/api/2.0/mlflow/experiments", {"Content-Type": "application/json"}
    missing = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST"}).encode()
    scripted_server.answer(Answer(404, headers=kind, body=missing), path=f"{api}/get-by-name")
    scripted_server.answer(Answer(200, headers=kind, body=b'{"experiment_id":"5"}'), path=f"{api}/create")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    exporter = AutoInstrumentationSpanExporter()
    assert isinstance(exporter, SpanExporter)
    assert exporter.export(make_spans("a")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert scripted_server.requests[-1].headers["x-mlflow-experiment-id"] == "5"


def test_spans_of_several_batches_are_sent_as_whole_traces(scripted_server: ScriptedServer) -> None:
    one, other = (TracerProvider(shutdown_on_exit=False) for _ in range(2))
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, experiment_id="1")
    one.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = one.get_tracer("tests")
    with tracer.start_as_current_span("root"):
        tracer.start_span("first").end()
        # A second trace is complete while the first one is not.
        other.add_span_processor(SimpleSpanProcessor(exporter))
        with attach_context(Context()):
            other.get_tracer("tests").start_span("small").end()
        scripted_server.wait_for(1)
        tracer.start_span("second").end()
    assert exporter.force_flush()
    one.shutdown()
    names = [[span.name for span in request.spans()] for request in scripted_server.requests]
    assert names == [["small"], ["first", "second", "root"]]


def test_shutdown_sends_spans_without_a_root(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, experiment_id="1")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("tests").start_as_current_span("open"):
        provider.get_tracer("tests").start_span("child").end()
        provider.shutdown()
    assert [span.name for request in scripted_server.requests for span in request.spans()] == ["child"]
    assert exporter.export(make_spans("late")) is SpanExportResult.FAILURE


@pytest.fixture
def global_provider() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    yield provider
    shutdown()
    provider.shutdown()


def instrument_without_code(server: ScriptedServer, provider: TracerProvider) -> AutoInstrumentationSpanExporter:
    """Set up the exporter like `opentelemetry-instrument`."""
    exporter = AutoInstrumentationSpanExporter(endpoint=server.traces_url, experiment_id="1")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
    after_instrumentation()
    return exporter


def test_context_sampling_and_trace_filter_apply(
    scripted_server: ScriptedServer, global_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0.5")
    exporter = instrument_without_code(scripted_server, global_provider)
    expected = 0
    with trace_context(session="s-1", experiment_id=7):
        for _ in range(40):
            root = global_provider.get_tracer("app").start_span("root")
            root.end()
            expected += root.get_span_context().trace_id & (1 << 64) - 1 < 1 << 63
            global_provider.get_tracer("opentelemetry.instrumentation.flask").start_span("GET /health").end()
    # The flush of the batch processor alone would not deliver.
    assert global_provider.force_flush()
    requests = scripted_server.to("/v1/traces")
    spans = [span for request in requests for span in request.spans()]
    assert {request.headers["x-mlflow-experiment-id"] for request in requests} == {"7"}
    assert [span.name for span in spans] == ["root"] * expected
    assert all("session.id" in {item.key for item in span.attributes} for span in spans)
    assert exporter.stats().filtered > 0


def test_trace_with_an_open_span_is_not_complete(
    scripted_server: ScriptedServer, global_provider: TracerProvider
) -> None:
    instrument_without_code(scripted_server, global_provider)
    tracer = global_provider.get_tracer("app")
    root = tracer.start_span("root")
    child = tracer.start_span("child", trace.set_span_in_context(root))
    root.end()
    other = tracer.start_span("other")
    other.end()
    scripted_server.wait_for(1)
    child.end()
    assert global_provider.force_flush()
    names = [[span.name for span in request.spans()] for request in scripted_server.requests]
    assert names == [["other"], ["root", "child"]]


def test_configure_disables_the_exporter(
    scripted_server: ScriptedServer, global_provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    exporter = instrument_without_code(scripted_server, global_provider)
    tracer = global_provider.get_tracer("app")
    tracer.start_span("before").end()
    global_provider.force_flush()
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="2")
    tracer.start_span("after").end()
    assert global_provider.force_flush()
    assert telemetry.flush()
    sent = [
        (request.headers["x-mlflow-experiment-id"], span.name)
        for request in scripted_server.requests
        for span in request.spans()
    ]
    assert sent == [("1", "before"), ("2", "after")]
    assert exporter.is_disabled
    assert "configure() replaces the exporter of OTEL_TRACES_EXPORTER=mlflow" in caplog.text


@pytest.mark.parametrize("variable", [("MLFLOW_OTLP_ENABLED", "false"), ("OTEL_SDK_DISABLED", "true")])
def test_disabled_exporter_sends_nothing(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url)
    assert exporter.export(make_spans("a")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert scripted_server.requests == []
