"""Export spans without a server."""

from collections.abc import Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.model.spans import encode_request
from mlflow_otlp_exporter.testing.recorded import RecordedSpan, parse_spans


def export_bytes(spans: Sequence[ReadableSpan], **arguments: Any) -> bytes:
    """Return the bodies of the requests of an exporter with these arguments."""
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", **arguments)
    pipeline = exporter._pipeline
    assert pipeline is not None
    batches, failed_count = pipeline.batcher.build(spans)
    exporter.shutdown(0)
    assert failed_count == 0
    return b"".join(encode_request(batch) for _, batch in batches)


def export_span(span: ReadableSpan, **arguments: Any) -> RecordedSpan:
    """Return a span as a server would parse it."""
    (recorded,) = parse_spans(
        ExportTraceServiceRequest.FromString(export_bytes([span], **arguments)),
        dict.fromkeys(("experiment", "workspace", "run_id")),
    )
    return recorded
