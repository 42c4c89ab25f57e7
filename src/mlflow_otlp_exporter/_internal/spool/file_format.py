"""A request on disk: one file that says all that is needed to send it, but for the credential.

    magic, version, lengths, checksum      20 bytes
    state                                  16 bytes, the only part that is ever changed: in place, by whoever sends it
    header                                 JSON: where the spans go, how many, of which traces, since when
    body                                   an `ExportTraceServiceRequest`, compressed with zlib

The checksum covers header and body.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
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
# Enough for the head of a file in one read.
HEAD_SIZE = 64 * 1024
# The fastest: level 4 takes twice as long, which is more than a request may cost here, and saves 5 %.
_LEVEL = 1
# No request is larger: what claims to be so is damaged, and must not fill the memory.
_LARGEST = 1 << 30
_REFERENCE = ATTACHMENT.encode()
_DESTINATION_FIELDS = frozenset(field.name for field in fields(Destination))


class CorruptFileError(Exception):
    """The file is cut off or changed."""


class UnsupportedVersionError(Exception):
    """The file is of a version that this one does not know: it is left to those that do."""


@dataclass(frozen=True)
class FileHeader:
    """What is known of a request without its spans.

    Attributes:
        destination: Where it goes; the experiment may be a name.
        span_count: How many spans it has.
        trace_ids: Their traces.
        created: When it was written, in seconds since 1970.
        message: What the server said, if it was refused.
    """

    destination: Destination
    span_count: int
    trace_ids: tuple[int, ...]
    created: float
    message: str = ""


@dataclass(frozen=True)
class DeliveryState:
    """What has happened to a request.

    Attributes:
        attempts: How often it was sent.
        uncertain: Whether it may have arrived.
        sent: When it was sent last, in seconds since 1970.
    """

    attempts: int = 0
    uncertain: bool = False
    sent: float = 0.0

    def to_bytes(self) -> bytes:
        """As it stands in the file, at `STATE_OFFSET`."""
        return _STATE.pack(min(self.attempts, (1 << 32) - 1), self.uncertain, self.sent)


def to_bytes(header: FileHeader, spans: Sequence[EncodedSpan], state: DeliveryState) -> bytes:
    """The file of a request."""
    body = encode_request(spans)
    if any(span.attachments for span in spans):
        from mlflow_otlp_exporter._internal.encoding.attachment import section  # few apps have attachments

        body += section(spans)
    said: dict[str, Any] = {
        "destination": {name: value for name, value in asdict(header.destination).items() if value is not None},
        "spans": header.span_count,
        "traces": [f"{trace_id:032x}" for trace_id in header.trace_ids],
        "created": header.created,
        "size": len(body),
    }
    if header.message:
        said["message"] = header.message
    head, packed = json.dumps(said).encode(), zlib.compress(body, _LEVEL)
    fixed = _FIXED.pack(_MAGIC, VERSION, len(head), len(packed), zlib.crc32(packed, zlib.crc32(head)))
    return b"".join((fixed, state.to_bytes(), head, packed))


def read_header(content: bytes) -> tuple[FileHeader, DeliveryState]:
    """FileHeader and state, from a file's first bytes; the checksum is not looked at.

    Raises:
        CorruptFileError: It is no such file, or cut off.
        UnsupportedVersionError: Another version wrote it.
    """
    header, state, _ = _head(content)
    return header, state


def from_bytes(content: bytes) -> tuple[FileHeader, DeliveryState, list[EncodedSpan]]:
    """A whole file.

    Raises:
        CorruptFileError: It is no such file, cut off or changed.
        UnsupportedVersionError: Another version wrote it.
    """
    header, state, size = _head(content)
    _, _, head_length, body_length, checksum = _FIXED.unpack_from(content)
    rest = content[_HEADER_OFFSET:]
    if len(rest) != head_length + body_length or zlib.crc32(rest) != checksum:
        raise CorruptFileError("the checksum is wrong")
    try:
        body = zlib.decompressobj().decompress(rest[head_length:], size + 1)
        spans = decode_request(body)
        if _REFERENCE in body:
            from mlflow_otlp_exporter._internal.encoding.attachment import with_attachments  # few apps have attachments

            spans = with_attachments(spans, body)
    except (zlib.error, ValueError) as error:
        raise CorruptFileError(str(error)) from None
    if len(body) != size or len(spans) != header.span_count:
        raise CorruptFileError("something is missing")
    return header, state, spans


def _head(content: bytes) -> tuple[FileHeader, DeliveryState, int]:
    if len(content) < _HEADER_OFFSET:
        raise CorruptFileError("cut off")
    magic, version, head_length, _, _ = _FIXED.unpack_from(content)
    if magic != _MAGIC:
        raise CorruptFileError("not a file of a spool")
    if version != VERSION:
        raise UnsupportedVersionError(f"version {version}")
    try:
        said = json.loads(content[_HEADER_OFFSET : _HEADER_OFFSET + head_length])
        names = {name: value for name, value in said["destination"].items() if name in _DESTINATION_FIELDS}
        traces = tuple(int(each, 16) for each in said["traces"])
        header = FileHeader(
            Destination(**names), int(said["spans"]), traces, float(said["created"]), str(said.get("message", ""))
        )
        size = int(said["size"])
        state = DeliveryState(*_STATE.unpack_from(content, STATE_OFFSET))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error):
        raise CorruptFileError("the header cannot be read") from None
    if not 0 <= size <= _LARGEST:
        raise CorruptFileError("the header cannot be right")
    return header, state, size
