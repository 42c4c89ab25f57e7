"""The file of a request: encoding, decoding, and detection of any damage."""

import json
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import encode_request
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import create_attachment
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
    return spool_file.encode_file(destination, SPANS, state, 12.5, message)


@given(DESTINATIONS, st.integers(0, 2**40), st.booleans(), st.text(max_size=20))
def test_file_round_trip_keeps_header_state_and_spans(
    destination: Destination, attempts: int, may_have_arrived: bool, message: str
) -> None:
    state = DeliveryState(attempts, may_have_arrived, 34.5)
    content = encode_request_file(destination, state, message)
    header, decoded_state, spans = spool_file.decode_file(content)
    assert header == FileHeader(destination, 9, TRACES, 12.5, message)
    assert decoded_state == DeliveryState(min(attempts, 2**32 - 1), may_have_arrived, 34.5)
    assert spans == SPANS
    assert spool_file.read_header(content[: spool_file.MAX_HEADER_BYTES]) == (header, decoded_state)


def test_body_is_compressed() -> None:
    assert len(encode_request_file()) < sum(len(span.body) for span in SPANS) / 2


def test_state_can_be_changed_in_place() -> None:
    content = bytearray(encode_request_file())
    state = DeliveryState(7, may_have_arrived=True, sent_at=1e9)
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


# Crafted files, with the right checksum


def build_file(header: bytes, body: bytes, *, header_length: int | None = None) -> bytes:
    length = len(header) if header_length is None else header_length
    fixed = spool_file._FIXED.pack(b"MLFOTLP", 1, length, len(body), zlib.crc32(body, zlib.crc32(header)))
    return fixed + DeliveryState().pack() + header + body


def build_header(**changes: Any) -> bytes:
    values = {"destination": {}, "spans": 9, "traces": [], "created": 1, "size": 10, **changes}
    return json.dumps(values).encode()


def test_body_larger_than_header_claims_is_corrupt() -> None:
    content = build_file(build_header(), zlib.compress(bytes(10_000_000)))
    assert spool_file.read_header(content)[0].span_count == 9
    with pytest.raises(CorruptFileError, match="missing"):
        spool_file.decode_file(content)


def test_body_that_expands_to_2_gb_is_corrupt_and_never_expanded() -> None:
    compressor = zlib.compressobj(1)
    chunk = bytes(1 << 24)
    bomb = b"".join(compressor.compress(chunk) for _ in range(128)) + compressor.flush()
    tracemalloc.start()
    try:
        for claimed_bytes in (1 << 31, 1 << 16):
            content = build_file(build_header(size=claimed_bytes), bomb)
            with pytest.raises(CorruptFileError):
                spool_file.decode_file(content)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(bomb)
    finally:
        tracemalloc.stop()


CRAFTED_VALUES: list[dict[str, Any]] = [
    {"destination": []},
    {"destination": {"workspace": 7}},
    {"destination": {"run_id": ["x"]}},
    {"spans": -1},
    {"spans": 1.5},
    {"spans": True},
    {"spans": None},
    {"traces": 7},
    {"traces": [7]},
    {"traces": ["-1"]},
    {"traces": ["f" * 33]},
    {"created": float("nan")},
    {"created": float("inf")},
    {"created": 10**400},
    {"created": []},
    {"size": -1},
    {"size": 1 << 40},
    {"size": "10"},
    {"size": float("inf")},
]


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1000,
        b"[" * 100_000,
        b'{"destination": ' * 1000,
        b'{"spans": ' + b"9" * 5000 + b"}",
        b"[]",
        b"9",
        b"null",
        b"\xff\xfe",
        *(build_header(**changes) for changes in CRAFTED_VALUES),
    ],
)
def test_crafted_header_is_corrupt(header: bytes) -> None:
    content = build_file(header, zlib.compress(bytes(10)))
    for read in (spool_file.decode_file, spool_file.read_header):
        with pytest.raises(CorruptFileError):
            read(content)


def test_header_length_beyond_limit_is_corrupt() -> None:
    content = build_file(build_header(), zlib.compress(bytes(20 << 20), 0), header_length=(1 << 32) - 1)
    with pytest.raises(CorruptFileError):
        spool_file.read_header(content)
    with pytest.raises(CorruptFileError):
        spool_file.decode_file(content)


def test_state_without_a_time_is_read_as_never_sent() -> None:
    for sent_at in (float("nan"), float("inf")):
        content = encode_request_file(state=DeliveryState(1, may_have_arrived=True, sent_at=sent_at))
        assert spool_file.decode_file(content)[1] == DeliveryState(1, may_have_arrived=True, sent_at=0.0)


def test_request_that_is_too_large_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_file, "_MAX_BODY_BYTES", 100)
    with pytest.raises(OSError, match="larger than a spool file may be"):
        encode_request_file()


def test_header_of_very_many_traces_is_readable() -> None:
    spans = [SPANS[0]._replace(trace_id=number) for number in range(20_000)]
    header = spool_file.read_header(spool_file.encode_file(Destination(), spans, NEW_STATE, 12.5, "no" * 100_000))[0]
    assert (header.span_count, len(header.trace_ids), len(header.message)) == (20_000, 10_000, 10_000)


ATTACHMENTS = [create_attachment(7, "image/png", bytes((number,)) * 9, is_url=number != 1) for number in range(3)]
ATTACHED = [
    SpanEncoder().encode(span)._replace(attachments=(attachment,))
    for attachment in ATTACHMENTS
    for span in make_traces(1, attributes=lambda *_, ref=attachment.ref: {"image": ref})
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=9)
    | st.sampled_from([10**400, "\ud800", "\x1b[2J", "0" * 5000]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=9), values, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(Destination._fields)
NAMES = st.sampled_from(["destination", "spans", "traces", "created", "size", "message"])
FILES = [
    encode_request_file(message="no"),
    spool_file.encode_file(Destination("a"), ATTACHED, NEW_STATE, 12.5),
]


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """Files with flipped bits, without an end, spliced headers or bodies; half of them with a right checksum."""
    content = draw(st.sampled_from(FILES))
    header_length = spool_file._FIXED.unpack_from(content)[2]
    offset = spool_file._HEADER_OFFSET
    header, body = content[offset : offset + header_length], content[offset + header_length :]
    kind = draw(st.sampled_from(["bits", "end", "header", "body"]))
    if kind == "header":
        values = json.loads(header)
        values.update(draw(st.dictionaries(NAMES, JSON, max_size=3)))
        values["destination"] = draw(st.just(values["destination"]) | st.dictionaries(FIELDS, JSON))
        return build_file(json.dumps(values).encode(), body)
    if kind == "body":
        raw = bytearray(zlib.decompress(body))
        for _ in range(draw(st.integers(1, 20))):
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        raw = raw[: draw(st.integers(0, len(raw)))] + draw(st.binary(max_size=20))
        values = {**json.loads(header), "size": len(raw)}
        return build_file(json.dumps(values).encode(), zlib.compress(raw))
    mutated = bytearray(content)
    for _ in range(draw(st.integers(1, 9))):
        mutated[draw(st.integers(0, len(mutated) - 1))] ^= 1 << draw(st.integers(0, 7))
    if kind == "end":
        del mutated[draw(st.integers(0, len(mutated))) :]
    if draw(st.booleans()) and len(mutated) > offset:
        mutated[16:20] = zlib.crc32(mutated[offset:]).to_bytes(4, "little")
    return bytes(mutated)


def test_attachments_return_to_their_spans() -> None:
    assert spool_file.decode_file(FILES[1])[2] == ATTACHED


def test_very_many_attachments_are_restored_in_bounded_time() -> None:
    refs = [f"{ATTACHMENT}{number:036x}?content_type=x" for number in range(20_000)]
    section = ResourceSpans()
    for ref in refs:
        section.resource.attributes.add(key=ref).value.bytes_value = b""
    spans = [SpanEncoder().encode(span) for span in make_traces(500, attributes=lambda *_: {"ref": refs[0]})]
    body = encode_request(spans) + TracesData(resource_spans=[section]).SerializeToString()
    content = build_file(build_header(spans=len(spans), size=len(body)), zlib.compress(body))
    started_at = time.thread_time()
    assert [len(span.attachments) for span in spool_file.decode_file(content)[2]] == [1] * len(spans)
    assert time.thread_time() - started_at < 2.0


@given(mutated_files())
@example(build_file(build_header(size=2, spans=0), zlib.compress(b"\x0a\x00")))
def test_mutated_file_raises_only_its_own_errors_in_bounded_time_and_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        for read in (spool_file.decode_file, spool_file.read_header):
            started_at = time.thread_time()
            with suppress(CorruptFileError, UnsupportedVersionError):
                header = read(content)[0]
                header.destination.headers(None)
            assert time.thread_time() - started_at < 0.5
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
