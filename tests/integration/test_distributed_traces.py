"""Two teams' services with a workspace each and one trace, on a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter
from support.mlflow_server import MLflowServer
from support.spans import make_spans, provider


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server with the workspaces `team-a` and `team-b`."""
    server = MLflowServer.start(tmp_path_factory.mktemp("mlflow"), workspaces=True)
    for name in ("team-a", "team-b"):
        server.create_workspace(name)
    yield server
    server.stop()


def make_child(parent: ReadableSpan, name: str) -> ReadableSpan:
    """Make an ended span of another service below a span."""
    context, memory = parent.get_span_context(), InMemorySpanExporter()
    assert context is not None
    remote = SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=TraceFlags(1))
    with provider(memory) as tracer_provider:
        tracer_provider.get_tracer("tests").start_span(name, set_span_in_context(NonRecordingSpan(remote))).end()
    return memory.get_finished_spans()[0]


def test_export_of_trace_of_another_workspace_drops_its_spans_only(
    server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for workspace in ("team-a", "team-b"):
        server.create_experiment("agent", workspace)
    (root,), (own_root,) = make_spans("agent"), make_spans("own agent")
    first = MLflowSpanExporter(tracking_uri=server.uri, workspace="team-a", experiment="agent")
    first.export([root])
    first.shutdown()
    second = MLflowSpanExporter(
        tracking_uri=server.uri, workspace="team-b", experiment="agent", spool=True, spool_dir=str(tmp_path)
    )
    # `own agent` is not sent: its child is the first span of its trace that MLflow gets.
    second.export([make_child(root, "foreign"), make_child(own_root, "own"), *make_spans("local")])
    second.force_flush(30_000)
    second.shutdown()
    stats = second.stats()
    assert (stats.delivered, stats.dropped) == (2, 1)
    assert len(server.search_traces(server_experiment(server, "team-b"), "team-b")) == 2
    assert len(list(tmp_path.rglob("refused/*"))) == 1
    assert "the server accepted them, and has not stored their trace" in caplog.text
    assert "Set the same `MLFLOW_WORKSPACE` in all services of a trace" in caplog.text


def server_experiment(server: MLflowServer, workspace: str) -> str:
    experiment = server.experiment("agent", workspace)
    assert experiment is not None
    return str(experiment["experiment_id"])
