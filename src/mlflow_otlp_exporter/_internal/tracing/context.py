"""`trace_context()`: session, user, tags, metadata and destination for all spans that start inside of it.

What OpenInference's own context managers can say (`using_session` and so on) is kept under their keys of
OpenTelemetry's context: each sees what the other one says, the inner one wins, and OpenInference's instrumentations
read it as well. The rest has a key of this library's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from opentelemetry import baggage as otel_baggage
from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, set_value
from opentelemetry.sdk.trace import Span

from mlflow_otlp_exporter._internal.common.attribute_names import (
    EXPERIMENT,
    LINKED_PROMPTS,
    METADATA,
    PROMPT_TEMPLATE,
    PROMPT_TEMPLATE_VARIABLES,
    PROMPT_TEMPLATE_VERSION,
    RUN_ID,
    SESSION_ID,
    TAGS,
    TRACE_TAG,
    USER_ID,
    WORKSPACE,
)
from mlflow_otlp_exporter._internal.common.bounded_json import bounded_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.model.destination import Route, read_route
from mlflow_otlp_exporter._internal.tracing import routing as routing_module
from mlflow_otlp_exporter._internal.tracing.context_arguments import (
    parse_metadata,
    parse_prompts,
    parse_tags,
    parse_text,
)
from mlflow_otlp_exporter._internal.tracing.generators import (
    GeneratorContext,
    surroundings,
    wrapped_async_generator,
    wrapped_generator,
)
from mlflow_otlp_exporter._internal.tracing.span_context import IS_REMOTE

P = ParamSpec("P")
R = TypeVar("R")

# The names that `baggage=` takes, and what they are called in the baggage.
BAGGAGE = {
    "session": SESSION_ID,
    "user": USER_ID,
    "workspace": WORKSPACE,
    "experiment": EXPERIMENT,
    "run_id": RUN_ID,
}
# In OpenInference's order; what `openinference.instrumentation` itself puts onto spans.
_ON_EVERY_SPAN = (
    SESSION_ID,
    USER_ID,
    METADATA,
    TAGS,
    PROMPT_TEMPLATE,
    PROMPT_TEMPLATE_VERSION,
    PROMPT_TEMPLATE_VARIABLES,
)
_ANY_OF_THEM = frozenset(_ON_EVERY_SPAN)
_KEY = create_key("mlflow-otlp-trace")


class _OfTrace(NamedTuple):
    """What belongs to the trace as a whole.

    Attributes:
        route: Where it goes.
        attributes: For its root span.
        prompts: Name and version of prompts that it is linked to; `attributes` has them as JSON.
    """

    route: Route = Route()
    attributes: Mapping[str, str] = {}
    prompts: tuple[tuple[str, str], ...] = ()


class _Entered(NamedTuple):
    """A `trace_context` that was entered here and not left yet.

    Attributes:
        by: Which one.
        token: What undoes it.
        context: The context inside of it. Kept besides OpenTelemetry's own current one, which instrumentations of
            servers replace by what they extract from a request: what was said outside of them would be lost.
        before: The one around it.
    """

    by: object
    token: Any
    context: Context
    before: _Entered | None


_told = False
# Whether there was ever one: until then no span's start looks for what is around it.
_in_use = False
_entered: ContextVar[_Entered | None] = surroundings


class trace_context:  # noqa: N801 - used like a function
    """Says to whom and where the spans belong that start inside of it, in this thread or task.

    A context manager, an async context manager, and a decorator of functions, coroutines and generators of both kinds.
    It nests: the inner one wins, tags and metadata add up. Other threads see it if OpenTelemetry's context is carried
    there, as by `asyncio`, `contextvars.copy_context` or OpenTelemetry's threading instrumentation.

    What the app sets on a span itself wins. Where a trace goes is fixed when its local root starts: a destination
    that is given inside a trace counts for traces that begin there, not for the one that is running. Tags that are
    given inside a trace reach its root as long as that is open.

    Args:
        session: The session or conversation: MLflow shows the traces of one session together.
        user: The user.
        tags: Tags of the trace: a mapping, or names alone. Names that begin with `mlflow.` are left out.
        metadata: Anything more to know, put onto each span as JSON.
        experiment: The experiment's name.
        workspace: The workspace.
        experiment_id: The experiment's id, instead of its name.
        run_id: A run that the traces are linked to.
        prompt: The prompts of MLflow's registry that were used: `"name/version"`, a pair of both, an object that has
            them, or several of these.
        baggage: Which of `session`, `user`, `experiment`, `workspace` and `run_id` go with outgoing requests, as
            OpenTelemetry's baggage. The receiving process takes those that `MLFLOW_OTLP_BAGGAGE` names there.
    """

    def __init__(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        tags: Mapping[str, Any] | Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        experiment: str | None = None,
        workspace: str | None = None,
        experiment_id: str | int | None = None,
        run_id: str | None = None,
        prompt: Any = None,
        baggage: Iterable[str] = (),
    ) -> None:
        global _in_use  # noqa: PLW0603 - once for the process
        _in_use = True
        self._session, self._user = parse_text(session), parse_text(user)
        self._names, self._tags = parse_tags(tags)
        self._metadata = parse_metadata(metadata)
        self._route = Route(
            parse_text(workspace), parse_text(experiment), parse_text(experiment_id), parse_text(run_id)
        )
        self._prompts = parse_prompts(prompt)
        self._baggage = (baggage,) if isinstance(baggage, str) else tuple(baggage)
        unknown = sorted(set(self._baggage) - BAGGAGE.keys())
        if unknown:
            said = "trace_context(baggage=) has %s: expected some of %s [%s]"
            logger.warning(said, unknown, ", ".join(BAGGAGE), MessageCode.INVALID_TRACE_CONTEXT)

    def _inside(self) -> Context:
        """The current context with what is said here."""
        context = _with_surroundings(get_current())
        outer = context.get(_KEY)
        of_trace = self._of_trace(outer if isinstance(outer, _OfTrace) else _OfTrace())
        own: dict[str, Any] = {SESSION_ID: self._session, USER_ID: self._user}
        if self._names:
            own[TAGS] = list(dict.fromkeys((*_listed(context.get(TAGS)), *self._names)))
        if self._metadata:
            own[METADATA] = bounded_json({**_object(context.get(METADATA)), **self._metadata})
        for key, value in own.items():
            if value:
                context = set_value(key, value, context)
        for name in self._baggage:
            said = {**own, **dict(zip((WORKSPACE, EXPERIMENT, RUN_ID), _sendable(of_trace.route), strict=True))}
            if value := said.get(BAGGAGE.get(name, "")):
                context = otel_baggage.set_baggage(BAGGAGE[name], value, context)
        return set_value(_KEY, of_trace, context)

    def _of_trace(self, outer: _OfTrace) -> _OfTrace:
        prompts = tuple(dict.fromkeys((*outer.prompts, *self._prompts)))
        own = {**dict.fromkeys(self._names, "true"), **self._tags}
        attributes = {**outer.attributes, **{TRACE_TAG + name: value for name, value in own.items()}}
        if prompts:
            attributes[LINKED_PROMPTS] = json.dumps([{"name": name, "version": version} for name, version in prompts])
        return _OfTrace(self._route.inside(outer.route), attributes, prompts)

    def __enter__(self) -> trace_context:
        context = self._inside()
        _tell_open_root(context, self._route)
        _entered.set(_Entered(self, attach(context), context, _entered.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        last = _entered.get()
        # Left elsewhere than it was entered, as frameworks do that run both ends in threads: nothing to undo there.
        if last is not None and last.by is self:
            _entered.set(last.before)
            detach(last.token)

    async def __aenter__(self) -> trace_context:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wraps a function: it runs inside, whatever kind of function it is."""
        if inspect.isasyncgenfunction(function):
            return cast("Callable[P, R]", wrapped_async_generator(function, self._begin))
        if inspect.isgeneratorfunction(function):
            return cast("Callable[P, R]", wrapped_generator(function, self._begin))
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", coroutine)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return call

    def _begin(self, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> GeneratorContext:
        context = self._inside()
        _tell_open_root(context, self._route)
        return GeneratorContext(context, _Entered(None, None, context, _entered.get()))


def apply_context(span: Span, trace_id: int, parent_context: Context | None, received: Iterable[str] = ()) -> None:
    """Puts what the context says onto a span that starts; what the span has already, stays.

    Args:
        span: The span.
        trace_id: Its trace.
        parent_context: The context that it starts in; None for the current one.
        received: Which names are taken from the baggage.
    """
    context = get_current() if parent_context is None else parent_context
    entered = _entered.get() if _in_use else None
    parent = span.parent if context else None  # an empty context has none
    if entered is None and not received and len(context) == (parent is not None):
        # Nobody says anything: the context has the parent alone. Most apps pay for no more than this with each span.
        if parent is None or parent[IS_REMOTE]:
            routing_module.opened(trace_id, span, read_route(_plain(span)) if span.attributes else None)
        return
    if entered is not None and _KEY not in context:
        context = _with_surroundings(context)
    carried = _carried(context, received) if received else {}
    found: dict[str, Any] = {key: carried[key] for key in (SESSION_ID, USER_ID) if key in carried} if carried else {}
    if not _ANY_OF_THEM.isdisjoint(context):
        found |= {key: value for key in _ON_EVERY_SPAN if (value := context.get(key)) is not None}
    if parent is None or parent[IS_REMOTE]:
        route: Route | None = None
        of_trace = context.get(_KEY)
        if isinstance(of_trace, _OfTrace):
            found |= of_trace.attributes
            route = of_trace.route
        if carried:
            told = Route(carried.get(WORKSPACE), carried.get(EXPERIMENT), None, carried.get(RUN_ID))
            route = told if route is None else route.inside(told)
        if route is None or not any(route):
            route = read_route(_plain(span)) if span.attributes else None
        routing_module.opened(trace_id, span, route)
    if found:
        _add(span, found)


def _with_surroundings(context: Context) -> Context:
    """A context with what is said by the `trace_context` around, if something in between has replaced the context."""
    if _KEY in context:
        return context
    around = _entered.get()
    if around is None:
        return context
    for key in (_KEY, *_ON_EVERY_SPAN):
        if key in around.context and key not in context:
            context = set_value(key, around.context[key], context)
    return context


def _tell_open_root(context: Context, route: Route) -> None:
    """Tags that are given inside a trace: MLflow reads them on the root, which has started already."""
    running = trace.get_current_span().get_span_context()
    of_trace = context.get(_KEY)
    root = routing_module.open_root(running.trace_id) if running.is_valid else None
    if root is not None and any(route):
        _tell_of_running_trace(running.trace_id, route)
    if root is not None and root.is_recording() and isinstance(of_trace, _OfTrace):
        found = {key: value for key in (SESSION_ID, USER_ID) if (value := context.get(key))}
        _add(root, {**of_trace.attributes, **found})


def _tell_of_running_trace(trace_id: int, route: Route) -> None:
    """A destination that comes too late, said once: a tenant's trace in another place is not to go unnoticed."""
    global _told  # noqa: PLW0603 - once for the process
    known = routing_module.route_of(trace_id) or Route()
    if not _told and route.inside(known) != known:
        _told = True
        logger.warning(
            "trace_context() names a destination inside a trace that has begun: its spans go where their root went. "
            "Name it before the first span starts; where a web framework makes it, in a wrapper around the app [%s]",
            MessageCode.DESTINATION_TOO_LATE,
        )


def _add(span: Span, found: Mapping[str, Any]) -> None:
    present = _plain(span)
    span.set_attributes({key: value for key, value in found.items() if key not in present})


def _plain(span: Span) -> Mapping[str, Any]:
    """A span's attributes, copied: each look into the SDK's own mapping takes a lock and a microsecond."""
    attributes = span.attributes
    return attributes.copy() if isinstance(attributes, MappingProxyType) else attributes or {}


def _carried(context: Context, received: Iterable[str]) -> dict[str, str]:
    entries = otel_baggage.get_all(context)
    if not entries:
        return {}
    names = (BAGGAGE[name] for name in received)
    return {name: text for name in names if (text := parse_text(entries.get(name)))}


def _sendable(route: Route) -> tuple[str | None, str | None, str | None]:
    return route.workspace, route.experiment, route.run_id


def _listed(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _object(value: Any) -> dict[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
