"""Any value becomes JSON, of a bounded length."""

import datetime as dt
import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mlflow_otlp_exporter._internal.common.bounded import bounded_json, parse_json


@dataclass
class Order:
    number: int
    lines: tuple[str, ...]


class Model(BaseModel):
    name: str
    when: dt.date


class Mean:
    """Raises whatever one asks."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Shown:
    def __repr__(self) -> str:
        return "<shown>"


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"city": "Zürich", "n": 1, "x": 1.5, "ok": True, "none": None}, None),
        ((1, "a"), [1, "a"]),
        ({1}, [1]),
        (Order(7, ("a", "b")), {"number": 7, "lines": ["a", "b"]}),
        (Model(name="m", when=dt.date(2026, 1, 2)), {"name": "m", "when": "2026-01-02"}),
        (OrderedDict(a=1), {"a": 1}),
        ({(1, 2): "pair"}, {"(1, 2)": "pair"}),
        (math.nan, "nan"),
        ([math.inf, 1.0], ["inf", 1.0]),
        (b"\x00\xff", "<2 bytes>"),
        (Shown(), "<shown>"),
        ({"x": Mean()}, {"x": "<Mean: no repr (RuntimeError)>"}),
        (int, "<class 'int'>"),
    ],
)
def test_bounded_json_converts_value(value: Any, expected: Any) -> None:
    assert json.loads(bounded_json(value)) == (value if expected is None else expected)


def test_bounded_json_keeps_unicode_readable() -> None:
    assert bounded_json({"city": "Zürich"}) == '{"city": "Zürich"}'


def test_bounded_json_circular_or_deep_value_is_cut() -> None:
    deep: Any = "bottom"
    for _ in range(10_000):
        deep = [deep]
    for value in (CIRCULAR, deep):
        assert len(bounded_json(value)) < 10_000
        json.loads(bounded_json(value))


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, ["x" * 100] * 1000, {str(number): number for number in range(10_000)}, [["y" * 99] * 99] * 99],
)
def test_bounded_json_long_value_is_cut_inside(value: Any) -> None:
    text = bounded_json(value, 3000)
    assert len(text) <= 3000
    assert type(json.loads(text)) in (type(value), str)
    assert "…" in text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda nested: st.lists(nested) | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), nested),
    max_leaves=30,
)


@settings(max_examples=50, deadline=None)
@given(values, st.integers(min_value=30, max_value=300))
def test_bounded_json_any_value_is_json_within_limit(value: Any, limit: int) -> None:
    text = bounded_json(value, limit)
    json.loads(text)
    assert len(text) <= limit


@pytest.mark.parametrize("text", ["", "no JSON", "[", b"\xff", "[" * 100_000, '{"a":' * 100_000])
def test_parse_json_with_other_text_returns_none(text: str | bytes) -> None:
    assert parse_json(text) is None


def test_parse_json_with_json_returns_its_value() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
