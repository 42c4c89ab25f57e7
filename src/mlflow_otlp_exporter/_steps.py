"""Generators whose body runs inside an OpenTelemetry context, which is not current between its steps.

A generator shares its caller's context variables: what it attached and left attached over a `yield` would be current in
the caller, too, and in whatever the caller does before the next step.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from functools import wraps
from typing import Any

from opentelemetry.context import Context, attach, detach, get_current


class Steps:
    """One run of a generator.

    Args:
        context: What is current in the body's first step; later, what the body left there.
    """

    __slots__ = ("context",)

    def __init__(self, context: Context) -> None:
        self.context = context

    def yielded(self, item: Any) -> None:
        """Tells what the body yields."""

    def ended(self, error: BaseException | None, result: Any = None) -> None:
        """Tells that the body has ended.

        Args:
            error: What it raised; None if it returned or was closed.
            result: What it returned.
        """


Begin = Callable[[tuple[Any, ...], Mapping[str, Any]], Steps]


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
            token = attach(steps.context)
            try:
                item = resume(value)
            except StopIteration as stop:
                steps.ended(None, stop.value)
                return stop.value
            except BaseException as error:
                steps.ended(error)
                raise
            finally:
                steps.context = get_current()
                detach(token)
            steps.yielded(item)
            try:
                resume, value = body.send, (yield item)
            except GeneratorExit:
                _closed(steps, body)
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in, is the body's to handle
                resume, value = body.throw, error

    return wrapper


def _closed(steps: Steps, body: Generator[Any, Any, Any]) -> None:
    token = attach(steps.context)
    try:
        body.close()
    except BaseException as error:
        steps.ended(error)
        raise
    finally:
        detach(token)
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
            token = attach(steps.context)
            try:
                item = await resume(value)
            except StopAsyncIteration:
                steps.ended(None)
                return
            except BaseException as error:
                steps.ended(error)
                raise
            finally:
                steps.context = get_current()
                detach(token)
            steps.yielded(item)
            try:
                resume, value = body.asend, (yield item)
            except GeneratorExit:
                await _aclosed(steps, body)
                raise
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in, is the body's to handle
                resume, value = body.athrow, error

    return wrapper


async def _aclosed(steps: Steps, body: AsyncGenerator[Any, Any]) -> None:
    token = attach(steps.context)
    try:
        await body.aclose()
    except BaseException as error:
        steps.ended(error)
        raise
    finally:
        detach(token)
    steps.ended(None)
