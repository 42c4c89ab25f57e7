"""Base64 over the limit in any attribute of any convention: a marker with type and size, and a valid chat."""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError, MLflowSpanExporter
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.privacy.inline_data import InlineDataReplacer, format_marker
from support.content_samples import ALL_SAMPLES, CHATS, IN, PICTURE, SpanContent, span
from support.offline_export import export_bytes, export_span

LARGE = base64.b64encode(random.Random(1).randbytes(3000)).decode()  # 4000 characters
URL = f"data:image/png;base64,{LARGE}"
WAV, PDF = "[audio/wav, 3.0 kB, not kept]", "[application/pdf, 3.0 kB, not kept]"
PNG = "[image/png, 3.0 kB, not kept]"


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(("part", "replacement"), PARTS, ids=lambda value: str(value)[:60])
def test_replace_with_message_part_makes_a_text_part(part: Mapping[str, Any], replacement: Mapping[str, Any]) -> None:
    replacer = InlineDataReplacer(3999)
    assert replacer.replace_in_value({"a": [part, {"type": "text", "text": "x"}]}) == {
        "a": [replacement, {"type": "text", "text": "x"}]
    }
    text = json.dumps([{"role": "user", "content": json.dumps([part])}])
    assert replacer.replace_in_value(text) == json.dumps([{"role": "user", "content": json.dumps([replacement])}])
    assert InlineDataReplacer(4000).replace_in_value(text) is text


@pytest.mark.parametrize(
    ("value", "replacement"),
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
    ids=lambda value: str(value)[:40],
)
def test_replace_with_other_value_inserts_markers_only_for_long_base64(value: Any, replacement: Any) -> None:
    assert InlineDataReplacer(3999).replace_in_value(value) == replacement


@pytest.mark.parametrize(
    ("characters", "size"),
    [(4, "3 B"), (1333, "999 B"), (4000, "3.0 kB"), (1_600_000, "1.2 MB"), (4_000_000_000, "3.0 GB")],
)
def test_format_marker_uses_si_units(characters: int, size: str) -> None:
    assert format_marker("image/png", characters) == f"[image/png, {size}, not kept]"


@pytest.mark.parametrize("mode", [{"enrich": False}, {}, {"compact": True}], ids=str)
@pytest.mark.parametrize("name", ALL_SAMPLES)
def test_export_in_every_convention_replaces_long_images(name: str, mode: Mapping[str, Any], short_limit: None) -> None:
    content = ALL_SAMPLES[name]
    body = export_bytes([span(_with_picture(content, LARGE))], **mode)
    assert LARGE[:200].encode() not in body
    assert (PNG.encode() in body) is (PICTURE in repr(content))
    assert (IN.encode() in body) is (IN in repr(content))


@pytest.mark.parametrize("name", [name for name in CHATS if PICTURE in repr(CHATS[name]) and name != "langchain"])
def test_export_with_long_image_sends_a_valid_chat(name: str, short_limit: None) -> None:
    if name in ("pydantic-ai", "traceloop"):
        return  # agents and workflows have no chat
    inputs = export_span(span(_with_picture(CHATS[name], LARGE))).attributes["mlflow.spanInputs"]
    messages = json.loads(inputs)["messages"]
    contents = [message["content"] for message in messages]
    texts = [part["text"] for content in contents if isinstance(content, list) for part in content]
    assert PNG in texts or any(PNG in str(content) for content in contents)
    assert '"image_url"' not in json.dumps(messages)


def _with_picture(content: SpanContent, picture: str) -> SpanContent:
    attributes, events = content
    return _replace_picture(attributes, picture), [(name, _replace_picture(event, picture)) for name, event in events]


def _replace_picture(value: Any, picture: str) -> Any:
    if isinstance(value, str):
        return value.replace(PICTURE, picture)
    if isinstance(value, Mapping):
        return {key: _replace_picture(item, picture) for key, item in value.items()}
    if isinstance(value, Sequence):
        return type(value)(_replace_picture(item, picture) for item in value)  # type: ignore[call-arg]
    return value


def test_export_with_limit_0_sends_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH", "0")
    body = export_bytes([span(CHATS["openinference"])])
    assert PICTURE.encode() not in body
    assert b"[image/png, 18 B, not kept]" in body


def test_resolve_reads_base64_limit() -> None:
    assert resolve({}, environment={}).privacy.base64_max_length == 512 * 1024
    variables = {"OPENINFERENCE_BASE64_IMAGE_MAX_LENGTH": "10", "MLFLOW_OTLP_BASE64_MAX_LENGTH": "20"}
    assert resolve({}, environment=variables).privacy.base64_max_length == 20
    with pytest.raises(ConfigurationError, match="0 to keep none"):
        resolve({}, environment={"MLFLOW_OTLP_BASE64_MAX_LENGTH": "-1"})


def test_redact_without_settings_returns_the_same_spans() -> None:
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9")
    pipeline = exporter._pipeline
    assert pipeline is not None
    spans = [span(content) for content in ALL_SAMPLES.values()]
    assert pipeline.batcher.redactor.redact_spans(spans) == (spans, 0)
    assert pipeline.batcher.redactor.redact_spans(spans)[0] is spans
    exporter.shutdown(0)
