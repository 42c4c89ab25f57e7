"""Spans, events and links that are copies of the SDK's, and tell all the same how much its limits have cost these.

The SDK's own work it out from the containers that its limits hold for, which a copy does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext


class DroppedCounts(NamedTuple):
    """How much of a span the SDK's limits have cost.

    Attributes:
        attributes: How many attributes.
        events: How many events.
        links: How many links.
    """

    attributes: int = 0
    events: int = 0
    links: int = 0


def dropped_counts_of(span: ReadableSpan) -> DroppedCounts:
    """How much of a span the SDK's limits have cost."""
    return DroppedCounts(span.dropped_attributes, span.dropped_events, span.dropped_links)


class SpanData(ReadableSpan):
    """A span that is told how much was dropped from it.

    Args:
        dropped: That.
        arguments: What `ReadableSpan` takes.
    """

    def __init__(self, dropped: DroppedCounts, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        """How many attributes the SDK's limits have cost."""
        return self._dropped.attributes

    @property
    def dropped_events(self) -> int:
        """How many events."""
        return self._dropped.events

    @property
    def dropped_links(self) -> int:
        """How many links."""
        return self._dropped.links


class EventData(Event):
    """An event that is told how many attributes were dropped from it.

    Args:
        name: Its name.
        attributes: Its attributes.
        timestamp: When it happened, in nanoseconds since 1970.
        dropped: How many attributes the SDK's limits have cost.
    """

    def __init__(self, name: str, attributes: Mapping[str, Any], timestamp: int, dropped: int) -> None:
        super().__init__(name, attributes, timestamp)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        """How many attributes the SDK's limits have cost."""
        return self._dropped


class LinkData(Link):
    """A link that is told how many attributes were dropped from it.

    Args:
        context: What it leads to.
        attributes: Its attributes.
        dropped: How many attributes the SDK's limits have cost.
    """

    def __init__(self, context: SpanContext, attributes: Mapping[str, Any], dropped: int) -> None:
        super().__init__(context, attributes)
        self._dropped = dropped

    @property
    def dropped_attributes(self) -> int:
        """How many attributes the SDK's limits have cost."""
        return self._dropped


def replace_event(event: Event, name: str, attributes: Mapping[str, Any]) -> Event:
    """An event with another content."""
    return EventData(name, attributes, event.timestamp, event.dropped_attributes)


def replace_link(link: Link, attributes: Mapping[str, Any]) -> Link:
    """A link with other attributes."""
    return LinkData(link.context, attributes, getattr(link, "dropped_attributes", 0))
