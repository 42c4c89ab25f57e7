"""The thread between the application and the pipeline: it collects ended spans and submits whole traces.

Application threads only put starts and ends into a queue whose `put` is safe in signal handlers and finalizers: they
never wait. The worker never waits for a server: the pipeline sends in threads of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import log_exception
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
    """Collects ended spans and submits them trace by trace, in a thread that starts with the first span."""

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
        self.last_trace_id = 0  # of the span that started last, set by the caller
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
        self._events: SimpleQueue[int | ReadableSpan | None] = SimpleQueue()
        # Takes the trace id of a span that starts. The queue's own method, until the end: a wrapper would cost the
        # application's thread more than the queue does.
        self.enqueue_start: Callable[[int], None] = _ignore_start if self.is_closed else self._events.put
        self._overflow: SimpleQueue[None] = SimpleQueue()
        # Notified when a tick ends. Re-entrant: a signal handler may flush, or end a span that starts the thread.
        self._changed = threading.Condition()
        self._is_ticking = False
        # A flush is done when all spans that had ended before are submitted; its wake-up shortens the wait for a burst.
        self._flush_wake_ups: SimpleQueue[None] = SimpleQueue()
        self._requested_flush_count = self._done_flush_count = 0
        self._buffer = TraceBuffer(
            linger_seconds=settings.linger,
            max_age_seconds=settings.hold,
            has_start_events=self._has_start_events,
            trace_filter=self._trace_filter,
        )
        self._thread: threading.Thread | None = None
        self._is_thread_checked = False
        self._mean_span_bytes = _TYPICAL_SPAN_BYTES
        self._is_overflowing = False
        self._capacity = 0
        self._measure_capacity()

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
        # The capacity is that of the last tick; when it is used up, it is measured again.
        has_capacity = self._events.qsize() < self._capacity or self._events.qsize() < self._measure_capacity()
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
        with self._changed:
            thread = self._thread
            if thread is not None and (thread.is_alive() or thread.ident is None):
                return True  # or this very thread is starting it, below a signal handler
            self._thread = threading.Thread(target=self._run, name="mlflow-otlp-worker", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # No more threads, or the interpreter is shutting down: flush() works in its caller's thread.
                self._thread = thread
                return False
        return True

    # In the worker's thread

    def _run(self) -> None:
        with suppress_instrumentation():
            while not self._is_stopped or self._requested_flush_count > self._done_flush_count:
                try:
                    self._wait()
                    self._tick()
                except BaseException as error:  # noqa: BLE001
                    # The thread survives every exception, also SystemExit, of which upstream's worker dies.
                    log_exception(error, "submit spans")

    def _wait(self) -> None:
        """Wait for an event or until a trace is due; then a little longer, to collect a burst."""
        if self._requested_flush_count > self._done_flush_count:
            return  # it began during the last tick, which took its wake-up for an event
        due = self._buffer.next_due()
        try:
            event = self._events.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            self._apply_event(event, time.monotonic())
            self._flush_wake_ups.get(timeout=_TICK_SECONDS)
        except Empty:
            return

    def _begin_tick(self, timeout_seconds: float | None) -> bool:
        """Wait for another tick; False after the timeout, as in a signal handler that interrupted the tick."""
        with self._changed:
            can_begin = self._changed.wait_for(lambda: not self._is_ticking, timeout_seconds)
            self._is_ticking = True  # also if another tick is running still
            return can_begin

    def _end_tick(self, done_flush_count: int) -> None:
        with self._changed:
            self._is_ticking = False
            self._done_flush_count = max(self._done_flush_count, done_flush_count)
            self._changed.notify_all()

    def _tick(self, timeout_seconds: float | None = None) -> None:
        """Move events into the buffer and submit the traces that are ready, or all during a flush."""
        if not self._begin_tick(timeout_seconds):
            return
        requested_flush_count = self._requested_flush_count
        is_flush = requested_flush_count > self._done_flush_count
        try:
            self._is_thread_checked = False
            now = time.monotonic()
            with suppress(Empty):
                for _ in range(self._events.qsize()):
                    self._apply_event(self._events.get_nowait(), now)
            buffer, settings = self._buffer, self._settings
            # Before submitting: as many spans may end while these are enriched and encoded.
            self._measure_capacity()
            # Traces in progress are sent before any span is dropped.
            is_crowded = (
                2 * buffer.span_count >= settings.buffer_spans or 2 * buffer.byte_count >= settings.buffer_bytes
            )
            byte_count = buffer.byte_count
            must_pop = is_crowded or is_flush
            spans = buffer.pop_all(is_final=self.is_closed) if must_pop else buffer.pop_ready(now)
            if buffer.resent_count:
                # They were counted when they were sent first.
                self._pipeline.problem_log.stats.add(delivered=-buffer.resent_count)
                buffer.resent_count = 0
            if buffer.filtered_spans:
                filtered_spans, buffer.filtered_spans = buffer.filtered_spans, []
                self._pipeline.record_filtered(filtered_spans)
            if spans:
                self._submit(spans, byte_count - buffer.byte_count)
                self._measure_capacity()
            if self._is_overflowing or not self._overflow.empty():
                self._log_overflow()
        finally:
            self._end_tick(requested_flush_count)

    def _apply_event(self, event: int | ReadableSpan | None, now: float) -> None:
        try:
            if isinstance(event, int):
                self._buffer.record_start(event)
            elif event is not None:
                self._buffer.add(event, now)
        except Exception as error:  # noqa: BLE001 - a bad span must not affect others
            self._pipeline.record_dropped(1, f"a span could not be buffered ({type(error).__name__})")

    def _submit(self, spans: list[ReadableSpan], byte_count: int) -> None:
        span_count = len(spans)
        try:
            self._pipeline.submit(spans, byte_count)
        except BaseException as error:
            self._pipeline.record_dropped(span_count, f"{type(error).__name__} was raised")
            raise

    def _log_overflow(self) -> None:
        count = self._overflow.qsize()
        if count:
            for _ in range(count):
                self._overflow.get_nowait()
            self._is_overflowing = True
            self._pipeline.record_dropped(count, self._full_reason)
        elif self._is_overflowing and self._capacity > 0:
            self._is_overflowing = False
            self._pipeline.resolve_problem(self._full_reason, "Spans are buffered again")

    def _measure_capacity(self) -> int:
        """Measure how many events the queue may hold, converting the free bytes to spans of the mean size.

        Without a lock: a value that another thread overwrites with an older one is measured again when it is used up.
        """
        settings, pipeline, buffer = self._settings, self._pipeline, self._buffer
        buffered = buffer.span_count  # read once, because the worker pops spans meanwhile
        if buffered:
            self._mean_span_bytes = max(1, buffer.byte_count // buffered)
        free_spans = settings.buffer_spans - buffered - pipeline.in_flight_span_count
        free_bytes = settings.buffer_bytes - buffer.byte_count - pipeline.in_flight_byte_count
        # With start events, each span is two events.
        event_count = 1 + self._has_start_events
        self._capacity = event_count * max(0, min(free_spans, free_bytes // self._mean_span_bytes))
        return self._capacity

    # For flush and shutdown

    def pending_count(self) -> int:
        """Return about how many ended spans have no outcome; includes starts that the worker has not seen."""
        return self._events.qsize() + self._buffer.span_count + self._pipeline.in_flight_span_count

    def flush(self, timeout_seconds: float) -> bool:
        """Submit all ended spans and wait for their outcome; True if all were delivered within the time."""
        if self._thread is None and self._events.empty():
            return True  # no span ever ended
        deadline = time.monotonic() + timeout_seconds
        dropped_before = self._pipeline.dropped_count
        with self._changed:
            self._requested_flush_count += 1
            requested_count = self._requested_flush_count
        self._flush_wake_ups.put(None)
        self._events.put(None)
        if not self._is_stopped:
            self._start_thread()
        if self._is_stopped or self._thread is None or not self._thread.is_alive():
            # A thread that starts after the end looks alive and does nothing.
            try:
                with suppress_instrumentation():
                    self._tick(max(0.0, timeout_seconds))
            except Exception as error:  # noqa: BLE001 - as in the thread
                log_exception(error, "submit spans")
        with self._changed:
            is_submitted = self._changed.wait_for(
                lambda: self._done_flush_count >= requested_count, max(0.0, deadline - time.monotonic())
            )
        is_settled = self._pipeline.flush(deadline - time.monotonic())
        return is_submitted and is_settled and self._pipeline.dropped_count == dropped_before

    def close(self, timeout_seconds: float, shutdown: Callable[[float], None]) -> None:
        """Flush, end the thread, and call `shutdown` with the milliseconds that remain."""
        if self.is_closed:
            return
        deadline = time.monotonic() + timeout_seconds
        self.is_closed, self.enqueue_start = True, _ignore_start
        self.flush(timeout_seconds)
        self._is_stopped = True
        self._events.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.2, deadline - time.monotonic()))
        shutdown(max(0.0, deadline - time.monotonic()) * 1000)
        self._is_over = True
        self._drain_on_close()

    def _drain_on_close(self) -> None:
        """Spool or drop spans that were enqueued during `close`, or that the worker had no time for."""
        if not self._begin_tick(0.2):
            return  # a tick is submitting: the pipeline spools or drops its spans
        try:
            while not self._events.empty():
                self._apply_event(self._events.get_nowait(), time.monotonic())
            self._log_overflow()
            spans = self._buffer.pop_all()
            if spans:
                self._pipeline.spool_or_drop(spans, "ended during shutdown")
        finally:
            self._end_tick(0)
