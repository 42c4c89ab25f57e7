"""The thread between the app and the exporter: takes ended spans in, hands whole traces over.

The app's threads only put starts and ends into a queue, whose `put` is safe in signal handlers and finalizers, too:
nothing of theirs waits. The worker never waits for a server either: it hands over to the exporter's senders.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.in_flight import InFlightRequests, Ticket
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.suppression import suppressed_instrumentation
from mlflow_otlp_exporter._internal.config.models import BufferSettings
from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

# Between two looks at the queue: spans that end in a burst wake the worker once.
_TICK = 0.05
# Bytes of a span in memory, until the first ones have been seen.
_TYPICAL_SIZE = 8000

Opened = Callable[[int, int], Ticket]


def _ignored(_trace_id: int) -> None:
    """A span that starts after the end."""


class _Ticket:
    """A request's count, after each change of which the worker says anew how much it may take in."""

    def __init__(self, counted: Ticket, changed: Callable[[], None]) -> None:
        self._counted, self._changed = counted, changed

    def __call__(self) -> None:
        self._counted()
        self._changed()

    def suspected(self, spans: int, size: int) -> None:
        self._counted.suspected(spans, size)
        self._changed()


class Sink(Protocol):
    """Where traces go: `MLflowSpanExporter`."""

    def submit(self, spans: list[ReadableSpan], opened: Opened) -> None:
        """Sends spans without waiting.

        Args:
            spans: Whole traces, or what there is of them, trace by trace; the list may be emptied meanwhile.
            opened: To be called with spans and bytes of each request; what it returns is to be called when the request
                is settled.
        """

    @property
    def record(self) -> Callable[[ReadableSpan], None] | None:
        """What is to be called with each span when it ends; never raises."""

    def keep(self, spans: Sequence[ReadableSpan], why: str) -> None:
        """Puts on disk what there is no time left to send, or gives it up and says why."""

    def drained(self, seconds: float) -> int:
        """Waits until what is on disk is sent, as long as the server takes anything; how many spans are there still."""

    def told(self, seconds: float) -> bool:
        """Waits until MLflow was told what follows spans; whether nothing is left."""

    def refuse(self, count: int, why: str) -> None:
        """Counts spans that are given up, and says why."""

    def solve(self, why: str, message: str) -> None:
        """Says that the reason for which spans were given up is over."""

    def refused(self) -> int:
        """How many spans were given up since start."""

    def hurry(self, seconds: float) -> None:
        """Ends waits between attempts, as somebody waits for the outcome."""

    def relax(self) -> None:
        """Ends the hurry."""

    def leave_out(self, spans: Sequence[ReadableSpan]) -> None:
        """Counts spans of traces that are left out."""


class TraceWorker:
    """Collects ended spans and hands them over trace by trace, in a thread that starts with the first span.

    Args:
        sink: Where traces go.
        settings: Linger, hold and limits.
        sees_starts: Whether `started` is called for each span.
        is_noise: Says of the spans of a whole trace whether it is left out; None if none is.

    Attributes:
        sink: Where traces go.
        started: Takes the trace id of a span that starts; never raises, never waits.
        last_trace_id: The trace of the span that started last, set by who tells of it; 0 if there was none.
        closed: Whether it takes nothing in any more.
    """

    def __init__(
        self, sink: Sink, settings: BufferSettings, *, sees_starts: bool, is_noise: TraceFilter | None = None
    ) -> None:
        self.sink = sink
        self._record = sink.record
        self.last_trace_id = 0
        self.closed = self._stopped = self._over = False
        self._settings, self._sees_starts, self._is_noise = settings, sees_starts, is_noise
        self._full = (
            f"the buffer is full ({settings.buffer_spans} spans or {settings.buffer_bytes} bytes): the server is away, "
            "or takes spans more slowly than they come"
        )
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has taken in, the parent sends."""
        settings = self._settings
        # A start is its trace id, an end the span, a wake-up None.
        self._events: queue.SimpleQueue[int | ReadableSpan | None] = queue.SimpleQueue()
        # The queue's own method, until the end: a call around it would cost the app's thread more than the queue does.
        self.started: Callable[[int], None] = _ignored if self.closed else self._events.put
        self._overflow: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._buffer = TraceBuffer(
            linger=settings.linger, hold=settings.hold, sees_starts=self._sees_starts, is_noise=self._is_noise
        )
        self._in_flight = InFlightRequests()
        self._taken_spans = self._taken_bytes = 0
        self._thread: threading.Thread | None = None
        self._starting, self._stepping, self._measuring = threading.Lock(), threading.Lock(), threading.Lock()
        self._urgent, self._flushed = threading.Event(), threading.Condition()
        self._thread_seen = False
        self._flushes_wanted = self._flushes_done = 0
        self._mean_size = _TYPICAL_SIZE
        self._overflowing = False
        self._room = 0
        self._make_room()

    # In the app's threads

    def see_starts(self) -> None:
        """Tells that `started` is called from now on."""
        self._sees_starts = True
        self._buffer.sees_starts = True

    def ended(self, span: ReadableSpan) -> bool:
        """Takes an ended span in; never raises, never waits.

        Returns:
            False if it is refused: after the end, or when the limits are reached.
        """
        if self.closed:
            self.sink.refuse(1, "they ended after the shutdown")
            return False
        if not self._thread_seen:
            self._see_thread()
        taken = self._events.qsize() < self._room
        if taken:
            if self._record is not None:
                self._record(span)
            self._events.put(span)
        else:
            # Counted and told by the worker: logging takes locks.
            self._overflow.put(None)
        if self._over:  # since this began: nobody else will look any more
            self._keep_what_is_left()
        return taken

    def _see_thread(self) -> None:
        """Once per tick: the thread may never have been started, or have died."""
        self._thread_seen = (self._thread is not None and self._thread.is_alive()) or self._start()

    def _start(self) -> bool:
        if not self._starting.acquire(blocking=False):
            return False  # somebody else is at it, maybe this very thread below a signal handler
        try:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="mlflow-otlp-worker", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            # No more threads can be had, or the interpreter is shutting down: flush() works in its caller's thread.
            return False
        finally:
            self._starting.release()
        return True

    # In the worker's thread

    def _run(self) -> None:
        while not self._stopped or self._is_flush_wanted():
            self._wait()
            self._guarded_step()

    def _is_flush_wanted(self) -> bool:
        return self._flushes_wanted > self._flushes_done

    def _wait(self) -> None:
        """Until something comes or is due; then a little longer, for what comes with it."""
        if self._is_flush_wanted():
            return  # it began in the middle of the last step, which took its wake-up for an event
        due = self._buffer.next_due()
        try:
            first = self._events.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return
        self._guarded(lambda: self._take_in(first, time.monotonic()))
        self._urgent.wait(_TICK)

    def _guarded_step(self) -> None:
        with suppressed_instrumentation():
            self._guarded(self._step)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:  # noqa: BLE001
            # Whatever an exporter raises, the next spans find the worker alive. Upstream's dies of a SystemExit.
            said = "spans could not be handed over, by a mistake in this library; please report it [%s]"
            logger.exception(said, MessageCode.INTERNAL_ERROR)

    def _step(self) -> None:
        """Moves events into the buffer, and hands over what is due, or all if somebody flushes."""
        with self._stepping:
            wanted = self._flushes_wanted
            try:
                self._look(wanted)
            finally:
                with self._flushed:
                    self._flushes_done = wanted
                    self._flushed.notify_all()

    def _look(self, wanted: int) -> None:
        self._urgent.clear()
        self._thread_seen = False
        now = time.monotonic()
        for _ in range(self._events.qsize()):
            try:
                self._take_in(self._events.get_nowait(), now)
            except queue.Empty:
                break
        self._tell_overflow()
        buffer, settings = self._buffer, self._settings
        # What is held for traces in progress makes room before anything is refused.
        crowded = 2 * buffer.span_count >= settings.buffer_spans or 2 * buffer.byte_count >= settings.buffer_bytes
        self._taken_bytes = buffer.byte_count
        spans = buffer.take_all() if crowded or wanted > self._flushes_done else buffer.take(now)
        self._taken_spans, self._taken_bytes = len(spans), self._taken_bytes - buffer.byte_count
        # Not only at the end: as many spans may end while these are enriched and encoded.
        self._make_room()
        try:
            if buffer.left_out:
                left_out, buffer.left_out = buffer.left_out, []
                self.sink.leave_out(left_out)
            if spans:
                self._hand_over(spans)
        finally:
            self._taken_spans = self._taken_bytes = 0
            self._make_room()

    def _take_in(self, event: int | ReadableSpan | None, now: float) -> None:
        try:
            if isinstance(event, int):
                self._buffer.started(event)
            elif event is not None:
                self._buffer.ended(event, now)
        except Exception as error:  # noqa: BLE001 - one span of an odd make must not take the others with it
            self.sink.refuse(1, f"a span could not be taken in ({type(error).__name__})")

    def _hand_over(self, spans: list[ReadableSpan]) -> None:
        def opened(count: int, size: int) -> Ticket:
            counted = self._in_flight.opened(count, size)
            self._taken_spans -= count
            self._taken_bytes = max(0, self._taken_bytes - size)
            return _Ticket(counted, self._make_room)

        refused = self.sink.refused()
        try:
            self.sink.submit(spans, opened)
        except BaseException as error:
            self.sink.refuse(self._taken_spans - (self.sink.refused() - refused), f"it raised {type(error).__name__}")
            raise

    def _tell_overflow(self) -> None:
        count = self._overflow.qsize()
        if count:
            for _ in range(count):
                self._overflow.get_nowait()
            self.sink.refuse(count, self._full)

    def _make_room(self) -> None:
        """Says how many events may wait in the queue until the worker has looked again.

        In the app's thread nothing is measured: the bytes that are left are told in spans of the mean size.
        """
        settings, in_flight, buffer = self._settings, self._in_flight, self._buffer
        # One at a time, or who has measured first may tell last, and nothing would be taken in any more.
        with self._measuring:
            held = buffer.span_count  # read once, as the worker takes spans out meanwhile
            if held:
                self._mean_size = max(1, buffer.byte_count // held)
            spans = settings.buffer_spans - held - self._taken_spans - in_flight.spans
            size = settings.buffer_bytes - buffer.byte_count - self._taken_bytes - in_flight.bytes
            # Where starts are told, each span is two events.
            self._room = (1 + self._sees_starts) * max(0, min(spans, size // self._mean_size))
            solved, self._overflowing = self._overflowing and self._room > 0, self._room == 0
        if solved:
            self.sink.solve(self._full, "spans are taken in again")

    # For those who wait

    def pending(self) -> int:
        """How many ended spans have no outcome, about: starts that the worker has not seen count as well."""
        return self._events.qsize() + self._buffer.span_count + self._taken_spans + self._in_flight.spans

    def flush(self, seconds: float) -> bool:
        """Hands over all that has ended, and waits until it has an outcome.

        Args:
            seconds: How long to wait at most.

        Returns:
            True if all of it was delivered within the time.
        """
        if self._thread is None and self._events.empty():
            return True  # nothing ever came
        deadline = time.monotonic() + seconds
        refused = self.sink.refused()
        self.sink.hurry(seconds)
        try:
            with self._flushed:
                self._flushes_wanted += 1
                wanted = self._flushes_wanted
            self._urgent.set()
            self._events.put(None)
            if not self._stopped:
                self._start()
            if self._stopped or self._thread is None or not self._thread.is_alive():
                self._guarded_step()  # a thread that is started after the end looks alive, and does nothing
            with self._flushed:
                handed_over = self._flushed.wait_for(
                    lambda: self._flushes_done >= wanted, max(0.0, deadline - time.monotonic())
                )
            settled = self._in_flight.wait(max(0.0, deadline - time.monotonic()))
            self._make_room()  # by who settled it, that may be a moment later
            if settled:
                self.sink.drained(deadline - time.monotonic())
                self.sink.told(deadline - time.monotonic())
        finally:
            self.sink.relax()
        return handed_over and settled and self.sink.refused() == refused

    def close(self, seconds: float, then: Callable[[float], None]) -> None:
        """Takes nothing more in, flushes, ends the thread, and shuts down what comes after; all within the time.

        Args:
            seconds: How long to wait at most.
            then: Called with the milliseconds that are left.
        """
        if self.closed:
            return
        deadline = time.monotonic() + seconds
        self.closed, self.started = True, _ignored
        self.flush(seconds)
        self._stopped = True
        self._urgent.set()
        self._events.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.2, deadline - time.monotonic()))
        then(max(0.0, deadline - time.monotonic()) * 1000)
        self._over = True
        self._keep_what_is_left()

    def _keep_what_is_left(self) -> None:
        """What was on its way in while the end came, or what the worker had no time for."""
        if not self._stepping.acquire(timeout=0.2):
            return  # the worker is in the middle of handing over: the exporter keeps or refuses that
        try:
            while not self._events.empty():
                self._take_in(self._events.get_nowait(), time.monotonic())
            self._tell_overflow()
            left = self._buffer.take_all()
            if left:
                self.sink.keep(left, "they ended during the shutdown")
        finally:
            self._stepping.release()
