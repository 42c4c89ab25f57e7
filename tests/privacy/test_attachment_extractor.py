"""Extraction of images, audio and files from spans of any convention, and inlining without a loss."""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracing.attachments import Attachment as SdkAttachment
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import Attachment, EncodedSpan, EventData, memory_bytes_of
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import (
    AttachmentExtractor,
    create_attachment,
    inline_attachments,
)
from mlflow_otlp_exporter._internal.spool import file_format as file_format_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState

NOISE = random.Random(5).randbytes(12_000)
PNG, JPEG, PDF = b"\x89PNG\r\n\x1a\n" + NOISE, b"\xff\xd8\xff" + NOISE, b"%PDF-1.7\n" + NOISE
WAV, MP3, WEBP, MP4 = b"RIFF....WAVE" + NOISE, b"ID3" + NOISE, b"RIFF....WEBP" + NOISE, b"....ftypmp42" + NOISE
LIMIT = 512 * 1024


def span(
    number: int, attributes: Mapping[str, Any], events: Sequence[Event] = (), parent: int | None = None
) -> ReadableSpan:
    """An ended span of trace 7."""
    parent_context = SpanContext(7, parent, is_remote=False) if parent else None
    context = SpanContext(7, number, is_remote=False)
    return ReadableSpan("a", context, parent_context, Resource({}), attributes, events, start_time=1, end_time=2)


def case_id(value: Any) -> str | None:
    """Name a case without its content."""
    return str(value)[:50] if isinstance(value, (dict, str)) else ""


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url_of(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{text_of(data)}"


def extract(attributes: Mapping[str, Any], limit: int = LIMIT) -> tuple[dict[str, Any], tuple[Attachment, ...]]:
    """Return a span's attributes after the extractor, and its attachments."""
    extractor = AttachmentExtractor(limit)
    (extracted,) = extractor.extract([span(1, attributes)])
    return dict(extracted.attributes or {}), extractor.attachments_of(extracted)


PARTS: list[tuple[Any, str, bytes]] = [
    ({"type": "image_url", "image_url": {"url": url_of("image/png", PNG)}}, "image/png", PNG),
    ({"type": "input_image", "image_url": url_of("image/png", PNG)}, "image/png", PNG),
    ({"type": "input_audio", "input_audio": {"data": text_of(WAV), "format": "wav"}}, "audio/wav", WAV),
    ({"type": "input_audio", "input_audio": {"data": text_of(NOISE), "format": "mp3"}}, "audio/mpeg", NOISE),
    ({"audio": {"data": text_of(NOISE), "transcript": "hello"}}, "audio/wav", NOISE),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": text_of(JPEG)}},
        "image/jpeg",
        JPEG,
    ),
    ({"type": "blob", "modality": "image", "mime_type": "image/webp", "content": text_of(NOISE)}, "image/webp", NOISE),
    ({"inline_data": {"mime_type": "video/mp4", "data": text_of(NOISE)}}, "video/mp4", NOISE),
    ({"image": {"format": "png", "source": {"bytes": text_of(PNG)}}}, "image/png", PNG),
    ({"b64_json": text_of(PNG)}, "image/png", PNG),
    ({"type": "image_generation_call", "result": text_of(WEBP), "output_format": "webp"}, "image/webp", WEBP),
    (
        {"type": "file", "file": {"file_data": url_of("application/pdf", PDF), "filename": "a.pdf"}},
        "application/pdf",
        PDF,
    ),
    ({"type": "file", "mediaType": "application/pdf", "data": text_of(NOISE)}, "application/pdf", NOISE),
    ({"seen": f"look: {url_of('image/gif', NOISE)} there"}, "image/gif", NOISE),
    ({"clip": text_of(MP4)}, "video/mp4", MP4),
    ({"song": base64.urlsafe_b64encode(MP3).decode().rstrip("=")}, "audio/mpeg", MP3),
    ({"nested": json.dumps([{"image_url": {"url": url_of("image/png", PNG)}}])}, "image/png", PNG),
]


@pytest.mark.parametrize(("part", "kind", "data"), PARTS, ids=case_id)
def test_extract_with_part_of_any_convention_returns_its_content(part: Any, kind: str, data: bytes) -> None:
    attributes, attachments = extract({"input.value": json.dumps({"messages": [{"role": "user", "content": [part]}]})})
    (attachment,) = attachments
    assert (attachment.content_type, attachment.data) == (kind, data)
    text = attributes["input.value"]
    assert text.count(attachment.ref) == 1
    assert len(text) < 1000
    assert json.loads(text)["messages"][0]["role"] == "user"


def test_extract_with_structured_values_events_and_bytes_replaces_all() -> None:
    key = "llm.input_messages.0.message.contents.0.message_content.image.image.url"
    original = span(
        1,
        {key: url_of("image/png", PNG), "raw": PDF, "list": [url_of("image/jpeg", JPEG), "x"], "n": 1},
        [EventData("gen_ai.user.message", {"content": url_of("audio/wav", WAV)}, 3, 4)],
    )
    extractor = AttachmentExtractor(LIMIT)
    (extracted,) = extractor.extract([original])
    attributes, (event,) = extracted.attributes or {}, extracted.events
    by_kind = {attachment.content_type: attachment.ref for attachment in extractor.attachments_of(extracted)}
    assert attributes[key] == by_kind["image/png"]
    assert attributes["raw"] == by_kind["application/pdf"]
    assert list(attributes["list"]) == [by_kind["image/jpeg"], "x"]  # type: ignore[arg-type]
    assert (event.attributes or {})["content"] == by_kind["audio/wav"]
    assert (event.name, event.timestamp, event.dropped_attributes) == ("gen_ai.user.message", 3, 4)
    assert attributes["n"] == 1
    assert extracted.get_span_context() == original.get_span_context()


@pytest.mark.parametrize(
    "value",
    [
        "short",
        url_of("image/png", PNG[:5000]),
        "words " * 5000,
        "0123456789abcdef" * 2000,  # hexadecimal, without all classes of base64 characters
        text_of(NOISE),  # of unknown type, and short enough to stay
        "data:image/png;base64," + "A" * 12_001,  # a length that base64 cannot have
        "data:image/svg+xml;utf8," + "<svg>" * 3000,
        json.dumps({"data": "words " * 3000, "mime_type": "text/plain"}),
        7,
    ],
    ids=case_id,
)
def test_extract_with_other_values_changes_nothing(value: Any) -> None:
    attributes, attachments = extract({"input.value": value})
    assert (attributes, attachments) == ({"input.value": value}, ())


def test_extract_with_long_base64_of_unknown_type_returns_octet_stream() -> None:
    attributes, (attachment,) = extract({"input.value": text_of(NOISE)}, limit=10_001)
    assert (attachment.content_type, attachment.data) == ("application/octet-stream", NOISE)
    assert attributes["input.value"] == attachment.ref


def test_extract_with_long_invalid_base64_leaves_a_marker() -> None:
    broken = "data:image/png;base64," + "A" * 20_001
    attributes, attachments = extract({"input.value": broken}, limit=15_000)
    assert (attributes, attachments) == ({"input.value": "[image/png, 15.0 kB, not kept]"}, ())


def test_extract_with_limit_0_takes_small_content_too() -> None:
    attributes, (attachment,) = extract({"image": url_of("image/png", b"tiny")}, limit=0)
    assert (attachment.data, attributes["image"]) == (b"tiny", attachment.ref)


def test_extract_with_equal_content_in_a_trace_shares_one_attachment() -> None:
    extractor, url = AttachmentExtractor(LIMIT), url_of("image/png", PNG)
    spans = [span(1, {"input.value": url, "b": f"{url} {url}"}), span(2, {"input.value": url}, parent=1)]
    first, second = map(extractor.attachments_of, extractor.extract(spans))
    assert len(first) == 1
    assert first == second
    assert first[0].data is second[0].data


def test_references_equal_those_of_mlflows_sdk() -> None:
    attachment = create_attachment(7, "image/svg+xml", NOISE)
    assert SdkAttachment.parse_ref(attachment.ref) == {
        "attachment_id": attachment.id,
        "content_type": "image/svg+xml",
        "trace_id": "tr-" + "0" * 31 + "7",
        "size": len(NOISE),
    }
    others = {
        create_attachment(8, "image/svg+xml", NOISE).id,
        create_attachment(7, "image/svg", NOISE).id,
        create_attachment(7, "a/b", b"").id,
    }
    assert attachment.id not in others
    assert create_attachment(7, "image/svg+xml", NOISE) == attachment
    assert str(NOISE[:3]) not in repr(attachment)
    bare = create_attachment(7, "image/svg+xml", NOISE, is_url=False)
    assert (bare.id, SdkAttachment.parse_ref(bare.ref)) == (attachment.id, SdkAttachment.parse_ref(attachment.ref))


def test_inline_with_base64_in_a_url_field_returns_a_data_url() -> None:
    bare = create_attachment(7, "image/png", PNG, is_url=False)
    inputs = {"image_url": {"url": bare.ref}, "data": bare.ref}
    encoded = SpanEncoder().encode(span(1, {"mlflow.spanInputs": json.dumps(inputs)}))
    attributes = texts_of(inline_attachments(encoded._replace(attachments=(bare,)), [bare], LIMIT))
    assert json.loads(attributes["mlflow.spanInputs"]) == {
        "image_url": {"url": url_of("image/png", PNG)},
        "data": text_of(PNG),
    }


# Inlining


def encode(attributes: Mapping[str, Any], limit: int = LIMIT, events: tuple[Event, ...] = ()) -> EncodedSpan:
    extractor = AttachmentExtractor(limit)
    (extracted,) = extractor.extract([span(1, attributes, list(events))])
    return SpanEncoder().encode(extracted)._replace(attachments=extractor.attachments_of(extracted))


def texts_of(encoded: EncodedSpan) -> dict[str, Any]:
    return {attribute.key: attribute.value.string_value for attribute in parse_span(encoded).attributes}


@pytest.mark.parametrize(("part", "kind", "data"), PARTS, ids=case_id)
def test_inline_with_part_of_any_convention_restores_it(part: Any, kind: str, data: bytes) -> None:
    value = {"messages": [{"role": "user", "content": [part]}]}
    encoded = encode({"input.value": json.dumps(value), "model": "m"})
    assert [attachment.content_type for attachment in encoded.attachments] == [kind]
    inlined = inline_attachments(encoded, encoded.attachments, LIMIT)
    assert inlined.attachments == ()
    restored = json.loads(texts_of(inlined)["input.value"])
    expected = json.loads(json.dumps(value))
    if "song" in part:  # the alphabet for URLs becomes the usual one
        expected["messages"][0]["content"] = [{"song": text_of(data)}]
    assert restored == expected
    assert texts_of(inlined)["model"] == "m"


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        (
            {"type": "image_url", "image_url": {"url": url_of("image/png", PNG)}},
            {"type": "text", "text": "[image/png, 12.0 kB, not kept]"},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": text_of(WAV), "format": "wav"}},
            {"type": "input_text", "text": "[audio/wav, 12.0 kB, not kept]"},
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text_of(PNG)}},
            {"type": "text", "text": "[image/png, 12.0 kB, not kept]"},
        ),
        ({"b64_json": text_of(PNG), "n": 1}, {"b64_json": "[image/png, 12.0 kB, not kept]", "n": 1}),
        ({"seen": f"a {url_of('image/png', PNG)} b"}, {"seen": "a [image/png, 12.0 kB, not kept] b"}),
    ],
    ids=case_id,
)
def test_inline_with_content_over_the_limit_inserts_a_marker(part: Any, replacement: Any) -> None:
    encoded = encode({"input.value": json.dumps([part, {"type": "text", "text": "hi"}])})
    inlined = inline_attachments(encoded, encoded.attachments, 9999)
    assert json.loads(texts_of(inlined)["input.value"]) == [replacement, {"type": "text", "text": "hi"}]
    assert inlined.attachments == ()


def test_inline_with_openinference_image_over_the_limit_makes_a_text_part() -> None:
    part = "llm.input_messages.0.message.contents.0.message_content."
    attributes = {f"{part}type": "image", f"{part}image.image.url": url_of("image/png", PNG), "b": "c"}
    encoded = encode(attributes)
    assert texts_of(inline_attachments(encoded, encoded.attachments, LIMIT)) == attributes
    assert texts_of(inline_attachments(encoded, encoded.attachments, 9999)) == {
        f"{part}type": "text",
        f"{part}text": "[image/png, 12.0 kB, not kept]",
        "b": "c",
    }


def test_inline_with_one_of_two_attachments_leaves_the_other() -> None:
    encoded = encode({"a": url_of("image/png", PNG), "b": url_of("image/jpeg", JPEG)})
    png = next(attachment for attachment in encoded.attachments if attachment.content_type == "image/png")
    (jpeg,) = (attachment for attachment in encoded.attachments if attachment is not png)
    inlined = inline_attachments(encoded, [png], LIMIT)
    assert texts_of(inlined) == {"a": url_of("image/png", PNG), "b": jpeg.ref}
    assert inlined.attachments == (jpeg,)


def test_inline_with_events_and_lists_restores_them() -> None:
    url = url_of("image/png", PNG)
    encoded = encode({"list": [url, "x"]}, events=(Event("e", {"content": url}, 1),))
    parsed = parse_span(inline_attachments(encoded, encoded.attachments, LIMIT))
    assert [item.string_value for item in parsed.attributes[0].value.array_value.values] == [url, "x"]
    assert parsed.events[0].attributes[0].value.string_value == url


@given(
    st.lists(st.sampled_from([PNG, JPEG, WAV, PDF, NOISE[:100]]), max_size=4),
    st.lists(st.text(max_size=30), min_size=4, max_size=4),
)
def test_inline_after_extract_restores_files_and_texts(files: list[bytes], words: list[str]) -> None:
    content: list[dict[str, Any]] = [{"type": "text", "text": word} for word in words]
    content += [{"type": "image_url", "image_url": {"url": url_of("image/png", file)}} for file in files]
    encoded = encode({"input.value": json.dumps(content, ensure_ascii=False)})
    inlined = inline_attachments(encoded, encoded.attachments, LIMIT)
    assert json.loads(texts_of(inlined)["input.value"]) == content
    assert len(encoded.attachments) == len({file for file in files if len(file) > 100})


# On disk


def write_and_read(spans: list[EncodedSpan]) -> list[EncodedSpan]:
    content = file_format_module.encode_file(Destination(experiment_id="1"), spans, DeliveryState(), 1.0)
    return file_format_module.decode_file(content)[2]


def test_spool_file_with_shared_attachment_stores_it_once() -> None:
    extractor, url = AttachmentExtractor(LIMIT), url_of("image/png", PNG)
    spans: list[ReadableSpan] = [
        span(1, {"input.value": url}),
        span(2, {"input.value": url, "b": url_of("audio/wav", WAV)}, parent=1),
        span(3, {"input.value": "hello"}, parent=1),
    ]
    encoded_spans = [
        SpanEncoder().encode(extracted)._replace(attachments=extractor.attachments_of(extracted))
        for extracted in extractor.extract(spans)
    ]
    assert memory_bytes_of(encoded_spans) == sum(len(encoded.body) for encoded in encoded_spans) + len(PNG) + len(WAV)
    assert write_and_read(encoded_spans) == encoded_spans
    # Uploaded attachments are not stored.
    uploaded = [encoded._replace(attachments=()) for encoded in encoded_spans]
    assert write_and_read(uploaded) == uploaded


def test_spool_file_with_reference_of_another_writer_stores_no_attachment() -> None:
    encoded = SpanEncoder().encode(span(1, {"input.value": create_attachment(1, "image/png", PNG).ref}))
    assert write_and_read([encoded]) == [encoded]
