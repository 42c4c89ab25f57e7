"""Run generators inside an OpenTelemetry context that is current only while their body runs.

A generator shares the context variables of its caller: a context that stays attached over a `yield` would be current in
the caller, too, until the next step.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

from opentelemetry.context import Context, attach, detach, get_current

# The innermost `trace_context` that was entered here. It is set and reset with the generator's context.
entered_contexts: ContextVar[Any] = ContextVar("mlflow-otlp-surroundings", default=None)


class GeneratorContext:
    """Context of one run of a generator; subclasses observe what the body yields and how it ends."""

    __slots__ = ("_context", "_entered", "_previous", "_token")

    def __init__(self, context: Context, entered: Any = None) -> None:
        self._context = context
        self._entered = entered_contexts.get() if entered is None else entered

    def __enter__(self) -> None:
        """Make the context of the body current, for one step."""
        self._previous = entered_contexts.get()
        entered_contexts.set(self._entered)
        self._token = attach(self._context)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Make the caller's context current again and store the one that the body left."""
        try:
            if error is not None:
                is_end = isinstance(error, StopIteration | StopAsyncIteration)
                self.on_end(None if is_end else error, getattr(error, "value", None) if is_end else None)
        finally:
            self._context, self._entered = get_current(), entered_contexts.get()
            detach(self._token)
            entered_contexts.set(self._previous)

    def on_yield(self, item: Any) -> None:
        """Called with each item that the body yields."""

    def on_end(self, error: BaseException | None, result: Any = None) -> None:
        """Called with the exception or the return value of the body; without both when the body was closed."""


BeginFunction = Callable[[tuple[Any, ...], Mapping[str, Any]], GeneratorContext]


def wrap_generator(function: Callable[..., Generator[Any, Any, Any]], begin: BeginFunction) -> Callable[..., Any]:
    """Wrap a generator function; `begin` is called with the arguments at the first step."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        run, body = begin(args, kwargs), function(*args, **kwargs)
        resume, value = body.send, None
        while True:
            try:
                with run:
                    item = resume(value)
            except StopIteration as stop:
                return stop.value
            run.on_yield(item)
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


def wrap_async_generator(function: Callable[..., AsyncGenerator[Any, Any]], begin: BeginFunction) -> Callable[..., Any]:
    """Wrap an async generator function; `begin` is called with the arguments at the first step."""

    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run, body = begin(args, kwargs), function(*args, **kwargs)
        resume, value = body.asend, None
        while True:
            try:
                with run:
                    item = await resume(value)
            except StopAsyncIteration:
                return
            run.on_yield(item)
            try:
                resume, value = body.asend, (yield item)
            except GeneratorExit:
                with run:
                    await body.aclose()
                run.on_end(None)
                raise
            except BaseException as error:  # noqa: BLE001 - the body handles what is thrown in
                resume, value = body.athrow, error

    return wrapper
