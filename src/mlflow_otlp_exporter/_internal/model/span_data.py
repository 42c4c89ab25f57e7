"""Copies of spans, events and links that keep the dropped counts of the originals.

The SDK computes dropped counts from its bounded containers, which a copy does not have.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext

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
    """A span with given dropped counts; `arguments` are those of `ReadableSpan`."""

    def __init__(self, dropped: DroppedCounts, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        return self._dropped.attributes

    @property
    def dropped_events(self) -> int:
        return self._dropped.events

    @property
    def dropped_links(self) -> int:
        return self._dropped.links


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
    return SpanData(
        dropped_counts_of(span),
        name=span.name,
        context=span.context,
        parent=SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, parent.trace_state),
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
