"""Export to a real MLflow server: destinations, requests, instrumentation without code, trace metadata."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter, configure, flush, shutdown, trace_context
from support.environments import MLFLOW_VERSIONS, mlflow_python
from support.mlflow_server import MLflowServer
from support.random_traces import traces
from support.spans import make_spans

APP = """
from opentelemetry import trace
with trace.get_tracer("app").start_as_current_span("zero code"):
    pass
"""
NO_OTHER_SIGNALS = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


@pytest.fixture(autouse=True)
def shut_down_after_test() -> Iterator[None]:
    yield
    shutdown()
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def span_names(server: MLflowServer, experiment: str, workspace: str | None = None) -> list[str]:
    """Return the names of all spans in an experiment."""
    stored = server.experiment(experiment, workspace)
    assert stored is not None, f"there is no experiment {experiment}"
    infos = server.search_traces(stored["experiment_id"], workspace)
    traces = [server.trace(info["trace_id"], workspace) for info in infos]
    return [span["name"] for trace in traces if trace for span in trace["spans"]]


def test_configure_with_arguments_exports_to_workspace_and_experiment(workspace_server: MLflowServer) -> None:
    configure(tracking_uri=workspace_server.uri, experiment="set in two ways", workspace="team-a", service_name="bot")
    trace.get_tracer("tests").start_span("by argument").end()
    assert shutdown(60).delivered == 1
    assert "by argument" in span_names(workspace_server, "set in two ways", "team-a")
    assert workspace_server.experiment("set in two ways", "team-b") is None


def test_configure_with_variables_exports_to_workspace_and_experiment(
    workspace_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "set in two ways")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    configure()
    trace.get_tracer("tests").start_span("by variable").end()
    assert shutdown(60).delivered == 1
    assert "by variable" in span_names(workspace_server, "set in two ways", "team-a")


def test_experiment_without_its_workspace_is_explained_once_with_the_servers_message(
    workspace_server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    number = workspace_server.create_experiment("hidden", "team-a")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=workspace_server.uri, experiment_id=number)
    for _ in range(3):
        assert exporter.export(make_spans("lost")) is SpanExportResult.FAILURE
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("mlflow_otlp")]
    exporter.shutdown()
    assert len(messages) == 1
    assert f"404: No Experiment with id={number} exists" in messages[0]


def test_unknown_workspace_is_explained_with_the_servers_message(
    workspace_server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = MLflowSpanExporter(
        timeout=60, tracking_uri=workspace_server.uri, experiment="set in two ways", workspace="nope"
    )
    assert exporter.export(make_spans("lost")) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert "Workspace 'nope' not found" in caplog.text


def test_deleted_experiment_is_rejected_by_the_client(
    mlflow_server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_server.delete_experiment(mlflow_server.create_experiment("deleted"))
    exporter = MLflowSpanExporter(
        timeout=60, tracking_uri=mlflow_server.uri, experiment="deleted", create_experiment=True
    )
    assert exporter.export(make_spans("lost")) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert "the experiment 'deleted' is deleted: restore it" in caplog.text


def test_concurrent_processes_create_one_experiment(mlflow_server: MLflowServer) -> None:
    code = (
        "import sys; from mlflow_otlp_exporter import configure; from opentelemetry import trace\n"
        f"telemetry = configure(tracking_uri={mlflow_server.uri!r}, experiment='concurrent')\n"
        "trace.get_tracer('tests').start_span(sys.argv[1]).end()\n"
        "sys.exit(not telemetry.flush())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, f"span {number}"]) for number in range(4)]
    assert [process.wait(200) for process in processes] == [0, 0, 0, 0]
    assert sorted(span_names(mlflow_server, "concurrent")) == [f"span {number}" for number in range(4)]


def test_trace_url_opens_the_trace(mlflow_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=mlflow_server.uri, experiment="linked", service_name="bot")
    with trace.get_tracer("tests").start_as_current_span("root") as span:
        pass
    assert telemetry.flush().delivered == 1
    url = telemetry.trace_url()
    shutdown()
    experiment = mlflow_server.experiment("linked")
    assert experiment is not None
    assert url is not None
    assert url.startswith(f"{mlflow_server.uri}/#/experiments/{experiment['experiment_id']}/traces?")
    assert mlflow_server.trace(f"{span.get_span_context().trace_id:032x}") is not None


def run_instrumented(server: MLflowServer, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `opentelemetry-instrument python app.py` with an application that does not import this library."""
    (folder / "app.py").write_text(APP)
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, str(folder / "app.py")]
    environment = {**os.environ, **NO_OTHER_SIGNALS, "OTEL_TRACES_EXPORTER": "mlflow", **variables}
    environment.setdefault("MLFLOW_TRACKING_URI", server.uri)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_opentelemetry_instrument_exports_to_mlflow(mlflow_server: MLflowServer, tmp_path: Path) -> None:
    completed = run_instrumented(mlflow_server, tmp_path, MLFLOW_EXPERIMENT_NAME="zero")
    assert completed.returncode == 0
    [warning] = completed.stderr.splitlines()
    assert warning.startswith("created the experiment 'zero' (id ")
    assert span_names(mlflow_server, "zero") == ["zero code"]


def test_opentelemetry_instrument_with_invalid_setting_logs_and_continues(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    wrong = {"MLFLOW_TRACKING_URI": "sqlite:///x.db", "OTEL_TRACES_EXPORTER": "mlflow,console"}
    completed = run_instrumented(mlflow_server, tmp_path, **wrong)
    assert completed.returncode == 0
    assert "No spans will be exported to MLflow: environment variable MLFLOW_TRACKING_URI" in completed.stderr
    assert '"name": "zero code"' in completed.stdout  # the other exporter works


def assert_one_request_per_batch(server: MLflowServer) -> None:
    """Export batches, and compare with the requests that the server counts."""
    number = server.create_experiment("batches")
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=server.uri, experiment_id=number)
    before = server.count_requests()
    for size in (1, 3, 10):
        names = [f"{size}/{number}" for number in range(size)]
        assert exporter.export(make_spans(*names)) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert server.count_requests() - before == 3
    assert len(server.search_traces(number)) == 14


def test_export_sends_one_request_per_batch(mlflow_server: MLflowServer) -> None:
    assert_one_request_per_batch(mlflow_server)


@pytest.mark.matrix
@pytest.mark.parametrize("version", sorted(MLFLOW_VERSIONS))
def test_export_to_each_version_sends_one_request_per_batch(version: str, tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path, python=mlflow_python(version))
    try:
        assert_one_request_per_batch(server)
    finally:
        server.stop()


@pytest.mark.matrix
@pytest.mark.parametrize("version", ["3.6.0", "3.8.1"])
def test_export_with_compression_stops_it_after_a_rejection(version: str, tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path, python=mlflow_python(version))
    try:
        number = server.create_experiment("compressed")
        exporter = MLflowSpanExporter(timeout=60, tracking_uri=server.uri, experiment_id=number, compression="gzip")
        for name in ("first", "second"):
            assert exporter.export(make_spans(name * 500)) is SpanExportResult.SUCCESS
        exporter.shutdown()
        # MLflow before 3.7 cannot decompress bodies, and answers 400.
        assert server.statuses() == ([400, 200, 200] if version == "3.6.0" else [200, 200])
        assert len(server.search_traces(number)) == 2
    finally:
        server.stop()


def test_export_of_more_than_100_traces_links_all_to_their_run(mlflow_server: MLflowServer) -> None:
    number = mlflow_server.create_experiment("linked to a run")
    body = {"experiment_id": number}
    run = mlflow_server.call_rest("POST", "/api/2.0/mlflow/runs/create", body)["run"]["info"]["run_id"]
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow_server.uri, experiment_id=number, run_id=run)
    before = mlflow_server.count_requests()
    assert exporter.export(make_spans(*map(str, range(120)))) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert mlflow_server.count_requests() - before == 2
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}}
    query = {"locations": [location], "filter": f"attributes.run_id = '{run}'", "max_results": 500}
    hits = mlflow_server.call_rest("POST", "/api/3.0/mlflow/traces/search", query)
    assert len(hits["traces"]) == 120


def test_trace_info_sets_columns_and_prompts(mlflow_server: MLflowServer) -> None:
    """Source, run name, metadata; `prompt =` finds traces by prompts of the application or an instrumentation."""
    number = mlflow_server.create_experiment("columns")
    run = mlflow_server.call_rest("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": number})["run"]["info"][
        "run_id"
    ]
    telemetry = configure(tracking_uri=mlflow_server.uri, experiment="columns", trace_info=True, auto_instrument=False)
    tracer = trace.get_tracer("tests")
    with trace_context(prompt="greeting/2", metadata={"release": "2.3.1"}, run_id=run):
        tracer.start_span("by the application").end()
    with trace_context(run_id=run), tracer.start_as_current_span("by an instrumentation"):
        tracer.start_span("chat", attributes={"gen_ai.prompt.name": "greeting", "gen_ai.prompt.version": "3"}).end()
    assert telemetry.flush()
    assert telemetry.stats().metadata_updates == 2

    def search(condition: str) -> list[dict[str, Any]]:
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}}
        query = {"locations": [location], "filter": condition, "max_results": 10}
        traces = mlflow_server.call_rest("POST", "/api/3.0/mlflow/traces/search", query).get("traces", [])
        assert all(info["trace_metadata"]["mlflow.sourceRun"] == run for info in traces)
        assert all(info["trace_metadata"]["mlflow.source.name"] for info in traces)
        return list(traces)

    (by_application,) = search("prompt = 'greeting/2'")
    assert by_application["tags"]["mlflow.traceName"] == "by the application"
    assert (by_application["trace_metadata"]["release"], by_application["trace_metadata"]["mlflow.source.type"]) == (
        "2.3.1",
        "LOCAL",
    )
    (by_instrumentation,) = search("prompt = 'greeting/3'")
    assert by_instrumentation["tags"]["mlflow.traceName"] == "by an instrumentation"
    assert len(search(f"run_id = '{run}'")) == 2
    assert len(search("metadata.release = '2.3.1'")) == 1
    assert search("prompt = 'greeting/1'") == []


def test_trace_is_stored_soon_after_its_root_ended(mlflow_server: MLflowServer) -> None:
    configure(tracking_uri=mlflow_server.uri, experiment="quick")
    trace.get_tracer("tests").start_span("warm-up").end()
    flush()
    with trace.get_tracer("tests").start_as_current_span("root") as span:
        trace.get_tracer("tests").start_span("child").end()
    # It takes a fraction of a second on an idle machine; a trace without an ended root would be buffered for 30 s.
    # MLflow returns a trace before its spans.
    info = mlflow_server.wait_for_trace(
        f"{span.get_span_context().trace_id:032x}", until=lambda trace: len(trace.get("spans", ())) == 2, timeout=5.0
    )
    assert info["trace_info"]["state"] == "OK"


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(traces(st.integers(1 << 100, (1 << 128) - 1)), st.booleans())
def test_export_with_arbitrary_attributes_is_accepted(
    mlflow_server: MLflowServer, spans: list[ReadableSpan], compact: bool
) -> None:
    exporter = MLflowSpanExporter(timeout=60, tracking_uri=mlflow_server.uri, experiment_id=0, compact=compact)
    result = exporter.export(spans)
    exporter.shutdown()
    assert result is SpanExportResult.SUCCESS
