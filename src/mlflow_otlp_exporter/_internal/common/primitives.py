"""Primitives between threads that work under the patching of gevent and eventlet, whenever that is done.

An application may create the exporter first, and patch `threading` later, as `gunicorn -k gevent --preload` does.
Therefore nothing that blocks is created before its first use. As greenlets of one thread are the same owner for an
earlier lock, no code that holds a lock may switch: it starts no thread and sends nothing.
"""

from __future__ import annotations

import threading
from typing import Any

# A wake-up may get lost: eventlet's locks do not wake a greenlet of another thread.
_MAX_WAIT_SECONDS = 5.0


class LazyCondition:
    """Attribute of a class: a `threading.Condition` that each object creates at its first use.

    A forked child removes it from the object's `__dict__`.
    """

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, _: object = None) -> threading.Condition:
        # The object's own attribute takes precedence from then on.
        condition: threading.Condition = instance.__dict__.setdefault(self._name, threading.Condition())
        return condition


class WakeUp:
    """Wakes the one thread that waits for it; may be set in signal handlers and finalizers.

    `threading.Event.set` waits for a lock that its own thread may hold, if a signal handler interrupted it. Here, each
    wait has a lock of its own, and `set` only releases it.
    """

    def __init__(self) -> None:
        self._waiter: threading.Lock | None = None
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        waiter = self._waiter
        if waiter is not None:
            try:
                waiter.release()
            except RuntimeError:
                return  # another thread has released it

    def wait(self, timeout_seconds: float | None) -> bool:
        """Wait for at most 5 s; return whether it was set since the last wait."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiter = waiter
        if not self._is_set:  # after the waiter is visible to `set`
            seconds = _MAX_WAIT_SECONDS if timeout_seconds is None else min(timeout_seconds, _MAX_WAIT_SECONDS)
            waiter.acquire(timeout=max(0.0, seconds))
        self._waiter = None
        was_set, self._is_set = self._is_set, False
        return was_set
