"""Spans to the bytes of OTLP, straight to the wire.

Upstream builds a protobuf object per attribute, which is nine tenths of what an export costs the app's process.

Field numbers are those of `opentelemetry/proto/trace/v1/trace.proto` and `common/v1/common.proto` (OTLP 1.x, stable). A
tag is `number << 3 | wire type`; wire types are 0 varint, 1 fixed64, 2 length-delimited, 5 fixed32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.model.encoded_span import (
    SHORT_VARINTS,
    EncodedSpan,
    Framing,
    encode_field,
    encode_length,
    frame_span,
    varint,
)

# A parser gives up at 100 nested messages; a map inside a map is three, and the request around the value is seven.
_MAX_DEPTH = 24
_MAX_CACHED_KEYS, _MAX_CACHED_KEY_BYTES = 4096, 128
_MAX_CACHED_OWNERS = 256
_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3, SpanKind.PRODUCER: 4, SpanKind.CONSUMER: 5}
_MASK_64_BITS, _MAX_TIME = (1 << 64) - 1, (1 << 63) - 1
_pack_times = struct.Struct("<BQBQ").pack
# Flags as field 16 of a span and field 6 of a link, fixed32: bit 8 says that bit 9 tells whether the parent is remote.
_LOCAL_FLAGS, _REMOTE_FLAGS = (b"\x85\x01" + struct.pack("<I", flags) for flags in (0x100, 0x300))
_LOCAL_LINK_FLAGS, _REMOTE_LINK_FLAGS = (b"\x35" + struct.pack("<I", flags) for flags in (0x100, 0x300))
_pack_double = struct.Struct("<d").pack
_pack_fixed64 = struct.Struct("<Q").pack


@dataclass
class Repairs:
    """Counts what could not be encoded as it was.

    Attributes:
        repaired: Values that were changed: characters that UTF-8 does not have, integers beyond 64 bits as text.
        left_out: Values that were left out: types that OTLP does not have, values nested too deeply.
    """

    repaired: int = 0
    left_out: int = 0


class _Unencodable(Exception):
    """A value of a type that OTLP does not have."""


class SpanEncoder:
    """Encodes spans.

    Holds bounded caches of encoded resources, scopes and attribute keys; may be used by several threads.

    Args:
        owned: What is kept of a resource's attributes; None for all.

    Attributes:
        repairs: What could not be encoded as it was, since start.
    """

    def __init__(self, owned: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None) -> None:
        self.repairs = Repairs()
        self._owned = owned or dict
        self._keys: dict[str, bytes] = {}
        # By identity, as a resource's own hash dumps JSON; the object is kept so that its id stays its own.
        self._resources: dict[int, tuple[Resource, Framing]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, Framing]] = {}
        self._encoders: dict[type, Callable[[Any, int], bytes]] = {
            str: lambda value, _: encode_field(b"\x0a", self._utf8(value)),
            bool: lambda value, _: b"\x10\x01" if value else b"\x10\x00",
            int: lambda value, _: self._integer(value),
            float: lambda value, _: b"\x21" + _pack_double(value),
            bytes: lambda value, _: encode_field(b"\x3a", value),
            bytearray: lambda value, _: encode_field(b"\x3a", bytes(value)),
            tuple: self._array,
            list: self._array,
            dict: self._mapping,
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
    ) -> EncodedSpan:
        """Encodes a span.

        Args:
            span: The span.
            attributes: Attributes instead of the span's own.
            name: A name instead of the span's own.
            events: Events instead of the span's own.
            status: A status instead of the span's own.

        Raises:
            Exception: The object lacks what every span has; the rest of what is wrong with it is repaired or left out.
        """
        context, parent = span.get_span_context(), span.parent
        assert context is not None
        encoded_name = self._utf8(span.name if name is None else name)
        pieces = [
            b"\x0a\x10",
            context.trace_id.to_bytes(16, "big"),
            b"\x12\x08",
            context.span_id.to_bytes(8, "big"),
        ]
        if context.trace_state:
            pieces.append(
                encode_field(b"\x1a", self._utf8(",".join(f"{k}={v}" for k, v in context.trace_state.items())))
            )
        if parent is not None:
            pieces += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
        pieces += (
            b"\x2a",
            encode_length(len(encoded_name)),
            encoded_name,
            b"\x30",
            SHORT_VARINTS[_KINDS[span.kind]],
            _pack_times(0x39, _clamp_time(span.start_time), 0x41, _clamp_time(span.end_time)),
        )
        # A copy, as iterating over the SDK's own mapping takes ten times as long.
        found = span.attributes if attributes is None else attributes
        if found:
            self._attributes(found.copy() if hasattr(found, "copy") else dict(found), b"\x4a", pieces)
        if dropped := span.dropped_attributes:
            pieces += (b"\x50", varint(dropped))
        self._events_and_links(span, span.events if events is None else events, pieces)
        status = span.status if status is None else status
        if status is not None:
            inner = [encode_field(b"\x12", self._utf8(status.description))] if status.description else []
            if code := status.status_code.value:
                inner += (b"\x18", SHORT_VARINTS[code])
            pieces.append(encode_field(b"\x7a", b"".join(inner)))
        pieces.append(_REMOTE_FLAGS if parent is not None and parent.is_remote else _LOCAL_FLAGS)
        body = frame_span(b"".join(pieces))
        resource, scope = self.resource(span.resource), self._scope(span.instrumentation_scope)
        return EncodedSpan(context.trace_id, context.span_id, parent is None, resource, scope, body)

    def _events_and_links(self, span: ReadableSpan, events: Sequence[Event], pieces: list[bytes]) -> None:
        for event in events:
            inner = [
                b"\x09",
                _pack_fixed64(_clamp_time(event.timestamp)),
                encode_field(b"\x12", self._utf8(event.name)),
            ]
            if event.attributes:
                self._attributes(dict(event.attributes), b"\x1a", inner)
            if event.dropped_attributes:
                inner += (b"\x20", varint(event.dropped_attributes))
            pieces.append(encode_field(b"\x5a", b"".join(inner)))
        if dropped := span.dropped_events:
            pieces += (b"\x60", varint(dropped))
        pieces += [encode_field(b"\x6a", self._link(link)) for link in span.links]
        if dropped := span.dropped_links:
            pieces += (b"\x70", varint(dropped))

    def _attributes(self, attributes: dict[Any, Any], tag: bytes, pieces: list[bytes]) -> None:
        """Appends each attribute as a field with this tag. Texts, nearly all there is, are encoded right here."""
        keys, short = self._keys, SHORT_VARINTS
        for key, value in attributes.items():
            named = keys.get(key)
            if named is None:
                named = self._key(key)
            if value.__class__ is str:
                try:
                    content = value.encode()
                except UnicodeEncodeError:
                    content = self._utf8(value)
                size = len(content)
                if size < 126:  # the two inner lengths take one byte each
                    pieces += (
                        tag,
                        short[size + len(named) + 4],
                        named,
                        b"\x12",
                        short[size + 2],
                        b"\x0a",
                        short[size],
                        content,
                    )
                    continue
                inner = encode_length(size)
                outer = encode_length(size + len(inner) + 1)
                pieces += (
                    tag,
                    encode_length(size + len(inner) + 1 + len(outer) + 1 + len(named)),
                    named,
                    b"\x12",
                    outer,
                    b"\x0a",
                    inner,
                    content,
                )
                continue
            try:
                encoded = self._value(value, 0)
            except _Unencodable:
                self.repairs.left_out += 1
                continue
            pieces += (
                tag,
                encode_length(len(named) + 1 + len(encode_length(len(encoded))) + len(encoded)),
                named,
                b"\x12",
                encode_length(len(encoded)),
                encoded,
            )

    def _key(self, key: Any) -> bytes:
        """A key as the first field of a `KeyValue`, kept if it is a short one."""
        named = encode_field(b"\x0a", self._utf8(key))
        if len(named) <= _MAX_CACHED_KEY_BYTES:
            if len(self._keys) >= _MAX_CACHED_KEYS:
                self._keys.clear()
            self._keys[key] = named
        return named

    def _value(self, value: Any, depth: int) -> bytes:
        """The content of an `AnyValue`."""
        encoder = self._encoders.get(value.__class__)
        if encoder is None:
            # Subclasses: enumerations, numpy's float64, and mappings and sequences of any kind.
            for kind in (bool, str, int, float, bytes):
                if isinstance(value, kind):
                    encoder = self._encoders[kind]
                    break
            else:
                if isinstance(value, Mapping):
                    encoder = self._mapping
                elif isinstance(value, Sequence):
                    encoder = self._array
                else:
                    raise _Unencodable
        return encoder(value, depth)

    def _array(self, values: Iterable[Any], depth: int) -> bytes:
        if depth >= _MAX_DEPTH:
            raise _Unencodable
        return encode_field(
            b"\x2a", b"".join([encode_field(b"\x0a", self._value(value, depth + 1)) for value in values])
        )

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> bytes:
        if depth >= _MAX_DEPTH:
            raise _Unencodable
        items = [
            encode_field(
                b"\x0a",
                encode_field(b"\x0a", self._utf8(str(key))) + encode_field(b"\x12", self._value(value, depth + 1)),
            )
            for key, value in values.items()
        ]
        return encode_field(b"\x32", b"".join(items))

    def _integer(self, value: int) -> bytes:
        if 0 <= value < 128:  # one byte
            return b"\x18" + SHORT_VARINTS[value]
        if -(1 << 63) <= value < 1 << 63:
            return b"\x18" + varint(value & _MASK_64_BITS)
        self.repairs.repaired += 1
        try:
            return encode_field(b"\x0a", str(value).encode())
        except ValueError:  # thousands of digits
            return encode_field(b"\x0a", hex(value).encode())

    def _utf8(self, text: Any) -> bytes:
        """A text as UTF-8. Two halves of a surrogate pair are joined, a lone half becomes the replacement character.

        Upstream raises here, which loses the whole batch for a lone half in a name.
        """
        try:
            return bytes(text.encode())
        except UnicodeEncodeError:
            self.repairs.repaired += 1
            return bytes(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode())
        except AttributeError:
            self.repairs.repaired += 1
            return self._utf8("" if text is None else str(text))

    def _link(self, link: Link) -> bytes:
        context = link.context
        pieces = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
        if context.trace_state:
            # Upstream leaves it out; the specification has it.
            pieces.append(
                encode_field(b"\x1a", self._utf8(",".join(f"{k}={v}" for k, v in context.trace_state.items())))
            )
        if link.attributes:
            self._attributes(dict(link.attributes), b"\x22", pieces)
        if dropped := getattr(link, "dropped_attributes", 0):
            pieces += (b"\x28", varint(dropped))
        pieces.append(_REMOTE_LINK_FLAGS if context.is_remote else _LOCAL_LINK_FLAGS)
        return b"".join(pieces)

    def resource(self, resource: Resource) -> Framing:
        """A resource on the wire."""
        known = self._resources.get(id(resource))
        if known is not None:
            return known[1]
        inner: list[bytes] = []
        attributes: dict[str, Any] = self._owned(resource.attributes)
        for key, value in attributes.items():
            if isinstance(value, str) and "\x00" in value:
                # MLflow makes a trace's tag of it, and PostgreSQL takes no NUL.
                attributes[key] = value.replace("\x00", "\ufffd")
                self.repairs.repaired += 1
        self._attributes(attributes, b"\x0a", inner)
        framing = Framing(encode_field(b"\x0a", b"".join(inner)), self._schema(resource.schema_url))
        if len(self._resources) >= _MAX_CACHED_OWNERS:
            self._resources.clear()
        self._resources[id(resource)] = (resource, framing)
        return framing

    def _scope(self, scope: InstrumentationScope | None) -> Framing:
        known = self._scopes.get(id(scope))
        if known is not None:
            return known[1]
        inner: list[bytes] = []
        if scope is not None:
            inner.append(encode_field(b"\x0a", self._utf8(scope.name)))
            if scope.version:
                inner.append(encode_field(b"\x12", self._utf8(scope.version)))
            if scope.attributes:
                self._attributes(dict(scope.attributes), b"\x1a", inner)
        framing = Framing(encode_field(b"\x0a", b"".join(inner)), self._schema(scope.schema_url if scope else None))
        if len(self._scopes) >= _MAX_CACHED_OWNERS:
            self._scopes.clear()
        self._scopes[id(scope)] = (scope, framing)
        return framing

    def _schema(self, url: str | None) -> bytes:
        return encode_field(b"\x1a", self._utf8(url)) if url else b""


def _clamp_time(nanoseconds: int | None) -> int:
    # What does not fit into 63 bits, MLflow's databases refuse, and the whole request with it.
    return min(max(nanoseconds or 0, 0), _MAX_TIME)
