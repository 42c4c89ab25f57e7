"""`OPENINFERENCE_HIDE_*`: what they hide, in every convention.

Stricter than OpenInference's own instrumentations in one point: messages that are to be hidden are hidden wherever they
stand, in `input.value` and `output.value` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import Event

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind
from mlflow_otlp_exporter._internal.model.span_data import replace_event
from mlflow_otlp_exporter._internal.privacy.content_kinds import Content, content_of, content_of_event
from mlflow_otlp_exporter._internal.privacy.hide_transforms import (
    HideImages,
    HideInputTexts,
    HideMessages,
    HideTexts,
    HideTools,
    holds_messages,
    without_parameters,
)
from mlflow_otlp_exporter._internal.privacy.json_walk import Transform, transform_json

_COMPLETIONS = frozenset({"text_completion", "completion"})
_INPUTS = frozenset({Content.INPUT, Content.INPUT_MESSAGES, Content.INPUT_IMAGES, Content.EMBEDDED_TEXT})
_OUTPUTS = frozenset(
    {Content.OUTPUT, Content.OUTPUT_MESSAGES, Content.DOCUMENTS, Content.OTHER_DOCUMENTS, Content.OUTPUT_IMAGES}
)
# Not dropped, as whoever reads a span looks for something here.
_SHOWN = frozenset({"input.value", "output.value", "mlflow.spanInputs", "mlflow.spanOutputs"})
# Ends of flattened keys that hold no text of a message.
_NO_TEXT = (
    ".role",
    ".type",
    ".id",
    ".tool_call_id",
    ".name",
    ".arguments",
    ".finish_reason",
    ".url",
    ".mime_type",
    ".format",
    ".data",
)
_TEXTS, _IMAGES, _TOOLS = HideTexts(), HideImages(), HideTools()
_MESSAGES, _ASKED = HideMessages(), HideInputTexts()


class HideRequest(NamedTuple):
    """What is hidden on a span of some kind.

    Attributes:
        inputs: All that went in.
        outputs: All that came out.
        input_messages: Messages to a model.
        output_messages: Messages of a model.
        input_text: Their texts.
        output_text: Their texts.
        input_images: Images to a model.
        documents: What was found.
        vectors: Vectors.
        embedded: Texts that were embedded.
        tools: Definitions of tools.
        parameters: Parameters of calls.
        template: Prompt templates and variables.
        model: Whether the span is one of a model's call.
    """

    inputs: bool
    outputs: bool
    input_messages: bool
    output_messages: bool
    input_text: bool
    output_text: bool
    input_images: bool
    documents: bool
    vectors: bool
    embedded: bool
    tools: bool
    parameters: bool
    template: bool
    model: bool

    def hides(self, content: Content, value: Any) -> bool:
        """Whether a value is hidden as a whole."""
        if content in (Content.INPUT, Content.OUTPUT):
            everything, messages = (
                (self.inputs, self.input_messages) if content is Content.INPUT else (self.outputs, self.output_messages)
            )
            return everything or (messages and (self.model or holds_messages(value)))
        return {
            Content.INPUT_MESSAGES: self.inputs or self.input_messages,
            Content.INPUT_IMAGES: self.inputs or self.input_images,
            Content.OUTPUT_MESSAGES: self.outputs or self.output_messages,
            Content.TOOL_CALLS: self.outputs or self.output_messages,
            Content.TRANSCRIPT: self.inputs or self.outputs or self.input_messages or self.output_messages,
            Content.TEMPLATE: self.template,
            Content.TOOLS: self.tools,
            Content.PARAMETERS: self.parameters,
            Content.DOCUMENTS: self.documents,
            Content.OTHER_DOCUMENTS: self.outputs,
            Content.OUTPUT_IMAGES: self.outputs,
            Content.EMBEDDED_TEXT: self.embedded,
            Content.VECTOR: self.vectors,
        }[content]

    def sides(self, content: Content) -> set[str]:
        """Of which sides of the span something is gone when a value is hidden."""
        if content is Content.TRANSCRIPT:
            sides = {"input"} if self.inputs or self.input_messages else set()
            return sides | ({"output"} if self.outputs or self.output_messages else set())
        return {"input"} if content in _INPUTS else {"output"} if content in _OUTPUTS else set()

    def changes(self, content: Content, value: Any) -> list[Transform]:
        """What is done to a value that is not hidden as a whole."""
        into = content in (Content.INPUT, Content.INPUT_MESSAGES, Content.TRANSCRIPT, Content.PARAMETERS)
        out = content in (Content.OUTPUT, Content.OUTPUT_MESSAGES, Content.TRANSCRIPT)
        made: list[Transform] = []
        if content is Content.PARAMETERS and (self.inputs or self.input_messages or self.input_text):
            made.append(_MESSAGES)
        if into and self.input_images:
            made.append(_IMAGES)
        texts = (into and self.input_text and content is not Content.PARAMETERS) or (out and self.output_text)
        if texts and (self.model or content not in (Content.INPUT, Content.OUTPUT) or holds_messages(value)):
            made.append(_TEXTS)
        if out and (self.inputs or self.input_messages or self.input_text):
            made.append(_ASKED)
        if self.tools and into:
            made.append(_TOOLS)
        return made


class HideRules:
    """Hides what the variables name.

    Args:
        names: Their names without `OPENINFERENCE_HIDE_`, in lower case.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._templates = bool(names & {"inputs", "prompts", "llm_prompts"})

    def wishes(self, kind: Kind | None, attributes: Mapping[str, Any]) -> HideRequest:
        """What is hidden on a span.

        Args:
            kind: What the span is.
            attributes: Its attributes.
        """
        names = self._names
        completion = _is_completion(attributes)
        embedding, retriever = kind is Kind.EMBEDDING, kind in (Kind.RETRIEVER, Kind.MEMORY)
        inputs = "inputs" in names or (completion and bool(names & {"prompts", "llm_prompts"}))
        outputs = "outputs" in names or (completion and "choices" in names)
        embedded = "inputs" in names or "embeddings_text" in names
        documents = "outputs" in names or "retrieval_documents" in names
        vectors = "outputs" in names or bool(names & {"embedding_vectors", "embeddings_vectors"})
        return HideRequest(
            inputs or (embedding and embedded),
            outputs or (embedding and vectors) or (retriever and documents),
            "input_messages" in names,
            "output_messages" in names,
            "input_text" in names,
            "output_text" in names,
            "input_images" in names,
            documents,
            vectors,
            embedded,
            "inputs" in names or "llm_tools" in names,
            "llm_invocation_parameters" in names,
            self._templates,
            is_model(kind),
        )

    def attributes(self, found: Mapping[str, Any], wishes: HideRequest) -> dict[str, Any]:
        """A span's, or an event's, attributes with nothing in them that is hidden."""
        kept: dict[str, Any] = {}
        hidden: set[str] = set()
        for key, value in found.items():
            content = _content(key)
            if content is None:
                kept[key] = value
                continue
            if wishes.hides(content, value):
                hidden |= wishes.sides(content)
                if (
                    key in _SHOWN
                    or key.startswith(("llm.prompts.", "llm.choices.", "embedding.embeddings."))
                    or (content in (Content.DOCUMENTS, Content.OTHER_DOCUMENTS) and key.endswith(".document.content"))
                ):
                    kept[key] = REDACTED
                elif content is Content.DOCUMENTS and key.endswith((".document.id", ".document.score")):
                    kept[key] = value
                continue
            kept[key] = _changed(key, value, content, wishes)
        for side in hidden:
            if kept.get(f"{side}.value") in (None, REDACTED):
                kept.pop(f"{side}.mime_type", None)
                # So that it is seen that there was something, and nobody fills it in from elsewhere.
                kept[f"{side}.value"] = REDACTED
        if wishes.input_images:
            _hide_flattened_images(kept)
        return kept

    def events(self, events: Sequence[Event], kind: Kind | None, wishes: HideRequest) -> tuple[list[Event], set[str]]:
        """A span's events with nothing in them that is hidden, and of which sides (`input`, `output`) some are gone."""
        kept: list[Event] = []
        gone: set[str] = set()
        for event in events:
            content = content_of_event(event.name)
            if content is not None and kind is Kind.TOOL:
                # A tool's arguments and result.
                content = Content.INPUT if event.name == "gen_ai.tool.message" else Content.OUTPUT
            found = dict(event.attributes or {})
            if content is None:
                made = self.attributes(found, wishes) if any(_content(key) for key in found) else found
            elif wishes.hides(content, [value for key, value in found.items() if key != "role"]):
                gone |= wishes.sides(content)
                continue
            else:
                made = {key: _changed(key, value, content, wishes) for key, value in found.items()}
            kept.append(event if made == found else replace_event(event, event.name, made))
        return kept, gone


def _is_completion(attributes: Mapping[str, Any]) -> bool:
    """Whether a span is of the older way to call a model, with a prompt and without messages."""
    return (
        attributes.get("gen_ai.operation.name") in _COMPLETIONS
        or attributes.get("llm.request.type") == "completion"
        or any(key.startswith(("llm.prompts", "llm.choices")) for key in attributes)
    )


def _content(key: str) -> Content | None:
    # pydantic-ai's parameters of a request are definitions of tools above all, and settings.
    return Content.PARAMETERS if key == "model_request_parameters" else content_of(key)


def _changed(key: str, value: Any, content: Content, wishes: HideRequest) -> Any:
    for change in wishes.changes(content, value):
        if not (change is _TEXTS and key.endswith(_NO_TEXT) and "." in key):
            value = transform_json(value, change, key.rpartition(".")[2])
    if wishes.parameters and wishes.model and content in (Content.INPUT, Content.INPUT_MESSAGES):
        value = without_parameters(value)
    return value


def _hide_flattened_images(found: dict[str, Any]) -> None:
    """OpenInference's images, which are several attributes each, become texts."""
    for key in [key for key in found if key.startswith(("llm.input_messages.", "llm.prompts."))]:
        part, image, _ = key.partition(".message_content.image")
        if image:
            found.pop(key, None)
            found[part + ".message_content.type"] = "text"
            found[part + ".message_content.text"] = REDACTED
