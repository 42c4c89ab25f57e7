"""`@traced`: a decorator that creates a span for each call of a function."""

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partialmethod
from typing import Any, ParamSpec, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanContext, set_span_in_context

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.types import SpanKind
from mlflow_otlp_exporter._internal.tracing.capture import Capture, Choice, Redaction, parameter_names
from mlflow_otlp_exporter._internal.tracing.errors import is_cancellation, record_error
from mlflow_otlp_exporter._internal.tracing.generators import GeneratorContext, named_like, wrap_function
from mlflow_otlp_exporter._internal.tracing.parents import find_current_span, find_parent_context
from mlflow_otlp_exporter._internal.tracing.results import COMPLETE_TYPES, follow
from mlflow_otlp_exporter._internal.tracing.span_attributes import as_documents, as_inputs, as_outputs, join_items
from mlflow_otlp_exporter._internal.tracing.spans import (
    check_span_arguments,
    get_tracer,
    kind_attributes,
    log_failure,
)

P = ParamSpec("P")
R = TypeVar("R")

_RECEIVER_NAMES = frozenset({"self", "cls", "mcs"})
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Limits for the recorded output of a generator.
_MAX_ITEM_COUNT, _MAX_CHARACTER_COUNT = 10_000, 1 << 20


@overload
def traced(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def traced(
    *,
    kind: SpanKind | str = "CHAIN",
    name: str | None = None,
    capture_inputs: Choice = True,
    capture_outputs: Choice = True,
    redact: Redaction | None = None,
    attributes: Mapping[str, Any] | None = None,
    sampled: bool | Callable[..., bool] = True,
    output_reducer: Callable[[list[Any]], Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def traced(
    function: Callable[..., Any] | None = None,
    /,
    *,
    kind: SpanKind | str = "CHAIN",
    name: str | None = None,
    capture_inputs: Choice = True,
    capture_outputs: Choice = True,
    redact: Redaction | None = None,
    attributes: Mapping[str, Any] | None = None,
    sampled: bool | Callable[..., bool] = True,
    output_reducer: Callable[[list[Any]], Any] | None = None,
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
        capture_inputs: Whether the arguments are recorded by parameter name, as JSON, without `self` and `cls`: true,
            false, names of parameters, or names with a leading `-` to exclude.
        capture_outputs: Whether the result is recorded: a string as it is, other values as JSON, the documents of a
            `RETRIEVER` or `RERANKER` as documents. Names, as for `capture_inputs`, select keys of a mapping or
            attributes of an object; other results are not recorded then.
        redact: Names of parameters whose values are replaced by `__REDACTED__`, or a mapping from names to functions
            that return the value to record; `return` is the result. If a function raises, the value is hidden.
        attributes: Further attributes of each span.
        sampled: False: neither the call nor the calls inside it are recorded. A function is called with the arguments
            of the call and decides for that call.
        output_reducer: Makes the output of a generator or stream from the list of its items, of at most 10,000. Without
            it, texts are joined.

    Returns:
        A function of the same kind and signature, the class, or a decorator.

    Raises:
        TypeError: An argument has a wrong type.
        ConfigurationError: `capture_inputs` or `redact` names a parameter that the function does not have.
    """
    check_span_arguments("traced", name or "", kind, attributes)
    capture = Capture(capture_inputs, capture_outputs, redact)
    if not isinstance(sampled, bool) and not callable(sampled):
        raise TypeError(f"traced(sampled=) is {type(sampled).__name__}: expected a boolean or a function")
    if output_reducer is not None and not callable(output_reducer):
        raise TypeError(f"traced(output_reducer=) is {type(output_reducer).__name__}: expected a function")

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
        if not callable(decorated):
            raise TypeError(
                f"traced() decorates functions, methods and classes, not {type(decorated).__name__}: "
                "pass a kind as traced(kind='TOOL')"
            )
        return _SpanFactory(decorated, kind, name, attributes, capture, sampled, output_reducer).wrap()

    return decorate if function is None else decorate(function)


class _SpanFactory:
    """Creates the spans of one function. Nothing here raises: the application sees its own results and errors."""

    def __init__(
        self,
        function: Callable[..., Any],
        kind: str,
        name: str | None,
        attributes: Mapping[str, Any] | None,
        capture: Capture,
        sampled: bool | Callable[..., bool],
        output_reducer: Callable[[list[Any]], Any] | None,
    ) -> None:
        self._function = function
        self._name = name or str(_read(function, "__name__", type(function).__name__))
        self._capture, self._sampled, self._reducer = capture, sampled, output_reducer
        self._outputs, self._inputs, self._arguments = capture.has_outputs, capture.has_inputs, _Arguments(function)
        qualified_name = str(_read(function, "__qualname__", self._name))
        if self._arguments.names is not None and capture.changes_inputs:
            capture.check_names(self._arguments.names, qualified_name)
        self._attributes = kind_attributes(kind, qualified_name)
        self._kind = self._attributes[names.SPAN_KIND]
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
            if self._sampled is not True and not self._is_sampled(args, kwargs):
                return _create_unsampled_span()
            span = get_tracer().start_span(self._name, find_parent_context(), attributes=self._attributes)
        except BaseException as error:  # noqa: BLE001 - of a sampler or processor of others
            self._log("Span of %s could not be recorded: %s [%s]", error)
            return trace.INVALID_SPAN
        if self._inputs and span.is_recording():
            try:
                arguments = self._arguments.by_name(args, kwargs)
                if self._capture.changes_inputs:
                    arguments = self._capture.select_inputs(arguments)
                span.set_attributes(as_inputs(arguments))
            except BaseException as error:  # noqa: BLE001 - `_log` raises what ends the process
                self._log("Inputs of %s could not be recorded: %s [%s]", error)
        return span

    def _is_sampled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if isinstance(self._sampled, bool):
            return self._sampled
        try:
            return bool(self._sampled(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - `_log` raises what ends the process
            self._log("The sampled= function of %s failed, so its span is recorded: %s [%s]", error)
            return True

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
        if self._capture.changes_outputs and (result := self._capture.select_outputs(result)) is None:
            return
        present = getattr(span, "attributes", None) or {}
        if names.OUTPUT_VALUE not in present:
            span.set_attributes(as_outputs(result))
        if self._kind in ("RETRIEVER", "RERANKER") and isinstance(result, list | tuple):
            documents = as_documents(result, self._kind)
            if not documents.keys() & present.keys():
                span.set_attributes(documents)

    def join(self, items: list[Any], *, is_cut: bool) -> Any:
        try:
            if self._reducer is not None:
                return self._reducer(items)
        except BaseException as error:  # noqa: BLE001 - `_log` raises what ends the process
            self._log("The output_reducer= of %s failed, so its items are joined: %s [%s]", error)
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
        log_failure(message, self._name, error, is_failing=is_failing)


def _create_unsampled_span() -> Span:
    """Create the parent of spans that OpenTelemetry's samplers drop, because their parent is not sampled."""
    context = find_current_span().get_span_context()
    generator = RandomIdGenerator()
    trace_id = context.trace_id if context.is_valid else generator.generate_trace_id()
    return trace.NonRecordingSpan(SpanContext(trace_id, generator.generate_span_id(), is_remote=False))


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
        self.names = parameter_names(self._signature, self._receiver_names)
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
