"""Traces through a real Collector to a real MLflow."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, configure
from support.collector import Collector, collector_python, otelcol
from support.mlflow_server import MLflowServer
from support.spans import make_spans
from support.traces import wait_until

TENANTS = ("team-a", "team-b")
OPENTELEMETRY_APP = """
import sys
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
metadata = tuple(pair.split("=") for pair in sys.argv[3:])
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1], insecure=True, headers=metadata)))
provider.get_tracer("tests").start_span(sys.argv[2]).end()
provider.shutdown()
"""
Start = Callable[[Path, Mapping[str, str]], Collector]
STARTS: dict[str, Start] = {"rotel": Collector.of_pypi}
if otelcol() is not None:
    STARTS["otelcol"] = Collector.of_opentelemetry


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server of this module, because a test stops it."""
    server = MLflowServer.start(tmp_path_factory.mktemp("behind-a-collector"), workspaces=True)
    for name in TENANTS:
        server.create_workspace(name)
    yield server
    server.stop()


def collector_variables(server: MLflowServer, experiment_id: str, workspace: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_ID": experiment_id, "MLFLOW_WORKSPACE": workspace}


def wait_for_names(server: MLflowServer, experiment_id: str, workspace: str, count: int) -> list[str]:
    """Wait for `count` traces in an experiment, and return the sorted names of their spans."""
    wait_until(lambda: len(server.search_traces(experiment_id, workspace)) >= count, 60, f"{count} traces")
    traces = [server.trace(trace["trace_id"], workspace) for trace in server.search_traces(experiment_id, workspace)]
    return sorted(span["name"] for trace in traces if trace for span in trace["spans"])


def send_with_this_library(endpoint: str, name: str, **arguments: Any) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "agent"}), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(f"{endpoint}/v1/traces", **arguments)))
    provider.get_tracer("tests").start_span(name).end()
    provider.shutdown()


def send_with_opentelemetry(endpoint: str, name: str, *metadata: str) -> None:
    """Send a span with OpenTelemetry's own exporter, without this library."""
    subprocess.run(
        [str(collector_python()), "-c", OPENTELEMETRY_APP, endpoint, name, *metadata], check=True, timeout=120
    )


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_collector_of_each_tenant_delivers_to_its_destination(
    start: Start, server: MLflowServer, tmp_path: Path
) -> None:
    for tenant in TENANTS:
        number = server.create_experiment(f"two tenants by {start.__name__}", tenant)
        with start(tmp_path / tenant, collector_variables(server, number, tenant)) as collector:
            send_with_this_library(collector.http, f"ours of {tenant}", experiment_id=number, workspace=tenant)
            send_with_opentelemetry(collector.grpc, f"stock of {tenant}")
            assert wait_for_names(server, number, tenant, 2) == [f"ours of {tenant}", f"stock of {tenant}"]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_export_to_the_grpc_port_of_a_collector_names_the_http_port(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_EXPERIMENT_ID": "1",
        "MLFLOW_WORKSPACE": "default",
    }
    with start(tmp_path, variables) as collector:
        exporter = MLflowSpanExporter(f"{collector.grpc}/v1/traces", timeout=1, experiment_id="1")
        assert exporter.export(make_spans("a")) is SpanExportResult.FAILURE
        exporter.shutdown(100)
    assert "http://collector:4318" in caplog.text
    # A reset of the connection may discard what the server has sent, which shows its protocol.
    assert "[MLO-214]" in caplog.text or "[MLO-209]" in caplog.text


@pytest.mark.skipif(otelcol() is None, reason="rotel cannot pass headers through; put otelcol-contrib on PATH")
def test_collector_per_tenant_delivers_to_the_destination_of_each_request(server: MLflowServer, tmp_path: Path) -> None:
    variables = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_TRACKING_TOKEN": "ignored by this server"}
    with Collector.of_opentelemetry(tmp_path, variables, "per-tenant") as collector:
        for tenant in TENANTS:
            number = server.create_experiment("through one", tenant)
            send_with_this_library(collector.http, f"ours of {tenant}", experiment_id=number, workspace=tenant)
            headers = (f"x-mlflow-experiment-id={number}", f"x-mlflow-workspace={tenant}")
            send_with_opentelemetry(collector.grpc, f"stock of {tenant}", *headers)
            assert wait_for_names(server, number, tenant, 2) == [f"ours of {tenant}", f"stock of {tenant}"]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_collector_while_mlflow_is_down_accepts_spans_and_delivers_later(
    start: Start, server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = server.create_experiment(f"down by {start.__name__}", "team-a")
    with start(tmp_path, collector_variables(server, number, "team-a")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        provider = TracerProvider(shutdown_on_exit=False)
        telemetry = configure(workspace="team-a", tracer_provider=provider)
        server.kill()
        begin = time.monotonic()
        for index in range(20):
            provider.get_tracer("tests").start_span(f"while down {index:02}").end()
        assert time.monotonic() - begin < 10  # the timeout of one request
        assert telemetry.flush().delivered == 20  # to the Collector, which queues them
        begin = time.monotonic()
        send_with_opentelemetry(collector.grpc, "stock while down")
        assert time.monotonic() - begin < 60  # how long the exporter retries
        server.restart()
        assert wait_for_names(server, number, "team-a", 21) == [
            "stock while down",
            *(f"while down {index:02}" for index in range(20)),
        ]
        telemetry.shutdown()
        provider.shutdown()


def test_default_experiment_id_of_the_configurations_is_rejected(
    server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With an empty header instead, MLflow would answer 200 and store nothing."""
    headers = {"x-mlflow-experiment-id": "none-was-given"}
    exporter = MLflowSpanExporter(f"{server.uri}/v1/traces", headers=headers, timeout=10)
    assert exporter.export(make_spans("answer")) is SpanExportResult.FAILURE
    assert "400: Invalid experiment ID 'none-was-given'" in caplog.text
    exporter.shutdown(500)
