"""Recorded OTLP requests as the spans that an exporter would get from the SDK."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
_REMOTE = 0x200
_DROPPED = ("dropped_attributes", "dropped_events", "dropped_links")


# The SDK computes how much was dropped; a recording holds the numbers.
class _Span(ReadableSpan):
    dropped_attributes = dropped_events = dropped_links = 0


class _Event(Event):
    dropped_attributes = 0


class _Link(Link):
    dropped_attributes = 0


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
    recorded = list(_spans(ExportTraceServiceRequest.FromString(cases()[key].read_bytes())))
    traces: dict[bytes, RecordedTrace] = {}
    for span, _, _ in recorded:
        number = f"#{len(traces)}" if traces else ""
        trace = traces.setdefault(span.trace_id, RecordedTrace(key + number, secrets.token_hex(16)))
        trace.span_names.append(span.name)
        if not span.parent_span_id:
            trace.titles |= {span.name, _attributes(span).get("logfire.msg", span.name)}
    new_ids = {old: bytes.fromhex(trace.trace_id) for old, trace in traces.items()}
    spans = [_span(span, new_ids, resource, scoped) for span, resource, scoped in recorded]
    return sorted(spans, key=lambda span: span.end_time or 0), list(traces.values())


def _spans(request: Any) -> Iterator[tuple[Any, Resource, Any]]:
    for group in request.resource_spans:
        resource = Resource(_attributes(group.resource), group.schema_url or None)
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield span, resource, scoped


def _span(span: Any, new_ids: dict[bytes, bytes], resource: Resource, scoped: Any) -> ReadableSpan:
    trace_id, code = new_ids[span.trace_id], StatusCode(span.status.code)
    events = [_Event(event.name, _attributes(event), event.time_unix_nano) for event in span.events]
    links = [
        _Link(_context(new_ids.get(link.trace_id, link.trace_id), link.span_id, link.flags), _attributes(link))
        for link in span.links
    ]
    scope = scoped.scope
    result = _Span(
        span.name,
        _context(trace_id, span.span_id, span.flags & 0xFF, span.trace_state),
        _context(trace_id, span.parent_span_id, span.flags) if span.parent_span_id else None,
        resource,
        _attributes(span),
        events,
        links,
        SpanKind(max(span.kind - 1, 0)),
        status=Status(code, (span.status.message or None) if code is StatusCode.ERROR else None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=InstrumentationScope(scope.name, scope.version, scoped.schema_url, _attributes(scope)),
    )
    for ours, theirs in zip([result, *events, *links], [span, *span.events, *span.links], strict=True):
        for name in _DROPPED:
            if hasattr(theirs, f"{name}_count"):
                setattr(ours, name, getattr(theirs, f"{name}_count"))
    return result


def _context(trace_id: bytes, span_id: bytes, flags: int, state: str = "") -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        bool(flags & _REMOTE),
        TraceFlags(flags & 0xFF | TraceFlags.SAMPLED),
        TraceState.from_header([state]),
    )


def _attributes(message: Any) -> dict[str, Any]:
    return {attribute.key: _plain(attribute.value) for attribute in message.attributes}


def _plain(value: Any) -> Any:
    """Convert an OTLP `AnyValue`."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind) if kind else None
