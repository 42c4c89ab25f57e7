"""Decodes an `ExportTraceServiceRequest` into encoded spans: stored spans are sent and split like new ones."""

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mlflow_otlp_exporter._internal.encoding.span_encoder import MODEL_CALL_KEYS
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, Framing, encode_field, frame_span

_OWNER_TAG, _SCHEMA_URL_TAG = b"\x0a", b"\x1a"
_REMOTE_PARENT_FLAG = 0x200
_CALL_KINDS = (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_PRODUCER)
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8


def decode_request(body: bytes) -> list[EncodedSpan]:
    """Decode a request into its spans, in its order; raises ValueError for other content."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise ValueError(f"not an export request: {error}") from error
    spans: list[EncodedSpan] = []
    for resource_spans in request.resource_spans:
        if not resource_spans.scope_spans:
            continue  # a request of 8 MB can have 4 million of these
        resource = _encode_framing(
            resource_spans.resource, resource_spans.HasField("resource"), resource_spans.schema_url
        )
        for scope_spans in resource_spans.scope_spans:
            if not scope_spans.spans:
                continue
            scope = _encode_framing(scope_spans.scope, scope_spans.HasField("scope"), scope_spans.schema_url)
            for span in scope_spans.spans:
                if len(span.trace_id) != _TRACE_ID_BYTES or len(span.span_id) != _SPAN_ID_BYTES:
                    raise ValueError("a span without ids")
                trace_id, span_id = int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")
                content = frame_span(span.SerializeToString(deterministic=True))
                is_root, is_remote = not span.parent_span_id, bool(span.flags & _REMOTE_PARENT_FLAG)
                is_call = span.kind in _CALL_KINDS and MODEL_CALL_KEYS.isdisjoint(
                    attribute.key for attribute in span.attributes
                )
                spans.append(EncodedSpan(trace_id, span_id, is_root, resource, scope, content, (), is_remote, is_call))
    if body and not spans and not request.resource_spans:
        raise ValueError("not an export request")
    return spans


def _encode_framing(owner: Message, has_owner: bool, schema_url: str) -> Framing:
    before = encode_field(_OWNER_TAG, owner.SerializeToString(deterministic=True)) if has_owner else b""
    return Framing(before, encode_field(_SCHEMA_URL_TAG, schema_url.encode()) if schema_url else b"")
