"""Sends requests from the spool, and the thread that does so and spools requests that are queued for too long.

Of all processes with the same spool, one consumes it at a time: the holder of the file lock, which the kernel frees
when the process dies. It enqueues few requests per destination at a time, the oldest first, so that new spans are sent
in between; the retry sender decides how often an unavailable server is asked, as for any request.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.files import FileLock
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset, start_thread
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, log_exception
from mlflow_otlp_exporter._internal.common.suppression import suppress_instrumentation
from mlflow_otlp_exporter._internal.common.work_queue import WakeUp
from mlflow_otlp_exporter._internal.delivery.export_request import ExportFuture, ExportRequest
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.mlflow_api.server import MAX_WRITE_SECONDS
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue, StoredRequest
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage

# Between two ticks: while requests are in flight, and else.
_BUSY_SECONDS, _IDLE_SECONDS = 0.5, 5.0
# Between two checks for journals of dead processes and for expired requests.
_MAINTENANCE_SECONDS = 10.0
# While a flush waits: between two checks, and the longest time without progress while another process consumes.
_POLL_SECONDS, _STALL_SECONDS = 0.05, 1.5
# Requests per destination in the work queue: the next one is there when one was sent.
_MAX_REQUESTS_PER_DESTINATION = 2
# Requests in memory for all destinations, with those that are delayed while others are sent.
_MAX_REQUESTS, _MAX_BYTES = 64, 32 * 1024 * 1024


class _RequestInMemory(NamedTuple):
    key: str  # of the destination
    byte_count: int
    has_slot: bool = True


class SpooledFuture(ExportFuture):
    """Completion of a request from the spool, whose file stays until each of its spans has an outcome."""

    is_on_disk = True

    def __init__(
        self, spool: SpoolStorage, entry: Entry, stored: StoredRequest, on_done: Callable[[Entry, bool], None]
    ) -> None:
        super().__init__(len(stored.spans))
        self.label = stored.origin_label
        # False: the request frees its slot, but stays in memory. True: it has left the memory.
        self._spool, self._entry, self._delivery_state, self._on_done = spool, entry, stored.state, on_done
        self._may_have_arrived = stored.state.may_have_arrived
        self.add_done_callback(self._remove)

    def record_attempt(self) -> None:
        # Written before the request is sent: after a kill, the next run knows that it may have arrived.
        attempts = self._delivery_state.attempts + 1
        self._delivery_state = DeliveryState(attempts, may_have_arrived=True, sent_at=time.time())
        self._spool.write_state(self._entry, self._delivery_state)

    def record_failure(self, *, may_have_arrived: bool) -> None:
        self._may_have_arrived = self._may_have_arrived or may_have_arrived
        if not self._may_have_arrived:
            self._delivery_state = self._delivery_state._replace(may_have_arrived=False)
            self._spool.write_state(self._entry, self._delivery_state)

    def settle(self, delivered_count: int, dropped_count: int, outcome: ExportOutcome | None = None) -> None:
        self._may_have_arrived = self._may_have_arrived or delivered_count > 0
        super().settle(delivered_count, dropped_count, outcome)

    def _remove(self, _: Future[int]) -> None:
        self._spool.remove(self._entry)
        self._on_done(self._entry, True)

    def yield_slot(self) -> None:
        self._on_done(self._entry, False)

    def release(self) -> None:
        self._spool.release(self._entry)
        self._on_done(self._entry, True)


def read_export_request(
    queue: PersistentQueue, entry: Entry, on_done: Callable[[Entry, bool], None]
) -> ExportRequest | None:
    """Read a request from the spool; None if it is gone or damaged."""
    stored = queue.read(entry)
    if stored is None:
        return None
    future, state = SpooledFuture(queue.storage, entry, stored, on_done), stored.state
    request = ExportRequest(stored.destination, stored.spans, future, may_have_arrived=state.may_have_arrived)
    request.was_sent = request.was_posted = state.attempts > 0
    if state.may_have_arrived:
        # The server may still be writing spans that were sent just before; bounded, if the clock was changed.
        remaining_seconds = min(max(state.sent_at + MAX_WRITE_SECONDS - time.time(), 0.0), MAX_WRITE_SECONDS)
        request.check_until = time.monotonic() + remaining_seconds
    return request


class SpoolConsumer:
    """Enqueues requests from the spool.

    `spill` spools requests that are queued in memory for too long, and returns whether any request is still queued;
    `maintain` is called now and then in the process that consumes.
    """

    def __init__(
        self,
        queue: PersistentQueue,
        *,
        send: Callable[[ExportRequest], None],
        spill: Callable[[], bool],
        maintain: Callable[[], None],
        problem_log: ProblemLog,
    ) -> None:
        self._queue, self._send, self._spill, self._maintain = queue, send, spill, maintain
        self._problem_log = problem_log
        self._is_closed = self._is_released = False
        self._lock: FileLock | None = None
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # A forked child starts anew: the parent sends what it has read.
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        self._thread: threading.Thread | None = None
        self.is_started = False
        self._starting = threading.Lock()
        self._wake_up = WakeUp()
        self._in_memory: dict[str, _RequestInMemory] = {}  # by file name
        self._pending: dict[str, deque[Entry]] = {}
        self._listed_at = self._maintained_at = -_MAINTENANCE_SECONDS
        self._is_locking_broken = self.has_ticked = False

    @property
    def is_leader(self) -> bool:
        """Whether this process consumes the spool."""
        return self._lock is not None and self._lock.is_held

    def wake(self) -> None:
        """Start a tick at once: a request was spooled or enqueued."""
        if self._thread is None or not self._thread.is_alive():
            self._start_thread()
        self._wake_up.set()

    def _start_thread(self) -> None:
        if self._is_closed or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None or not self._thread.is_alive():
                # Before the start, which a signal may interrupt.
                self._thread = threading.Thread(target=self._run, name="mlflow-otlp-spool", daemon=True)
                self.is_started = start_thread(self._thread)  # else the requests stay on disk
        finally:
            self._starting.release()

    def _run(self) -> None:
        while not self._is_closed:
            with suppress_instrumentation():
                try:
                    is_busy = self._tick()
                except Exception as error:  # noqa: BLE001 - the thread must go on
                    log_exception(error, "read the spool")
                    is_busy = True
            self.has_ticked = True
            self._wake_up.wait(_BUSY_SECONDS if is_busy else _IDLE_SECONDS)
        if self._is_released and self._lock is not None:
            self._lock.release()  # acquired after `release`, which did not wait for this thread

    def _tick(self) -> bool:
        """Process memory and disk once; True if there is more to do soon."""
        has_queued = self._spill()
        if self._queue.journal is not None:
            self._queue.journal.rotate()
        now = time.monotonic()
        is_maintenance_due = now - self._maintained_at >= _MAINTENANCE_SECONDS
        self._list_entries(now)
        if not (is_maintenance_due or self._pending or self._in_memory):
            if self._lock is not None:
                self._lock.release()
            return has_queued
        is_leader = self._try_lead()
        if is_leader and is_maintenance_due:
            self._maintained_at = now
            self._queue.storage.remove_temporary_files()
            self._maintain()
        if is_leader or self._is_locking_broken:
            self._enqueue_due()
        return has_queued or bool(self._pending or self._in_memory)

    def _try_lead(self) -> bool:
        spool = self._queue.storage
        try:
            folder = spool.find_folder()
            if folder is None:
                return False
            if self._lock is None or self._lock.path.parent != folder:
                self._lock = FileLock(folder / "lock")
            is_leader = self._lock.acquire()
        except OSError as error:
            if not self._is_locking_broken:
                self._is_locking_broken, self._pending = True, {}
                self._list_entries(time.monotonic())  # without the requests of other processes
            message = f"Each process sends only its own spooled requests, because {folder} cannot be locked: {error}"
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_UNAVAILABLE, message))
            return False
        self._is_locking_broken = False
        return is_leader

    def _list_entries(self, now: float) -> None:
        """List the requests on disk by destination, as often as the spool itself reads its directory."""
        if now - self._listed_at < _BUSY_SECONDS and self._pending:
            return
        self._listed_at = now
        pending: dict[str, deque[Entry]] = {}
        spool = self._queue.storage
        for entry in spool.entries():
            if not self._is_locking_broken or entry.name in spool.own_names:
                pending.setdefault(entry.destination_hash, deque()).append(entry)
        self._pending = pending

    def _enqueue_due(self) -> None:
        """Enqueue as many requests as there are slots, the oldest of each destination first."""
        for key in list(self._pending):
            entries = self._pending[key]
            while entries and self._has_free_slot(key):
                entry = entries.popleft()
                request = read_export_request(self._queue, entry, self._on_done)
                if request is not None:
                    self._in_memory[entry.name] = _RequestInMemory(key, request.byte_count)
                    self._send(request)
            if not entries:
                del self._pending[key]

    def _has_free_slot(self, key: str) -> bool:
        requests = list(self._in_memory.values())  # other threads remove some
        if sum(request.key == key and request.has_slot for request in requests) >= _MAX_REQUESTS_PER_DESTINATION:
            return False
        byte_count = sum(request.byte_count for request in requests)
        return not requests or (len(requests) < _MAX_REQUESTS and byte_count < _MAX_BYTES)

    def _on_done(self, entry: Entry, is_settled: bool) -> None:
        """Free the slot of a request; called by sender threads."""
        request = self._in_memory.pop(entry.name, None)
        if request is not None and not is_settled:
            self._in_memory[entry.name] = request._replace(has_slot=False)
        self._wake_up.set()

    def wait(self, timeout_seconds: float, sender: RetrySender) -> int:
        """Wait for the spans that this process spooled, until the server fails; return how many are still on disk."""
        spool, pause = self._queue.storage, threading.Event()
        progress_at = time.monotonic()
        deadline = progress_at + timeout_seconds
        failures_before, min_count = sender.failure_count, spool.pending_span_count()
        while span_count := spool.pending_span_count():
            now = time.monotonic()
            if span_count < min_count:
                min_count, progress_at = span_count, now
            if self.is_leader:
                is_stuck = sender.failure_count != failures_before and bool(sender.backoff.failure_counts)
            else:
                # Only the process that consumes knows whether the server is unavailable; here there is no progress.
                is_stuck = now - progress_at > _STALL_SECONDS
            if now >= deadline or is_stuck:
                return span_count
            pause.wait(min(_POLL_SECONDS, deadline - now))
        return 0

    def close(self) -> None:
        """End the thread. Requests in flight stay in flight."""
        self._is_closed = True
        self._wake_up.set()
        if self._thread is not None and self._thread.ident not in (None, threading.get_ident()):
            self._thread.join(1.0)

    def release(self) -> None:
        """Let another process consume."""
        self._is_released = True
        if self._lock is not None:
            self._lock.release()
