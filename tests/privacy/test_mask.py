"""Masks: what they reach, what they leave, and that nothing passes one that fails."""

import json
import logging
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace.status import Status, StatusCode

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter, configure
from mlflow_otlp_exporter._internal.privacy.mask import FAILED, Mask, make_mask
from mlflow_otlp_exporter._internal.privacy.patterns import masking
from support.exported import recorded, sent
from support.planted import CHATS, EVERY, MARKERS, Made, span

SECRET = "planted-zebra-crossing"
MODES: list[dict[str, bool]] = [{"enrich": False}, {}, {"compact": True}]


def hide(text: str) -> str:
    return text.replace(SECRET, "***")


def wipe(text: str) -> str:
    return "***"


def ignore(error: Exception) -> None:
    """What is told of a failure matters in other tests."""


def mask(function: Callable[[str], str] = hide, *, names_too: bool = False) -> Mask:
    return Mask(function, names_too=names_too, failed=ignore)


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        (f"say {SECRET}!", "say ***!"),
        ("nothing of it", "nothing of it"),
        ("", ""),
        (7, 7),
        (True, True),
        (None, None),
        (1.5, 1.5),
        ((SECRET, "b"), ["***", "b"]),
        ({"a": [SECRET], "b": {"c": SECRET, "d": 1}}, {"a": ["***"], "b": {"c": "***", "d": 1}}),
        (SECRET.encode(), "***"),
        (b"\xff" + SECRET.encode(), "\xff***"),
        (b"\xff", b"\xff"),
        (json.dumps({"a": SECRET}), '{"a": "***"}'),
        (json.dumps(json.dumps({"a": json.dumps([SECRET])})), json.dumps(json.dumps({"a": json.dumps(["***"])}))),
        ('{"a": "' + SECRET + '", "a": "b"}', '{"a": "b"}'),
        ('{"a": "' + SECRET, '{"a": "***'),
        ('{"a": "planted\\u002dzebra-crossing', '{"a": "***'),
        ('{"a": "planted\\u002dzebra-crossing"}', '{"a": "***"}'),
        ("text with planted\\u002dzebra-crossing", "text with ***"),
        ('{"a": 1.50, "b": "c"}', '{"a": 1.50, "b": "c"}'),
        ({f"to {SECRET}": 1}, {"to ***": 1}),
        ({f"to {SECRET}": None}, {"to ***": None}),
        (object(), FAILED),
    ],
)
def test_values(value: Any, masked: Any) -> None:
    made = mask().value("key", value)
    assert made == masked
    assert type(made) is type(masked)


@pytest.mark.parametrize("depth", [10, 39, 41, 200, 2000])
def test_values_nested_to_any_depth(depth: int) -> None:
    nested: Any = SECRET
    for _ in range(min(depth, 900)):
        nested = [nested]
    assert SECRET not in repr(mask().value("key", nested))
    assert SECRET not in mask().value("key", "[" * depth + f'"{SECRET}"' + "]" * depth)


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("openinference.span.kind", "LLM", True),
        ("mlflow.spanType", '"CHAT_MODEL"', True),
        ("gen_ai.operation.name", "chat", True),
        ("gen_ai.request.model", "claude-3-5@20240620", True),
        ("gen_ai.request.model", "ada@example.com", False),
        ("gen_ai.request.model", "sk-abcdefghijklmnopqrst", False),
        ("gen_ai.request.model", "a sentence", False),
        ("gen_ai.response.finish_reasons", ("stop",), True),
        ("gen_ai.response.finish_reasons", '["stop"]', True),
        ("input.mime_type", "application/json", True),
        ("llm.input_messages.0.message.role", "user", True),
        ("llm.input_messages.0.message.contents.0.message_content.type", "text", True),
        ("mlflow.experiment", "My own one", True),
        ("service.name", "bot", True),
        ("session.id", "s-1", False),
        ("user.id", "ada", False),
        ("tool.name", "weather", False),
        ("anything", "chat", False),
        ("m", {"role": "user"}, True),
        ("m", {"role": "me"}, False),
        ("m", {"type": "tool_call"}, True),
        ("m", {"type": SECRET}, False),
        ("m", {"id": "call_abc123"}, True),
        ("m", {"tool_call_id": "0f8fad5b-d9cb-469f-a165-70867728950e"}, True),
        ("m", {"id": "123-45-6789"}, False),
        ("m", {"id": ["langchain", "schema", "HumanMessage"]}, True),
        ("m", {"id": ["someone", "else"]}, False),
        ("m", {"model": "gpt-4o"}, True),
        ("m", {"mime_type": "image/png"}, True),
        ("m", {"name": "Ada"}, False),
    ],
)
def test_what_says_what_a_thing_is_stays(key: str, value: Any, kept: bool) -> None:
    made = mask(wipe).value(key, value)
    assert (made == value) is kept
    assert kept or "***" in str(made)


@pytest.mark.parametrize(("number", "masked"), [(4111111111111111, "[card]"), (1_700_000_000_000, 1_700_000_000_000)])
def test_numbers_that_a_mask_is_about(number: int, masked: Any) -> None:
    found = make_mask(("cards", "phones"), ignore)
    assert found is not None
    assert found.value("key", number) == masked
    assert found.value("key", {"a": float(number)}) == {"a": masked}
    assert found.value("key", json.dumps({"a": number})) == json.dumps({"a": masked})
    assert mask(wipe).value("gen_ai.usage.input_tokens", 1200) == 1200


@pytest.mark.parametrize(
    ("names_too", "function", "name", "masked"),
    [
        (False, wipe, "gen_ai.input.messages", "gen_ai.input.messages"),
        (False, wipe, "two words", "***"),
        (False, wipe, "ada@example.com", "***"),
        (True, hide, "gen_ai.input.messages", "gen_ai.input.messages"),
        (True, hide, f"x.{SECRET}", "x.***"),
    ],
)
def test_names(names_too: bool, function: Callable[[str], str], name: str, masked: str) -> None:
    assert mask(function, names_too=names_too).name(name) == masked


def raising(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize("wrong", [raising, lambda _: None, lambda text: text.encode()])
def test_what_a_mask_fails_at_is_hidden_and_told_once(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = ({"input.value": SECRET, "x": json.dumps({"a": SECRET})}, [("e", {"b": SECRET})])
    spans = [span(made, name=SECRET, status=Status(StatusCode.ERROR, SECRET), links=[{"c": SECRET}])]
    with caplog.at_level(logging.DEBUG):
        body = sent([*spans, span(made, number=2)], mask=wrong)
    assert SECRET.encode() not in body
    assert FAILED.encode() in body
    told = [record for record in caplog.records if "a mask failed" in record.getMessage()]
    assert len(told) == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_every_convention_is_masked_wholly(name: str, mode: dict[str, bool]) -> None:
    def without(text: str) -> str:
        for marker in MARKERS:
            text = text.replace(marker, "***")
        return text

    body = sent([span(EVERY[name])], mask=without, **mode)
    assert not any(marker.encode() in body for marker in MARKERS)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(EVERY)), st.integers(0, 2**32), st.sampled_from([{"enrich": False}, {}, {"compact": True}])
)
def test_a_mask_that_raises_at_random_lets_nothing_through(name: str, seed: int, mode: dict[str, bool]) -> None:
    chance = random.Random(seed)

    def moody(text: str) -> str:
        if chance.random() < 0.3:
            raise RuntimeError(text)
        for marker in MARKERS:
            text = text.replace(marker, "***")
        return text

    body = sent([span(EVERY[name], number=2, parent=1), span(({}, ()))], mask=moody, **mode)
    assert not any(marker.encode() in body for marker in MARKERS)


_LEAVES = st.one_of(
    st.just(SECRET), st.just(f"{SECRET}@x"), st.text(max_size=8), st.integers(), st.booleans(), st.none()
)
_NESTED = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.just(f"of {SECRET}")), inner, max_size=4),
        inner.map(json.dumps),
        inner.map(lambda value: json.dumps(value, ensure_ascii=False)[:-1]),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_NESTED)
def test_whatever_the_shape(value: Any) -> None:
    made = mask().value("key", value)
    assert SECRET not in str(made)
    if SECRET not in str(value):
        assert made == value


@pytest.mark.parametrize("name", [name for name in CHATS if name not in ("traceloop", "langchain")])
def test_a_mask_of_all_leaves_a_chat_that_can_be_shown(name: str) -> None:
    found, plain = recorded(span(CHATS[name]), mask=wipe), recorded(span(CHATS[name]))
    assert found.attributes["mlflow.spanType"] == plain.attributes["mlflow.spanType"]
    assert "planted" not in repr(found)
    for side, key in (("mlflow.spanInputs", "messages"), ("mlflow.spanOutputs", "choices")):
        ours, theirs = (json.loads(each.attributes[side])[key] for each in (found, plain))
        assert [_shape(each) for each in ours] == [_shape(each) for each in theirs]


def _shape(message: Any) -> Any:
    """A message without what was said."""
    inner = message.get("message", message)
    content = inner["content"]
    return inner["role"], [part["type"] for part in content] if isinstance(content, list) else type(content)


def test_names_status_links_scopes_and_resources_are_masked() -> None:
    resource = Resource({"service.name": "bot", "process.command_args": (f"--key={SECRET}",)})
    made: Made = ({"a": SECRET}, [("exception", {"exception.message": SECRET, "exception.stacktrace": SECRET})])
    status = Status(StatusCode.ERROR, f"{SECRET}: no")
    body = sent([span(made, name=SECRET, status=status, links=[{"l": SECRET}], resource=resource)], mask=hide)
    assert SECRET.encode() not in body
    assert b"***: no" in body
    assert b"--key=***" in body


def test_a_tool_is_renamed_to_its_masked_name() -> None:
    made = ({"openinference.span.kind": "TOOL", "tool.name": f"look_up_{SECRET}"}, ())
    assert b"look_up_***" in sent([span(made)], mask=hide)


def test_by_name_and_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ({"input.value": "ada@example.com pays with 4111 1111 1111 1111"}, ())
    assert b"[email] pays with 4111 1111" in sent([span(made)], mask="email")
    assert b"[email] pays with [card]" in sent([span(made)], mask=["email", re.compile("x{9}"), "cards"])
    assert b"ada@[masked]" in sent([span(made)], mask=[re.compile(r"example\.com")])
    monkeypatch.setenv("MLFLOW_OTLP_MASK", "cards, email")
    assert b"[email] pays with [card]" in sent([span(made)])


@pytest.mark.parametrize("wrong", ["emails", ["email", 3], 7, [re.compile(b"x")], b"email"])
def test_masks_that_are_none(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="mask"):
        MLflowSpanExporter(endpoint="http://127.0.0.1:9", mask=wrong)
    with pytest.raises(ConfigurationError, match="mask"):
        configure(mask=wrong)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail ada.lovelace+x@mail.example.co.uk.", "mail [email]."),
        ("Bücher@bücher.example", "[email]"),
        ("a @ b", "a @ b"),
        ("4111 1111 1111 1111 12/27", "[card] 12/27"),
        ("5 4111-1111-1111-1111 and 378282246310005", "5 [card] and [card]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("0f8fad5b-d9cb-469f-a165-70867728950e", "0f8fad5b-d9cb-469f-a165-70867728950e"),
        ("1700000000000000000", "1700000000000000000"),
        ("+49 30 901820 or +1 (415) 555-2671", "[phone] or [phone]"),
        ("415-555-2671", "[phone]"),
        (
            "2026-11-22 15:06:16.123456 10.0.0.1:5000 3.14159265358979",
            "2026-11-22 15:06:16.123456 10.0.0.1:5000 3.14159265358979",
        ),
        ("sk-proj-abcdefghijklmnop1234", "[key]"),
        ("task-management-systems-are-fine", "task-management-systems-are-fine"),
        ("Authorization: Bearer abcdef0123456789==", "Authorization: Bearer [key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_", "[key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("ghp_" + "a1" * 15, "[key]"),
        ("github_pat_" + "a1" * 15, "[key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- x", "[key] x"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut", "[key]"),
    ],
)
def test_ready_made_expressions(text: str, masked: str) -> None:
    assert masking(("email", "keys", "cards", "phones"))(text) == masked
