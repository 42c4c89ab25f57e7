"""`@traced`: a function call becomes a span."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast, overload

from opentelemetry.context import attach, detach
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.tracing.generators import (
    GeneratorContext,
    wrapped_async_generator,
    wrapped_generator,
)
from mlflow_otlp_exporter._internal.tracing.span_attributes import as_documents, as_inputs, as_outputs
from mlflow_otlp_exporter._internal.tracing.tracers import tracer

P = ParamSpec("P")
R = TypeVar("R")

# OpenInference's kinds; of MLflow's further types, the kind that comes nearest.
_KINDS = frozenset(
    "LLM CHAIN AGENT TOOL RETRIEVER EMBEDDING RERANKER GUARDRAIL EVALUATOR PROMPT UNKNOWN".split()  # noqa: SIM905
)
_NEAREST = {"CHAT_MODEL": "LLM"}
_KNOWN = (*sorted(_KINDS), *_NEAREST, "DECISION", "MEMORY", "PARSER", "TASK", "WORKFLOW")
# How like a known kind one must be to be taken for a mistyped one, by difflib: RETRIEVAL is (0.78), TALK is not (0.75).
_ALIKE = 0.77
# Shorter ones are like too many words of their own right: LM, ASK, VLM.
_SHORTEST_MISTYPED = 4
_OWN_ARGUMENTS = frozenset({"self", "cls", "mcs"})
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What a generator yielded is kept to be shown, up to these limits.
_MOST_ITEMS, _MOST_CHARACTERS = 10_000, 1 << 20


@overload
def traced(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def traced(
    *,
    kind: str = "CHAIN",
    name: str | None = None,
    capture_inputs: bool = True,
    capture_outputs: bool = True,
    attributes: Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def traced(
    function: Callable[..., Any] | None = None,
    /,
    *,
    kind: str = "CHAIN",
    name: str | None = None,
    capture_inputs: bool = True,
    capture_outputs: bool = True,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Makes a span of each call: what went in, what came out, what was raised.

    For functions, methods, coroutines, generators and async generators, below or above `@staticmethod` and
    `@classmethod`. A generator's span lasts from its first step to its end, and has what it yielded as its output.

    Args:
        function: The function, where the decorator is used without arguments.
        kind: What the function is: `AGENT`, `TOOL`, `CHAIN`, `LLM`, `RETRIEVER`, `EMBEDDING`, `RERANKER`, `GUARDRAIL`,
            `EVALUATOR`; or a type of MLflow's or your own, such as `WORKFLOW` or `PLANNER`. Small letters become
            capitals. One that is most likely mistyped is told of in the log, and taken as it is.
        name: The span's name; the function's if None.
        capture_inputs: Whether the arguments are kept, by parameter name and as JSON, `self` and `cls` left out.
        capture_outputs: Whether the result is kept: a text as it is, all else as JSON; documents of a `RETRIEVER` or
            `RERANKER` as such.
        attributes: Further attributes of each span.
    """

    def decorate(decorated: Callable[..., Any]) -> Any:
        if isinstance(decorated, staticmethod | classmethod):
            return type(decorated)(decorate(decorated.__func__))
        maker = _SpanMaker(decorated, kind, name, attributes, inputs=capture_inputs, outputs=capture_outputs)
        return maker.wrapped()

    return decorate if function is None else decorate(function)


@lru_cache(maxsize=256)  # as decorators may be used at every call
def _meant(kind: str) -> str | None:
    """The known kind that an unknown one is a mistyped form of, most likely: it begins alike, too."""
    if kind in _KNOWN or len(kind) < _SHORTEST_MISTYPED:
        return None
    import difflib  # only for a kind that is not known

    alike = difflib.get_close_matches(kind, [known for known in _KNOWN if known[0] == kind[0]], 1, _ALIKE)
    return alike[0] if alike else None


@lru_cache(maxsize=256)  # once for each function
def _tell_of_mistyped(kind: str, function: str) -> None:
    if meant := _meant(kind):
        said = "@traced(kind=%r) of %s: is %s meant? MLflow knows no such kind; it is taken as it is [%s]"
        logger.warning(said, kind, function, meant, MessageCode.UNKNOWN_KIND)


class _SpanMaker:
    """Makes the spans of one function."""

    def __init__(
        self,
        function: Callable[..., Any],
        kind: str,
        name: str | None,
        attributes: Mapping[str, Any] | None,
        *,
        inputs: bool,
        outputs: bool,
    ) -> None:
        self._function = function
        self._name = name or str(getattr(function, "__name__", type(function).__name__))
        self._outputs = outputs
        self._arguments = _Arguments(function) if inputs else None
        given = str(kind.value if isinstance(kind, Enum) else kind).strip().upper() or "CHAIN"
        _tell_of_mistyped(given, str(getattr(function, "__qualname__", self._name)))
        self._kind = given if given in _KINDS else _NEAREST.get(given, "CHAIN")
        self._attributes: dict[str, Any] = {names.SPAN_KIND: self._kind}
        if given != self._kind:
            self._attributes[names.SPAN_TYPE] = given
        if self._kind == "TOOL":
            self._attributes[names.TOOL_NAME] = self._name
            if about := inspect.getdoc(function):
                self._attributes[names.TOOL_DESCRIPTION] = about
        self._attributes |= attributes or {}

    def wrapped(self) -> Callable[..., Any]:
        function = self._function
        if inspect.isasyncgenfunction(function):
            return wrapped_async_generator(function, self._begin_steps)
        if inspect.isgeneratorfunction(function):
            return wrapped_generator(function, self._begin_steps)
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                span = self.begin(args, kwargs)
                token = attach(set_span_in_context(span))
                try:
                    result = await function(*args, **kwargs)
                except BaseException as error:
                    self.failed(span, error)
                    raise
                else:
                    self.returned(span, result)
                    return result
                finally:
                    detach(token)
                    span.end()

            return coroutine

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            span = self.begin(args, kwargs)
            token = attach(set_span_in_context(span))
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self.failed(span, error)
                raise
            else:
                self.returned(span, result)
                return result
            finally:
                detach(token)
                span.end()

        return call

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Span:
        span = tracer().start_span(self._name, attributes=self._attributes)
        if self._arguments is not None and span.is_recording():
            try:
                span.set_attributes(as_inputs(self._arguments.by_name(args, kwargs)))
            except Exception as error:  # noqa: BLE001 - the app must not fail for what is said about it
                logger.warning(
                    "the inputs of %s are not kept: %s [%s]",
                    self._name,
                    type(error).__name__,
                    MessageCode.CONTENT_NOT_RECORDED,
                )
        return span

    def returned(self, span: Span, result: Any) -> None:
        if not self._outputs or result is None or not span.is_recording():
            return
        try:
            said = getattr(span, "attributes", None) or {}
            if names.OUTPUT_VALUE not in said:
                span.set_attributes(as_outputs(result))
            if self._kind in ("RETRIEVER", "RERANKER") and isinstance(result, list | tuple):
                found = as_documents(result, self._kind)
                if not found.keys() & said.keys():
                    span.set_attributes(found)
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning(
                "the outputs of %s are not kept: %s [%s]",
                self._name,
                type(error).__name__,
                MessageCode.CONTENT_NOT_RECORDED,
            )

    def failed(self, span: Span, error: BaseException) -> None:
        if isinstance(error, GeneratorExit) or not span.is_recording():
            return
        # A cancelled task has not done its work either.
        span.record_exception(cast("Exception", error))
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))

    def _begin_steps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GeneratorContext:
        return _TracedSteps(self, self.begin(args, kwargs))


class _TracedSteps(GeneratorContext):
    """One run of a traced generator."""

    __slots__ = ("_items", "_maker", "_size", "_span")

    def __init__(self, maker: _SpanMaker, span: Span) -> None:
        super().__init__(set_span_in_context(span))
        self._maker, self._span = maker, span
        self._items: list[Any] = []
        self._size = 0

    def yielded(self, item: Any) -> None:
        if len(self._items) < _MOST_ITEMS and self._size < _MOST_CHARACTERS:
            self._items.append(item)
            self._size += len(item) if isinstance(item, str) else 100

    def ended(self, error: BaseException | None, result: Any = None) -> None:
        items = self._items
        if items:
            whole = "".join(items) if all(isinstance(item, str) for item in items) else items
            self._maker.returned(self._span, whole)
        else:
            self._maker.returned(self._span, result)
        if error is not None:
            self._maker.failed(self._span, error)
        self._span.end()


class _Arguments:
    """A function's arguments by parameter name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):  # a function of C that tells nothing of itself
            self._signature = None
        parameters = list(self._signature.parameters.values()) if self._signature else []
        self._names = [parameter.name for parameter in parameters]
        self._left_out = self._names[:1] if self._names and self._names[0] in _OWN_ARGUMENTS else []
        self._defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.default is not inspect.Parameter.empty
        }
        self._several = not parameters or any(parameter.kind in _SEVERAL for parameter in parameters)

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, with the defaults of those that were not given."""
        if self._several:
            return self._bound(args, kwargs)
        # Binding by the signature takes as long as a whole span.
        found = dict(zip(self._names, args, strict=False))
        found.update(kwargs)
        for name, value in self._defaults.items():
            if name not in found:
                found[name] = value
        for name in self._left_out:
            found.pop(name, None)
        return found

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._signature is None:
            return {"args": list(args), "kwargs": dict(kwargs)}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:  # the call itself will raise it
            return {"args": list(args), "kwargs": dict(kwargs)}
        bound.apply_defaults()
        found: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                found.update(value)
            elif name not in self._left_out:
                found[name] = value
        return found
