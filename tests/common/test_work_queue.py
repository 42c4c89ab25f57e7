"""A few threads for all destinations."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from support.children import run_in_fork

LONG = 30.0
"""Seconds that nothing takes, however busy the machine is."""


@dataclass(eq=False)
class Parcel:
    key: str
    number: int
    not_before: float = 0.0


class Gate:
    """Parcels pass when their key is let through; notes what is under way."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.open: set[str] = set()
        self.begun: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.abandoned: list[tuple[str, int]] = []

    def step(self, parcel: Parcel) -> SendResult[Parcel]:
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


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def senders(gate: Gate) -> Iterator[WorkQueue[Parcel]]:
    made = WorkQueue(gate.step, gate.abandon, max_threads=2)
    yield made
    gate.let("a", "b", "c", "d")
    made.close(LONG)


def test_one_destination_after_the_other_in_order(gate: Gate, senders: WorkQueue[Parcel]) -> None:
    for number in range(3):
        senders.enqueue("a", Parcel("a", number))
    gate.wait_begun(1)
    assert gate.begun == [("a", 0)]
    gate.let("a")
    gate.wait_done(3)
    assert gate.done == [("a", 0), ("a", 1), ("a", 2)]


def test_one_destination_does_not_wait_for_another(gate: Gate, senders: WorkQueue[Parcel]) -> None:
    senders.enqueue("a", Parcel("a", 0))
    senders.enqueue("b", Parcel("b", 0))
    gate.let("b")
    gate.wait_done(1)
    assert gate.done == [("b", 0)]


def test_no_more_threads_than_said(gate: Gate, senders: WorkQueue[Parcel]) -> None:
    for key in "abcd":
        senders.enqueue(key, Parcel(key, 0))
    gate.wait_begun(2)
    assert len(senders._threads) == 2
    gate.let("a", "b", "c", "d")
    gate.wait_done(4)
    assert {key for key, _ in gate.done} == set("abcd")


class Script:
    """Says what comes after the step of each parcel, once; then it is done."""

    def __init__(self, **steps: SendResult[Parcel]) -> None:
        self.steps = steps
        self.seen: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.condition = threading.Condition()

    def __call__(self, parcel: Parcel) -> SendResult[Parcel]:
        with self.condition:
            self.seen.append((parcel.key, parcel.number))
            self.times.append(time.monotonic())
            self.condition.notify_all()
            return self.steps.pop(f"{parcel.key}{parcel.number}", SendResult())

    def wait(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.seen) >= count, LONG), self.seen


def test_what_is_left_of_a_parcel_goes_before_the_next_one() -> None:
    script = Script(a0=SendResult([Parcel("a", 7), Parcel("a", 8)]))
    senders = WorkQueue(script, lambda _: None, max_threads=1)
    senders.enqueue("a", Parcel("a", 0))
    senders.enqueue("a", Parcel("a", 1))
    senders.close(LONG)
    assert script.seen == [("a", 0), ("a", 7), ("a", 8), ("a", 1)]


def test_parcel_that_must_wait_lets_others_pass() -> None:
    script = Script()
    senders = WorkQueue(script, lambda _: None, max_threads=1)
    senders.enqueue("a", Parcel("a", 0, time.monotonic() + 60))
    senders.enqueue("a", Parcel("a", 1))
    script.wait(1)
    senders.close(LONG)  # at the end nothing waits
    assert script.seen == [("a", 1), ("a", 0)]


def test_parcel_that_must_wait_goes_when_its_time_has_come() -> None:
    script = Script()
    senders = WorkQueue(script, lambda _: None, max_threads=1)
    not_before = time.monotonic() + 0.3
    senders.enqueue("a", Parcel("a", 0, not_before))
    script.wait(1)
    assert script.times[0] >= not_before
    senders.close(LONG)


def test_destination_that_waits_occupies_no_thread_and_is_hurried_by_a_flush() -> None:
    script = Script(a0=SendResult([Parcel("a", 5)], retry_after=30), b0=SendResult([Parcel("b", 5)], retry_after=0.1))
    senders = WorkQueue(script, lambda _: None, max_threads=1)
    for key in "ab":
        senders.enqueue(key, Parcel(key, 0))
    script.wait(3)
    assert script.seen == [("a", 0), ("b", 0), ("b", 5)]
    senders.wake_all()
    script.wait(4)
    assert script.seen[3] == ("a", 5)
    senders.close(LONG)


def test_parcel_that_raises_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    script, lost = Script(), list[Parcel]()

    def step(parcel: Parcel) -> SendResult[Parcel]:
        if parcel.number == 0:
            raise SystemExit(3)
        return script(parcel)

    senders = WorkQueue(step, lost.append, max_threads=1)
    for number in range(2):
        senders.enqueue("a", Parcel("a", number))
    script.wait(1)
    senders.close(LONG)
    assert [parcel.number for parcel in lost] == [0]
    assert "mistake in this library" in caplog.text


def test_parcel_that_cannot_even_be_given_up_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    script = Script()

    def step(parcel: Parcel) -> SendResult[Parcel]:
        if parcel.number == 0:
            raise SystemExit(3)
        return script(parcel)

    def abandon(_: Parcel) -> None:
        raise SystemExit(4)

    senders = WorkQueue(step, abandon, max_threads=1)
    for number in range(2):
        senders.enqueue("a", Parcel("a", number))
    script.wait(1)
    senders.close(LONG)
    assert script.seen == [("a", 1)]
    assert "could not be kept" in caplog.text


def test_closing_waits_but_not_longer_than_said_and_abandons_what_is_left(gate: Gate) -> None:
    senders = WorkQueue(gate.step, gate.abandon, max_threads=1)
    senders.enqueue("a", Parcel("a", 0))
    senders.enqueue("a", Parcel("a", 1))
    gate.wait_begun(1)
    senders.close(0.05)
    assert gate.abandoned == [("a", 1)]
    gate.let("a")
    senders.enqueue("a", Parcel("a", 2))
    assert gate.abandoned == [("a", 1), ("a", 2)]
    for thread in senders._threads:
        thread.join(LONG)
    assert gate.done == [("a", 0)]


def test_where_no_thread_can_start_parcels_are_sent_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    script, lost = Script(a1=SendResult([Parcel("a", 9)], retry_after=60)), list[Parcel]()
    senders = WorkQueue(script, lost.append)
    senders.enqueue("a", Parcel("a", 0))
    senders.enqueue("a", Parcel("a", 1))
    assert script.seen == [("a", 0), ("a", 1)]
    senders.close(LONG)
    assert script.seen == [("a", 0), ("a", 1), ("a", 9)]
    assert lost == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_child_sends_its_own_parcels_only(gate: Gate, senders: WorkQueue[Parcel]) -> None:
    senders.enqueue("a", Parcel("a", 0))
    senders.enqueue("a", Parcel("a", 1))
    gate.wait_begun(1)

    def child() -> bool:
        script = Script()
        senders._step = script
        senders.enqueue("b", Parcel("b", 9))
        script.wait(1)
        return script.seen == [("b", 9)]

    assert run_in_fork(child)
    gate.let("a")
    gate.wait_done(2)
    assert gate.done == [("a", 0), ("a", 1)]
