"""Hiding and masking over the recorded traces: what their instrumentations are known to have said is not sent."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.config.parsers import HIDEABLE
from support.exported import sent
from support.recordings import CORPUS, cases, load

TRUTH: dict[str, dict[str, Any]] = json.loads((CORPUS / "truth.json").read_text())
MODES = [{"enrich": False}, {"compact": True}]
# Shorter ones may be names of something else.
_SHORTEST = 12


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def said(case: str, *fields: str) -> set[str]:
    """The texts that a case is known to hold; those without letters of their own left out."""
    found = (truth for name, truth in TRUTH.items() if name.startswith(case))
    texts = {text for truth in found for field in fields for text in _texts(truth.get(field))}
    return {text for text in texts if len(text) >= _SHORTEST and text != '{"answer": 5}'}


def shown(texts: set[str], body: bytes) -> set[str]:
    """Those of them that stand in a request, as they are or in JSON."""
    escaped = {text: json.dumps(text)[1:-1] for text in texts}
    twice = {text: json.dumps(once)[1:-1] for text, once in escaped.items()}
    return {text for text in texts if any(each.encode() in body for each in (text, escaped[text], twice[text]))}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", cases())
def test_all_hidden_and_all_masked(case: str, mode: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    spans, _ = load(case)
    texts = said(case, "request", "response", "documents")
    assert not shown(texts, sent(spans, mask=lambda _: "***", **mode))
    for name in HIDEABLE:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    assert not shown(texts, sent(spans, **mode))


# Steps that hand on what they were given: their output is the question.
_HANDED_ON = {"oi-langchain/rag_chain"}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", [case for case in cases() if case not in _HANDED_ON])
def test_inputs_hidden(case: str, mode: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    assert not shown(said(case, "request"), sent(load(case)[0], **mode))


def test_the_texts_are_there_otherwise() -> None:
    seen = [shown(said(case, "request", "response"), sent(load(case)[0])) for case in cases()]
    assert sum(map(len, seen)) > 100
