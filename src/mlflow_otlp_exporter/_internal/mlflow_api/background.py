"""Background requests to MLflow's REST API in one thread, so that neither spans nor the application wait for them.

A task runs step by step, and is repeated as long as it may succeed; tasks that remain at shutdown are given up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from typing import Protocol

from mlflow_otlp_exporter._internal.common.backoff import compute_backoff
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.primitives import LazyCondition
from mlflow_otlp_exporter._internal.common.process_end import run_closing_steps
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome

# The minimum for each request at shutdown.
_MIN_TIMEOUT_SECONDS = 0.2
# No flush waits for a task after this many failures.
_MAX_AWAITED_FAILURES = 2


class Task(Protocol):
    """A sequence of requests; `failures` counts consecutive failed steps. No flush waits if `is_awaited` is false."""

    not_before: float
    failures: int

    def run(self, timeout_seconds: float) -> SendResult:
        """Run one step; the timeout applies to each request."""

    def give_up(self) -> None:
        """End the task unfinished."""


def retry_later(task: Task, outcome: ExportOutcome) -> SendResult:
    delay = max(compute_backoff(task.failures, 0.5), outcome.retry_after or 0.0)
    task.failures += 1
    return SendResult((task,), destination_delay=delay, requeue_last=True)


class BackgroundTasks:
    """Runs tasks in the background, those of one key one after the other."""

    _changed = LazyCondition()  # re-entrant, because a signal handler may enqueue a task

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds, self._deadline = timeout_seconds, math.inf
        self._is_closing = False
        self._queue: WorkQueue[Task] = WorkQueue(self._step, self._give_up, max_threads=1)
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent process runs its own tasks.
        self.__dict__.pop("_changed", None)
        self._pending: dict[Task, int] = {}  # unfinished tasks with their failures since the last flush began

    def enqueue(self, key: Hashable, task: Task, *, delay_seconds: float = 0.0) -> None:
        """Queue a task; a flush cancels the delay."""
        with self._changed:
            self._pending[task] = 0
        self._queue.enqueue(key, task, delay=delay_seconds)

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def _step(self, task: Task) -> SendResult:
        failures = task.failures
        remaining_seconds = max(_MIN_TIMEOUT_SECONDS, self._deadline - time.monotonic())
        result = task.run(min(self._timeout_seconds, remaining_seconds))
        if result.remaining and task.failures and self._is_closing:
            self._give_up(task)
            return SendResult()
        if not result.remaining:
            self._complete(task)
        elif task.failures > failures:
            self._count_failure(task)
        return result

    def _count_failure(self, task: Task) -> None:
        with self._changed:
            self._pending[task] = self._pending.get(task, 0) + 1
            self._changed.notify_all()

    def _give_up(self, task: Task) -> None:
        task.give_up()
        self._complete(task)

    def _complete(self, task: Task) -> None:
        with self._changed:
            self._pending.pop(task, None)
            self._changed.notify_all()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the tasks that are queued now, except those that fail repeatedly; whether all are finished.

        Delays are cancelled, and each request is limited to the time of the wait.
        """
        with self._changed:
            tasks = tuple([task for task in tuple(self._pending) if getattr(task, "is_awaited", True)])
            for task in tasks:
                self._pending[task] = 0  # a task that failed before may succeed now
        if timeout_seconds > 0:
            self._deadline = time.monotonic() + timeout_seconds
            self._queue.wake_all()

            def is_over() -> bool:
                return all(self._pending.get(task, _MAX_AWAITED_FAILURES) >= _MAX_AWAITED_FAILURES for task in tasks)

            try:
                with self._changed:
                    self._changed.wait_for(is_over, timeout_seconds)
            finally:
                self._deadline = math.inf
        return self._pending.keys().isdisjoint(tasks)

    def close(self, timeout_seconds: float) -> None:
        """Finish tasks within the time, and give up the remaining ones."""
        self._is_closing = True
        self._deadline = time.monotonic() + timeout_seconds
        run_closing_steps(timeout_seconds, self._queue.close, self._give_up_unfinished)

    def _give_up_unfinished(self, _seconds: float) -> None:
        """Give up the task whose request has no answer: the process may end before its time-out."""
        for task in self._queue.in_progress():
            self._give_up(task)
