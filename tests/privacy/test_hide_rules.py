"""`OPENINFERENCE_HIDE_*`, each in every convention: the request holds no hidden content."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.config.parsers import HIDEABLE
from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.privacy.hide_rules import HideRules
from support.content_samples import (
    ALL_SAMPLES,
    CHATS,
    COMPLETIONS,
    DOCUMENT,
    EMBEDDED,
    EMBEDDINGS,
    IN,
    MARKERS,
    OUT,
    PARAMETER,
    PICTURE,
    RETRIEVERS,
    TOOL,
    TOOLS,
    VECTOR,
    SpanContent,
    span,
)
from support.offline_export import export_bytes

VECTORS = {struct.pack("<d", VECTOR), str(VECTOR).encode()}
MODES: list[Mapping[str, Any]] = [{"enrich": False}, {}, {"compact": True}]


def trace_of(content: SpanContent) -> list[ReadableSpan]:
    """A span below an empty root, into which enrichment would lift its input and output."""
    return [span(content, number=2, parent=1), span(({"openinference.span.kind": "AGENT"}, ()), name="root")]


def markers_in_request(
    content: SpanContent, variables: Sequence[str], monkeypatch: pytest.MonkeyPatch, mode: Mapping[str, Any]
) -> set[str]:
    for name in variables:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    body = export_bytes(trace_of(content), **mode)
    present = {marker for marker in MARKERS if marker.encode() in body}
    return present | ({"vector"} if any(vector in body for vector in VECTORS) else set())


def markers_in(content: SpanContent) -> set[str]:
    """The markers in a span before the export."""
    text = repr(content)
    return {marker for marker in MARKERS if marker in text} | ({"vector"} if str(VECTOR) in text else set())


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", ALL_SAMPLES)
def test_hide_without_a_variable_sends_all_content(
    name: str, mode: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ALL_SAMPLES[name]
    assert markers_in(content), "the test would show nothing"
    # Compacting also drops content that is not a copy, which does not matter here.
    dropped = {"vector", PARAMETER} if mode.get("compact") else set()
    assert markers_in_request(content, (), monkeypatch, mode) >= markers_in(content) - dropped


# Which markers each variable hides, by group of conventions.
HIDES: dict[str, dict[str, set[str]]] = {
    "inputs": {"chat": {IN, PICTURE, TOOL}, "tool": {IN, TOOL}, "completion": {IN, PICTURE}, "retriever": {IN}},
    "outputs": {"chat": {OUT}, "tool": {OUT}, "completion": {OUT}, "retriever": {DOCUMENT}, "embedding": {"vector"}},
    "input_messages": {"chat": {IN, PICTURE}, "completion": {IN, PICTURE}},
    "output_messages": {"chat": {OUT}, "completion": {OUT}},
    "input_images": {"chat": {PICTURE}, "completion": {PICTURE}},
    "input_text": {"chat": {IN}, "completion": {IN}},
    "output_text": {"chat": {OUT}, "completion": {OUT}},
    "prompts": {"completion": {IN, PICTURE}},
    "choices": {"completion": {OUT}},
    "retrieval_documents": {"retriever": {DOCUMENT}},
    "llm_invocation_parameters": {"chat": {PARAMETER}},
    "llm_tools": {"chat": {TOOL}, "tool": {TOOL}},
    "embeddings_vectors": {"embedding": {"vector"}},
    "embeddings_text": {"embedding": {EMBEDDED}},
    "embedding_vectors": {"embedding": {"vector"}},
    "llm_prompts": {"completion": {IN, PICTURE}},
}
HIDES["inputs"]["embedding"] = {EMBEDDED}
# Prompt templates are not messages; `inputs` and `prompts` hide them.
NOT_HIDDEN = {("input_messages", "chat: langchain"): {IN}, ("input_text", "chat: langchain"): {IN}}


def test_table_of_variables_is_complete() -> None:
    assert set(HIDES) == set(HIDEABLE)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", ALL_SAMPLES)
@pytest.mark.parametrize("variable", HIDEABLE)
def test_hide_with_each_variable_sends_no_hidden_content(
    variable: str, name: str, mode: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = HIDES[variable].get(name.partition(":")[0], set())
    visible = markers_in_request(ALL_SAMPLES[name], (variable,), monkeypatch, mode)
    not_hidden = NOT_HIDDEN.get((variable, name), set())
    assert not visible & (hidden - not_hidden)
    assert visible >= not_hidden


@pytest.mark.parametrize("name", ALL_SAMPLES)
@pytest.mark.parametrize("variable", ["inputs", "outputs", "input_messages", "output_messages"])
def test_hide_with_one_side_sends_the_other(variable: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {IN, OUT, DOCUMENT, EMBEDDED} - HIDES[variable].get(name.partition(":")[0], set())
    if name == "chat: pydantic-ai":
        other -= {IN}  # its transcript holds input and output
    assert markers_in_request(ALL_SAMPLES[name], (variable,), monkeypatch, {}) >= markers_in(ALL_SAMPLES[name]) & other


@pytest.mark.parametrize("group", [CHATS, TOOLS, COMPLETIONS, RETRIEVERS, EMBEDDINGS], ids=len)
def test_hide_with_inputs_sends_redacted_marker(group: dict[str, SpanContent], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    for content in group.values():
        assert REDACTED.encode() in export_bytes([span(content)])


def test_hide_with_inputs_does_not_copy_tool_arguments_from_the_model_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    call = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Paris"}}
    model = {
        "gen_ai.operation.name": "chat",
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [call]}]),
    }
    spans = [span(TOOLS["genai"], number=3, parent=1), span((model, ()), number=2, parent=1), span(({}, ()))]
    body = export_bytes(spans)
    assert body.count(b"Paris") == export_bytes(spans[1:]).count(b"Paris") > 0


def test_hide_with_all_variables_sends_counts_and_model_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HIDEABLE:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    counts = {"llm.token_count.prompt": 7, "llm.cost.prompt": 0.5, "gen_ai.usage.input_tokens": 7}
    attributes = {"openinference.span.kind": "LLM", "llm.model_name": "gpt-x", **counts}
    body = export_bytes([span((attributes, ()))], enrich=False)
    assert all(key.encode() in body for key in attributes)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
MODEL_ATTRIBUTES: dict[str, Any] = {
    "input.value": json.dumps({"messages": [USER]}),
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "hi",
    "gen_ai.input.messages": json.dumps([USER]),
    "output.value": json.dumps(ASSISTANT),
    "llm.output_messages.0.message.content": "hello",
    "llm.invocation_parameters": json.dumps({"temperature": 0.5}),
}
INPUT_MESSAGES = {
    "input.value",
    "llm.input_messages.0.message.role",
    "llm.input_messages.0.message.content",
    "gen_ai.input.messages",
}
OUTPUT_MESSAGES = {"output.value", "llm.output_messages.0.message.content"}


@pytest.mark.parametrize(
    ("variable", "changed", "hidden"),
    [
        ("inputs", {}, INPUT_MESSAGES),
        ("input_messages", {}, INPUT_MESSAGES),
        ("input_text", {}, INPUT_MESSAGES - {"llm.input_messages.0.message.role"}),
        ("outputs", {}, OUTPUT_MESSAGES),
        ("output_messages", {}, OUTPUT_MESSAGES),
        ("output_text", {}, OUTPUT_MESSAGES),
        ("input_images", {}, set()),
        (
            "input_images",
            {"gen_ai.input.messages": json.dumps([{"content": [IMAGE]}])},
            "gen_ai.input.messages",
        ),
        ("input_images", {"input.value": json.dumps({"messages": [IMAGE]})}, "input.value"),
        ("llm_tools", {}, set()),
        ("llm_tools", {"input.value": json.dumps({"messages": [USER], "tools": []})}, "input.value"),
        ("llm_tools", {"input.value": '{"messages": [], "tools": [{"na'}, "input.value"),
        ("llm_tools", {"llm.invocation_parameters": '{"tools": []}'}, "llm.invocation_parameters"),
        ("llm_invocation_parameters", {}, {"llm.invocation_parameters"}),
        (
            "llm_invocation_parameters",
            {"input.value": '{"messages": [], "temperature": 1}'},
            {"input.value", "llm.invocation_parameters"},
        ),
        (
            "llm_invocation_parameters",
            {"input.value": '{"messages": [], "temp'},
            {"input.value", "llm.invocation_parameters"},
        ),
        ("inputs", {"output.value": json.dumps({"messages": [USER, ASSISTANT]})}, INPUT_MESSAGES | {"output.value"}),
        (
            "input_text",
            {"llm.invocation_parameters": '{"prompt": "x"}'},
            INPUT_MESSAGES - {"llm.input_messages.0.message.role"} | {"llm.invocation_parameters"},
        ),
        # A duplicate key may hide a value from the check.
        ("llm_tools", {"input.value": '{"a": {"tools": 1}, "a": 2}'}, "input.value"),
        ("input_images", {"input.value": json.dumps(json.dumps({"messages": [IMAGE]}))}, "input.value"),
    ],
)
def test_hide_in_attributes_hides_whole_values(variable: str, changed: dict[str, str], hidden: set[str] | str) -> None:
    attributes = {**MODEL_ATTRIBUTES, **changed}
    result = HideRules((variable,), Kind.LLM, attributes).hide_in_attributes(attributes)
    not_sent = {key for key, value in attributes.items() if result.get(key) != value}
    expected = {hidden} if isinstance(hidden, str) else hidden
    assert not_sent == expected
    assert all(result.get(key) in (None, REDACTED) for key in not_sent)
