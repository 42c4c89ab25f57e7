"""Recorded OTLP requests as the spans that the SDK would have handed to an exporter."""

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


# The SDK works out how much was dropped; a recording knows it.
class _Span(ReadableSpan):
    dropped_attributes = dropped_events = dropped_links = 0


class _Event(Event):
    dropped_attributes = 0


class _Link(Link):
    dropped_attributes = 0


@dataclass
class RecordedTrace:
    """A trace of a recorded request.

    Attributes:
        key: Its key in `truth.json`.
        trace_id: The id that it has now, in hex.
        span_names: The names of its spans.
        titles: What it may be called.
    """

    key: str
    trace_id: str
    span_names: list[str] = field(default_factory=list)
    titles: set[str] = field(default_factory=set)


def cases() -> dict[str, Path]:
    """The recorded requests by `<source>/<case>`."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(CORPUS.glob("*/*.pb"))}


def load(key: str) -> tuple[list[ReadableSpan], list[RecordedTrace]]:
    """A recorded request: its spans in the order in which they ended, its traces in that in which it names them.

    Trace ids are fresh, and links inside the request follow them; all else is as it was recorded.
    """
    found = list(_spans(ExportTraceServiceRequest.FromString(cases()[key].read_bytes())))
    traces: dict[bytes, RecordedTrace] = {}
    for span, _, _ in found:
        number = f"#{len(traces)}" if traces else ""
        trace = traces.setdefault(span.trace_id, RecordedTrace(key + number, secrets.token_hex(16)))
        trace.span_names.append(span.name)
        if not span.parent_span_id:
            trace.titles |= {span.name, _attributes(span).get("logfire.msg", span.name)}
    fresh = {old: bytes.fromhex(trace.trace_id) for old, trace in traces.items()}
    spans = [_span(span, fresh, resource, scoped) for span, resource, scoped in found]
    return sorted(spans, key=lambda span: span.end_time or 0), list(traces.values())


def _spans(request: Any) -> Iterator[tuple[Any, Resource, Any]]:
    for group in request.resource_spans:
        resource = Resource(_attributes(group.resource), group.schema_url or None)
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield span, resource, scoped


def _span(span: Any, fresh: dict[bytes, bytes], resource: Resource, scoped: Any) -> ReadableSpan:
    trace_id, code = fresh[span.trace_id], StatusCode(span.status.code)
    events = [_Event(each.name, _attributes(each), each.time_unix_nano) for each in span.events]
    links = [
        _Link(_context(fresh.get(each.trace_id, each.trace_id), each.span_id, each.flags), _attributes(each))
        for each in span.links
    ]
    scope = scoped.scope
    made = _Span(
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
    for ours, theirs in zip([made, *events, *links], [span, *span.events, *span.links], strict=True):
        for name in _DROPPED:
            if hasattr(theirs, f"{name}_count"):
                setattr(ours, name, getattr(theirs, f"{name}_count"))
    return made


def _context(trace_id: bytes, span_id: bytes, flags: int, state: str = "") -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id, "big"),
        int.from_bytes(span_id, "big"),
        bool(flags & _REMOTE),
        TraceFlags(flags & 0xFF | TraceFlags.SAMPLED),
        TraceState.from_header([state]),
    )


def _attributes(message: Any) -> dict[str, Any]:
    return {each.key: _plain(each.value) for each in message.attributes}


def _plain(value: Any) -> Any:
    """The Python value of an OTLP `AnyValue`."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: _plain(each.value) for each in value.kvlist_value.values}
    return getattr(value, kind) if kind else None
