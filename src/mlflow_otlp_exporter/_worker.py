"""The thread between the app and the exporter: takes ended spans in, hands whole traces over.

The app's threads only append to a queue and, at most once per tick, wake the worker: nothing of theirs waits, or takes
a lock of this library. The worker never waits for a server either: it hands over to the exporter's senders.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._buffer import TraceBuffer
from mlflow_otlp_exporter._fork import after_fork_in_child
from mlflow_otlp_exporter._in_flight import InFlight
from mlflow_otlp_exporter._report import logger
from mlflow_otlp_exporter._settings import BufferSettings
from mlflow_otlp_exporter._suppression import suppressed_instrumentation

# Between two looks at the queue: spans that end in a burst wake the worker once.
_TICK = 0.05

Opened = Callable[[int, int], Callable[[], None]]


class Sink(Protocol):
    """Where traces go: `MLflowSpanExporter`."""

    def submit(self, spans: Sequence[ReadableSpan], opened: Opened) -> None:
        """Sends spans without waiting.

        Args:
            spans: Whole traces, or what there is of them.
            opened: To be called with spans and bytes of each request; what it returns is to be called when the request
                is settled.
        """

    def refuse(self, count: int, why: str) -> None:
        """Counts spans that are given up, and says why."""

    def refused(self) -> int:
        """How many spans were given up since start."""

    def hurry(self) -> None:
        """Ends waits between attempts, as somebody waits for the outcome."""


class TraceWorker:
    """Collects ended spans and hands them over trace by trace, in a thread that starts with the first span.

    Args:
        sink: Where traces go.
        settings: Linger, hold and limits.
        sees_starts: Whether `started` is called for each span.
    """

    def __init__(self, sink: Sink, settings: BufferSettings, *, sees_starts: bool) -> None:
        self.sink = sink
        self._settings, self._sees_starts = settings, sees_starts
        self.last_trace_id = 0
        self._closed = False
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        """Also in a forked child: what the parent has taken in, the parent sends."""
        settings = self._settings
        self._events: deque[int | ReadableSpan] = deque()
        self._buffer = TraceBuffer(linger=settings.linger, hold=settings.hold, sees_starts=self._sees_starts)
        self._in_flight = InFlight()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stepping = threading.Lock()
        self._wake, self._urgent, self._flushed = threading.Event(), threading.Event(), threading.Condition()
        self._signaled = False
        self._flushes_wanted = self._flushes_done = 0
        self._overflowing = False

    # In the app's threads

    def started(self, trace_id: int) -> None:
        """Takes the start of a span in; never raises, never waits."""
        self.last_trace_id = trace_id
        self._events.append(trace_id)

    def ended(self, span: ReadableSpan) -> bool:
        """Takes an ended span in; never raises, never waits.

        Returns:
            False if it is refused: after the end, or when the limits are reached.
        """
        if self._closed:
            self.sink.refuse(1, "they ended after the shutdown")
            return False
        if self._overflowing or len(self._events) >= self._settings.buffer_spans:
            return self._overflow()
        self._events.append(span)
        if not self._signaled:
            self._signal()
        return True

    def _signal(self) -> None:
        self._signaled = True
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self._wake.set()

    def _overflow(self) -> bool:
        self.sink.refuse(
            1,
            f"the buffer is full ({self._settings.buffer_spans} spans or {self._settings.buffer_bytes} bytes): the "
            "server is away, or takes spans more slowly than they come",
        )
        if not self._signaled:
            self._signal()
        return False

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="mlflow-otlp-worker", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down: flush() works in its caller's thread then
                    return
                self._thread = thread

    # In the worker's thread

    def _run(self) -> None:
        while not self._closed:
            due = self._buffer.next_due()
            self._wake.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._urgent.wait(_TICK)
            self._guarded_step()

    def _guarded_step(self) -> None:
        try:
            with suppressed_instrumentation():
                self._step()
        except BaseException:  # noqa: BLE001
            # Whatever an exporter raises, the next spans find the worker alive. Upstream's dies of a SystemExit.
            logger.exception("spans could not be handed over, by a mistake in this library; please report it")

    def _step(self) -> None:
        """Moves events into the buffer, and hands over what is due, or all if somebody flushes."""
        with self._stepping:
            wanted = self._flushes_wanted
            self._urgent.clear()
            self._wake.clear()
            self._signaled = False
            events, buffer, now = self._events, self._buffer, time.monotonic()
            while True:
                try:
                    event = events.popleft()
                except IndexError:
                    break
                if isinstance(event, int):
                    buffer.started(event)
                else:
                    buffer.ended(event, now)
            spans = buffer.take_all() if wanted > self._flushes_done else buffer.take(now)
            try:
                if spans:
                    self._hand_over(spans)
            finally:
                self._overflowing = self._is_full()
                with self._flushed:
                    self._flushes_done = wanted
                    self._flushed.notify_all()

    def _hand_over(self, spans: list[ReadableSpan]) -> None:
        opened = 0

        def counted(count: int, size: int) -> Callable[[], None]:
            nonlocal opened
            opened += count
            settled = self._in_flight.opened(count, size)

            def done() -> None:
                settled()
                self._overflowing = self._is_full()

            return done

        try:
            self.sink.submit(spans, counted)
        except BaseException as error:
            self.sink.refuse(len(spans) - opened, f"handing them over raised {type(error).__name__}")
            raise

    def _is_full(self) -> bool:
        settings, in_flight = self._settings, self._in_flight
        return (
            self._buffer.span_count + in_flight.spans >= settings.buffer_spans
            or self._buffer.byte_count + in_flight.bytes >= settings.buffer_bytes
        )

    # For those who wait

    def pending(self) -> int:
        """How many ended spans are not settled."""
        waiting = sum(1 for event in list(self._events) if not isinstance(event, int))
        return waiting + self._buffer.span_count + self._in_flight.spans

    def flush(self, seconds: float) -> bool:
        """Hands over all that has ended, and waits until it is settled.

        Args:
            seconds: How long to wait at most.

        Returns:
            True if all of it was delivered within the time.
        """
        if self._thread is None and not self._events:
            return True  # nothing ever came
        deadline = time.monotonic() + seconds
        refused = self.sink.refused()
        with self._flushed:
            self._flushes_wanted += 1
            wanted = self._flushes_wanted
        self._start()
        self._urgent.set()
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():
            self._guarded_step()
        with self._flushed:
            handed_over = self._flushed.wait_for(
                lambda: self._flushes_done >= wanted, max(0.0, deadline - time.monotonic())
            )
        self.sink.hurry()
        settled = self._in_flight.wait(max(0.0, deadline - time.monotonic()))
        return handed_over and settled and self.sink.refused() == refused

    def close(self, seconds: float, then: Callable[[float], None]) -> None:
        """Flushes, takes nothing more, ends the thread, and shuts down what comes after; all within the time.

        Args:
            seconds: How long to wait at most.
            then: Called with the milliseconds that are left.
        """
        if self._closed:
            return
        deadline = time.monotonic() + seconds
        self.flush(seconds)
        self._closed = True
        self._urgent.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.2, deadline - time.monotonic()))
        then(max(0.0, deadline - time.monotonic()) * 1000)
