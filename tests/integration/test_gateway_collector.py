"""Replicas of the gateway behind OpenTelemetry's Collector, with its shipped configuration."""

import json
import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from support.collector import Collector
from support.gateway import PROTOBUF, GatewayProcess
from support.mlflow_server import MLflowServer
from support.otlp_bodies import encode_spans
from support.traces import make_traces, stored_span_names, wait_until

pytestmark = pytest.mark.needs("go")

TOKEN = "planted-token"
TRACES, CHILDREN = 30, 3
LLM_CALL = {
    "openinference.span.kind": "LLM",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 50,
    "llm.token_count.total": 150,
}


def send_until_accepted(collector: Collector, body: bytes, experiment: str) -> None:
    """Send a request as clients do: again after 503, also with what one of the gateways has taken."""
    headers = {"content-type": PROTOBUF, "x-mlflow-experiment-id": experiment, "authorization": f"Bearer {TOKEN}"}
    status = 503
    while status == 503:
        status = requests.post(f"{collector.http}/v1/traces", body, headers=headers, timeout=60).status_code
    assert status == 200


def test_traces_in_pieces_through_two_gateways_arrive_once_when_a_gateway_and_the_collector_are_killed(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    experiment = mlflow_server.create_experiment("two gateways")
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({TOKEN: [f"/{experiment}"]}))
    spans = make_traces(TRACES, children=CHILDREN, attributes=lambda _, span: LLM_CALL if span == 1 else {})
    names = Counter(span.name for span in spans)
    random.Random(1).shuffle(spans)
    pieces = [encode_spans(spans[start : start + 3]) for start in range(0, len(spans), 3)]
    database = mlflow_server.log.parent / "mlflow.db"
    with ExitStack() as stack:
        arguments = ["--tokens-file", str(tokens)]
        short = {"MLFLOW_OTLP_HOLD": "3"}  # how long children wait for a root that was sent before the kill
        gateways = [
            stack.enter_context(GatewayProcess(tmp_path / name, mlflow_server.uri, arguments, short))
            for name in ("first", "second")
        ]
        # Instead of a service's name: both have the same address here.
        resolver = {"dns": None, "static": {"hostnames": [f"127.0.0.1:{gateway.grpc_port}" for gateway in gateways]}}
        changes: dict[str, Any] = {"exporters": {"load_balancing/mlflow": {"resolver": resolver}}}
        variables = {"GATEWAY_HOST": "localhost", "GATEWAY_INSECURE": "true"}
        collector = stack.enter_context(Collector(tmp_path / "collector", "gateway", variables, changes))
        for number, piece in enumerate(pieces):
            if number == len(pieces) // 3:
                gateways[0].kill()
                gateways[0].start()  # at the same ports
            if number == len(pieces) * 2 // 3:
                collector.kill()
                collector.start()
            send_until_accepted(collector, piece, experiment)
        metric = f'mlflow_otlp_gateway_span_received_total{{destination="/{experiment}"}}'
        received = [gateway.metrics().get(metric, 0) for gateway in gateways]
        assert all(received)
        assert received[1] % (1 + CHILDREN) == 0  # whole traces; the first one's count began again
        wait_until(lambda: len(stored_span_names(database, experiment)) >= len(spans), 90)
        assert [gateway.stop() for gateway in gateways] == [0, 0]
    assert Counter(stored_span_names(database, experiment)) == names
    traces = mlflow_server.search_traces(experiment)
    assert Counter(trace["state"] for trace in traces) == {"OK": TRACES}
    usages = [json.loads(trace["trace_metadata"]["mlflow.trace.tokenUsage"]) for trace in traces]
    assert Counter(usage["total_tokens"] for usage in usages) == {150: TRACES}
