"""Ended spans, encoded spans with their attachments, requests assembled of them, and what spans take in memory.

Copies of spans, events and links keep the dropped counts of the originals: the SDK computes them from its bounded
containers, which a copy does not have.
"""

import json
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

from mlflow_otlp_exporter._internal.common.attribute_names import SESSION_ID, TRACE_SESSION

# Indices of a span context, which the API defines as a tuple that ends with its validity. The properties of these names
# cost five times as much, a dozen times per span.
TRACE_ID, SPAN_ID, IS_REMOTE, TRACE_FLAGS, TRACE_STATE = range(5)
# Measured with tracemalloc: a span without attributes takes 2.8 kB in memory, an attribute 100 bytes plus its text.
_SPAN_BYTES, _VALUE_BYTES = 2800, 100
_SIZED_TYPES = frozenset({bytes, tuple, list, dict})
_SESSION_KEYS = frozenset({SESSION_ID, TRACE_SESSION, "gen_ai.conversation.id"})
# What JSON escapes, the backslash first: the other escapes contain it.
_ESCAPES = {code: (bytes((code,)), json.dumps(chr(code))[1:-1].encode()) for code in (*b'\\"', *range(32))}


class DroppedCounts(NamedTuple):
    """Numbers of attributes, events and links that the SDK's limits dropped."""

    attributes: int = 0
    events: int = 0
    links: int = 0


def dropped_counts_of(span: ReadableSpan) -> DroppedCounts:
    return DroppedCounts(span.dropped_attributes, span.dropped_events, span.dropped_links)


class SpanData(ReadableSpan):
    """A span whose values are plain attributes: those of the SDK's class are properties, of which three copy.

    `values` are the arguments of `ReadableSpan`; the dropped counts are given.
    """

    # These replace the properties.
    name = ""
    context: Any = None
    parent: Any = None
    resource: Any = Resource({})
    attributes: Any = MappingProxyType({})
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()
    kind = SpanKind.INTERNAL
    status = Status()
    start_time: int | None = None
    end_time: int | None = None
    instrumentation_scope: InstrumentationScope | None = None
    dropped_attributes = dropped_events = dropped_links = 0

    def __init__(self, dropped: DroppedCounts, **values: Any) -> None:
        self.__dict__.update(values)
        self.dropped_attributes, self.dropped_events, self.dropped_links = dropped

    def get_span_context(self) -> SpanContext | None:
        return cast("SpanContext | None", self.context)


_get_core = operator.attrgetter("name", "context", "parent", "kind", "status", "start_time", "end_time")
_get_contents = operator.attrgetter("resource", "instrumentation_scope", "attributes", "events", "links")
_get_dropped = operator.attrgetter("dropped_attributes", "dropped_events", "dropped_links")


class SpanCopy(SpanData):
    """A copy of an ended span with other values; assigning each attribute takes half the time of a dictionary."""

    def __init__(self, span: ReadableSpan, **changes: Any) -> None:
        self.name, self.context, self.parent, self.kind, self.status, self.start_time, self.end_time = _get_core(span)
        self.resource, self.instrumentation_scope, attributes, self.events, self.links = _get_contents(span)
        self.dropped_attributes, self.dropped_events, self.dropped_links = _get_dropped(span)
        # Iterating over the SDK's own mapping takes ten times as long.
        self.attributes = attributes.copy() if hasattr(attributes, "copy") else attributes or {}
        if changes:
            self.__dict__.update(changes)


class EventData(Event):
    """An event with a given count of dropped attributes."""

    def __init__(self, name: str, attributes: Mapping[str, Any], timestamp: int, dropped: int) -> None:
        super().__init__(name, attributes, timestamp)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        return self._dropped


class LinkData(Link):
    """A link with a given count of dropped attributes."""

    def __init__(self, context: SpanContext, attributes: Mapping[str, Any], dropped: int) -> None:
        super().__init__(context, attributes)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        return self._dropped


def replace_event(event: Event, name: str, attributes: Mapping[str, Any]) -> Event:
    return EventData(name, attributes, event.timestamp, event.dropped_attributes)


def replace_link(link: Link, attributes: Mapping[str, Any]) -> Link:
    return LinkData(link.context, attributes, getattr(link, "dropped_attributes", 0))


def is_local_root(span: ReadableSpan) -> bool:
    return span.parent is None or span.parent.is_remote


def find_topmost(spans: Sequence[ReadableSpan]) -> ReadableSpan | None:
    """The span of a trace that started first, of those whose parent is not among them."""
    ids = {span.context.span_id for span in spans}
    tops = [span for span in spans if span.parent is None or span.parent.span_id not in ids]
    return min(tops, key=lambda span: span.start_time or 0, default=None)


def mark_local_root(spans: dict[int, ReadableSpan]) -> None:
    """Mark the topmost of a trace's spans, which are keyed by id, if there is no local root among them."""
    if spans and not any(map(is_local_root, spans.values())):
        top = find_topmost(list(spans.values()))
        if top is not None and top.context is not None:
            spans[top.context.span_id] = with_remote_parent(top)


def with_remote_parent(span: ReadableSpan) -> ReadableSpan:
    """A span whose parent is never exported, as if the parent were a span of another process."""
    parent = span.parent
    assert parent is not None
    remote = SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, parent.trace_state)
    return SpanCopy(span, parent=remote)


def apply_trace_sessions(spans: Sequence[ReadableSpan]) -> Sequence[ReadableSpan]:
    """Apply the session that the application set on a root, as enrichment does, to the spans that have another one.

    MLflow takes the session of a trace from the first span that has one. Spans that are sent before their root keep
    theirs.
    """
    attributes = [span.attributes or {} for span in spans]
    trace_ids = [span.context.trace_id if span.context else 0 for span in spans]
    sessions = {key: own[TRACE_SESSION] for key, own in zip(trace_ids, attributes, strict=True) if TRACE_SESSION in own}
    if not sessions:
        return spans
    applied: list[ReadableSpan] = []
    for span, trace_id, own in zip(spans, trace_ids, attributes, strict=True):
        if trace_id in sessions and not _SESSION_KEYS.isdisjoint(own):
            others = {key: value for key, value in own.items() if key != TRACE_SESSION}
            applied.append(SpanCopy(span, attributes={**others, SESSION_ID: sessions[trace_id]}))
        else:
            applied.append(span)
    return applied


class Utf8Text(bytes):
    """The value of an attribute that is a text and has been encoded already."""


def escape_json(content: bytes) -> bytes:
    """Texts in UTF-8 as they stand between quotes in JSON; bytes that no text has may separate them.

    This takes a fifth of the time of `json`, which looks at each character twice, in up to 4 bytes each.
    """
    for code in filter(content.__contains__, _ESCAPES):  # of the original: escapes consist of codes to be escaped
        content = content.replace(*_ESCAPES[code])
    return content


class Framing(NamedTuple):
    """The bytes around the children of a `ResourceSpans` or `ScopeSpans`: resource or scope, and schema URL."""

    before: bytes
    after: bytes


class Attachment(NamedTuple):
    """An image, a sound or a file of a trace, which MLflow stores as a file and spans refer to.

    Attributes:
        id: A UUID made of trace id and content: the same content is uploaded once per trace, and uploading it again
            changes nothing.
        ref: The reference that replaces the content in spans, as MLflow's SDK writes it and its console reads it.
        is_url: True if spans had the content as a data URL, False for base64 alone.
    """

    id: str
    ref: str
    content_type: str
    data: bytes
    is_url: bool = True

    def __repr__(self) -> str:
        return f"Attachment({self.ref!r})"  # without the content


LARGE_TEXT_BYTES = 1 << 20


class LargeBody:
    """The bytes of a span with a large text, or of a request with one, which are never joined: the texts exist once."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces: list[bytes] = []
        for is_large, run in groupby(pieces, lambda piece: len(piece) >= LARGE_TEXT_BYTES):
            run_pieces = list(run)
            self.pieces += run_pieces if is_large else [b"".join(run_pieces)]
        self._size = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:  # not for `*`, which allocates a list of this length
        return iter(self.pieces)

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


Body = bytes | LargeBody


class EncodedSpan(NamedTuple):
    """An encoded span.

    Attributes:
        is_root: True if the span has no parent, local or remote.
        body: The span as a field of a `ScopeSpans`, with tag and length.
        has_remote_parent: True if the span's parent is a span of another service.
        is_call: True if the span is a call of another service, which may continue the trace.
        attachments: Files to which the span refers and that are not uploaded yet.
    """

    trace_id: int
    span_id: int
    is_root: bool
    resource: Framing
    scope: Framing
    body: Body
    attachments: tuple[Attachment, ...] = ()
    has_remote_parent: bool = False
    is_call: bool = False


_get_body, _get_attachments = operator.attrgetter("body"), operator.attrgetter("attachments")


def varint(number: int) -> bytes:
    if 127 < number < 16_384:  # most lengths, in half the time
        return bytes((number & 127 | 128, number >> 7))
    pieces = bytearray()
    while number > 127:  # seven bits a byte
        pieces.append(number & 127 | 128)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


MAX_CACHED_LENGTH = 16_384


class _Varints(dict[int, bytes]):
    """Encoded lengths; nearly all lengths are short, and a lookup takes a fifth of the time of the loop."""

    def __missing__(self, number: int) -> bytes:
        encoded = varint(number)
        if number < MAX_CACHED_LENGTH:
            self[number] = encoded
        return encoded


VARINTS = _Varints()
encode_length = VARINTS.__getitem__


def encode_field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_length(len(content)) + content


def frame_span(span: bytes) -> bytes:
    """Encode the bytes of a span as a field of a `ScopeSpans`."""
    return encode_field(b"\x12", span)


def body_bytes_of(spans: Iterable[EncodedSpan]) -> int:
    return sum(map(len, map(_get_body, spans)))


def memory_bytes_of(spans: Sequence[EncodedSpan]) -> int:
    """Bytes of spans in memory, with their attachments, each counted once."""
    attachments = chain.from_iterable(map(_get_attachments, spans))
    sizes = {attachment.id: len(attachment.data) for attachment in attachments}
    return body_bytes_of(spans) + sum(sizes.values())


def estimate_bytes(span: ReadableSpan) -> int:
    """Estimate how many bytes a span takes in memory and in a request."""
    size = _SPAN_BYTES
    if attributes := span.attributes:
        # A copy, because iterating over the SDK's own mapping takes ten times as long.
        size += _estimate_values((attributes.copy() if hasattr(attributes, "copy") else attributes).values())
    for event in span.events:
        size += _SPAN_BYTES // 4
        if event.attributes:
            size += _estimate_values(event.attributes.values())
    return size + (_SPAN_BYTES // 4) * len(span.links)


def _estimate_values(values: Collection[Any]) -> int:
    size = _VALUE_BYTES * len(values)
    for value in values:
        kind = value.__class__
        if kind is str:
            size += len(value)
        elif kind in _SIZED_TYPES:
            size += len(value) if kind is bytes else _estimate_values(value.values() if kind is dict else value)
    return size


def encode_request(spans: Sequence[EncodedSpan]) -> bytes:
    return bytes(encode_body(spans))


def encode_body(spans: Sequence[EncodedSpan]) -> Body:
    """Encode an `ExportTraceServiceRequest` of spans, grouped by resource and scope."""
    resources: dict[Framing, dict[Framing, list[Body]]] = {}
    for (resource, scope), group in groupby(spans, operator.attrgetter("resource", "scope")):
        resources.setdefault(resource, {}).setdefault(scope, []).extend(map(_get_body, group))
    # Lengths are computed first, so that the bodies, which are nearly all bytes, are copied once.
    pieces: list[Any] = []
    for resource, scopes in resources.items():
        scope_pieces: list[Body] = []
        total = len(resource.before) + len(resource.after)
        for scope, bodies in scopes.items():
            size = len(scope.before) + sum(map(len, bodies)) + len(scope.after)
            head = b"\x12" + encode_length(size)
            total += len(head) + size
            scope_pieces += (head, scope.before, *bodies, scope.after)
        pieces += (b"\x0a", encode_length(total), resource.before, *scope_pieces, resource.after)
    try:
        return b"".join(pieces)
    except TypeError:  # a large body
        return LargeBody(chain.from_iterable([piece] if piece.__class__ is bytes else piece.pieces for piece in pieces))
