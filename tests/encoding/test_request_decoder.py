"""Decoding requests: a round trip without loss, and rejection of other content."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceState

from mlflow_otlp_exporter._internal.encoding import request_decoder
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, encode_request
from support.traces import make_rejectable_traces, make_traces

RESOURCES = [Resource({}), Resource({"service.name": "a"}, "https://schema"), Resource({"big": "x" * 20_000})]
SCOPES = [None, InstrumentationScope("s", "1", "https://scope"), InstrumentationScope("t", attributes={"k": 1})]


@st.composite
def encoded_spans(draw: st.DrawFn) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    decoded = []
    for number in range(draw(st.integers(0, 8))):
        state = TraceState([("k", "v")]) if draw(st.booleans()) else None
        context = SpanContext(draw(st.integers(1, 2**128 - 1)), number + 1, False, trace_state=state)
        parent = draw(st.sampled_from([None, SpanContext(1, 99, is_remote=True), SpanContext(1, 98, is_remote=False)]))
        text = "t" * draw(st.sampled_from([0, 5, 127, 128, 20_000]))
        resource, scope = draw(st.sampled_from(RESOURCES)), draw(st.sampled_from(SCOPES))
        span = ReadableSpan("n", context, parent, resource, {"text": text}, instrumentation_scope=scope)
        decoded.append(encoder.encode(span))
    return decoded


def identify(span: EncodedSpan) -> tuple[int, int, bool]:
    return span.trace_id, span.span_id, span.is_root


@given(encoded_spans())
def test_decode_request_reverses_encode_request(encoded: list[EncodedSpan]) -> None:
    body = encode_request(encoded)
    decoded = decode_request(body)
    # Compared as messages: the decoder omits fields that the encoder writes although they are zero.
    assert sorted(map(identify, decoded)) == sorted(map(identify, encoded))
    assert ExportTraceServiceRequest.FromString(encode_request(decoded)) == ExportTraceServiceRequest.FromString(body)
    assert decode_request(encode_request(decoded)) == decoded


def test_decode_request_reverses_encode_request_for_all_kinds_of_spans() -> None:
    encoder = SpanEncoder()
    encoded = [encoder.encode(span) for span in [*make_traces(3, children=2), *make_rejectable_traces()]]
    body = encode_request(encoded)
    decoded = decode_request(body)
    assert list(map(identify, decoded)) == list(map(identify, encoded))
    assert ExportTraceServiceRequest.FromString(encode_request(decoded)) == ExportTraceServiceRequest.FromString(body)


@pytest.mark.parametrize(
    ("attributes", "is_call"),
    [({"http.url": "u"}, True), ({"gen_ai.operation.name": "chat"}, False), ({"gen_ai.system": "openai"}, False)],
)
def test_decode_client_span_is_call_unless_it_calls_a_model(attributes: dict[str, str], is_call: bool) -> None:
    context = SpanContext(1, 2, is_remote=False)
    encoded = SpanEncoder().encode(ReadableSpan("n", context, kind=SpanKind.CLIENT, attributes=attributes))
    (decoded,) = decode_request(encode_request([encoded]))
    assert (encoded.is_call, decoded.is_call) == (is_call, is_call)


@given(st.binary(max_size=200))
def test_decode_random_content_raises_only_value_error(content: bytes) -> None:
    try:
        decode_request(content)
    except ValueError:
        return


@pytest.mark.parametrize(
    "content",
    [b"\x0a", b"\x0a\x05ab", b"\x12\x00", b"\x0a\x04\x12\x02\x12\x00", b"\xff" * 11, b"\x0b"],
    ids=["no length", "truncated", "not a request", "a span without ids", "endless number", "no field"],
)
def test_decode_invalid_request_raises(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_request(content)


def test_decode_request_with_unknown_fields_ignores_them() -> None:
    assert decode_request(b"\x0a\x02\x2a\x00") == []


def test_decode_groups_without_spans_encodes_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(request_decoder, "_encode_framing", lambda *_: encoded.append("framing"))
    assert decode_request(b"\x0a\x00" * 1000) == []  # resources without scopes
    assert encoded == []
    assert decode_request(b"\x0a\x08" + b"\x12\x00" * 4) == []  # scopes without spans
    assert encoded == ["framing"]
