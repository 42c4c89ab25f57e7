"""Gateways behind OpenTelemetry's Collector, with the configuration of examples/gateway."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from support import collector as collector_module
from support.collector import Collector
from support.environments import ROOT
from support.gateway import PROTOBUF, GatewayProcess
from support.mlflow_server import MLflowServer
from support.otlp_bodies import encode_spans
from support.traces import make_traces

pytestmark = pytest.mark.needs("go")
TOKEN = "planted-token"
StartCollector = Callable[[list[GatewayProcess]], Collector]


@pytest.fixture
def start_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartCollector]:
    """Start the example's Collector in front of gateways, at their addresses instead of a service's name."""
    with ExitStack() as stack:

        def start(gateways: list[GatewayProcess]) -> Collector:
            config: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "gateway" / "collector.yaml").read_text())
            hostnames = [f"127.0.0.1:{gateway.grpc_port}" for gateway in gateways]
            config["exporters"]["loadbalancing"]["resolver"] = {"static": {"hostnames": hostnames}}
            (tmp_path / "collector" / "queue").mkdir(parents=True)  # which the shipped configurations use
            monkeypatch.setattr(collector_module, "read_collector_config", lambda _: yaml.safe_dump(config))
            return stack.enter_context(Collector(tmp_path / "collector", "gateway", {"GATEWAY_TOKEN": TOKEN}))

        yield start


def test_two_gateways_one_killed_have_every_span_once(
    mlflow_server: MLflowServer, tmp_path: Path, start_collector: StartCollector
) -> None:
    experiment = mlflow_server.create_experiment("two gateways")
    tokens = tmp_path / "tokens.json"
    tokens.write_text(f'{{"{TOKEN}": ["/{experiment}"]}}')
    spans = make_traces(30, children=3)
    with ExitStack() as stack:
        gateways = [
            stack.enter_context(
                GatewayProcess(tmp_path / f"gateway-{number}", mlflow_server.uri, ["--tokens-file", str(tokens)])
            )
            for number in range(2)
        ]
        collector = start_collector(gateways)
        headers = {"content-type": PROTOBUF, "x-mlflow-experiment-id": experiment}
        for start in range(0, len(spans), 10):  # a trace has four spans
            body = encode_spans(spans[start : start + 10])
            status = 503
            while status == 503:  # as clients do, also with what one of the gateways has taken
                status = requests.post(f"{collector.http}/v1/traces", body, headers=headers, timeout=60).status_code
            assert status == 200
            if start == 60:
                gateways[0].kill()
                gateways[0].start()  # at the same ports
        received = [
            gateway.metrics().get(f'mlflow_otlp_gateway_received_spans_total{{destination="/{experiment}"}}', 0)
            for gateway in gateways
        ]
        assert all(count % 4 == 0 for count in received[1:])  # whole traces
        assert received[1] > 0
        for trace_id in {span.context.trace_id for span in spans}:
            trace = mlflow_server.wait_for_trace(f"{trace_id:032x}", until=lambda trace: len(trace["spans"]) >= 4)
            assert len(trace["spans"]) == 4
        assert len(mlflow_server.search_traces(experiment)) == 30
        assert [gateway.stop() for gateway in gateways] == [0, 0]
