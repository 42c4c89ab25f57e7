"""Many tenants in one process: traces reach their destination, and tenants do not delay each other."""

import json
import threading
from typing import Any
from urllib.parse import parse_qs

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, configure, trace_context
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from support.scripted_server import Answer, RecordedRequest, ScriptedServer
from support.traces import make_traces, wait_until

TENANTS = 1000


def look_up(request: RecordedRequest) -> Answer:
    name = parse_qs(request.query)["experiment_name"][0]
    body = {"experiment": {"experiment_id": name.removeprefix("tenant "), "lifecycle_stage": "active"}}
    return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps(body).encode())


def test_thousand_tenants_share_32_senders(scripted_server: ScriptedServer) -> None:
    scripted_server.answer_with("/api/2.0/mlflow/experiments/get-by-name", look_up)
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment="tenant 0", tracer_provider=provider)
    tracer = provider.get_tracer("tests")
    before = threading.active_count() - scripted_server.open_connections
    for number in range(TENANTS):
        with trace_context(experiment=f"tenant {number}", workspace=f"team-{number % 3}"):
            tracer.start_span(f"root {number}").end()
    assert telemetry.flush(60).delivered == TENANTS
    threads = threading.active_count() - scripted_server.open_connections
    telemetry.shutdown()
    provider.shutdown()
    assert threads - before <= 32 + 4  # the worker, the REST thread, and two of the stub server
    delivered = {
        (request.headers["x-mlflow-experiment-id"], request.headers["x-mlflow-workspace"], span.name)
        for request in scripted_server.to("/v1/traces")
        for span in request.spans()
    }
    assert delivered == {(str(number), f"team-{number % 3}", f"root {number}") for number in range(TENANTS)}


def test_slow_and_rejected_tenants_delay_no_other(scripted_server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        return {"1": Answer(hold=release), "2": Answer(403)}.get(request.headers["x-mlflow-experiment-id"], Answer(200))

    release = threading.Event()
    scripted_server.answer_with("/v1/traces", answer)
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="9", timeout=60)
    processor = MLflowSpanProcessor(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("tests")
    for number in range(1, 40):
        with trace_context(experiment_id=1 + number % 8):
            tracer.start_span(f"root {number}").end()
    good = sum(number % 8 not in (0, 1) for number in range(1, 40))

    def count_delivered() -> int:
        return sum(
            len(request.spans())
            for request in scripted_server.to("/v1/traces")
            if request.headers["x-mlflow-experiment-id"] not in ("1", "2")
        )

    wait_until(lambda: count_delivered() == good, what="all others, while one request is held")
    release.set()
    processor.shutdown(500)


def test_spans_that_wait_for_a_slow_tenant_share_a_request(scripted_server: ScriptedServer) -> None:
    release = threading.Event()
    scripted_server.answer_with("/v1/traces", lambda _: Answer(hold=release))
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1", timeout=60)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    first, *others = make_traces(10)
    pipeline.submit([first], 1)
    wait_until(lambda: bool(scripted_server.to("/v1/traces")), what="the request that is held")
    for span in others:
        pipeline.submit([span], 1)
    assert pipeline.in_flight_span_count == 10
    release.set()
    assert exporter.force_flush(60_000)
    assert [len(request.spans()) for request in scripted_server.to("/v1/traces")] == [1, 9]
    assert (exporter.stats().delivered, pipeline.in_flight_span_count, pipeline.in_flight_byte_count) == (10, 0, 0)
    exporter.shutdown(500)


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("planted")


HOSTILE: dict[str, Any] = {
    "surrogate": "a\ud800b",
    "control characters": "a\n\x1b[2Jb",
    "long": "x" * 1_000_000,
    "not latin-1": "团队",
    "no text": Unreadable(),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("argument", ["workspace", "experiment", "experiment_id", "run_id"])
def test_hostile_destination_is_delivered_without_flood_of_log_lines(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture, argument: str, kind: str
) -> None:
    def create(request: RecordedRequest) -> Answer:
        body = {"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}
        return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps(body).encode())

    scripted_server.answer_with("/api/2.0/mlflow/experiments/get-by-name", create)
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=1, tracer_provider=provider)
    for number in range(3):
        with trace_context(**{argument: HOSTILE[kind]}):
            provider.get_tracer("tests").start_span(f"root {number}").end()
    assert telemetry.flush(60).delivered == 3
    telemetry.shutdown()
    provider.shutdown()
    assert "Traceback" not in caplog.text
    assert "planted" not in caplog.text
    assert len(caplog.messages) <= 3
    assert all(message.isprintable() and len(message) < 1000 for message in caplog.messages)
    for request in scripted_server.requests:
        assert all(value.isprintable() and len(value) <= 4500 for value in request.headers.values())
