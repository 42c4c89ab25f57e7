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

    __slots__ = ("_context", "_entered")

    def __init__(self, context: Context, entered: Any = None) -> None:
        self._context = context
        self._entered = entered_contexts.get() if entered is None else entered

    def attach(self) -> tuple[Any, Any]:
        """Make the context of the body current; return what `detach` needs."""
        previous = entered_contexts.get()
        entered_contexts.set(self._entered)
        return attach(self._context), previous

    def detach(self, tokens: tuple[Any, Any]) -> None:
        """Make the caller's context current again and store the one that the body left."""
        token, previous = tokens
        self._context, self._entered = get_current(), entered_contexts.get()
        detach(token)
        entered_contexts.set(previous)

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
            tokens = run.attach()
            try:
                item = resume(value)
            except StopIteration as stop:
                run.on_end(None, stop.value)
                return stop.value
            except BaseException as error:
                run.on_end(error)
                raise
            finally:
                run.detach(tokens)
            run.on_yield(item)
            try:
                resume, value = body.send, (yield item)
            except GeneratorExit:
                _close(run, body)
                raise
            except BaseException as error:  # noqa: BLE001 - the body handles what is thrown in
                resume, value = body.throw, error

    return wrapper


def _close(run: GeneratorContext, body: Generator[Any, Any, Any]) -> None:
    tokens = run.attach()
    try:
        body.close()
    except BaseException as error:
        run.on_end(error)
        raise
    finally:
        run.detach(tokens)
    run.on_end(None)


def wrap_async_generator(function: Callable[..., AsyncGenerator[Any, Any]], begin: BeginFunction) -> Callable[..., Any]:
    """Wrap an async generator function; `begin` is called with the arguments at the first step."""

    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run, body = begin(args, kwargs), function(*args, **kwargs)
        resume, value = body.asend, None
        while True:
            tokens = run.attach()
            try:
                item = await resume(value)
            except StopAsyncIteration:
                run.on_end(None)
                return
            except BaseException as error:
                run.on_end(error)
                raise
            finally:
                run.detach(tokens)
            run.on_yield(item)
            try:
                resume, value = body.asend, (yield item)
            except GeneratorExit:
                await _aclose(run, body)
                raise
            except BaseException as error:  # noqa: BLE001 - the body handles what is thrown in
                resume, value = body.athrow, error

    return wrapper


async def _aclose(run: GeneratorContext, body: AsyncGenerator[Any, Any]) -> None:
    tokens = run.attach()
    try:
        await body.aclose()
    except BaseException as error:
        run.on_end(error)
        raise
    finally:
        run.detach(tokens)
    run.on_end(None)
