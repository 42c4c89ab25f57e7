"""The Collector in front of several versions of MLflow, with an outage."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from support.collector import Collector
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.traces import make_traces, stored_span_names, wait_until

pytestmark = [pytest.mark.matrix, pytest.mark.needs("go")]

LLM_CALL = {"llm.token_count.prompt": 100, "llm.token_count.completion": 50, "llm.token_count.total": 150}
ONCE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
TRACES, CHILDREN, ROUNDS = 20, 2, 3
NAMES = [
    *(f"root {trace}" for trace in range(TRACES)),
    *(f"child {trace}.{child}" for trace in range(TRACES) for child in range(1, CHILDREN + 1)),
]


@pytest.fixture(scope="module", params=["3.6.0", "3.10.1", "3.17.2"])
def mlflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    version = str(request.param)
    server = MLflowServer.start(tmp_path_factory.mktemp(f"mlflow-{version}"), python=mlflow_python(version))
    yield server
    server.stop()


def is_old(server: MLflowServer) -> bool:
    return str(server.call_rest("GET", "/version")) == "3.6.0"


def send_traces(endpoint: str) -> None:
    """Send traces with one call of a model each."""
    exporter = MLflowSpanExporter(f"{endpoint}/v1/traces")
    spans = make_traces(
        TRACES,
        children=CHILDREN,
        attributes=lambda _, span: {"openinference.span.kind": "LLM", **LLM_CALL} if span == 1 else {},
    )
    exporter.export(spans)
    assert exporter.force_flush(60_000)
    assert exporter.stats().delivered == len(NAMES)
    exporter.shutdown()


def test_collector_stores_each_span_and_its_tokens_once_despite_outages_and_kills(
    mlflow: MLflowServer, tmp_path: Path
) -> None:
    number = mlflow.create_experiment("behind a collector")
    # 3.6.0 accepts no compressed requests.
    exporter = {"compression": "none" if is_old(mlflow) else "gzip", "retry_on_failure": {"max_interval": "1s"}}
    variables = {"MLFLOW_TRACKING_URI": mlflow.uri, "MLFLOW_EXPERIMENT_ID": number}
    before = mlflow.count_requests()
    changes = {"exporters": {"otlp_http/mlflow": exporter}}
    with Collector(tmp_path / "collector", "fixed-no-auth", variables, changes) as collector:
        send_traces(collector.http)
        mlflow.kill()
        send_traces(collector.http)
        collector.kill()
        collector.start()
        send_traces(collector.http)
        mlflow.restart()
        database = mlflow.log.parent / "mlflow.db"
        wait_until(lambda: len(stored_span_names(database, number)) >= ROUNDS * len(NAMES), 60)
        wait_until(lambda: collector.metric("otelcol_exporter_queue_size") == 0)
        log = collector.log.read_text()
    assert Counter(stored_span_names(database, number)) == Counter(ROUNDS * NAMES)
    usages = [trace["trace_metadata"]["mlflow.trace.tokenUsage"] for trace in mlflow.search_traces(number)]
    assert [json.loads(usage) for usage in usages] == [ONCE] * TRACES * ROUNDS
    statuses = mlflow.statuses()[before:]
    assert set(statuses) == {200}
    assert len(statuses) <= ROUNDS + 1
    # The answer of 3.6.0 is JSON labelled as protobuf: the Collector reports spans as lost that MLflow has stored.
    assert ("error parsing protobuf response" in log) == is_old(mlflow)


@pytest.mark.parametrize("mlflow", ["3.6.0"], indirect=True)
def test_compressed_requests_to_mlflow_before_3_7_are_dropped_by_the_collector(
    mlflow: MLflowServer, tmp_path: Path
) -> None:
    number = mlflow.create_experiment("compressed")
    variables = {"MLFLOW_TRACKING_URI": mlflow.uri, "MLFLOW_EXPERIMENT_ID": number}
    with Collector(tmp_path / "collector", "fixed-no-auth", variables) as collector:
        send_traces(collector.http)
        wait_until(lambda: collector.metric("otelcol_exporter_send_failed_spans") == len(NAMES))
    assert mlflow.search_traces(number) == []
