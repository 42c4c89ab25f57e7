"""Decodes the framing of an `ExportTraceServiceRequest`, so that its spans can be sent and split like new ones.

Spool files hold whole requests, which any OTLP tool can read. Spans are not decoded: about 1 µs a span.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, Framing

_RESOURCE_SPANS, _OWNER, _CHILDREN, _SCHEMA_URL = 0x0A, 0x0A, 0x12, 0x1A
_TRACE_STATE, _PARENT_ID = 0x1A, 0x22
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10
# The first fields of a span: tag, length and 16 bytes; tag, length and 8 bytes.
_TRACE_ID, _SPAN_ID, _IDS_BYTES = b"\x0a\x10", b"\x12\x08", 28


def decode_request(body: bytes) -> list[EncodedSpan]:
    """Decode a request into its spans, in its order; raises ValueError for other content."""
    spans: list[EncodedSpan] = []
    for tag, _, start, end in _iter_fields(body, 0, len(body)):
        if tag != _RESOURCE_SPANS:
            raise ValueError("not a request with spans")
        resource, scope_groups = _read_group(body, start, end)
        for _, group_start, group_end in scope_groups:
            scope, span_fields = _read_group(body, group_start, group_end)
            spans += [_read_span(body, *span_field, resource, scope) for span_field in span_fields]
    return spans


def _read_group(body: bytes, start: int, end: int) -> tuple[Framing, list[tuple[int, int, int]]]:
    """Return the framing of a `ResourceSpans` or `ScopeSpans`, and (begin, start of content, end) of its children."""
    owner = schema_url = b""
    children: list[tuple[int, int, int]] = []
    for tag, begin, content_start, stop in _iter_fields(body, start, end):
        if tag == _CHILDREN:
            children.append((begin, content_start, stop))
        elif tag == _OWNER:
            owner = body[begin:stop]
        elif tag == _SCHEMA_URL:
            schema_url = body[begin:stop]
        else:
            raise ValueError("not a group of spans")
    return Framing(owner, schema_url), children


def _read_span(body: bytes, begin: int, start: int, end: int, resource: Framing, scope: Framing) -> EncodedSpan:
    position = start + _IDS_BYTES
    if position > end or body[start : start + 2] != _TRACE_ID or body[start + 18 : start + 20] != _SPAN_ID:
        raise ValueError("a span without ids")
    is_root = True
    if position < end:
        tag = body[position]
        if tag == _TRACE_STATE:
            _, position = _locate_content(body, position + 1, end, _LENGTH_DELIMITED)
            tag = body[position] if position < end else 0
        is_root = tag != _PARENT_ID
    trace_id = int.from_bytes(body[start + 2 : start + 18], "big")
    span_id = int.from_bytes(body[start + 20 : start + 28], "big")
    return EncodedSpan(trace_id, span_id, is_root, resource, scope, body[begin:end])


def _iter_fields(body: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tag of each field of a message, and where the field begins, its content starts, and it ends."""
    while start < end:
        begin = start
        tag, start = _read_varint(body, start, end)
        content_start, start = _locate_content(body, start, end, tag & 7)
        yield tag, begin, content_start, start


def _locate_content(body: bytes, start: int, end: int, wire_type: int) -> tuple[int, int]:
    """Return start and end of the content of a field whose tag ends at `start`."""
    if wire_type == _LENGTH_DELIMITED:
        length, start = _read_varint(body, start, end)
    elif wire_type in _FIXED_BYTES:
        length = _FIXED_BYTES[wire_type]
    elif wire_type == 0:
        length = _read_varint(body, start, end)[1] - start
    else:
        raise ValueError("unknown wire type")
    if start + length > end:
        raise ValueError("truncated")
    return start, start + length


def _read_varint(body: bytes, start: int, end: int) -> tuple[int, int]:
    number = shift = 0
    for index in range(start, min(start + _MAX_VARINT_BYTES, end)):
        byte = body[index]
        number |= (byte & 127) << shift
        if byte < 128:  # the last byte
            return number, index + 1
        shift += 7
    raise ValueError("truncated")
