"""Where a trace goes that does not go where the exporter sends by default: told once for each trace, for all its spans.

Kept for the process, by trace id, which is unique: whatever processor saw the trace start, every exporter finds it.
Nothing here takes a lock, as spans start in signal handlers and finalizers, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from opentelemetry.sdk.trace import Span

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE

# Traces whose local root is open: spans that never end must not pile up.
_OPEN_TRACES = 65_536
# Traces whose local root has ended, for spans that are late.
_ENDED_TRACES = 16_384
_OPEN_ROOTS = 8192


class Route(NamedTuple):
    """Where a trace goes inside MLflow; None stands for what the exporter does by default.

    Attributes:
        workspace: The workspace's name.
        experiment: The experiment's name.
        experiment_id: The experiment's id, instead of its name.
        run_id: A run that the trace is linked to.
    """

    workspace: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None

    def inside(self, outer: Route) -> Route:
        """This route where another one holds already; an id or a run of another workspace or experiment is dropped."""
        moved = bool(self.workspace and self.workspace != outer.workspace)
        named = bool(self.experiment or self.experiment_id)
        return Route(
            self.workspace or outer.workspace,
            self.experiment if named else outer.experiment,
            self.experiment_id if named or moved else outer.experiment_id,
            self.run_id if self.run_id or named or moved else outer.run_id,
        )


K = TypeVar("K")
V = TypeVar("V")
_NAMES = (WORKSPACE, EXPERIMENT, EXPERIMENT_ID, RUN_ID)
_open: dict[int, Route] = {}
_ended: dict[int, Route] = {}
_roots: dict[int, Span] = {}


def in_attributes(attributes: Mapping[str, Any] | None) -> Route | None:
    """The route that attributes of a span or resource tell, such as `mlflow.experiment`; None if they tell none."""
    if not attributes or not (
        WORKSPACE in attributes or EXPERIMENT in attributes or EXPERIMENT_ID in attributes or RUN_ID in attributes
    ):
        return None
    found = [str(attributes.get(name) or "").strip() or None for name in _NAMES]
    return Route(*found) if any(found) else None


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
        with_room(_open, _OPEN_TRACES)[trace_id] = known = route
    return known


def fix_ended(trace_id: int, route: Route) -> None:
    """Says where a trace goes whose spans have ended, unless that has been said."""
    if route_of(trace_id) is None:
        with_room(_ended, _ENDED_TRACES)[trace_id] = route


def opened(trace_id: int, span: Span, route: Route | None) -> None:
    """Tells that a local root has started.

    Args:
        trace_id: Its trace.
        span: The local root.
        route: Where its trace goes; None for the default.
    """
    if _ended and trace_id in _ended:  # one more local root of a trace, as of an app that calls itself
        with suppress(KeyError):
            with_room(_open, _OPEN_TRACES)[trace_id] = _ended.pop(trace_id)
    elif route is not None:
        fix(trace_id, route)
    if len(_roots) >= _OPEN_ROOTS:
        with_room(_roots, _OPEN_ROOTS)
    _roots.setdefault(trace_id, span)


def closed(trace_id: int) -> None:
    """Tells that the local root of a trace has ended."""
    _roots.pop(trace_id, None)
    route = _open.pop(trace_id, None) if _open else None
    if route is not None:
        with_room(_ended, _ENDED_TRACES)[trace_id] = route


def open_root(trace_id: int) -> Span | None:
    """The local root of a trace, as long as it is open."""
    return _roots.get(trace_id)


def with_room(kept: dict[K, V], most: int) -> dict[K, V]:
    """The same dict with room for one more: what came first goes."""
    while len(kept) >= most:
        # Another thread may make room at the same moment.
        with suppress(KeyError, RuntimeError, StopIteration):
            del kept[next(iter(kept))]
    return kept
