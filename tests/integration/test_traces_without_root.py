"""Traces whose root MLflow does not get, or gets late, on a real server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor
from support.mlflow_server import MLflowServer

pytestmark = pytest.mark.usefixtures("trace_updates")

INPUT = {"openinference.span.kind": "AGENT", "input.value": "Will it rain?"}
OUTPUT = {"output.value": "Take an umbrella."}
RESULT = {"state": "OK", "request_preview": "Will it rain?", "response_preview": "Take an umbrella."}
SECOND = 1_000_000_000
KILLED = """
import os, signal
from opentelemetry import trace
from mlflow_otlp_exporter import configure
configure(durability="every-span", auto_instrument=False)
tracer = trace.get_tracer("app")
with tracer.start_as_current_span("root") as root:
    attributes = {"openinference.span.kind": "AGENT", "input.value": "Will it rain?"}
    attributes["output.value"] = "Take an umbrella."
    with tracer.start_as_current_span("answer", attributes=attributes):
        tracer.start_span("model").end()
    print(format(root.get_span_context().trace_id, "x"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
NEXT_RUN = """
from mlflow_otlp_exporter import configure
telemetry = configure(auto_instrument=False)
while telemetry.stats().delivered < 2:
    telemetry.flush()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def experiment(server: MLflowServer, request: pytest.FixtureRequest) -> str:
    return server.create_experiment(request.node.name)


class Forward(SpanProcessor):
    """A processor of an application that drops the ends, and perhaps the starts, of spans of a web framework."""

    def __init__(self, target: SpanProcessor, *, with_starts: bool) -> None:
        self._target, self._with_starts = target, with_starts

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._with_starts or not span.name.startswith("GET"):
            self._target.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if not span.name.startswith("GET"):
            self._target.on_end(span)


class Service:
    """A process: a provider with a processor or an exporter of its own."""

    def __init__(self, server: MLflowServer, experiment: str, *, is_drop_in: bool = False) -> None:
        self.exporter = MLflowSpanExporter(tracking_uri=server.uri, experiment_id=experiment)
        self.processor: SpanProcessor = (
            BatchSpanProcessor(self.exporter) if is_drop_in else MLflowSpanProcessor(self.exporter)
        )
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer("tests")


@contextmanager
def service(server: MLflowServer, experiment: str, *, is_drop_in: bool = False) -> Iterator[Service]:
    running = Service(server, experiment, is_drop_in=is_drop_in)
    running.provider.add_span_processor(running.processor)
    yield running
    running.provider.shutdown()


def caller_context(trace_id: int, span_id: int = 77) -> Context:
    remote = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1))
    return set_span_in_context(NonRecordingSpan(remote))


def trace_info(server: MLflowServer, trace_id: int) -> Mapping[str, Any]:
    trace = server.trace(f"{trace_id:032x}")
    assert trace is not None
    info = trace["trace_info"] if "trace_info" in trace else trace["info"]
    assert isinstance(info, dict)
    return info


def assert_result(info: Mapping[str, Any], name: str) -> None:
    assert {key: info.get(key) for key in RESULT} == RESULT
    assert info["tags"]["mlflow.traceName"] == name


@pytest.mark.parametrize("is_drop_in", [False, True])
def test_trace_of_a_caller_that_is_traced_elsewhere_is_completed_at_the_end(
    server: MLflowServer, experiment: str, *, is_drop_in: bool
) -> None:
    with service(server, experiment, is_drop_in=is_drop_in) as running:
        span = running.tracer.start_span("answer", caller_context(1 + is_drop_in), attributes=INPUT | OUTPUT)
        span.end()
        running.provider.force_flush()
        assert trace_info(server, 1 + is_drop_in)["state"] == "IN_PROGRESS"  # the root may come
    assert_result(trace_info(server, 1 + is_drop_in), "answer")
    assert running.exporter.stats().delivered == 1


def test_first_of_several_requests_completes_the_trace(server: MLflowServer, experiment: str) -> None:
    with service(server, experiment) as running:
        for name, attributes in (("first", INPUT | OUTPUT), ("second", {"input.value": "other"})):
            running.tracer.start_span(name, caller_context(10), attributes=attributes).end()
    assert_result(trace_info(server, 10), "first")


def test_root_of_a_caller_that_sends_here_wins(server: MLflowServer, experiment: str) -> None:
    with service(server, experiment) as caller, service(server, experiment) as callee:
        root = caller.tracer.start_span("root", attributes=INPUT | OUTPUT)
        context = root.get_span_context()
        callee.tracer.start_span("request", caller_context(context.trace_id, context.span_id)).end()
        callee.provider.force_flush()
        root.end()
        caller.provider.force_flush()
    assert_result(trace_info(server, context.trace_id), "root")
    trace = server.trace(f"{context.trace_id:032x}")
    assert trace is not None


@pytest.mark.parametrize("code", [StatusCode.OK, StatusCode.ERROR])
def test_root_that_arrives_after_the_callee_ended_wins(server: MLflowServer, experiment: str, code: StatusCode) -> None:
    with service(server, experiment) as caller:
        root = caller.tracer.start_span("root", attributes=INPUT | OUTPUT, start_time=1_700_000_000 * SECOND)
        context = root.get_span_context()
        with service(server, experiment) as callee:
            request = callee.tracer.start_span(
                "request",
                caller_context(context.trace_id, context.span_id),
                attributes={"input.value": "other"},
                start_time=1_700_000_001 * SECOND,
            )
            request.end(1_700_000_002 * SECOND)
        assert trace_info(server, context.trace_id)["tags"]["mlflow.traceName"] == "request"
        root.set_status(Status(code))
        root.end(1_700_000_003 * SECOND)
    info = trace_info(server, context.trace_id)
    assert_result({**info, "state": "OK"}, "root")
    assert info["state"] == code.name


@pytest.mark.parametrize("with_starts", [False, True])
def test_trace_whose_root_was_filtered_is_completed(
    server: MLflowServer, experiment: str, *, with_starts: bool
) -> None:
    running = Service(server, experiment)
    running.provider.add_span_processor(Forward(running.processor, with_starts=with_starts))
    with running.tracer.start_as_current_span("GET /") as root:
        running.tracer.start_span("answer", attributes=INPUT | OUTPUT).end()
    running.processor.force_flush(30_000)
    running.processor.shutdown()
    assert_result(trace_info(server, root.get_span_context().trace_id), "answer")
    assert running.exporter.stats().delivered == 1


@pytest.mark.parametrize("is_remote", [False, True])
def test_root_that_was_sent_before_its_child_ended_gets_request_and_response(
    server: MLflowServer, experiment: str, *, is_remote: bool
) -> None:
    with service(server, experiment) as running:
        root = running.tracer.start_span("POST /chat", caller_context(20) if is_remote else None)
        context = set_span_in_context(root)
        child = running.tracer.start_span("answer", context, attributes=INPUT)
        root.end()
        running.provider.force_flush()
        child.set_attributes(OUTPUT)
        child.end()
    assert_result(trace_info(server, root.get_span_context().trace_id), "POST /chat")
    assert running.exporter.stats().delivered == 2


def test_trace_whose_process_was_killed_is_completed_by_the_next_run(
    server: MLflowServer, experiment: str, tmp_path: Path
) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
    variables |= {
        "MLFLOW_TRACKING_URI": server.uri,
        "XDG_STATE_HOME": str(tmp_path),
        "MLFLOW_EXPERIMENT_ID": experiment,
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env=variables, stdout=subprocess.PIPE, check=False, text=True
    )
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", NEXT_RUN], env=variables, check=True)
    assert_result(trace_info(server, int(killed.stdout, 16)), "answer")
