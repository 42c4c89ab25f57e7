"""Run generators inside an OpenTelemetry context that is current only while their body runs.

A generator shares the context variables of its caller: a context that stays attached over a `yield` would be current in
the caller, too, until the next step.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar, Token
from functools import update_wrapper
from types import coroutine
from typing import Any

from opentelemetry.context import Context, attach, detach, get_current

from mlflow_otlp_exporter._internal.common.errors import must_propagate

# The innermost `trace_context` that was entered here. It is set and reset with the generator's context.
entered_contexts: ContextVar[Any] = ContextVar("mlflow-otlp-surroundings", default=None)


class GeneratorContext:
    """Context of one run of a generator, or of another result that is work still to be done.

    Subclasses observe what the work yields and how it ends. `observers` are the runs around it with the same result.
    """

    __slots__ = (
        "_context",
        "_entered",
        "_outer",
        "_token",
        "block_value",
        "is_ended",
        "is_stepping",
        "is_stream",
        "observers",
        "release",
    )

    def __init__(self, context: Context, entered: Any = None) -> None:
        self._context = context
        self._entered = entered_contexts.get() if entered is None else entered
        self._token: tuple[Token[Any], Any] | None = None
        self._outer: Context | None = None
        self.is_ended = self.is_stepping = self.is_stream = False
        self.block_value: Any = None  # what a context manager returned for its `with` block
        self.observers: list[GeneratorContext] = []
        self.release: Callable[[], None] | None = None

    def __enter__(self) -> None:
        """Make the context of the body current, for one step."""
        self._token = entered_contexts.set(self._entered), attach(self._context)
        self.is_stepping = True

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Make the caller's context current again and store the one that the body left."""
        self.is_stepping = False
        try:
            if error is not None:
                is_end = isinstance(error, StopIteration | StopAsyncIteration)
                self.on_end(None if is_end else error, getattr(error, "value", None) if is_end else None)
        finally:
            self._context, self._entered = get_current(), entered_contexts.get()
            token, self._token = self._token, None
            assert token is not None
            try:
                entered_contexts.reset(token[0])
            except ValueError:  # closed in another context, by the garbage collector: there is nothing to restore
                pass
            else:
                detach(token[1])

    def enter_block(self) -> None:
        """Make the context current for the caller's `with` block."""
        self._outer = get_current()
        attach(self._context)

    def leave_block(self) -> None:
        # A framework may run both ends in other threads: nothing to restore there, and a token would not fit.
        if self._outer is not None and get_current() is self._context:
            attach(self._outer)

    def on_yield(self, item: Any) -> None:
        """Called with each item that the body yields."""
        self.record(item)
        for observer in self.observers:
            observer.on_yield(item)

    def record(self, item: Any) -> None:
        """Called by `on_yield`."""

    def on_end(self, error: BaseException | None, result: Any = None) -> None:
        """Called with the exception or the result; without both if the work was abandoned. Later calls do nothing."""
        if self.is_ended:
            return
        self.is_ended = True
        try:
            if self.release is not None:
                self.release()
            self._end(error, result)
        finally:
            for observer in self.observers:
                observer.on_end(error, result)

    def _end(self, error: BaseException | None, result: Any) -> None:
        """Called once, by `on_end`."""


def named_like(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `functools.wraps`, also of a callable object whose attributes raise."""

    def decorate(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return update_wrapper(wrapper, function)
        except BaseException as error:
            if must_propagate(error):
                raise
            return wrapper

    return decorate


BeginFunction = Callable[[tuple[Any, ...], Mapping[str, Any]], GeneratorContext]


def wrap_function(
    function: Callable[..., Any], begin: BeginFunction, follow: Callable[[Any, GeneratorContext], Any]
) -> Callable[..., Any] | None:
    """Wrap a function whose kind shows in its code; None if the kind of its result is known only after a call.

    `begin` is called with the arguments at the first step, `follow` with the result of a coroutine.
    """
    call = function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004 - an attribute
    if _is_any(inspect.isasyncgenfunction, function, call):
        return wrap_async_generator(function, begin)
    if _is_any(inspect.isgeneratorfunction, function, call):
        wrapper = wrap_generator(function, begin)
        code = getattr(function, "__code__", None)
        return coroutine(wrapper) if code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE else wrapper
    if not _is_any(inspect.iscoroutinefunction, function, call):
        return None

    @named_like(function)
    async def call_coroutine(*args: Any, **kwargs: Any) -> Any:
        run = begin(args, kwargs)
        with run:
            result = await function(*args, **kwargs)
        if args and result is args[0]:  # `__aenter__` returns its own object
            run.on_end(None, result)
            return result
        return follow(result, run)

    return call_coroutine


def _is_any(is_kind: Callable[[Any], bool], function: Any, call: Any) -> bool:
    try:
        return is_kind(function) or (not isinstance(function, type) and is_kind(call))
    except BaseException as error:  # attributes of a callable object may be properties
        if must_propagate(error):
            raise
        return False


def wrap_generator(
    function: Callable[..., Generator[Any, Any, Any]], begin: BeginFunction, *, is_begun: bool = False
) -> Callable[..., Any]:
    """Wrap a generator function; `begin` is called with the arguments at the first step.

    With `is_begun`, the generator yields None once before the body starts. When that step is done, closing the
    generator ends the run although the body has not started.
    """

    @named_like(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        run = begin(args, kwargs)
        run.is_stream = True
        try:
            body = function(*args, **kwargs)
        except BaseException as error:  # wrong arguments
            run.on_end(error)
            raise
        resume, value, item, is_waiting = body.send, None, None, is_begun
        while True:
            if not is_waiting:
                try:
                    with run:
                        item = resume(value)
                except StopIteration as stop:
                    return stop.value
                run.on_yield(item)
            is_waiting = False
            try:
                resume, value = body.send, (yield item)
            except GeneratorExit:
                with run:
                    body.close()
                run.on_end(None)
                raise
            except BaseException as error:  # noqa: BLE001 - the body handles what is thrown in
                resume, value = body.throw, error

    return wrapper


def wrap_async_generator(
    function: Callable[..., AsyncGenerator[Any, Any]], begin: BeginFunction, *, is_begun: bool = False
) -> Callable[..., Any]:
    """Wrap an async generator function; see `wrap_generator`."""

    @named_like(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run = begin(args, kwargs)
        run.is_stream = True
        try:
            body = function(*args, **kwargs)
        except BaseException as error:  # wrong arguments
            run.on_end(error)
            raise
        resume, value, item, is_waiting, is_started = body.asend, None, None, is_begun, False
        while True:
            if not is_waiting:
                is_started = True
                try:
                    with run:
                        item = await resume(value)
                except StopAsyncIteration:
                    return
                run.on_yield(item)
            is_waiting = False
            try:
                resume, value = body.asend, (yield item)
            except GeneratorExit:
                if is_started:  # a loop that shuts down warns about a generator that it does not know yet
                    with run:
                        await body.aclose()
                run.on_end(None)
                raise
            except BaseException as error:  # noqa: BLE001 - the body handles what is thrown in
                resume, value = body.athrow, error

    return wrapper
