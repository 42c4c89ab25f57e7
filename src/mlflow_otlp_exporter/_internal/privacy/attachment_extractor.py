"""Images, sound and files out of spans, to be uploaded; and back into them, where that is not possible.

It comes after all that masks and hides: what is not to leave the app is not there any more.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.enrichment.values import select_text
from mlflow_otlp_exporter._internal.model.attachment import Attachment, create_attachment
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, frame_span
from mlflow_otlp_exporter._internal.model.span_data import replace_event
from mlflow_otlp_exporter._internal.privacy.inline_data import (
    IMAGE_URL,
    InlineData,
    data_url,
    is_bare,
    kind_of_part,
    marker,
    part_of_text,
)
from mlflow_otlp_exporter._internal.privacy.json_walk import transform_json
from mlflow_otlp_exporter._internal.privacy.redactor import RedactedSpan

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan

# Characters of base64 from which on a request of its own is worth it.
_SMALLEST = 10_000
_UNKNOWN = "application/octet-stream"
# Keys under which base64 stands by itself, and under which a URL is expected.
_URLS = frozenset({"url", "image_url", "uri", "image", "file_url"})
_PAYLOADS = frozenset({"data", "bytes", "b64_json", "base64", "file_data", "result", "content"})
_TYPES = ("mime_type", "media_type", "mimeType", "mediaType", "content_type")
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,50}/[\w.+-]{1,50}")
_BEGINNINGS = (
    (b"\x89PNG\r\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}
_SOUNDS = frozenset({"wav", "mp3", "ogg", "flac", "aac", "opus", "m4a"})


class AttachmentExtractor:
    """Takes what is to be uploaded out of spans.

    Args:
        longest: Characters of base64 that may stay in a span where nothing can be uploaded.
    """

    def __init__(self, longest: int) -> None:
        self._inline = InlineData(longest)
        self._smallest = min(_SMALLEST, longest + 1)
        self._worth = InlineData(self._smallest - 1)

    def extracted(self, spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
        """Spans with references instead of their images, sounds and files, which `attachments` tells.

        Args:
            spans: Spans that nothing has to be hidden in any more.
        """
        known: dict[str, bytes] = {}
        return [self._span(span, known) for span in spans]

    @staticmethod
    def attachments(span: ReadableSpan | EnrichedSpan) -> tuple[Attachment, ...]:
        """What was taken out of a span, which may have been enriched then."""
        taken = span if isinstance(span, ReadableSpan) else span.span
        return taken.attachments if isinstance(taken, RedactedSpan) else ()

    def _span(self, span: ReadableSpan, known: dict[str, bytes]) -> ReadableSpan:
        context = span.get_span_context()
        found = span.attributes or {}
        attributes: dict[str, Any] = dict(found.copy() if hasattr(found, "copy") else found)
        events = list(span.events)
        groups = [attributes, *(each.attributes or {} for each in events)]
        if context is None or not any(self._worth.holds(value) for group in groups for value in group.values()):
            return span
        finding = _Finding(context.trace_id, self._smallest, self._inline.longest, known)
        attributes = self._inline.without_payloads(finding.taken(attributes))
        events = [
            replace_event(each, each.name, self._inline.without_payloads(finding.taken(each.attributes or {})))
            for each in events
        ]
        made = RedactedSpan(
            span, span.name, attributes, events, span.links, span.status, span.resource, span.instrumentation_scope
        )
        made.attachments = tuple(finding.found.values())
        return made


class _Finding:
    """What one span holds; a change to its values, see `privacy._values.Change`."""

    def __init__(self, trace_id: int, smallest: int, longest: int, known: dict[str, bytes]) -> None:
        self._trace_id, self._smallest, self._longest, self._known = trace_id, smallest, longest, known
        self._url = data_url(smallest)
        self.found: dict[str, Attachment] = {}

    def taken(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes with references."""
        made: dict[str, Any] = {}
        for key, value in attributes.items():
            if isinstance(value, (bytes, bytearray)):
                content = bytes(value)
                made[key] = self._ref(_kind_of(content) or _UNKNOWN, content) if self._is_worth(content) else value
            else:
                made[key] = transform_json(value, self, key.rpartition(".")[2])
        return made

    def _is_worth(self, content: Any) -> bool:
        return len(content) >= self._smallest

    def _ref(self, kind: str, data: bytes, *, is_url: bool = False) -> str:
        made = create_attachment(self._trace_id, kind, data, is_url=is_url)
        # The same content in many spans of a trace takes memory once.
        made = replace(made, data=self._known.setdefault(made.id, made.data))
        self.found[made.ref] = made
        return made.ref

    def skips(self, text: str) -> bool:
        """Nothing of a short text is worth it."""
        return not self._is_worth(text)

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """An object that holds base64 beside what says which kind of content it is."""
        for name in _PAYLOADS & value.keys():
            text = value[name]
            if isinstance(text, str) and self._is_worth(text) and is_bare(text):
                data = _decoded(text)
                kind = _declared(value, key) or (_kind_of(data) if data else None)
                if data is not None and kind is not None:
                    return {**value, name: self._ref(kind, data)}, True
        return value, True

    def text(self, value: str, key: str) -> str:
        """Data URLs anywhere in a text, and a text that is nothing but base64."""

        def referred(match: re.Match[str]) -> str:
            data = _decoded(match[3])
            return match[0] if data is None else self._ref(match[1] or _UNKNOWN, data, is_url=True)

        changed = self._url.sub(referred, value)
        if self._is_worth(changed) and is_bare(changed) and (data := _decoded(changed)) is not None:
            kind = _kind_of(data)
            if kind is not None or len(changed) > self._longest:
                return self._ref(kind or _UNKNOWN, data)
        return changed if changed != value else value


def _decoded(text: str) -> bytes | None:
    """Base64 of either alphabet, with or without its padding; None if it is none."""
    plain = unquote(text) if "%" in text else text
    plain = plain.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        return None


def _declared(part: Mapping[str, Any], key: str) -> str | None:
    """The media type that a part of a message says."""
    said = select_text(*(part.get(name) for name in _TYPES))
    if said is not None and _MEDIA_TYPE.fullmatch(said):
        return said
    form = part.get("format")
    if isinstance(form, str) and form.lower() in _SOUNDS:
        return "audio/mpeg" if form.lower() == "mp3" else f"audio/{form.lower()}"
    return "audio/wav" if key in ("audio", "input_audio") and form is None and "data" in part else None


def _kind_of(data: bytes) -> str | None:
    """The media type that content itself shows; None if it does not."""
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "video/mp4"
    return next((kind for beginning, kind in _BEGINNINGS if data.startswith(beginning)), None)


# Back again


def inline_attachments(encoded: EncodedSpan, attachments: Sequence[Attachment], longest: int) -> EncodedSpan:
    """A span that says itself what cannot be uploaded, as it would have without attachments.

    Args:
        encoded: The span.
        attachments: What cannot be uploaded, of what it refers to.
        longest: Characters of base64 that may stay in a span; instead of more there is a text with type and size.
    """
    change = _Return({each.ref: each for each in attachments}, longest)
    span = parse_span(encoded)
    for attributes in (span.attributes, *(event.attributes for event in span.events)):
        for attribute in list(attributes):
            for value in _texts(attribute.value):
                if not change.skips(value.string_value):
                    _change(attribute, value, change, attributes)
    kept = tuple(each for each in encoded.attachments if each.ref not in change.by_ref)
    return encoded._replace(body=frame_span(span.SerializeToString()), attachments=kept)


def _change(attribute: KeyValue, value: AnyValue, change: _Return, attributes: Any) -> None:
    text = value.string_value
    made = transform_json(text, change, attribute.key.rpartition(".")[2])
    value.string_value = made
    if attribute.key.endswith(IMAGE_URL) and not made.startswith("data:"):
        # OpenInference's image becomes a text, or the chat would show a broken picture.
        part = attribute.key[: -len(IMAGE_URL)] + ".message_content."
        attribute.key = part + "text"
        kind = next((each for each in attributes if each.key == part + "type"), None)
        (attributes.add(key=part + "type") if kind is None else kind).value.string_value = "text"


def _texts(value: AnyValue) -> Iterator[AnyValue]:
    """All texts of a value."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        yield value
    elif kind == "array_value":
        for each in value.array_value.values:
            yield from _texts(each)
    elif kind == "kvlist_value":
        for pair in value.kvlist_value.values:
            yield from _texts(pair.value)


class _Return:
    """Puts content in place of references; a change to values, see `privacy._values.Change`."""

    def __init__(self, by_ref: Mapping[str, Attachment], longest: int) -> None:
        self.by_ref, self._longest = by_ref, longest

    def skips(self, text: str) -> bool:
        """Most texts have no reference."""
        return ATTACHMENT not in text

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """A part whose content is too long becomes one with a text."""
        part = read_media(value, kind_of_part(value))
        found = self.by_ref.get(part.url) or self.by_ref.get(part.data) if part is not None else None
        if found is not None and self._is_long(found):
            return part_of_text(value, self._said(found)), False
        return value, True

    def text(self, value: str, key: str) -> str:
        """References anywhere in a text."""
        for ref, each in self.by_ref.items():
            if ref in value:
                # Enrichment may have put base64 that stood by itself into a URL's place.
                url = (
                    "" if value == ref and not each.is_url and key not in _URLS else f"data:{each.content_type};base64,"
                )
                value = value.replace(ref, self._said(each) if self._is_long(each) else url + _encoded(each))
        return value

    def _is_long(self, found: Attachment) -> bool:
        return len(found.data) * 4 // 3 > self._longest

    @staticmethod
    def _said(found: Attachment) -> str:
        return marker(found.content_type, len(found.data) * 4 // 3)


def _encoded(found: Attachment) -> str:
    return base64.b64encode(found.data).decode()
