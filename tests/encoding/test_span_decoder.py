"""Decoding OTLP of others into spans: nothing gets lost, and malformed content is a ValueError."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.encoding.span_decoder import decode_spans, parse_json, parse_protobuf
from support.otlp_bodies import encode_spans, to_json
from support.recordings import cases
from support.spans import LIMITED, dropped_counts, make_limited_span, make_spans
from support.traces import make_traces


def make_body() -> bytes:
    return encode_spans([*make_traces(3, children=2), *make_spans("one", "two"), make_limited_span()])


def test_decode_spans_reverses_encoding() -> None:
    body = make_body()
    decoded = decode_spans(parse_protobuf(body))
    assert ExportTraceServiceRequest.FromString(encode_spans(decoded)) == ExportTraceServiceRequest.FromString(body)
    assert dropped_counts(decoded[-1]) == LIMITED


@pytest.mark.parametrize("key", ["vercel-ai-5", "google-adk", "mlflow-sdk", "genai-openai"])
def test_decode_spans_of_recordings_reverses_encoding(key: str) -> None:
    """The scope's attributes and schema URLs of all sources stay."""
    path = next(path for name, path in cases().items() if name.startswith(key))
    request = parse_protobuf(path.read_bytes())
    again = parse_protobuf(encode_spans(decode_spans(request)))
    assert [span.name for span in decode_spans(again)] == [span.name for span in decode_spans(request)]
    assert encode_spans(decode_spans(again)) == encode_spans(decode_spans(request))


def test_parse_json_equals_protobuf() -> None:
    body = make_body()
    assert parse_json(to_json(body)) == parse_protobuf(body)


def make_message(**fields: Any) -> bytes:
    span = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "n", **fields}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"startTimeUnixNano": "1", "endTimeUnixNano": 2},  # both forms of 64 bits
        {"kind": 3, "status": {"code": 2, "message": "no"}},
        {"kind": "SPAN_KIND_CLIENT"},
        {"kind": 77, "status": {"code": 9}},  # of a later version
        {"aFieldOfALaterVersion": {"x": [1]}},
        {"parentSpanId": ""},
        {"traceId": "A" * 32},
        {"attributes": [{"key": "k", "value": {"kvlistValue": {"values": [{"key": "traceId"}]}}}]},
    ],
)
def test_parse_json_accepts_what_the_specification_allows(fields: dict[str, Any]) -> None:
    (span,) = decode_spans(parse_json(make_message(**fields)))
    assert span.name == "n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b"[1]",
        b"{",
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": [1]}',
        b'{"resourceSpans": {"a": 1}}',
        b"[" * 100_000,
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "\\ud800"}]}]}]}',
        b"1" * 10_000,
        b"\xff\xfe",
        make_message(traceId="xyz"),
        make_message(spanId=[1]),
        make_message(startTimeUnixNano="-1"),
        make_message(startTimeUnixNano="1" * 50),
        make_message(name=1),
    ],
)
def test_parse_json_of_other_content_raises_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="not an export request in JSON"):
        parse_json(content)


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": ""},
        {"traceId": "0" * 32},
        {"traceId": "12"},
        {"spanId": "0" * 16},
        {"spanId": "1" * 32},
        {"parentSpanId": "12"},
    ],
)
def test_decode_span_without_ids_raises_value_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a span without ids"):
        decode_spans(parse_json(make_message(**fields)))


@given(st.binary(max_size=200))
def test_parse_protobuf_of_any_content_raises_value_error_only(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_spans(parse_protobuf(content))


def test_decode_spans_of_remote_parent_keeps_flag() -> None:
    (span,) = decode_spans(parse_json(make_message(parentSpanId="0" * 15 + "2", flags=0x300)))
    assert span.parent is not None
    assert span.parent.is_remote
    assert not span.context.is_remote
