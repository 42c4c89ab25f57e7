"""Conventions that are tables: frameworks of other languages, and coding agents."""

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Document, Kind, NormalizedSpan, merge
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, read_usage
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, parse_texts

_MASTRA_TYPES = {
    "agent_run": Kind.AGENT,
    "workflow_run": Kind.WORKFLOW,
    **dict.fromkeys(
        (
            *("workflow_step", "workflow_conditional", "workflow_conditional_eval", "workflow_parallel"),
            *("workflow_loop", "workflow_sleep", "workflow_wait_event"),
        ),
        Kind.TASK,
    ),
    **dict.fromkeys(("tool_call", "mcp_tool_call", "provider_tool_call", "client_tool_call"), Kind.TOOL),
    **dict.fromkeys(("model_generation", "model_step", "processor_run"), Kind.CHAIN),
    "model_inference": Kind.CHAT_MODEL,
    "memory_operation": Kind.MEMORY,
    "rag_embedding": Kind.EMBEDDING,
    "scorer_run": Kind.EVALUATOR,
}


def _complete_genkit(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    """The action of a model is named `PROVIDER/MODEL`; the provider's own response has all counts."""
    if normalized.kind not in (Kind.CHAT_MODEL, Kind.EMBEDDING):
        return normalized
    provider, _, model = str(span.attributes.get("genkit:name") or span.name).partition("/")
    response = parse_structured(span.attributes.get("genkit:output"))
    raw = response.get("raw", response.get("custom")) if isinstance(response, dict) else None
    usage = read_usage(raw.get("usage", raw.get("usageMetadata"))) if isinstance(raw, dict) else None
    return merge([normalized, NormalizedSpan(usage=usage, provider=provider, request_model=model or None)])


GENKIT = Dialect(
    "Genkit",
    frozenset({"genkit:type"}),
    {
        "kind": ("genkit:metadata:subtype", "genkit:type"),
        "input": ("genkit:input",),
        "output": ("genkit:output",),
        "session": ("genkit:sessionId",),
    },
    {
        "background-model": Kind.CHAT_MODEL,
        "tool.v2": Kind.TOOL,
        "flow": Kind.WORKFLOW,
        "flowstep": Kind.TASK,
        "util": Kind.CHAIN,
        "action": Kind.CHAIN,
        "prompt": Kind.CHAIN,
        "executable-prompt": Kind.CHAIN,
    },
    complete=_complete_genkit,
)


def _complete_voltagent(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    """An agent's tools are in its state; a tool describes itself; a model call has its messages in `llm.messages`."""
    attributes, kind = span.attributes, normalized.kind
    if kind is Kind.AGENT:
        state = parse_structured(attributes.get("agent.stateSnapshot"))
        tools = state.get("tools") if isinstance(state, dict) else None
    elif kind is Kind.TOOL:
        description, parameters = normalized.tool_description, attributes.get("tool.parameters")
        tools = [{"name": normalized.tool_name, "description": description, "parameters": parameters}]
    else:
        return normalized
    return normalized._replace(tools=read_tools(tools))


VOLTAGENT = Dialect(
    "VoltAgent",
    frozenset({"entity"}),
    {
        "kind": ("span.type", "entity.type"),
        "input": ("llm.messages", "input"),
        "output": ("output",),
        "tool_name": ("tool.name",),
        "tool_description": ("tool.description",),
        "tool_call_id": ("tool.call.id",),
        "request_model": ("llm.model", "ai.model.name"),
        "finish_reason": ("llm.finish_reason",),
        "usage.input": ("llm.usage.prompt_tokens", "usage.prompt_tokens"),
        "usage.output": ("llm.usage.completion_tokens", "usage.completion_tokens"),
        "usage.total": ("llm.usage.total_tokens", "usage.total_tokens"),
        "usage.cache_read": ("llm.usage.cached_tokens", "usage.cached_tokens"),
        "usage.reasoning": ("llm.usage.reasoning_tokens", "usage.reasoning_tokens"),
        "session": ("conversation.id", "voltagent.conversation_id"),
        "user": ("user.id",),
        "agent_name": ("entity.name",),
    },
    {
        "llm": Kind.CHAT_MODEL,
        "workflow-step": Kind.TASK,
        "middleware": Kind.CHAIN,
    },
    complete=_complete_voltagent,
)

MASTRA = Dialect(
    "Mastra",
    frozenset({"mastra"}),
    {
        "kind": ("mastra.span.type",),
        "input": tuple(f"mastra.{name}.input" for name in _MASTRA_TYPES),
        "output": tuple(f"mastra.{name}.output" for name in _MASTRA_TYPES),
        "tags": ("mastra.tags",),
    },
    _MASTRA_TYPES,
    ("mastra.metadata.",),
    frozenset(
        {"runId", "headers", "body", "modelMetadata", "providerMetadata", "toolCallId", "toolName", "resourceId"}
        | {"toolType", "request", "response", "warnings", "timestamp", "id", "modelId"}
    ),
)


def _complete_spring(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    if normalized.kind is not Kind.RETRIEVER:
        return normalized
    if span.attributes.get("db.operation.name") not in (None, "query"):
        return normalized._replace(kind=Kind.CHAIN)
    texts = parse_texts(span.attributes.get("db.vector.query.response.documents"))
    return normalized._replace(documents=tuple(map(Document, texts)) if texts else None)


SPRING_AI = Dialect(
    "Spring AI",
    frozenset({"spring"}),
    {
        "kind": ("spring.ai.kind",),
        "input": ("spring.ai.tool.call.arguments", "spring.ai.chat.client.user.text", "db.vector.query.content"),
        "output": ("spring.ai.tool.call.result",),
        "tool_name": ("spring.ai.tool.definition.name",),
        "tool_description": ("spring.ai.tool.definition.description",),
        "tool_call_id": ("spring.ai.tool.call.id",),
        "session": ("spring.ai.chat.client.conversation.id",),
    },
    {
        "chat_client": Kind.AGENT,
        "advisor": Kind.CHAIN,
        "tool_call": Kind.TOOL,
        "vector_store": Kind.RETRIEVER,
    },
    complete=_complete_spring,
)


def _complete_claude_code(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan | None:
    """Counts stand beside the cached tokens; contents begin with a line in brackets that says what they are."""
    if not span.name.startswith("claude_code."):
        return None
    usage = normalized.usage
    if usage is not None:
        cached = (usage.cache_read or 0) + (usage.cache_write or 0)
        normalized = normalized._replace(usage=usage._replace(input=(usage.input or 0) + cached))
    if normalized.kind is Kind.TOOL:
        result = next((event.attributes for event in span.events if event.name == "tool.output"), {})
        arguments = {name: span.attributes[key] for key, name in _CLAUDE_ARGUMENTS.items() if key in span.attributes}
        normalized = normalized._replace(
            input=_strip_header(normalized.input) or arguments or None,
            output=_strip_header(normalized.output or result.get("output", result.get("content"))),
        )
    elif normalized.kind is Kind.CHAT_MODEL:
        text = _strip_header(span.attributes.get("new_context"))
        normalized = normalized._replace(input_messages=read_messages(text), provider="anthropic")
    return normalized


def _strip_header(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("["):
        header, separator, text = value.partition("]\n")
        return text if separator and "\n" not in header else value
    return value


# The argument that each attribute holds, if `tool_input` is not recorded.
_CLAUDE_ARGUMENTS = {"full_command": "command", "file_path": "file_path", "pattern": "pattern", "url": "url"}

CLAUDE_CODE = Dialect(
    "Claude Code",
    frozenset({"span"}),
    {
        "kind": ("span.type",),
        "input": ("user_prompt", "tool_input"),
        "output": ("response.model_output", "tool_output"),
        "tool_name": ("tool_name",),
        "tool_call_id": ("tool_use_id",),
        "request_model": ("model",),
        "usage.input": ("input_tokens",),
        "usage.output": ("output_tokens",),
        "usage.cache_read": ("cache_read_tokens",),
        "usage.cache_write": ("cache_creation_tokens",),
        "finish_reason": ("stop_reason",),
        "response_id": ("gen_ai.response.id",),
    },
    {"interaction": Kind.AGENT, "llm_request": Kind.CHAT_MODEL},
    complete=_complete_claude_code,
)


def _complete_codex(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    """The kind of a span, by what it counts or calls."""
    attributes = span.attributes
    if "codex.turn.token_usage.input_tokens" in attributes:
        return normalized._replace(kind=Kind.AGENT)
    if "codex.usage.total_tokens" in attributes:
        return normalized._replace(kind=Kind.LLM, tool_name=None, tool_call_id=None)
    if "codex.tool.phase" in attributes:
        return normalized._replace(kind=Kind.TOOL)
    # Other spans name the tool or the model of a call that they are a part of.
    return normalized._replace(tool_name=None, tool_call_id=None)


CODEX = Dialect(
    "Codex",
    frozenset({"codex", "turn", "turn_id"}),
    {
        "tool_name": ("tool_name",),
        "tool_call_id": ("call_id",),
        "request_model": ("model",),
        "usage.input": ("codex.turn.token_usage.input_tokens", "gen_ai.usage.input_tokens"),
        "usage.output": ("codex.turn.token_usage.output_tokens", "gen_ai.usage.output_tokens"),
        "usage.total": ("codex.turn.token_usage.total_tokens", "codex.usage.total_tokens"),
        "usage.cache_read": ("codex.turn.token_usage.cached_input_tokens", "gen_ai.usage.cache_read.input_tokens"),
        "usage.cache_write": ("codex.turn.token_usage.cache_write_input_tokens",),
        "usage.reasoning": ("codex.turn.token_usage.reasoning_output_tokens", "codex.usage.reasoning_output_tokens"),
        "session": ("conversation.id",),
    },
    complete=_complete_codex,
)

FRAMEWORKS = (GENKIT, VOLTAGENT, MASTRA, SPRING_AI, CLAUDE_CODE, CODEX)
