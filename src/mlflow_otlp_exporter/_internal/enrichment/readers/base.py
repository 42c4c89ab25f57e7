"""What a reader gets of a span, and what it may use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan


class EventView(NamedTuple):
    """An event of a span."""

    name: str
    attributes: Mapping[str, Any]


class SpanView(NamedTuple):
    """A span as its instrumentation wrote it; `scope` is the name of the instrumentation scope."""

    name: str
    scope: str
    attributes: Mapping[str, Any]
    events: Sequence[EventView] = ()


class Reader(NamedTuple):
    """Reads one convention; `name` is its name in the documentation."""

    name: str
    # First segments (before the first dot) of attribute keys or event names; spans with none of them are not read.
    prefixes: frozenset[str]
    # None: not a span of this convention. Must not raise, and must not change the span.
    read: Callable[[SpanView], NormalizedSpan | None]
    # Keys of attributes by the field that they hold; OPENINFERENCE_HIDE_* hides them.
    fields: Mapping[str, tuple[str, ...]] = {}


def unflatten(attributes: Mapping[str, Any], prefix: str) -> Any:
    """Turn flattened attributes below a prefix into objects and lists: `a.0.b.c` is a list; None if there are none.

    Indexes need not begin at 0 and may have gaps, as in OpenAI's streamed Responses.
    """
    tree: dict[str, Any] = {}
    start = len(prefix)
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        node = tree
        segments = key[start:].split(".")
        for segment in segments[:-1]:
            child = node.get(segment)
            if not isinstance(child, dict):
                child = node[segment] = {}
            node = child
        if not isinstance(node.get(segments[-1]), dict):
            node[segments[-1]] = value
    return _to_lists(tree) if tree else None


def _to_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(key.isdigit() for key in node):
        return [_to_lists(node[key]) for key in sorted(node, key=index_order)]
    return {key: _to_lists(value) for key, value in node.items()}


def index_order(index: str) -> tuple[int, str]:
    """Sort key that orders indexes by value without converting them."""
    return len(index), index
