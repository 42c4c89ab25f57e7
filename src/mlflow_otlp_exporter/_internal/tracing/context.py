"""`trace_context()`: session, user, tags, metadata and destination for all spans that start inside it.

Session, user, tags and metadata are stored under the context keys of OpenInference's `using_session` and its siblings.
Both see each other's values, the inner one wins, and OpenInference's instrumentations read them. Everything else is
stored under a key of this library.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from opentelemetry.context import Context, attach, create_key, detach, get_current, set_value
from opentelemetry.sdk.trace import Span

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.json_values import bounded_json
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.model.destination import Route, read_route
from mlflow_otlp_exporter._internal.model.spans import IS_REMOTE
from mlflow_otlp_exporter._internal.tracing import routing
from mlflow_otlp_exporter._internal.tracing.generators import GeneratorContext, entered_contexts, wrap_function
from mlflow_otlp_exporter._internal.tracing.parents import find_current_span
from mlflow_otlp_exporter._internal.tracing.results import COMPLETE_TYPES, follow

P = ParamSpec("P")
V = TypeVar("V")
R = TypeVar("R")

# Names that `baggage=` accepts, and their keys in the baggage.
BAGGAGE_KEYS = {
    "session": names.SESSION_ID,
    "user": names.USER_ID,
    "workspace": names.WORKSPACE,
    "experiment": names.EXPERIMENT,
    "run_id": names.RUN_ID,
}
# Attributes that `openinference.instrumentation` puts on every span, in its order.
_SPAN_ATTRIBUTES = (
    *(names.SESSION_ID, names.USER_ID, names.METADATA, names.TAGS),
    *(names.PROMPT_TEMPLATE, names.PROMPT_TEMPLATE_VERSION, names.PROMPT_TEMPLATE_VARIABLES),
)
_MAX_TAG_NAME_LENGTH = 250  # MLflow silently drops tags with longer names
# Any caller can set baggage: without limits it could create experiments, and a queue for each, without end.
_MAX_BAGGAGE_LENGTH, _MAX_BAGGAGE_NAMES = 250, 100
_baggage_names: dict[str, set[str]] = {names.WORKSPACE: set(), names.EXPERIMENT: set()}
_SPAN_ATTRIBUTE_SET = frozenset(_SPAN_ATTRIBUTES)
_KEY = create_key("mlflow-otlp-trace")


class TraceAttributes(NamedTuple):
    """Route of a trace, attributes of its root span, and linked prompts (also in `attributes`, as JSON)."""

    route: Route = Route()
    attributes: Mapping[str, str] = {}
    prompts: tuple[tuple[str, str], ...] = ()


class EnteredContext(NamedTuple):
    """A `trace_context` that was entered here and not left yet; `outer` is the one around it."""

    owner: object
    token: Any
    # Stored beside OpenTelemetry's current context: server instrumentations replace that one with what they extract
    # from a request, and the values of a `trace_context` around the server would be lost.
    context: Context
    outer: "EnteredContext | None"


_has_warned_late_destination = _has_warned_baggage = False
# Set by the first `trace_context`; until then the start of a span reads no context variable.
_is_used = False
_entered: ContextVar[EnteredContext | None] = entered_contexts


class trace_context:  # noqa: N801 - used like a function
    """Set session, user, tags, metadata and destination for all spans that start inside, in this thread or task.

    Works as a context manager, as an async context manager, and as a decorator of functions, coroutines, generators and
    async generators. Contexts nest: the inner value wins; tags and metadata are merged. Other threads see the context
    if OpenTelemetry's context is propagated to them, for example by `asyncio`, `contextvars.copy_context` or
    OpenTelemetry's threading instrumentation.

    Attributes that the application sets on a span itself win. The destination of a trace is fixed when its local root
    starts: a destination inside a running trace applies to traces that start there, not to the running one. Tags inside
    a running trace are added to its local root while that span is open.

    Args:
        session: Id of the session or conversation; MLflow groups the traces of one session (`session.id`).
        user: Id of the user (`user.id`).
        tags: Tags of the trace, as a mapping or as names without values. Names that begin with `mlflow.` are ignored.
        metadata: Further values, written to each span as JSON (`metadata`).
        experiment: Name of the experiment.
        workspace: Name of the MLflow workspace.
        experiment_id: Id of the experiment, instead of its name.
        run_id: Id of the MLflow run that the traces are linked to.
        prompt: Prompts of MLflow's registry that were used: `"name/version"`, a pair of name and version, an object
            with the attributes `name` and `version`, or an iterable of these.
        baggage: Names among `session`, `user`, `experiment`, `workspace` and `run_id` whose values are sent with
            outgoing requests as OpenTelemetry baggage. The receiving process accepts those that its
            `MLFLOW_OTLP_BAGGAGE` names.
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
        global _is_used  # noqa: PLW0603 - once for the process
        _is_used = True
        self._session, self._user = _parse_text(session), _parse_text(user)
        self._names, self._tags = _guard("tags=", parse_tags, tags) or ((), {})
        self._metadata = _guard("metadata=", _parse_metadata, metadata) or {}
        self._route = Route(
            _parse_text(workspace), _parse_text(experiment), _parse_text(experiment_id), _parse_text(run_id)
        )
        self._prompts = _guard("prompt=", _parse_prompts, prompt) or ()
        self._baggage = _guard("baggage=", _parse_baggage, baggage) or ()

    def _build_context(self) -> Context:
        context = _restore_entered_values(get_current())
        outer = context.get(_KEY)
        trace_attributes = self._merge_trace_attributes(
            outer if isinstance(outer, TraceAttributes) else TraceAttributes()
        )
        own: dict[str, Any] = {names.SESSION_ID: self._session, names.USER_ID: self._user}
        if self._names:
            own[names.TAGS] = list(dict.fromkeys((*_as_list(context.get(names.TAGS)), *self._names)))
        if self._metadata:
            own[names.METADATA] = bounded_json({**_parse_object(context.get(names.METADATA)), **self._metadata})
        for key, value in own.items():
            if value:
                context = set_value(key, value, context)
        for name in self._baggage:
            route = trace_attributes.route
            values = {
                **own,
                names.WORKSPACE: route.workspace,
                names.EXPERIMENT: route.experiment,
                names.RUN_ID: route.run_id,
            }
            if value := values.get(BAGGAGE_KEYS.get(name, "")):
                from opentelemetry.baggage import set_baggage  # few applications write baggage

                context = set_baggage(BAGGAGE_KEYS[name], value, context)
        return set_value(_KEY, trace_attributes, context)

    def _merge_trace_attributes(self, outer: TraceAttributes) -> TraceAttributes:
        prompts = tuple(dict.fromkeys((*outer.prompts, *self._prompts)))
        tags = {**dict.fromkeys(self._names, "true"), **self._tags}
        attributes = {**outer.attributes, **{names.TRACE_TAG + name: value for name, value in tags.items()}}
        if prompts:
            attributes[names.LINKED_PROMPTS] = json.dumps(
                [{"name": name, "version": version} for name, version in prompts]
            )
        return TraceAttributes(self._route.merge_into(outer.route), attributes, prompts)

    def __enter__(self) -> "trace_context":
        context = self._build_context()
        _update_open_root(context, self._route)
        _entered.set(EnteredContext(self, attach(context), context, _entered.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entered = _entered.get()
        # Frameworks that run both ends in threads leave the context in another thread: nothing to undo there.
        if entered is not None and entered.owner is self:
            _entered.set(entered.outer)
            detach(entered.token)

    async def __aenter__(self) -> "trace_context":
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, coroutine function, generator or async generator; its body runs inside this context.

        Args:
            function: The function to decorate.

        Returns:
            A function of the same kind and signature.
        """
        wrapper = wrap_function(function, self._begin, follow)
        if wrapper is not None:
            return cast("Callable[P, R]", wrapper)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                result = function(*args, **kwargs)
            if type(result) in COMPLETE_TYPES:
                return result
            return cast("R", follow(result, self._begin(args, kwargs)))

        return call

    def _begin(self, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> GeneratorContext:
        context = self._build_context()
        _update_open_root(context, self._route)
        return GeneratorContext(context, EnteredContext(None, None, context, _entered.get()))


def apply_context(span: Span, trace_id: int, parent_context: Context | None, received: Iterable[str] = ()) -> None:
    """Write the values of the context to a span that starts; attributes that the span already has win.

    `parent_context` is the context in which the span starts (None: the current one), `received` the names that are
    accepted from the baggage.
    """
    context = get_current() if parent_context is None else parent_context
    entered = _entered.get() if _is_used else None
    parent = span.parent if context else None  # an empty context has none
    add_attributes: Callable[[Span, dict[str, Any]], None] = _add_missing_attributes
    if entered is None and not received and len(context) == (parent is not None):
        # The context holds nothing but the parent. Most applications pay only for this check with each span.
        if parent is None or parent[IS_REMOTE]:
            routing.on_root_start(trace_id, span, read_route(_copy_attributes(span)) if span.attributes else None)
        return
    if entered is not None and _KEY not in context:
        context = _restore_entered_values(context)
    baggage = _read_baggage(context, received) if received else {}
    attributes: dict[str, Any] = (
        {key: baggage[key] for key in (names.SESSION_ID, names.USER_ID) if key in baggage} if baggage else {}
    )
    if not _SPAN_ATTRIBUTE_SET.isdisjoint(context):
        attributes |= {key: value for key in _SPAN_ATTRIBUTES if (value := context.get(key)) is not None}
    if parent is None or parent[IS_REMOTE]:
        route: Route | None = None
        trace_attributes = context.get(_KEY)
        if isinstance(trace_attributes, TraceAttributes):
            attributes |= trace_attributes.attributes
            route = trace_attributes.route
        if baggage:
            baggage_route = Route(
                baggage.get(names.WORKSPACE), baggage.get(names.EXPERIMENT), None, baggage.get(names.RUN_ID)
            )
            route = baggage_route if route is None else route.merge_into(baggage_route)
        if route is None or not any(route):
            route = read_route(_copy_attributes(span)) if span.attributes else None
        routing.on_root_start(trace_id, span, route)
        add_attributes = _add_root_attributes
    if attributes:
        add_attributes(span, attributes)


def _restore_entered_values(context: Context) -> Context:
    # Instrumentations between the `trace_context` and here may have replaced OpenTelemetry's context.
    if _KEY in context:
        return context
    entered = _entered.get()
    if entered is None:
        return context
    for key in (_KEY, *_SPAN_ATTRIBUTES):
        if key in entered.context and key not in context:
            context = set_value(key, entered.context[key], context)
    return context


def _update_open_root(context: Context, route: Route) -> None:
    # MLflow reads the tags of a trace on its root span, which has already started.
    current = find_current_span().get_span_context()
    trace_attributes = context.get(_KEY)
    root = routing.open_root(current.trace_id) if current.is_valid else None
    if root is not None and any(route):
        _warn_late_destination(current.trace_id, route)
    if root is not None and root.is_recording() and isinstance(trace_attributes, TraceAttributes):
        identity = {key: value for key in (names.SESSION_ID, names.USER_ID) if (value := context.get(key))}
        _add_root_attributes(root, {**trace_attributes.attributes, **identity})


def _warn_late_destination(trace_id: int, route: Route) -> None:
    # Logged once: a tenant's trace must not reach another destination unnoticed.
    global _has_warned_late_destination  # noqa: PLW0603 - once for the process
    current = routing.route_of(trace_id) or Route()
    if not _has_warned_late_destination and route.merge_into(current) != current:
        _has_warned_late_destination = True
        logger.warning(
            "trace_context() names a destination inside a running trace; the spans of that trace stay with their root. "
            "Enter trace_context() before the first span starts; if a web framework starts that span, use a wrapper "
            "around the application [%s]",
            MessageCode.DESTINATION_TOO_LATE,
        )


def _add_missing_attributes(span: Span, attributes: Mapping[str, Any]) -> None:
    present = _copy_attributes(span)
    span.set_attributes({key: value for key, value in attributes.items() if key not in present})


def _add_root_attributes(span: Span, attributes: dict[str, Any]) -> None:
    session = attributes.get(names.SESSION_ID)
    if session is not None and _copy_attributes(span).get(names.SESSION_ID, session) == session:
        attributes[names.TRACE_SESSION] = session
    _add_missing_attributes(span, attributes)


def _copy_attributes(span: Span) -> Mapping[str, Any]:
    # Copied, because each access to the SDK's own mapping takes a lock and a microsecond.
    attributes = span.attributes
    return attributes.copy() if isinstance(attributes, MappingProxyType) else attributes or {}


def _read_baggage(context: Context, received: Iterable[str]) -> dict[str, str]:
    from opentelemetry.baggage import get_all  # few applications read baggage

    entries = get_all(context)
    if not entries:
        return {}
    keys = (BAGGAGE_KEYS[name] for name in received)
    return {key: text for key in keys if (text := _parse_text(entries.get(key))) and _accept_baggage(key, text)}


def _accept_baggage(key: str, text: str) -> bool:
    global _has_warned_baggage  # noqa: PLW0603 - once for the process
    accepted_names = _baggage_names.get(key)
    has_room = accepted_names is None or text in accepted_names or len(accepted_names) < _MAX_BAGGAGE_NAMES
    if has_room and len(text) <= _MAX_BAGGAGE_LENGTH and text.isprintable():
        if accepted_names is not None:
            accepted_names.add(text)
        return True
    if not _has_warned_baggage:
        _has_warned_baggage = True
        logger.warning(
            "Ignored %s in the baggage of a request: more than %d characters, control characters, or more than %d "
            "different workspaces or experiments in this process [%s]",
            key,
            _MAX_BAGGAGE_LENGTH,
            _MAX_BAGGAGE_NAMES,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
    return False


def _as_list(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _parse_object(value: Any) -> dict[str, Any]:
    parsed = parse_json(value) if isinstance(value, str) else None
    return parsed if isinstance(parsed, dict) else {}


def _parse_text(value: Any) -> str | None:
    """Return the stripped text; None if it is empty."""
    if value is None:
        return None
    return _guard("session=, user= or a destination", lambda text: str(text).strip(), value) or None


def _guard(argument: str, parse: Callable[[Any], V], value: Any) -> V | None:
    try:
        return parse(value)
    except BaseException as error:  # methods of the value may raise anything
        if must_propagate(error):
            raise
        logger.warning(
            "trace_context() ignores %s: a method of its %s raises %s [%s]",
            argument,
            type(value).__name__,
            type(error).__name__,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
        return None


def _parse_baggage(baggage: Any) -> tuple[str, ...]:
    baggage_names = (baggage,) if isinstance(baggage, str) else tuple(baggage)
    unknown = [name for name in baggage_names if name not in BAGGAGE_KEYS]
    if unknown:
        logger.warning(
            "trace_context(baggage=) ignores %s: expected names among %s [%s]",
            sorted(unknown),
            ", ".join(BAGGAGE_KEYS),
            MessageCode.INVALID_TRACE_CONTEXT,
        )
    return baggage_names


def parse_tags(tags: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return tags without values and tags with values."""
    if tags is None:
        return (), {}
    if not isinstance(tags, Iterable):
        logger.warning(
            "trace_context(tags=) is a %s and is ignored: expected a mapping or names [%s]",
            type(tags).__name__,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
        return (), {}
    tag_names = {str(name).strip(): name for name in ((tags,) if isinstance(tags, str) else tags)}
    invalid = [name for name in tag_names if not name or name.startswith("mlflow.") or len(name) > _MAX_TAG_NAME_LENGTH]
    if invalid:
        logger.warning(
            "trace_context(tags=) ignores tags %s: MLflow reserves names that begin with `mlflow.` "
            "and accepts at most %d characters [%s]",
            ", ".join(repr(name[:60]) for name in invalid),
            _MAX_TAG_NAME_LENGTH,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
    valid = [name for name in tag_names if name not in invalid]
    if isinstance(tags, Mapping):
        return (), {name: _tag_value(tags[tag_names[name]]) for name in valid}
    return tuple(valid), {}


def _parse_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is None or isinstance(metadata, Mapping):
        return dict(metadata or {})
    logger.warning(
        "trace_context(metadata=) is a %s and is ignored: expected a mapping [%s]",
        type(metadata).__name__,
        MessageCode.INVALID_TRACE_CONTEXT,
    )
    return {}


def _tag_value(value: Any) -> str:
    return value if isinstance(value, str) else bounded_json(value).strip('"')


def _parse_prompts(prompt: Any) -> tuple[tuple[str, str], ...]:
    """Return names and versions; the accepted forms are documented at `trace_context`."""
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        name, _, version = prompt.removeprefix("prompts:/").rpartition("/")
        if name and version:
            return ((name, version),)
    elif hasattr(prompt, "name") and hasattr(prompt, "version"):
        return ((str(prompt.name), str(prompt.version)),)
    elif isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[1], str | int):  # name and version
        if not (isinstance(prompt[1], str) and "/" in prompt[1]):
            return ((str(prompt[0]), str(prompt[1])),)
        return (*_parse_prompts(prompt[0]), *_parse_prompts(prompt[1]))
    elif isinstance(prompt, Iterable):
        return tuple(pair for item in prompt for pair in _parse_prompts(item))
    logger.warning(
        "trace_context(prompt=) ignores a %s: expected 'name/version' [%s]",
        type(prompt).__name__,
        MessageCode.INVALID_TRACE_CONTEXT,
    )
    return ()
