"""A span on the wire, and requests put together from such: what passes from the encoder to all that comes after it.

Each span becomes bytes once: routing, splitting and sending again encode nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.model.attachment import Attachment


class Framing(NamedTuple):
    """What stands before and after the content of a `ResourceSpans` or `ScopeSpans`: its owner and its schema URL."""

    before: bytes
    after: bytes


class EncodedSpan(NamedTuple):
    """A span on the wire.

    Attributes:
        trace_id: OpenTelemetry's trace id.
        span_id: OpenTelemetry's span id.
        is_root: True if the span has no parent, local or remote.
        resource: The resource that it belongs to.
        scope: The instrumentation scope that it belongs to.
        body: The span as a field of a `ScopeSpans`, tag and length included.
        attachments: Files that it refers to and that MLflow does not have yet.
    """

    trace_id: int
    span_id: int
    is_root: bool
    resource: Framing
    scope: Framing
    body: bytes
    attachments: tuple[Attachment, ...] = ()


def varint(number: int) -> bytes:
    pieces = bytearray()
    while number > 127:  # seven bits a byte
        pieces.append(number & 127 | 128)
        number >>= 7
    pieces.append(number)
    return bytes(pieces)


# Nearly all lengths are short: a look-up costs a fifth of the loop.
_SHORT = 16_384
SHORT_VARINTS = [varint(number) for number in range(128)]
SHORT_VARINTS += [bytes((number & 127 | 128, number >> 7)) for number in range(128, _SHORT)]


def encode_length(number: int) -> bytes:
    return SHORT_VARINTS[number] if number < _SHORT else varint(number)


def encode_field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_length(len(content)) + content


def frame_span(span: bytes) -> bytes:
    """A span's bytes as a field of a `ScopeSpans`."""
    return encode_field(b"\x12", span)


def memory_bytes_of(spans: Sequence[EncodedSpan]) -> int:
    """Bytes that spans take in memory, with the files that they refer to."""
    files = {each.id: len(each.data) for span in spans for each in span.attachments}
    return sum(len(span.body) for span in spans) + sum(files.values())


def encode_request(spans: Sequence[EncodedSpan]) -> bytes:
    """An `ExportTraceServiceRequest` of these spans, grouped by resource and scope."""
    resources: dict[Framing, dict[Framing, list[bytes]]] = {}
    for span in spans:
        resources.setdefault(span.resource, {}).setdefault(span.scope, []).append(span.body)
    # Lengths first, so that the bodies, which are nearly all of it, are copied once.
    pieces: list[bytes] = []
    for resource, scopes in resources.items():
        inner: list[bytes] = []
        total = len(resource.before) + len(resource.after)
        for scope, bodies in scopes.items():
            size = len(scope.before) + sum(map(len, bodies)) + len(scope.after)
            head = b"\x12" + encode_length(size)
            total += len(head) + size
            inner += (head, scope.before, *bodies, scope.after)
        pieces += (b"\x0a", encode_length(total), resource.before, *inner, resource.after)
    return b"".join(pieces)
