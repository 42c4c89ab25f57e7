"""An ended span as a line of a journal, and back.

JSON, as it is what Python writes fastest that any later version reads: a third of the encoder's time for a small span.
Every line has its checksum, and a newline on either side, so that one that was cut off spoils no other.

A journal may be found by an older or a newer version than has written it: what is new comes last in its list, and what
is not known there is passed over. Only a destination is read as a whole or not at all, lest another tenant gets spans.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mlflow_otlp_exporter._internal.model.destination import Destination, Route
from mlflow_otlp_exporter._internal.model.span_data import DroppedCounts, EventData, LinkData, SpanData
from mlflow_otlp_exporter._internal.tracing.routing import route_of

_BYTES = "\x00base64"
_ROUTE = 13  # where it stands in the record of a span
_NOTHING = (0, 0, 0)
_KINDS = {kind.value: kind for kind in SpanKind}
_CODES = {code.value: code for code in StatusCode}


class JournalHeader(NamedTuple):
    """What holds for all spans of a file, and stands at its beginning: whoever finds them treats them alike.

    Attributes:
        destination: Where spans go that no route is known of.
        clean: Whether what must not leave the app was taken out of them before they were written.
        noise: The words that say which traces are left out.
    """

    destination: Destination = Destination()
    clean: bool = False
    noise: tuple[str, ...] = ()


def _odd(value: Any) -> Any:
    """What JSON does not have."""
    if isinstance(value, (bytes, bytearray)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_dumps = json.JSONEncoder(check_circular=False, separators=(",", ":"), default=_odd).encode


def line(record: Any) -> bytes:
    """A record as it stands in the file.

    Raises:
        ValueError: It cannot be written, as it is nested without end.
    """
    try:
        text = _dumps(record).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return b"\n%08x %b\n" % (zlib.crc32(text), text)


def records(content: bytes) -> Iterator[list[Any]]:
    """The records of a file, without those that were cut off or changed."""
    for each in content.split(b"\n"):
        checksum, _, text = each.partition(b" ")
        try:
            if text and int(checksum, 16) == zlib.crc32(text):
                found = json.loads(text)
                if isinstance(found, list) and found:
                    yield found
        except ValueError:
            continue


def origins_record(origins: JournalHeader) -> list[Any]:
    """What holds for all spans of a file."""
    own = origins.destination
    return ["origins", list(own.route), origins.clean, list(origins.noise)]


def origins_of(record: list[Any]) -> JournalHeader:
    """What `origins_record` was made of.

    Raises:
        Exception: It is no such record.
    """
    _, route, clean, noise, *_ = record
    return JournalHeader(Destination(*Route(*route)), bool(clean), tuple(map(str, noise)))


def owner_record(owner: Resource | InstrumentationScope | None, number: int) -> list[Any]:
    """A resource or a scope, to which spans refer by its number."""
    if isinstance(owner, Resource):
        return ["owner", number, dict(owner.attributes), owner.schema_url]
    if owner is None:
        return ["owner", number]
    return ["owner", number, owner.name, owner.version, owner.schema_url, dict(owner.attributes or {})]


def span_record(span: ReadableSpan, resource: int, scope: int) -> list[Any]:
    """A span.

    Args:
        span: It has ended.
        resource: The number of its resource.
        scope: The number of its scope.
    """
    context, parent, status = span.context, span.parent, span.status
    attributes = span.attributes or {}
    record = [
        "span",
        resource,
        scope,
        _context(context),
        None if parent is None else _context(parent),
        span.name,
        span.kind.value,
        span.start_time,
        span.end_time,
        # A copy, as iterating over the SDK's own mapping takes ten times as long.
        attributes.copy() if hasattr(attributes, "copy") else dict(attributes),
        [status.status_code.value, status.description],
        [
            [event.name, event.timestamp, dict(event.attributes or {}), *_counted(event.dropped_attributes)]
            for event in span.events
        ],
        [
            [_context(link.context), dict(link.attributes or {}), *_counted(getattr(link, "dropped_attributes", 0))]
            for link in span.links
        ],
        route_of(context.trace_id),
    ]
    dropped = span.dropped_attributes, span.dropped_events, span.dropped_links
    if dropped != _NOTHING:
        record.append(dropped)
    return record


def _counted(dropped: int) -> tuple[int, ...]:
    # Nearly always there is nothing to say, and it costs nothing then.
    return (dropped,) if dropped else ()


def _context(context: SpanContext) -> list[Any]:
    state = context.trace_state
    return [
        context.trace_id,
        context.span_id,
        context.is_remote,
        int(context.trace_flags),
        *([list(state.items())] if state else []),
    ]


def span_of(record: list[Any], owners: Mapping[int, list[Any]]) -> ReadableSpan:
    """The span of a record.

    Args:
        record: What `span_record` made.
        owners: What `owner_record` made, by number.

    Raises:
        Exception: It is no such record.
    """
    _, resource, scope, context, parent, name, kind, start, end, attributes, status, events, links, _, *dropped = record
    _, _, resource_attributes, schema_url, *_ = owners[resource]
    return SpanData(
        DroppedCounts(*dropped[0][:3]) if dropped and dropped[0] else DroppedCounts(),
        name=name,
        context=_context_of(context),
        parent=None if parent is None else _context_of(parent),
        resource=Resource(_values(resource_attributes), schema_url),
        attributes=_values(attributes),
        events=[_event_of(*each) for each in events],
        links=[_link_of(*each) for each in links],
        kind=_KINDS[kind],
        instrumentation_scope=_scope_of(owners[scope]),
        status=Status(_CODES[status[0]], status[1])
        if status[0] == StatusCode.ERROR.value
        else Status(_CODES[status[0]]),
        start_time=start,
        end_time=end,
    )


def route_in(record: list[Any]) -> Route | None:
    """Where the trace of a span's record goes; None for where all go."""
    route = record[_ROUTE]
    return None if route is None else Route(*route)


def _event_of(name: str, timestamp: int, attributes: Mapping[str, Any], dropped: int = 0, *_: Any) -> EventData:
    return EventData(name, _values(attributes), timestamp, dropped)


def _link_of(context: list[Any], attributes: Mapping[str, Any], dropped: int = 0, *_: Any) -> LinkData:
    return LinkData(_context_of(context), _values(attributes), dropped)


def _scope_of(record: list[Any]) -> InstrumentationScope | None:
    if len(record) == 2:  # kind and number
        return None
    _, _, name, version, schema_url, attributes, *_ = record
    return InstrumentationScope(name, version, schema_url, _values(attributes) or None)


def _context_of(record: list[Any]) -> SpanContext:
    trace_id, span_id, is_remote, flags, *state = record
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), TraceState(state[0]) if state else None)


def _values(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(value) for key, value in found.items()}


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(each) for each in value)
    if isinstance(value, dict):
        if value.keys() == {_BYTES}:
            return base64.b64decode(value[_BYTES])
        return _values(value)
    return value
