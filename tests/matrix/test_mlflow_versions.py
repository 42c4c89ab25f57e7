"""The same guarantees on every tested version of MLflow."""

import http.client
import json
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from support.environments import MLFLOW_VERSIONS, mlflow_python
from support.mlflow_server import MLflowServer
from support.scripted_server import TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.traces import make_rejectable_traces, make_traces, stored_span_names

pytestmark = pytest.mark.matrix

LLM_CALL = {
    "openinference.span.kind": "LLM",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 50,
    "llm.token_count.total": 150,
}
ONCE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
TWICE = {"input_tokens": 200, "output_tokens": 100, "total_tokens": 300}
BATCH_GET = "/api/3.0/mlflow/traces/batchGet"
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


def parse_version(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class VersionedServer:
    """A server and its version."""

    def __init__(self, version: str, server: MLflowServer) -> None:
        self.version, self.server = parse_version(version), server

    @property
    def has_workspaces(self) -> bool:
        return self.version >= (3, 10)

    def list_span_names(self, experiment: str) -> list[str]:
        return stored_span_names(self.server.log.parent / "mlflow.db", experiment)

    def read_token_usages(self, experiment: str) -> list[object]:
        infos = self.server.search_traces(experiment)
        return [json.loads(info.get("trace_metadata", {}).get("mlflow.trace.tokenUsage", "null")) for info in infos]


VERSIONS: list[object] = [*sorted(MLFLOW_VERSIONS, key=parse_version)]


@pytest.fixture(scope="module", params=VERSIONS)
def mlflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionedServer]:
    """A server of each version, with the workspaces `team-a` and `team-b` if it supports workspaces."""
    version = str(request.param)
    workspaces = parse_version(version) >= (3, 10)
    folder = tmp_path_factory.mktemp(f"mlflow-{version}")
    server = MLflowServer.start(folder, python=mlflow_python(version), workspaces=workspaces)
    if workspaces:
        for name in ("team-a", "team-b"):
            server.create_workspace(name)
    yield VersionedServer(version, server)
    server.stop()


def assert_spans_stay_queued(exporter: MLflowSpanExporter, span_count: int) -> None:
    """Assert that spans are neither delivered nor dropped before shutdown."""
    assert exporter.export(make_traces(span_count)) is SpanExportResult.FAILURE
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped) == (0, 0)
    exporter.shutdown(30_000)
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped) == (0, span_count)


def test_export_of_traces_stores_spans_and_token_counts(mlflow: VersionedServer) -> None:
    experiment_id = mlflow.server.create_experiment("landing")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment="landing")
    spans = make_traces(20, children=2, attributes=lambda _, span: LLM_CALL if span == 1 else {})
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped, stats.requests) == (60, 0, 1)
    assert mlflow.list_span_names(experiment_id) == sorted(span.name for span in spans)
    assert mlflow.read_token_usages(experiment_id) == [ONCE] * 20


def test_export_to_unknown_experiment_logs_server_message(
    mlflow: VersionedServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert_spans_stay_queued(MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment_id=999), 3)
    assert caplog.text.count("Export failing, spans are queued in memory") == 1
    assert "No Experiment with id=999 exists. Correct or unset `MLFLOW_EXPERIMENT_ID`" in caplog.text


def test_export_to_unknown_workspace_logs_server_message(
    mlflow: VersionedServer, caplog: pytest.LogCaptureFixture
) -> None:
    if not mlflow.has_workspaces:
        pytest.skip("no workspaces before 3.10")
    experiment_id = mlflow.server.create_experiment("in the default workspace")
    assert_spans_stay_queued(
        MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment_id=experiment_id, workspace="nope"), 3
    )
    assert "Workspace 'nope' not found" in caplog.text
    assert mlflow.list_span_names(experiment_id) == []


def test_export_to_experiment_of_other_workspace_logs_server_message(
    mlflow: VersionedServer, caplog: pytest.LogCaptureFixture
) -> None:
    if not mlflow.has_workspaces:
        pytest.skip("no workspaces before 3.10")
    experiment_id = mlflow.server.create_experiment("of team-a", "team-a")
    assert_spans_stay_queued(
        MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment_id=experiment_id, workspace="team-b"),
        3,
    )
    assert f"No Experiment with id={experiment_id} exists. Correct or unset `MLFLOW_EXPERIMENT_ID`" in caplog.text
    assert mlflow.list_span_names(experiment_id) == []


def test_export_with_workspace_to_server_without_workspaces_logs_server_message(
    mlflow: VersionedServer, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not mlflow.has_workspaces:
        pytest.skip("MLflow 3.6 and 3.8 ignore the header")
    version = ".".join(map(str, mlflow.version))
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow-plain"), python=mlflow_python(version))
    try:
        assert_spans_stay_queued(
            MLflowSpanExporter(timeout=60, tracking_uri=server.uri, experiment_id=0, workspace="team-a"), 3
        )
    finally:
        server.stop()
    assert "workspaces are not enabled on this server" in caplog.text
    assert "Unset `MLFLOW_WORKSPACE`" in caplog.text


def test_export_of_sanitized_spans_stores_all_in_one_request(mlflow: VersionedServer) -> None:
    experiment_id = mlflow.server.create_experiment("repaired")
    exporter = MLflowSpanExporter(
        timeout=60, tracking_uri=mlflow.server.uri, experiment_id=experiment_id, max_request_size=0
    )
    spans = make_rejectable_traces()
    result = exporter.export(spans)
    exporter.shutdown()
    assert result is SpanExportResult.SUCCESS
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped, stats.requests) == (len(spans), 0, 1)
    assert len(mlflow.list_span_names(experiment_id)) == len(spans)


def test_export_without_sanitizer_drops_rejected_span_only(
    mlflow: VersionedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow 3.10 answers 500 after it has stored the traces before the bad one."""
    # Disable the sanitizer, so that the server gets values that it rejects.
    monkeypatch.setattr("mlflow_otlp_exporter._internal.delivery.batcher.sanitize_attributes", lambda *_, **__: None)
    monkeypatch.setattr("mlflow_otlp_exporter._internal.delivery.batcher.sanitize_name", lambda _: None)
    experiment_id = mlflow.server.create_experiment("not repaired")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment_id=experiment_id)
    bad_attributes = {**LLM_CALL, "mlflow.llm.cost": "much"}
    spans = make_traces(
        20, children=2, attributes=lambda trace, span: (bad_attributes if trace == 7 else LLM_CALL) if span == 1 else {}
    )
    exporter.export(spans)
    exporter.force_flush(30_000)
    exporter.shutdown()
    stats = exporter.stats()
    lost_names = {"child 7.1"} if mlflow.version >= (3, 10) else set()
    assert mlflow.list_span_names(experiment_id) == sorted({span.name for span in spans} - lost_names)
    assert (stats.delivered, stats.dropped) == (60 - len(lost_names), len(lost_names))
    usages = [usage for usage in mlflow.read_token_usages(experiment_id) if usage is not None]
    assert usages == [ONCE] * (20 - len(lost_names))


# Lost responses


class LossyProxy:
    """Forwards the trace endpoint and `paths` to a server, and drops the first response to spans."""

    def __init__(self, scripted_server: ScriptedServer, uri: str, *paths: str) -> None:
        self._address = urlsplit(uri).netloc
        self._lock = threading.Lock()
        self.lost_count = 0
        for path in (TRACES_PATH, *paths):
            scripted_server.answer_with(path, self)

    def __call__(self, request: RecordedRequest) -> Answer:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(request.method, request.target, request.body or None, request.headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        with self._lock:
            if request.path == TRACES_PATH and not self.lost_count:
                assert answer.status == 200
                self.lost_count += 1
                return Answer(close="after-request")
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        return Answer(answer.status, headers=headers, body=body)


def test_export_after_lost_response_counts_tokens_once(
    mlflow: VersionedServer, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = LossyProxy(scripted_server, mlflow.server.uri, "/version", BATCH_GET)
    experiment_id = mlflow.server.create_experiment("lost answer")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=scripted_server.url, experiment_id=experiment_id)
    spans = make_traces(5, children=1, attributes=lambda _, span: LLM_CALL if span else {})
    exporter.export(spans)
    assert exporter.force_flush(30_000)
    exporter.shutdown()
    stats = exporter.stats()
    assert proxy.lost_count == 1
    assert (stats.delivered, stats.dropped) == (10, 0)
    assert mlflow.list_span_names(experiment_id) == sorted(span.name for span in spans)
    assert mlflow.read_token_usages(experiment_id) == [ONCE] * 5
    assert "without asking" not in caplog.text
    # MLflow 3.17 and later count a repeated span once, so the exporter does not look spans up.
    assert bool(scripted_server.to(BATCH_GET)) is (mlflow.version < (3, 17))


def test_export_after_lost_response_without_lookup_logs_warning(
    mlflow: VersionedServer, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy forwards only the OTLP endpoint."""
    LossyProxy(scripted_server, mlflow.server.uri)
    experiment_id = mlflow.server.create_experiment("lost answer, no questions")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=scripted_server.url, experiment_id=experiment_id)
    spans = make_traces(1, attributes=lambda *_: LLM_CALL)
    exporter.export(spans)
    assert exporter.force_flush(30_000)
    exporter.shutdown()
    assert exporter.stats().delivered == 1
    assert mlflow.list_span_names(experiment_id) == ["root 0"]
    assert caplog.text.count("spans that may have arrived are sent again without checking whether they are stored") == 1
    assert mlflow.read_token_usages(experiment_id) == [ONCE if mlflow.version >= (3, 17) else TWICE]


def test_export_of_same_spans_twice_counts_tokens_twice_before_3_17(mlflow: VersionedServer) -> None:
    """The control of the previous test: token counts without a lookup before the second export."""
    experiment_id = mlflow.server.create_experiment("twice")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow.server.uri, experiment_id=experiment_id)
    spans = make_traces(1, attributes=lambda *_: LLM_CALL)
    for _ in range(2):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert mlflow.read_token_usages(experiment_id) == [ONCE if mlflow.version >= (3, 17) else TWICE]
