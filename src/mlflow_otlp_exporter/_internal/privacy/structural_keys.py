"""Which values say what a thing is rather than what was said: without them no view could be made of a span.

Both the key and the value have to look the part, so that a secret under such a key is no exception.
"""

from __future__ import annotations

import re
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.media import MEDIA_TYPES

# Attributes that say what a span is, who served it, and where it goes.
_ATTRIBUTES = frozenset(
    {
        "ai.model.id",
        "ai.model.provider",
        "ai.operationId",
        "ai.response.finishReason",
        "ai.response.id",
        "ai.response.model",
        "ai.toolCall.id",
        "embedding.model_name",
        "error.type",
        "exception.type",
        "finish_reason",
        "gen_ai.operation.name",
        "gen_ai.output.type",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.finish_reason",
        "gen_ai.response.finish_reasons",
        "gen_ai.response.id",
        "gen_ai.response.model",
        "gen_ai.system",
        "gen_ai.tool.call.id",
        "gen_ai.tool.type",
        "gen_ai.token.type",
        "id",
        "input.mime_type",
        "llm.finish_reason",
        "llm.model_name",
        "llm.provider",
        "llm.request.model_name",
        "llm.request.type",
        "llm.response.model_name",
        "llm.system",
        "mcp.method.name",
        "mlflow.llm.model",
        "mlflow.llm.provider",
        "mlflow.spanType",
        "openinference.span.kind",
        "output.mime_type",
        "reranker.model_name",
        "role",
        "service.namespace",
        "service.version",
        "telemetry.sdk.language",
        "telemetry.sdk.name",
        "telemetry.sdk.version",
        "tool.id",
        "traceloop.span.kind",
    }
)
# Where a trace goes; the app has named it for this library, or for all that see its spans.
_ROUTES = frozenset({"service.name", "mlflow.workspace", "mlflow.experiment", "mlflow.experiment_id", "mlflow.run_id"})
# Ends of flattened keys.
_ENDINGS = (
    ".message.role",
    ".message.tool_call_id",
    ".message_content.type",
    ".tool_call.id",
    ".mime_type",
    ".role",
    ".finish_reason",
    ".tool_call_id",
)
_FLATTENED = ("llm.", "gen_ai.prompt.", "gen_ai.completion.")
# Names, as of models, providers, kinds and media types; no addresses of people, no sentences.
_WORD = re.compile(r"\"?[A-Za-z0-9][\w.:/+-]{0,99}(?:@\d{4,8})?\"?")
_SECRET = re.compile(r"(?i)(?:sk|pk|rk|gh[a-z]|xox[a-z]|akia|asia|aiza|eyj|hf|gsk|glpat|dapi|bearer)[\w-]{12,}")
_NUMBERS = re.compile(r"[\d:/.+-]*\d[\d:/.+-]*")

# Keys inside of values. What stands there is in the open only if it is one of the words that conventions have for it.
_VOCABULARY = frozenset(
    [
        "system",
        "developer",
        "user",
        "human",
        "assistant",
        "ai",
        "model",
        "tool",
        "function",
        "bot",
        "chatbot",
        "ipython",
        "tool-call",
        "tool-response",
        "HumanMessage",
        "AIMessage",
        "AIMessageChunk",
        "SystemMessage",
        "ToolMessage",
        "FunctionMessage",
        "ChatMessage",
        "HumanMessageChunk",
        "MessageRole.SYSTEM",
        "MessageRole.USER",
        "MessageRole.ASSISTANT",
        "MessageRole.TOOL",
        "text",
        "input_text",
        "output_text",
        "text-delta",
        "refusal",
        "tool_call",
        "tool_use",
        "server_tool_use",
        "tool_call_response",
        "tool_result",
        "tool-result",
        "tool-return",
        "function_call",
        "function_call_output",
        "user-prompt",
        "system-prompt",
        "retry-prompt",
        "reasoning",
        "thinking",
        "redacted_thinking",
        "reasoning_content",
        *MEDIA_TYPES,
        "constructor",
        "not_implemented",
        "message",
        "json",
        "json_object",
        "json_schema",
        "object",
        "string",
        "number",
        "integer",
        "boolean",
        "array",
        "null",
        "request",
        "response",
        "custom",
        "chat.completion",
        "chat.completion.chunk",
        "text_completion",
        "list",
        "embedding",
        "ephemeral",
        "content",
        "error-text",
        "error-json",
        "stop",
        "length",
        "tool_calls",
        "content_filter",
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "tool_calls",
        "tool-calls",
        "STOP",
        "MAX_TOKENS",
        "completed",
        "incomplete",
        "failed",
        "in_progress",
        "auto",
        "none",
        "required",
        "any",
        "generation",
        "ChatGeneration",
        "part",
        "message_delta",
        "gen_ai.choice",
        "gen_ai.user.message",
        "gen_ai.system.message",
        "gen_ai.assistant.message",
        "gen_ai.tool.message",
    ]
)
_SPOKEN_FOR = frozenset(
    [
        "role",
        "_role",
        "type",
        "kind",
        "part_kind",
        "block_type",
        "message_kind",
        "finish_reason",
        "finishReason",
        "stop_reason",
        "stopReason",
        "object",
        "status",
        "modality",
        "event.name",
        "__type",
        "_type",
    ]
)
_MEDIA_KEYS = frozenset({"mime_type", "mimeType", "media_type", "mediaType", "content_type"})
_MEDIA_TYPE = re.compile(r"(?:application|audio|image|text|video)/[\w.+-]{1,40}")
_MODEL_KEYS = frozenset({"model", "model_name", "modelId", "model_id", "provider", "provider_name"})
_ID_KEYS = frozenset(
    [
        "id",
        "tool_call_id",
        "toolCallId",
        "tool_use_id",
        "toolUseId",
        "call_id",
        "response_id",
        "responseId",
        "run_id",
        "message_id",
        "previous_response_id",
    ]
)
# Ids as providers and frameworks make them.
_ID = re.compile(
    r"(?:call|toolu|tooluse|tool|fc|ctc|msg|run|lc_run|rs|resp|chatcmpl|chatcmpl-tool|pyd_ai|adk|gen|aitxt|aiobj|srvtoolu)"
    r"-{0,2}[_-][A-Za-z0-9_-]{1,80}|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{32}"
)
# Names of fields, as opposed to content that has become one.
_IDENTIFIER = re.compile(r"[A-Za-z_$@][\w.$/-]{0,127}")


def is_structural(key: str, value: str) -> bool:
    """Whether an attribute's value is one that masks leave alone.

    Args:
        key: The attribute's key.
        value: Its text.
    """
    if key in _ROUTES:
        return True
    if key in _ATTRIBUTES or (key.endswith(_ENDINGS) and key.startswith(_FLATTENED)):
        return _is_word(value)
    return key.endswith("_id") and key.startswith("gen_ai.prompt.") and _ID.fullmatch(value) is not None


def is_structural_inside(key: str, value: str) -> bool:
    """The same for a field inside of a value, where names mean less: there the value must be a known one."""
    if key in _SPOKEN_FOR:
        return value in _VOCABULARY
    if key in _ID_KEYS:
        return _ID.fullmatch(value) is not None
    if key in _MEDIA_KEYS:
        return _MEDIA_TYPE.fullmatch(value) is not None
    return key in _MODEL_KEYS and _is_word(value)


def is_class_path(key: str, value: Any) -> bool:
    """Whether a list says of which class a dumped object is, as LangChain's `["langchain", "schema", ...]` does."""
    return (
        key == "id"
        and bool(value)
        and isinstance(value[0], str)
        and value[0].startswith("langchain")
        and all(isinstance(each, str) and each.isidentifier() for each in value)
    )


def is_field_name(key: str) -> bool:
    """Whether a key is the name of a field rather than content."""
    return _IDENTIFIER.fullmatch(key) is not None


def _is_word(value: str) -> bool:
    return (
        bool(_WORD.fullmatch(value))
        and not _SECRET.match(value)
        and not (
            len(value) > 6 and _NUMBERS.fullmatch(value)  # a phone's or a card's number, not a version
        )
    )
