"""Exceptions that are raised into code that waits: by handlers of signals, and from outside, as into greenlets."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TimeLimit(Exception):
    """An `Exception` of a time limit, as Celery's SoftTimeLimitExceeded."""


class Kill(BaseException):
    """No `Exception`, as gevent's and eventlet's time limits and ends of greenlets."""


INTERRUPTIONS = (KeyboardInterrupt, SystemExit, TimeLimit, Kill)


@contextmanager
def handle_signal(error: BaseException) -> Iterator[Callable[[], None]]:
    """Yield a function that a signal interrupts, whose handler raises the error."""

    def handle(_number: int, _frame: object) -> None:
        raise error

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def raise_error(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


class InterruptedCondition(threading.Condition):
    """A condition whose first wait is interrupted.

    It replaces the `LazyCondition` of an object. A real exception would come at the same place, only later.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self._interrupts = [interrupt]

    def wait(self, timeout: float | None = None) -> bool:
        if self._interrupts:
            self._interrupts.pop()()
        return super().wait(timeout)
