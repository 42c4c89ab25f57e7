"""configure(): uses or creates a provider, is idempotent, replaces the pipeline, flushes at exit."""

import subprocess
import sys
from collections.abc import Callable, Iterator
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
    Telemetry,
    configure,
    flush,
    log_expectation,
    log_feedback,
    shutdown,
    traced,
)
from mlflow_otlp_exporter._internal.common import process_end
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.setup import configure as configure_module
from support.children import run_in_fork
from support.interruptions import raise_error
from support.scripted_server import Answer, ScriptedServer


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def sent_names(server: ScriptedServer) -> list[str]:
    return [span.name for request in server.to("/v1/traces") for span in request.spans()]


def end_span(name: str) -> None:
    trace.get_tracer("tests").start_span(name).end()


def test_configure_without_provider_creates_one_with_service_name(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", service_name="bot")
    assert telemetry.tracer_provider is trace.get_tracer_provider()
    end_span("a")
    assert telemetry.flush() == FlushResult(delivered=1)
    resource = scripted_server.requests[0].export_request().resource_spans[0].resource
    assert {item.key: item.value.string_value for item in resource.attributes}["service.name"] == "bot"


def test_configure_uses_the_global_provider(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", service_name="bot")
    assert telemetry.tracer_provider is provider
    assert "service_name='bot' is ignored" in caplog.text
    end_span("a")
    telemetry.flush()
    assert sent_names(scripted_server) == ["a"]


def test_configure_uses_the_provider_argument(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    end_span("global")
    provider.get_tracer("tests").start_span("given").end()
    telemetry.flush()
    assert sent_names(scripted_server) == ["given"]
    provider.shutdown()


def test_configure_with_same_settings_returns_the_same_object(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert configure(tracking_uri=scripted_server.url + "/", experiment_id=1) is one


def test_configure_with_other_settings_flushes_and_replaces_the_pipeline(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    two = configure(tracking_uri=scripted_server.url, experiment_id="2")
    assert two is not one
    assert sent_names(scripted_server) == ["a"]
    end_span("b")
    two.flush()
    sent = [
        (request.headers["x-mlflow-experiment-id"], request.spans()[0].name) for request in scripted_server.requests
    ]
    assert sent == [("1", "a"), ("2", "b")]


def test_configure_with_wrong_setting_raises_and_changes_nothing(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    with pytest.raises(ConfigurationError, match="argument experiment_id="):
        configure(tracking_uri=scripted_server.url, experiment_id="agents")
    with pytest.raises(ConfigurationError, match="credentials="):
        configure(tracking_uri=scripted_server.url, credentials=5)  # type: ignore[arg-type]
    end_span("a")
    assert one.flush().delivered == 1
    assert mlflow_otlp_exporter.configure(tracking_uri=scripted_server.url, experiment_id="1") is one


def test_configure_with_provider_without_processors_raises() -> None:
    with pytest.raises(ConfigurationError, match="NoOpTracerProvider: expected a TracerProvider"):
        configure(tracer_provider=trace.NoOpTracerProvider())  # type: ignore[arg-type]


def test_configure_with_exporter_uses_it(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", compression="gzip")
    telemetry = configure(exporter=exporter)
    assert telemetry.exporter is exporter
    assert configure(exporter=exporter) is telemetry
    end_span("a" * 2000)
    flush()
    assert scripted_server.requests[0].headers["content-encoding"] == "gzip"
    with pytest.raises(ConfigurationError, match="cannot be combined with tracking_uri, workspace"):
        configure(exporter=exporter, tracking_uri="http://m", workspace="team-a")


def test_flush_returns_the_outcome_since_the_last_flush(scripted_server: ScriptedServer) -> None:
    rejection = Answer(400, headers={"content-type": "application/json"}, body=b'{"detail": "Invalid OpenTelemetry"}')
    scripted_server.answer(Answer(200), rejection)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    first = telemetry.flush()
    end_span("b")
    second = telemetry.flush()
    assert (first, bool(first)) == (FlushResult(delivered=1), True)
    assert (second, bool(second)) == (FlushResult(dropped=1), False)
    assert (telemetry.stats().delivered, telemetry.stats().dropped) == (1, 1)


def test_flush_and_shutdown_do_nothing_before_configure_and_after_shutdown(scripted_server: ScriptedServer) -> None:
    assert flush() == shutdown() == FlushResult()
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    assert shutdown() == FlushResult(delivered=1)
    assert telemetry.flush() == FlushResult()
    assert sent_names(scripted_server) == ["a"]
    assert configure(tracking_uri=scripted_server.url, experiment_id="1") is not telemetry
    end_span("c")
    flush()
    assert sent_names(scripted_server) == ["a", "c"]


@pytest.mark.parametrize("end", [shutdown, Telemetry.shutdown])
def test_spans_after_shutdown_are_dropped_counted_and_logged_once(
    end: Callable[..., FlushResult], scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    end(*([telemetry] if end is Telemetry.shutdown else []))
    for name in ("b", "c"):
        end_span(name)
    assert telemetry.flush() == FlushResult(dropped=2)
    assert caplog.text.count("Spans dropped: ended after shutdown [1 span] [MLO-701]") == 1
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("d")
    flush()
    assert (sent_names(scripted_server), telemetry.stats().dropped) == (["a", "d"], 2)


@pytest.mark.parametrize("settings", [{"experiment_id": "2"}, {"enabled": False}])
def test_spans_after_configure_with_other_settings_are_not_those_of_the_pipeline_before(
    settings: dict[str, Any], scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    with caplog.at_level("INFO", "mlflow_otlp_exporter"):
        after = configure(tracking_uri=scripted_server.url, **settings)
    assert ("an earlier configure() with other settings is replaced" in caplog.text) is ("enabled" not in settings)
    end_span("b")
    after.flush()
    assert (before.stats().delivered, before.stats().dropped, after.stats().dropped) == (1, 0, 0)
    assert "dropped" not in caplog.text


def test_trace_url_is_of_the_current_trace_else_of_the_last(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert telemetry.trace_url() is None
    with trace.get_tracer("tests").start_as_current_span("one") as one:
        trace.get_tracer("tests").start_span("child").end()
        inside = telemetry.trace_url(check=False)
    assert inside == telemetry.trace_url(check=False)
    assert inside == telemetry.trace_url(one.get_span_context().trace_id, check=False)
    assert f"traceId=tr-{one.get_span_context().trace_id:032x}" in str(inside)
    end_span("two")
    assert telemetry.trace_url(check=False) != inside
    telemetry.shutdown()  # while the server is still there


def test_configure_does_not_wait_for_an_unavailable_server() -> None:
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
    assert sent_names(scripted_server) == ["last words"]


def test_configure_after_telemetry_shutdown_starts_again(scripted_server: ScriptedServer) -> None:
    one = configure(tracking_uri=scripted_server.url, experiment_id="1")
    one.shutdown()
    two = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert two is not one
    end_span("a")
    assert two.flush() == FlushResult(delivered=1)


def test_exporter_used_with_another_provider_is_not_shut_down(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    one, two = (TracerProvider(shutdown_on_exit=False) for _ in range(2))
    configure(exporter=exporter, tracer_provider=one)
    telemetry = configure(exporter=exporter, tracer_provider=two)
    two.get_tracer("tests").start_span("a").end()
    assert telemetry.flush().delivered == 1
    one.shutdown()
    two.shutdown()


def test_configure_with_wrong_credentials_creates_no_provider() -> None:
    with pytest.raises(ConfigurationError, match="credentials="):
        configure(credentials=5, service_name="first")  # type: ignore[arg-type]
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_counters_are_reset_in_a_forked_child(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    for _ in range(3):
        end_span("parent")
    telemetry.flush()

    def child() -> bool:
        end_span("child")
        return telemetry.flush() == FlushResult(delivered=1)

    assert run_in_fork(child)


@pytest.mark.parametrize("variables", [{"MLFLOW_OTLP_ENABLED": "false"}, {"OTEL_SDK_DISABLED": "true"}, {}])
def test_configure_when_disabled_does_nothing(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    enabled = None if variables else False
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=enabled)
    assert configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=enabled) is telemetry
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    end_span("a")
    assert telemetry.flush() == FlushResult()
    assert telemetry.trace_url() is None
    assert telemetry.stats() == Stats()
    telemetry.shutdown()
    assert scripted_server.requests == []


def test_configure_with_enabled_false_flushes_and_stops(scripted_server: ScriptedServer) -> None:
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    configure(tracking_uri=scripted_server.url, experiment_id="1", enabled=False)
    end_span("b")
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("c")
    flush()
    assert sent_names(scripted_server) == ["a", "c"]


def test_sampling_ratio_selects_traces_by_id(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sorted(sent_names(scripted_server)) == sorted(expected)
    assert 0 < len(expected) < 120


def test_span_with_1000_attributes_keeps_the_first(scripted_server: ScriptedServer) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    with trace.get_tracer("tests").start_as_current_span("chat") as chat:
        chat.set_attribute("first", "kept")
        for number in range(1000):
            chat.set_attribute(f"app.{number}", number)
    telemetry.flush()
    assert "first" in {item.key for item in scripted_server.requests[0].spans()[0].attributes}


def test_attribute_limit_of_the_environment_is_kept_and_logged_once(
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


def test_configure_logs_target_and_sources_once(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("MLFLOW_OTLP_SERVICE_ACCOUNT_DIR")  # set for all tests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    configure(experiment="agents")
    configure(experiment="agents")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Sending traces to")]
    assert line == (
        f"Sending traces to {scripted_server.url}/v1/traces (environment variable MLFLOW_TRACKING_URI), "
        "experiment agents (argument experiment=), token *** (environment variable MLFLOW_TRACKING_TOKEN), "
        "auto_instrument False (environment variable MLFLOW_OTLP_AUTO_INSTRUMENT); tracer provider: new [MLO-801]"
    )
    configure(experiment="others")
    assert "tracer provider: the application's" in caplog.text


def test_traced_uses_the_provider_argument(scripted_server: ScriptedServer) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    traced(name="given")(lambda: None)()
    assert telemetry.flush().delivered == 1
    shutdown()
    provider.shutdown()
    configure(tracking_uri=scripted_server.url, experiment_id="1")
    traced(name="global")(lambda: None)()
    flush()
    assert sent_names(scripted_server) == ["given", "global"]


def test_baggage_is_read_only_for_the_names_of_the_setting(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_BAGGAGE", "session")
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    arrived = set_baggage("user.id", "mallory", set_baggage("session.id", "s-1"))
    trace.get_tracer("tests").start_span("a", arrived).end()
    telemetry.flush()
    attributes = {item.key: item.value.string_value for item in scripted_server.requests[0].spans()[0].attributes}
    assert attributes["session.id"] == "s-1"
    assert "user.id" not in attributes


def test_configure_uses_the_sdks_provider_behind_a_wrapper(scripted_server: ScriptedServer) -> None:
    class Wrapper(trace.TracerProvider):  # like logfire's
        def __init__(self) -> None:
            self.provider = TracerProvider(shutdown_on_exit=False)

        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return self.provider.get_tracer(*args, **kwargs)

    wrapper = Wrapper()
    trace.set_tracer_provider(wrapper)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    assert configure(tracking_uri=scripted_server.url, experiment_id="1") is telemetry
    end_span("a")
    assert telemetry.flush().delivered == 1
    shutdown()
    wrapper.provider.shutdown()


def test_provider_that_replaces_its_processor_keeps_it(scripted_server: ScriptedServer) -> None:
    class Replacing(TracerProvider):  # like Phoenix's
        replaced = False

        def add_span_processor(self, span_processor: SpanProcessor, replace_default_processor: bool = True) -> None:
            self.replaced = self.replaced or replace_default_processor
            super().add_span_processor(span_processor)

    provider = Replacing(shutdown_on_exit=False)
    configure(tracking_uri=scripted_server.url, experiment_id="1", tracer_provider=provider)
    assert not provider.replaced
    shutdown()
    provider.shutdown()


@pytest.mark.parametrize("function", [log_feedback, log_expectation])
def test_feedback_before_configure_is_logged_once(
    function: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configure_module, "_problem_log", ProblemLog())  # another test may have logged it
    for _ in range(3):
        assert function("4bf92f3577b34da6a3ce929d0e0e4736", "helpful", True) is None
    message = f"Feedback dropped: {function.__name__}() was called before configure() or after shutdown() [MLO-515]"
    assert caplog.messages == [message]


@pytest.mark.parametrize("step", ["use_provider", "_instrument"])
def test_interrupted_configure_starts_again(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As in a notebook, where the user interrupts the cell and runs it again."""
    call, errors, calls = getattr(configure_module, step), [KeyboardInterrupt()], 0

    def interrupt(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if errors:
            raise errors.pop()
        call(*arguments)

    configure(tracking_uri=scripted_server.url, experiment_id="1", auto_instrument=False)
    monkeypatch.setattr(configure_module, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        configure(tracking_uri=scripted_server.url, experiment_id="2", auto_instrument=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="2", auto_instrument=False)
    assert calls == 2
    assert configure(tracking_uri=scripted_server.url, experiment_id="2", auto_instrument=False) is telemetry
    end_span("a")
    assert telemetry.flush() == FlushResult(delivered=1)
    assert scripted_server.to("/v1/traces")[0].headers["x-mlflow-experiment-id"] == "2"


def test_interrupt_anywhere_in_the_shutdown_at_exit_raises_nothing(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id="1")
    end_span("a")
    monkeypatch.setattr(process_end._State, "ending_pid", 0)
    monkeypatch.setattr(telemetry, "_log_unsampled", raise_error(KeyboardInterrupt()))
    configure_module._end()
    assert telemetry.is_closed
    assert sent_names(scripted_server) == ["a"]
