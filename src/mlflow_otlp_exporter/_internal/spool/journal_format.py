"""An ended span as a line of a journal, and back.

JSON is what Python writes fastest of all formats that any later version can read: a third of the encoder's time for a
small span. Every line has a checksum and a newline on either side, so that a truncated line damages no other.

An older or a newer version may read a journal: new values are appended to a list, and unknown ones are ignored there.
Only a destination is read completely or not at all, so that another tenant never gets spans.
"""

import base64
import io
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mlflow_otlp_exporter._internal.model.destination import Destination, Route
from mlflow_otlp_exporter._internal.model.spans import DroppedCounts, EventData, LinkData, SpanData
from mlflow_otlp_exporter._internal.tracing.routing import route_of

_BYTES = "\x00base64"
_ROUTE_INDEX = 13  # of the route in the record of a span
_DROPPED = "dropped_attributes"  # links of older SDKs do not have it
_NONE_DROPPED = (0, 0, 0)


class JournalHeader(NamedTuple):
    """What holds for all spans of a file, for the process that recovers them."""

    destination: Destination = Destination()  # of spans without a route
    is_redacted: bool = False  # private content was removed before writing
    trace_filter: tuple[str, ...] = ()  # the words of the setting `noise`


def _json_default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_dump_json = json.JSONEncoder(check_circular=False, separators=(",", ":"), default=_json_default).encode


def encode_line(record: Any) -> bytes:
    """Encode a record; raises ValueError if it is nested without end."""
    try:
        text = _dump_json(record).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return b"\n%08x %b\n" % (zlib.crc32(text), text)


def parse_lines(content: bytes) -> tuple[list[list[Any]], int]:
    """Return the records of a file, and the number of damaged lines, except a last one that a kill truncated."""
    records: list[list[Any]] = []
    damaged_count = 0
    for line in io.BytesIO(content):
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        record = None
        with suppress(ValueError, RecursionError):
            if int(checksum, 16) == zlib.crc32(text):
                record = json.loads(text)
        if isinstance(record, list) and record:
            records.append(record)
        elif line != b"\n" and line.endswith(b"\n"):
            damaged_count += 1
    return records, damaged_count


def build_header_record(header: JournalHeader) -> list[Any]:
    destination = header.destination
    return ["origins", [*destination.route], header.is_redacted, [*header.trace_filter], destination.creation]


def parse_header(record: list[Any]) -> JournalHeader:
    """Parse the record of `build_header_record`; anything may be raised for another record."""
    _, route, is_redacted, trace_filter, *more = record
    destination = Destination(*_parse_route(route), creation="off" if more[:1] == ["off"] else None)
    return JournalHeader(destination, bool(is_redacted), tuple(map(str, trace_filter)))


def build_owner_record(owner: Resource | InstrumentationScope | None, number: int) -> list[Any]:
    if isinstance(owner, Resource):
        return ["owner", number, dict(owner.attributes), owner.schema_url]
    if owner is None:
        return ["owner", number]
    return ["owner", number, owner.name, owner.version, owner.schema_url, dict(owner.attributes or {})]


def build_span_record(span: ReadableSpan, resource_number: int, scope_number: int) -> list[Any]:
    context, parent, status = span.context, span.parent, span.status
    attributes = span.attributes or {}
    record = [
        "span",
        resource_number,
        scope_number,
        _build_context(context),
        None if parent is None else _build_context(parent),
        span.name,
        span.kind.value,
        span.start_time,
        span.end_time,
        # A copy, as iterating over the SDK's own mapping takes ten times as long.
        attributes.copy() if hasattr(attributes, "copy") else dict(attributes),
        [status.status_code.value, status.description],
        [
            [event.name, event.timestamp, dict(event.attributes or {}), *_drop_zero(event.dropped_attributes)]
            for event in span.events
        ],
        [
            [_build_context(link.context), dict(link.attributes or {}), *_drop_zero(getattr(link, _DROPPED, 0))]
            for link in span.links
        ],
        route_of(context.trace_id),
    ]
    dropped = span.dropped_attributes, span.dropped_events, span.dropped_links
    if dropped != _NONE_DROPPED:
        record.append(dropped)
    return record


def _drop_zero(dropped_count: int) -> tuple[int, ...]:
    return (dropped_count,) if dropped_count else ()


def _build_context(context: SpanContext) -> list[Any]:
    state = context.trace_state
    return [
        context.trace_id,
        context.span_id,
        context.is_remote,
        int(context.trace_flags),
        *([list(state.items())] if state else []),
    ]


def parse_span(record: list[Any], owners: Mapping[int, list[Any]]) -> ReadableSpan:
    """Parse the record of a span, with those of its owners by number; anything may be raised for another record."""
    _, resource, scope, context, parent, name, kind, start, end, attributes, status, events, links, _, *dropped = record
    _, _, resource_attributes, schema_url, *_ = owners[resource]
    return SpanData(
        DroppedCounts(*dropped[0][:3]) if dropped and dropped[0] else DroppedCounts(),
        name=_parse_text(name),
        context=_parse_context(context),
        parent=None if parent is None else _parse_context(parent),
        resource=Resource(_parse_mapping(resource_attributes), schema_url),
        attributes=_parse_mapping(attributes),
        events=[_parse_event(*event) for event in events],
        links=[_parse_link(*link) for link in links],
        kind=SpanKind(kind),
        instrumentation_scope=_parse_scope(owners[scope]),
        status=Status(StatusCode(status[0]), status[1] if status[0] == StatusCode.ERROR.value else None),
        start_time=start,
        end_time=end,
    )


def parse_route(record: list[Any]) -> Route | None:
    """Parse the route in the record of a span; None means the destination of the header."""
    route = record[_ROUTE_INDEX]
    return None if route is None else _parse_route(route)


def _parse_route(values: list[Any]) -> Route:
    return Route(*(None if value is None else _parse_text(value) for value in values))


def _parse_text(value: Any) -> str:
    # What the trace filter and the routing read before the encoder checks a span.
    if not isinstance(value, str):
        raise TypeError
    return value


def _parse_event(name: str, timestamp: int, attributes: Mapping[str, Any], dropped: int = 0, *_: Any) -> EventData:
    return EventData(name, _parse_mapping(attributes), timestamp, dropped)


def _parse_link(context: list[Any], attributes: Mapping[str, Any], dropped: int = 0, *_: Any) -> LinkData:
    return LinkData(_parse_context(context), _parse_mapping(attributes), dropped)


def _parse_scope(record: list[Any]) -> InstrumentationScope | None:
    if len(record) == 2:  # kind and number
        return None
    _, _, name, version, schema_url, attributes, *_ = record
    return InstrumentationScope(_parse_text(name), version, schema_url, _parse_mapping(attributes) or None)


def _parse_context(record: list[Any]) -> SpanContext:
    trace_id, span_id, is_remote, flags, *state = record
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), TraceState(state[0]) if state else None)


def _parse_mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _parse_value(value) for key, value in values.items()}


def _parse_value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_parse_value(item) for item in value)
    if isinstance(value, dict):
        if value.keys() == {_BYTES}:
            return base64.b64decode(value[_BYTES])
        return _parse_mapping(value)
    return value
