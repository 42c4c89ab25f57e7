"""A few threads that send requests, shared by all destinations.

Requests of one destination go out one after the other: MLflow before 3.16 answers 400 or deadlocks when two batches of
one trace arrive at once, and four clients at once gain nothing on SQLite and a third on PostgreSQL. Destinations do not
wait for each other, as far as there are threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mlflow_otlp_exporter._fork import after_fork_in_child
from mlflow_otlp_exporter._report import logger
from mlflow_otlp_exporter._suppression import suppressed_instrumentation

_Item = TypeVar("_Item")


class Senders(Generic[_Item]):
    """Calls a function with each item, in threads of its own, in order for each key.

    Args:
        send: What to do with an item; it should not raise.
        count: How many threads at most. They start when they are needed.
    """

    def __init__(self, send: Callable[[_Item], None], count: int = 4) -> None:
        self._send, self._count = send, count
        self._closed = False
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Condition()
        self._waiting: dict[Hashable, deque[_Item]] = {}
        self._ready: deque[Hashable] = deque()
        self._busy: set[Hashable] = set()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def put(self, key: Hashable, item: _Item) -> None:
        """Queues an item behind those with the same key.

        Where no thread can be started any more, as while the interpreter exits, the item is sent here and now.
        """
        with self._lock:
            queue = self._waiting.setdefault(key, deque())
            queue.append(item)
            if key not in self._busy and len(queue) == 1:
                self._ready.append(key)
            here = False
            if self._idle < len(self._ready) and len(self._threads) < self._count:
                here = not self._start()
            self._lock.notify()
        if here:
            while self._next(block=False):
                pass

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"mlflow-otlp-sender-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            return bool(self._threads)
        self._threads.append(thread)
        return True

    def _run(self) -> None:
        while self._next(block=True):
            pass

    def _next(self, *, block: bool) -> bool:
        """Sends one item; False if there is none and none will come."""
        with self._lock:
            self._idle += 1
            while block and not self._ready and not self._closed:
                self._lock.wait()
            self._idle -= 1
            if not self._ready:
                return False
            key = self._ready.popleft()
            item = self._waiting[key].popleft()
            self._busy.add(key)
        try:
            with suppressed_instrumentation():
                self._send(item)
        except BaseException:  # noqa: BLE001
            # A thread that dies takes all that comes after with it; upstream's dies for good on a SystemExit.
            logger.exception("a request could not be sent, by a mistake in this library; please report it")
        with self._lock:
            self._busy.discard(key)
            if self._waiting[key]:
                self._ready.append(key)
                self._lock.notify()
            else:
                del self._waiting[key]
        return True

    def close(self, seconds: float) -> None:
        """Takes nothing more, and waits for what is queued.

        Args:
            seconds: How long to wait at most; what is left then is sent on in the background while the process lives.
        """
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + seconds
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
