"""The file of a request: whole it comes back, and whatever has happened to it is noticed."""

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
from support.traces import ended

SPANS = [SpanEncoder().encode(span) for span in ended(3, children=2, attributes=lambda *_: {"prompt": "why? " * 50})]
TRACES = tuple(dict.fromkeys(span.trace_id for span in SPANS))
texts = st.none() | st.text(max_size=20)
destinations = st.builds(Destination, texts, texts, texts, texts, texts)


def file(destination: Destination = Destination(), state: DeliveryState = DeliveryState(), message: str = "") -> bytes:  # noqa: B008
    return spool_file.encode_file(FileHeader(destination, len(SPANS), TRACES, 12.5, message), SPANS, state)


@given(destinations, st.integers(0, 2**40), st.booleans(), st.text(max_size=20))
def test_a_file_says_all_that_is_needed_to_send_it(
    destination: Destination, attempts: int, uncertain: bool, message: str
) -> None:
    state = DeliveryState(attempts, uncertain, 34.5)
    content = file(destination, state, message)
    header, found, spans = spool_file.decode_file(content)
    assert header == FileHeader(destination, 9, TRACES, 12.5, message)
    assert found == DeliveryState(min(attempts, 2**32 - 1), uncertain, 34.5)
    assert spans == SPANS
    assert spool_file.read_header(content[: spool_file.MAX_HEADER_BYTES]) == (header, found)


def test_the_body_is_smaller_than_what_it_holds() -> None:
    assert len(file()) < sum(len(span.body) for span in SPANS) / 2


def test_the_state_is_changed_in_place() -> None:
    content = bytearray(file())
    state = DeliveryState(7, uncertain=True, sent_at=1e9)
    content[spool_file.STATE_OFFSET : spool_file.STATE_OFFSET + len(state.pack())] = state.pack()
    assert spool_file.decode_file(bytes(content))[1] == state


@given(st.data())
def test_a_changed_byte_is_noticed_but_in_the_state(data: st.DataObject) -> None:
    content = bytearray(file())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    if spool_file.STATE_OFFSET <= position < spool_file.STATE_OFFSET + len(DeliveryState().pack()):
        spool_file.decode_file(bytes(content))
    else:
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            spool_file.decode_file(bytes(content))


@given(st.integers(0, 2000))
def test_a_file_that_was_cut_off_is_noticed(length: int) -> None:
    content = file()
    with pytest.raises(CorruptFileError):
        spool_file.decode_file(content[: length % len(content)])
    with pytest.raises(CorruptFileError):
        spool_file.decode_file(content + b"x")


@given(st.binary(max_size=300))
def test_anything_may_lie_there(content: bytes) -> None:
    for read in (spool_file.decode_file, spool_file.read_header):
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            read(content)


def test_another_version_is_told_from_damage() -> None:
    content = bytearray(file())
    content[7] = 2
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        spool_file.decode_file(bytes(content))


def test_a_body_that_grows_without_end_is_damaged() -> None:
    said = json.dumps({"destination": {}, "spans": 9, "traces": [], "created": 1, "size": 10}).encode()
    body = zlib.compress(bytes(10_000_000))
    fixed = spool_file._FIXED.pack(b"MLFOTLP", 1, len(said), len(body), zlib.crc32(body, zlib.crc32(said)))
    content = fixed + DeliveryState().pack() + said + body
    assert spool_file.read_header(content)[0].span_count == 9
    with pytest.raises(CorruptFileError, match=r"truncated|missing|not a request"):
        spool_file.decode_file(content)
