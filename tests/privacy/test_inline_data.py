"""Payloads over the limit, in any attribute of any convention: a marker with type and size, and a valid chat."""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.privacy.inline_data import InlineData, marker
from support.exported import recorded, sent
from support.planted import CHATS, EVERY, IN, PICTURE, Made, span

LARGE = base64.b64encode(random.Random(1).randbytes(3000)).decode()  # 4000 characters
URL = f"data:image/png;base64,{LARGE}"
WAV, PDF = "[audio/wav, 3.0 kB, not kept]", "[application/pdf, 3.0 kB, not kept]"
PNG = "[image/png, 3.0 kB, not kept]"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_OTLP_BASE64_MAX_LENGTH", "3999")


PARTS: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
    ({"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": PNG}),
    ({"type": "image_url", "image_url": URL}, {"type": "text", "text": PNG}),
    ({"type": "input_image", "image_url": URL}, {"type": "input_text", "text": PNG}),
    (
        {"type": "input_audio", "input_audio": {"data": LARGE, "format": "wav"}},
        {"type": "input_text", "text": WAV},
    ),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": LARGE}},
        {"type": "text", "text": PNG},
    ),
    (
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": LARGE},
        {"type": "text", "content": PNG},
    ),
    ({"inline_data": {"mime_type": "image/png", "data": LARGE}}, {"text": PNG}),
    ({"image": {"format": "png", "source": {"bytes": LARGE}}}, {"text": PNG}),
    (
        {"type": "file", "mediaType": "application/pdf", "data": LARGE},
        {"type": "text", "content": PDF},
    ),
    ({"type": "image", "image": URL}, {"type": "text", "text": PNG}),
]


@pytest.mark.parametrize(("part", "instead"), PARTS, ids=lambda each: str(each)[:60])
def test_parts_of_messages(part: Mapping[str, Any], instead: Mapping[str, Any]) -> None:
    change = InlineData(3999)
    assert change.without({"a": [part, {"type": "text", "text": "x"}]}) == {
        "a": [instead, {"type": "text", "text": "x"}]
    }
    text = json.dumps([{"role": "user", "content": json.dumps([part])}])
    assert change.without(text) == json.dumps([{"role": "user", "content": json.dumps([instead])}])
    kept = InlineData(4000)
    assert kept.without(text) is text


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (URL, PNG),
        (f"see {URL} and {URL}.", f"see {PNG} and {PNG}."),
        (f"data:;base64,{LARGE}", "[base64, 3.0 kB, not kept]"),
        (f"data:text/plain;charset=utf-8;base64,{LARGE}", "[text/plain, 3.0 kB, not kept]"),
        (LARGE, "[base64, 3.0 kB, not kept]"),
        (f'{{"cut off": "{URL}', f'{{"cut off": "{PNG}'),
        ({"audio": {"data": LARGE}}, {"audio": {"data": "[base64, 3.0 kB, not kept]"}}),
        (b"\x00" * 5000, "[bytes, 5.0 kB, not kept]"),
        ("x" * 10_000, "x" * 10_000),
        ("words " * 2000, "words " * 2000),
        (json.dumps({"a": "x" * 5000}), json.dumps({"a": "x" * 5000})),
        ((1.0, 2.0), (1.0, 2.0)),
    ],
    ids=lambda each: str(each)[:40],
)
def test_other_values(value: Any, instead: Any) -> None:
    assert InlineData(3999).without(value) == instead


@pytest.mark.parametrize(
    ("characters", "size"),
    [(4, "3 B"), (1333, "999 B"), (4000, "3.0 kB"), (1_600_000, "1.2 MB"), (4_000_000_000, "3.0 GB")],
)
def test_sizes_as_people_write_them(characters: int, size: str) -> None:
    assert marker("image/png", characters) == f"[image/png, {size}, not kept]"


@pytest.mark.parametrize("mode", [{"enrich": False}, {}, {"compact": True}], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_every_convention(name: str, mode: Mapping[str, Any], limited: None) -> None:
    made = EVERY[name]
    large = _with(made, LARGE)
    body = sent([span(large)], **mode)
    assert LARGE[:200].encode() not in body
    assert (PNG.encode() in body) is (PICTURE in repr(made))
    assert (IN.encode() in body) is (IN in repr(made))


@pytest.mark.parametrize("name", [name for name in CHATS if PICTURE in repr(CHATS[name]) and name != "langchain"])
def test_the_chat_stays_one(name: str, limited: None) -> None:
    if name in ("pydantic-ai", "traceloop"):
        return  # agents and workflows have no chat
    found = json.loads(recorded(span(_with(CHATS[name], LARGE))).attributes["mlflow.spanInputs"])["messages"]
    said = [part["text"] for each in found for part in (each["content"] if isinstance(each["content"], list) else [])]
    assert PNG in said or any(PNG in str(each["content"]) for each in found)
    assert '"image_url"' not in json.dumps(found)


def _with(made: Made, picture: str) -> Made:
    """The same with another picture."""
    return _replaced(made[0], picture), [(name, _replaced(found, picture)) for name, found in made[1]]


def _replaced(value: Any, picture: str) -> Any:
    if isinstance(value, str):
        return value.replace(PICTURE, picture)
    if isinstance(value, Mapping):
        return {key: _replaced(item, picture) for key, item in value.items()}
    if isinstance(value, Sequence):
        return type(value)(_replaced(item, picture) for item in value)  # type: ignore[call-arg]
    return value


def test_none_are_kept_at_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH", "0")
    body = sent([span(CHATS["openinference"])])
    assert PICTURE.encode() not in body
    assert b"[image/png, 18 B, not kept]" in body


def test_the_limit() -> None:
    assert resolve({}, environment={}).privacy.base64_max_length == 512 * 1024
    variables = {"OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH": "10", "MLFLOW_OTLP_BASE64_MAX_LENGTH": "20"}
    assert resolve({}, environment=variables).privacy.base64_max_length == 20
    with pytest.raises(ConfigurationError, match="0 to keep none"):
        resolve({}, environment={"MLFLOW_OTLP_BASE64_MAX_LENGTH": "-1"})


def test_nothing_configured_nothing_copied() -> None:
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9")
    pipeline = exporter._pipeline
    assert pipeline is not None
    spans = [span(made) for made in EVERY.values()]
    assert pipeline.batcher.redactor.cleaned(spans) == (spans, 0)
    assert pipeline.batcher.redactor.cleaned(spans)[0] is spans
    exporter.shutdown(0)
