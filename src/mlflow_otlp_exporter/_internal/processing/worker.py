"""The thread between the application and the pipeline: it collects ended spans and submits whole traces.

Application threads only append starts and ends to a `deque`, which is safe in signal handlers and finalizers: they
never wait. The worker never waits for a server: the pipeline sends in threads of its own.
"""

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import Status, StatusCode

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import (
    LACKS_HOOKS,
    check_process,
    is_uwsgi_master,
    lacks_threads,
    register_fork_reset,
    start_thread,
)
from mlflow_otlp_exporter._internal.common.primitives import LazyCondition
from mlflow_otlp_exporter._internal.common.problem_log import log_exception
from mlflow_otlp_exporter._internal.common.process_end import is_ending, run_closing_steps, silence_logging_errors
from mlflow_otlp_exporter._internal.common.suppression import suppress_instrumentation
from mlflow_otlp_exporter._internal.common.work_queue import WakeUp
from mlflow_otlp_exporter._internal.config.models import BufferSettings
from mlflow_otlp_exporter._internal.model.spans import TRACE_ID, SpanCopy
from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline

# Between two ticks: spans that end in a burst wake the worker once.
_TICK_SECONDS = 0.05
# Bytes of a span in memory, until the first spans have been measured.
_TYPICAL_SPAN_BYTES = 8000
# Weak references to open spans, because those that never end must not accumulate, and to others until they are removed.
_MAX_OPEN_SPANS, _MAX_ENDED_SPANS = 10_000, 500
# Spans that end after the shutdown at the end of the process: each is written into a file of its own.
_MAX_LATE_SPANS = 100
# The age of a request at which the server is the reason for a full buffer.
_SLOW_SECONDS = 1.0
_SERVER_IS_SLOW = "the server is unavailable, or slower than the application"
_PROCESS_IS_SLOW = "spans end faster than this process can prepare them"
_ignore_start = deque[Span](maxlen=0).append  # replaces `enqueue_start` after the end


class TraceWorker:
    """Collects ended spans and submits them trace by trace, in a thread that starts with the first span."""

    # Notified when a tick ends. Re-entrant: a signal handler may flush, or end a span that starts the thread.
    _changed = LazyCondition()

    def __init__(
        self,
        pipeline: "Pipeline",
        settings: BufferSettings,
        *,
        has_start_events: bool,
        trace_filter: TraceFilter | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._journal_span = pipeline.span_recorder
        self.last_trace_id = 0  # of the span that started last, set by the caller
        self._late_span_count = 0
        self.is_closed = self._is_stopped = self._is_over = False
        self._settings, self._has_start_events, self._trace_filter = settings, has_start_events, trace_filter
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # A forked child starts empty: the parent sends what it has collected.
        # Spans that started are the SDK's own, spans that ended are copies without their methods.
        self._starts: deque[Span] = deque()
        self._ends: deque[ReadableSpan] = deque()
        # Takes a span that starts: the queue's own method, because a wrapper would cost more than the queue does.
        self.enqueue_start: Callable[[Span], None] = _ignore_start if self.is_closed else self._starts.append
        self._overflow: deque[None] = deque()  # one entry per span that did not fit
        self.__dict__.pop("_changed", None)
        self._is_ticking = False
        # The first end after a tick ends the wait for events; only a flush or the end shortens the wait for a burst.
        self._wake_up, self._flush_wake_up = WakeUp(), WakeUp()
        # A flush is done when all spans that had ended before are submitted.
        self._requested_flush_count = self._done_flush_count = 0
        self._open_spans: list[weakref.ref[Span]] = []  # also some that have ended
        self._max_references = _MAX_ENDED_SPANS
        self._buffer = TraceBuffer(
            linger_seconds=self._settings.linger,
            max_age_seconds=self._settings.hold,
            has_start_events=self._has_start_events,
            trace_filter=self._trace_filter,
        )
        self._pipeline.trace_buffer = self._buffer
        self._thread: threading.Thread | None = None
        self._closing_thread: int | None = None
        self._is_thread_checked = False
        self._mean_span_bytes = _TYPICAL_SPAN_BYTES
        self._is_overflowing, self._full_reason = False, ""
        self._measure_capacity()

    # In the application's threads

    def enable_start_events(self) -> None:
        self._has_start_events = True
        self._buffer.has_start_events = True

    def enqueue(self, span: ReadableSpan) -> bool:
        """Take an ended span; never raises, never waits. False if it is dropped: after the end, or at the limits."""
        if self.is_closed:
            return self._save_late_span(span)
        if LACKS_HOOKS:
            check_process()
        # The capacity is that of the last tick; when it is used up, it is measured again.
        has_capacity = len(self._ends) < self._capacity or len(self._ends) < self._measure_capacity()
        if has_capacity:
            if self._journal_span is not None:
                self._journal_span(span)
            self._ends.append(span)
        else:
            # The worker counts and logs it: logging takes locks.
            self._overflow.append(None)
        if not self._is_thread_checked:  # after the span is visible to the worker
            self._check_thread()
        if self._is_over:  # since this call began: no tick follows
            self._drain_on_close()
        return has_capacity

    def _save_late_span(self, span: ReadableSpan) -> bool:
        # As in an `atexit` handler that was registered before this library's; daemon threads may go on without end.
        if is_ending() and self._late_span_count < _MAX_LATE_SPANS:
            self._late_span_count += 1
            self._pipeline.spool_or_drop([span], "ended after shutdown")
        else:
            self._pipeline.record_dropped(1, "ended after shutdown", "shutdown")
        return False

    def _check_thread(self) -> None:
        # Once per tick: the thread may sleep, may not have started, or may have died.
        self._is_thread_checked = (self._thread is not None and self._thread.is_alive()) or self._start_thread()
        self._wake_up.set()
        if not self._is_thread_checked and is_uwsgi_master() and self._pipeline.persistent_queue is not None:
            self._drain_on_close()  # a worker of uWSGI sends them from the disk; the master runs no exit handlers

    def _start_thread(self) -> bool:
        with self._changed:
            thread = self._thread
            if thread is not None and (thread.is_alive() or thread.ident is None):
                return True  # or this very thread is starting it, below a signal handler
            new_thread = threading.Thread(target=self._run, name="mlflow-otlp-worker", daemon=True)
            self._thread = new_thread
        if not start_thread(new_thread):
            self._thread = thread  # flush() works in its caller's thread
            return False
        if lacks_threads():
            self._pipeline.report_missing_threads()
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
        due = self._buffer.next_due()
        if self._wake_up.wait(None if due is None else due - time.monotonic()):
            self._flush_wake_up.wait(_TICK_SECONDS)

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
            now, buffer, settings = time.monotonic(), self._buffer, self._settings
            buffer.batch_interval_seconds = self._pipeline.otlp_client.batch_interval_seconds
            self._apply_events(now)
            # Before submitting: as many spans may end while these are enriched and encoded.
            self._measure_capacity()
            # Traces in progress are sent before any span is dropped.
            span_count, byte_count = buffer.span_count, buffer.byte_count
            is_crowded = 2 * span_count >= settings.buffer_spans or 2 * byte_count >= settings.buffer_bytes
            spans = buffer.pop_all(is_final=self.is_closed) if is_crowded or is_flush else buffer.pop_ready(now)
            if buffer.resent_spans:
                # They were counted when they were sent first.
                self._pipeline.problem_log.stats.add(delivered=-len(buffer.resent_spans))
                spans += buffer.resent_spans
                buffer.resent_spans = []
            if buffer.filtered_spans:
                filtered_spans, buffer.filtered_spans = buffer.filtered_spans, []
                self._pipeline.record_filtered(filtered_spans)
            if spans:
                self._pipeline.submit(spans, byte_count - buffer.byte_count, buffer.max_span_bytes)
                self._measure_capacity()
            if self._is_overflowing or self._overflow:
                self._log_overflow()
        finally:
            self._end_tick(requested_flush_count)

    def _apply_events(self, now: float) -> None:
        end_count = len(self._ends)  # before the starts are copied, which then include those of these spans
        if starts := list(self._starts):  # a copy, because a signal handler looks for open spans in both lists
            try:
                self._open_spans += map(weakref.ref, starts)
            finally:
                for _ in starts:
                    self._starts.popleft()
            if len(self._open_spans) > self._max_references:
                self._remove_ended_spans()
            for trace_id, count in Counter([span.context[TRACE_ID] for span in starts]).items():
                self._buffer.record_starts(trace_id, count)
            del starts  # frees most of these spans before others are copied
        for _ in range(end_count):
            try:
                self._buffer.add(SpanCopy(self._ends.popleft()), now)
            except Exception as error:  # noqa: BLE001 - a bad span must not affect others
                reason = f"a span could not be buffered ({type(error).__name__})"
                self._pipeline.record_dropped(1, reason, "internal_error")

    def _remove_ended_spans(self) -> None:
        # `is_recording` would wait for a lock that a thread may hold which a signal handler interrupts.
        spans = [(reference, reference()) for reference in self._open_spans]
        references = [reference for reference, span in spans if span is not None and span.end_time is None]
        self._open_spans = references[-_MAX_OPEN_SPANS:]
        self._max_references = 2 * len(self._open_spans) + _MAX_ENDED_SPANS

    def _log_overflow(self) -> None:
        if count := len(self._overflow):
            for _ in range(count):
                self._overflow.popleft()
            if not self._is_overflowing:
                queue, now = self._pipeline.work_queue, time.monotonic()
                ages = [now - request.created_at for request in (*queue.all_items(), *queue.in_progress())]
                cause = _SERVER_IS_SLOW if max(ages, default=0.0) > _SLOW_SECONDS else _PROCESS_IS_SLOW
                limits = f"{self._settings.buffer_spans} spans or {self._settings.buffer_bytes} bytes"
                self._full_reason = f"the buffer is full ({limits}): {cause}"
            self._is_overflowing = True
            self._pipeline.record_dropped(count, self._full_reason, "memory_limit")
        elif self._is_overflowing and self._capacity > 0:
            self._is_overflowing = False
            message = add_code(MessageCode.RECOVERED, "Spans are buffered again")
            self._pipeline.problem_log.resolve(self._full_reason, message)

    def _measure_capacity(self) -> int:
        """Measure how many ended spans the queue may hold, converting the free bytes to spans of the mean size.

        Without a lock: a value that another thread overwrites with an older one is measured again when it is used up.
        """
        settings, pipeline, buffer = self._settings, self._pipeline, self._buffer
        buffered = buffer.span_count  # read once, because the worker pops spans meanwhile
        if buffered:
            self._mean_span_bytes = max(1, buffer.byte_count // buffered)
        free_spans = settings.buffer_spans - buffered - pipeline.in_flight_span_count
        free_bytes = settings.buffer_bytes - buffer.byte_count - pipeline.in_flight_byte_count
        self._capacity = max(0, min(free_spans, free_bytes // self._mean_span_bytes))
        return self._capacity

    # For flush and shutdown

    def pending_count(self) -> int:
        """Return about how many ended spans have no outcome."""
        return len(self._ends) + self._buffer.span_count + self._pipeline.in_flight_span_count

    def flush(self, timeout_seconds: float) -> bool:
        """Submit all ended spans and wait for their outcome; True if all were delivered within the time."""
        check_process()
        if self._thread is None and not self._ends:
            return True  # no span ever ended
        dropped_before, deadline = self._pipeline.dropped_count, time.monotonic() + timeout_seconds
        with self._changed:
            self._requested_flush_count = requested_count = self._requested_flush_count + 1
        self._wake()
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
            seconds = deadline - time.monotonic()
            is_submitted = self._changed.wait_for(lambda: self._done_flush_count >= requested_count, seconds)
        is_settled = self._pipeline.flush(deadline - time.monotonic())
        return is_submitted and is_settled and self._pipeline.dropped_count == dropped_before

    def end_open_spans(self) -> None:
        """End the spans that a signal interrupts, children before their parents."""
        spans = [reference() for reference in list(self._open_spans)]
        for span in [*spans, *list(self._starts)][::-1]:
            if span is not None and span.is_recording():
                try:
                    span.set_status(Status(StatusCode.ERROR, "The process was ended by a signal"))
                    span.end()
                except Exception as error:  # noqa: BLE001 - of another span processor
                    log_exception(error, "end a span at a signal")

    def _wake(self) -> None:
        self._flush_wake_up.set()
        self._wake_up.set()

    def close(self, timeout_seconds: float, shutdown: Callable[[float], None]) -> None:
        """Flush, end the thread, and call `shutdown` with the milliseconds that remain."""
        silence_logging_errors()
        if self.is_closed:
            # Not in a signal handler that interrupted the closing thread. Twice, as an interruption ends only one wait.
            if self._closing_thread != threading.get_ident():
                run_closing_steps(timeout_seconds, *[self._wait_until_closed] * 2, is_outermost=True)
            return
        timeout_seconds = self._pipeline.limit_exit_seconds(timeout_seconds)
        self._closing_thread = threading.get_ident()
        self.is_closed, self.enqueue_start = True, _ignore_start
        steps = (self.flush, self._end_thread, lambda seconds: shutdown(seconds * 1000), self._drain_on_close)
        try:
            run_closing_steps(timeout_seconds, *steps, is_outermost=True)
        finally:
            self._closing_thread = None
            with self._changed:
                self._changed.notify_all()

    def _wait_until_closed(self, timeout_seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing_thread is None, timeout_seconds)

    def _end_thread(self, timeout_seconds: float) -> None:
        self._is_stopped = True
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.2, timeout_seconds))

    def _drain_on_close(self, seconds: float = 0.0) -> None:
        """Spool or drop spans that were enqueued during `close`, or that the worker had no time for."""
        self._is_over = True
        if not self._begin_tick(max(0.2, seconds)):
            return  # a tick is submitting: the pipeline spools or drops its spans
        try:
            while self._ends:
                self._apply_events(time.monotonic())
            self._log_overflow()
            spans = self._buffer.pop_all()
            if spans:
                self._pipeline.spool_or_drop(spans, "ended during shutdown")
        finally:
            self._end_tick(0)
