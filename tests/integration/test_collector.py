"""A Collector between the app and MLflow: a real one, and a real MLflow."""

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
from support.spans import finished
from support.traces import until

TENANTS = ("team-a", "team-b")
STOCK = """
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
    """One of our own, as it goes down in between."""
    server = MLflowServer.start(tmp_path_factory.mktemp("behind-a-collector"), workspaces=True)
    for name in TENANTS:
        server.create_workspace(name)
    yield server
    server.stop()


def collector_variables(server: MLflowServer, experiment_id: str, workspace: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_ID": experiment_id, "MLFLOW_WORKSPACE": workspace}


def names(server: MLflowServer, experiment_id: str, workspace: str, count: int) -> list[str]:
    """The names of all spans of an experiment, once there are as many traces."""
    until(lambda: len(server.search_traces(experiment_id, workspace)) >= count, 60, f"{count} traces")
    traces = [server.trace(trace["trace_id"], workspace) for trace in server.search_traces(experiment_id, workspace)]
    return sorted(span["name"] for trace in traces if trace for span in trace["spans"])


def ours(endpoint: str, name: str, **arguments: Any) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "agent"}), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(f"{endpoint}/v1/traces", **arguments)))
    provider.get_tracer("tests").start_span(name).end()
    provider.shutdown()


def stock_by_grpc(endpoint: str, name: str, *metadata: str) -> None:
    """OpenTelemetry's own exporter, in an app that knows nothing of MLflow."""
    subprocess.run([str(collector_python()), "-c", STOCK, endpoint, name, *metadata], check=True, timeout=120)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_two_tenants_through_a_collector_each(start: Start, server: MLflowServer, tmp_path: Path) -> None:
    for tenant in TENANTS:
        number = server.create_experiment(f"two tenants by {start.__name__}", tenant)
        with start(tmp_path / tenant, collector_variables(server, number, tenant)) as collector:
            ours(collector.http, f"ours of {tenant}", experiment_id=number, workspace=tenant)
            stock_by_grpc(collector.grpc, f"stock of {tenant}")
            assert names(server, number, tenant, 2) == [f"ours of {tenant}", f"stock of {tenant}"]


@pytest.mark.skipif(otelcol() is None, reason="rotel cannot pass headers through; put otelcol-contrib on PATH")
def test_tenants_through_one_collector(server: MLflowServer, tmp_path: Path) -> None:
    variables = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_TRACKING_TOKEN": "ignored by this server"}
    with Collector.of_opentelemetry(tmp_path, variables, "per-tenant") as collector:
        for tenant in TENANTS:
            number = server.create_experiment("through one", tenant)
            ours(collector.http, f"ours of {tenant}", experiment_id=number, workspace=tenant)
            headers = (f"x-mlflow-experiment-id={number}", f"x-mlflow-workspace={tenant}")
            stock_by_grpc(collector.grpc, f"stock of {tenant}", *headers)
            assert names(server, number, tenant, 2) == [f"ours of {tenant}", f"stock of {tenant}"]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_mlflow_that_is_down_does_not_touch_the_app(
    start: Start, server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = server.create_experiment(f"down by {start.__name__}", "team-a")
    with start(tmp_path, collector_variables(server, number, "team-a")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        provider = TracerProvider(shutdown_on_exit=False)
        telemetry = configure(workspace="team-a", tracer_provider=provider)
        server.kill()
        started = time.monotonic()
        for index in range(20):
            provider.get_tracer("tests").start_span(f"while down {index:02}").end()
        assert time.monotonic() - started < 10  # the time-out of one request
        assert telemetry.flush().delivered == 20  # to the Collector, which keeps them
        started = time.monotonic()
        stock_by_grpc(collector.grpc, "stock while down")
        assert time.monotonic() - started < 60  # as long as it would go on trying
        server.restart()
        assert names(server, number, "team-a", 21) == [
            "stock while down",
            *(f"while down {index:02}" for index in range(20)),
        ]
        telemetry.shutdown()
        provider.shutdown()


def test_mlflow_refuses_what_stands_for_no_experiment(server: MLflowServer, caplog: pytest.LogCaptureFixture) -> None:
    """What a tenant that names none is given: an empty header MLflow would answer with 200, and store nothing."""
    headers = {"x-mlflow-experiment-id": "none-was-given"}
    exporter = MLflowSpanExporter(f"{server.uri}/v1/traces", headers=headers, timeout=10)
    assert exporter.export(finished("answer")) is SpanExportResult.FAILURE
    assert "400: Invalid experiment ID 'none-was-given'" in caplog.text
    exporter.shutdown(500)
