"""The thread that sends what lies on disk, and puts on disk what waits in memory for too long.

Of all processes with the same spool, one drains it at a time: who has the lock, which the kernel frees when its holder
dies. It gives the senders few requests at a time for each destination, the oldest first, so that what the app sends now
goes out in between; how often a server that is away is asked, the courier decides as for any shipment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, logger
from mlflow_otlp_exporter._internal.common.suppression import suppressed_instrumentation
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.mlflow_api.server import MAX_WRITE_SECONDS
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue, StoredRequest
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage

# Between two looks: while something is on its way, and else.
_BUSY_SECONDS, _IDLE_SECONDS = 0.5, 5.0
# Between two looks for what dead processes left, and for what is too old.
_SWEEP_SECONDS = 10.0
# While somebody waits for it, who looks so often, and so long where another process drains.
_POLL_SECONDS, _PATIENCE_SECONDS = 0.05, 1.5
# Requests of a destination at the senders: the next one is there when one has been sent.
_AT_ONCE = 2
# In memory, at all destinations, with those that wait for longer while others go.
_MOST_AT_ONCE, _MOST_BYTES = 64, 32 * 1024 * 1024


class SpooledOrigin(RequestOrigin):
    """The origin of a request read from the spool: its file stays until each of its spans has an outcome.

    Args:
        spool: Where the file is.
        entry: The file.
        stored: What was read from it.
        on_done: Called with False when others may go meanwhile, and with True when the file is gone or left for later.
    """

    def __init__(
        self, spool: SpoolStorage, entry: Entry, stored: StoredRequest, on_done: Callable[[Entry, bool], None]
    ) -> None:
        super().__init__(len(stored.spans), self._remove, suspected=lambda _spans, _size: self.deferred())
        self.entry, self.left = entry, stored.origin_label
        self._spool, self._state, self._on_done = spool, stored.state, on_done
        self._arrived = stored.state.uncertain

    @property
    def kept(self) -> bool:
        return True

    def sending(self) -> None:
        # Written before the request is sent: after a kill, the next run knows that it may have arrived.
        self._state = DeliveryState(self._state.attempts + 1, uncertain=True, sent_at=time.time())
        self._spool.write_state(self.entry, self._state)

    def failed(self, *, uncertain: bool) -> None:
        self._arrived = self._arrived or uncertain
        if not self._arrived:
            self._state = DeliveryState(self._state.attempts, uncertain=False, sent_at=self._state.sent_at)
            self._spool.write_state(self.entry, self._state)

    def settle(self, delivered: int, refused: int, outcome: ExportOutcome | None = None) -> None:
        self._arrived = self._arrived or delivered > 0
        super().settle(delivered, refused, outcome)

    def _remove(self) -> None:
        self._spool.remove(self.entry)
        self._on_done(self.entry, True)

    def deferred(self) -> None:
        self._on_done(self.entry, False)

    def release(self) -> None:
        self._spool.release(self.entry)
        self._on_done(self.entry, True)


def read_export_request(
    queue: PersistentQueue, entry: Entry, on_done: Callable[[Entry, bool], None]
) -> ExportRequest | None:
    """Read a request from the spool; None if it is gone or damaged."""
    stored = queue.read(entry)
    if stored is None:
        return None
    origin, state = SpooledOrigin(queue.storage, entry, stored, on_done), stored.state
    request = ExportRequest(
        stored.destination, stored.spans, origin, uncertain=state.uncertain, attempted=state.attempts > 0
    )
    if state.uncertain:
        seconds = min(max(state.sent_at + MAX_WRITE_SECONDS - time.time(), 0.0), MAX_WRITE_SECONDS)
        request.ask_until = time.monotonic() + seconds
    return request


class SpoolConsumer:
    """Sends what lies on disk.

    Args:
        depot: The disk.
        send: Takes a shipment to the senders.
        spill: Puts on disk what waits in memory for too long; whether anything waits there still.
        tidy: Called now and then, when no other process drains.
        report: Where to say what keeps it from working.

    Attributes:
        closed: Whether it does nothing more.
        has_looked: Whether it has had a look since it was woken first.
    """

    def __init__(
        self,
        depot: PersistentQueue,
        *,
        send: Callable[[ExportRequest], None],
        spill: Callable[[], bool],
        tidy: Callable[[], None],
        report: ProblemLog,
    ) -> None:
        self._depot, self._send, self._spill, self._tidy, self._report = depot, send, spill, tidy, report
        self.closed = self._released = False
        self._lock: FileLock | None = None
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has taken out, the parent sends."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        self._thread: threading.Thread | None = None
        self._starting, self._changing = threading.Lock(), threading.Lock()
        self._wake = threading.Event()
        self._out: dict[str, int] = {}
        self._sending: set[str] = set()
        self._slots: dict[str, int] = {}
        self._bytes = 0
        self._pending: dict[str, deque[Entry]] = {}
        self._listed_at = self._swept_at = -_SWEEP_SECONDS
        self._only_own = self.has_looked = False

    @property
    def draining(self) -> bool:
        """Whether this process is the one that drains."""
        return self._lock is not None and self._lock.held

    def wake(self) -> None:
        """Has it look at once: something was put on disk, or waits in memory."""
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self._wake.set()

    def _start(self) -> None:
        if self.closed or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="mlflow-otlp-drainer", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            return  # no more threads, or the interpreter is shutting down: what is on disk is safe there
        finally:
            self._starting.release()

    def _run(self) -> None:
        while not self.closed:
            with suppressed_instrumentation():
                try:
                    busy = self._turn()
                except Exception:  # noqa: BLE001 - the thread must go on
                    said = "the spool is not drained for a moment, by a mistake in this library; please report it [%s]"
                    logger.exception(said, MessageCode.INTERNAL_ERROR)
                    busy = True
            self.has_looked = True
            self._wake.wait(_BUSY_SECONDS if busy else _IDLE_SECONDS)
            self._wake.clear()
        if self._released and self._lock is not None:
            self._lock.release()  # taken since then: nobody had the time to wait for this thread

    def _turn(self) -> bool:
        """One look at memory and disk; whether there is more to do soon."""
        waiting = self._spill()
        if self._depot.journal is not None:
            self._depot.journal.rotate()
        now = time.monotonic()
        sweep = now - self._swept_at >= _SWEEP_SECONDS
        self._list(now)
        if not (sweep or self._pending or self._out):
            if self._lock is not None:
                self._lock.release()
            return waiting
        alone = self._acquire()
        if alone and sweep:
            self._swept_at = now
            self._depot.storage.remove_temporary_files()
            self._tidy()
        if alone or self._only_own:
            self._fill()
        return waiting or bool(self._pending or self._out)

    def _acquire(self) -> bool:
        spool = self._depot.storage
        try:
            folder = spool.find_folder()
            if folder is None:
                return False
            if self._lock is None or self._lock.path.parent != folder:
                self._lock = FileLock(folder / "lock")
            alone = self._lock.acquire()
        except OSError as error:
            if not self._only_own:
                self._only_own, self._pending = True, {}
                self._list(time.monotonic())  # without what others have put there
            said = f"each process sends only what it put into the spool itself, as {folder} cannot be locked: {error}"
            self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_UNAVAILABLE, said))
            return False
        self._only_own = False
        return alone

    def _list(self, now: float) -> None:
        """What lies there, by destination; looked at anew each time that the spool itself looks."""
        if now - self._listed_at < _BUSY_SECONDS and self._pending:
            return
        self._listed_at = now
        pending: dict[str, deque[Entry]] = {}
        spool = self._depot.storage
        for entry in spool.entries_of_this_process() if self._only_own else spool.entries():
            pending.setdefault(entry.destination_hash, deque()).append(entry)
        self._pending = pending

    def _fill(self) -> None:
        """Gives the senders what they have room for, the oldest of each destination first."""
        for key in list(self._pending):
            entries = self._pending[key]
            while entries and self._room(key):
                entry = entries.popleft()
                shipment = read_export_request(self._depot, entry, self._told)
                if shipment is not None:
                    with self._changing:
                        self._out[entry.name] = shipment.size
                        self._sending.add(entry.name)
                        self._slots[key] = self._slots.get(key, 0) + 1
                        self._bytes += shipment.size
                    self._send(shipment)
            if not entries:
                del self._pending[key]

    def _room(self, key: str) -> bool:
        with self._changing:
            few = self._slots.get(key, 0) < _AT_ONCE and len(self._out) < _MOST_AT_ONCE
            return few and (self._bytes < _MOST_BYTES or not self._out)

    def _told(self, entry: Entry, ended: bool) -> None:
        """Called by the senders: there is room for the next one."""
        name, key = entry.name, entry.destination_hash
        with self._changing:
            if name in self._sending:
                self._sending.discard(name)
                self._slots[key] -= 1
                if not self._slots[key]:
                    del self._slots[key]
            if ended:
                self._bytes -= self._out.pop(name, 0)
        self._wake.set()

    def wait(self, seconds: float, courier: RetrySender) -> int:
        """Waits until what this process has put on disk is sent, as long as the server takes anything.

        Args:
            seconds: How long to wait at most.
            courier: Tells whether it does.

        Returns:
            How many spans that this process has put on disk are there still.
        """
        spool, pause = self._depot.storage, threading.Event()
        moved = time.monotonic()
        deadline, before, least = moved + seconds, courier.failures, spool.pending_span_count()
        while left := spool.pending_span_count():
            now = time.monotonic()
            if left < least:
                least, moved = left, now
            # Where another process drains, nobody here knows whether the server is away: then nothing moves.
            stuck = courier.failures != before if self.draining else now - moved > _PATIENCE_SECONDS
            if now >= deadline or (stuck and (courier.patience.troubled or not self.draining)):
                return left
            pause.wait(min(_POLL_SECONDS, deadline - now))
        return 0

    def close(self) -> None:
        """Ends the thread. What is on its way stays there."""
        self.closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def release(self) -> None:
        """Lets another process drain."""
        self._released = True
        if self._lock is not None:
            self._lock.release()
