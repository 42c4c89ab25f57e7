"""What an exporter would send, without a server."""

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.model.encoded_span import encode_request
from mlflow_otlp_exporter.testing.recorded import RecordedSpan, parse_spans


def sent(spans: Sequence[ReadableSpan], **arguments: Any) -> bytes:
    """The bodies of the requests.

    Args:
        spans: What is exported.
        **arguments: Those of the exporter.
    """
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", **arguments)
    pipeline = exporter._pipeline
    assert pipeline is not None
    batches, broken = pipeline.batcher.build(spans)
    exporter.shutdown(0)
    assert broken == 0
    return b"".join(encode_request(batch) for _, batch in batches)


def recorded(span: ReadableSpan, **arguments: Any) -> RecordedSpan:
    """A span as a server would read it.

    Args:
        span: The span.
        **arguments: Those of the exporter.
    """
    (found,) = parse_spans(sent([span], **arguments), dict.fromkeys(("experiment", "workspace", "run_id")))
    return found
