"""The file of a request: it has everything that sending needs, except the credential.

    magic, version, lengths, checksum      20 bytes
    state                                  16 bytes, the only part that changes: the sender writes it in place
    header                                 JSON: destination, number of spans, trace ids, time of writing
    body                                   an `ExportTraceServiceRequest`, compressed with zlib

The checksum covers header and body. Attachments are in the body, as the attributes of a `ResourceSpans` without spans:
reference and content. A file may have any content: nothing in it is used before its type and size were checked.
"""

import errno
import itertools
import json
import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import Attachment, EncodedSpan, encode_request

VERSION = 1
MAGIC = b"MLFOTLP"
_FIXED = struct.Struct("<7sBIII")
_STATE = struct.Struct("<I?3xd")
STATE_OFFSET = _FIXED.size
_HEADER_OFFSET = STATE_OFFSET + _STATE.size
MAX_HEADER_BYTES = 1 << 20  # before the body
# The fastest level: level 4 takes twice as long, which is more than a request may cost here, and saves 5 %.
_COMPRESSION_LEVEL = 1
# Limits of a request: a file that claims more is damaged, and must not fill the memory.
_MAX_BODY_BYTES, _MAX_TRACE_IDS, _MAX_MESSAGE_LENGTH = 256 << 20, 10_000, 10_000
MAX_FILE_BYTES = MAX_HEADER_BYTES + _MAX_BODY_BYTES
_ATTACHMENT_ID = re.escape(ATTACHMENT.encode()) + rb"([0-9a-f-]{36})"
_DESTINATION_FIELDS = frozenset(Destination._fields)


class CorruptFileError(Exception):
    """The file is truncated or changed."""


class UnsupportedVersionError(Exception):
    """Another version of this library wrote the file."""


class FileHeader(NamedTuple):
    """A request without its spans."""

    destination: Destination
    span_count: int
    trace_ids: tuple[int, ...]
    created_at: float  # seconds since 1970
    message: str = ""  # the server's, for a rejected request


class DeliveryState(NamedTuple):
    """The attempts to send a request."""

    attempts: int = 0
    may_have_arrived: bool = False
    sent_at: float = 0.0  # the last attempt, in seconds since 1970

    def pack(self) -> bytes:
        return _STATE.pack(min(self.attempts, (1 << 32) - 1), self.may_have_arrived, self.sent_at)


def encode_file(
    destination: Destination, spans: Sequence[EncodedSpan], state: DeliveryState, created_at: float, message: str = ""
) -> bytes:
    """Encode a request; raises OSError if it is too large for a file."""
    body = encode_request(spans)
    contents = {attachment.ref: attachment.data for span in spans for attachment in span.attachments}
    if contents:
        section = ResourceSpans()
        for ref, data in contents.items():
            section.resource.attributes.add(key=ref).value.bytes_value = data
        body += TracesData(resource_spans=[section]).SerializeToString()
    trace_ids = dict.fromkeys(span.trace_id for span in spans)
    values: dict[str, Any] = {
        "destination": {name: value for name, value in destination._asdict().items() if value is not None},
        "spans": len(spans),
        "traces": [f"{trace_id:032x}" for trace_id in itertools.islice(trace_ids, _MAX_TRACE_IDS)],
        "created": created_at,
        "size": len(body),
    }
    if message:
        values["message"] = message[:_MAX_MESSAGE_LENGTH]
    encoded_header = json.dumps(values).encode()
    if len(body) > _MAX_BODY_BYTES or len(encoded_header) > MAX_HEADER_BYTES - _HEADER_OFFSET:
        raise OSError(errno.EFBIG, "a request is larger than a spool file may be")
    compressed_body = zlib.compress(body, _COMPRESSION_LEVEL)
    checksum = zlib.crc32(compressed_body, zlib.crc32(encoded_header))
    fixed = _FIXED.pack(MAGIC, VERSION, len(encoded_header), len(compressed_body), checksum)
    return b"".join((fixed, state.pack(), encoded_header, compressed_body))


def read_header(content: bytes) -> tuple[FileHeader, DeliveryState]:
    """Read header and state from the first bytes of a file; raises CorruptFileError or UnsupportedVersionError."""
    return _parse_header(content)[:2]


def decode_file(content: bytes) -> tuple[FileHeader, DeliveryState, list[EncodedSpan]]:
    """Decode a whole file; raises CorruptFileError or UnsupportedVersionError."""
    header, state, body_bytes = _parse_header(content)
    _, _, header_length, body_length, checksum = _FIXED.unpack_from(content)
    checked = content[_HEADER_OFFSET:]
    if len(checked) != header_length + body_length or zlib.crc32(checked) != checksum:
        raise CorruptFileError("wrong checksum")
    try:
        body = zlib.decompressobj().decompress(checked[header_length:], body_bytes + 1)
        if len(body) != body_bytes:
            raise CorruptFileError("spans are missing")
        spans = decode_request(body)
        if ATTACHMENT.encode() in body:
            spans = _restore_attachments(spans, body)
    except (zlib.error, ValueError):  # their texts may quote the file
        raise CorruptFileError("unreadable body") from None
    if len(spans) != header.span_count:
        raise CorruptFileError("spans are missing")
    return header, state, spans


def _restore_attachments(spans: list[EncodedSpan], body: bytes) -> list[EncodedSpan]:
    attachments: dict[bytes, dict[bool, Attachment]] = {}  # the same content may be a data URL in one span only
    for section in TracesData.FromString(body).resource_spans:
        for attribute in section.resource.attributes if not section.scope_spans else ():
            if attribute.key.startswith(ATTACHMENT):
                parts = urlsplit(attribute.key)
                content_type = parse_qs(parts.query).get("content_type", ["application/octet-stream"])[0]
                is_url = parts.query.find("trace_id=") < parts.query.find("size=")
                attachment = Attachment(parts.netloc, attribute.key, content_type, attribute.value.bytes_value, is_url)
                attachments.setdefault(parts.netloc.encode(), {})[is_url] = attachment
    return [
        span._replace(
            attachments=tuple(
                attachment
                for attachment_id in dict.fromkeys(re.findall(_ATTACHMENT_ID, bytes(span.body)))
                for attachment in attachments.get(attachment_id, {}).values()
            )
        )
        for span in spans
    ]


def _parse_header(content: bytes) -> tuple[FileHeader, DeliveryState, int]:
    if len(content) < _HEADER_OFFSET:
        raise CorruptFileError("truncated")
    magic, version, header_length, _, _ = _FIXED.unpack_from(content)
    if magic != MAGIC:
        raise CorruptFileError("not a spool file")
    if version != VERSION:
        raise UnsupportedVersionError(f"version {version}")
    try:
        values = json.loads(content[_HEADER_OFFSET : min(_HEADER_OFFSET + header_length, MAX_HEADER_BYTES)])
        destination = {name: value for name, value in values["destination"].items() if name in _DESTINATION_FIELDS}
        span_count, body_bytes, created_at = values["spans"], values["size"], float(values["created"])
        trace_ids = tuple(int(trace_id, 16) for trace_id in values["traces"])
        message = str(values.get("message", ""))[:_MAX_MESSAGE_LENGTH]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise CorruptFileError("unreadable header") from None
    if not (
        type(span_count) is type(body_bytes) is int
        and span_count >= 0
        and 0 <= body_bytes <= _MAX_BODY_BYTES
        and math.isfinite(created_at)
        and all(0 <= trace_id < 1 << 128 for trace_id in trace_ids)
        and all(value is None or isinstance(value, str) for value in destination.values())
    ):
        raise CorruptFileError("impossible values in the header")
    attempts, may_have_arrived, sent_at = _STATE.unpack_from(content, STATE_OFFSET)
    state = DeliveryState(attempts, may_have_arrived, sent_at if math.isfinite(sent_at) else 0.0)
    return FileHeader(Destination(**destination), span_count, trace_ids, created_at, message), state, body_bytes
