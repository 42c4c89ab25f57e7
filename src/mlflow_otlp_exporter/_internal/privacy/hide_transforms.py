"""Transforms that hide a part of a request or message: texts, images, tools, messages, parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.enrichment.messages import normalize_role
from mlflow_otlp_exporter._internal.privacy.inline_data import make_text_part, read_part_type
from mlflow_otlp_exporter._internal.privacy.json_walk import dump_json, parse_json, transform_json
from mlflow_otlp_exporter._internal.privacy.structural_keys import is_structural_field

_IMAGE_URL = re.compile(r"data:image/[\w.+-]{1,100}[^\s\"'<>)\\]*")
_MIN_IMAGE_LENGTH = 8
# Fields of a message that hold no text.
_NON_TEXT_FIELDS = frozenset(
    {"tool_calls", "toolCalls", "tool_call", "toolUse", "toolUseId", "function_call", "functionCall", "tools"}
    | {"functions", "function", "image_url", "input_audio", "inline_data", "inlineData", "file_data", "fileData"}
    | {"name", "tool_name", "toolName", "tool_call_id", "toolCallId", "tool_choice", "response_format"}
    | {"parameters", "input_schema", "json_schema", "generation_config", "url", "uri", "model", "model_name"}
)
_TOOL_CALL_TYPES = frozenset({"tool_call", "tool-call", "tool_use", "server_tool_use", "function_call"})
_TOOL_FIELDS = frozenset(
    {"tools", "functions", "tool_choice", "toolChoice", "toolConfig", "tool_config", "function_declarations"}
    | {"functionDeclarations", "function_tools", "output_tools", "builtin_tools", "native_tools", "available_tools"}
)
_TOOL_FIELD_IN_TEXT = re.compile(
    rf"""["'](?:{"|".join(sorted(_TOOL_FIELDS))})["']\s*:|\b(?:{"|".join(sorted(_TOOL_FIELDS))})="""
)
# Fields of a request that are not parameters.
_NON_PARAMETER_FIELDS = frozenset(
    {"messages", "contents", "input", "inputs", "prompt", "prompts", "query", "model", "model_name", "modelId"}
    | {"system", "instructions", "system_instruction", "systemInstruction", "tools", "functions", "toolConfig"}
    | {"function_tools", "output_tools", "chat_history", "documents"}
)
_MESSAGE_FIELDS = frozenset(
    {"messages", "contents", "input", "inputs", "prompt", "prompts", "query", "system", "instructions"}
    | {"system_instruction", "systemInstruction", "instruction_parts", "chat_history", "documents", "prefill"}
)
_MESSAGE_TYPES = frozenset(
    {"human", "ai", "HumanMessage", "AIMessage", "AIMessageChunk", "SystemMessage", "ToolMessage"}
)
# A message in the repr of an object, or in truncated JSON.
_MESSAGE = re.compile(r"""["']?_?role["']?\s*[=:]|Message(?:Chunk)?\(|["']parts["']\s*:|\bcontents?=""")
# Fields of a task that CrewAI repeats in the task's result.
_CREWAI_TASK_FIELDS = ("description", "expected_output", "name", "summary")
# Only messages are nested more deeply.
_MAX_DEPTH_WITHOUT_MESSAGES = 30


class HideTexts:
    """Hides texts of messages; roles, tool calls, images and settings stay."""

    def can_skip(self, text: str) -> bool:
        return not text

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        part_type = read_part_type(value)
        if key in _NON_TEXT_FIELDS or part_type in _TOOL_CALL_TYPES:
            return value, False
        part = read_media(value, part_type)
        return value, part is None or part.kind == "file"

    def visit_text(self, value: str, key: str) -> str:
        return value if key in _NON_TEXT_FIELDS or is_structural_field(key, value) else REDACTED


class HideInputTexts:
    """Hides the texts of input messages in an output: agents return their whole state."""

    def can_skip(self, text: str) -> bool:
        return not text

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """Hide the texts of a message from any sender but a model, and the fields of CrewAI's tasks."""
        if _is_input_message(value):
            return {name: transform_json(item, HIDE_TEXTS, str(name)) for name, item in value.items()}, False
        if "raw" in value and "description" in value:
            return {**value, **{name: REDACTED for name in _CREWAI_TASK_FIELDS if name in value}}, True
        return value, True

    def visit_text(self, value: str, key: str) -> str:
        return REDACTED if _MESSAGE.search(value) else value


def _is_input_message(value: Mapping[str, Any]) -> bool:
    role = value.get("role") or value.get("_role") or value.get("type")
    if role == "constructor" and isinstance(path := value.get("id"), (list, tuple)) and path:
        role = path[-1]
    has_content = any(name in value for name in ("content", "parts", "data", "kwargs", "_content", "blocks"))
    return has_content and isinstance(role, str) and normalize_role(role, "assistant") != "assistant"


class HideImages:
    """Replaces each image by a text part."""

    def can_skip(self, text: str) -> bool:
        return len(text) < _MIN_IMAGE_LENGTH

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        part = read_media(value, read_part_type(value))
        if part is not None and part.kind == "image":
            return make_text_part(value, REDACTED), False
        return value, True

    def visit_text(self, value: str, key: str) -> str:
        return _IMAGE_URL.sub(REDACTED, value)


class HideFields:
    """Removes fields from every object; hides text that matches a pattern (truncated JSON, the repr of an object)."""

    def __init__(self, fields: frozenset[str], text_pattern: re.Pattern[str]) -> None:
        self._fields, self._text_pattern = fields, text_pattern

    def can_skip(self, text: str) -> bool:
        return "{" not in text

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        fields = {name: item for name, item in value.items() if name not in self._fields}
        return (value if len(fields) == len(value) else fields), True

    def visit_text(self, value: str, key: str) -> str:
        return REDACTED if self._text_pattern.search(value) else value


HIDE_TEXTS, HIDE_INPUT_TEXTS, HIDE_IMAGES = HideTexts(), HideInputTexts(), HideImages()
HIDE_TOOLS = HideFields(_TOOL_FIELDS, _TOOL_FIELD_IN_TEXT)
HIDE_MESSAGES = HideFields(_MESSAGE_FIELDS, re.compile(""))  # any text


def remove_parameters(value: Any) -> Any:
    """Remove parameters such as temperature from a request; return the same object if it has none."""
    request = parse_json(value) if isinstance(value, str) else value
    if isinstance(value, str) and request is None and value.lstrip()[:1] == "{":
        return REDACTED  # truncated
    if not isinstance(request, Mapping):
        return value
    fields = {key: item for key, item in request.items() if key in _NON_PARAMETER_FIELDS}
    if isinstance(config := request.get("config"), Mapping):
        fields["config"] = {key: item for key, item in config.items() if key in _NON_PARAMETER_FIELDS}
    if fields == request:
        return value
    return dump_json(fields) if isinstance(value, str) else fields


def has_messages(value: Any, depth: int = 0) -> bool:
    """Whether a value holds messages in any format; true in case of doubt."""
    if isinstance(value, str):
        parsed = parse_json(value)
        if parsed is None or isinstance(parsed, str):
            return _MESSAGE.search(value) is not None
        return has_messages(parsed, depth + 1)
    if depth > _MAX_DEPTH_WITHOUT_MESSAGES:
        return True
    if isinstance(value, Mapping):
        if isinstance(value.get("role") or value.get("_role"), str) or value.get("type") in _MESSAGE_TYPES:
            return True
        return any(
            has_messages(item, depth + 1) for item in value.values() if isinstance(item, (Mapping, list, tuple, str))
        )
    if isinstance(value, (list, tuple)):
        return any(has_messages(item, depth + 1) for item in value)
    return False
