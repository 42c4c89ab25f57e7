"""A queue per destination, and threads for all of them, as many as destinations are sent to at once.

Requests of one destination are sent one after the other: MLflow before 3.16 answers 400 or deadlocks when two batches
of one trace arrive at once, and four concurrent clients gain nothing on SQLite and a third on PostgreSQL. A destination
that waits occupies no thread, and no destination waits for another while a thread is free.
"""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset, start_thread
from mlflow_otlp_exporter._internal.common.primitives import LazyCondition
from mlflow_otlp_exporter._internal.common.problem_log import log_exception
from mlflow_otlp_exporter._internal.common.process_end import run_closing_steps
from mlflow_otlp_exporter._internal.common.suppression import suppress_instrumentation

# Delay of the next attempt if `wake_all` was called during the last one.
_WOKEN_DELAY_SECONDS = 0.5
# A wake-up may get lost: eventlet's locks do not wake a greenlet of another thread.
_MAX_WAIT_SECONDS = 5.0
# A thread whose every wait is interrupted ends, instead of occupying the processor.
_MAX_INTERRUPTIONS = 100


class Item(Protocol):
    not_before: float  # monotonic seconds


_Item = TypeVar("_Item", bound=Item)


class SendResult(NamedTuple):
    """What remains of an item after one attempt."""

    remaining: Sequence[Any] = ()  # items that take the place of the attempted one
    destination_delay: float = 0.0  # seconds for which the whole destination waits
    requeue_last: bool = False  # whether other items of the destination go first


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


class _Queue(Generic[_Item]):
    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.resume_at = 0.0  # until then the destination waits
        self.due: float | None = None  # its time in the heap; None if it is not in there


class WorkQueue(Generic[_Item]):
    """Runs `step` for each item, in order for each key, and `abandon` for the items that remain at the end.

    Up to `max_threads` threads start when they are needed.
    """

    # Re-entrant: a signal handler may enqueue in the middle of any method, so copies are iterated.
    _lock = LazyCondition()

    def __init__(
        self, step: Callable[[_Item], SendResult], abandon: Callable[[_Item], None], *, max_threads: int = 32
    ) -> None:
        self._step, self._abandon, self._max_threads = step, abandon, max_threads
        self._closed = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent sends the items that it has.
        self.__dict__.pop("_lock", None)
        self._queues: dict[Hashable, _Queue[_Item]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()
        self._busy: dict[Hashable, _Item] = {}
        self._woken: set[Hashable] = set()  # keys that were busy when `wake_all` was called
        self._threads: list[threading.Thread] = []
        self._idle_count = 0
        self._stopped = False

    def enqueue(self, key: Hashable, item: _Item, *, delay: float = 0.0) -> bool:
        """Queue an item behind those of its key, which waits for the delay unless `wake_all` is called.

        If no thread can start, as while the interpreter exits, the item is processed in the caller's thread. Returns
        whether other items of the key go first.
        """
        needs_thread = must_wait = False
        with self._lock:
            is_late = self._closed
            if not is_late:
                queue = self._queues.get(key)
                must_wait = queue is not None
                if queue is None:
                    queue = self._queues[key] = _Queue()
                queue.items.append(item)
                if delay > 0:
                    queue.resume_at = max(queue.resume_at, time.monotonic() + delay)
                self._schedule(key, queue)
                needs_thread = not self._idle_count and len(self._threads) < self._max_threads
                self._lock.notify()
        if is_late:
            self._abandon(item)
        elif needs_thread and not self._start_thread():
            self._run(block=False)
        return must_wait

    def extend_last(self, key: Hashable, extend: Callable[[_Item], bool]) -> bool:
        """Let `extend` add to the last item of a key that no thread has begun; return its answer, False without one."""
        with self._lock:
            queue = self._queues.get(key)
            return queue is not None and bool(queue.items) and extend(queue.items[-1])

    def _schedule(self, key: Hashable, queue: _Queue[_Item]) -> None:
        """Put a key into the heap, for when its first item is due. Needs the lock."""
        if key in self._busy:
            return
        first = min(item.not_before for item in tuple(queue.items)) if queue.items[0].not_before else 0.0
        due = max(queue.resume_at, first)
        if queue.due != due:
            queue.due = due
            heapq.heappush(self._heap, (due, next(self._numbers), key))

    def _start_thread(self) -> bool:
        """Return False if there is no thread, because the interpreter is shutting down."""
        with self._lock:
            if len(self._threads) >= self._max_threads:
                return True
            thread = threading.Thread(target=self._serve, name=f"mlflow-otlp-sender-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
        if start_thread(thread):
            return True
        self._threads.remove(thread)
        return bool(self._threads)

    def _serve(self) -> None:
        for _ in range(_MAX_INTERRUPTIONS):
            try:
                self._run()
                break
            except BaseException as error:  # noqa: BLE001
                # Raised into the waiting thread, as where all greenlets are killed. It survives, as in `_run_one`.
                log_exception(error, "wait for items")

    def _run(self, *, block: bool = True) -> None:
        with suppress_instrumentation():
            while self._run_one(block=block):
                pass

    def _pop_due(self, *, block: bool) -> tuple[Hashable, _Item] | None:
        """Return the next item that is due; None if there is none and none is waited for. Needs the lock."""
        while not self._stopped:
            timeout = None
            now = time.monotonic()
            while self._heap:
                due, _, key = self._heap[0]
                queue = self._queues.get(key)
                if queue is None or queue.due != due or key in self._busy:
                    heapq.heappop(self._heap)
                    continue
                if due > now:
                    timeout = due - now
                    break
                heapq.heappop(self._heap)
                queue.due = None
                for index, item in enumerate(queue.items):
                    if item.not_before <= now:
                        del queue.items[index]
                        self._busy[key] = item
                        return key, item
            if not block or (self._closed and not self._queues):
                return None
            self._idle_count += 1
            try:
                self._lock.wait(timeout)
            finally:
                self._idle_count -= 1
        return None

    def _run_one(self, *, block: bool) -> bool:
        """Process one item; return False if there is none and none will come."""
        with self._lock:
            popped = self._pop_due(block=block)
            # Items may have been queued while this thread woke up, and counted as idle.
            has_more = bool(self._heap) and self._heap[0][0] <= time.monotonic() and not self._idle_count
        if popped is None:
            return False
        if has_more and block:
            self._start_thread()
        key, item = popped
        try:
            result = self._step(item)
        except BaseException as error:  # noqa: BLE001
            # The thread must survive, or all later items would wait for ever; upstream's dies of a SystemExit.
            log_exception(error, "send")
            self._try_abandon(item)
            result = SendResult()
        abandoned: Sequence[_Item] = ()
        with self._lock:
            del self._busy[key]
            queue, delay = self._queues[key], result.destination_delay
            if key in self._woken:
                self._woken.discard(key)
                # A delay that is little longer stays as it is: else the attempt after it would follow closely.
                delay = _WOKEN_DELAY_SECONDS if delay > 2 * _WOKEN_DELAY_SECONDS else delay
            queue.resume_at = time.monotonic() + delay if delay else 0.0
            if self._stopped:
                abandoned = result.remaining
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
        for abandoned_item in abandoned:
            self._try_abandon(abandoned_item)
        return True

    def _try_abandon(self, item: _Item) -> None:
        try:
            self._abandon(item)
        except BaseException as error:  # noqa: BLE001 - as above, and the destination would be busy for ever
            log_exception(error, "drop")

    def items_of(self, key: Hashable) -> list[_Item]:
        """Return the queued items of a key, without the one in progress."""
        with self._lock:
            queue = self._queues.get(key)
            return [] if queue is None else list(queue.items)

    def all_items(self) -> list[_Item]:
        with self._lock:
            return [item for queue in list(self._queues.values()) for item in tuple(queue.items)]

    def wake_all(self) -> None:
        """Cancel the delays of all keys, and shorten the next delay of those that are busy."""
        with self._lock:
            self._woken.update(self._busy)
            for key, queue in list(self._queues.items()):
                queue.resume_at = 0.0
                if queue.items:
                    self._schedule(key, queue)
            self._lock.notify_all()

    def remove_if(self, predicate: Callable[[_Item], bool]) -> list[_Item]:
        """Remove and return queued items; those in progress stay."""
        removed: list[_Item] = []
        with self._lock:
            for key, queue in list(self._queues.items()):
                matching = [item for item in tuple(queue.items) if predicate(item)]
                if not matching:
                    continue
                removed += matching
                queue.items = deque(item for item in tuple(queue.items) if item not in matching)
                queue.due = None
                if queue.items:
                    self._schedule(key, queue)
                elif key not in self._busy:
                    del self._queues[key]
            if not self._queues:
                self._lock.notify_all()
        return removed

    def has_items(self) -> bool:
        return bool(self._queues)

    def in_progress(self) -> list[_Item]:
        """Return the items that are being sent; after `close`, those for which the time was too short."""
        with self._lock:
            return list(self._busy.values())

    def close(self, timeout_seconds: float) -> None:
        """Accept no more items, wait for the queued ones, and abandon those that remain."""
        with self._lock:
            self._closed = True
            for queued_item in self.all_items():
                queued_item.not_before = 0.0
        self.wake_all()
        run_closing_steps(timeout_seconds, self._wait_until_empty, self._abandon_all, self._join_threads)

    def _wait_until_empty(self, timeout_seconds: float) -> None:
        if not self._threads:
            self._run(block=False)
        with self._lock:
            self._lock.wait_for(lambda: not self._queues, timeout_seconds)

    def _abandon_all(self, _seconds: float) -> None:
        with self._lock:
            self._stopped = True
            abandoned = self.all_items()
            for queue in list(self._queues.values()):
                queue.items.clear()
            self._lock.notify_all()
        for item in abandoned:
            self._abandon(item)

    def _join_threads(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        for thread in list(self._threads):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.1, deadline - time.monotonic()))
