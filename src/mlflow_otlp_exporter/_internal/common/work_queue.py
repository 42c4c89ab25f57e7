"""A few threads that take shipments further, shared by all destinations.

Shipments of one destination go one after the other: MLflow before 3.16 answers 400 or deadlocks when two batches of one
trace arrive at once, and four clients at once gain nothing on SQLite and a third on PostgreSQL. A destination that has
to wait occupies no thread, and no destination waits for another, as far as there are threads.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.suppression import suppressed_instrumentation


class Item(Protocol):
    """What is sent."""

    not_before: float


_Item = TypeVar("_Item", bound=Item)


@dataclass(frozen=True)
class SendResult(Generic[_Item]):
    """What remains of an item after one attempt.

    Attributes:
        remaining: Items that take the place of the attempted one.
        retry_after: Seconds for which the whole destination waits.
        requeue_last: True if other items of the destination go first.
    """

    remaining: Sequence[_Item] = ()
    retry_after: float = 0.0
    requeue_last: bool = False


class _Queue(Generic[_Item]):
    """A destination's items.

    Attributes:
        items: In order.
        resume_at: Until then the destination waits.
        due: When it is in the heap for; None if it is not.
    """

    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.resume_at = 0.0
        self.due: float | None = None


class WorkQueue(Generic[_Item]):
    """Takes each item further, step by step, in threads of its own, in order for each destination.

    Args:
        step: Takes an item one step further.
        abandon: Called with what is left at the end.
        count: How many threads at most. They start when they are needed.
    """

    def __init__(
        self, step: Callable[[_Item], SendResult[_Item]], abandon: Callable[[_Item], None], *, count: int = 4
    ) -> None:
        self._step, self._abandon, self._count = step, abandon, count
        self._closed = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has, the parent sends."""
        self._lock = threading.Condition()
        self._queues: dict[Hashable, _Queue[_Item]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()
        self._busy: dict[Hashable, _Item] = {}
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopped = False

    def put(self, key: Hashable, item: _Item, *, wait: float = 0.0) -> None:
        """Queues an item behind those of the same destination.

        Where no thread can be started any more, as while the interpreter exits, it is taken a step further here.

        Args:
            key: The destination.
            item: The item.
            wait: Seconds for which the destination waits, unless somebody hurries.
        """
        with self._lock:
            if self._closed:
                late = True
            else:
                late = False
                queue = self._queues.setdefault(key, _Queue())
                queue.items.append(item)
                if wait > 0:
                    queue.resume_at = max(queue.resume_at, time.monotonic() + wait)
                self._schedule(key, queue)
                here = False
                if not self._idle and len(self._threads) < self._count:
                    here = not self._start()
                self._lock.notify()
        if late:
            self._abandon(item)
        elif here:
            while self._next(block=False):
                pass

    def _schedule(self, key: Hashable, queue: _Queue[_Item]) -> None:
        """Puts a destination into the heap for when its first item may go. Needs the lock."""
        if key in self._busy:
            return
        first = min(item.not_before for item in queue.items) if queue.items[0].not_before else 0.0
        due = max(queue.resume_at, first)
        if queue.due != due:
            queue.due = due
            heapq.heappush(self._heap, (due, next(self._numbers), key))

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

    def _take(self, *, block: bool) -> tuple[Hashable, _Item] | None:
        """The next item that may go; None if there is none and none is waited for. Needs the lock."""
        while not self._stopped:
            wait = None
            now = time.monotonic()
            while self._heap:
                due, _, key = self._heap[0]
                queue = self._queues.get(key)
                if queue is None or queue.due != due or key in self._busy:
                    heapq.heappop(self._heap)
                    continue
                if due > now:
                    wait = due - now
                    break
                heapq.heappop(self._heap)
                queue.due = None
                item = next(each for each in queue.items if each.not_before <= now)
                queue.items.remove(item)
                self._busy[key] = item
                return key, item
            if not block or (self._closed and not self._queues):
                return None
            self._idle += 1
            self._lock.wait(wait)
            self._idle -= 1
        return None

    def _next(self, *, block: bool) -> bool:
        """Takes one item a step further; False if there is none and none will come."""
        with self._lock:
            taken = self._take(block=block)
        if taken is None:
            return False
        key, item = taken
        result = SendResult[_Item]()
        try:
            with suppressed_instrumentation():
                result = self._step(item)
        except BaseException:  # noqa: BLE001
            # A thread that dies takes all that comes after with it; upstream's dies for good on a SystemExit.
            said = "spans are lost by a mistake in this library; please report it [%s]"
            logger.exception(said, MessageCode.INTERNAL_ERROR)
            self._give_up(item)
        with self._lock:
            del self._busy[key]
            queue = self._queues[key]
            queue.resume_at = time.monotonic() + result.retry_after if result.retry_after else 0.0
            left: Sequence[_Item] = ()
            if self._stopped:
                left = result.remaining
            elif result.requeue_last:
                queue.items.extend(result.remaining)
            else:
                queue.items.extendleft(reversed(result.remaining))
            if queue.items:
                self._schedule(key, queue)
                self._lock.notify()
            else:
                del self._queues[key]
                if not self._queues:
                    self._lock.notify_all()
        for each in left:
            self._give_up(each)
        return True

    def _give_up(self, item: _Item) -> None:
        try:
            self._abandon(item)
        except BaseException:  # noqa: BLE001 - likewise, and its destination would be busy for ever
            logger.exception(
                "spans could not be kept, by a mistake in this library; please report it [%s]",
                MessageCode.INTERNAL_ERROR,
            )

    def queued(self, key: Hashable) -> list[_Item]:
        """The items of a destination that wait for their turn."""
        with self._lock:
            queue = self._queues.get(key)
            return [] if queue is None else list(queue.items)

    def all_queued(self) -> list[_Item]:
        """What waits at any destination."""
        with self._lock:
            return [item for queue in self._queues.values() for item in queue.items]

    def hurry(self) -> None:
        """Ends the waits of all destinations, as somebody waits for them."""
        with self._lock:
            for key, queue in self._queues.items():
                queue.resume_at = 0.0
                if queue.items:
                    self._schedule(key, queue)
            self._lock.notify_all()

    def withdraw(self, chosen: Callable[[_Item], bool]) -> list[_Item]:
        """Takes items out of the queues that are not being sent just now.

        Args:
            chosen: Says which.
        """
        found: list[_Item] = []
        with self._lock:
            for key, queue in list(self._queues.items()):
                out = [item for item in queue.items if chosen(item)]
                if not out:
                    continue
                found += out
                queue.items = deque(item for item in queue.items if item not in out)
                queue.due = None
                if queue.items:
                    self._schedule(key, queue)
                elif key not in self._busy:
                    del self._queues[key]
            if not self._queues:
                self._lock.notify_all()
        return found

    def waiting(self) -> bool:
        """Whether anything is queued."""
        return bool(self._queues)

    def unfinished(self) -> list[_Item]:
        """What is being sent just now: after `close`, what it had no time for."""
        with self._lock:
            return list(self._busy.values())

    def close(self, seconds: float) -> None:
        """Takes nothing more, waits for what is queued, and abandons what is left.

        Args:
            seconds: How long to wait at most.
        """
        deadline = time.monotonic() + seconds
        with self._lock:
            self._closed = True
            for queue in self._queues.values():
                for item in queue.items:
                    item.not_before = 0.0
        self.hurry()
        if not self._threads:
            while self._next(block=False):
                pass
        with self._lock:
            self._lock.wait_for(lambda: not self._queues, max(0.0, deadline - time.monotonic()))
            self._stopped = True
            left = [item for queue in self._queues.values() for item in queue.items]
            for queue in self._queues.values():
                queue.items.clear()
            self._lock.notify_all()
            threads = list(self._threads)
        for item in left:
            self._abandon(item)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.1, deadline - time.monotonic()))
