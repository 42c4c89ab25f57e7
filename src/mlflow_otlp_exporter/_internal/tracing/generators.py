"""Generators whose body runs inside an OpenTelemetry context, which is not current between its steps.

A generator shares its caller's context variables: what it attached and left attached over a `yield` would be current in
the caller, too, and in whatever the caller does before the next step.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

from opentelemetry.context import Context, attach, detach, get_current

# What `trace_context` was entered around here; its own business, but a generator's body may leave it set, too.
surroundings: ContextVar[Any] = ContextVar("mlflow-otlp-surroundings", default=None)


class GeneratorContext:
    """One run of a generator.

    Args:
        context: What is current in the body's first step; later, what the body left there.
        around: What is in `surroundings` there; None for what is there now.
    """

    __slots__ = ("_around", "_context")

    def __init__(self, context: Context, around: Any = None) -> None:
        self._context = context
        self._around = surroundings.get() if around is None else around

    def enter(self) -> tuple[Any, Any]:
        """Makes the body's context current."""
        before = surroundings.get()
        surroundings.set(self._around)
        return attach(self._context), before

    def leave(self, entered: tuple[Any, Any]) -> None:
        """Makes the caller's context current again, and keeps what the body left."""
        token, before = entered
        self._context, self._around = get_current(), surroundings.get()
        detach(token)
        surroundings.set(before)

    def yielded(self, item: Any) -> None:
        """Tells what the body yields."""

    def ended(self, error: BaseException | None, result: Any = None) -> None:
        """Tells that the body has ended.

        Args:
            error: What it raised; None if it returned or was closed.
            result: What it returned.
        """


Begin = Callable[[tuple[Any, ...], Mapping[str, Any]], GeneratorContext]


def wrapped_generator(function: Callable[..., Generator[Any, Any, Any]], begin: Begin) -> Callable[..., Any]:
    """A generator function that runs in steps.

    Args:
        function: The generator function.
        begin: Called with a call's arguments at the first step.
    """

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps, body = begin(args, kwargs), function(*args, **kwargs)
        resume, value = body.send, None
        while True:
            entered = steps.enter()
            try:
                item = resume(value)
            except StopIteration as stop:
                steps.ended(None, stop.value)
                return stop.value
            except BaseException as error:
                steps.ended(error)
                raise
            finally:
                steps.leave(entered)
            steps.yielded(item)
            try:
                resume, value = body.send, (yield item)
            except GeneratorExit:
                _closed(steps, body)
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in, is the body's to handle
                resume, value = body.throw, error

    return wrapper


def _closed(steps: GeneratorContext, body: Generator[Any, Any, Any]) -> None:
    entered = steps.enter()
    try:
        body.close()
    except BaseException as error:
        steps.ended(error)
        raise
    finally:
        steps.leave(entered)
    steps.ended(None)


def wrapped_async_generator(function: Callable[..., AsyncGenerator[Any, Any]], begin: Begin) -> Callable[..., Any]:
    """An async generator function that runs in steps.

    Args:
        function: The async generator function.
        begin: Called with a call's arguments at the first step.
    """

    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps, body = begin(args, kwargs), function(*args, **kwargs)
        resume, value = body.asend, None
        while True:
            entered = steps.enter()
            try:
                item = await resume(value)
            except StopAsyncIteration:
                steps.ended(None)
                return
            except BaseException as error:
                steps.ended(error)
                raise
            finally:
                steps.leave(entered)
            steps.yielded(item)
            try:
                resume, value = body.asend, (yield item)
            except GeneratorExit:
                await _aclosed(steps, body)
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in, is the body's to handle
                resume, value = body.athrow, error

    return wrapper


async def _aclosed(steps: GeneratorContext, body: AsyncGenerator[Any, Any]) -> None:
    entered = steps.enter()
    try:
        await body.aclose()
    except BaseException as error:
        steps.ended(error)
        raise
    finally:
        steps.leave(entered)
    steps.ended(None)
