"""The thread between the application and the pipeline: it collects ended spans and submits whole traces.

Application threads only put starts and ends into a queue whose `put` is safe in signal handlers and finalizers: they
never wait. The worker never waits for a server: the pipeline sends in threads of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.in_flight import InFlightRequests
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.suppression import suppress_instrumentation
from mlflow_otlp_exporter._internal.config.models import BufferSettings
from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline

# Between two ticks: spans that end in a burst wake the worker once.
_TICK_SECONDS = 0.05
# Bytes of a span in memory, until the first spans have been measured.
_TYPICAL_SPAN_BYTES = 8000


def _ignore_start(_trace_id: int) -> None:
    """Replace `enqueue_start` after the end."""


class TraceWorker:
    """Collects ended spans and submits them trace by trace, in a thread that starts with the first span.

    Attributes:
        enqueue_start: Takes the trace id of a span that starts; never raises, never waits.
        last_trace_id: The trace of the span that started last, set by the caller; 0 if there was none.
        is_closed: True after `close`: spans are dropped.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: BufferSettings,
        *,
        has_start_events: bool,
        trace_filter: TraceFilter | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._journal_span = pipeline.span_recorder
        self.last_trace_id = 0
        self.is_closed = self._is_stopped = self._is_over = False
        self._settings, self._has_start_events, self._trace_filter = settings, has_start_events, trace_filter
        self._full_reason = (
            f"the buffer is full ({settings.buffer_spans} spans or {settings.buffer_bytes} bytes): the server is "
            "unavailable, or slower than the application"
        )
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # A forked child starts empty: the parent sends what it has collected.
        settings = self._settings
        # A start is its trace id, an end the span, a wake-up None.
        self._events: queue.SimpleQueue[int | ReadableSpan | None] = queue.SimpleQueue()
        # The queue's own method, until the end: a wrapper would cost the application's thread more than the queue does.
        self.enqueue_start: Callable[[int], None] = _ignore_start if self.is_closed else self._events.put
        self._overflow: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._buffer = TraceBuffer(
            linger_seconds=settings.linger,
            max_age_seconds=settings.hold,
            has_start_events=self._has_start_events,
            trace_filter=self._trace_filter,
        )
        self._in_flight = InFlightRequests()
        self._submitting_spans = self._submitting_bytes = 0
        self._thread: threading.Thread | None = None
        self._starting, self._ticking, self._measuring = threading.Lock(), threading.Lock(), threading.Lock()
        self._urgent, self._flushed = threading.Event(), threading.Condition()
        self._is_thread_checked = False
        self._flushes_requested = self._flushes_done = 0
        self._mean_span_bytes = _TYPICAL_SPAN_BYTES
        self._is_overflowing = False
        self._capacity = 0
        self._update_capacity()

    # In the application's threads

    def enable_start_events(self) -> None:
        self._has_start_events = True
        self._buffer.has_start_events = True

    def enqueue(self, span: ReadableSpan) -> bool:
        """Take an ended span; never raises, never waits. False if it is dropped: after the end, or at the limits."""
        if self.is_closed:
            self._pipeline.record_dropped(1, "ended after shutdown")
            return False
        if not self._is_thread_checked:
            self._check_thread()
        has_capacity = self._events.qsize() < self._capacity
        if has_capacity:
            if self._journal_span is not None:
                self._journal_span(span)
            self._events.put(span)
        else:
            # The worker counts and logs it: logging takes locks.
            self._overflow.put(None)
        if self._is_over:  # since this call began: no tick follows
            self._drain_on_close()
        return has_capacity

    def _check_thread(self) -> None:
        # Once per tick: the thread may not have started, or may have died.
        self._is_thread_checked = (self._thread is not None and self._thread.is_alive()) or self._start_thread()

    def _start_thread(self) -> bool:
        if not self._starting.acquire(blocking=False):
            return False  # another thread starts it, or this very thread below a signal handler
        try:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="mlflow-otlp-worker", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            # No more threads, or the interpreter is shutting down: flush() works in its caller's thread.
            return False
        finally:
            self._starting.release()
        return True

    # In the worker's thread

    def _run(self) -> None:
        while not self._is_stopped or self._has_pending_flush():
            self._wait()
            self._safe_tick()

    def _has_pending_flush(self) -> bool:
        return self._flushes_requested > self._flushes_done

    def _wait(self) -> None:
        """Wait for an event or until a trace is due; then a little longer, to collect a burst."""
        if self._has_pending_flush():
            return  # it began during the last tick, which took its wake-up for an event
        due = self._buffer.next_due()
        try:
            event = self._events.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return
        self._log_exceptions(lambda: self._apply_event(event, time.monotonic()))
        self._urgent.wait(_TICK_SECONDS)

    def _safe_tick(self) -> None:
        with suppress_instrumentation():
            self._log_exceptions(self._locked_tick)

    def _log_exceptions(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:  # noqa: BLE001
            # The thread survives every exception, also SystemExit, of which upstream's worker dies.
            logger.exception(
                "Internal error: could not submit spans. Please report this. [%s]", MessageCode.INTERNAL_ERROR
            )

    def _locked_tick(self) -> None:
        with self._ticking:
            requested = self._flushes_requested
            try:
                self._tick(is_flush=requested > self._flushes_done)
            finally:
                with self._flushed:
                    self._flushes_done = requested
                    self._flushed.notify_all()

    def _tick(self, *, is_flush: bool) -> None:
        """Move events into the buffer and submit the traces that are ready, or all during a flush."""
        self._urgent.clear()
        self._is_thread_checked = False
        now = time.monotonic()
        for _ in range(self._events.qsize()):
            try:
                self._apply_event(self._events.get_nowait(), now)
            except queue.Empty:
                break
        self._log_overflow()
        buffer, settings = self._buffer, self._settings
        # Traces in progress are sent before any span is dropped.
        is_crowded = 2 * buffer.span_count >= settings.buffer_spans or 2 * buffer.byte_count >= settings.buffer_bytes
        self._submitting_bytes = buffer.byte_count
        spans = buffer.pop_all() if is_crowded or is_flush else buffer.pop_ready(now)
        self._submitting_spans, self._submitting_bytes = len(spans), self._submitting_bytes - buffer.byte_count
        # Also before submitting: as many spans may end while these are enriched and encoded.
        self._update_capacity()
        try:
            if buffer.filtered_spans:
                filtered_spans, buffer.filtered_spans = buffer.filtered_spans, []
                self._pipeline.record_filtered(filtered_spans)
            if spans:
                self._submit(spans)
        finally:
            self._submitting_spans = self._submitting_bytes = 0
            self._update_capacity()

    def _apply_event(self, event: int | ReadableSpan | None, now: float) -> None:
        try:
            if isinstance(event, int):
                self._buffer.record_start(event)
            elif event is not None:
                self._buffer.add(event, now)
        except Exception as error:  # noqa: BLE001 - a bad span must not affect others
            self._pipeline.record_dropped(1, f"a span could not be buffered ({type(error).__name__})")

    def _submit(self, spans: list[ReadableSpan]) -> None:
        def track(span_count: int, byte_count: int) -> Callable[[], None]:
            ticket = self._in_flight.track(span_count, byte_count)
            self._submitting_spans -= span_count
            self._submitting_bytes = max(0, self._submitting_bytes - byte_count)

            def complete() -> None:
                ticket()
                self._update_capacity()

            return complete

        dropped_before = self._pipeline.dropped_count
        try:
            self._pipeline.submit(spans, track)
        except BaseException as error:
            dropped_count = self._pipeline.dropped_count - dropped_before
            self._pipeline.record_dropped(self._submitting_spans - dropped_count, f"{type(error).__name__} was raised")
            raise

    def _log_overflow(self) -> None:
        count = self._overflow.qsize()
        if count:
            for _ in range(count):
                self._overflow.get_nowait()
            self._pipeline.record_dropped(count, self._full_reason)

    def _update_capacity(self) -> None:
        """Set how many events the queue may hold until the next tick.

        Nothing is measured in the application's threads: the free bytes are converted to spans of the mean size.
        """
        settings, in_flight, buffer = self._settings, self._in_flight, self._buffer
        # One thread at a time: else a thread could write its older measurement last and close the queue forever.
        with self._measuring:
            buffered = buffer.span_count  # read once, because the worker pops spans meanwhile
            if buffered:
                self._mean_span_bytes = max(1, buffer.byte_count // buffered)
            free_spans = settings.buffer_spans - buffered - self._submitting_spans - in_flight.span_count
            free_bytes = settings.buffer_bytes - buffer.byte_count - self._submitting_bytes - in_flight.byte_count
            # With start events, each span is two events.
            event_count = 1 + self._has_start_events
            self._capacity = event_count * max(0, min(free_spans, free_bytes // self._mean_span_bytes))
            has_recovered = self._is_overflowing and self._capacity > 0
            self._is_overflowing = self._capacity == 0
        if has_recovered:
            self._pipeline.resolve_problem(self._full_reason, "Spans are buffered again")

    # For flush and shutdown

    def pending_count(self) -> int:
        """Return about how many ended spans have no outcome; includes starts that the worker has not seen."""
        return self._events.qsize() + self._buffer.span_count + self._submitting_spans + self._in_flight.span_count

    def flush(self, timeout_seconds: float) -> bool:
        """Submit all ended spans and wait for their outcome; True if all were delivered within the time."""
        if self._thread is None and self._events.empty():
            return True  # no span ever ended
        deadline = time.monotonic() + timeout_seconds
        pipeline = self._pipeline
        dropped_before = pipeline.dropped_count
        pipeline.begin_flush(timeout_seconds)
        try:
            with self._flushed:
                self._flushes_requested += 1
                requested = self._flushes_requested
            self._urgent.set()
            self._events.put(None)
            if not self._is_stopped:
                self._start_thread()
            if self._is_stopped or self._thread is None or not self._thread.is_alive():
                self._safe_tick()  # a thread that starts after the end looks alive and does nothing
            with self._flushed:
                is_submitted = self._flushed.wait_for(
                    lambda: self._flushes_done >= requested, max(0.0, deadline - time.monotonic())
                )
            is_settled = self._in_flight.wait(max(0.0, deadline - time.monotonic()))
            self._update_capacity()  # the sender thread may do so a moment later
            if is_settled:
                pipeline.wait_until_drained(deadline - time.monotonic())
                pipeline.wait_for_rest_calls(deadline - time.monotonic())
        finally:
            pipeline.end_flush()
        return is_submitted and is_settled and pipeline.dropped_count == dropped_before

    def close(self, timeout_seconds: float, shutdown: Callable[[float], None]) -> None:
        """Flush, end the thread, and call `shutdown` with the milliseconds that remain."""
        if self.is_closed:
            return
        deadline = time.monotonic() + timeout_seconds
        self.is_closed, self.enqueue_start = True, _ignore_start
        self.flush(timeout_seconds)
        self._is_stopped = True
        self._urgent.set()
        self._events.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.2, deadline - time.monotonic()))
        shutdown(max(0.0, deadline - time.monotonic()) * 1000)
        self._is_over = True
        self._drain_on_close()

    def _drain_on_close(self) -> None:
        """Spool or drop spans that were enqueued during `close`, or that the worker had no time for."""
        if not self._ticking.acquire(timeout=0.2):
            return  # a tick is submitting: the pipeline spools or drops its spans
        try:
            while not self._events.empty():
                self._apply_event(self._events.get_nowait(), time.monotonic())
            self._log_overflow()
            spans = self._buffer.pop_all()
            if spans:
                self._pipeline.spool_or_drop(spans, "ended during shutdown")
        finally:
            self._ticking.release()
