"""Encoded spans, and requests assembled of them: routing, splitting and retries never encode a span twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.model.attachment import Attachment


class Framing(NamedTuple):
    """The bytes around the children of a `ResourceSpans` or `ScopeSpans`: resource or scope, and schema URL."""

    before: bytes
    after: bytes


class EncodedSpan(NamedTuple):
    """An encoded span.

    Attributes:
        is_root: True if the span has no parent, local or remote.
        body: The span as a field of a `ScopeSpans`, with tag and length.
        attachments: Files to which the span refers and that are not uploaded yet.
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


# Nearly all lengths are short: a lookup takes a fifth of the time of the loop.
_SHORT = 16_384
SHORT_VARINTS = [varint(number) for number in range(128)]
SHORT_VARINTS += [bytes((number & 127 | 128, number >> 7)) for number in range(128, _SHORT)]


def encode_length(number: int) -> bytes:
    return SHORT_VARINTS[number] if number < _SHORT else varint(number)


def encode_field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_length(len(content)) + content


def frame_span(span: bytes) -> bytes:
    """Encode the bytes of a span as a field of a `ScopeSpans`."""
    return encode_field(b"\x12", span)


def memory_bytes_of(spans: Sequence[EncodedSpan]) -> int:
    """Bytes of spans in memory, with their attachments, each counted once."""
    sizes = {attachment.id: len(attachment.data) for span in spans for attachment in span.attachments}
    return sum(len(span.body) for span in spans) + sum(sizes.values())


def encode_request(spans: Sequence[EncodedSpan]) -> bytes:
    """Encode an `ExportTraceServiceRequest` of spans, grouped by resource and scope."""
    resources: dict[Framing, dict[Framing, list[bytes]]] = {}
    for span in spans:
        resources.setdefault(span.resource, {}).setdefault(span.scope, []).append(span.body)
    # Lengths are computed first, so that the bodies, which are nearly all bytes, are copied once.
    pieces: list[bytes] = []
    for resource, scopes in resources.items():
        scope_pieces: list[bytes] = []
        total = len(resource.before) + len(resource.after)
        for scope, bodies in scopes.items():
            size = len(scope.before) + sum(map(len, bodies)) + len(scope.after)
            head = b"\x12" + encode_length(size)
            total += len(head) + size
            scope_pieces += (head, scope.before, *bodies, scope.after)
        pieces += (b"\x0a", encode_length(total), resource.before, *scope_pieces, resource.after)
    return b"".join(pieces)
