"""`OPENINFERENCE_HIDE_*`: what each variable hides, in every convention.

Stricter than OpenInference's own instrumentations in one point: hidden messages are hidden in `input.value` and
`output.value` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import Event

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind
from mlflow_otlp_exporter._internal.model.span_data import replace_event
from mlflow_otlp_exporter._internal.privacy.content_kinds import Content, classify_attribute, classify_event
from mlflow_otlp_exporter._internal.privacy.hide_transforms import (
    HIDE_IMAGES,
    HIDE_INPUT_TEXTS,
    HIDE_MESSAGES,
    HIDE_TEXTS,
    HIDE_TOOLS,
    has_messages,
    remove_parameters,
)
from mlflow_otlp_exporter._internal.privacy.json_walk import Transform, transform_json

_COMPLETION_OPERATIONS = frozenset({"text_completion", "completion"})
_INPUTS = frozenset({Content.INPUT, Content.INPUT_MESSAGES, Content.INPUT_IMAGES, Content.EMBEDDED_TEXT})
_OUTPUTS = frozenset(
    {Content.OUTPUT, Content.OUTPUT_MESSAGES, Content.DOCUMENTS, Content.OTHER_DOCUMENTS, Content.OUTPUT_IMAGES}
)
# Replaced by REDACTED instead of removed, because readers of a span expect them.
_REPLACED_ATTRIBUTES = frozenset({"input.value", "output.value", "mlflow.spanInputs", "mlflow.spanOutputs"})
_REPLACED_PREFIXES = ("llm.prompts.", "llm.choices.", "embedding.embeddings.")
# Suffixes of flattened keys that hold no text of a message.
_NON_TEXT_SUFFIXES = (
    *(".role", ".type", ".id", ".tool_call_id", ".name", ".arguments", ".finish_reason"),
    *(".url", ".mime_type", ".format", ".data"),
)


class ActiveRules(NamedTuple):
    """The kinds of content that are hidden on one span."""

    inputs: bool
    outputs: bool
    input_messages: bool
    output_messages: bool
    input_text: bool
    output_text: bool
    input_images: bool
    documents: bool
    vectors: bool
    embedded_text: bool
    tools: bool
    parameters: bool
    templates: bool
    is_model_call: bool

    def should_hide(self, content: Content, value: Any) -> bool:
        """Whether the whole value is hidden."""
        if content in (Content.INPUT, Content.OUTPUT):
            everything, messages = (
                (self.inputs, self.input_messages) if content is Content.INPUT else (self.outputs, self.output_messages)
            )
            return everything or (messages and (self.is_model_call or has_messages(value)))
        return {
            Content.INPUT_MESSAGES: self.inputs or self.input_messages,
            Content.INPUT_IMAGES: self.inputs or self.input_images,
            Content.OUTPUT_MESSAGES: self.outputs or self.output_messages,
            Content.TOOL_CALLS: self.outputs or self.output_messages,
            Content.TRANSCRIPT: self.inputs or self.outputs or self.input_messages or self.output_messages,
            Content.TEMPLATE: self.templates,
            Content.TOOLS: self.tools,
            Content.PARAMETERS: self.parameters,
            Content.DOCUMENTS: self.documents,
            Content.OTHER_DOCUMENTS: self.outputs,
            Content.OUTPUT_IMAGES: self.outputs,
            Content.EMBEDDED_TEXT: self.embedded_text,
            Content.VECTOR: self.vectors,
        }[content]

    def sides_of(self, content: Content) -> set[str]:
        """Return the sides of the span (`input`, `output`) that lack something when the content is hidden."""
        if content is Content.TRANSCRIPT:
            sides = {"input"} if self.inputs or self.input_messages else set()
            return sides | ({"output"} if self.outputs or self.output_messages else set())
        return {"input"} if content in _INPUTS else {"output"} if content in _OUTPUTS else set()

    def select_transforms(self, content: Content, value: Any) -> list[Transform]:
        """Select the transforms of a value that is not hidden as a whole."""
        is_input = content in (Content.INPUT, Content.INPUT_MESSAGES, Content.TRANSCRIPT, Content.PARAMETERS)
        is_output = content in (Content.OUTPUT, Content.OUTPUT_MESSAGES, Content.TRANSCRIPT)
        transforms: list[Transform] = []
        if content is Content.PARAMETERS and (self.inputs or self.input_messages or self.input_text):
            transforms.append(HIDE_MESSAGES)
        if is_input and self.input_images:
            transforms.append(HIDE_IMAGES)
        texts = (is_input and self.input_text and content is not Content.PARAMETERS) or (is_output and self.output_text)
        if texts and (self.is_model_call or content not in (Content.INPUT, Content.OUTPUT) or has_messages(value)):
            transforms.append(HIDE_TEXTS)
        if is_output and (self.inputs or self.input_messages or self.input_text):
            transforms.append(HIDE_INPUT_TEXTS)
        if self.tools and is_input:
            transforms.append(HIDE_TOOLS)
        return transforms


class HideRules:
    """Hides the content that variables name; `names` are the variables without `OPENINFERENCE_HIDE_`, in lower case."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def activate(self, kind: Kind | None, attributes: Mapping[str, Any]) -> ActiveRules:
        """Derive the rules of one span from its kind and attributes."""
        names = self._names
        is_completion = _is_completion(attributes)
        is_embedding, is_retriever = kind is Kind.EMBEDDING, kind in (Kind.RETRIEVER, Kind.MEMORY)
        inputs = "inputs" in names or (is_completion and bool(names & {"prompts", "llm_prompts"}))
        outputs = "outputs" in names or (is_completion and "choices" in names)
        embedded_text = "inputs" in names or "embeddings_text" in names
        documents = "outputs" in names or "retrieval_documents" in names
        vectors = "outputs" in names or bool(names & {"embedding_vectors", "embeddings_vectors"})
        return ActiveRules(
            inputs=inputs or (is_embedding and embedded_text),
            outputs=outputs or (is_embedding and vectors) or (is_retriever and documents),
            input_messages="input_messages" in names,
            output_messages="output_messages" in names,
            input_text="input_text" in names,
            output_text="output_text" in names,
            input_images="input_images" in names,
            documents=documents,
            vectors=vectors,
            embedded_text=embedded_text,
            tools="inputs" in names or "llm_tools" in names,
            parameters="llm_invocation_parameters" in names,
            templates=bool(names & {"inputs", "prompts", "llm_prompts"}),
            is_model_call=is_model(kind),
        )

    def hide_in_attributes(self, attributes: Mapping[str, Any], rules: ActiveRules) -> dict[str, Any]:
        """Return the attributes of a span or an event without hidden content."""
        result: dict[str, Any] = {}
        hidden_sides: set[str] = set()
        for key, value in attributes.items():
            content = _classify(key)
            if content is None:
                result[key] = value
            elif not rules.should_hide(content, value):
                result[key] = _apply_transforms(key, value, content, rules)
            else:
                hidden_sides |= rules.sides_of(content)
                is_document = content in (Content.DOCUMENTS, Content.OTHER_DOCUMENTS)
                if (
                    key in _REPLACED_ATTRIBUTES
                    or key.startswith(_REPLACED_PREFIXES)
                    or (is_document and key.endswith(".document.content"))
                ):
                    result[key] = REDACTED
                elif content is Content.DOCUMENTS and key.endswith((".document.id", ".document.score")):
                    result[key] = value
        for side in hidden_sides:
            if result.get(f"{side}.value") in (None, REDACTED):
                result.pop(f"{side}.mime_type", None)
                # Shows that there was content, and keeps enrichment from copying it from another span.
                result[f"{side}.value"] = REDACTED
        if rules.input_images:
            _hide_flattened_images(result)
        return result

    def hide_in_events(
        self, events: Sequence[Event], kind: Kind | None, rules: ActiveRules
    ) -> tuple[list[Event], set[str]]:
        """Return a span's events without hidden content, and the sides (`input`, `output`) that lost an event."""
        result: list[Event] = []
        hidden_sides: set[str] = set()
        for event in events:
            content = classify_event(event.name)
            if content is not None and kind is Kind.TOOL:
                # The arguments and the result of a tool.
                content = Content.INPUT if event.name == "gen_ai.tool.message" else Content.OUTPUT
            original = dict(event.attributes or {})
            if content is None:
                is_affected = any(_classify(key) for key in original)
                attributes = self.hide_in_attributes(original, rules) if is_affected else original
            elif rules.should_hide(content, [value for key, value in original.items() if key != "role"]):
                hidden_sides |= rules.sides_of(content)
                continue
            else:
                attributes = {key: _apply_transforms(key, value, content, rules) for key, value in original.items()}
            result.append(event if attributes == original else replace_event(event, event.name, attributes))
        return result, hidden_sides


def _is_completion(attributes: Mapping[str, Any]) -> bool:
    """Whether a span calls the older completion API, with a prompt instead of messages."""
    return (
        attributes.get("gen_ai.operation.name") in _COMPLETION_OPERATIONS
        or attributes.get("llm.request.type") == "completion"
        or any(key.startswith(("llm.prompts", "llm.choices")) for key in attributes)
    )


def _classify(key: str) -> Content | None:
    # pydantic-ai's request parameters hold tool definitions and settings.
    return Content.PARAMETERS if key == "model_request_parameters" else classify_attribute(key)


def _apply_transforms(key: str, value: Any, content: Content, rules: ActiveRules) -> Any:
    for transform in rules.select_transforms(content, value):
        if not (transform is HIDE_TEXTS and key.endswith(_NON_TEXT_SUFFIXES) and "." in key):
            value = transform_json(value, transform, key.rpartition(".")[2])
    if rules.parameters and rules.is_model_call and content in (Content.INPUT, Content.INPUT_MESSAGES):
        value = remove_parameters(value)
    return value


def _hide_flattened_images(attributes: dict[str, Any]) -> None:
    """Replace OpenInference's images, which are several attributes each, by texts."""
    for key in [key for key in attributes if key.startswith(("llm.input_messages.", "llm.prompts."))]:
        part, image, _ = key.partition(".message_content.image")
        if image:
            attributes.pop(key, None)
            attributes[part + ".message_content.type"] = "text"
            attributes[part + ".message_content.text"] = REDACTED
