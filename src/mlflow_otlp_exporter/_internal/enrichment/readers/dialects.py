"""Conventions that are tables: how SDKs and frameworks with attributes of their own name what a span holds."""

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import KIND_WORDS, MODEL_KINDS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Document, NormalizedSpan, Usage, merge
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import (
    Dialect,
    collect_properties,
    find_model_call,
    read_dialect,
    read_usage,
)
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_int,
    parse_kind,
    parse_structured,
    parse_text,
    parse_texts,
    select_text,
)

LANGFUSE = Dialect(
    "Langfuse",
    frozenset({"langfuse"}),
    {
        "kind": ("langfuse.observation.type",),
        "input": ("langfuse.observation.input", "langfuse.trace.input"),
        "output": ("langfuse.observation.output", "langfuse.trace.output"),
        "usage": ("langfuse.observation.usage_details",),
        "cost": ("langfuse.observation.cost_details",),
        "response_model": ("langfuse.observation.model.name",),
        "invocation_parameters": ("langfuse.observation.model.parameters",),
        "trace_name": ("langfuse.trace.name",),
        "session": ("langfuse.session.id", "langfuse.trace.session_id"),
        "user": ("langfuse.user.id", "langfuse.trace.user_id"),
        "tags": ("langfuse.trace.tags",),
    },
    {},
    ("langfuse.trace.metadata.",),
)

LANGSMITH = Dialect(
    "LangSmith",
    frozenset({"langsmith"}),
    {
        "kind": ("langsmith.span.kind",),
        "input": ("gen_ai.prompt",),
        "output": ("gen_ai.completion",),
        "usage": ("langsmith.metadata.usage_metadata",),
        "provider": ("langsmith.metadata.ls_provider",),
        "tags": ("langsmith.span.tags",),
    },
    {},
    ("langsmith.metadata.",),
    frozenset({"_type", "model", "model_name", "stream", "usage_metadata", "revision_id"}),
    frozenset({"input", "output"}),
)

_HAYSTACK_SPANS = {
    **dict.fromkeys(("haystack.pipeline.run", "haystack.async_pipeline.run", "haystack.agent.step"), Kind.CHAIN),
    "haystack.agent.run": Kind.AGENT,
    "haystack.agent.step.llm": Kind.CHAT_MODEL,
    "haystack.agent.step.tool": Kind.TOOL,
}
_HAYSTACK_COMPONENTS = {
    "ChatGenerator": Kind.CHAT_MODEL,
    "Generator": Kind.LLM,
    "Retriever": Kind.RETRIEVER,
    "Embedder": Kind.EMBEDDING,
    "Ranker": Kind.RERANKER,
    "Agent": Kind.AGENT,
    "Evaluator": Kind.EVALUATOR,
    "PromptBuilder": Kind.PROMPT,
}


def _find_haystack_kind(span: SpanView) -> Kind | None:
    """The kind of a component, from the end of its class's name."""
    component = span.attributes.get("haystack.component.type")
    if not isinstance(component, str):
        return _HAYSTACK_SPANS.get(span.name)
    return next((kind for suffix, kind in _HAYSTACK_COMPONENTS.items() if component.endswith(suffix)), Kind.CHAIN)


HAYSTACK = Dialect(
    "Haystack",
    frozenset({"haystack"}),
    {
        "input": (
            *("haystack.component.input", "haystack.pipeline.input_data"),
            *("haystack.agent.step.tool.input", "haystack.agent.step.llm.input", "haystack.agent.input"),
        ),
        "output": (
            *("haystack.component.output", "haystack.pipeline.output_data"),
            *("haystack.agent.step.tool.output", "haystack.agent.step.llm.output", "haystack.agent.output"),
        ),
        "tools": ("haystack.agent.tools",),
        "tool_name": ("haystack.tool.name",),
        "tool_description": ("haystack.tool.description",),
        "tool_call_id": ("haystack.tool.call.id",),
        "metadata": ("haystack.pipeline.metadata",),
    },
    find_kind=_find_haystack_kind,
)
LAMINAR = Dialect(
    "Laminar",
    frozenset({"lmnr"}),
    {"kind": ("lmnr.span.type",), "input": ("lmnr.span.input",), "output": ("lmnr.span.output",)},
    {"executor": Kind.CHAIN, "evaluation": Kind.CHAIN, "human_evaluator": Kind.EVALUATOR},
    ("lmnr.association.properties.metadata.", "lmnr.association.properties."),
    frozenset({"trace_type", "tracing_level"}),
)
NEMO = Dialect(
    "NeMo Agent Toolkit",
    frozenset({"nat", "aiq"}),
    {
        "kind": ("nat.span.kind", "aiq.span.kind"),
        "input": ("input.value",),
        "output": ("output.value",),
        "tool_name": ("nat.subspan.name", "aiq.subspan.name", "nat.function.name", "aiq.function.name"),
        "session": ("nat.conversation.id", "aiq.conversation.id"),
        "user": ("nat.user.id",),
    },
    {"function": Kind.CHAIN},
)
PIPECAT = Dialect(
    "Pipecat",
    frozenset({"turn", "conversation", "stream", "metrics", "voice_id", "vad_enabled", "modalities"}),
    {
        "kind": ("gen_ai.operation.name",),
        "input": ("input", "text", "function_calls.first_name"),
        "output": ("output", "transcript", "text_output"),
        "instructions": ("gen_ai.system_instructions",),
        "tools": ("tools", "tools.definitions"),
        "session": ("conversation.id",),
    },
    {
        **dict.fromkeys(("llm_request", "llm_response"), Kind.CHAT_MODEL),
        **dict.fromkeys(("llm_setup", "stt", "tts"), Kind.TASK),
    },
    find_kind=lambda span: Kind.CHAIN if span.attributes.keys() & {"turn.number", "conversation.type"} else None,
)
WEAVE = Dialect(
    "Weave",
    frozenset({"wandb", "weave"}),
    {"session": ("wandb.thread_id", "weave.thread_id"), "user": ("wandb.user_id",), "tags": ("weave.tags",)},
)
OPIK = Dialect(
    "Opik",
    frozenset({"opik"}),
    {"session": ("opik.thread_id", "thread_id"), "tags": ("opik.tags",), "metadata": ("opik.metadata",)},
)


def _complete_logfire(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    # The span's name is a template; the message is the template with its values.
    name = normalized.trace_name if "logfire.msg_template" in span.attributes else None
    tags = tuple(tag for tag in normalized.tags or () if tag != "LLM") or None  # the tag of all spans of models
    kind = normalized.kind if normalized.input_messages or normalized.output_messages else None
    return normalized._replace(kind=kind, trace_name=name, tags=tags, input=None, output=None)


# logfire's own attributes beside the GenAI ones; the request and response are those of versions before 5.
LOGFIRE = Dialect(
    "logfire",
    frozenset({"logfire", "request_data", "response_data"}),
    {
        "trace_name": ("logfire.msg",),
        "input": ("request_data",),
        "output": ("response_data",),
        "usage": ("gen_ai.usage.raw",),
        "tags": ("logfire.tags",),
    },
    find_kind=find_model_call("request_data"),
    complete=_complete_logfire,
)


def _complete_mcp(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan | None:
    """Of a tool call, the tool's name may be the end of the span's name only."""
    if normalized.kind is None:
        return None
    _, separator, name = span.name.rpartition("tools/call ")
    return normalized._replace(tool_name=name) if separator and not normalized.tool_name else normalized


# The Model Context Protocol's SDK, which creates spans of its own.
MCP = Dialect(
    "Model Context Protocol",
    frozenset({"mcp"}),
    {
        "kind": ("mcp.method.name",),
        "tool_name": ("gen_ai.tool.name", "mcp.tool.name"),
        "input": ("gen_ai.tool.call.arguments", "mcp.request.argument"),
        "output": ("gen_ai.tool.call.result",),
        "session": ("mcp.session.id",),
    },
    {"tools/call": Kind.TOOL},
    complete=_complete_mcp,
)

LITELLM = Dialect(
    "LiteLLM",
    frozenset({"litellm", "metadata", "hidden_params"}),
    {
        "usage": ("metadata.usage_object",),
        "user": ("llm.user", "metadata.user_api_key_end_user_id", "metadata.user_api_key_user_id"),
    },
)


def _find_livekit_kind(span: SpanView) -> Kind | None:
    """Only `llm_request` is the call of the model; spans above and below name the model, too."""
    keys = span.attributes.keys()
    return Kind.TASK if "gen_ai.request.model" in keys and "gen_ai.operation.name" not in keys else None


def _complete_livekit(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    has_failed = span.attributes.get("lk.function_tool.is_error") is True
    return normalized._replace(error_type="tool_error") if has_failed else normalized


LIVEKIT = Dialect(
    "LiveKit Agents",
    frozenset({"lk"}),
    {
        "tool_name": ("lk.function_tool.name",),
        "tool_call_id": ("lk.function_tool.id",),
        "input": (
            *("lk.pii.user_input", "lk.user_input", "lk.user_transcript"),
            *("lk.pii.function_tool.arguments", "lk.function_tool.arguments"),
            *("lk.pii.chat_ctx", "lk.chat_ctx"),
        ),
        "output": (
            *("lk.pii.response.text", "lk.response.text"),
            *("lk.pii.function_tool.output", "lk.function_tool.output"),
        ),
    },
    find_kind=_find_livekit_kind,
    complete=_complete_livekit,
)

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
        **dict.fromkeys(("util", "action", "prompt", "executable-prompt"), Kind.CHAIN),
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
    {"llm": Kind.CHAT_MODEL, "workflow-step": Kind.TASK, "middleware": Kind.CHAIN},
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
    {"chat_client": Kind.AGENT, "advisor": Kind.CHAIN, "tool_call": Kind.TOOL, "vector_store": Kind.RETRIEVER},
    complete=_complete_spring,
)


def _complete_claude_code(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan | None:
    """Contents begin with a line in brackets that says what they are."""
    if not span.name.startswith("claude_code."):
        return None
    if normalized.kind is Kind.TOOL:
        result = next((event.attributes for event in span.events if event.name == "tool.output"), {})
        arguments = {name: span.attributes[key] for key, name in _CLAUDE_ARGUMENTS.items() if key in span.attributes}
        normalized = normalized._replace(
            input=_strip_header(normalized.input) or arguments or None,
            output=_strip_header(normalized.output or result.get("output", result.get("content"))),
        )
    elif normalized.kind is Kind.CHAT_MODEL:
        text = _strip_header(span.attributes.get("new_context"))
        normalized = normalized._replace(input_messages=read_messages(text))
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

_VERCEL_CALLS = ("ai.generatetext", "ai.streamtext", "ai.generateobject", "ai.streamobject")
_VERCEL_EMBEDDINGS = ("ai.embed", "ai.embedmany", "ai.embed.doembed", "ai.embedmany.doembed")


def _complete_vercel(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan | None:
    attributes, kind = span.attributes, normalized.kind
    operation = str(attributes.get("ai.operationId"))
    if kind is Kind.EMBEDDING:
        tokens = parse_int(attributes.get("ai.usage.tokens")) if operation.endswith(".doEmbed") else None
        values = parse_structured(attributes.get("ai.values")) or [attributes.get("ai.value")]
        texts = tuple(text for value in values if isinstance(text := decode_json(value), str))
        usage = Usage(tokens, 0, tokens) if tokens is not None else None
        return normalized._replace(embedded_texts=texts or None, usage=usage)
    if kind is not Kind.CHAT_MODEL:
        return normalized if kind is not None else None
    text = select_text(*map(attributes.get, ("ai.response.text", "ai.response.object", "ai.result.text")))
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": text}] if text else None,
        "tool_calls": parse_structured(attributes.get("ai.response.toolCalls", attributes.get("ai.result.toolCalls"))),
        "reasoning": attributes.get("ai.response.reasoning"),
    }
    output_messages = read_messages([answer]) if any([*answer.values()][1:]) else None
    settings = collect_properties(attributes, ("ai.settings.",))
    settings.pop("maxRetries", None)
    is_outer = operation.count(".") == 1
    covered_keys = (*normalized.covered_keys, "ai.response.text", "ai.response.toolCalls")
    return normalized._replace(
        wraps_calls=is_outer or None,
        input=None,
        output_messages=output_messages,
        # The outer span has the usage of the last step only.
        usage=None if is_outer else read_usage(collect_properties(attributes, ("ai.usage.",))),
        invocation_parameters=settings or None,
        covered_keys=covered_keys if output_messages else normalized.covered_keys,
    )


# Versions 4 to 6, and the legacy exporter of 7.
VERCEL = Dialect(
    "Vercel AI SDK",
    frozenset({"ai"}),
    {
        "kind": ("ai.operationId",),
        "input": ("ai.toolCall.args", "ai.toolCall.input", "ai.prompt.messages", "ai.prompt"),
        "output": ("ai.toolCall.result", "ai.toolCall.output"),
        "tools": ("ai.prompt.tools",),
        "tool_name": ("ai.toolCall.name",),
        "tool_call_id": ("ai.toolCall.id",),
        "request_model": ("ai.model.id",),
        "response_model": ("ai.response.model",),
        "provider": ("ai.model.provider",),
        "finish_reason": ("ai.response.finishReason",),
        "response_id": ("ai.response.id",),
    },
    {
        "ai.toolcall": Kind.TOOL,
        **dict.fromkeys(_VERCEL_EMBEDDINGS, Kind.EMBEDDING),
        **dict.fromkeys(("ai.rerank", "ai.rerank.dorerank"), Kind.RERANKER),
        **{call + end: Kind.CHAT_MODEL for call in _VERCEL_CALLS for end in ("", ".dogenerate", ".dostream")},
    },
    ("ai.telemetry.metadata.",),
    complete=_complete_vercel,
)

_ADK_PREFIX = "gcp.vertex.agent."
_MERGED_TOOLS = "(merged tools)"
_ADK_REQUEST, _ADK_RESPONSE = _ADK_PREFIX + "llm_request", _ADK_PREFIX + "llm_response"
_ADK_PLACEHOLDERS = ("N/A", "<not serializable>", "{}")


def _complete_adk(_: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    if normalized.kind is not Kind.CHAT_MODEL:
        return normalized
    messages = {_ADK_REQUEST: normalized.input_messages, _ADK_RESPONSE: normalized.output_messages}
    reason = (normalized.finish_reason or "").lower() or None
    return normalized._replace(finish_reason=reason, covered_keys=tuple(key for key in messages if messages[key]))


_ADK = Dialect(
    "Google ADK",
    frozenset({"gcp"}),
    {
        "input": (_ADK_PREFIX + "tool_call_args", _ADK_REQUEST),
        "output": (_ADK_PREFIX + "tool_response", _ADK_RESPONSE),
        "session": (_ADK_PREFIX + "session_id",),
    },
    find_kind=find_model_call(_ADK_REQUEST),
    complete=_complete_adk,
)


def read_adk(span: SpanView) -> NormalizedSpan | None:
    """Read model and tool calls of version 1, which keeps requests and responses as JSON."""
    values = {key: value for key, value in span.attributes.items() if value not in _ADK_PLACEHOLDERS}
    return read_dialect(_ADK, span._replace(attributes=values))


def read_merged_tools(span: SpanView) -> NormalizedSpan | None:
    """Read the span after parallel tool calls: it is named like a tool, but MLflow's scorers must not count it."""
    if span.attributes.get("gen_ai.tool.name") == _MERGED_TOOLS:
        return NormalizedSpan(kind=Kind.CHAIN)
    return None


def read_mlflow(span: SpanView) -> NormalizedSpan | None:
    """Read `mlflow.*`, set by the application as text, or by MLflow's SDK in the same application as JSON."""
    attributes = span.attributes
    kind = parse_kind(decode_json(attributes.get("mlflow.spanType")), KIND_WORDS)
    inputs, outputs = attributes.get("mlflow.spanInputs"), attributes.get("mlflow.spanOutputs")
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(inputs, is_model=kind in MODEL_KINDS) if inputs is not None else None,
        output_messages=read_response(outputs, is_model=kind in MODEL_KINDS) if outputs is not None else None,
        input=decode_json(inputs),
        output=decode_json(outputs),
        tools=read_tools(attributes.get("mlflow.chat.tools")),
        usage=read_usage(attributes.get("mlflow.chat.tokenUsage")),
        response_model=parse_text(decode_json(attributes.get("mlflow.llm.model"))),
        provider=parse_text(decode_json(attributes.get("mlflow.llm.provider"))),
    )


# Before the conventions of OpenTelemetry: the source's own kind is more exact than `gen_ai.operation.name`.
DIALECTS = (
    *(LANGFUSE, LANGSMITH, HAYSTACK, LAMINAR, NEMO, PIPECAT, WEAVE, OPIK, LITELLM, LIVEKIT),
    *(GENKIT, VOLTAGENT, MASTRA, SPRING_AI, CLAUDE_CODE, CODEX),
)
