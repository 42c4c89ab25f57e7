"""Any value becomes JSON, of a bounded length."""

import array
import datetime as dt
import ipaddress
import json
import math
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import ChainMap, Counter, OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import attrs
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel, Field, SecretStr, field_serializer

from mlflow_otlp_exporter._internal.common.json_values import bounded_json


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


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Rights(Flag):
    READ = 1
    WRITE = 2


class Word(str):
    """A text whose methods raise."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class Point(NamedTuple):
    x: int
    y: Decimal


OldPoint = namedtuple("OldPoint", "x y")  # noqa: PYI024 - the older form of the same


@attrs.define
class City:
    name: str
    area: Decimal
    password: str = attrs.field(default="hidden", repr=False)


@dataclass(slots=True)
class Key:
    name: str
    secret: str = field(default="hidden", repr=False)


class Account(BaseModel):
    name: str
    key: SecretStr = SecretStr("hidden")
    internal: str = Field(default="hidden", exclude=True)


class Unserializable(BaseModel):
    name: str = "a"
    internal: str = Field(default="hidden", exclude=True)

    @field_serializer("name")
    def serialize(self, value: str) -> str:
        raise RuntimeError(value)


class OldModel:
    """As pydantic 1 has them."""

    __fields__: ClassVar[Mapping[str, Any]] = dict.fromkeys(["name"])

    def dict(self) -> dict[str, Any]:
        return {"name": "old"}


class Struct:
    """As msgspec has them."""

    __struct_fields__ = ("name",)
    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = "struct"


class Weather:
    def __init__(self) -> None:
        self.city, self.point, self._hidden, self.api_key = "Lyon", Point(1, Decimal("2.50")), 1, "hidden"


class Slots:
    __slots__ = ("empty", "number")

    def __init__(self) -> None:
        self.number = 1


class Client:
    def __init__(self) -> None:
        self.url = "hidden"

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("1.10"), "1.10"),
        (Fraction(1, 3), "1/3"),
        (uuid.UUID(int=3), "00000000-0000-0000-0000-000000000003"),
        (PurePosixPath("/a/b"), "/a/b"),
        (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
        (dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone.utc), "2026-01-02T03:00:00+00:00"),
        (dt.time(3), "03:00:00"),
        (dt.timedelta(hours=26), "1 day, 2:00:00"),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Rights.READ | Rights.WRITE, 3),
        (Word("word"), "word"),
        (b"text", "text"),
        (bytearray(b"text"), "text"),
        (memoryview(b"text"), "text"),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Point(1, Decimal("2.50")), {"x": 1, "y": "2.50"}),
        (OldPoint(1, [2]), {"x": 1, "y": [2]}),
        (range(3), [0, 1, 2]),
        (deque([1, (2,)]), [1, [2]]),
        (array.array("d", [1.5]), [1.5]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        (ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (SimpleNamespace(a=Decimal(1)), {"a": "1"}),
        (re.compile("a+"), "a+"),
        (ValueError("no umbrella"), "ValueError: no umbrella"),
        (KeyError(), "KeyError"),
        ({Color.RED: 1, None: 2, 1.5: 3, b"k": 4, uuid.UUID(int=1): 5}, None),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float64("nan"), "nan"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([Decimal(1), None], dtype=object), ["1", None]),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        (pd.NaT, None),
        (pd.Series([1, 2]), [1, 2]),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        (pd.Period("2026-01"), "2026-01"),
        (City("Lyon", Decimal("47.87")), {"name": "Lyon", "area": "47.87"}),
        (Key("a"), {"name": "a"}),
        (Account(name="a"), {"name": "a", "key": "**********"}),
        (Unserializable(), {"name": "a"}),
        (OldModel(), {"name": "old"}),
        (Struct(), {"name": "struct"}),
        (Weather(), {"city": "Lyon", "point": {"x": 1, "y": "2.50"}, "api_key": "***"}),
        (Slots(), {"number": 1}),
        (Client(), "<Client>"),
        (object(), "<object>"),
        ((number for number in [1]), "<generator object <genexpr>>"),
        (map(int, []), "<map>"),
        (10**5000, hex(10**5000)),
        ({"deep": [{"er": (Point(1, Decimal(1)), {uuid.UUID(int=1)})}]}, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounded_json_everyday_type_becomes_its_json_form(value: Any, expected: Any) -> None:
    if type(value) is dict:
        uuid_text = "00000000-0000-0000-0000-000000000001"
        expected = (
            {"deep": [{"er": [{"x": 1, "y": "1"}, [uuid_text]]}]}
            if "deep" in value
            else {"red": 1, "null": 2, "1.5": 3, "k": 4, uuid_text: 5}
        )
    assert json.loads(bounded_json({"value": value}))["value"] == expected
    assert json.loads(bounded_json(value)) == expected


def test_bounded_json_models_of_llm_libraries_have_their_fields() -> None:
    message = json.loads(bounded_json([AIMessage("hi"), Document("text", metadata={"n": Decimal(1)})]))
    assert (message[0]["content"], message[0]["type"]) == ("hi", "ai")
    assert (message[1]["page_content"], message[1]["metadata"]) == ("text", {"n": "1"})
    completion = json.loads(bounded_json(ChatCompletionMessage(role="assistant", content="hi")))
    assert (completion["role"], completion["content"]) == ("assistant", "hi")


class Tensor:
    """As PyTorch has them on another device, whose memory must not be read."""

    shape, dtype, device = (2, 3), "torch.float32", "cuda:0"

    def tolist(self) -> list[float]:
        raise AssertionError("read")


def test_bounded_json_large_array_is_described() -> None:
    expected = {"shape": [1000, 1000], "dtype": "float64", "first": [0.0] * 10}
    assert json.loads(bounded_json(np.zeros((1000, 1000)))) == expected
    assert json.loads(bounded_json(Tensor())) == {"shape": [2, 3], "dtype": "torch.float32", "device": "cuda:0"}
    rows = json.loads(bounded_json(pd.DataFrame(np.zeros((100_000, 50)))))
    assert rows[0]["0"] == 0.0
    assert rows[-1] == "… 99600 more"


class Fatal(BaseException):
    pass


class WithoutAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise Fatal


class WithoutRepr:
    def __repr__(self) -> str:
        raise Fatal


class WithEndlessRepr:
    def __repr__(self) -> str:
        return repr(self)


class WithBadProperty:
    def __init__(self) -> None:
        self.good = 1

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise Fatal


class BadMapping(UserDict[str, int]):
    def __len__(self) -> int:
        raise Fatal


class ChangingMapping(UserDict[str, int]):
    def __iter__(self) -> Iterator[str]:
        for key in self.data:
            self.data[key * 2] = 1
            yield key


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (WithoutAttributes(), "<WithoutAttributes: not readable (Fatal)>"),
        (WithoutRepr(), "<WithoutRepr: no repr (Fatal)>"),
        (WithEndlessRepr(), "<WithEndlessRepr: no repr (RecursionError)>"),
        (WithBadProperty(), {"good": 1}),
        (BadMapping(a=1), "<BadMapping: not readable (Fatal)>"),
        (ChangingMapping(a=1), "<ChangingMapping: not readable (RuntimeError)>"),
        (CIRCULAR, {"self": "<circular: dict>"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounded_json_value_whose_code_raises_costs_only_itself(value: Any, expected: Any) -> None:
    assert json.loads(bounded_json({"bad": value, "good": 1})) == {"bad": expected, "good": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_bounded_json_signal_in_main_thread_is_raised(error: type[BaseException]) -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise error

    with pytest.raises(error):
        bounded_json(Interrupted())
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(bounded_json(Interrupted())))
    thread.start()
    thread.join()
    assert texts == [f'"<Interrupted: no repr ({error.__name__})>"']


def test_bounded_json_does_not_consume_iterators() -> None:
    numbers = iter([1, 2])
    bounded_json({"numbers": numbers})
    assert list(numbers) == [1, 2]


def shared_lists() -> Any:
    value: Any = 0
    for _ in range(4):
        value = [value] * 1000
    return value


@pytest.mark.parametrize(
    "create",
    [
        shared_lists,
        lambda: ["x" * 1_000_000] * 10_000,
        lambda: range(10**15),
        lambda: list(range(1_000_000)),
        lambda: [SimpleNamespace(number=Decimal(1))] * 1_000_000,
        lambda: {"a" * 2_000_000: 1},
    ],
)
def test_bounded_json_huge_value_takes_bounded_time(create: Callable[[], Any]) -> None:
    value = create()
    start = time.process_time()
    text = bounded_json(value)
    assert time.process_time() - start < 3
    assert len(text) <= 1 << 20
    assert "…" in text
    json.loads(text)


def test_bounded_json_imports_no_package() -> None:
    code = (
        "import sys, mlflow_otlp_exporter; print({'numpy', 'pandas', 'pydantic', 'attr', 'torch'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
