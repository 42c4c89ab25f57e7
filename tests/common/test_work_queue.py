"""A queue per destination, and threads for all."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mlflow_otlp_exporter._internal.common import problem_log
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from support.children import run_in_fork
from support.interruptions import InterruptedCondition, Kill, raise_error
from support.traces import wait_until

LONG = 30.0
"""Seconds that no step takes, however busy the machine is."""


@dataclass(eq=False)
class Parcel:
    key: str
    number: int
    not_before: float = 0.0


class Gate:
    """Steps that end when their key is let through."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.open: set[str] = set()
        self.begun: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.abandoned: list[tuple[str, int]] = []

    def step(self, parcel: Parcel) -> SendResult:
        with self.condition:
            self.begun.append((parcel.key, parcel.number))
            self.condition.notify_all()
            assert self.condition.wait_for(lambda: parcel.key in self.open, LONG)
            self.done.append((parcel.key, parcel.number))
            self.condition.notify_all()
        return SendResult()

    def abandon(self, parcel: Parcel) -> None:
        self.abandoned.append((parcel.key, parcel.number))

    def let(self, *keys: str) -> None:
        with self.condition:
            self.open.update(keys)
            self.condition.notify_all()

    def wait_begun(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.begun) >= count, LONG), self.begun

    def wait_done(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.done) >= count, LONG), self.done


@pytest.fixture(autouse=True)
def _log_every_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_log, "_exceptions_logged_at", {})


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def work_queue(gate: Gate) -> Iterator[WorkQueue[Parcel]]:
    work_queue = WorkQueue(gate.step, gate.abandon, max_threads=2)
    yield work_queue
    gate.let("a", "b", "c", "d")
    work_queue.close(LONG)


def test_work_queue_items_of_one_key_run_in_order(gate: Gate, work_queue: WorkQueue[Parcel]) -> None:
    for number in range(3):
        work_queue.enqueue("a", Parcel("a", number))
    gate.wait_begun(1)
    assert gate.begun == [("a", 0)]
    gate.let("a")
    gate.wait_done(3)
    assert gate.done == [("a", 0), ("a", 1), ("a", 2)]


def test_work_queue_keys_do_not_wait_for_each_other(gate: Gate, work_queue: WorkQueue[Parcel]) -> None:
    work_queue.enqueue("a", Parcel("a", 0))
    work_queue.enqueue("b", Parcel("b", 0))
    gate.let("b")
    gate.wait_done(1)
    assert gate.done == [("b", 0)]


def test_items_that_come_while_a_thread_wakes_up_do_not_wait_for_each_other(
    gate: Gate, work_queue: WorkQueue[Parcel]
) -> None:
    gate.let("a", "c")
    work_queue.enqueue("a", Parcel("a", 1))
    gate.wait_done(1)
    wait_until(lambda: work_queue._idle_count == 1)
    with work_queue._lock:  # the idle thread cannot wake up before both are queued
        work_queue.enqueue("b", Parcel("b", 1))
        work_queue.enqueue("c", Parcel("c", 1))
    gate.wait_done(2)
    assert gate.done == [("a", 1), ("c", 1)]


def test_work_queue_starts_at_most_max_threads(gate: Gate, work_queue: WorkQueue[Parcel]) -> None:
    for key in "abcd":
        work_queue.enqueue(key, Parcel(key, 0))
    gate.wait_begun(2)
    assert len(work_queue._threads) == 2
    gate.let("a", "b", "c", "d")
    gate.wait_done(4)
    assert {key for key, _ in gate.done} == set("abcd")


def test_extend_last_reaches_only_items_that_no_thread_has_begun(gate: Gate, work_queue: WorkQueue[Parcel]) -> None:
    extended: list[tuple[str, int]] = []

    def extend(parcel: Parcel) -> bool:
        extended.append((parcel.key, parcel.number))
        return parcel.number == 2

    assert not work_queue.extend_last("a", extend)
    work_queue.enqueue("a", Parcel("a", 0))
    gate.wait_begun(1)
    assert not work_queue.extend_last("a", extend)
    answers = []
    for number in (1, 2):
        work_queue.enqueue("a", Parcel("a", number))
        answers.append(work_queue.extend_last("a", extend))
    assert (answers, extended) == ([False, True], [("a", 1), ("a", 2)])


class Script:
    """Returns a result for some parcels, once; any other step completes its parcel."""

    def __init__(self, **steps: SendResult) -> None:
        self.steps = steps
        self.seen: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.condition = threading.Condition()

    def __call__(self, parcel: Parcel) -> SendResult:
        with self.condition:
            self.seen.append((parcel.key, parcel.number))
            self.times.append(time.monotonic())
            self.condition.notify_all()
            return self.steps.pop(f"{parcel.key}{parcel.number}", SendResult())

    def wait(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.seen) >= count, LONG), self.seen


def test_work_queue_remaining_items_run_before_next_item() -> None:
    script = Script(a0=SendResult([Parcel("a", 7), Parcel("a", 8)]))
    work_queue = WorkQueue(script, lambda _: None, max_threads=1)
    work_queue.enqueue("a", Parcel("a", 0))
    work_queue.enqueue("a", Parcel("a", 1))
    work_queue.close(LONG)
    assert script.seen == [("a", 0), ("a", 7), ("a", 8), ("a", 1)]


def test_work_queue_item_with_not_before_lets_others_pass() -> None:
    script = Script()
    work_queue = WorkQueue(script, lambda _: None, max_threads=1)
    work_queue.enqueue("a", Parcel("a", 0, time.monotonic() + 60))
    work_queue.enqueue("a", Parcel("a", 1))
    script.wait(1)
    work_queue.close(LONG)  # at the end nothing waits
    assert script.seen == [("a", 1), ("a", 0)]


def test_work_queue_item_with_not_before_runs_when_due() -> None:
    script = Script()
    work_queue = WorkQueue(script, lambda _: None, max_threads=1)
    not_before = time.monotonic() + 0.3
    work_queue.enqueue("a", Parcel("a", 0, not_before))
    script.wait(1)
    assert script.times[0] >= not_before
    work_queue.close(LONG)


def test_wake_all_delayed_key_occupies_no_thread_and_runs() -> None:
    script = Script(
        a0=SendResult([Parcel("a", 5)], destination_delay=30), b0=SendResult([Parcel("b", 5)], destination_delay=0.1)
    )
    work_queue = WorkQueue(script, lambda _: None, max_threads=1)
    for key in "ab":
        work_queue.enqueue(key, Parcel(key, 0))
    script.wait(3)
    assert script.seen == [("a", 0), ("b", 0), ("b", 5)]
    work_queue.wake_all()
    script.wait(4)
    assert script.seen[3] == ("a", 5)
    work_queue.close(LONG)


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (60.0, 0.5),
        (600.0, 0.5),
        (1.1, 0.5),
        (1.0, 1.0),  # an attempt shortly before would be one too many
        (0.4, 0.4),
        (0.0, 0.0),
    ],
)
def test_wake_all_during_step_shortens_its_delay_once(delay: float, expected: float) -> None:
    work_queue: WorkQueue[Parcel]

    def step(parcel: Parcel) -> SendResult:
        if parcel.number == 0:
            work_queue.wake_all()
        return SendResult([Parcel("a", parcel.number + 1)], destination_delay=delay)

    work_queue = WorkQueue(step, lambda _: None, max_threads=1)
    work_queue._start_thread = lambda: True  # type: ignore[method-assign]
    for number, expected_delay in enumerate((expected, delay)):
        started_at = time.monotonic()
        work_queue.enqueue("a", Parcel("a", number))
        assert work_queue._run_one(block=False)
        resume_at = work_queue._queues["a"].resume_at
        # The delay begins at a time between the two, however busy the machine is.
        shortest, longest = (max(0.0, resume_at - instant) for instant in (time.monotonic(), started_at))
        assert shortest <= expected_delay <= longest
        work_queue.remove_if(lambda _: True)


def test_work_queue_raising_item_is_abandoned_and_others_run(caplog: pytest.LogCaptureFixture) -> None:
    script, lost = Script(), list[Parcel]()

    def step(parcel: Parcel) -> SendResult:
        if parcel.number == 0:
            raise SystemExit(3)
        return script(parcel)

    work_queue = WorkQueue(step, lost.append, max_threads=1)
    for number in range(2):
        work_queue.enqueue("a", Parcel("a", number))
    script.wait(1)
    work_queue.close(LONG)
    assert [parcel.number for parcel in lost] == [0]
    assert "Internal error: could not send" in caplog.text


def test_work_queue_raising_abandon_does_not_block_others(caplog: pytest.LogCaptureFixture) -> None:
    script = Script()

    def step(parcel: Parcel) -> SendResult:
        if parcel.number == 0:
            raise SystemExit(3)
        return script(parcel)

    def abandon(_: Parcel) -> None:
        raise SystemExit(4)

    work_queue = WorkQueue(step, abandon, max_threads=1)
    for number in range(2):
        work_queue.enqueue("a", Parcel("a", number))
    script.wait(1)
    work_queue.close(LONG)
    assert script.seen == [("a", 1)]
    assert "Internal error: could not drop" in caplog.text


def test_close_after_timeout_abandons_remaining_items(gate: Gate) -> None:
    work_queue = WorkQueue(gate.step, gate.abandon, max_threads=1)
    work_queue.enqueue("a", Parcel("a", 0))
    work_queue.enqueue("a", Parcel("a", 1))
    gate.wait_begun(1)
    work_queue.close(0.05)
    assert gate.abandoned == [("a", 1)]
    gate.let("a")
    work_queue.enqueue("a", Parcel("a", 2))
    assert gate.abandoned == [("a", 1), ("a", 2)]
    for thread in work_queue._threads:
        thread.join(LONG)
    assert gate.done == [("a", 0)]


def test_enqueue_without_thread_runs_in_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    script, lost = Script(a1=SendResult([Parcel("a", 9)], destination_delay=60)), list[Parcel]()
    work_queue = WorkQueue(script, lost.append)
    work_queue.enqueue("a", Parcel("a", 0))
    work_queue.enqueue("a", Parcel("a", 1))
    assert script.seen == [("a", 0), ("a", 1)]
    work_queue.close(LONG)
    assert script.seen == [("a", 0), ("a", 1), ("a", 9)]
    assert lost == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_child_runs_its_own_items_only(gate: Gate, work_queue: WorkQueue[Parcel]) -> None:
    work_queue.enqueue("a", Parcel("a", 0))
    work_queue.enqueue("a", Parcel("a", 1))
    gate.wait_begun(1)

    def child() -> bool:
        script = Script()
        work_queue._step = script
        work_queue.enqueue("b", Parcel("b", 9))
        script.wait(1)
        return script.seen == [("b", 9)]

    assert run_in_fork(child)
    gate.let("a")
    gate.wait_done(2)
    assert gate.done == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("error", [Kill(), SystemExit(), RuntimeError()])
def test_exception_raised_into_the_waiting_thread_stops_no_item(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(problem_log, "_exceptions_logged_at", {})
    gate = Gate()
    gate.let("a")
    queue = WorkQueue(gate.step, gate.abandon, max_threads=1)
    queue._lock = InterruptedCondition(raise_error(error))
    queue.enqueue("a", Parcel("a", 1))
    gate.wait_done(1)
    wait_until(lambda: "could not wait for items" in caplog.text)
    queue.enqueue("a", Parcel("a", 2))
    gate.wait_done(2)
    queue.close(LONG)
    assert gate.abandoned == []
