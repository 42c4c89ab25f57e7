"""Whether a value holds messages, images, tools or parameters: in JSON, JSON inside of JSON, reprs, truncated JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.enrichment.messages import normalize_role
from mlflow_otlp_exporter._internal.privacy.inline_data import read_part_type
from mlflow_otlp_exporter._internal.privacy.json_walk import DuplicateKeysDict, parse_json

_TOOL_FIELDS = frozenset(
    {"tools", "functions", "tool_choice", "toolChoice", "toolConfig", "tool_config", "function_declarations"}
    | {"functionDeclarations", "function_tools", "output_tools", "builtin_tools", "native_tools", "available_tools"}
)
_TOOL_NAMES = "|".join(sorted(_TOOL_FIELDS))
_TOOL_FIELD_IN_TEXT = re.compile(rf"""["'](?:{_TOOL_NAMES})["']\s*:|\b(?:{_TOOL_NAMES})=""")
_REQUEST_FIELDS = frozenset(
    {"messages", "contents", "input", "inputs", "prompt", "prompts", "query", "system", "instructions"}
    | {"system_instruction", "systemInstruction", "instruction_parts", "chat_history", "documents", "prefill"}
)
_NON_PARAMETER_FIELDS = (
    (_REQUEST_FIELDS - {"instruction_parts", "prefill"})
    | {"model", "model_name", "modelId", "tools", "functions", "toolConfig", "function_tools", "output_tools"}
)  # fmt: skip
_MESSAGE_TYPES = ("human", "ai", "HumanMessage", "AIMessage", "AIMessageChunk", "SystemMessage", "ToolMessage")
# A message in the repr of an object, or in truncated JSON.
_MESSAGE = re.compile(r"""["']?_?role["']?\s*[=:]|Message(?:Chunk)?\(|["']parts["']\s*:|\bcontents?=""")
_IMAGE_URL, _BRACE = re.compile("data:image/"), re.compile("{")
# Deeper values hold messages, and are hidden without a look.
_MAX_DEPTH = 30


def _holds(value: Any, is_match: Callable[[Mapping[str, Any]], bool], pattern: re.Pattern[str], depth: int = 0) -> bool:
    """Whether an object in a value, or a text that is not JSON, matches; true in case of doubt."""
    if isinstance(value, str):
        parsed = parse_json(value)
        return pattern.search(value) is not None if parsed is None else _holds(parsed, is_match, pattern, depth + 1)
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    if depth > _MAX_DEPTH or isinstance(value, DuplicateKeysDict) or (isinstance(value, Mapping) and is_match(value)):
        return True
    items = value.values() if isinstance(value, Mapping) else value
    return any(_holds(item, is_match, pattern, depth + 1) for item in items)


def has_messages(value: Any) -> bool:
    return _holds(value, _is_message, _MESSAGE)


def _is_message(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("role") or value.get("_role"), str) or value.get("type") in _MESSAGE_TYPES


def has_input_messages(value: Any) -> bool:
    """Whether an output holds messages that no model wrote: agents return their whole state."""
    return _holds(value, _is_input_message, _MESSAGE)


def _is_input_message(value: Mapping[str, Any]) -> bool:
    if "raw" in value and "description" in value:  # CrewAI's result of a task repeats the task
        return True
    role = value.get("role") or value.get("_role") or value.get("type")
    if role == "constructor" and isinstance(path := value.get("id"), (list, tuple)) and path:
        role = path[-1]
    has_content = any(name in value for name in ("content", "parts", "data", "kwargs", "_content", "blocks"))
    return has_content and isinstance(role, str) and normalize_role(role, "assistant") != "assistant"


def has_images(value: Any) -> bool:
    return _holds(value, _is_image, _IMAGE_URL)


def _is_image(value: Mapping[str, Any]) -> bool:
    part = read_media(value, read_part_type(value))
    return part is not None and part.kind == "image"


def has_tools(value: Any) -> bool:
    return _holds(value, lambda fields: not _TOOL_FIELDS.isdisjoint(fields), _TOOL_FIELD_IN_TEXT)


def has_request_fields(value: Any) -> bool:
    """Whether the parameters of a call hold its messages."""
    return _holds(value, lambda fields: not _REQUEST_FIELDS.isdisjoint(fields), _BRACE)


def has_parameters(value: Any) -> bool:
    """Whether a request holds parameters such as temperature."""
    request = parse_json(value) if isinstance(value, str) else value
    if request is None:
        return isinstance(value, str) and value.lstrip()[:1] == "{"  # truncated
    return isinstance(request, Mapping) and not _NON_PARAMETER_FIELDS.issuperset(request)
