"""The entry point's exporter: never raises when it is made."""

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
from support.spans import finished


@contextmanager
def attached(other: Context) -> Iterator[None]:
    token = context.attach(other)
    yield
    context.detach(token)


@pytest.mark.parametrize("arguments", [{"timeout": "soon"}, {"tracking_uri": "databricks"}, {"nonsense": 1}])
def test_wrong_setting_is_logged_and_leaves_it_off(
    arguments: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    exporter = AutoInstrumentationSpanExporter(**arguments)
    assert next(iter(arguments)) in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    assert exporter.export(finished("a")) is SpanExportResult.FAILURE
    assert exporter.stats() == Stats()
    assert exporter.trace_url(1) is None
    assert exporter.force_flush()
    exporter.shutdown()


def test_arguments_as_a_configuration_file_gives_them(scripted_server: ScriptedServer) -> None:
    headers = [{"name": "x-a", "value": "1"}]
    arguments = {"experiment_id": "77", "timeout": 5, "compression": "gzip", "headers": headers}
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, **arguments)
    assert exporter.export(finished("a" * 2000)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    sent = scripted_server.requests[0].headers
    assert (sent["x-a"], sent["content-encoding"], sent["x-mlflow-experiment-id"]) == ("1", "gzip", "77")


def test_creates_the_experiment_as_configure_does(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, kind = "/api/2.0/mlflow/experiments", {"Content-Type": "application/json"}
    missing = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST"}).encode()
    scripted_server.answer(Answer(404, headers=kind, body=missing), path=f"{api}/get-by-name")
    scripted_server.answer(Answer(200, headers=kind, body=b'{"experiment_id":"5"}'), path=f"{api}/create")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    exporter = AutoInstrumentationSpanExporter()
    assert isinstance(exporter, SpanExporter)
    assert exporter.export(finished("a")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert scripted_server.requests[-1].headers["x-mlflow-experiment-id"] == "5"


def test_what_the_batch_processor_cut_leaves_as_whole_traces(scripted_server: ScriptedServer) -> None:
    one, other = (TracerProvider(shutdown_on_exit=False) for _ in range(2))
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, experiment_id="1")
    one.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = one.get_tracer("tests")
    with tracer.start_as_current_span("root"):
        tracer.start_span("first").end()
        # A trace of another thread is whole, while this one is not.
        other.add_span_processor(SimpleSpanProcessor(exporter))
        with attached(Context()):
            other.get_tracer("tests").start_span("small").end()
        scripted_server.wait_for(1)
        tracer.start_span("second").end()
    assert exporter.force_flush()
    one.shutdown()
    names = [[span.name for span in request.spans()] for request in scripted_server.requests]
    assert names == [["small"], ["first", "second", "root"]]


def test_shutdown_sends_what_has_no_root_yet(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, experiment_id="1")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("tests").start_as_current_span("open"):
        provider.get_tracer("tests").start_span("child").end()
        provider.shutdown()
    assert [span.name for request in scripted_server.requests for span in request.spans()] == ["child"]
    assert exporter.export(finished("late")) is SpanExportResult.FAILURE


@pytest.fixture
def global_provider() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    yield provider
    shutdown()
    provider.shutdown()


def zero_code(server: ScriptedServer, provider: TracerProvider) -> AutoInstrumentationSpanExporter:
    """As `opentelemetry-instrument` sets it up."""
    exporter = AutoInstrumentationSpanExporter(endpoint=server.traces_url, experiment_id="1")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
    after_instrumentation()
    return exporter


def test_context_sampling_and_noise_as_with_configure(
    scripted_server: ScriptedServer, global_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0.5")
    exporter = zero_code(scripted_server, global_provider)
    expected = 0
    with trace_context(session="s-1", experiment_id=7):
        for _ in range(40):
            root = global_provider.get_tracer("app").start_span("root")
            root.end()
            expected += root.get_span_context().trace_id & (1 << 64) - 1 < 1 << 63
            global_provider.get_tracer("opentelemetry.instrumentation.flask").start_span("GET /health").end()
    # The provider's own flush delivers, which the batch processor alone would not.
    assert global_provider.force_flush()
    requests = scripted_server.to("/v1/traces")
    spans = [span for request in requests for span in request.spans()]
    assert {request.headers["x-mlflow-experiment-id"] for request in requests} == {"7"}
    assert [span.name for span in spans] == ["root"] * expected
    assert all("session.id" in {item.key for item in span.attributes} for span in spans)
    assert exporter.stats().filtered > 0


def test_open_spans_are_known(scripted_server: ScriptedServer, global_provider: TracerProvider) -> None:
    zero_code(scripted_server, global_provider)
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


def test_configure_takes_its_place(
    scripted_server: ScriptedServer, global_provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    exporter = zero_code(scripted_server, global_provider)
    tracer = global_provider.get_tracer("app")
    tracer.start_span("before").end()
    global_provider.force_flush()
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="2")
    tracer.start_span("after").end()
    assert global_provider.force_flush()
    assert telemetry.flush()
    found = [
        (request.headers["x-mlflow-experiment-id"], span.name)
        for request in scripted_server.requests
        for span in request.spans()
    ]
    assert found == [("1", "before"), ("2", "after")]
    assert exporter.silent
    assert "configure() takes the place of OTEL_TRACES_EXPORTER=mlflow" in caplog.text


@pytest.mark.parametrize("variable", [("MLFLOW_OTLP_ENABLED", "false"), ("OTEL_SDK_DISABLED", "true")])
def test_switched_off(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url)
    assert exporter.export(finished("a")) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert scripted_server.requests == []
