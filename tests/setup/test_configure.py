"""configure(): joins or makes a provider, is idempotent, replaces, flushes at exit."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.baggage import set_baggage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

import mlflow_otlp_exporter
from mlflow_otlp_exporter import (
    ConfigurationError,
    FlushResult,
    MLflowSpanExporter,
    Stats,
    configure,
    flush,
    shutdown,
    traced,
)
from support.children import in_child
from support.scripted_server import Answer, ScriptedServer


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def names(server: ScriptedServer) -> list[str]:
    return [span.name for request in server.to("/v1/traces") for span in request.spans()]


def span(name: str) -> None:
    trace.get_tracer("tests").start_span(name).end()


def test_makes_a_provider_and_names_the_service(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", service_name="bot")
    assert telemetry.tracer_provider is trace.get_tracer_provider()
    span("a")
    assert telemetry.flush() == FlushResult(delivered=1)
    resource = scripted_server.requests[0].export_request().resource_spans[0].resource
    assert {item.key: item.value.string_value for item in resource.attributes}["service.name"] == "bot"


def test_joins_the_provider_that_exists(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", service_name="bot")
    assert telemetry.tracer_provider is provider
    assert "service_name='bot' is not used" in caplog.text
    span("a")
    telemetry.flush()
    assert names(scripted_server) == ["a"]


def test_joins_a_provider_that_is_given(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    span("global")
    provider.get_tracer("tests").start_span("given").end()
    telemetry.flush()
    assert names(scripted_server) == ["given"]
    provider.shutdown()


def test_same_settings_give_the_same_object(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert configure(tracking_uri=scripted_server.url + "/", experiment_id=1) is one


def test_other_settings_replace_the_pipeline_after_flushing_it(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    span("a")
    two = configure(tracking_uri=scripted_server.url, experiment_id="2")
    assert two is not one
    assert names(scripted_server) == ["a"]
    span("b")
    two.flush()
    sent = [
        (request.headers["x-mlflow-experiment-id"], request.spans()[0].name) for request in scripted_server.requests
    ]
    assert sent == [("1", "a"), ("2", "b")]


def test_wrong_setting_raises_and_changes_nothing(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    with pytest.raises(ConfigurationError, match="argument experiment_id="):
        configure(tracking_uri=scripted_server.url, experiment_id="agents")
    with pytest.raises(ConfigurationError, match="credentials="):
        configure(tracking_uri=scripted_server.url, credentials=5)
    span("a")
    assert one.flush().delivered == 1
    assert mlflow_otlp_exporter.configure(tracking_uri=scripted_server.url, experiment_id="1") is one


def test_provider_that_takes_no_processor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="NoOpTracerProvider: expected a TracerProvider"):
        configure(tracer_provider=trace.NoOpTracerProvider())  # type: ignore[arg-type]


def test_exporter_made_by_hand(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", compression="gzip")
    telemetry = configure(exporter=exporter)
    assert telemetry.exporter is exporter
    assert configure(exporter=exporter) is telemetry
    span("a" * 2000)
    flush()
    assert scripted_server.requests[0].headers["content-encoding"] == "gzip"
    with pytest.raises(ConfigurationError, match="together with tracking_uri, workspace"):
        configure(exporter=exporter, tracking_uri="http://m", workspace="team-a")


def test_flush_tells_the_truth(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(200), Answer(400))
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    span("a")
    first = telemetry.flush()
    span("b")
    second = telemetry.flush()
    assert (first, bool(first)) == (FlushResult(delivered=1), True)
    assert (second, bool(second)) == (FlushResult(dropped=1), False)
    assert (telemetry.stats().delivered, telemetry.stats().dropped) == (1, 1)


def test_before_configure_and_after_shutdown_nothing_happens(scripted_server: ScriptedServer) -> None:
    assert flush() == shutdown() == FlushResult()
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    span("a")
    assert shutdown() == FlushResult(delivered=1)
    span("b")
    assert telemetry.flush() == FlushResult()
    assert names(scripted_server) == ["a"]
    assert configure(tracking_uri=scripted_server.url, experiment_id="1") is not telemetry
    span("c")
    flush()
    assert names(scripted_server) == ["a", "c"]


def test_trace_url_of_the_current_trace_else_the_last(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert telemetry.trace_url() is None
    with trace.get_tracer("tests").start_as_current_span("one") as one:
        trace.get_tracer("tests").start_span("child").end()
        inside = telemetry.trace_url()
    assert inside == telemetry.trace_url() == telemetry.trace_url(one.get_span_context().trace_id)
    assert f"traceId=tr-{one.get_span_context().trace_id:032x}" in str(inside)
    span("two")
    assert telemetry.trace_url() != inside
    telemetry.shutdown()  # while the server is still there


def test_server_that_is_away_is_no_matter_at_start() -> None:
    telemetry = configure(tracking_uri="http://127.0.0.1:9", experiment_id="1")
    assert telemetry.stats() == Stats()


def test_spans_are_sent_at_exit(scripted_server: ScriptedServer) -> None:
    code = (
        "from mlflow_otlp_exporter import configure\n"
        "from opentelemetry import trace\n"
        f"configure(tracking_uri={scripted_server.url!r}, experiment_id=1)\n"
        "trace.get_tracer('tests').start_span('last words').end()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(scripted_server) == ["last words"]


def test_after_the_handles_own_shutdown_the_same_settings_start_anew(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    one.shutdown()
    two = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert two is not one
    span("a")
    assert two.flush() == FlushResult(delivered=1)


def test_exporter_that_moves_to_another_provider_is_not_shut_down(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    one, two = (TracerProvider(shutdown_on_exit=False) for _ in range(2))
    configure(exporter=exporter, tracer_provider=one)
    moved = configure(exporter=exporter, tracer_provider=two)
    two.get_tracer("tests").start_span("moved").end()
    assert moved.flush().delivered == 1
    one.shutdown()
    two.shutdown()


def test_wrong_credentials_leave_no_provider_behind() -> None:
    with pytest.raises(ConfigurationError, match="credentials="):
        configure(credentials=5, service_name="first")
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_counters_begin_anew_in_a_forked_child(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    for _ in range(3):
        span("parent")
    telemetry.flush()

    def child() -> bool:
        span("child")
        return telemetry.flush() == FlushResult(delivered=1)

    assert in_child(child)


@pytest.mark.parametrize("variables", [{"MLFLOW_OTLP_ENABLED": "false"}, {"OTEL_SDK_DISABLED": "true"}, {}])
def test_switched_off_it_does_nothing(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    enabled = None if variables else False
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=enabled)
    assert configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=enabled) is telemetry
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    span("a")
    assert telemetry.flush() == FlushResult()
    assert telemetry.trace_url() is None
    assert telemetry.stats() == Stats()
    telemetry.shutdown()
    assert scripted_server.requests == []


def test_switched_off_later_it_flushes_and_stops(scripted_server: ScriptedServer) -> None:
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    span("a")
    configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=False)
    span("b")
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    span("c")
    flush()
    assert names(scripted_server) == ["a", "c"]


def test_part_of_the_traces_chosen_by_their_ids(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0.5")
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    expected = []
    sampler = TraceIdRatioBased(0.5)
    for number in range(60):
        with trace.get_tracer("tests").start_as_current_span(f"root {number}") as root:
            trace.get_tracer("tests").start_span(f"child {number}").end()
        decision = sampler.should_sample(None, root.get_span_context().trace_id, "").decision
        if decision is Decision.RECORD_AND_SAMPLE:
            expected += [f"child {number}", f"root {number}"]
    telemetry.flush()
    assert sorted(names(scripted_server)) == sorted(expected)
    assert 0 < len(expected) < 120


def test_conversation_of_many_messages_keeps_its_kind(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    with trace.get_tracer("tests").start_as_current_span("chat") as chat:
        chat.set_attribute("first", "kept")
        for number in range(1000):
            chat.set_attribute(f"app.{number}", number)
    telemetry.flush()
    assert "first" in {item.key for item in scripted_server.requests[0].spans()[0].attributes}


def test_limit_of_the_environment_stays_and_what_is_lost_is_told_once(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5")
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    for _ in range(2):
        span_with_many = trace.get_tracer("tests").start_span("chat")
        span_with_many.set_attributes({str(number): number for number in range(9)})
        span_with_many.end()
        telemetry.flush()
    assert caplog.text.count("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000") == 1


def test_one_line_says_where_traces_go_and_why(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR")  # set for all tests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    configure(experiment="agents")
    configure(experiment="agents")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("traces go to")]
    assert line == (
        f"traces go to {scripted_server.url}/v1/traces (environment variable MLFLOW_TRACKING_URI), "
        "experiment agents (argument experiment=), token *** (environment variable MLFLOW_TRACKING_TOKEN), "
        "auto_instrument False (environment variable MLFLOW_OTLP_AUTO_INSTRUMENT); a new tracer provider [MLO-801]"
    )
    configure(experiment="others")
    assert "the app's tracer provider, joined" in caplog.text


def test_traced_uses_the_provider_that_was_given(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    traced(name="given")(lambda: None)()
    assert telemetry.flush().delivered == 1
    shutdown()
    provider.shutdown()
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    traced(name="global")(lambda: None)()
    flush()
    assert names(scripted_server) == ["given", "global"]


def test_baggage_that_is_named_is_received(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_BAGGAGE", "session")
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    arrived = set_baggage("user.id", "mallory", set_baggage("session.id", "s-1"))
    trace.get_tracer("tests").start_span("a", arrived).end()
    telemetry.flush()
    found = {item.key: item.value.string_value for item in scripted_server.requests[0].spans()[0].attributes}
    assert found["session.id"] == "s-1"
    assert "user.id" not in found


def test_provider_that_wraps_the_sdks_is_joined(scripted_server: ScriptedServer) -> None:
    class Wrapper(trace.TracerProvider):  # as logfire's
        def __init__(self) -> None:
            self.provider = TracerProvider(shutdown_on_exit=False)

        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return self.provider.get_tracer(*args, **kwargs)

    wrapper = Wrapper()
    trace.set_tracer_provider(wrapper)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert configure(tracking_uri=scripted_server.url, experiment_id="1") is telemetry
    span("a")
    assert telemetry.flush().delivered == 1
    shutdown()
    wrapper.provider.shutdown()


def test_provider_that_would_take_its_own_processor_away_keeps_it(scripted_server: ScriptedServer) -> None:
    class Replacing(TracerProvider):  # as Phoenix's
        replaced = False

        def add_span_processor(self, span_processor: SpanProcessor, replace_default_processor: bool = True) -> None:
            self.replaced = self.replaced or replace_default_processor
            super().add_span_processor(span_processor)

    provider = Replacing(shutdown_on_exit=False)
    configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    assert not provider.replaced
    shutdown()
    provider.shutdown()
