"""`OPENINFERENCE_HIDE_*`, each in every convention: nothing that is hidden is in what is sent."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.config.parsers import HIDEABLE
from support.exported import sent
from support.planted import (
    CHATS,
    COMPLETIONS,
    DOCUMENT,
    EMBEDDED,
    EMBEDDINGS,
    EVERY,
    IN,
    MARKERS,
    OUT,
    PARAMETER,
    PICTURE,
    RETRIEVERS,
    TOOL,
    TOOLS,
    VECTOR,
    Made,
    span,
)

VECTORS = {struct.pack("<d", VECTOR), str(VECTOR).encode()}
MODES: list[Mapping[str, Any]] = [{"enrich": False}, {}, {"compact": True}]


def trace_of(made: Made) -> list[ReadableSpan]:
    """The span below a root that has nothing of its own, into which its words would be lifted."""
    return [span(made, number=2, parent=1), span(({"openinference.span.kind": "AGENT"}, ()), name="root")]


def found(made: Made, variables: Sequence[str], monkeypatch: pytest.MonkeyPatch, mode: Mapping[str, Any]) -> set[str]:
    for name in variables:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    body = sent(trace_of(made), **mode)
    present = {marker for marker in MARKERS if marker.encode() in body}
    return present | ({"vector"} if any(each in body for each in VECTORS) else set())


def there(made: Made) -> set[str]:
    """What stands in a span before anything is done to it."""
    text = repr(made)
    return {marker for marker in MARKERS if marker in text} | ({"vector"} if str(VECTOR) in text else set())


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_without_a_variable_all_of_it_is_sent(
    name: str, mode: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = EVERY[name]
    assert there(made), "the test would show nothing"
    # What compacting drops besides copies is no matter of this test.
    assert found(made, (), monkeypatch, mode) >= there(made) - ({"vector", PARAMETER} if mode.get("compact") else set())


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
# Prompt templates are no messages; hide_inputs and hide_prompts are about them.
SPARED = {("input_messages", "chat: langchain"): {IN}, ("input_text", "chat: langchain"): {IN}}


def test_the_table_names_every_variable() -> None:
    assert set(HIDES) == set(HIDEABLE)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("variable", HIDEABLE)
def test_nothing_that_is_hidden_is_sent(
    variable: str, name: str, mode: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = HIDES[variable].get(name.partition(":")[0], set())
    left = found(EVERY[name], (variable,), monkeypatch, mode)
    spared = SPARED.get((variable, name), set())
    assert not left & (hidden - spared)
    assert left >= spared


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("variable", ["inputs", "outputs", "input_messages", "output_messages"])
def test_the_other_side_stays(variable: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {IN, OUT, DOCUMENT, EMBEDDED} - HIDES[variable].get(name.partition(":")[0], set())
    if name == "chat: pydantic-ai":
        other -= {IN}  # its transcript is both ways
    assert found(EVERY[name], (variable,), monkeypatch, {}) >= there(EVERY[name]) & other


@pytest.mark.parametrize("group", [CHATS, TOOLS, COMPLETIONS, RETRIEVERS, EMBEDDINGS], ids=len)
def test_what_was_there_shows_as_redacted(group: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    for made in group.values():
        assert REDACTED.encode() in sent([span(made)])


def test_a_tool_s_hidden_arguments_do_not_come_back_from_the_model_s_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    call = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Paris"}}
    model = {
        "gen_ai.operation.name": "chat",
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [call]}]),
    }
    spans = [span(TOOLS["genai"], number=3, parent=1), span((model, ()), number=2, parent=1), span(({}, ()))]
    body = sent(spans)
    assert body.count(b"Paris") == sent(spans[1:]).count(b"Paris") > 0


def test_numbers_and_names_are_no_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HIDEABLE:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    counts = {"llm.token_count.prompt": 7, "llm.cost.prompt": 0.5, "gen_ai.usage.input_tokens": 7}
    made = ({"openinference.span.kind": "LLM", "llm.model_name": "gpt-x", **counts}, ())
    body = sent([span(made)], enrich=False)
    assert all(key.encode() in body for key in made[0])
