"""Encodes spans directly to OTLP bytes; upstream's protobuf object per attribute takes nine tenths of an export's time.

Field numbers are those of `opentelemetry/proto/trace/v1/trace.proto` and `common/v1/common.proto` (OTLP 1.x, stable). A
tag is `number << 3 | wire type`; wire types are 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.encoding.sanitizer import MAX_NESTING, has_many_brackets, mark_nested_texts
from mlflow_otlp_exporter._internal.model.spans import (
    IS_REMOTE,
    LARGE_TEXT_BYTES,
    MAX_CACHED_LENGTH,
    SPAN_ID,
    TRACE_ID,
    TRACE_STATE,
    VARINTS,
    Body,
    EncodedSpan,
    Framing,
    LargeBody,
    Utf8Text,
    encode_field,
    encode_length,
    varint,
)

# Parsers stop at 100 nested messages: a map inside a map adds three, and the request around the value has seven.
_MAX_DEPTH = 24
_MAX_CACHED_KEYS, _MAX_CACHED_KEY_BYTES = 4096, 128
# A text of that many bytes is never nested too deeply.
_MAX_CACHED_PREFIXES, _MAX_CACHED_TEXT_BYTES = 8192, MAX_NESTING
# First bytes of JSON objects and arrays, and of the white space that may precede them.
_JSON_STARTS = b"[{ \t\n\r\v\f\x1c\x1d\x1e\x1f\xc2\xe1\xe2\xe3"
_MAX_CACHED_OWNERS = 256
# Of resources, scopes and events, links, spans.
_SPAN_ATTRIBUTE_TAG = b"\x4a"
_ATTRIBUTE_TAGS = (b"\x0a", b"\x1a", b"\x22", _SPAN_ATTRIBUTE_TAG)
_MASK_64_BITS, _MAX_TIME = (1 << 64) - 1, (1 << 63) - 1
# Trace id in two halves and span id, with their tags; parent's span id; kind, start and end.
_pack_ids, _pack_parent = struct.Struct(">HQQHQ").pack, struct.Struct(">HQ").pack
_pack_kind_and_times = struct.Struct("<BBBQBQ").pack
# Of a status without description, by the value of its code.
_STATUSES = (b"\x7a\x00", b"\x7a\x02\x18\x01", b"\x7a\x02\x18\x02")
# Flags as field 16 of a span and field 6 of a link, fixed32. Bit 8: bit 9 is valid. Bit 9: the parent is remote.
_LOCAL_FLAGS, _REMOTE_FLAGS = (b"\x85\x01" + struct.pack("<I", flags) for flags in (0x100, 0x300))
_LOCAL_LINK_FLAGS, _REMOTE_LINK_FLAGS = (b"\x35" + struct.pack("<I", flags) for flags in (0x100, 0x300))
_pack_double = struct.Struct("<d").pack
_pack_fixed64 = struct.Struct("<Q").pack


# The first piece of a span with a large text, empty as that of other spans.
_LARGE_MARK = Utf8Text()
_CALL_KINDS = (SpanKind.CLIENT, SpanKind.PRODUCER)
# GenAI instrumentations give calls of models and tools the kind CLIENT; no model continues a trace.
MODEL_CALL_KEYS = frozenset({"gen_ai.operation.name", "gen_ai.system"})


class Repairs:
    """Values that could not be encoded unchanged, since start."""

    repaired = 0  # characters that UTF-8 does not have, integers beyond 64 bits
    left_out = 0  # types that OTLP does not have, values nested too deeply


class _Unencodable(Exception):
    """A value of a type that OTLP does not have."""


class _TextHeads(dict[int, bytes]):
    """What stands between the key of an attribute and its text, by the length of the text."""

    def __missing__(self, size: int) -> bytes:
        length = encode_length(size)
        head = b"\x12" + encode_length(size + len(length) + 1) + b"\x0a" + length
        if size < MAX_CACHED_LENGTH:
            self[size] = head
        return head


_TEXT_HEADS = _TextHeads()


class _Prefixes(dict[int, bytes]):
    """What precedes the value of an attribute, by the size of a text, or the complement of any other value's size."""

    __slots__ = ("_owner", "encoded_key", "key_size")

    def __init__(self, owner: "_PrefixesByKey", encoded_key: bytes) -> None:
        self._owner, self.encoded_key, self.key_size = owner, encoded_key, len(encoded_key)

    def __missing__(self, size: int) -> bytes:
        owner, head = self._owner, _TEXT_HEADS[size] if size >= 0 else b"\x12" + encode_length(~size)
        prefix = owner.tag + encode_length(self.key_size + len(head) + max(size, ~size)) + self.encoded_key + head
        if size > -_MAX_CACHED_TEXT_BYTES and self.key_size <= _MAX_CACHED_KEY_BYTES:
            owner.prefix_count += 1
            if owner.prefix_count > _MAX_CACHED_PREFIXES:
                owner.clear()
                owner.prefix_count = 0
            self[size] = prefix
        return prefix


class _PrefixesByKey(dict[Any, _Prefixes]):
    def __init__(self, tag: bytes, encode_text: Callable[[Any], bytes]) -> None:
        self.tag, self.prefix_count, self._encode_text = tag, 0, encode_text

    def __missing__(self, key: Any) -> _Prefixes:
        prefixes = _Prefixes(self, encode_field(b"\x0a", self._encode_text(key)))
        if prefixes.key_size <= _MAX_CACHED_KEY_BYTES:
            if len(self) >= _MAX_CACHED_KEYS:
                self.clear()
            self[key] = prefixes
        return prefixes


class SpanEncoder:
    """Encodes spans, with bounded caches of resources, scopes and attribute keys; thread-safe.

    `select_resource_attributes` returns the attributes of a resource that are encoded; None for all.
    """

    def __init__(self, select_resource_attributes: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None) -> None:
        self.repairs = Repairs()
        self._select_resource_attributes = select_resource_attributes or dict
        self._prefixes = {tag: _PrefixesByKey(tag, self._encode_text) for tag in _ATTRIBUTE_TAGS}
        # By identity, because a resource's own hash dumps JSON; holding the object keeps its id unique.
        self._resources: dict[int, tuple[Resource, Framing]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, Framing]] = {}
        self._encoders: dict[type, Callable[[Any, int], bytes]] = {
            str: lambda value, _: encode_field(b"\x0a", self._encode_text(value)),
            bool: lambda value, _: b"\x10\x01" if value else b"\x10\x00",
            int: self._encode_integer,
            float: lambda value, _: b"\x21" + _pack_double(value),
            bytes: lambda value, _: encode_field(b"\x3a", value),
            bytearray: lambda value, _: encode_field(b"\x3a", bytes(value)),
            tuple: self._encode_array,
            list: self._encode_array,
            dict: self._encode_mapping,
            type(None): lambda _value, _depth: b"",
        }
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self.repairs = Repairs()

    def encode(
        self,
        span: ReadableSpan,
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        events: Sequence[Event] | None = None,
        status: Status | None = None,
        resource: Resource | None = None,
    ) -> EncodedSpan:
        """Encode a span; arguments replace the values of the span.

        Raises any exception for an object that is not a span; all other faults are repaired or left out.
        """
        context: Any = span.context
        parent: Any = span.parent
        name = span.name if name is None else name
        try:
            encoded_name = name.encode()
        except (AttributeError, UnicodeEncodeError):
            encoded_name = self._encode_text(name)
        start_time, end_time = span.start_time or 0, span.end_time or 0
        if not (start_time.__class__ is end_time.__class__ is int and 0 <= start_time <= end_time <= _MAX_TIME):
            start_time, end_time = _clamp_time(start_time), _clamp_time(end_time)
        trace_id, span_id, trace_state = context[TRACE_ID], context[SPAN_ID], context[TRACE_STATE]
        pieces = [b"", _pack_ids(0x0A10, trace_id >> 64, trace_id & _MASK_64_BITS, 0x1208, span_id)]
        if trace_state:
            pieces.append(
                encode_field(b"\x1a", self._encode_text(",".join(f"{k}={v}" for k, v in trace_state.items())))
            )
        is_remote = False
        if parent is not None:
            pieces.append(_pack_parent(0x2208, parent[SPAN_ID]))
            is_remote = parent[IS_REMOTE]
        pieces += (
            b"\x2a",
            VARINTS[len(encoded_name)],
            encoded_name,
            _pack_kind_and_times(0x30, span.kind._value_ + 1, 0x39, start_time, 0x41, end_time),
        )
        # A copy, because iterating over the SDK's own mapping takes ten times as long.
        source: Any = span.attributes if attributes is None else attributes
        if source:
            if source.__class__ is not dict:
                source = source.copy() if hasattr(source, "copy") else dict(source)
            count = len(pieces)
            if (
                self._append_attributes(source, _SPAN_ATTRIBUTE_TAG, pieces)
                and (marked := mark_nested_texts(source)) is not None
            ):
                del pieces[count:]
                repairs = self.repairs
                counts = repairs.repaired, repairs.left_out
                self._append_attributes(marked, _SPAN_ATTRIBUTE_TAG, pieces)
                repairs.repaired, repairs.left_out = counts  # as the first time
        events, links = span.events if events is None else events, span.links
        if events or links or span.dropped_attributes or span.dropped_events or span.dropped_links:
            self._append_events_and_links(span, events, links, pieces)
        status = span.status if status is None else status
        if status is not None:
            code, description = status.status_code._value_, status.description
            encoded_status = (
                encode_field(b"\x7a", encode_field(b"\x12", self._encode_text(description)) + _STATUSES[code][2:])
                if description
                else _STATUSES[code]
            )
            pieces.append(encoded_status)
        pieces.append(_REMOTE_FLAGS if is_remote else _LOCAL_FLAGS)
        is_large = pieces[0] is _LARGE_MARK
        content: Any = LargeBody(pieces) if is_large else b"".join(pieces)
        size = VARINTS[len(content)]
        body: Body = LargeBody((b"\x12", size, *content.pieces)) if is_large else b"".join((b"\x12", size, content))
        resource = span.resource if resource is None else resource
        cached_resource = self._resources.get(id(resource))
        resource_framing = cached_resource[1] if cached_resource is not None else self.encode_resource(resource)
        cached_scope = self._scopes.get(id(span.instrumentation_scope))
        scope = cached_scope[1] if cached_scope is not None else self._encode_scope(span.instrumentation_scope)
        is_call = span.kind in _CALL_KINDS and MODEL_CALL_KEYS.isdisjoint(source or ())
        return EncodedSpan(trace_id, span_id, parent is None, resource_framing, scope, body, (), is_remote, is_call)

    def _append_events_and_links(
        self, span: ReadableSpan, events: Sequence[Event], links: Sequence[Link], pieces: list[bytes]
    ) -> None:
        if dropped := span.dropped_attributes:
            pieces += (b"\x50", varint(dropped))
        for event in events:
            event_pieces = [
                b"\x09",
                _pack_fixed64(_clamp_time(event.timestamp)),
                encode_field(b"\x12", self._encode_text(event.name)),
            ]
            if event.attributes:
                self._append_attributes(dict(event.attributes), b"\x1a", event_pieces)
            if event.dropped_attributes:
                event_pieces += (b"\x20", varint(event.dropped_attributes))
            pieces.append(encode_field(b"\x5a", b"".join(event_pieces)))
        if dropped := span.dropped_events:
            pieces += (b"\x60", varint(dropped))
        pieces += [encode_field(b"\x6a", self._encode_link(link)) for link in links]
        if dropped := span.dropped_links:
            pieces += (b"\x70", varint(dropped))

    def _append_attributes(self, attributes: Mapping[Any, Any], tag: bytes, pieces: list[bytes]) -> bool:
        """Return whether a text may be JSON that is nested too deeply."""
        may_be_nested = False
        # Nearly all values are texts, which are encoded without another call.
        prefixes, varints, append = self._prefixes[tag], VARINTS, pieces.append
        for key, value in attributes.items():
            kind = value.__class__
            if kind is str or kind is Utf8Text:
                try:
                    content = value.encode() if kind is str else value
                except UnicodeEncodeError:
                    content = self._encode_text(value)
                size = len(content)
                if size <= _MAX_CACHED_TEXT_BYTES:
                    append(prefixes[key][size])
                else:
                    if size >= LARGE_TEXT_BYTES and tag == _SPAN_ATTRIBUTE_TAG:
                        pieces[0] = _LARGE_MARK
                    key_prefixes, head = prefixes[key], _TEXT_HEADS[size]
                    length = varints[key_prefixes.key_size + len(head) + size]
                    pieces += (tag, length, key_prefixes.encoded_key, head)
                    if content[0] in _JSON_STARTS and has_many_brackets(content):
                        may_be_nested = True
            else:
                try:
                    # True is not of the class int.
                    is_number = kind is int and 0 <= value <= _MAX_TIME
                    content = b"\x18" + varints[value] if is_number else self._encode_value(value, 0)
                except _Unencodable:
                    self.repairs.left_out += 1
                    continue
                append(prefixes[key][~len(content)])
            append(content)
        return may_be_nested

    def _encode_value(self, value: Any, depth: int) -> bytes:
        encoder = self._encoders.get(value.__class__)
        if encoder is None:
            # Subclasses: enumerations, numpy's float64, and mappings and sequences of any kind.
            for kind in (bool, str, int, float, bytes):
                if isinstance(value, kind):
                    encoder = self._encoders[kind]
                    break
            else:
                if isinstance(value, Mapping):
                    encoder = self._encode_mapping
                elif isinstance(value, Sequence):
                    encoder = self._encode_array
                else:
                    raise _Unencodable
        return encoder(value, depth)

    def _encode_array(self, values: Iterable[Any], depth: int) -> bytes:
        if depth >= _MAX_DEPTH:
            raise _Unencodable
        return encode_field(
            b"\x2a", b"".join([encode_field(b"\x0a", self._encode_value(value, depth + 1)) for value in values])
        )

    def _encode_mapping(self, values: Mapping[Any, Any], depth: int) -> bytes:
        if depth >= _MAX_DEPTH:
            raise _Unencodable
        items = [
            encode_field(
                b"\x0a",
                encode_field(b"\x0a", self._encode_text(str(key)))
                + encode_field(b"\x12", self._encode_value(value, depth + 1)),
            )
            for key, value in values.items()
        ]
        return encode_field(b"\x32", b"".join(items))

    def _encode_integer(self, value: int, _depth: int) -> bytes:
        if 0 <= value < 128:  # one byte
            return b"\x18" + VARINTS[value]
        if -(1 << 63) <= value < 1 << 63:
            return b"\x18" + varint(value & _MASK_64_BITS)
        self.repairs.repaired += 1
        try:
            return encode_field(b"\x0a", str(value).encode())
        except ValueError:  # thousands of digits
            return encode_field(b"\x0a", hex(value).encode())

    def _encode_text(self, text: Any) -> bytes:
        # Two halves of a surrogate pair are joined; a lone half becomes the replacement character. Upstream raises, and
        # loses the whole batch for a lone half in a name.
        try:
            return bytes(text.encode())
        except UnicodeEncodeError:
            self.repairs.repaired += 1
            return bytes(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode())
        except AttributeError:
            self.repairs.repaired += 1
            return self._encode_text("" if text is None else str(text))

    def _encode_link(self, link: Link) -> bytes:
        context = link.context
        pieces = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
        if context.trace_state:
            # Required by the specification; upstream omits it.
            pieces.append(
                encode_field(b"\x1a", self._encode_text(",".join(f"{k}={v}" for k, v in context.trace_state.items())))
            )
        if link.attributes:
            self._append_attributes(dict(link.attributes), b"\x22", pieces)
        if dropped := getattr(link, "dropped_attributes", 0):
            pieces += (b"\x28", varint(dropped))
        pieces.append(_REMOTE_LINK_FLAGS if context.is_remote else _LOCAL_LINK_FLAGS)
        return b"".join(pieces)

    def encode_resource(self, resource: Resource) -> Framing:
        cached = self._resources.get(id(resource))
        if cached is not None:
            return cached[1]
        pieces: list[bytes] = []
        attributes: dict[str, Any] = self._select_resource_attributes(resource.attributes)
        for key, value in attributes.items():
            if isinstance(value, str) and "\x00" in value:
                # MLflow stores it as a tag of the trace, and PostgreSQL takes no NUL.
                attributes[key] = value.replace("\x00", "\ufffd")
                self.repairs.repaired += 1
        self._append_attributes(attributes, b"\x0a", pieces)
        framing = Framing(encode_field(b"\x0a", b"".join(pieces)), self._encode_schema_url(resource.schema_url))
        if len(self._resources) >= _MAX_CACHED_OWNERS:
            self._resources.clear()
        self._resources[id(resource)] = (resource, framing)
        return framing

    def _encode_scope(self, scope: InstrumentationScope | None) -> Framing:
        pieces: list[bytes] = []
        if scope is not None:
            pieces.append(encode_field(b"\x0a", self._encode_text(scope.name)))
            if scope.version:
                pieces.append(encode_field(b"\x12", self._encode_text(scope.version)))
            if scope.attributes:
                self._append_attributes(dict(scope.attributes), b"\x1a", pieces)
        schema_url = self._encode_schema_url(scope.schema_url if scope else None)
        framing = Framing(encode_field(b"\x0a", b"".join(pieces)), schema_url)
        if len(self._scopes) >= _MAX_CACHED_OWNERS:
            self._scopes.clear()
        self._scopes[id(scope)] = (scope, framing)
        return framing

    def _encode_schema_url(self, url: str | None) -> bytes:
        return encode_field(b"\x1a", self._encode_text(url)) if url else b""


def _clamp_time(nanoseconds: float | None) -> int:
    # MLflow's databases reject a time beyond 63 bits, and with it the whole request. `time.time() * 1e9` is a float.
    try:
        return min(max(int(nanoseconds or 0), 0), _MAX_TIME)
    except (TypeError, ValueError, OverflowError):  # not a number, infinity
        return 0
