"""Which traces are left out."""

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor
from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter
from support.scripted_server import ScriptedServer

OTEL = "opentelemetry.instrumentation."
FASTAPI, HTTPX, REDIS = OTEL + "fastapi", OTEL + "httpx", OTEL + "redis.asyncio"
LANGCHAIN = "openinference.instrumentation.langchain"


def trace_of(*scopes: str, attributes: dict[str, str] | None = None, remote: bool = False) -> list[ReadableSpan]:
    """A trace with one span of each scope, the first its root, which ends last."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    above = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))))
    root = provider.get_tracer(scopes[0]).start_span("root", above if remote else None, attributes=attributes)
    for scope in scopes[1:]:
        provider.get_tracer(scope).start_span("child", set_span_in_context(root)).end()
    root.end()
    provider.shutdown()
    return list(memory.get_finished_spans())


@pytest.mark.parametrize(
    ("noise", "scopes", "left_out"),
    [
        ("default", [FASTAPI], True),
        ("default", [FASTAPI, HTTPX, REDIS, OTEL + "sqlalchemy"], True),
        ("default", [OTEL + "botocore"], False),
        ("default", ["fastapi"], True),
        ("default", [FASTAPI, LANGCHAIN], False),
        ("default", [FASTAPI, "app"], False),
        ("default", ["app"], False),
        ("default", [""], False),
        ("none", [FASTAPI], False),
        ("", [FASTAPI], False),
        ("all", [FASTAPI, "app"], True),
        ("all", [FASTAPI, LANGCHAIN], False),
        ("all", ["app", "mlflow_otlp_exporter"], False),
        ("app", ["app"], True),
        ("app", [FASTAPI], False),
        ("app", ["app", FASTAPI], False),
        ("app,default", ["app", FASTAPI], True),
        ("my.*", ["my.scope", "my.other"], True),
    ],
)
def test_trace_filter_matches_scopes(noise: str, scopes: Sequence[str], left_out: bool) -> None:
    decide = make_trace_filter([word for word in noise.split(",") if word])
    assert (decide is not None and decide(trace_of(*scopes))) is left_out


@pytest.mark.parametrize("noise", ["default", "all"])
@pytest.mark.parametrize(
    "key", ["gen_ai.request.model", "openinference.span.kind", "llm.model_name", "mlflow.spanType"]
)
def test_span_marked_as_agent_is_not_filtered(noise: str, key: str) -> None:
    decide = make_trace_filter([noise])
    assert decide is not None
    assert not decide(trace_of(FASTAPI, attributes={key: "x"}))
    assert decide(trace_of(FASTAPI, attributes={"http.route": "/health"}))


NODE_HTTP = "@opentelemetry/instrumentation-http"
# As Rust's `tracing` writes the spans of Codex.
CODEX = {"code.file.path": "core/src/codex.rs", "thread.name": "main", "busy_ns": "170", "idle_ns": "20"}


@pytest.mark.parametrize(
    ("scopes", "attributes", "left_out"),
    [
        (["codex_cli_rs"], CODEX, True),
        (["codex_cli_rs"], {**CODEX, "otel.name": "op.dispatch.list", "submission.id": "7"}, True),
        (["codex_cli_rs"], {**CODEX, "gen_ai.usage.input_tokens": "62"}, False),
        (["codex_cli_rs"], {**CODEX, "codex.tool.phase": "dispatch", "tool_name": "exec_command"}, False),
        (["codex_cli_rs"], {**CODEX, "codex.turn.token_usage.input_tokens": "62"}, False),
        (["codex_cli_rs"], {**CODEX, "model": "gpt-5-codex"}, True),
        (["codex_cli_rs", "app"], CODEX, False),
        ([NODE_HTTP, "@opentelemetry/instrumentation-undici"], {"http.route": "/health"}, True),
        ([NODE_HTTP, "genkit-tracer"], {"http.route": "/ask"}, False),
        ([NODE_HTTP, "@arizeai/openinference-instrumentation-bedrock"], {"http.route": "/ask"}, False),
        ([FASTAPI, "mlflow_otlp_exporter"], {"http.route": "/ask"}, False),
        (["app"], {"mlflow.spanInputs": "{}"}, False),
        ([FASTAPI], {"mlflow.chat.tools": "[]"}, False),
    ],
)
def test_default_filter_leaves_out_traces_without_content(
    scopes: Sequence[str], attributes: dict[str, str], left_out: bool
) -> None:
    decide = make_trace_filter(["default"])
    assert decide is not None
    assert decide(trace_of(*scopes, attributes=attributes)) is left_out


def buffer(*, has_start_events: bool = True) -> TraceBuffer:
    return TraceBuffer(
        linger_seconds=0.1,
        max_age_seconds=30,
        has_start_events=has_start_events,
        trace_filter=make_trace_filter(["default"]),
    )


def names(spans: list[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


@pytest.mark.parametrize("has_start_events", [True, False])
def test_infrastructure_trace_is_filtered(has_start_events: bool) -> None:
    trace_buffer = buffer(has_start_events=has_start_events)
    for span in trace_of(FASTAPI, HTTPX):
        trace_buffer.add(span, 0.0)
    assert trace_buffer.pop_ready(1.0) == []
    assert names(trace_buffer.filtered_spans) == ["child", "root"]
    assert (trace_buffer.span_count, trace_buffer.byte_count) == (0, 0)


@pytest.mark.parametrize("has_start_events", [True, False])
def test_trace_exported_in_part_is_not_filtered(has_start_events: bool) -> None:
    trace_buffer = buffer(has_start_events=has_start_events)
    child, root = trace_of(FASTAPI, HTTPX)
    assert child.context is not None
    for _ in range(2 * has_start_events):
        trace_buffer.record_starts(child.context.trace_id, 1)
    trace_buffer.add(child, 0.0)
    assert names(trace_buffer.pop_all()) == ["child"]
    trace_buffer.add(root, 1.0)
    assert names(trace_buffer.pop_ready(3.0)) == ["root"]
    assert trace_buffer.filtered_spans == []


def test_trace_with_remote_parent_is_not_filtered() -> None:
    trace_buffer = buffer()
    for span in trace_of(FASTAPI, HTTPX, remote=True):
        trace_buffer.add(span, 0.0)
    assert names(trace_buffer.pop_ready(1.0)) == ["child", "root"]


def test_filtered_traces_are_counted_and_logged_once(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    processor = MLflowSpanProcessor(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    for scope in (FASTAPI, FASTAPI, "app"):
        provider.get_tracer(scope).start_span(scope).end()
    assert processor.force_flush()
    stats = exporter.stats()
    processor.shutdown()
    assert (stats.filtered, stats.delivered, stats.dropped) == (2, 1, 0)
    assert caplog.text.count("A trace is filtered out: all its spans are of opentelemetry.instrumentation.fastapi") == 1
    assert [span.name for request in scripted_server.requests for span in request.spans()] == ["app"]
