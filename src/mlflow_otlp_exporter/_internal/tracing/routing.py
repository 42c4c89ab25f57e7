"""Route of each trace that does not go to the exporter's default destination; fixed once per trace, for all its spans.

Routes are stored per process by trace id, so that every exporter finds them, whichever processor saw the trace start.
Nothing here takes a lock, because spans also start in signal handlers and finalizers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.model.destination import ROUTE_ATTRIBUTES, Destination, Route, read_route
from mlflow_otlp_exporter._internal.model.spans import TRACE_ID

# Bounds: spans that never end must not accumulate.
_MAX_OPEN_TRACES = 65_536
# Routes of ended traces serve late spans.
_MAX_ENDED_TRACES = 16_384
_MAX_OPEN_ROOTS = 8192
_MAX_CACHED_DESTINATIONS = 1000


# Keyed by the identity of the resource; the resource is kept so that its id is not reused.
DestinationCache: TypeAlias = "dict[tuple[int, Route | None], tuple[Resource, Destination]]"
_open: dict[int, Route] = {}
_ended: dict[int, Route] = {}
# A root that never ends lives only as long as the application holds it.
_roots: dict[int, weakref.ref[Span]] = {}


def route_of(trace_id: int) -> Route | None:
    return _open.get(trace_id) or _ended.get(trace_id)


def set_route(trace_id: int, route: Route) -> Route:
    """Set the route of an open trace unless it has one; return the route that holds."""
    current = route_of(trace_id)
    if current is None:
        evict_oldest(_open, _MAX_OPEN_TRACES)[trace_id] = current = route
    return current


def set_ended_route(trace_id: int, route: Route) -> None:
    if route_of(trace_id) is None:
        evict_oldest(_ended, _MAX_ENDED_TRACES)[trace_id] = route


def on_root_start(trace_id: int, span: Span, route: Route | None) -> None:
    if _ended and trace_id in _ended:  # a further local root of the trace: the application called itself
        with suppress(KeyError):
            evict_oldest(_open, _MAX_OPEN_TRACES)[trace_id] = _ended.pop(trace_id)
    elif route is not None:
        set_route(trace_id, route)
    if len(_roots) >= _MAX_OPEN_ROOTS:
        evict_oldest(_roots, _MAX_OPEN_ROOTS)
    if open_root(trace_id) is None:
        _roots[trace_id] = weakref.ref(span)


def on_root_end(trace_id: int) -> None:
    _roots.pop(trace_id, None)
    route = _open.pop(trace_id, None) if _open else None
    if route is not None:
        evict_oldest(_ended, _MAX_ENDED_TRACES)[trace_id] = route


def open_root(trace_id: int) -> Span | None:
    reference = _roots.get(trace_id)
    return reference() if reference is not None else None


def find_destinations(
    spans: Sequence[ReadableSpan], default: Destination, cache: DestinationCache
) -> list[Destination]:
    """Return the destination of each span; all spans of a trace share one."""
    for trace_id, route in read_routes(spans).items():
        set_ended_route(trace_id, route)
    destinations: list[Destination] = []
    last_trace_id, last_resource, destination = -1, None, default
    for span in spans:
        context, resource = span.context, span.resource
        trace_id = context[TRACE_ID] if context is not None else 0
        if trace_id != last_trace_id or resource is not last_resource:  # mostly, a trace's spans follow each other
            last_trace_id, last_resource = trace_id, resource
            key = (id(resource), _open.get(trace_id) or _ended.get(trace_id))
            cached = cache.get(key)
            if cached is None:
                cached = (resource, default.for_trace(resource.attributes, key[1]))
                evict_oldest(cache, _MAX_CACHED_DESTINATIONS)[key] = cached
            destination = cached[1]
        destinations.append(destination)
    return destinations


def read_routes(spans: Sequence[ReadableSpan]) -> dict[int, Route]:
    """Read routes from attributes, for traces that no processor of ours saw start; the local root's attributes win."""
    routes: dict[int, Route] = {}
    for span in [span for span in spans if not ROUTE_ATTRIBUTES.isdisjoint(span.attributes or ())]:
        context = span.context
        if context is not None and (own_route := read_route(span.attributes)) is not None:
            if span.parent is None or span.parent.is_remote:
                routes[context.trace_id] = own_route
            else:
                routes.setdefault(context.trace_id, own_route)
    return routes
