"""Background requests to MLflow's REST API in one thread, so that neither spans nor the application wait for them.

A task runs step by step, and is repeated as long as it may succeed; tasks that remain at shutdown are given up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Protocol

from mlflow_otlp_exporter._internal.common.backoff import flush_delay
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.in_flight import InFlightRequests, Ticket
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue

# The minimum for each request at shutdown.
_MIN_TIMEOUT_SECONDS = 0.2
# No flush waits for a task after this many failures.
_MAX_AWAITED_FAILURES = 2


class Task(Protocol):
    """A sequence of requests; `failures` counts consecutive failed steps."""

    not_before: float
    failures: int
    ticket: Ticket | None

    def run(self, timeout_seconds: float) -> SendResult[Task]:
        """Run one step; the timeout applies to each request."""

    def give_up(self) -> None:
        """End the task unfinished."""


class BackgroundTasks:
    """Runs tasks in the background, those of one key one after the other."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds, self._deadline, self._flush_began = timeout_seconds, math.inf, -math.inf
        self._is_closing = False
        self._queue: WorkQueue[Task] = WorkQueue(self._step, self._give_up, max_threads=1)
        self._in_flight = InFlightRequests()
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent process runs its own tasks.
        self._lock = threading.Lock()
        # How often each task failed since the last flush began.
        self._failures: dict[Task, int] = {}

    def enqueue(self, key: Hashable, task: Task, *, delay_seconds: float = 0.0) -> None:
        """Queue a task; a flush cancels the delay."""
        with self._lock:
            self._failures[task] = 0
            task.ticket = self._in_flight.track(1, 0)
        self._queue.enqueue(key, task, delay=delay_seconds)

    @property
    def count(self) -> int:
        """Number of unfinished tasks."""
        return len(self._failures)

    def _step(self, task: Task) -> SendResult[Task]:
        failures, began = task.failures, time.monotonic()
        remaining_seconds = max(_MIN_TIMEOUT_SECONDS, self._deadline - time.monotonic())
        result = task.run(min(self._timeout_seconds, remaining_seconds))
        if result.remaining and task.failures and self._is_closing:
            self._give_up(task)
            return SendResult[Task]()
        if not result.remaining:
            self._complete(task)
        elif task.failures > failures:
            self._count_failure(task)
        return replace(result, retry_after=flush_delay(result.retry_after, began, self._flush_began))

    def _count_failure(self, task: Task) -> None:
        with self._lock:
            self._failures[task] = self._failures.get(task, 0) + 1
            if self._failures[task] >= _MAX_AWAITED_FAILURES and task.ticket is not None:
                task.ticket.ignore_in_flush()

    def _give_up(self, task: Task) -> None:
        task.give_up()
        self._complete(task)

    def _complete(self, task: Task) -> None:
        with self._lock:
            self._failures.pop(task, None)
            if task.ticket is not None:
                task.ticket()

    def begin_flush(self, timeout_seconds: float) -> None:
        """Cancel delays, and limit the time of each request to that of the flush."""
        self._flush_began = time.monotonic()
        self._deadline = self._flush_began + timeout_seconds
        with self._lock:
            for task, failures in self._failures.items():
                if failures and task.ticket is not None:
                    # A new ticket, because the task may succeed now.
                    task.ticket()
                    task.ticket = self._in_flight.track(1, 0)
                    self._failures[task] = 0
        self._queue.wake_all()

    def end_flush(self) -> None:
        """Restore the normal timeouts and delays."""
        self._deadline, self._flush_began = math.inf, -math.inf

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the tasks that are queued now, except those that fail repeatedly; whether all are finished."""
        if timeout_seconds <= 0:
            return self._in_flight.wait(0.0)
        self.begin_flush(timeout_seconds)
        try:
            return self._in_flight.wait(timeout_seconds)
        finally:
            self.end_flush()

    def close(self, timeout_seconds: float) -> None:
        """Finish tasks within the time, and give up the remaining ones."""
        self._is_closing = True
        self._flush_began = time.monotonic()
        self._deadline = self._flush_began + timeout_seconds
        self._queue.close(timeout_seconds)
