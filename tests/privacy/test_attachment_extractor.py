"""Images, sound and files out of spans of any convention, and back into them: nothing is lost on the way."""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracing.attachments import Attachment as TheirAttachment
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.attachment import Attachment, create_attachment
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, memory_bytes_of
from mlflow_otlp_exporter._internal.model.span_data import EventData
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor, inline_attachments
from mlflow_otlp_exporter._internal.spool import file_format as file_format_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, FileHeader

NOISE = random.Random(5).randbytes(12_000)
PNG, JPEG, PDF = b"\x89PNG\r\n\x1a\n" + NOISE, b"\xff\xd8\xff" + NOISE, b"%PDF-1.7\n" + NOISE
WAV, MP3, WEBP, MP4 = b"RIFF....WAVE" + NOISE, b"ID3" + NOISE, b"RIFF....WEBP" + NOISE, b"....ftypmp42" + NOISE
LIMIT = 512 * 1024


def span(
    number: int, attributes: Mapping[str, Any], events: Sequence[Event] = (), parent: int | None = None
) -> ReadableSpan:
    """An ended span of trace 7."""
    above = SpanContext(7, parent, is_remote=False) if parent else None
    context = SpanContext(7, number, is_remote=False)
    return ReadableSpan(
        "a",
        context,
        above,
        Resource({}),
        attributes,
        events,
        start_time=1,
        end_time=2,
    )


def named(value: Any) -> str | None:
    """What a case is called in the tests' output: not by its content."""
    return str(value)[:50] if isinstance(value, (dict, str)) else ""


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url_of(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{text_of(data)}"


def taken(attributes: Mapping[str, Any], limit: int = LIMIT) -> tuple[dict[str, Any], tuple[Attachment, ...]]:
    """A span's attributes and what was taken out of them."""
    extraction = AttachmentExtractor(limit)
    (made,) = extraction.extracted([span(1, attributes)])
    return dict(made.attributes or {}), extraction.attachments(made)


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


@pytest.mark.parametrize(("part", "kind", "data"), PARTS, ids=named)
def test_parts_of_any_convention(part: Any, kind: str, data: bytes) -> None:
    attributes, found = taken({"input.value": json.dumps({"messages": [{"role": "user", "content": [part]}]})})
    (each,) = found
    assert (each.content_type, each.data) == (kind, data)
    text = attributes["input.value"]
    assert text.count(each.ref) == 1
    assert len(text) < 1000
    assert json.loads(text)["messages"][0]["role"] == "user"


def test_structured_values_events_and_bytes() -> None:
    key = "llm.input_messages.0.message.contents.0.message_content.image.image.url"
    given_span = span(
        1,
        {key: url_of("image/png", PNG), "raw": PDF, "list": [url_of("image/jpeg", JPEG), "x"], "n": 1},
        [EventData("gen_ai.user.message", {"content": url_of("audio/wav", WAV)}, 3, 4)],
    )
    extraction = AttachmentExtractor(LIMIT)
    (made,) = extraction.extracted([given_span])
    attributes, (event,) = made.attributes or {}, made.events
    by_kind = {each.content_type: each.ref for each in extraction.attachments(made)}
    assert attributes[key] == by_kind["image/png"]
    assert attributes["raw"] == by_kind["application/pdf"]
    assert list(attributes["list"]) == [by_kind["image/jpeg"], "x"]  # type: ignore[arg-type]
    assert (event.attributes or {})["content"] == by_kind["audio/wav"]
    assert (event.name, event.timestamp, event.dropped_attributes) == ("gen_ai.user.message", 3, 4)
    assert attributes["n"] == 1
    assert made.get_span_context() == given_span.get_span_context()


@pytest.mark.parametrize(
    "value",
    [
        "short",
        url_of("image/png", PNG[:5000]),
        "words " * 5000,
        "0123456789abcdef" * 2000,  # a hexadecimal digest of something, not base64's whole alphabet
        text_of(NOISE),  # of no known kind, and small enough to stay
        "data:image/png;base64," + "A" * 12_001,  # of a length that base64 does not have
        "data:image/svg+xml;utf8," + "<svg>" * 3000,
        json.dumps({"data": "words " * 3000, "mime_type": "text/plain"}),
        7,
    ],
    ids=named,
)
def test_all_else_stays_and_the_span_is_the_very_same(value: Any) -> None:
    attributes, found = taken({"input.value": value})
    assert (attributes, found) == ({"input.value": value}, ())


def test_what_is_too_large_to_stay_and_of_no_known_kind_is_taken_as_it_is() -> None:
    attributes, (each,) = taken({"input.value": text_of(NOISE)}, limit=10_001)
    assert (each.content_type, each.data, attributes["input.value"]) == ("application/octet-stream", NOISE, each.ref)


def test_what_is_too_large_and_cannot_be_taken_becomes_a_text() -> None:
    broken = "data:image/png;base64," + "A" * 20_001
    attributes, found = taken({"input.value": broken}, limit=15_000)
    assert (attributes, found) == ({"input.value": "[image/png, 15 kB, not kept]".replace("15 kB", "15.0 kB")}, ())


def test_where_nothing_may_stay_all_is_taken() -> None:
    attributes, (each,) = taken({"image": url_of("image/png", b"tiny")}, limit=0)
    assert (each.data, attributes["image"]) == (b"tiny", each.ref)


def test_the_same_content_is_one_file_of_a_trace() -> None:
    extraction, url = AttachmentExtractor(LIMIT), url_of("image/png", PNG)
    spans = [span(1, {"input.value": url, "b": f"{url} {url}"}), span(2, {"input.value": url}, parent=1)]
    first, second = map(extraction.attachments, extraction.extracted(spans))
    assert len(first) == 1
    assert first == second
    assert first[0].data is second[0].data


def test_references_are_those_of_mlflows_sdk() -> None:
    made = create_attachment(7, "image/svg+xml", NOISE)
    assert TheirAttachment.parse_ref(made.ref) == {
        "attachment_id": made.id,
        "content_type": "image/svg+xml",
        "trace_id": "tr-" + "0" * 31 + "7",
        "size": len(NOISE),
    }
    others = {
        create_attachment(8, "image/svg+xml", NOISE).id,
        create_attachment(7, "image/svg", NOISE).id,
        create_attachment(7, "a/b", b"").id,
    }
    assert made.id not in others
    assert create_attachment(7, "image/svg+xml", NOISE) == made
    assert str(NOISE[:3]) not in repr(made)
    bare = create_attachment(7, "image/svg+xml", NOISE, is_url=False)
    assert (bare.id, TheirAttachment.parse_ref(bare.ref)) == (made.id, TheirAttachment.parse_ref(made.ref))


def test_base64_that_enrichment_made_a_url_of_comes_back_as_one() -> None:
    bare = create_attachment(7, "image/png", PNG, is_url=False)
    said = {"image_url": {"url": bare.ref}, "data": bare.ref}
    made = SpanEncoder().encode(span(1, {"mlflow.spanInputs": json.dumps(said)}))
    back = shown(inline_attachments(made._replace(attachments=(bare,)), [bare], LIMIT))
    assert json.loads(back["mlflow.spanInputs"]) == {
        "image_url": {"url": url_of("image/png", PNG)},
        "data": text_of(PNG),
    }


# Back again


def encoded(attributes: Mapping[str, Any], limit: int = LIMIT, events: tuple[Event, ...] = ()) -> EncodedSpan:
    extraction = AttachmentExtractor(limit)
    (made,) = extraction.extracted([span(1, attributes, list(events))])
    return SpanEncoder().encode(made)._replace(attachments=extraction.attachments(made))


def shown(found: EncodedSpan) -> dict[str, Any]:
    return {each.key: each.value.string_value for each in parse_span(found).attributes}


@pytest.mark.parametrize(("part", "kind", "data"), PARTS, ids=named)
def test_what_cannot_be_uploaded_stands_where_it_stood(part: Any, kind: str, data: bytes) -> None:
    said = {"messages": [{"role": "user", "content": [part]}]}
    found = encoded({"input.value": json.dumps(said), "model": "m"})
    assert [each.content_type for each in found.attachments] == [kind]
    back = inline_attachments(found, found.attachments, LIMIT)
    assert back.attachments == ()
    restored = json.loads(shown(back)["input.value"])
    expected = json.loads(json.dumps(said))
    if "song" in part:  # the alphabet for URLs becomes the usual one
        expected["messages"][0]["content"] = [{"song": text_of(data)}]
    assert restored == expected
    assert shown(back)["model"] == "m"


@pytest.mark.parametrize(
    ("part", "instead"),
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
    ids=named,
)
def test_what_is_too_large_then_becomes_a_text_as_it_would_have(part: Any, instead: Any) -> None:
    found = encoded({"input.value": json.dumps([part, {"type": "text", "text": "hi"}])})
    back = inline_attachments(found, found.attachments, 9999)
    assert json.loads(shown(back)["input.value"]) == [instead, {"type": "text", "text": "hi"}]
    assert back.attachments == ()


def test_openinferences_image_becomes_a_text_part() -> None:
    part = "llm.input_messages.0.message.contents.0.message_content."
    attributes = {f"{part}type": "image", f"{part}image.image.url": url_of("image/png", PNG), "b": "c"}
    found = encoded(attributes)
    assert shown(inline_attachments(found, found.attachments, LIMIT)) == attributes
    assert shown(inline_attachments(found, found.attachments, 9999)) == {
        f"{part}type": "text",
        f"{part}text": "[image/png, 12.0 kB, not kept]",
        "b": "c",
    }


def test_only_what_cannot_be_uploaded_comes_back() -> None:
    found = encoded({"a": url_of("image/png", PNG), "b": url_of("image/jpeg", JPEG)})
    png = next(each for each in found.attachments if each.content_type == "image/png")
    (jpeg,) = (each for each in found.attachments if each is not png)
    back = inline_attachments(found, [png], LIMIT)
    assert shown(back) == {"a": url_of("image/png", PNG), "b": jpeg.ref}
    assert back.attachments == (jpeg,)


def test_events_and_lists_come_back() -> None:
    url = url_of("image/png", PNG)
    found = encoded({"list": [url, "x"]}, events=(Event("e", {"content": url}, 1),))
    made = parse_span(inline_attachments(found, found.attachments, LIMIT))
    assert [each.string_value for each in made.attributes[0].value.array_value.values] == [url, "x"]
    assert made.events[0].attributes[0].value.string_value == url


@given(
    st.lists(st.sampled_from([PNG, JPEG, WAV, PDF, NOISE[:100]]), max_size=4),
    st.lists(st.text(max_size=30), min_size=4, max_size=4),
)
def test_whatever_is_between_stays(files: list[bytes], words: list[str]) -> None:
    content: list[dict[str, Any]] = [{"type": "text", "text": word} for word in words]
    content += [{"type": "image_url", "image_url": {"url": url_of("image/png", each)}} for each in files]
    said = json.dumps(content, ensure_ascii=False)
    found = encoded({"input.value": said})
    assert json.loads(shown(inline_attachments(found, found.attachments, LIMIT))["input.value"]) == content
    assert len(found.attachments) == len({each for each in files if len(each) > 100})


# On disk


def through_disk(spans: list[EncodedSpan]) -> list[EncodedSpan]:
    header = FileHeader(Destination(experiment_id="1"), len(spans), tuple(each.trace_id for each in spans), 1.0)
    return file_format_module.decode_file(file_format_module.encode_file(header, spans, DeliveryState()))[2]


def test_files_lie_on_disk_with_their_spans_each_once() -> None:
    extraction, url = AttachmentExtractor(LIMIT), url_of("image/png", PNG)
    spans: list[ReadableSpan] = [
        span(1, {"input.value": url}),
        span(2, {"input.value": url, "b": url_of("audio/wav", WAV)}, parent=1),
        span(3, {"input.value": "hello"}, parent=1),
    ]
    made = [
        SpanEncoder().encode(each)._replace(attachments=extraction.attachments(each))
        for each in extraction.extracted(spans)
    ]
    assert memory_bytes_of(made) == sum(len(each.body) for each in made) + len(PNG) + len(WAV)
    assert through_disk(made) == made
    plain = [each._replace(attachments=()) for each in made]
    # What was uploaded already is not kept.
    assert through_disk(plain) == plain


def test_references_that_others_wrote_are_no_files() -> None:
    (made,) = [SpanEncoder().encode(span(1, {"input.value": create_attachment(1, "image/png", PNG).ref}))]
    assert through_disk([made]) == [made]
