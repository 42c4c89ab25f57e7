"""Copies of spans, events and links that keep the dropped counts of the originals.

The SDK computes dropped counts from its bounded containers, which a copy does not have.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

# Indices of a span context, which the API defines as a tuple that ends with its validity. The properties of these names
# cost five times as much, a dozen times per span.
TRACE_ID, SPAN_ID, IS_REMOTE, TRACE_FLAGS, TRACE_STATE = range(5)


class DroppedCounts(NamedTuple):
    """Numbers of attributes, events and links that the SDK's limits dropped."""

    attributes: int = 0
    events: int = 0
    links: int = 0


def dropped_counts_of(span: ReadableSpan) -> DroppedCounts:
    return DroppedCounts(span.dropped_attributes, span.dropped_events, span.dropped_links)


class SpanData(ReadableSpan):
    """A span whose values are plain attributes: those of the SDK's class are properties, of which three copy.

    `values` are the arguments of `ReadableSpan`; the dropped counts are given.
    """

    # These replace the properties.
    name = ""
    context: Any = None
    parent: Any = None
    resource: Any = Resource({})
    attributes: Any = MappingProxyType({})
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()
    kind = SpanKind.INTERNAL
    status = Status()
    start_time: int | None = None
    end_time: int | None = None
    instrumentation_scope: InstrumentationScope | None = None
    dropped_attributes = dropped_events = dropped_links = 0

    def __init__(self, dropped: DroppedCounts, **values: Any) -> None:
        self.__dict__.update(values)
        self.dropped_attributes, self.dropped_events, self.dropped_links = dropped

    def get_span_context(self) -> SpanContext | None:
        return cast("SpanContext | None", self.context)


class SpanCopy(SpanData):
    """A copy of an ended span with other values; statements for each attribute take half the time of a dictionary."""

    def __init__(self, span: ReadableSpan, **changes: Any) -> None:
        attributes: Any = span.attributes
        self.name = span.name
        self.context = span.context
        self.parent = span.parent
        self.resource = span.resource
        # Iterating over the SDK's own mapping takes ten times as long.
        self.attributes = attributes.copy() if hasattr(attributes, "copy") else attributes or {}
        self.events = span.events
        self.links = span.links
        self.kind = span.kind
        self.status = span.status
        self.start_time = span.start_time
        self.end_time = span.end_time
        self.instrumentation_scope = span.instrumentation_scope
        self.dropped_attributes = span.dropped_attributes
        self.dropped_events = span.dropped_events
        self.dropped_links = span.dropped_links
        if changes:
            self.__dict__.update(changes)


class EventData(Event):
    """An event with a given count of dropped attributes."""

    def __init__(self, name: str, attributes: Mapping[str, Any], timestamp: int, dropped: int) -> None:
        super().__init__(name, attributes, timestamp)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        return self._dropped


class LinkData(Link):
    """A link with a given count of dropped attributes."""

    def __init__(self, context: SpanContext, attributes: Mapping[str, Any], dropped: int) -> None:
        super().__init__(context, attributes)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        return self._dropped


def replace_event(event: Event, name: str, attributes: Mapping[str, Any]) -> Event:
    return EventData(name, attributes, event.timestamp, event.dropped_attributes)


def replace_link(link: Link, attributes: Mapping[str, Any]) -> Link:
    return LinkData(link.context, attributes, getattr(link, "dropped_attributes", 0))


def is_local_root(span: ReadableSpan) -> bool:
    return span.parent is None or span.parent.is_remote


def find_topmost(spans: Sequence[ReadableSpan]) -> ReadableSpan | None:
    """The span of a trace that started first, of those whose parent is not among them."""
    ids = {span.context.span_id for span in spans}
    tops = [span for span in spans if span.parent is None or span.parent.span_id not in ids]
    return min(tops, key=lambda span: span.start_time or 0, default=None)


def mark_local_root(spans: dict[int, ReadableSpan]) -> None:
    """Mark the topmost of a trace's spans, which are keyed by id, if there is no local root among them."""
    if spans and not any(map(is_local_root, spans.values())):
        top = find_topmost(list(spans.values()))
        if top is not None and top.context is not None:
            spans[top.context.span_id] = with_remote_parent(top)


def with_remote_parent(span: ReadableSpan) -> ReadableSpan:
    """A span whose parent is never exported, as if the parent were a span of another process."""
    parent = span.parent
    assert parent is not None
    remote = SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, parent.trace_state)
    return SpanCopy(span, parent=remote)
