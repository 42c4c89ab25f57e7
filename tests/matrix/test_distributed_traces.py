"""Two services with an experiment each send spans of the same traces: a trace belongs to one experiment."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.spans import provider
from support.traces import make_traces

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("trace_updates")]

VERSIONS = ("3.10.1", "3.17.2", "3.18.0")
FLUSH_MS = 30_000
ROOT = {
    "mlflow.traceTag.mlflow.traceName": "agent",
    "mlflow.spanInputs": '"What is the weather?"',
    "mlflow.spanOutputs": '"Sunny."',
}


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """A server of each version."""
    folder = tmp_path_factory.mktemp(f"mlflow-{request.param}")
    server = MLflowServer.start(folder, python=mlflow_python(str(request.param)))
    yield server
    server.stop()


def make_distributed_trace() -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    """Return the spans of the calling service (a root and a client span) and those of the called one (a child)."""
    spans: list[list[ReadableSpan]] = []
    memory = InMemorySpanExporter()
    with provider(memory, "front") as tracer_provider:
        tracer = tracer_provider.get_tracer("tests")
        root = tracer.start_span("agent", attributes=ROOT)
        call = tracer.start_span("call", set_span_in_context(root))
        call.end()
        root.end()
        spans.append(list(memory.get_finished_spans()))
    memory = InMemorySpanExporter()
    with provider(memory, "back") as tracer_provider:
        context = call.get_span_context()
        parent = SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=TraceFlags(1))
        remote = set_span_in_context(NonRecordingSpan(parent))
        tracer_provider.get_tracer("tests").start_span("search", remote).end()
        spans.append(list(memory.get_finished_spans()))
    return spans[0], spans[1]


def send(server: MLflowServer, service: str, spans: list[ReadableSpan], spool: Path | None) -> None:
    """Send the spans as a service with an experiment of its own; all must be delivered."""
    exporter = MLflowSpanExporter(
        timeout=60,
        tracking_uri=server.uri,
        experiment=service,
        spool=spool is not None,
        spool_dir=str(spool) if spool is not None else None,
    )
    exporter.export(spans)
    assert exporter.force_flush(FLUSH_MS)
    exporter.shutdown()
    stats = exporter.stats()
    assert (stats.delivered, stats.dropped) == (len(spans), 0)


@pytest.mark.parametrize("has_spool", [False, True], ids=["in memory", "spool"])
@pytest.mark.parametrize("order", [("front", "back"), ("back", "front")], ids="-".join)
def test_export_of_trace_of_two_services_stores_all_spans_in_first_experiment(
    server: MLflowServer, tmp_path: Path, order: tuple[str, str], has_spool: bool
) -> None:
    suffix = f"{'-'.join(order)} {has_spool}"
    experiments = {service: server.create_experiment(f"{service} {suffix}") for service in order}
    front, back = make_distributed_trace()
    spans = {"front": [*front, *make_traces(10)], "back": [*back, *make_traces(10)]}
    for service in order:
        send(server, f"{service} {suffix}", spans[service], tmp_path / service if has_spool else None)
    context = front[0].context
    assert context is not None
    trace = server.trace(f"{context.trace_id:032x}")
    assert trace is not None
    assert sorted(span["name"] for span in trace["spans"]) == ["agent", "call", "search"]
    info = trace["trace_info"]
    assert info["trace_location"]["mlflow_experiment"]["experiment_id"] == experiments[order[0]]
    assert info["tags"]["mlflow.traceName"] == "agent"
    assert "weather" in info["request_preview"]
    assert "Sunny" in info["response_preview"]
    assert len(server.search_traces(experiments[order[0]])) == 11
    assert len(server.search_traces(experiments[order[1]])) == 10
