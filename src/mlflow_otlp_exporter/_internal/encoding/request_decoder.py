"""An `ExportTraceServiceRequest` taken apart into the pieces that it was put together from.

What lies on disk is a whole request, which any OTLP tool reads; it is sent, cut and searched span by span like one that
was never there. Nothing but framing is decoded: about 1 µs a span.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, Framing

_RESOURCE_SPANS, _OWNER, _CHILDREN, _SCHEMA = 0x0A, 0x0A, 0x12, 0x1A
_TRACE_STATE, _PARENT_ID = 0x1A, 0x22
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10
# Where the fields of a span stand that come first: tag, length and 16 bytes; tag, length and 8 bytes.
_TRACE_ID, _SPAN_ID, _AFTER_IDS = b"\x0a\x10", b"\x12\x08", 28


def decode_request(body: bytes) -> list[EncodedSpan]:
    """The encoded spans of a request, in its order.

    Args:
        body: What `assemble` made.

    Raises:
        ValueError: It is not such a request.
    """
    spans: list[EncodedSpan] = []
    for tag, _, start, end in _iter_fields(body, 0, len(body)):
        if tag != _RESOURCE_SPANS:
            raise ValueError("not a request of spans")
        resource, groups = _read_framing(body, start, end)
        for _, group_start, group_end in groups:
            scope, encoded = _read_framing(body, group_start, group_end)
            spans += [_read_span(body, *place, resource, scope) for place in encoded]
    return spans


def parts_without_spans(body: bytes) -> list[bytes]:
    """The parts of a request that have no spans: a `ResourceSpans` each.

    Raises:
        ValueError: It is not such a request.
    """
    parts = [(start, end) for tag, _, start, end in _iter_fields(body, 0, len(body)) if tag == _RESOURCE_SPANS]
    return [body[start:end] for start, end in parts if not _read_framing(body, start, end)[1]]


def _read_framing(body: bytes, start: int, end: int) -> tuple[Framing, list[tuple[int, int, int]]]:
    """What stands around the children of a `ResourceSpans` or `ScopeSpans`, and where they begin, start and end."""
    before = after = b""
    children: list[tuple[int, int, int]] = []
    for tag, begin, inside, stop in _iter_fields(body, start, end):
        if tag == _CHILDREN:
            children.append((begin, inside, stop))
        elif tag == _OWNER:
            before = body[begin:stop]
        elif tag == _SCHEMA:
            after = body[begin:stop]
        else:
            raise ValueError("not a group of spans")
    return Framing(before, after), children


def _read_span(body: bytes, begin: int, start: int, end: int, resource: Framing, scope: Framing) -> EncodedSpan:
    after_ids = start + _AFTER_IDS
    if after_ids > end or body[start : start + 2] != _TRACE_ID or body[start + 18 : start + 20] != _SPAN_ID:
        raise ValueError("a span without ids")
    is_root = True
    if after_ids < end:
        tag = body[after_ids]
        if tag == _TRACE_STATE:
            _, after_ids = _field_content(body, after_ids + 1, end, _LENGTH_DELIMITED)
            tag = body[after_ids] if after_ids < end else 0
        is_root = tag != _PARENT_ID
    trace_id = int.from_bytes(body[start + 2 : start + 18], "big")
    span_id = int.from_bytes(body[start + 20 : start + 28], "big")
    return EncodedSpan(trace_id, span_id, is_root, resource, scope, body[begin:end])


def _iter_fields(body: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag of each field of a message, and where the field begins, its content starts, and it ends."""
    while start < end:
        begin = start
        tag, start = _read_varint(body, start, end)
        inside, start = _field_content(body, start, end, tag & 7)
        yield tag, begin, inside, start


def _field_content(body: bytes, start: int, end: int, kind: int) -> tuple[int, int]:
    """Where the content of a field is, whose tag ends at the start."""
    if kind == _LENGTH_DELIMITED:
        length, start = _read_varint(body, start, end)
    elif kind in _FIXED:
        length = _FIXED[kind]
    elif kind == 0:
        length = _read_varint(body, start, end)[1] - start
    else:
        raise ValueError("no field of protobuf's")
    if start + length > end:
        raise ValueError("cut off")
    return start, start + length


def _read_varint(body: bytes, start: int, end: int) -> tuple[int, int]:
    number = shift = 0
    for index in range(start, min(start + _MAX_VARINT_BYTES, end)):
        byte = body[index]
        number |= (byte & 127) << shift
        if byte < 128:  # the last byte
            return number, index + 1
        shift += 7
    raise ValueError("cut off")
