"""`@traced`: a decorator that creates a span for each call of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from functools import cached_property, lru_cache, partialmethod
from typing import Any, ParamSpec, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, set_span_in_context

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.tracing.errors import is_cancellation, record_error
from mlflow_otlp_exporter._internal.tracing.generators import GeneratorContext, named_like, wrap_function
from mlflow_otlp_exporter._internal.tracing.parents import find_parent_context
from mlflow_otlp_exporter._internal.tracing.results import COMPLETE_TYPES, follow
from mlflow_otlp_exporter._internal.tracing.span_attributes import as_documents, as_inputs, as_outputs, join_items
from mlflow_otlp_exporter._internal.version import __version__

P = ParamSpec("P")
R = TypeVar("R")

# OpenInference's span kinds.
_KINDS = frozenset(
    "LLM CHAIN AGENT TOOL RETRIEVER EMBEDDING RERANKER GUARDRAIL EVALUATOR PROMPT UNKNOWN".split()  # noqa: SIM905
)
# MLflow's span types that map to a kind other than CHAIN.
_KIND_OF_SPAN_TYPE = {"CHAT_MODEL": "LLM"}
_KNOWN_KINDS = (*sorted(_KINDS), *_KIND_OF_SPAN_TYPE, "DECISION", "MEMORY", "PARSER", "TASK", "WORKFLOW")
# Similarity (difflib) from which an unknown kind counts as mistyped: RETRIEVAL has 0.78, TALK has 0.75.
_MIN_SIMILARITY = 0.77
# Shorter kinds resemble too many words: LM, ASK, VLM.
_MIN_MISTYPED_LENGTH = 4
_RECEIVER_NAMES = frozenset({"self", "cls", "mcs"})
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Limits for the recorded output of a generator.
_MAX_ITEM_COUNT, _MAX_CHARACTER_COUNT = 10_000, 1 << 20
_SCOPE = "mlflow_otlp_exporter"

_provider: trace.TracerProvider | None = None
_cached_tracer: tuple[trace.TracerProvider | None, trace.Tracer | None] = (None, None)


def use_provider(provider: trace.TracerProvider | None) -> None:
    """Set the provider of `@traced`'s tracer; None means the global provider."""
    global _provider  # noqa: PLW0603 - one for the process, as the global provider is
    _provider = provider


def _get_tracer() -> trace.Tracer:
    # Cached, because creating a tracer takes longer than creating a span.
    global _cached_tracer  # noqa: PLW0603 - replaced as one tuple, so that threads never see half of it
    provider = _provider or trace.get_tracer_provider()
    cached_provider, tracer = _cached_tracer
    if cached_provider is not provider or tracer is None:
        tracer = provider.get_tracer(_SCOPE, __version__)
        _cached_tracer = (provider, tracer)
    return tracer


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
    """Create a span for each call, with the inputs, the outputs and the exception.

    Works with functions, methods, coroutine functions, generators, async generators, callable objects, properties and
    classes (for each new object), below or above `@staticmethod` and `@classmethod`. If the result is work still to be
    done, such as a generator, a stream, a coroutine, a future, a context manager or a streaming response, the span
    lasts until that work is done, and its output is what was yielded. The span of a generator function starts with its
    first step.

    The parent is the current span, or inside a tool or node of LangChain, LangGraph or LlamaIndex the span that
    OpenInference's instrumentation has for it. Exceptions that direct the control flow, such as `SystemExit(0)` and
    interrupts of LangGraph, are not recorded as failures (docs/apps.md).

    Args:
        function: The function, if the decorator is used without arguments.
        kind: Kind of the span, in any case of letters: `AGENT`, `TOOL`, `CHAIN`, `LLM`, `RETRIEVER`, `EMBEDDING`,
            `RERANKER`, `GUARDRAIL`, `EVALUATOR`, a span type of MLflow, or your own, such as `PLANNER`. A kind that is
            probably mistyped is logged and used as it is.
        name: Name of the span; None means the name of the function.
        capture_inputs: Whether the arguments are recorded by parameter name, as JSON, without `self` and `cls`.
        capture_outputs: Whether the result is recorded: a string as it is, other values as JSON, the documents of a
            `RETRIEVER` or `RERANKER` as documents.
        attributes: Further attributes of each span.

    Returns:
        A function of the same kind and signature, the class, or a decorator.
    """

    def decorate(decorated: Any) -> Any:
        if isinstance(decorated, staticmethod | classmethod):
            return type(decorated)(decorate(decorated.__func__))
        if isinstance(decorated, property):
            getter = None if decorated.fget is None else decorate(decorated.fget)
            return type(decorated)(getter, decorated.fset, decorated.fdel, decorated.__doc__)
        if isinstance(decorated, cached_property):
            return type(decorated)(decorate(decorated.func))
        if isinstance(decorated, partialmethod):
            return type(decorated)(decorate(decorated.func), *decorated.args, **decorated.keywords)
        factory = _SpanFactory(decorated, kind, name, attributes, inputs=capture_inputs, outputs=capture_outputs)
        return factory.wrap()

    return decorate if function is None else decorate(function)


@lru_cache(maxsize=256)  # because decorators may be applied at every call
def _closest_kind(kind: str) -> str | None:
    if kind in _KNOWN_KINDS or len(kind) < _MIN_MISTYPED_LENGTH:
        return None
    import difflib  # imported only for an unknown kind

    candidates = [candidate for candidate in _KNOWN_KINDS if candidate[0] == kind[0]]
    matches = difflib.get_close_matches(kind, candidates, 1, _MIN_SIMILARITY)
    return matches[0] if matches else None


@lru_cache(maxsize=256)  # once for each function
def _warn_unknown_kind(kind: str, function: str) -> None:
    if closest_kind := _closest_kind(kind):
        logger.warning(
            "@traced(kind=%r) of %s: unknown kind, used as it is. Did you mean %s? [%s]",
            kind,
            function,
            closest_kind,
            MessageCode.UNKNOWN_KIND,
        )


class _SpanFactory:
    """Creates the spans of one function. Nothing here raises: the application sees its own results and errors."""

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
        self._name = name or str(_read(function, "__name__", type(function).__name__))
        self._outputs = outputs
        self._inputs, self._arguments = inputs, _Arguments(function)
        span_type = str(kind.value if isinstance(kind, Enum) else kind).strip().upper() or "CHAIN"
        _warn_unknown_kind(span_type, str(_read(function, "__qualname__", self._name)))
        self._kind = span_type if span_type in _KINDS else _KIND_OF_SPAN_TYPE.get(span_type, "CHAIN")
        self._attributes: dict[str, Any] = {names.SPAN_KIND: self._kind}
        if span_type != self._kind:
            self._attributes[names.SPAN_TYPE] = span_type
        if self._kind == "TOOL":
            self._attributes[names.TOOL_NAME] = self._name
            if isinstance(description := _read(function, "__doc__", None), str):
                self._attributes[names.TOOL_DESCRIPTION] = inspect.cleandoc(description)
        self._attributes |= attributes or {}

    def wrap(self) -> Any:
        function = self._function
        if isinstance(function, type) and self._wrap_class(function):
            return function
        wrapper = wrap_function(function, self._begin, follow)
        if wrapper is not None:
            return wrapper

        @named_like(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            span = self._start(args, kwargs)
            context = set_span_in_context(span)
            token = attach(context)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                detach(token)
                self.end(span, error)
                raise
            detach(token)
            if type(result) in COMPLETE_TYPES or self._is_complete(result, args, span):
                self.end(span, None, result)
                return result
            return follow(result, _TracedRun(self, span, context))

        return call

    def _is_complete(self, result: Any, args: tuple[Any, ...], span: Span) -> bool:
        # `__enter__`, `__iter__` and fluent methods return their own object.
        is_own_object = self._arguments.has_receiver and bool(args) and result is args[0]
        return is_own_object or not span.get_span_context().is_valid

    def _wrap_class(self, decorated: type) -> bool:
        """Create a span for each new object, and keep the class itself."""
        construct = decorated.__init__  # type: ignore[misc]
        if construct is object.__init__:  # its `__new__` may take arguments, which this function would reject
            return False

        @named_like(construct)
        def __init__(instance: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - the constructor
            if type(instance) is not decorated:  # of a subclass
                construct(instance, *args, **kwargs)
                return
            span = self._start(args, kwargs)
            token = attach(set_span_in_context(span))
            try:
                construct(instance, *args, **kwargs)
            except BaseException as error:
                detach(token)
                self.end(span, error)
                raise
            detach(token)
            self.end(span, None, instance)

        try:
            decorated.__init__ = __init__  # type: ignore[misc]
        except (AttributeError, TypeError):  # a class in C
            return False
        return True

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Span:
        try:
            span = _get_tracer().start_span(self._name, find_parent_context(), attributes=self._attributes)
        except BaseException as error:  # noqa: BLE001 - of a sampler or processor of others
            self._log("Span of %s could not be recorded: %s [%s]", error)
            return trace.INVALID_SPAN
        if self._inputs and span.is_recording():
            try:
                span.set_attributes(as_inputs(self._arguments.by_name(args, kwargs)))
            except BaseException as error:  # noqa: BLE001 - `_log` raises what ends the process
                self._log("Inputs of %s could not be recorded: %s [%s]", error)
        return span

    def _begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GeneratorContext:
        span = self._start(args, kwargs)
        return _TracedRun(self, span, set_span_in_context(span))

    def end(self, span: Span, error: BaseException | None, result: Any = None) -> None:
        try:
            if error is not None:
                record_error(span, error)
            elif self._outputs and result is not None and span.is_recording():
                self._record_outputs(span, result)
        except BaseException as raised:  # noqa: BLE001 - `_log` raises what ends the process
            self._log("Outputs of %s could not be recorded: %s [%s]", raised, is_failing=error is not None)
        try:
            span.end()
        except BaseException as raised:  # noqa: BLE001 - of a processor of others
            self._log("Span of %s could not be recorded: %s [%s]", raised, is_failing=error is not None)

    def _record_outputs(self, span: Span, result: Any) -> None:
        present = getattr(span, "attributes", None) or {}
        if names.OUTPUT_VALUE not in present:
            span.set_attributes(as_outputs(result))
        if self._kind in ("RETRIEVER", "RERANKER") and isinstance(result, list | tuple):
            documents = as_documents(result, self._kind)
            if not documents.keys() & present.keys():
                span.set_attributes(documents)

    def join(self, items: list[Any], *, is_cut: bool) -> Any:
        try:
            return join_items(items, is_cut=is_cut)
        except BaseException as error:  # noqa: BLE001 - of an item's properties; `_log` raises what ends the process
            self._log("Outputs of %s could not be recorded: %s [%s]", error)
            return items

    def record_partial_outputs(self, span: Span, result: Any) -> None:
        """Record what a stream yielded before it failed."""
        if self._outputs and span.is_recording():
            try:
                self._record_outputs(span, result)
            except BaseException as error:  # noqa: BLE001 - `_log` raises what ends the process
                self._log("Outputs of %s could not be recorded: %s [%s]", error, is_failing=True)

    def _log(self, message: str, error: BaseException, *, is_failing: bool = False) -> None:
        """Log an exception in code of others. `is_failing`: the application's own exception goes before any other."""
        if must_propagate(error) and not is_failing:
            raise error
        with suppress(Exception):  # the stack may be exhausted
            logger.warning(message, self._name, type(error).__name__, MessageCode.CONTENT_NOT_RECORDED)


class _TracedRun(GeneratorContext):
    """One call whose work is done in steps: its span lasts until the end, and its output is what was yielded."""

    __slots__ = ("_character_count", "_factory", "_is_cut", "_items", "_span")

    def __init__(self, factory: _SpanFactory, span: Span, context: Context) -> None:
        super().__init__(context)
        self._factory, self._span = factory, span
        self._items: list[Any] = []
        self._character_count = 0
        self._is_cut = False

    def record(self, item: Any) -> None:
        if len(self._items) < _MAX_ITEM_COUNT and self._character_count < _MAX_CHARACTER_COUNT:
            self._items.append(item)
            self._character_count += len(item) if type(item) in (str, bytes) else 100
        else:
            self._is_cut = True

    def _end(self, error: BaseException | None, result: Any) -> None:
        if self._items:
            result = self._factory.join(self._items, is_cut=self._is_cut)
        if self.is_stream and is_cancellation(error):
            error = None  # the consumer left
        if error is not None and self._items:
            self._factory.record_partial_outputs(self._span, result)
        self._factory.end(self._span, error, result)


def _read(function: Any, name: str, default: Any) -> Any:
    """Read an attribute of a function, whose own code may raise."""
    try:
        return getattr(function, name, default)
    except BaseException as error:
        if must_propagate(error):
            raise
        return default


class _Arguments:
    """Maps the arguments of a call to parameter names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except BaseException as error:  # a C function has none, and `__signature__` may be a property
            if must_propagate(error):
                raise
            self._signature = None
        parameters = list(self._signature.parameters.values()) if self._signature else []
        self._names = [parameter.name for parameter in parameters]
        self._receiver_names = self._names[:1] if self._names and self._names[0] in _RECEIVER_NAMES else []
        self.has_receiver = bool(self._receiver_names)
        self._defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.default is not inspect.Parameter.empty
        }
        self._needs_binding = not parameters or any(parameter.kind in _VARIADIC for parameter in parameters)

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._needs_binding:
            return self._bind(args, kwargs)
        # Signature.bind takes as long as a whole span.
        arguments = dict(zip(self._names, args, strict=False))
        arguments.update(kwargs)
        for name, value in self._defaults.items():
            if name not in arguments:
                arguments[name] = value
        for name in self._receiver_names:
            arguments.pop(name, None)
        return arguments

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._signature is None:
            return {"args": list(args), "kwargs": dict(kwargs)}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:  # the call itself raises it
            return {"args": list(args), "kwargs": dict(kwargs)}
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif name not in self._receiver_names:
                arguments[name] = value
        return arguments
