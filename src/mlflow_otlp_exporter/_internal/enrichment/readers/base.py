"""What a reader gets to see of a span."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan


class EventView(NamedTuple):
    """An event of a span."""

    name: str
    attributes: Mapping[str, Any]


class SpanView(NamedTuple):
    """A span as its instrumentation wrote it.

    Attributes:
        name: The span's name.
        scope: The name of its instrumentation scope.
        attributes: Its attributes.
        events: Its events.
        failed: True if its status is ERROR.
        description: What the status says.
    """

    name: str
    scope: str
    attributes: Mapping[str, Any]
    events: Sequence[EventView] = ()
    failed: bool = False
    description: str = ""


class Reader(NamedTuple):
    """Reads one convention.

    Attributes:
        name: What it is called in the documents.
        prefixes: First segments of the attribute keys (up to the first dot) that it reads; it is not called for a span
            that has none of them, nor an event whose name begins so.
        read: From a span to what is known of it; None if it does not know this span. Must not raise, and must not
            change what it is given.
    """

    name: str
    prefixes: frozenset[str]
    read: Callable[[SpanView], NormalizedSpan | None]


def unflatten(attributes: Mapping[str, Any], prefix: str) -> Any:
    """What flattened attributes under a prefix stand for: `a.0.b.c` is a list of objects; None if there are none.

    Indexes need not begin at 0 and may have gaps, as with OpenAI's streamed Responses.
    """
    found: dict[str, Any] = {}
    start = len(prefix)
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        node = found
        segments = key[start:].split(".")
        for segment in segments[:-1]:
            inner = node.get(segment)
            if not isinstance(inner, dict):
                inner = node[segment] = {}
            node = inner
        if not isinstance(node.get(segments[-1]), dict):
            node[segments[-1]] = value
    return _to_lists(found) if found else None


def _to_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(key.isdigit() for key in node):
        return [_to_lists(node[key]) for key in sorted(node, key=index_order)]
    return {key: _to_lists(value) for key, value in node.items()}


def index_order(key: str) -> tuple[int, str]:
    return len(key), key
