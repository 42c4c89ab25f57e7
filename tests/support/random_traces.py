"""Traces with arbitrary values in the attributes that enrichment reads, for property tests."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

ANTHROPIC_SDK = "com.anthropic.sdk.python"


def span(
    number: int,
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: int | None = None,
    name: str = "span",
    trace: int = 1,
    events: Sequence[Event] = (),
    status: Status | None = None,
    scope: str = "tests",
    start: int | None = None,
    end: int | None = None,
) -> ReadableSpan:
    """Make an ended span."""
    parent_context = SpanContext(trace, parent, False, TraceFlags(1)) if parent else None
    begin = start if start is not None else number
    return ReadableSpan(
        name,
        SpanContext(trace, number, False, TraceFlags(1)),
        parent=parent_context,
        attributes=attributes or {},
        resource=Resource({}),
        events=events,
        status=status or Status(StatusCode.UNSET),
        instrumentation_scope=InstrumentationScope(scope),
        start_time=begin,
        end_time=end if end is not None else begin + 1000 - number,
    )


TEXTS = st.text(max_size=40)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "parts", "type", "text", "tool_calls", "function", "name", "data", "id"]
            ),
            values,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "x", 3])},
        optional={"content": VALUES, "parts": VALUES, "tool_calls": VALUES, "type": TEXTS},
    ),
    max_size=4,
)
JSON = (VALUES | MESSAGES).map(lambda value: json.dumps(value, default=str))
BROKEN = st.builds(lambda text, end: text[: max(0, len(text) - end)], JSON, st.integers(1, 10))
KEYS = st.sampled_from(
    [
        "openinference.span.kind",
        "input.value",
        "output.value",
        "llm.input_messages.0.message.role",
        "llm.input_messages.0.message.content",
        "llm.input_messages.0",
        "llm.input_messages.x.message.contents.0.message_content",
        "llm.output_messages.1.message.tool_calls.0.tool_call.function.name",
        "llm.token_count.prompt",
        "llm.token_count.total",
        "llm.tools.0.tool.json_schema",
        "llm.invocation_parameters",
        "metadata",
        "tag.tags",
        "session.id",
        "user.id",
        "tool.name",
        "retrieval.documents.0.document.content",
        "reranker.query",
        "embedding.embeddings.0.embedding.text",
        "llm.cost.total",
        "gen_ai.operation.name",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
        "gen_ai.tool.name",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
        "gen_ai.response.id",
        "gen_ai.prompt.0.role",
        "gen_ai.prompt.0.content",
        "gen_ai.completion.0.content",
        "gen_ai.retrieval.documents",
        "traceloop.span.kind",
        "traceloop.entity.input",
        "traceloop.entity.output",
        "traceloop.association.properties.session_id",
        "ai.operationId",
        "ai.prompt",
        "ai.prompt.messages",
        "ai.prompt.tools",
        "ai.response.toolCalls",
        "ai.toolCall.args",
        "pydantic_ai.all_messages",
        "final_result",
        "events",
        "model_request_parameters",
        "tool_arguments",
        "gcp.vertex.agent.llm_request",
        "gcp.vertex.agent.llm_response",
        "gcp.vertex.agent.tool_call_args",
        "logfire.msg",
        "logfire.msg_template",
        "request_data",
        "response_data",
        "gen_ai.usage.raw",
        "operation.cost",
        "mcp.method.name",
        "crew_tasks",
        "task_id",
        "mlflow.spanType",
        "mlflow.spanInputs",
        "mlflow.chat.tokenUsage",
        "mlflow.chat.tools",
        "error.type",
        "http.method",
    ]
)
KINDS = st.sampled_from(
    [
        "LLM",
        "CHAIN",
        "agent",
        "TOOL",
        "RETRIEVER",
        "RERANKER",
        "EMBEDDING",
        "chat",
        "execute_tool",
        "invoke_agent",
        "embeddings",
        "retrieval",
        "workflow",
        "ai.generateText",
        "ai.toolCall",
        "ai.embed",
        "tools/call",
        "CHAT_MODEL",
    ]
)
ATTRIBUTES = st.dictionaries(KEYS, JSON | BROKEN | VALUES | KINDS, max_size=12)
EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(
            [
                "gen_ai.user.message",
                "gen_ai.choice",
                "gen_ai.tool.message",
                "gen_ai.content.prompt",
                "exception",
                "gen_ai.client.inference.operation.details",
            ]
        ),
        st.dictionaries(
            st.sampled_from(["content", "message", "id", "gen_ai.input.messages", "gen_ai.prompt"]), JSON | BROKEN
        ),
        st.just(5),
    ),
    max_size=3,
)


@st.composite
def traces(draw: st.DrawFn, trace_ids: st.SearchStrategy[int] | None = None) -> list[ReadableSpan]:
    """Draw up to six spans of a trace, with parents inside and outside of it."""
    spans = []
    trace = draw(trace_ids) if trace_ids is not None else 1
    for number in range(1, draw(st.integers(1, 6)) + 1):
        parent = draw(st.none() | st.integers(1, 8))
        status = draw(st.sampled_from([Status(StatusCode.UNSET), Status(StatusCode.OK), Status(StatusCode.ERROR, "x")]))
        scope = draw(st.sampled_from(["tests", ANTHROPIC_SDK]))
        other_parent = parent if parent != number else None
        attributes = draw(ATTRIBUTES)
        spans.append(
            span(number, attributes, parent=other_parent, trace=trace, events=draw(EVENTS), status=status, scope=scope)
        )
    return spans
