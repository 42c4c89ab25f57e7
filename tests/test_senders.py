"""A few threads for all destinations."""

import os
import threading
from collections.abc import Iterator

import pytest

from mlflow_otlp_exporter._senders import Senders


class Gate:
    """Items pass when they are let through; notes what is under way."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.open: set[str] = set()
        self.begun: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []

    def send(self, item: tuple[str, int]) -> None:
        with self.condition:
            self.begun.append(item)
            self.condition.notify_all()
            assert self.condition.wait_for(lambda: item[0] in self.open, 5)
            self.done.append(item)
            self.condition.notify_all()

    def let(self, *keys: str) -> None:
        with self.condition:
            self.open.update(keys)
            self.condition.notify_all()

    def wait_begun(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.begun) >= count, 5), self.begun

    def wait_done(self, count: int) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: len(self.done) >= count, 5), self.done


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def senders(gate: Gate) -> Iterator[Senders[tuple[str, int]]]:
    made = Senders(gate.send, count=2)
    yield made
    gate.let("a", "b", "c", "d")
    made.close(5)


def test_one_destination_after_the_other_in_order(gate: Gate, senders: Senders[tuple[str, int]]) -> None:
    for number in range(3):
        senders.put("a", ("a", number))
    gate.wait_begun(1)
    assert gate.begun == [("a", 0)]
    gate.let("a")
    gate.wait_done(3)
    assert gate.done == [("a", 0), ("a", 1), ("a", 2)]


def test_one_destination_does_not_wait_for_another(gate: Gate, senders: Senders[tuple[str, int]]) -> None:
    senders.put("a", ("a", 0))
    senders.put("b", ("b", 0))
    gate.let("b")
    gate.wait_done(1)
    assert gate.done == [("b", 0)]


def test_no_more_threads_than_said(gate: Gate, senders: Senders[tuple[str, int]]) -> None:
    for key in "abcd":
        senders.put(key, (key, 0))
    gate.wait_begun(2)
    assert len(senders._threads) == 2
    gate.let("a", "b", "c", "d")
    gate.wait_done(4)
    assert {key for key, _ in gate.done} == set("abcd")


def test_item_that_raises_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def send(item: str) -> None:
        if item == "bad":
            raise SystemExit(3)
        done.set()

    senders = Senders(send, count=1)
    senders.put("a", "bad")
    senders.put("a", "good")
    assert done.wait(5)
    senders.close(5)
    assert "mistake in this library" in caplog.text


def test_closing_waits_for_what_is_queued_but_not_longer_than_said(gate: Gate) -> None:
    senders = Senders(gate.send, count=1)
    senders.put("a", ("a", 0))
    senders.put("a", ("a", 1))
    senders.close(0.05)
    assert gate.done == []
    gate.let("a")
    senders.close(5)
    assert gate.done == [("a", 0), ("a", 1)]


def test_where_no_thread_can_start_items_are_sent_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    senders = Senders(done.append)
    senders.put("a", 1)
    senders.put("a", 2)
    assert done == [1, 2]
    senders.close(1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_child_sends_its_own_items_only(gate: Gate, senders: Senders[tuple[str, int]]) -> None:
    senders.put("a", ("a", 0))
    senders.put("a", ("a", 1))
    gate.wait_begun(1)
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's lines are not seen
        sent: list[tuple[str, int]] = []
        ready = threading.Event()

        def send(item: tuple[str, int]) -> None:
            sent.append(item)
            ready.set()

        senders._send = send
        senders.put("b", ("b", 9))
        os._exit(0 if ready.wait(5) and sent == [("b", 9)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.let("a")
    gate.wait_done(2)
    assert gate.done == [("a", 0), ("a", 1)]
