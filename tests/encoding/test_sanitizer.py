"""Repairs of attributes that no other test needs a server for."""

import json

import pytest

from mlflow_otlp_exporter._internal.encoding.sanitizer import REPAIRED_ATTRIBUTE, sanitize_attributes

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
