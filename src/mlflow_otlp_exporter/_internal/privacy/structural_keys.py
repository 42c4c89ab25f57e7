"""Names that masks leave unchanged: without roles, types, models and ids, no view of a span could be built.

Both the key and the value must match, so that a secret under such a key is masked.
"""

import re
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import MEDIA_TYPES

# Attributes that state the kind of a span, its model, provider and destination.
_ATTRIBUTES = frozenset(
    {"ai.model.id", "ai.model.provider", "ai.operationId", "ai.response.finishReason", "ai.response.id"}
    | {"ai.response.model", "ai.toolCall.id", "embedding.model_name", "error.type", "exception.type"}
    | {"finish_reason", "gen_ai.operation.name", "gen_ai.output.type", "gen_ai.provider.name"}
    | {"gen_ai.request.model", "gen_ai.response.finish_reason", "gen_ai.response.finish_reasons"}
    | {"gen_ai.response.id", "gen_ai.response.model", "gen_ai.system", "gen_ai.tool.call.id", "gen_ai.tool.type"}
    | {"gen_ai.token.type", "id", "input.mime_type", "llm.finish_reason", "llm.model_name", "llm.provider"}
    | {"llm.request.model_name", "llm.request.type", "llm.response.model_name", "llm.system", "mcp.method.name"}
    | {"mlflow.llm.model", "mlflow.llm.provider", "mlflow.spanType", "openinference.span.kind", "output.mime_type"}
    | {"reranker.model_name", "role", "service.namespace", "service.version", "telemetry.sdk.language"}
    | {"telemetry.sdk.name", "telemetry.sdk.version", "tool.id", "traceloop.span.kind"}
)
# The destination of a trace. The application chose these names for this library, or for every reader of its spans.
_DESTINATION_ATTRIBUTES = frozenset(
    {"service.name", "mlflow.workspace", "mlflow.experiment", "mlflow.experiment_id", "mlflow.run_id"}
)
# Flattened keys.
_SUFFIXES = (
    *(".message.role", ".message.tool_call_id", ".message_content.type", ".tool_call.id"),
    *(".mime_type", ".role", ".finish_reason", ".tool_call_id"),
)
_PREFIXES = ("llm.", "gen_ai.prompt.", "gen_ai.completion.")
# Names of models, providers, kinds and media types; no e-mail addresses, no sentences.
_WORD = r"\"?[A-Za-z0-9][\w.:/+-]{0,99}(?:@\d{4,8})?\"?"
_KEY_LIKE = r"(?i)(?:sk|pk|rk|gh[a-z]|xox[a-z]|akia|asia|aiza|eyj|hf|gsk|glpat|dapi|bearer)[\w-]{12,}"
_NUMBERS = r"[\d:/.+-]*\d[\d:/.+-]*"

# Fields inside of values, and the values that conventions define for these fields; others are masked.
_VOCABULARY_FIELDS = frozenset(
    {"role", "_role", "type", "kind", "part_kind", "block_type", "message_kind", "finish_reason", "finishReason"}
    | {"stop_reason", "stopReason", "object", "status", "modality", "event.name", "__type", "_type"}
)
_ROLES = frozenset(
    {"system", "developer", "user", "human", "assistant", "ai", "model", "tool", "function", "bot", "chatbot"}
    | {"ipython", "tool-call", "tool-response", "HumanMessage", "AIMessage", "AIMessageChunk", "SystemMessage"}
    | {"ToolMessage", "FunctionMessage", "ChatMessage", "HumanMessageChunk", "MessageRole.SYSTEM"}
    | {"MessageRole.USER", "MessageRole.ASSISTANT", "MessageRole.TOOL"}
)
_PART_TYPES = frozenset(
    {"text", "input_text", "output_text", "text-delta", "refusal", "tool_call", "tool_use", "server_tool_use"}
    | {"tool_call_response", "tool_result", "tool-result", "tool-return", "function_call", "function_call_output"}
    | {"user-prompt", "system-prompt", "retry-prompt", "reasoning", "thinking", "redacted_thinking"}
    | {"reasoning_content"}
)
_OBJECT_TYPES = frozenset(
    {"constructor", "not_implemented", "message", "json", "json_object", "json_schema", "object", "string"}
    | {"number", "integer", "boolean", "array", "null", "request", "response", "custom", "chat.completion"}
    | {"chat.completion.chunk", "text_completion", "list", "embedding", "ephemeral", "content", "error-text"}
    | {"error-json"}
)
_STATES_AND_EVENTS = frozenset(
    {"stop", "length", "tool_calls", "content_filter", "end_turn", "max_tokens", "stop_sequence", "tool-calls"}
    | {"STOP", "MAX_TOKENS", "completed", "incomplete", "failed", "in_progress", "auto", "none", "required", "any"}
    | {"generation", "ChatGeneration", "part", "message_delta", "gen_ai.choice", "gen_ai.user.message"}
    | {"gen_ai.system.message", "gen_ai.assistant.message", "gen_ai.tool.message"}
)
_VOCABULARY = _ROLES | _PART_TYPES | MEDIA_TYPES | _OBJECT_TYPES | _STATES_AND_EVENTS
_MEDIA_FIELDS = frozenset({"mime_type", "mimeType", "media_type", "mediaType", "content_type"})
_MEDIA_TYPE = r"(?:application|audio|image|text|video)/[\w.+-]{1,40}"
_MODEL_FIELDS = frozenset({"model", "model_name", "modelId", "model_id", "provider", "provider_name"})
_ID_FIELDS = frozenset(
    {"id", "tool_call_id", "toolCallId", "tool_use_id", "toolUseId", "call_id", "response_id", "responseId"}
    | {"run_id", "message_id", "previous_response_id"}
)
# Formats of the ids of providers and frameworks.
_ID = (
    r"(?:call|toolu|tooluse|tool|fc|ctc|msg|run|lc_run|rs|resp|chatcmpl|chatcmpl-tool|pyd_ai|adk|gen|aitxt|aiobj|srvtoolu)"
    r"-{0,2}[_-][A-Za-z0-9_-]{1,80}|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16}|[0-9a-f]{32}"
)
# Names of fields; other keys may be content.
_IDENTIFIER = r"[A-Za-z_$@][\w.$/-]{0,127}"


def is_structural(key: str, value: str) -> bool:
    """Whether masks leave the value of an attribute unchanged."""
    if key in _DESTINATION_ATTRIBUTES:
        return True
    if key in _ATTRIBUTES or (key.endswith(_SUFFIXES) and key.startswith(_PREFIXES)):
        return _is_word(value)
    return key.endswith("_id") and key.startswith("gen_ai.prompt.") and _is_id(value)


def is_structural_field(key: str, value: str) -> bool:
    """Whether masks leave a field inside of a value unchanged: names say less there, so the value must be in a list."""
    if key in _VOCABULARY_FIELDS:
        return value in _VOCABULARY
    if key in _ID_FIELDS:
        return _is_id(value)
    if key in _MEDIA_FIELDS:
        return re.fullmatch(_MEDIA_TYPE, value) is not None
    return key in _MODEL_FIELDS and _is_word(value)


def is_class_path(key: str, value: Any) -> bool:
    """Whether a list is the class of a serialized object, such as LangChain's `["langchain", "schema", ...]`."""
    return (
        key == "id"
        and bool(value)
        and isinstance(value[0], str)
        and value[0].startswith("langchain")
        and all(isinstance(name, str) and name.isidentifier() for name in value)
    )


def is_field_name(key: str) -> bool:
    return re.fullmatch(_IDENTIFIER, key) is not None


def _is_id(value: str) -> bool:
    return re.fullmatch(_ID, value) is not None and not value.isdigit()  # a card number has 16 digits, too


def _is_word(value: str) -> bool:
    return (
        bool(re.fullmatch(_WORD, value))
        and not re.match(_KEY_LIKE, value)
        and not (
            len(value) > 6 and re.fullmatch(_NUMBERS, value)  # a phone or card number, not a version
        )
    )
