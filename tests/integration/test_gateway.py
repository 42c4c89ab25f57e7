"""A gateway process in front of a real MLflow: traces in pieces, restarts, outages."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from support.gateway import JSON, PROTOBUF, GatewayProcess
from support.mlflow_server import MLflowServer
from support.otlp_bodies import encode_spans, to_json
from support.traces import make_traces


@pytest.fixture
def experiment(request: pytest.FixtureRequest, mlflow_server: MLflowServer) -> str:
    return mlflow_server.create_experiment(f"gateway {request.node.name}")


def split(spans: Sequence[ReadableSpan], size: int, seed: int = 1) -> list[bytes]:
    """Split spans into bodies of a few spans, in random order."""
    shuffled = list(spans)
    random.Random(seed).shuffle(shuffled)
    return [encode_spans(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]


def post_all(gateway: GatewayProcess, bodies: Sequence[bytes], **headers: str) -> None:
    """Post bodies over connections of their own, every other one as JSON."""

    def post(number: int) -> int:
        body, is_json = bodies[number], number % 2 == 1
        return gateway.post(to_json(body) if is_json else body, JSON if is_json else PROTOBUF, **headers).status

    with ThreadPoolExecutor(4, thread_name_prefix="client") as pool:
        assert set(pool.map(post, range(len(bodies)))) == {200}


def check_stored(server: MLflowServer, experiment: str, spans: Sequence[ReadableSpan]) -> None:
    """Wait until all traces are in the experiment, and check that each span is there once."""
    expected: dict[str, list[int]] = {}
    for span in spans:
        expected.setdefault(f"{span.context.trace_id:032x}", []).append(span.context.span_id)
    for trace_id, span_ids in expected.items():

        def is_whole(trace: dict[str, Any], count: int = len(span_ids)) -> bool:
            return len(trace.get("spans", ())) >= count and trace["trace_info"]["state"] == "OK"

        trace = server.wait_for_trace(trace_id, until=is_whole)
        assert len(trace["spans"]) == len(span_ids)
    assert len(server.search_traces(experiment)) == len(expected)


def test_gateway_sends_pieces_of_traces_whole(mlflow_server: MLflowServer, experiment: str, tmp_path: Path) -> None:
    spans = make_traces(5, children=6)
    before = mlflow_server.count_requests()
    with GatewayProcess(tmp_path, mlflow_server.uri, ["--experiment-id", experiment]) as gateway:
        post_all(gateway, split(spans, 3))
        check_stored(mlflow_server, experiment, spans)
        assert mlflow_server.count_requests() - before <= 2
        assert gateway.stop() == 0


def test_gateway_killed_after_answers_loses_nothing(
    mlflow_server: MLflowServer, experiment: str, tmp_path: Path
) -> None:
    spans = make_traces(5, children=6)
    bodies = split(spans, 3)
    gateway = GatewayProcess(tmp_path, mlflow_server.uri, ["--experiment-id", experiment])
    with gateway:
        post_all(gateway, bodies[:-2])
        gateway.kill()
        assert mlflow_server.search_traces(experiment) == []
        gateway.start()
        post_all(gateway, bodies)  # a client that got no answer sends again, also what was taken
        check_stored(mlflow_server, experiment, spans)
        assert gateway.stop() == 0


def test_gateway_stopped_sends_what_it_has(mlflow_server: MLflowServer, experiment: str, tmp_path: Path) -> None:
    spans = make_traces(2, children=3)
    with GatewayProcess(tmp_path, mlflow_server.uri, ["--experiment-id", experiment]) as gateway:
        post_all(gateway, split(spans, 3))
        assert gateway.stop() == 0
        check_stored(mlflow_server, experiment, spans)
        assert "8 spans delivered, 0 spooled, 0 dropped" in gateway.log[-1]["message"]


def test_gateway_completes_root_that_came_before_its_child(
    mlflow_server: MLflowServer, experiment: str, tmp_path: Path
) -> None:
    """Between processes, a root without output may be sent before the call of a model that a called service made."""
    root, child = make_traces(1, children=1)[::-1]
    call = ReadableSpan(
        "call",
        child.context,
        root.context,
        Resource({"service.name": "called"}),
        {"openinference.span.kind": "LLM", "input.value": "Why?", "output.value": "Because."},
        start_time=child.start_time,
        end_time=child.end_time,
    )
    caller = ReadableSpan(
        "caller", root.context, None, root.resource, {}, start_time=root.start_time, end_time=root.end_time
    )
    environment = {"MLFLOW_OTLP_LINGER": "0.2"}
    with GatewayProcess(tmp_path, mlflow_server.uri, ["--experiment-id", experiment], environment) as gateway:
        assert gateway.post(encode_spans([caller])).status == 200
        trace_id = f"{root.context.trace_id:032x}"
        mlflow_server.wait_for_trace(trace_id)
        assert gateway.post(encode_spans([call])).status == 200

        def has_response(trace: dict[str, Any]) -> bool:
            return len(trace.get("spans", ())) == 2 and "Because." in str(trace["trace_info"].get("response_preview"))

        trace = mlflow_server.wait_for_trace(trace_id, until=has_response)
        assert "Why?" in trace["trace_info"]["request_preview"]
        assert gateway.stop() == 0
        assert "2 spans delivered" in gateway.log[-1]["message"]


def test_gateway_keeps_tenants_apart_over_kill(workspace_server: MLflowServer, tmp_path: Path) -> None:
    """The journal has the destination of each span: after a kill, each tenant gets its own."""
    experiments = {
        name: workspace_server.create_experiment(f"gateway {tmp_path.name}", name) for name in ("team-a", "team-b")
    }
    spans = {name: make_traces(2, children=2) for name in experiments}
    with GatewayProcess(tmp_path, workspace_server.uri) as gateway:
        for name, number in experiments.items():
            post_all(gateway, split(spans[name], 2), x_mlflow_workspace=name, x_mlflow_experiment_id=number)
        gateway.kill()
        gateway.start()
        for name, number in experiments.items():
            for span in spans[name]:
                workspace_server.wait_for_trace(
                    f"{span.context.trace_id:032x}", name, until=lambda trace: len(trace.get("spans", ())) == 3
                )
            assert len(workspace_server.search_traces(number, name)) == 2
        assert gateway.stop() == 0
