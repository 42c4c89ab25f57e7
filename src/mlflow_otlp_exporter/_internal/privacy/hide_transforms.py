"""Changes to requests and messages that hide a part of them: texts, images, tools, parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.enrichment.messages import normalize_role
from mlflow_otlp_exporter._internal.privacy.inline_data import kind_of_part, part_of_text
from mlflow_otlp_exporter._internal.privacy.json_walk import dump_json, parse_json, transform_json
from mlflow_otlp_exporter._internal.privacy.structural_keys import is_structural_inside

_IMAGE_URL = re.compile(r"data:image/[\w.+-]{1,100}[^\s\"'<>)\\]*")
# What a message holds besides texts: kept when only its texts are hidden.
_NO_TEXT = frozenset(
    [
        "tool_calls",
        "toolCalls",
        "tool_call",
        "toolUse",
        "toolUseId",
        "function_call",
        "functionCall",
        "tools",
        "functions",
        "function",
        "image_url",
        "input_audio",
        "inline_data",
        "inlineData",
        "file_data",
        "fileData",
        "name",
        "tool_name",
        "toolName",
        "tool_call_id",
        "toolCallId",
        "tool_choice",
        "response_format",
        "parameters",
        "input_schema",
        "json_schema",
        "generation_config",
        "url",
        "uri",
        "model",
        "model_name",
    ]
)
_CALLS = frozenset({"tool_call", "tool-call", "tool_use", "server_tool_use", "function_call"})
_TOOLS = frozenset(
    [
        "tools",
        "functions",
        "tool_choice",
        "toolChoice",
        "toolConfig",
        "tool_config",
        "function_declarations",
        "functionDeclarations",
        "function_tools",
        "output_tools",
        "builtin_tools",
        "native_tools",
        "available_tools",
    ]
)
_TOOLS_SAID = re.compile(rf"""["'](?:{"|".join(sorted(_TOOLS))})["']\s*:|\b(?:{"|".join(sorted(_TOOLS))})=""")
# What a request holds besides parameters.
_NO_PARAMETERS = frozenset(
    [
        "messages",
        "contents",
        "input",
        "inputs",
        "prompt",
        "prompts",
        "query",
        "model",
        "model_name",
        "modelId",
        "system",
        "instructions",
        "system_instruction",
        "systemInstruction",
        "tools",
        "functions",
        "toolConfig",
        "function_tools",
        "output_tools",
        "chat_history",
        "documents",
    ]
)
_SAID = frozenset(
    [
        "messages",
        "contents",
        "input",
        "inputs",
        "prompt",
        "prompts",
        "query",
        "system",
        "instructions",
        "system_instruction",
        "systemInstruction",
        "instruction_parts",
        "chat_history",
        "documents",
        "prefill",
    ]
)
_SPEAKERS = frozenset({"human", "ai", "HumanMessage", "AIMessage", "AIMessageChunk", "SystemMessage", "ToolMessage"})
# A message in the repr of an object, or in JSON that was cut off.
_MESSAGE = re.compile(r"""["']?_?role["']?\s*[=:]|Message(?:Chunk)?\(|["']parts["']\s*:|\bcontents?=""")


# What CrewAI repeats of a task in its result.
_OF_A_TASK = ("description", "expected_output", "name", "summary")


class HideTexts:
    """Hides texts of messages; roles, tool calls, images and settings stay."""

    def skips(self, text: str) -> bool:
        """Every text is looked at."""
        return not text

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """What has no text of a message in it stays."""
        kind = kind_of_part(value)
        if key in _NO_TEXT or kind in _CALLS:
            return value, False
        part = read_media(value, kind)
        return value, part is None or part.kind == "file"

    def text(self, value: str, key: str) -> str:
        """A text."""
        return value if key in _NO_TEXT or is_structural_inside(key, value) else REDACTED


class HideInputTexts:
    """Hides the texts of what was said to a model, in what came out: agents return their whole state."""

    def skips(self, text: str) -> bool:
        """Every text is looked at."""
        return not text

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """A message that no model has written, or CrewAI's record of a task."""
        if _is_asked(value):
            return {name: transform_json(item, HideTexts(), str(name)) for name, item in value.items()}, False
        if "raw" in value and "description" in value:
            return {**value, **{name: REDACTED for name in _OF_A_TASK if name in value}}, True
        return value, True

    def text(self, value: str, key: str) -> str:
        """Messages in an object's repr, or in JSON that was cut off."""
        return REDACTED if _MESSAGE.search(value) else value


def _is_asked(value: Mapping[str, Any]) -> bool:
    """Whether an object is a message of anybody but a model."""
    said = value.get("role") or value.get("_role") or value.get("type")
    if said == "constructor" and isinstance(path := value.get("id"), (list, tuple)) and path:
        said = path[-1]
    holds = any(name in value for name in ("content", "parts", "data", "kwargs", "_content", "blocks"))
    return holds and isinstance(said, str) and normalize_role(said, "assistant") != "assistant"


class HideImages:
    """Hides images; a text part takes the place of each."""

    def skips(self, text: str) -> bool:
        """A short text is no image."""
        return len(text) < 8  # the shortest is longer

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """An image part, wherever it is."""
        part = read_media(value, kind_of_part(value))
        if part is not None and part.kind == "image":
            return part_of_text(value, REDACTED), False
        return value, True

    def text(self, value: str, key: str) -> str:
        """Data URLs of images."""
        return _IMAGE_URL.sub(REDACTED, value)


class HideTools:
    """Takes definitions of tools out of requests."""

    def skips(self, text: str) -> bool:
        """A text that cannot have an object in it."""
        return "{" not in text

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """An object without its tools."""
        kept = {name: item for name, item in value.items() if name not in _TOOLS}
        return (value if len(kept) == len(value) else kept), True

    def text(self, value: str, key: str) -> str:
        """A request that was cut off, or is an object's repr."""
        return REDACTED if _TOOLS_SAID.search(value) else value


class HideMessages:
    """Takes messages and instructions out of what is said about a request."""

    def skips(self, text: str) -> bool:
        """A text that cannot have an object in it."""
        return "{" not in text

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """An object without what was said to the model."""
        kept = {name: item for name, item in value.items() if name not in _SAID}
        return (value if len(kept) == len(value) else kept), True

    def text(self, value: str, key: str) -> str:
        """A request that was cut off, or is an object's repr."""
        return REDACTED


def without_parameters(value: Any) -> Any:
    """A request without temperature and the like; the very same object if it has none."""
    found = parse_json(value) if isinstance(value, str) else value
    if isinstance(value, str) and found is None and value.lstrip()[:1] == "{":
        return REDACTED  # cut off
    if not isinstance(found, Mapping):
        return value
    kept = {key: item for key, item in found.items() if key in _NO_PARAMETERS}
    if isinstance(config := found.get("config"), Mapping):
        kept["config"] = {key: item for key, item in config.items() if key in _NO_PARAMETERS}
    if kept == found:
        return value
    return dump_json(kept) if isinstance(value, str) else kept


def holds_messages(value: Any, depth: int = 0) -> bool:
    """Whether there are messages in a value, in whatever shape; in doubt there are."""
    if isinstance(value, str):
        found = parse_json(value)
        if found is None or isinstance(found, str):
            return _MESSAGE.search(value) is not None
        return holds_messages(found, depth + 1)
    if depth > 30:  # nothing but messages is nested so
        return True
    if isinstance(value, Mapping):
        if isinstance(value.get("role") or value.get("_role"), str) or value.get("type") in _SPEAKERS:
            return True
        return any(
            holds_messages(item, depth + 1) for item in value.values() if isinstance(item, (Mapping, list, tuple, str))
        )
    if isinstance(value, (list, tuple)):
        return any(holds_messages(item, depth + 1) for item in value)
    return False
