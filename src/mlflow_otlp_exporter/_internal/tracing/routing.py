"""Where a trace goes that does not go where the exporter sends by default: told once for each trace, for all its spans.

Kept for the process, by trace id, which is unique: whatever processor saw the trace start, every exporter finds it.
Nothing here takes a lock, as spans start in signal handlers and finalizers, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from opentelemetry.sdk.trace import ReadableSpan, Span

from mlflow_otlp_exporter._internal.common.bounded_dict import evict_oldest
from mlflow_otlp_exporter._internal.model.destination import Destination, Route, read_route

# Traces whose local root is open: spans that never end must not pile up.
_OPEN_TRACES = 65_536
# Traces whose local root has ended, for spans that are late.
_ENDED_TRACES = 16_384
_OPEN_ROOTS = 8192


_open: dict[int, Route] = {}
_ended: dict[int, Route] = {}
_roots: dict[int, Span] = {}


def route_of(trace_id: int) -> Route | None:
    """Where a trace goes; None for the default."""
    return _open.get(trace_id) or _ended.get(trace_id)


def fix(trace_id: int, route: Route) -> Route:
    """Says where a trace goes, unless that has been said.

    Returns:
        Where it goes.
    """
    known = route_of(trace_id)
    if known is None:
        evict_oldest(_open, _OPEN_TRACES)[trace_id] = known = route
    return known


def fix_ended(trace_id: int, route: Route) -> None:
    """Says where a trace goes whose spans have ended, unless that has been said."""
    if route_of(trace_id) is None:
        evict_oldest(_ended, _ENDED_TRACES)[trace_id] = route


def opened(trace_id: int, span: Span, route: Route | None) -> None:
    """Tells that a local root has started.

    Args:
        trace_id: Its trace.
        span: The local root.
        route: Where its trace goes; None for the default.
    """
    if _ended and trace_id in _ended:  # one more local root of a trace, as of an app that calls itself
        with suppress(KeyError):
            evict_oldest(_open, _OPEN_TRACES)[trace_id] = _ended.pop(trace_id)
    elif route is not None:
        fix(trace_id, route)
    if len(_roots) >= _OPEN_ROOTS:
        evict_oldest(_roots, _OPEN_ROOTS)
    _roots.setdefault(trace_id, span)


def closed(trace_id: int) -> None:
    """Tells that the local root of a trace has ended."""
    _roots.pop(trace_id, None)
    route = _open.pop(trace_id, None) if _open else None
    if route is not None:
        evict_oldest(_ended, _ENDED_TRACES)[trace_id] = route


def open_root(trace_id: int) -> Span | None:
    """The local root of a trace, as long as it is open."""
    return _roots.get(trace_id)


def group_by_destination(spans: Sequence[ReadableSpan], default: Destination) -> dict[Destination, list[ReadableSpan]]:
    """Groups spans by where they go, in their order: all of a trace to one destination."""
    for trace_id, route in read_routes(spans).items():
        fix_ended(trace_id, route)
    groups: dict[Destination, list[ReadableSpan]] = {}
    known: dict[tuple[int, Route | None], Destination] = {}
    for span in spans:
        context, resource = span.get_span_context(), span.resource
        key = (id(resource), route_of(context.trace_id) if context is not None else None)
        destination = known.get(key)
        if destination is None:
            destination = known[key] = default.for_trace(resource.attributes, key[1])
        groups.setdefault(destination, []).append(span)
    return groups


def read_routes(spans: Sequence[ReadableSpan]) -> dict[int, Route]:
    """Where traces go that no span processor of ours saw start: by the local root's attributes, else by any span's."""
    told: dict[int, Route] = {}
    for span in spans:
        attributes, context = span.attributes, span.get_span_context()
        if attributes and context is not None and (route := read_route(attributes)):
            if span.parent is None or span.parent.is_remote:
                told[context.trace_id] = route
            else:
                told.setdefault(context.trace_id, route)
    return told
