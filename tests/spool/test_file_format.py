"""The file of a request: encoding, decoding, and detection of any damage."""

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool.file_format import (
    CorruptFileError,
    DeliveryState,
    FileHeader,
    UnsupportedVersionError,
)
from support.traces import make_traces

SPANS = [
    SpanEncoder().encode(span) for span in make_traces(3, children=2, attributes=lambda *_: {"prompt": "why? " * 50})
]
TRACES = tuple(dict.fromkeys(span.trace_id for span in SPANS))
TEXTS = st.none() | st.text(max_size=20)
DESTINATIONS = st.builds(Destination, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)


NO_DESTINATION, NEW_STATE = Destination(), DeliveryState()


def encode_request_file(
    destination: Destination = NO_DESTINATION, state: DeliveryState = NEW_STATE, message: str = ""
) -> bytes:
    return spool_file.encode_file(FileHeader(destination, len(SPANS), TRACES, 12.5, message), SPANS, state)


@given(DESTINATIONS, st.integers(0, 2**40), st.booleans(), st.text(max_size=20))
def test_file_round_trip_keeps_header_state_and_spans(
    destination: Destination, attempts: int, uncertain: bool, message: str
) -> None:
    state = DeliveryState(attempts, uncertain, 34.5)
    content = encode_request_file(destination, state, message)
    header, decoded_state, spans = spool_file.decode_file(content)
    assert header == FileHeader(destination, 9, TRACES, 12.5, message)
    assert decoded_state == DeliveryState(min(attempts, 2**32 - 1), uncertain, 34.5)
    assert spans == SPANS
    assert spool_file.read_header(content[: spool_file.MAX_HEADER_BYTES]) == (header, decoded_state)


def test_body_is_compressed() -> None:
    assert len(encode_request_file()) < sum(len(span.body) for span in SPANS) / 2


def test_state_can_be_changed_in_place() -> None:
    content = bytearray(encode_request_file())
    state = DeliveryState(7, uncertain=True, sent_at=1e9)
    content[spool_file.STATE_OFFSET : spool_file.STATE_OFFSET + len(state.pack())] = state.pack()
    assert spool_file.decode_file(bytes(content))[1] == state


@given(st.data())
def test_changed_byte_outside_the_state_is_detected(data: st.DataObject) -> None:
    content = bytearray(encode_request_file())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    if spool_file.STATE_OFFSET <= position < spool_file.STATE_OFFSET + len(DeliveryState().pack()):
        spool_file.decode_file(bytes(content))
    else:
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            spool_file.decode_file(bytes(content))


@given(st.integers(0, 2000))
def test_truncated_or_extended_file_is_detected(length: int) -> None:
    content = encode_request_file()
    with pytest.raises(CorruptFileError):
        spool_file.decode_file(content[: length % len(content)])
    with pytest.raises(CorruptFileError):
        spool_file.decode_file(content + b"x")


@given(st.binary(max_size=300))
def test_random_content_is_rejected(content: bytes) -> None:
    for read in (spool_file.decode_file, spool_file.read_header):
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            read(content)


def test_other_version_raises_unsupported_version() -> None:
    content = bytearray(encode_request_file())
    content[7] = 2
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        spool_file.decode_file(bytes(content))


def test_body_larger_than_header_claims_is_corrupt() -> None:
    header = json.dumps({"destination": {}, "spans": 9, "traces": [], "created": 1, "size": 10}).encode()
    body = zlib.compress(bytes(10_000_000))
    fixed = spool_file._FIXED.pack(b"MLFOTLP", 1, len(header), len(body), zlib.crc32(body, zlib.crc32(header)))
    content = fixed + DeliveryState().pack() + header + body
    assert spool_file.read_header(content)[0].span_count == 9
    with pytest.raises(CorruptFileError, match=r"truncated|missing|not an export request"):
        spool_file.decode_file(content)
