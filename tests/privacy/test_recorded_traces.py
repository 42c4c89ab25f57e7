"""Hide and mask the content of recorded traces: none of the known texts is sent."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.config.parsers import HIDEABLE
from support.offline_export import export_bytes
from support.recordings import CORPUS, cases, load

TRUTH: dict[str, dict[str, Any]] = json.loads((CORPUS / "truth.json").read_text())
MODES = [{"enrich": False}, {"compact": True}]
# Shorter texts may be names.
_MIN_LENGTH = 12


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def known_texts(case: str, *fields: str) -> set[str]:
    """Return the texts that the spans of a case hold."""
    truths = (truth for name, truth in TRUTH.items() if name.startswith(case))
    texts = {text for truth in truths for field in fields for text in _texts(truth.get(field))}
    return {text for text in texts if len(text) >= _MIN_LENGTH and text != '{"answer": 5}'}


def texts_in(body: bytes, texts: set[str]) -> set[str]:
    """Return the texts that a request holds, unchanged or in JSON."""
    escaped = {text: json.dumps(text)[1:-1] for text in texts}
    twice = {text: json.dumps(once)[1:-1] for text, once in escaped.items()}
    return {text for text in texts if any(form.encode() in body for form in (text, escaped[text], twice[text]))}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", cases())
def test_export_with_everything_masked_or_hidden_sends_no_text(
    case: str, mode: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans, _ = load(case)
    texts = known_texts(case, "request", "response", "documents")
    assert not texts_in(export_bytes(spans, mask=lambda _: "***", **mode), texts)
    for name in HIDEABLE:
        monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name.upper()}", "true")
    assert not texts_in(export_bytes(spans, **mode), texts)


# Steps whose output is the question.
_QUESTION_IN_OUTPUT = {"oi-langchain/rag_chain", "langsmith-otel/rag"}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("case", [case for case in cases() if case not in _QUESTION_IN_OUTPUT])
def test_export_with_inputs_hidden_sends_no_request(
    case: str, mode: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    assert not texts_in(export_bytes(load(case)[0], **mode), known_texts(case, "request"))


def test_export_without_hiding_sends_the_texts() -> None:
    visible = [texts_in(export_bytes(load(case)[0]), known_texts(case, "request", "response")) for case in cases()]
    assert sum(map(len, visible)) > 100
