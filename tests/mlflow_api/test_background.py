"""Background tasks: delays, flushes and shutdown."""

import threading

import pytest

from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.mlflow_api.background import BackgroundTasks
from support.interruptions import InterruptedCondition, raise_error
from support.traces import wait_until


class FakeTask:
    """A task that fails as long as `fails` is set."""

    def __init__(self, *, fails: bool = False) -> None:
        self.not_before, self.failures, self.is_awaited = 0.0, 0, True
        self.delay_seconds = 0.01
        self.fails, self.has_given_up, self.has_run = fails, False, threading.Event()

    def run(self, timeout_seconds: float) -> SendResult:
        assert timeout_seconds > 0
        self.has_run.set()
        if not self.is_awaited:
            return SendResult((self,), destination_delay=60.0)
        if self.fails:
            self.failures += 1
            return SendResult(
                (self,), destination_delay=self.delay_seconds if self.failures > 1 else 0.01, requeue_last=True
            )
        return SendResult()

    def give_up(self) -> None:
        self.has_given_up = True


def test_wait_with_delayed_task_cancels_delay() -> None:
    tasks, task = BackgroundTasks(1.0), FakeTask()
    tasks.enqueue("a", task, delay_seconds=60.0)
    assert not tasks.wait(0.0)
    assert not task.has_run.is_set()
    assert tasks.wait(30.0)
    assert task.has_run.is_set()
    tasks.close(1.0)


def test_wait_does_not_wait_for_tasks_that_are_not_awaited() -> None:
    tasks, task, other = BackgroundTasks(1.0), FakeTask(), FakeTask()
    task.is_awaited = False
    tasks.enqueue("a", task, delay_seconds=60.0)
    tasks.enqueue("b", other, delay_seconds=60.0)
    assert tasks.wait(30.0)
    assert other.has_run.is_set()
    assert tasks.pending_count == 1
    task.is_awaited = True
    tasks.close(5.0)
    assert tasks.pending_count == 0


def test_wait_during_failing_step_shortens_next_delay() -> None:
    """Without the wait, the delay is a minute."""
    tasks, task = BackgroundTasks(60.0), FakeTask(fails=True)
    task.failures, task.delay_seconds = 1, 60.0
    has_begun, is_waiting = threading.Event(), threading.Event()
    run = task.run

    def run_after_wait_began(timeout_seconds: float) -> SendResult:
        if not has_begun.is_set():
            has_begun.set()
            assert is_waiting.wait(30.0)
            return run(timeout_seconds)
        task.fails = False
        return run(timeout_seconds)

    task.run = run_after_wait_began  # type: ignore[method-assign]
    tasks.enqueue("a", task)
    assert has_begun.wait(30.0)
    results = list[bool]()
    waiter = threading.Thread(target=lambda: results.append(tasks.wait(60.0)))
    waiter.start()
    wait_until(lambda: tasks._queue._woken)
    is_waiting.set()
    waiter.join(30.0)
    assert results == [True]
    assert task.failures == 2
    tasks.close(1.0)


def test_wait_with_repeatedly_failing_task_returns() -> None:
    tasks, task = BackgroundTasks(1.0), FakeTask(fails=True)
    tasks.enqueue("a", task)
    assert not tasks.wait(30.0)
    task.fails = False
    wait_until(lambda: tasks.wait(0.0))
    tasks.close(1.0)
    assert not task.has_given_up


def test_wait_again_after_failures_waits_for_another_attempt() -> None:
    """A task that failed because its trace was in progress succeeds when the trace has been sent."""
    tasks, task = BackgroundTasks(1.0), FakeTask(fails=True)
    task.delay_seconds = 60.0
    tasks.enqueue("a", task)
    assert not tasks.wait(30.0)
    assert task.failures >= 2
    task.fails = False
    assert tasks.wait(30.0)
    tasks.close(1.0)


def test_close_with_delayed_tasks_runs_them_and_gives_up_failing_ones() -> None:
    tasks, bad, good = BackgroundTasks(1.0), FakeTask(fails=True), FakeTask()
    tasks.enqueue("a", bad, delay_seconds=60.0)
    tasks.enqueue("b", good, delay_seconds=60.0)
    tasks.close(30.0)
    assert (bad.has_given_up, good.has_given_up) == (True, False)
    assert good.has_run.is_set()


def test_close_with_unanswered_request_gives_its_task_up() -> None:
    tasks, task, release = BackgroundTasks(1.0), FakeTask(), threading.Event()

    def run_until_released(timeout_seconds: float) -> SendResult:
        assert timeout_seconds > 0
        task.has_run.set()
        release.wait(30.0)
        return SendResult()

    task.run = run_until_released  # type: ignore[method-assign]
    tasks.enqueue("a", task)
    assert task.has_run.wait(30.0)
    tasks.close(0.0)
    assert task.has_given_up
    release.set()


def test_interrupted_wait_does_not_shorten_later_requests() -> None:
    tasks, task, release = BackgroundTasks(1000.0), FakeTask(), threading.Event()
    timeouts: list[float] = []

    def run_until_released(timeout_seconds: float) -> SendResult:
        timeouts.append(timeout_seconds)
        task.has_run.set()
        release.wait(30.0)
        return SendResult()

    task.run = run_until_released  # type: ignore[method-assign]
    tasks._changed = InterruptedCondition(raise_error(KeyboardInterrupt()))
    tasks.enqueue("a", task, delay_seconds=60.0)
    with pytest.raises(KeyboardInterrupt):
        tasks.wait(30.0)
    assert task.has_run.wait(30.0)
    tasks.enqueue("a", task)
    release.set()
    wait_until(lambda: len(timeouts) == 2)
    assert timeouts[1] == 1000.0
    tasks.close(30.0)
