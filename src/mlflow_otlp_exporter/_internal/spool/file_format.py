"""The file of a request: it has everything that sending needs, except the credential.

    magic, version, lengths, checksum      20 bytes
    state                                  16 bytes, the only part that changes: the sender writes it in place
    header                                 JSON: destination, number of spans, trace ids, time of writing
    body                                   an `ExportTraceServiceRequest`, compressed with zlib

The checksum covers header and body.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, encode_request

VERSION = 1
_MAGIC = b"MLFOTLP"
_FIXED = struct.Struct("<7sBIII")
_STATE = struct.Struct("<I?3xd")
STATE_OFFSET = _FIXED.size
_HEADER_OFFSET = STATE_OFFSET + _STATE.size
# Enough for everything before the body in one read.
MAX_HEADER_BYTES = 64 * 1024
# The fastest level: level 4 takes twice as long, which is more than a request may cost here, and saves 5 %.
_COMPRESSION_LEVEL = 1
# No request is larger: a file that claims more is damaged, and must not fill the memory.
_MAX_BODY_BYTES = 1 << 30
_ATTACHMENT_MARKER = ATTACHMENT.encode()
_DESTINATION_FIELDS = frozenset(field.name for field in dataclasses.fields(Destination))


class CorruptFileError(Exception):
    """The file is truncated or changed."""


class UnsupportedVersionError(Exception):
    """Another version of this library wrote the file."""


@dataclasses.dataclass(frozen=True)
class FileHeader:
    """A request without its spans.

    `created_at` is in seconds since 1970; `message` is the server's, for a rejected request; the experiment of the
    destination may be a name.
    """

    destination: Destination
    span_count: int
    trace_ids: tuple[int, ...]
    created_at: float
    message: str = ""


@dataclasses.dataclass(frozen=True)
class DeliveryState:
    """The attempts to send a request.

    `uncertain` is true if the request may have arrived; `sent_at` is the last attempt in seconds since 1970.
    """

    attempts: int = 0
    uncertain: bool = False
    sent_at: float = 0.0

    def pack(self) -> bytes:
        return _STATE.pack(min(self.attempts, (1 << 32) - 1), self.uncertain, self.sent_at)


def encode_file(header: FileHeader, spans: Sequence[EncodedSpan], state: DeliveryState) -> bytes:
    body = encode_request(spans)
    if any(span.attachments for span in spans):
        from mlflow_otlp_exporter._internal.spool.attachment_section import (
            encode_attachments,
        )  # few apps have attachments

        body += encode_attachments(spans)
    values: dict[str, Any] = {
        "destination": {
            name: value for name, value in dataclasses.asdict(header.destination).items() if value is not None
        },
        "spans": header.span_count,
        "traces": [f"{trace_id:032x}" for trace_id in header.trace_ids],
        "created": header.created_at,
        "size": len(body),
    }
    if header.message:
        values["message"] = header.message
    encoded_header, compressed_body = json.dumps(values).encode(), zlib.compress(body, _COMPRESSION_LEVEL)
    checksum = zlib.crc32(compressed_body, zlib.crc32(encoded_header))
    fixed = _FIXED.pack(_MAGIC, VERSION, len(encoded_header), len(compressed_body), checksum)
    return b"".join((fixed, state.pack(), encoded_header, compressed_body))


def read_header(content: bytes) -> tuple[FileHeader, DeliveryState]:
    """Read header and state from the first bytes of a file, without checking the checksum.

    Raises CorruptFileError or UnsupportedVersionError.
    """
    header, state, _ = _parse_header(content)
    return header, state


def decode_file(content: bytes) -> tuple[FileHeader, DeliveryState, list[EncodedSpan]]:
    """Decode a whole file; raises CorruptFileError or UnsupportedVersionError."""
    header, state, body_bytes = _parse_header(content)
    _, _, header_length, body_length, checksum = _FIXED.unpack_from(content)
    checked = content[_HEADER_OFFSET:]
    if len(checked) != header_length + body_length or zlib.crc32(checked) != checksum:
        raise CorruptFileError("wrong checksum")
    try:
        body = zlib.decompressobj().decompress(checked[header_length:], body_bytes + 1)
        spans = decode_request(body)
        if _ATTACHMENT_MARKER in body:
            from mlflow_otlp_exporter._internal.spool.attachment_section import (
                restore_attachments,
            )  # few apps have them

            spans = restore_attachments(spans, body)
    except (zlib.error, ValueError) as error:
        raise CorruptFileError(str(error)) from None
    if len(body) != body_bytes or len(spans) != header.span_count:
        raise CorruptFileError("spans are missing")
    return header, state, spans


def _parse_header(content: bytes) -> tuple[FileHeader, DeliveryState, int]:
    if len(content) < _HEADER_OFFSET:
        raise CorruptFileError("truncated")
    magic, version, header_length, _, _ = _FIXED.unpack_from(content)
    if magic != _MAGIC:
        raise CorruptFileError("not a spool file")
    if version != VERSION:
        raise UnsupportedVersionError(f"version {version}")
    try:
        values = json.loads(content[_HEADER_OFFSET : _HEADER_OFFSET + header_length])
        destination = {name: value for name, value in values["destination"].items() if name in _DESTINATION_FIELDS}
        header = FileHeader(
            Destination(**destination),
            int(values["spans"]),
            tuple(int(trace_id, 16) for trace_id in values["traces"]),
            float(values["created"]),
            str(values.get("message", "")),
        )
        body_bytes = int(values["size"])
        state = DeliveryState(*_STATE.unpack_from(content, STATE_OFFSET))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error):
        raise CorruptFileError("unreadable header") from None
    if not 0 <= body_bytes <= _MAX_BODY_BYTES:
        raise CorruptFileError("impossible size in the header")
    return header, state, body_bytes
