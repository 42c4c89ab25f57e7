"""Repairs of attributes that no other test needs a server for."""

import json
import time

import pytest

from mlflow_otlp_exporter._internal.encoding import sanitizer
from mlflow_otlp_exporter._internal.encoding.sanitizer import REPAIRED_ATTRIBUTE, mark_nested_texts, sanitize_attributes
from mlflow_otlp_exporter._internal.model.spans import Utf8Text

CHAT = json.dumps({"messages": [{"role": "user", "content": "a\x00b"}]})


@pytest.mark.parametrize("key", ["mlflow.spanInputs", "output.value", "traceloop.entity.output", "of.a.later.version"])
def test_sanitize_attributes_of_root_replaces_nul_in_json(key: str) -> None:
    """MLflow 3.17 decodes it for a preview, and PostgreSQL rejects the whole request."""
    repaired = sanitize_attributes({key: CHAT, "other": 1}, is_root=True)
    expected = {key: CHAT.replace("\\u0000", "\\ufffd"), "other": 1}
    assert repaired == {**expected, REPAIRED_ATTRIBUTE: f"{key}: NUL characters replaced"}


@pytest.mark.parametrize(
    ("value", "is_root"),
    [(CHAT, False), ("a\x00b", True), (json.dumps("a\x00b"), True), (7, True), (("\\u0000",), True)],
)
def test_sanitize_attributes_keeps_nul_that_no_preview_has(value: object, is_root: bool) -> None:
    assert sanitize_attributes({"input.value": value}, is_root=is_root) is None


def test_sanitize_attributes_with_deeply_nested_cost_leaves_it_out() -> None:
    repaired = sanitize_attributes({"mlflow.llm.cost": "[" * 100_000}, is_root=False)
    assert repaired == {REPAIRED_ATTRIBUTE: "mlflow.llm.cost left out: no JSON object of numbers"}


@pytest.mark.parametrize("key", ["input.value", "of.a.later.version", "mlflow.traceTag.x"])
@pytest.mark.parametrize(
    "text", ["[" * 1000, "[" * 1000 + "]" * 1000, ' {"a":' * 1000 + "1" + "}" * 1000, "[{}," * 501]
)
def test_mark_nested_texts_marks_deeply_nested_json_as_text(key: str, text: str) -> None:
    """MLflow 3.17.2 answers 422 to such a text in any attribute."""
    repaired = mark_nested_texts({key: text, "other": 1})
    assert repaired is not None
    assert repaired[key] == "\u200b" + text
    assert repaired[REPAIRED_ATTRIBUTE] == f"{key}: marked as text, because it is nested too deeply"
    with pytest.raises(json.JSONDecodeError):
        json.loads(repaired[key])


def test_sanitize_attributes_cuts_before_it_checks_the_nesting() -> None:
    repaired = sanitize_attributes({"session.id": "[" * 1000}, is_root=False)
    assert repaired is not None
    assert repaired["session.id"] == "[" * 250
    assert mark_nested_texts(repaired) is None


def test_sanitize_attributes_with_other_repairs_marks_deeply_nested_json() -> None:
    repaired = sanitize_attributes({"input.value": "[" * 501, "mlflow.llm.cost": "much"}, is_root=False)
    assert repaired == {
        "input.value": "\u200b" + "[" * 501,
        REPAIRED_ATTRIBUTE: "input.value: marked as text, because it is nested too deeply; "
        "mlflow.llm.cost left out: no JSON object of numbers",
    }
    assert mark_nested_texts(repaired) is None


@pytest.mark.parametrize(
    "text",
    [json.dumps([{"a": [1]}] * 5000), json.dumps("[" * 1000), "a" + "[" * 1000, "[" * 500, '["\ud800' + "1" * 500],
)
def test_sanitize_attributes_keeps_other_texts(text: str) -> None:
    assert sanitize_attributes({"input.value": text}, is_root=False) is None
    assert mark_nested_texts({"input.value": text}) is None


@pytest.mark.parametrize("text", ["[" * 1_000_000, "[]" * 500_000, '["' * 500_000, "[{" + "]" * 1_000_000])
def test_check_of_nesting_takes_linear_time(text: str) -> None:
    started_at = time.process_time()
    mark_nested_texts({"input.value": text})
    assert time.process_time() - started_at < 1


@pytest.mark.parametrize("is_root", [False, True])
def test_sanitize_attributes_of_encoded_text_equals_that_of_text(is_root: bool) -> None:
    for text in (CHAT, "[" * 1000, "{}" * 300, '{"a": "b"}'):
        expected = sanitize_attributes({"mlflow.spanInputs": text}, is_root=is_root)
        assert sanitize_attributes({"mlflow.spanInputs": Utf8Text(text.encode())}, is_root=is_root) == expected
        marked = mark_nested_texts({"mlflow.spanInputs": text})
        assert mark_nested_texts({"mlflow.spanInputs": Utf8Text(text.encode())}) == marked


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"input_tokens": 10, "output_tokens": 0}', '{"a":1}', '{"a": 1.5}', "{}"]
)
def test_sanitize_attributes_keeps_json_object_of_numbers(text: str) -> None:
    assert sanitize_attributes({"mlflow.chat.tokenUsage": text}, is_root=False) is None


@pytest.mark.parametrize("text", ["many", '{"a": 01}', '{"a": 1,}', '{"a": 1, }', '{"a": 1} ]', '{"a": "1"}', "[1]"])
def test_sanitize_attributes_with_other_text_as_numbers_leaves_it_out(text: str) -> None:
    repaired = sanitize_attributes({"mlflow.chat.tokenUsage": text, "other": 1}, is_root=False)
    assert repaired is not None
    assert "mlflow.chat.tokenUsage" not in repaired


def test_sanitize_attributes_with_many_short_texts_remembers_a_thousand() -> None:
    for number in range(2000):
        assert sanitize_attributes({"session.id": f"session {number}"}, is_root=False) is None
    assert 0 < len(sanitizer._short_texts) <= 1024
    # Remembered texts of columns do not count where numbers are expected.
    repaired = sanitize_attributes({"session.id": "a", "mlflow.llm.cost": "a"}, is_root=False)
    assert repaired is not None
    assert "mlflow.llm.cost" not in repaired
