"""Extract images, audio and files from spans for the upload, and inline them again if the upload is not possible.

Extraction comes after masking and hiding, so that no hidden content is uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlencode

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan
from mlflow_otlp_exporter._internal.enrichment.messages import read_media
from mlflow_otlp_exporter._internal.enrichment.values import select_text
from mlflow_otlp_exporter._internal.model.spans import Attachment, EncodedSpan, frame_span, replace_event
from mlflow_otlp_exporter._internal.privacy.inline_data import (
    IMAGE_URL,
    InlineDataReplacer,
    compile_data_url,
    format_marker,
    is_bare_base64,
    make_text_part,
    read_part_type,
)
from mlflow_otlp_exporter._internal.privacy.json_walk import transform_json
from mlflow_otlp_exporter._internal.privacy.redactor import RedactedSpan, copy_attributes

# Shorter base64 is not worth a request of its own.
_MIN_BASE64_LENGTH = 10_000
_UNKNOWN_TYPE = "application/octet-stream"
# Fields that hold a URL, and fields that hold base64 without a data URL.
_URL_FIELDS = frozenset({"url", "image_url", "uri", "image", "file_url"})
_BASE64_FIELDS = frozenset({"data", "bytes", "b64_json", "base64", "file_data", "result", "content"})
_MEDIA_TYPE_FIELDS = ("mime_type", "media_type", "mimeType", "mediaType", "content_type")
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,50}/[\w.+-]{1,50}")
_SIGNATURES = (
    (b"\x89PNG\r\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
_RIFF_SIGNATURES = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}
_AUDIO_FORMATS = frozenset({"wav", "mp3", "ogg", "flac", "aac", "opus", "m4a"})


def create_attachment(trace_id: int, content_type: str, data: bytes, *, is_url: bool = True) -> Attachment:
    name = f"tr-{trace_id:032x}"
    digest = hashlib.sha256(f"{name} {content_type} ".encode() + data).digest()
    attachment_id = str(uuid.UUID(bytes=digest[:16], version=5))
    # Readers ignore the order; it records `is_url`, because the content may have to replace the reference again.
    trace, size = ("trace_id", name), ("size", str(len(data)))
    query = urlencode([("content_type", content_type), *((trace, size) if is_url else (size, trace))])
    return Attachment(attachment_id, f"{ATTACHMENT}{attachment_id}?{query}", content_type, data, is_url)


class AttachmentExtractor:
    """Extracts attachments from spans.

    `base64_max_length` limits the characters of base64 that stay in a span if they cannot be uploaded.
    """

    def __init__(self, base64_max_length: int) -> None:
        self._inline_data = InlineDataReplacer(base64_max_length)
        self._min_length = min(_MIN_BASE64_LENGTH, base64_max_length + 1)
        self._length_check = InlineDataReplacer(self._min_length - 1)

    def extract(self, spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
        """Replace the images, audio and files of redacted spans by references; `attachments_of` returns them."""
        content_by_id: dict[str, bytes] = {}
        return [self._extract_from_span(span, content_by_id) for span in spans]

    @staticmethod
    def attachments_of(span: ReadableSpan | EnrichedSpan) -> tuple[Attachment, ...]:
        original = span if isinstance(span, ReadableSpan) else span.span
        return original.attachments if isinstance(original, RedactedSpan) else ()

    def _extract_from_span(self, span: ReadableSpan, content_by_id: dict[str, bytes]) -> ReadableSpan:
        context, attributes, events = span.get_span_context(), copy_attributes(span), list(span.events)
        has_long_value = self._length_check.has_long_value
        groups = [attributes, *(event.attributes or {} for event in events)]
        if context is None or not any(has_long_value(value) for group in groups for value in group.values()):
            return span
        scan = _SpanScan(context.trace_id, self._min_length, self._inline_data.max_length, content_by_id)
        attributes = self._inline_data.replace_in_attributes(scan.extract(attributes))
        events = [
            replace_event(
                event, event.name, self._inline_data.replace_in_attributes(scan.extract(event.attributes or {}))
            )
            for event in events
        ]
        result = RedactedSpan(span, attributes=attributes, events=events)
        result.attachments = tuple(scan.attachments.values())
        return result


class _SpanScan:
    """Transform that replaces the content of one span by references and collects its attachments."""

    def __init__(self, trace_id: int, min_length: int, max_length: int, content_by_id: dict[str, bytes]) -> None:
        self._trace_id, self._min_length, self._max_length = trace_id, min_length, max_length
        self._content_by_id = content_by_id
        self._data_url = compile_data_url(min_length)
        self.attachments: dict[str, Attachment] = {}

    def extract(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in attributes.items():
            if isinstance(value, (bytes, bytearray)):
                content = bytes(value)
                is_large = self._is_large_enough(content)
                result[key] = self._add(_detect_media_type(content) or _UNKNOWN_TYPE, content) if is_large else value
            else:
                result[key] = transform_json(value, self, key.rpartition(".")[2])
        return result

    def _is_large_enough(self, content: Any) -> bool:
        return len(content) >= self._min_length

    def _add(self, media_type: str, content: bytes, *, is_url: bool = False) -> str:
        attachment = create_attachment(self._trace_id, media_type, content, is_url=is_url)
        # Spans of a trace share the memory of equal content.
        content = self._content_by_id.setdefault(attachment.id, attachment.data)
        self.attachments[attachment.ref] = attachment._replace(data=content)
        return attachment.ref

    def can_skip(self, text: str) -> bool:
        return not self._is_large_enough(text)

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """Replace base64 in an object that states its media type, or whose content shows it."""
        for name in _BASE64_FIELDS & value.keys():
            text = value[name]
            if isinstance(text, str) and self._is_large_enough(text) and is_bare_base64(text):
                content = _decode_base64(text)
                media_type = _declared_media_type(value, key) or (_detect_media_type(content) if content else None)
                if content is not None and media_type is not None:
                    return {**value, name: self._add(media_type, content)}, True
        return value, True

    def visit_text(self, value: str, key: str) -> str:
        """Replace data URLs anywhere in a text, and a text that consists of base64 only."""
        replaced = self._data_url.sub(self._replace_match, value)
        if (
            self._is_large_enough(replaced)
            and is_bare_base64(replaced)
            and (content := _decode_base64(replaced)) is not None
        ):
            media_type = _detect_media_type(content)
            if media_type is not None or len(replaced) > self._max_length:
                return self._add(media_type or _UNKNOWN_TYPE, content)
        return replaced if replaced != value else value

    def _replace_match(self, match: re.Match[str]) -> str:
        content = _decode_base64(match[3])
        return match[0] if content is None else self._add(match[1] or _UNKNOWN_TYPE, content, is_url=True)


def _decode_base64(text: str) -> bytes | None:
    """Decode base64 of either alphabet, with or without padding; None if it is invalid."""
    plain = unquote(text) if "%" in text else text
    plain = plain.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return None


def _declared_media_type(part: Mapping[str, Any], key: str) -> str | None:
    media_type = select_text(*(part.get(name) for name in _MEDIA_TYPE_FIELDS))
    if media_type is not None and _MEDIA_TYPE.fullmatch(media_type):
        return media_type
    audio_format = part.get("format")
    if isinstance(audio_format, str) and audio_format.lower() in _AUDIO_FORMATS:
        return "audio/mpeg" if audio_format.lower() == "mp3" else f"audio/{audio_format.lower()}"
    return "audio/wav" if key in ("audio", "input_audio") and audio_format is None and "data" in part else None


def _detect_media_type(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return _RIFF_SIGNATURES.get(content[8:12])
    if content[4:8] == b"ftyp":
        return "video/mp4"
    return next((media_type for signature, media_type in _SIGNATURES if content.startswith(signature)), None)


def inline_attachments(encoded: EncodedSpan, attachments: Sequence[Attachment], base64_max_length: int) -> EncodedSpan:
    """Replace the references to attachments that cannot be uploaded by their content.

    A marker with type and size replaces content of more than `base64_max_length` characters.
    """
    transform = _Reinsert({attachment.ref: attachment for attachment in attachments}, base64_max_length)
    span = parse_span(encoded)
    for attributes in (span.attributes, *(event.attributes for event in span.events)):
        for attribute in list(attributes):
            for value in _iter_texts(attribute.value):
                if not transform.can_skip(value.string_value):
                    _reinsert_into(value, attribute, attributes, transform)
    remaining = tuple(attachment for attachment in encoded.attachments if attachment.ref not in transform.by_ref)
    return encoded._replace(body=frame_span(span.SerializeToString()), attachments=remaining)


def _reinsert_into(value: AnyValue, attribute: KeyValue, attributes: Any, transform: _Reinsert) -> None:
    text = transform_json(value.string_value, transform, attribute.key.rpartition(".")[2])
    value.string_value = text
    if attribute.key.endswith(IMAGE_URL) and not text.startswith("data:"):
        # OpenInference's image becomes a text, or the chat would show a broken picture.
        part = attribute.key[: -len(IMAGE_URL)] + ".message_content."
        attribute.key = part + "text"
        part_type = next((other for other in attributes if other.key == part + "type"), None)
        (attributes.add(key=part + "type") if part_type is None else part_type).value.string_value = "text"


def _iter_texts(value: AnyValue) -> Iterator[AnyValue]:
    field = value.WhichOneof("value")
    if field == "string_value":
        yield value
    elif field == "array_value":
        for item in value.array_value.values:
            yield from _iter_texts(item)
    elif field == "kvlist_value":
        for pair in value.kvlist_value.values:
            yield from _iter_texts(pair.value)


class _Reinsert:
    """Transform that replaces references by content."""

    def __init__(self, by_ref: Mapping[str, Attachment], max_length: int) -> None:
        self.by_ref, self._max_length = by_ref, max_length

    def can_skip(self, text: str) -> bool:
        return ATTACHMENT not in text

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """Replace a part whose content is too long by a text part."""
        part = read_media(value, read_part_type(value))
        attachment = self.by_ref.get(part.url) or self.by_ref.get(part.data) if part is not None else None
        if attachment is not None and self._is_too_long(attachment):
            return make_text_part(value, _marker_of(attachment)), False
        return value, True

    def visit_text(self, value: str, key: str) -> str:
        for ref, attachment in self.by_ref.items():
            if ref in value:
                # Enrichment may have moved base64 without a data URL to a field that needs a URL.
                is_bare = value == ref and not attachment.is_url and key not in _URL_FIELDS
                prefix = "" if is_bare else f"data:{attachment.content_type};base64,"
                is_too_long = self._is_too_long(attachment)
                base64_text = base64.b64encode(attachment.data).decode()
                content = _marker_of(attachment) if is_too_long else prefix + base64_text
                value = value.replace(ref, content)
        return value

    def _is_too_long(self, attachment: Attachment) -> bool:
        return len(attachment.data) * 4 // 3 > self._max_length


def _marker_of(attachment: Attachment) -> str:
    return format_marker(attachment.content_type, len(attachment.data) * 4 // 3)
