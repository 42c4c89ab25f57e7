"""Conventions that are tables: how SDKs and frameworks with attributes of their own name what a span holds."""

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, find_model_call

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
    "haystack.pipeline.run": Kind.CHAIN,
    "haystack.async_pipeline.run": Kind.CHAIN,
    "haystack.agent.run": Kind.AGENT,
    "haystack.agent.step": Kind.CHAIN,
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
    {
        "executor": Kind.CHAIN,
        "evaluation": Kind.CHAIN,
        "human_evaluator": Kind.EVALUATOR,
    },
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
    {
        "function": Kind.CHAIN,
    },
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
        "llm_request": Kind.CHAT_MODEL,
        "llm_response": Kind.CHAT_MODEL,
        "llm_setup": Kind.TASK,
        "stt": Kind.TASK,
        "tts": Kind.TASK,
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

# Before the conventions of OpenTelemetry: the source's own kind is more exact than `gen_ai.operation.name`.
DIALECTS = (LANGFUSE, LANGSMITH, HAYSTACK, LAMINAR, NEMO, PIPECAT, WEAVE, OPIK, LITELLM, LIVEKIT)
