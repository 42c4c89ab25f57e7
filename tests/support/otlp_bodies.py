"""Spans as bodies of OTLP requests, in protobuf and JSON."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import encode_request

_ID_FIELDS = ("traceId", "spanId", "parentSpanId")


def encode_spans(spans: Sequence[ReadableSpan]) -> bytes:
    encoder = SpanEncoder()
    return encode_request([encoder.encode(span) for span in spans])


def to_json(body: bytes) -> bytes:
    """Convert a request to OTLP's JSON, whose ids are hexadecimal."""
    message = json_format.MessageToDict(ExportTraceServiceRequest.FromString(body))
    return json.dumps(_convert_ids(message)).encode()


def _convert_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_convert_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        name: base64.b64decode(value).hex() if name in _ID_FIELDS else _convert_ids(value)
        for name, value in node.items()
    }
