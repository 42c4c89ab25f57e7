"""Calls whose caller did not sample its trace: counted, logged once, and recorded if the caller is ignored."""

from collections.abc import Iterator

import pytest
from opentelemetry import context, trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from mlflow_otlp_exporter import configure, shutdown
from mlflow_otlp_exporter._internal.setup.auto_instrumentation import AutoInstrumentationSpanExporter
from support.scripted_server import ScriptedServer

CODE = "MLO-715"


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()


def call(trace_id: int, flags: str = "00", provider: TracerProvider | None = None) -> list[bool]:
    """Serve a request with two nested spans; return whether each of them is recorded."""
    headers = {"traceparent": f"00-{trace_id:032x}-{7:016x}-{flags}", "tracestate": "vendor=1"}
    token = context.attach(extract(headers))
    tracer = trace.get_tracer("tests") if provider is None else provider.get_tracer("tests")
    with tracer.start_as_current_span("request") as request, tracer.start_as_current_span("answer") as answer:
        assert request.get_span_context().trace_id == trace_id
        assert request.get_span_context().trace_state.get("vendor") == "1"
        recorded = [request.is_recording(), answer.is_recording()]
    context.detach(token)
    return recorded


def test_unsampled_calls_are_counted_and_logged_once(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert [call(number) for number in (1, 2, 3)] == [[False, False]] * 3
    assert call(4, "01") == [True, True]
    trace.get_tracer("tests").start_span("own").end()
    telemetry.flush()
    stats = telemetry.stats()
    assert (stats.unsampled, stats.delivered) == (3, 3)
    (record,) = [record for record in caplog.records if CODE in record.getMessage()]
    assert record.levelname == "WARNING"
    assert "MLFLOW_OTLP_IGNORE_CALLER_SAMPLING=true" in record.getMessage()


def test_ignored_caller_is_counted_as_no_caller(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_IGNORE_CALLER_SAMPLING", "true")
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert call(1) == [True, True]
    telemetry.flush()
    stats = telemetry.stats()
    assert (stats.unsampled, stats.delivered) == (0, 2)
    spans = [span for request in scripted_server.to("/v1/traces") for span in request.spans()]
    assert [(span.name, int.from_bytes(span.trace_id, "big")) for span in spans] == [("answer", 1), ("request", 1)]
    assert CODE not in caplog.text


@pytest.mark.parametrize(
    ("root_sampler", "expected_count"), [(ALWAYS_ON, 40), (ALWAYS_OFF, 0), (TraceIdRatioBased(0.5), 20)]
)
def test_ignored_caller_leaves_the_decision_to_the_root_sampler(
    scripted_server: ScriptedServer, root_sampler: Sampler, expected_count: int
) -> None:
    provider = TracerProvider(sampler=ParentBased(root_sampler), shutdown_on_exit=False)
    configure(
        tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider, ignore_caller_sampling=True
    )
    step = (1 << 64) // 40
    recorded = [call(number * step + step // 2, provider=provider) for number in range(40)]
    assert all(request is answer for request, answer in recorded)
    assert sum(request for request, _ in recorded) == expected_count
    provider.shutdown()


def test_second_configure_replaces_the_setting(scripted_server: ScriptedServer) -> None:
    for ignores, expected in ((True, True), (False, False), (True, True)):
        configure(tracking_uri=scripted_server.url, experiment_id="1", ignore_caller_sampling=ignores)
        assert call(1) == [expected, expected]
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    description: str = provider.sampler.get_description()
    assert description.startswith("ParentBased{root:AlwaysOnSampler")


def test_unsampled_calls_without_code_changes_are_counted(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    # As OpenTelemetry's configurator does it: the provider is global before its exporters are created.
    provider = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    exporter = AutoInstrumentationSpanExporter(endpoint=scripted_server.traces_url, experiment_id="1")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    assert call(1) == [False, False]
    assert exporter.stats().unsampled == 1
    assert CODE in caplog.text
    provider.shutdown()
