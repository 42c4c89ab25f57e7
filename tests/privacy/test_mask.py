"""Masks: the values that they reach, the values that stay, and masks that fail."""

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
from mlflow_otlp_exporter._internal.privacy.mask import MASK_FAILED, Mask, make_mask
from mlflow_otlp_exporter._internal.privacy.mask_patterns import make_mask_function
from support.content_samples import ALL_SAMPLES, CHATS, MARKERS, SpanContent, span
from support.offline_export import export_bytes, export_span

SECRET = "planted-zebra-crossing"
MODES: list[dict[str, bool]] = [{"enrich": False}, {}, {"compact": True}]


def hide(text: str) -> str:
    return text.replace(SECRET, "***")


def wipe(text: str) -> str:
    return "***"


def ignore(error: BaseException) -> None:
    """Other tests check the log message of a failure."""


def mask_with(function: Callable[[str], str] = hide, *, mask_names: bool = False) -> Mask:
    return Mask(function, mask_names=mask_names, on_error=ignore)


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
        (object(), MASK_FAILED),
    ],
)
def test_mask_attribute_with_any_type_masks_texts(value: Any, masked: Any) -> None:
    result = mask_with().mask_attribute("key", value)
    assert result == masked
    assert type(result) is type(masked)


@pytest.mark.parametrize("depth", [10, 39, 41, 200, 2000])
def test_mask_attribute_with_any_depth_masks_the_text(depth: int) -> None:
    nested: Any = SECRET
    for _ in range(min(depth, 900)):
        nested = [nested]
    assert SECRET not in repr(mask_with().mask_attribute("key", nested))
    assert SECRET not in mask_with().mask_attribute("key", "[" * depth + f'"{SECRET}"' + "]" * depth)


@pytest.mark.parametrize(
    ("key", "value", "is_structural"),
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
def test_mask_attribute_with_structural_value_changes_nothing(key: str, value: Any, is_structural: bool) -> None:
    masked = mask_with(wipe).mask_attribute(key, value)
    assert (masked == value) is is_structural
    assert is_structural or "***" in str(masked)


@pytest.mark.parametrize(("number", "masked"), [(4111111111111111, "[card]"), (1_700_000_000_000, 1_700_000_000_000)])
def test_mask_attribute_with_number_masks_card_numbers_only(number: int, masked: Any) -> None:
    cards_and_phones = make_mask(("cards", "phones"), ignore)
    assert cards_and_phones is not None
    assert cards_and_phones.mask_attribute("key", number) == masked
    assert cards_and_phones.mask_attribute("key", {"a": float(number)}) == {"a": masked}
    assert cards_and_phones.mask_attribute("key", json.dumps({"a": number})) == json.dumps({"a": masked})
    assert mask_with(wipe).mask_attribute("gen_ai.usage.input_tokens", 1200) == 1200


@pytest.mark.parametrize(
    ("mask_names", "function", "name", "masked"),
    [
        (False, wipe, "gen_ai.input.messages", "gen_ai.input.messages"),
        (False, wipe, "two words", "***"),
        (False, wipe, "ada@example.com", "***"),
        (True, hide, "gen_ai.input.messages", "gen_ai.input.messages"),
        (True, hide, f"x.{SECRET}", "x.***"),
    ],
)
def test_mask_name_changes_field_names_only_on_request(
    mask_names: bool, function: Callable[[str], str], name: str, masked: str
) -> None:
    assert mask_with(function, mask_names=mask_names).mask_name(name) == masked


def raise_error(text: str) -> str:
    raise ValueError(text)


def raise_fatal_error(text: str) -> str:
    raise BaseException(text)  # noqa: TRY002 - as some libraries do


@pytest.mark.parametrize("wrong", [raise_error, raise_fatal_error, lambda _: None, lambda text: text.encode()])
def test_export_with_failing_mask_hides_texts_and_logs_once(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = ({"input.value": SECRET, "x": json.dumps({"a": SECRET})}, [("e", {"b": SECRET})])
    spans = [span(content, name=SECRET, status=Status(StatusCode.ERROR, SECRET), links=[{"c": SECRET}])]
    with caplog.at_level(logging.DEBUG):
        body = export_bytes([*spans, span(content, number=2)], mask=wrong)
    assert SECRET.encode() not in body
    assert MASK_FAILED.encode() in body
    records = [record for record in caplog.records if "Mask failed with" in record.getMessage()]
    assert len(records) == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", ALL_SAMPLES)
def test_export_in_every_convention_masks_all_content(name: str, mode: dict[str, bool]) -> None:
    def remove_markers(text: str) -> str:
        for marker in MARKERS:
            text = text.replace(marker, "***")
        return text

    body = export_bytes([span(ALL_SAMPLES[name])], mask=remove_markers, **mode)
    assert not any(marker.encode() in body for marker in MARKERS)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(ALL_SAMPLES)),
    st.integers(0, 2**32),
    st.sampled_from([{"enrich": False}, {}, {"compact": True}]),
)
def test_export_with_randomly_failing_mask_sends_no_content(name: str, seed: int, mode: dict[str, bool]) -> None:
    chance = random.Random(seed)

    def fail_randomly(text: str) -> str:
        if chance.random() < 0.3:
            raise RuntimeError(text)
        for marker in MARKERS:
            text = text.replace(marker, "***")
        return text

    body = export_bytes([span(ALL_SAMPLES[name], number=2, parent=1), span(({}, ()))], mask=fail_randomly, **mode)
    assert not any(marker.encode() in body for marker in MARKERS)


_LEAVES = st.one_of(
    st.just(SECRET), st.just(f"{SECRET}@x"), st.text(max_size=8), st.integers(), st.booleans(), st.none()
)
_NESTED = st.recursive(
    _LEAVES,
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=6), st.just(f"of {SECRET}")), values, max_size=4),
        values.map(json.dumps),
        values.map(lambda value: json.dumps(value, ensure_ascii=False)[:-1]),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_NESTED)
def test_mask_attribute_with_any_structure_masks_all_texts(value: Any) -> None:
    masked = mask_with().mask_attribute("key", value)
    assert SECRET not in str(masked)
    if SECRET not in str(value):
        assert masked == value


@pytest.mark.parametrize("name", [name for name in CHATS if name not in ("traceloop", "langchain")])
def test_export_with_mask_of_all_texts_sends_a_valid_chat(name: str) -> None:
    masked, plain = export_span(span(CHATS[name]), mask=wipe), export_span(span(CHATS[name]))
    assert masked.attributes["mlflow.spanType"] == plain.attributes["mlflow.spanType"]
    assert "planted" not in repr(masked)
    for side, key in (("mlflow.spanInputs", "messages"), ("mlflow.spanOutputs", "choices")):
        masked_items, plain_items = (json.loads(recording.attributes[side])[key] for recording in (masked, plain))
        assert [_shape(item) for item in masked_items] == [_shape(item) for item in plain_items]


def _shape(item: Any) -> Any:
    """Return the role of a message and the types of its parts."""
    message = item.get("message", item)
    content = message["content"]
    return message["role"], [part["type"] for part in content] if isinstance(content, list) else type(content)


def test_export_masks_names_status_links_scopes_and_resources() -> None:
    resource = Resource({"service.name": "bot", "process.command_args": (f"--key={SECRET}",)})
    content: SpanContent = (
        {"a": SECRET},
        [("exception", {"exception.message": SECRET, "exception.stacktrace": SECRET})],
    )
    status = Status(StatusCode.ERROR, f"{SECRET}: no")
    body = export_bytes(
        [span(content, name=SECRET, status=status, links=[{"l": SECRET}], resource=resource)], mask=hide
    )
    assert SECRET.encode() not in body
    assert b"***: no" in body
    assert b"--key=***" in body


def test_export_with_masked_tool_name_renames_the_span() -> None:
    content = ({"openinference.span.kind": "TOOL", "tool.name": f"look_up_{SECRET}"}, ())
    assert b"look_up_***" in export_bytes([span(content)], mask=hide)


def test_export_with_named_masks_replaces_their_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    content = ({"input.value": "ada@example.com pays with 4111 1111 1111 1111"}, ())
    assert b"[email] pays with 4111 1111" in export_bytes([span(content)], mask="email")
    assert b"[email] pays with [card]" in export_bytes([span(content)], mask=["email", re.compile("x{9}"), "cards"])
    assert b"ada@[masked]" in export_bytes([span(content)], mask=[re.compile(r"example\.com")])
    monkeypatch.setenv("MLFLOW_OTLP_MASK", "cards, email")
    assert b"[email] pays with [card]" in export_bytes([span(content)])


@pytest.mark.parametrize("wrong", ["emails", ["email", 3], 7, [re.compile(b"x")], b"email"])
def test_invalid_mask_raises(wrong: Any) -> None:
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
        ("oc login --token=sha256~abcdefghijklmnopqrstuvwxyz0123456789", "oc login --token=[key]"),
        (
            "GET https://host/x?user=ada&access_token=abc.def-1&page=2#y",
            "GET https://host/x?user=ada&access_token=[key]&page=2#y",
        ),
        ("https://host/blob?sv=2024&SIG=a%2Fb%3D'", "https://host/blob?sv=2024&SIG=[key]'"),
        ("psycopg2: postgresql://ada:p4ss@db/x, git@host:x", "psycopg2: postgresql://[key]@db/x, git@host:x"),
        ("what is ?key=v for", "what is ?key=v for"),
    ],
)
def test_built_in_patterns_replace_their_matches(text: str, masked: str) -> None:
    assert make_mask_function(("email", "keys", "cards", "phones"))(text) == masked


SECRETS = {
    "key": "sk-abcdefghijklmnopqrstuvwx1234",
    "AWS key": "AKIAABCDEFGHIJKLMNOP",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh",
    "card": "4111111111111111",
    "phone": "+44 20 7946 0958",
    "e-mail": "ada@example.com",
}
SHAPES: dict[str, Callable[[str], str | bytes]] = {
    "text around JSON": lambda secret: "Result: " + json.dumps({"a": f"mine:\n{secret}"}),
    "code fence": lambda secret: "```json\n" + json.dumps({"a": f"mine:\n{secret}"}) + "\n```",
    "JSON lines": lambda secret: (json.dumps({"a": f"mine:\n{secret}"}) + "\n") * 2,
    "truncated JSON": lambda secret: json.dumps({"a": f"mine:\r{secret} and so on", "b": "x"})[:-6],
    "truncated JSON in JSON": lambda secret: json.dumps({"a": json.dumps({"a": f"mine:\n{secret} ."}), "b": "x"})[:-6],
    "truncated JSON in JSON, escaped": lambda secret: json.dumps({"a": json.dumps(escape(secret)), "b": "x"})[:-6],
    "repr of a dict": lambda secret: str({"a": f"mine:\n{secret}"}),
    "repr of an exception": lambda secret: repr(ValueError(f"mine:\t{secret}")),
    "repr of a control character": lambda secret: repr(f"mine:\x0b{secret}"),
    "too deep JSON": lambda secret: "[" * 60 + json.dumps(f"mine:\n{secret}") + "]" * 60,
    "bytes of escaped JSON": lambda secret: ('{"a": "' + escape(secret) + '"}').encode(),
    "Markdown": lambda secret: f"_{secret}_",
    "field of ids": lambda secret: json.dumps({"id": secret}),
}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # Without the escape, a shorter match is found: the rest of the secret stands after it.
        ("Bearer abcdefgh\\u0065secret-rest cut", "Bearer [key] cut"),
        ("Bearer abcdefgh\\/secret-rest cut", "Bearer [key] cut"),
        ("+44 20 7946\\u00200958 cut", "[phone] cut"),
        ("4111 1111 1111\\u00201111 cut", "[card] cut"),
        ("https:\\/\\/ada:secret@host cut", "https://[key]@host cut"),
        ("https://host?a=1\\u0026token\\u003dsecret cut", "https://host?a=1&token=[key] cut"),
        (
            '{"mail": "x\\nada@example.com", cut',
            '{"mail": "x\nada@example.com", cut'.replace("ada@example.com", "[email]"),
        ),
        # What is not changed by the escapes keeps its form.
        ('{"mail": "x\\n ada@example.com\\n", cut', '{"mail": "x\\n [email]\\n", cut'),
    ],
)
def test_mask_attribute_with_escape_inside_of_a_match_masks_the_whole_match(text: str, masked: str) -> None:
    mask = make_mask(["email", "keys", "cards", "phones"], lambda error: pytest.fail(str(error)))
    assert mask is not None
    assert mask.mask_attribute("input.value", text) == masked


def escape(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("secret", SECRETS)
def test_built_in_patterns_replace_matches_after_escapes(secret: str, shape: str) -> None:
    mask = make_mask(["email", "keys", "cards", "phones"], lambda error: pytest.fail(str(error)))
    assert mask is not None
    masked = str(mask.mask_attribute("input.value", SHAPES[shape](SECRETS[secret])))
    assert SECRETS[secret] not in masked
    assert not any(code in masked for code in (escape(SECRETS[secret]), escape(SECRETS[secret]).replace("\\", "\\\\")))


@pytest.mark.parametrize(
    ("key", "value", "masked"),
    [
        ("http.request.header.authorization", ["Token planted"], "[key]"),
        ("http.request.header.x_api_key", ["planted"], "[key]"),
        ("http.request.header.x-amz-security-token", "planted", "[key]"),
        ("http.response.header.set_cookie", ["sid=planted"], "[key]"),
        ("http.request.header.content_type", ["text/plain"], ["text/plain"]),
        ("url.query", "access_token=planted&page=2", "access_token=[key]&page=2"),
        ("url.full", "https://ada:planted@host/x?api-key=planted", "https://[key]@host/x?api-key=[key]"),
        ("http.target", "/x?token=planted", "/x?token=[key]"),
        (
            "exception.message",
            "401 for url: https://host/x?signature=planted",
            "401 for url: https://host/x?signature=[key]",
        ),
        (
            "exception.stacktrace",
            "get('https://ada:planted@host')\nBearer planted12",
            "get('https://[key]@host')\nBearer [key]",
        ),
    ],
)
def test_mask_keys_hides_credentials_of_recorded_requests(key: str, value: Any, masked: Any) -> None:
    mask = make_mask(["keys"], lambda error: pytest.fail(str(error)))
    assert mask is not None
    assert mask.mask_attribute(key, value) == masked
    others = make_mask(["email"], lambda error: pytest.fail(str(error)))
    assert others is not None
    assert others.mask_attribute(key, value) == value
