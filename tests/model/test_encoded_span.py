"""Encoded spans: lengths of any size, and requests assembled of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import (
    LARGE_TEXT_BYTES,
    Attachment,
    Body,
    EncodedSpan,
    Framing,
    LargeBody,
    Utf8Text,
    encode_body,
    encode_field,
    encode_request,
    escape_json,
    frame_span,
    memory_bytes_of,
    varint,
)
from support.spans import make_spans

# Where a length takes one more byte, and where the table of short lengths ends.
SIZES = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]


@given(st.integers(0, 2**32 - 1))
def test_varint_of_any_size_can_be_parsed(number: int) -> None:
    assert Span.FromString(b"\x50" + varint(number)).dropped_attributes_count == number


@pytest.mark.parametrize("size", SIZES)
def test_encode_field_with_any_length_can_be_parsed(size: int) -> None:
    [span] = ScopeSpans.FromString(frame_span(encode_field(b"\x2a", b"n" * size))).spans
    assert len(span.name) == size
    body = encode_request(
        [EncodedSpan(1, 2, True, Framing(b"", b""), Framing(b"", b""), frame_span(encode_field(b"\x2a", b"n" * size)))]
    )
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["n" * size]


def test_encode_request_groups_spans_by_resource_and_scope() -> None:
    encoder = SpanEncoder()
    spans = [*make_spans("a"), *make_spans("b"), *make_spans("c", service="other")]
    request = ExportTraceServiceRequest.FromString(encode_request([encoder.encode(span) for span in spans]))
    assert [[len(scope.spans) for scope in group.scope_spans] for group in request.resource_spans] == [[2], [1]]


def test_encode_request_with_large_body_equals_joined_one_and_shares_its_text() -> None:
    text = Utf8Text(b"t" * LARGE_TEXT_BYTES)
    framing = Framing(b"", b"")
    small, large = (
        frame_span(b"\x2a\x01n"),
        LargeBody((b"\x12", varint(len(text) + 5), b"\x2a", varint(len(text)), text)),
    )
    bodies: list[Body] = [small, large, small]
    spans = [EncodedSpan(1, number, True, framing, framing, body) for number, body in enumerate(bodies)]
    body = encode_body(spans)
    joined = encode_request([span._replace(body=bytes(span.body)) for span in spans])
    assert (encode_request(spans), len(body), bytes(body)) == (joined, len(joined), joined)
    assert isinstance(body, LargeBody)
    assert [piece is text for piece in body] == [False, True, False]


def test_memory_bytes_count_shared_attachment_once() -> None:
    one, two = (SpanEncoder().encode(span) for span in make_spans("a", "b"))
    file = Attachment("id", "tr-1", "image/png", b"x" * 1000)
    bodies = len(one.body) + len(two.body)
    assert memory_bytes_of([one, two]) == bodies
    assert memory_bytes_of([one._replace(attachments=(file,)), two._replace(attachments=(file,))]) == bodies + 1000


@given(st.lists(st.text(max_size=60) | st.text(alphabet='"\\\x00\x1f\x7f\b\f\n\r\té漢😀\u2028', max_size=40)))
def test_escape_json_equals_json(texts: list[str]) -> None:
    expected = [json.dumps(text, ensure_ascii=False)[1:-1].encode() for text in texts]
    assert escape_json(b"\xff".join(map(str.encode, texts))) == b"\xff".join(expected)
