"""Recorded OTLP requests as the spans that an exporter would get from the SDK."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.encoding.span_decoder import decode_attributes, decode_spans

CORPUS = Path(__file__).resolve().parents[1] / "corpus"


@dataclass
class RecordedTrace:
    """A trace of a recorded request: its key in `truth.json`, its new id in hex, and the names that it may have."""

    key: str
    trace_id: str
    span_names: list[str] = field(default_factory=list)
    titles: set[str] = field(default_factory=set)


def cases() -> dict[str, Path]:
    """Return the recorded requests by `<source>/<case>`."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(CORPUS.glob("*/*.pb"))}


def load(key: str) -> tuple[list[ReadableSpan], list[RecordedTrace]]:
    """Load the spans of a recorded request, in the order of their ends, and its traces, in the order of the request.

    Trace ids are new, also in links inside of the request.
    """
    request, traces = load_request(key)
    return sorted(decode_spans(request), key=lambda span: span.end_time or 0), traces


def load_request(key: str) -> tuple[ExportTraceServiceRequest, list[RecordedTrace]]:
    """Load a recorded request with new trace ids, also in links inside of it, and its traces in their order."""
    request = ExportTraceServiceRequest.FromString(cases()[key].read_bytes())
    traces: dict[bytes, RecordedTrace] = {}
    spans = [span for group in request.resource_spans for scoped in group.scope_spans for span in scoped.spans]
    for span in spans:
        number = f"#{len(traces)}" if traces else ""
        trace = traces.setdefault(span.trace_id, RecordedTrace(key + number, secrets.token_hex(16)))
        trace.span_names.append(span.name)
        if not span.parent_span_id:
            trace.titles |= {span.name, decode_attributes(span).get("logfire.msg", span.name)}
    for span in spans:
        for link in span.links:
            if link.trace_id in traces:
                link.trace_id = bytes.fromhex(traces[link.trace_id].trace_id)
        span.trace_id = bytes.fromhex(traces[span.trace_id].trace_id)
    return request, list(traces.values())
