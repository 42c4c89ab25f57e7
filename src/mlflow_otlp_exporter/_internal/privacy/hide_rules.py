"""`OPENINFERENCE_HIDE_*`: what each variable hides, in every convention.

A value that holds hidden content is hidden as a whole; only flattened messages are hidden attribute by attribute.
Stricter than OpenInference in one point: hidden messages are hidden in `input.value` and `output.value` as well.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.sdk.trace import Event

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.kinds import MODEL_KINDS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import normalize_role, read_media
from mlflow_otlp_exporter._internal.model.spans import replace_event
from mlflow_otlp_exporter._internal.privacy.content_kinds import (
    Content,
    classify_attribute,
    classify_event,
    classify_event_attribute,
)
from mlflow_otlp_exporter._internal.privacy.inline_data import read_part_type
from mlflow_otlp_exporter._internal.privacy.json_walk import DuplicateKeysDict, parse_json
from mlflow_otlp_exporter._internal.privacy.structural_keys import is_structural_field

_INPUT = {Content.INPUT, Content.INPUT_MESSAGES, Content.INPUT_IMAGES, Content.EMBEDDED_TEXT}
_OUTPUT_MESSAGES = {Content.OUTPUT_MESSAGES, Content.TOOL_CALLS, Content.TRANSCRIPT}
_OUTPUT_VALUES = (Content.OUTPUT, Content.OUTPUT_MESSAGES)
_DOCUMENTS = {Content.DOCUMENTS, Content.OTHER_DOCUMENTS}
_OUTPUT = {Content.OUTPUT, Content.OUTPUT_MESSAGES, Content.OUTPUT_IMAGES, *_DOCUMENTS}
# What each variable hides without a look at the value.
_HIDDEN_CONTENT = {
    "inputs": {*_INPUT, Content.TRANSCRIPT, Content.TEMPLATE, Content.TOOLS},
    "outputs": {*_OUTPUT, *_OUTPUT_MESSAGES, Content.VECTOR},
    "input_messages": {Content.INPUT_MESSAGES, Content.TRANSCRIPT},
    "output_messages": _OUTPUT_MESSAGES,
    "input_text": {Content.TRANSCRIPT},
    "output_text": {Content.TRANSCRIPT},
    "input_images": {Content.INPUT_IMAGES},
    "prompts": {Content.TEMPLATE},
    "retrieval_documents": {Content.DOCUMENTS},
    "llm_invocation_parameters": {Content.PARAMETERS},
    "llm_tools": {Content.TOOLS},
    "embeddings_text": {Content.EMBEDDED_TEXT},
    "embeddings_vectors": {Content.VECTOR},
}
_SYNONYMS = {"llm_prompts": "prompts", "embedding_vectors": "embeddings_vectors"}
# The variables that hide the texts of messages, and the messages in a value of any kind.
_TEXTS = {Content.INPUT_MESSAGES: "input_text", Content.OUTPUT_MESSAGES: "output_text"}
_MESSAGES = {Content.INPUT: ("input_messages", "input_text"), Content.OUTPUT: ("output_messages", "output_text")}
# What a variable hides as a whole on spans of a kind.
_SIDES_OF_KIND: dict[Kind | None, dict[str, str]] = {
    Kind.EMBEDDING: {"embeddings_text": "inputs", "embeddings_vectors": "outputs"},
    Kind.RETRIEVER: {"retrieval_documents": "outputs"},
    Kind.MEMORY: {"retrieval_documents": "outputs"},
}
_SIDES_OF_COMPLETION = {"prompts": "inputs", "choices": "outputs"}
_COMPLETION_OPERATIONS = {"text_completion", "completion"}
_MESSAGE_PREFIXES = (
    *("llm.input_messages.", "llm.output_messages.", "llm.prompts.", "llm.choices."),
    *("gen_ai.prompt.", "gen_ai.completion."),
)
# Suffixes of flattened keys that hold no text of a message.
_NON_TEXT_SUFFIXES = (
    *(".role", ".type", ".id", ".tool_call_id", ".name", ".arguments", ".finish_reason"),
    *(".url", ".mime_type", ".format", ".data"),
)
# Replaced by REDACTED instead of removed, because readers of a span expect them.
_REPLACED_PREFIXES = ("llm.prompts.", "llm.choices.", "embedding.embeddings.")
_REPLACED_SUFFIXES = ("input.value", "output.value", "mlflow.spanInputs", "mlflow.spanOutputs", ".document.content")

# What a value of unknown content holds: in JSON, JSON inside of JSON, reprs, truncated JSON.
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


class HideRules:
    """Hides content on one span; `variables` are the variables without `OPENINFERENCE_HIDE_`, in lower case."""

    def __init__(self, variables: Sequence[str], kind: Kind | None, attributes: Mapping[str, Any]) -> None:
        names = {_SYNONYMS.get(name, name) for name in variables}
        sides = {**_SIDES_OF_KIND.get(kind, {}), **(_SIDES_OF_COMPLETION if _is_completion(attributes) else {})}
        self._names = names | {side for name, side in sides.items() if name in names}
        self._hidden = {content for name in self._names for content in _HIDDEN_CONTENT.get(name, ())}
        self._kind, self._is_model_call = kind, kind in MODEL_KINDS

    def _should_hide(self, content: Content, value: Any) -> bool:
        return content in self._hidden or _TEXTS.get(content) in self._names or self._has_hidden_parts(content, value)

    def _has_hidden_parts(self, content: Content, value: Any) -> bool:
        """Whether a value holds another kind of content that is hidden."""
        names = self._names
        is_input = content in (Content.INPUT, Content.INPUT_MESSAGES, Content.TRANSCRIPT, Content.PARAMETERS)
        hides_messages = not names.isdisjoint(_MESSAGES.get(content, ()))
        hides_tools = not names.isdisjoint({"inputs", "llm_tools"})
        hides_input = not names.isdisjoint({"inputs", "input_messages", "input_text"})
        return (
            (hides_messages and (self._is_model_call or _holds(value, _is_message, _MESSAGE)))
            # An output may hold messages that no model wrote: agents return their whole state.
            or (hides_input and content in _OUTPUT_VALUES and _holds(value, _is_input_message, _MESSAGE))
            or (hides_input and content is Content.PARAMETERS and _holds(value, _is_request, _BRACE))
            or (is_input and "input_images" in names and _holds(value, _is_image, _IMAGE_URL))
            or (is_input and hides_tools and _holds(value, _has_tools, _TOOL_FIELD_IN_TEXT))
            or ("llm_invocation_parameters" in names and self._is_model_call and is_input and _has_parameters(value))
        )

    def _redact_field(self, key: str, value: Any, content: Content) -> Any:
        """Redact an attribute that is a part of a message."""
        if isinstance(value, (int, float)):
            return value
        is_text = not (key.endswith(_NON_TEXT_SUFFIXES) or is_structural_field(key.rpartition(".")[2], str(value)))
        is_hidden = (is_text and _TEXTS.get(content) in self._names) or self._has_hidden_parts(content, value)
        return REDACTED if is_hidden else value

    def _find_sides(self, content: Content) -> set[str]:
        """Return the sides of the span (`input`, `output`) that lack something when the content is hidden."""
        if content is Content.TRANSCRIPT:
            return {side for side in ("input", "output") if any(name.startswith(side) for name in self._names)}
        return {"input"} if content in _INPUT else {"output"} if content in _OUTPUT else set()

    def hide_in_attributes(
        self, attributes: Mapping[str, Any], classify: Callable[[str], Content | None] = classify_attribute
    ) -> dict[str, Any]:
        """Return the attributes of a span or an event without hidden content."""
        result: dict[str, Any] = {}
        hidden_sides: set[str] = set()
        for key, value in attributes.items():
            content = classify(key)
            if content is None:
                result[key] = value
            elif content not in self._hidden and key.startswith(_MESSAGE_PREFIXES):
                result[key] = self._redact_field(key, value, content)
            elif not self._should_hide(content, value):
                result[key] = value
            else:
                hidden_sides |= self._find_sides(content)
                if key.startswith(_REPLACED_PREFIXES) or key.endswith(_REPLACED_SUFFIXES):
                    result[key] = REDACTED
                elif content is Content.DOCUMENTS and key.endswith((".document.id", ".document.score")):
                    result[key] = value
        for side in hidden_sides:
            if result.get(f"{side}.value") in (None, REDACTED):
                result.pop(f"{side}.mime_type", None)
                # Shows that there was content, and keeps enrichment from copying it from another span.
                result[f"{side}.value"] = REDACTED
        if "input_images" in self._names:
            _hide_flattened_images(result)
        return result

    def hide_in_events(self, events: Sequence[Event]) -> tuple[list[Event], set[str]]:
        """Return a span's events without hidden content, and the sides (`input`, `output`) that lost an event."""
        result: list[Event] = []
        hidden_sides: set[str] = set()
        for event in events:
            content = classify_event(event.name)
            if content is not None and self._kind is Kind.TOOL:
                # The arguments and the result of a tool.
                content = Content.INPUT if event.name == "gen_ai.tool.message" else Content.OUTPUT
            original = dict(event.attributes or {})
            if content is None:
                classify = partial(classify_event_attribute, event.name)
                attributes = self.hide_in_attributes(original, classify) if any(map(classify, original)) else original
            elif content in self._hidden or (
                self._kind is Kind.TOOL and self._has_hidden_parts(content, list(original.values()))
            ):
                hidden_sides |= self._find_sides(content)
                continue
            else:
                attributes = {key: self._redact_field(key, value, content) for key, value in original.items()}
            result.append(event if attributes == original else replace_event(event, event.name, attributes))
        return result, hidden_sides


def _is_completion(attributes: Mapping[str, Any]) -> bool:
    """Whether a span calls the older completion API, with a prompt instead of messages."""
    return (
        attributes.get("gen_ai.operation.name") in _COMPLETION_OPERATIONS
        or attributes.get("llm.request.type") == "completion"
        or any(key.startswith(("llm.prompts", "llm.choices")) for key in attributes)
    )


def _hide_flattened_images(attributes: dict[str, Any]) -> None:
    """Replace OpenInference's images, which are several attributes each, by texts."""
    for key in [key for key in attributes if key.startswith(("llm.input_messages.", "llm.prompts."))]:
        part, image, _ = key.partition(".message_content.image")
        if image:
            attributes.pop(key, None)
            attributes[part + ".message_content.type"] = "text"
            attributes[part + ".message_content.text"] = REDACTED


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


def _is_message(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("role") or value.get("_role"), str) or value.get("type") in _MESSAGE_TYPES


def _is_input_message(value: Mapping[str, Any]) -> bool:
    if "raw" in value and "description" in value:  # CrewAI's result of a task repeats the task
        return True
    role = value.get("role") or value.get("_role") or value.get("type")
    if role == "constructor" and isinstance(path := value.get("id"), (list, tuple)) and path:
        role = path[-1]
    has_content = any(name in value for name in ("content", "parts", "data", "kwargs", "_content", "blocks"))
    return has_content and isinstance(role, str) and normalize_role(role, "assistant") != "assistant"


def _is_image(value: Mapping[str, Any]) -> bool:
    part = read_media(value, read_part_type(value))
    return part is not None and part.kind == "image"


def _has_tools(value: Mapping[str, Any]) -> bool:
    return not _TOOL_FIELDS.isdisjoint(value)


def _is_request(value: Mapping[str, Any]) -> bool:
    return not _REQUEST_FIELDS.isdisjoint(value)


def _has_parameters(value: Any) -> bool:
    """Whether a request holds parameters such as temperature."""
    request = parse_json(value) if isinstance(value, str) else value
    if request is None:
        return isinstance(value, str) and value.lstrip()[:1] == "{"  # truncated
    return isinstance(request, Mapping) and not _NON_PARAMETER_FIELDS.issuperset(request)
