"""The drainer, a look at a time: who drains, what goes first, and how much at once."""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.delivery import spool_consumer as spool_consumer_module
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue, open_queue
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.children import in_child
from support.scripted_server import ACCEPTED, Answer, Recorded, ScriptedServer
from support.spans import finished
from support.traces import until

PLACES = [Destination(experiment_id=str(number)) for number in range(4)]


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)
    monkeypatch.setattr(spool_consumer_module, "_BUSY_SECONDS", 0.0)


def encoded(*names: str) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in finished(*names)]


@dataclass
class Process:
    """A drainer with what it is connected to; nothing runs but what the test calls.

    Attributes:
        depot: Its disk.
        given: What it has given to the senders, and they have not done with.
        spilled: How often it looked at memory.
        tidied: How often it tidied.
        waiting: Whether anything waits in memory.
    """

    depot: PersistentQueue
    given: list[ExportRequest] = field(default_factory=list)
    spilled: int = 0
    tidied: int = 0
    waiting: bool = False

    def __post_init__(self) -> None:
        self.drainer = SpoolConsumer(
            self.depot, send=self.given.append, spill=self._spill, maintain=self._tidy, problem_log=ProblemLog()
        )

    def _spill(self) -> bool:
        self.spilled += 1
        return self.waiting

    def _tidy(self) -> None:
        self.tidied += 1

    def look(self) -> bool:
        return self.drainer._tick()

    def put(self, name: str, place: Destination = PLACES[0]) -> None:
        assert self.depot.append(place, encoded(name), attempted=False, uncertain=False)

    @property
    def names(self) -> list[str]:
        return [name(each) for each in self.given]

    def deliver(self, index: int = 0) -> str:
        """The senders have delivered one."""
        shipment = self.given.pop(index)
        shipment.origin.settle(len(shipment.spans), 0)
        return name(shipment)


def name(shipment: ExportRequest) -> str:
    [span] = shipment.spans
    return next(each for each in NAMES if b"\x2a" + bytes([len(each)]) + each.encode() in span.body)


NAMES = [f"s{number:02d}" for number in range(40)]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Makes what several processes have in one folder."""
    made: list[Process] = []

    def make() -> Process:
        problem_log = ProblemLog()
        spool = SpoolStorage(SpoolSettings(spool=True, spool_dir=str(tmp_path / "root")), "target", "", problem_log)
        made.append(Process(PersistentQueue(spool, None, problem_log)))
        return made[-1]

    yield make
    for each in made:
        each.drainer.close()
        each.drainer.release()


# What goes first, and how much at once


def test_consumer_enqueues_two_oldest_requests_first(process: Callable[..., Process]) -> None:
    one = process()
    for each in NAMES[:5]:
        one.put(each)
    assert one.look()
    assert one.names == NAMES[:2]
    assert one.look()
    assert one.names == NAMES[:2]  # these are still with the senders
    delivered = []
    while one.given:
        delivered.append(one.deliver())
        one.look()
    assert delivered == NAMES[:5]
    assert not one.look()


def test_destinations_do_not_delay_each_other(process: Callable[..., Process]) -> None:
    one = process()
    for number in range(8):
        one.put(NAMES[number], PLACES[0])
    for number, place in enumerate(PLACES[1:], 8):
        one.put(NAMES[number], place)
    one.look()
    assert Counter(each.destination for each in one.given) == {PLACES[0]: 2, **dict.fromkeys(PLACES[1:], 1)}


@pytest.mark.parametrize(("limit", "value", "at_once"), [("_MAX_REQUESTS", 5, 5), ("_MAX_BYTES", 1, 1)])
def test_requests_in_memory_are_bounded(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, limit: str, value: int, at_once: int
) -> None:
    monkeypatch.setattr(spool_consumer_module, limit, value)
    one = process()
    for number in range(12):
        one.put(NAMES[number], PLACES[number % 4])
    one.look()
    assert len(one.given) == at_once
    seen = []
    while one.given:
        seen.append(one.deliver())
        one.look()
        assert len(one.given) <= at_once
    assert sorted(seen) == NAMES[:12]


def test_delayed_request_frees_slot_but_not_memory(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_consumer_module, "_MAX_REQUESTS", 4)
    one = process()
    for each in NAMES[:9]:
        one.put(each)
    one.look()
    for shipment in tuple(one.given):
        shipment.origin.yield_slot()  # a destination that is missing, a span that the server trips over
    one.look()
    assert one.names == NAMES[:4]
    for shipment in one.given[2:]:
        shipment.origin.yield_slot()
    one.look()
    assert one.names == NAMES[:4]  # four are in memory
    one.given.pop(0).origin.release()
    one.look()
    assert one.names[-1] in NAMES[:5]
    assert len(one.given) == 4


def test_missing_or_damaged_file_takes_no_slot(process: Callable[..., Process], tmp_path: Path) -> None:
    one = process()
    for each in NAMES[:4]:
        one.put(each)
    paths = sorted((tmp_path / "root" / "target").glob("*.otlp"))
    paths[0].write_bytes(b"what")
    paths[1].unlink()
    one.look()
    assert one.names == NAMES[2:4]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pdrl"), st.integers(0, 3), st.integers(0, 63)), max_size=40))
def test_consumer_keeps_order_and_slot_limit_per_destination(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int]]
) -> None:
    problem_log = ProblemLog()
    spool = SpoolStorage(
        SpoolSettings(spool=True, spool_dir=str(tmp_path_factory.mktemp("spool"))), "target", "", problem_log
    )
    one = Process(PersistentQueue(spool, None, problem_log))
    names, delivered = iter(NAMES), dict[Destination, list[str]]()
    put = dict[Destination, list[str]]()
    for kind, place, index in events:
        if kind == "p":
            put.setdefault(PLACES[place], []).append(new := next(names))
            one.put(new, PLACES[place])
        elif kind == "l":
            one.look()
        elif one.given:
            shipment = one.given[index % len(one.given)]
            # Of a destination the senders take one after the other.
            shipment = next(each for each in one.given if each.destination == shipment.destination)
            if kind == "d":
                delivered.setdefault(shipment.destination, []).append(one.deliver(one.given.index(shipment)))
            else:  # released at an end, and taken anew
                for each in [each for each in one.given if each.destination == shipment.destination]:
                    one.given.remove(each)
                    each.origin.release()
        assert max(Counter(each.destination for each in one.given).values(), default=0) <= 2
    while one.look() or one.given:
        if one.given:
            delivered.setdefault(one.given[0].destination, []).append(one.deliver())
    one.drainer.release()
    assert delivered == put


def test_new_spans_are_sent_after_at_most_two_spooled_requests(process: Callable[..., Process]) -> None:
    """All go through the same senders, a destination's one after the other."""
    one, sent = process(), list[str]()
    begin, done = threading.Event(), threading.Event()

    def step(shipment: ExportRequest) -> SendResult[ExportRequest]:
        begin.wait(20)
        sent.append("live" if not shipment.origin.is_on_disk else name(shipment))
        shipment.origin.settle(len(shipment.spans), 0)
        done.set()
        return SendResult()

    senders: WorkQueue[ExportRequest] = WorkQueue(step, lambda _: None)
    for each in NAMES[:10]:
        one.put(each)
    one.drainer._send = lambda shipment: senders.enqueue(shipment.destination, shipment)
    one.look()
    senders.enqueue(PLACES[0], ExportRequest(PLACES[0], encoded("live"), RequestOrigin(1)))
    begin.set()
    end = time.monotonic() + 20
    while len(sent) < 11 and time.monotonic() < end:
        done.wait(1)
        done.clear()
        one.look()
    senders.close(5)
    assert sent == [*NAMES[:2], "live", *NAMES[2:10]]


# Who drains


def test_one_process_consumes_and_another_takes_over(process: Callable[..., Process]) -> None:
    first, second = process(), process()
    for each in NAMES[:3]:
        first.put(each)
    first.look()
    assert second.look()  # there is something, but not for it to do
    assert (len(first.given), len(second.given)) == (2, 0)
    assert (first.drainer.is_leader, second.drainer.is_leader) == (True, False)
    while first.given:
        first.given.pop().origin.release()
    first.drainer.close()
    first.drainer.release()
    second.look()
    assert second.drainer.is_leader
    assert second.names == NAMES[:2]  # also what another has put there


def test_lock_is_released_when_spool_is_empty(process: Callable[..., Process]) -> None:
    one = process()
    one.put(NAMES[0])
    one.look()
    assert one.drainer.is_leader
    one.deliver()
    one.look()
    assert not one.look()
    assert not one.drainer.is_leader


def test_only_leader_maintains_at_intervals(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(spool_consumer_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    first, second = process(), process()
    first.put(NAMES[0])
    for _ in range(5):
        first.look()
        second.look()
    assert (first.tidied, second.tidied) == (1, 0)
    assert (first.spilled, second.spilled) == (5, 5)  # memory is everybody's own
    clock.now += spool_consumer_module._MAINTENANCE_SECONDS
    first.look()
    assert first.tidied == 2


def test_tick_on_missing_spool_creates_nothing(process: Callable[..., Process], tmp_path: Path) -> None:
    one = process()
    assert not one.look()
    one.waiting = True
    assert one.look()  # it looks again soon
    assert list(tmp_path.iterdir()) == []


def test_each_process_sends_its_own_requests_without_locks(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(_: FileLock) -> bool:
        raise OSError("No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    first, second = process(), process()
    first.put(NAMES[0])
    second.put(NAMES[1])
    for _ in range(3):
        first.look()
        second.look()
    assert (first.names, second.names) == ([NAMES[0]], [NAMES[1]])
    assert first.tidied == second.tidied == 0
    # Each says it once.
    assert [line.count("cannot be locked") for line in caplog.messages] == [1, 1]


def test_forked_child_starts_empty(process: Callable[..., Process]) -> None:
    one = process()
    for each in NAMES[:3]:
        one.put(each)
    one.look()

    def child() -> bool:
        before = len(one.given)
        one.look()
        return not one.drainer.is_leader and len(one.given) == before

    assert in_child(child)
    assert one.drainer.is_leader
    assert one.names == NAMES[:2]


# The thread


def test_thread_starts_at_wake_and_ends_at_close(process: Callable[..., Process]) -> None:
    one = process()
    one.put(NAMES[0])
    one.drainer.wake()
    until(lambda: one.given)
    spilled = one.spilled
    one.drainer.wake()
    until(lambda: one.spilled > spilled)
    one.drainer.close()
    one.drainer.close()
    thread = one.drainer._thread
    assert thread is not None
    thread.join(30)  # it may be busy for longer than it is waited for
    spilled = one.spilled
    one.drainer.wake()
    assert one.drainer._thread is thread
    assert not thread.is_alive()
    assert one.spilled == spilled


def test_thread_survives_exception(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, mistakes = process(), [RuntimeError("a mistake")]

    def spill() -> bool:
        if mistakes:
            raise mistakes.pop()
        return False

    monkeypatch.setattr(one.drainer, "_spill", spill)
    one.put(NAMES[0])
    one.drainer.wake()
    until(lambda: one.given)
    assert "Please report this." in caplog.text


def test_requests_stay_on_disk_without_thread(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = process()
    one.put(NAMES[0])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        one.drainer.wake()
    assert len(one.depot.storage.entries()) == 1
    one.drainer.wake()  # as soon as there is one again
    until(lambda: one.given)


# Waiting for it


class Courier:
    """What the drainer looks at of one."""

    def __init__(self, *, troubled: bool = False, fails: bool = False) -> None:
        self._failures, self.backoff = 0, SimpleNamespace(troubled=troubled)
        self.grows = fails

    @property
    def failure_count(self) -> int:
        self._failures += self.grows
        return self._failures


def waited(one: Process, seconds: float, courier: Any) -> tuple[int, float]:
    begin = time.monotonic()
    return one.drainer.wait(seconds, courier), time.monotonic() - begin


def test_wait_ignores_requests_of_other_processes(process: Callable[..., Process]) -> None:
    first, second = process(), process()
    first.put(NAMES[0])
    left, seconds = waited(second, 60, Courier())
    assert left == 0
    assert seconds < 30


@pytest.mark.parametrize("troubled", [False, True], ids=["all is well", "elsewhere it is not"])
def test_wait_continues_while_requests_are_delivered(process: Callable[..., Process], *, troubled: bool) -> None:
    """Another destination may be in trouble from before: nothing has failed since."""
    one = process()
    for each in NAMES[:5]:
        one.put(each)
    one.look()

    def deliver() -> None:
        while one.given:
            one.deliver()
            one.look()

    thread = threading.Thread(target=deliver)
    thread.start()
    assert waited(one, 60, Courier(troubled=troubled))[0] == 0
    thread.join()


@pytest.mark.parametrize("draining", [True, False], ids=["here", "elsewhere"])
def test_wait_stops_without_progress(
    process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, draining: bool
) -> None:
    """Here, when the server has just taken nothing; elsewhere, where nobody knows that, after a while."""
    monkeypatch.setattr(spool_consumer_module, "_STALL_SECONDS", 0.2)
    one, other = process(), process()
    one.put(NAMES[0])
    (one if draining else other).look()
    left, seconds = waited(one, 60, Courier(troubled=draining, fails=draining))
    assert left == 1
    assert seconds < 30


def test_wait_keeps_timeout(process: Callable[..., Process]) -> None:
    one = process()
    one.put(NAMES[0])
    one.look()
    left, seconds = waited(one, 0.3, Courier())
    assert left == 1
    assert 0.3 <= seconds < 30


# Together with the courier


@pytest.mark.parametrize(("version", "sent"), [("3.10.1", ["s01"]), ("3.16.1", ["s01"]), ("3.17.2", ["s00", "s01"])])
@pytest.mark.parametrize("uncertain", [True, False])
def test_uncertain_request_is_looked_up_on_servers_before_3_17(
    scripted_server: ScriptedServer, tmp_path: Path, version: str, sent: list[str], uncertain: bool
) -> None:
    """The server has the first of two; only what is missing is sent."""
    spans = encoded("s00", "s01")
    settings = resolve({"tracking_uri": scripted_server.url, "spool": True, "spool_dir": tmp_path})
    depot = open_queue(settings, "none", ProblemLog())
    long_ago = time.time() - 3600
    assert depot.storage.append(PLACES[1], spans, uncertain=uncertain, sent_at=long_ago)

    def stored(_: Recorded) -> Answer:
        ids = {"trace_id": spans[0].trace_id.to_bytes(16, "big"), "span_id": spans[0].span_id.to_bytes(8, "big")}
        span = {key: base64.b64encode(value).decode() for key, value in ids.items()}
        body = json.dumps({"traces": [{"spans": [span]}]}).encode()
        return Answer(200, headers={"Content-Type": "application/json"}, body=body)

    scripted_server.answer_with("/version", lambda _: Answer(200, body=version.encode()))
    scripted_server.answer_with("/api/3.0/mlflow/traces/batchGet", stored)
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, spool=True, spool_dir=tmp_path)
    until(lambda: depot.storage.totals().file_count == 0)
    exporter.shutdown(5000)
    came = [span.name for request in scripted_server.to("/v1/traces") for span in request.spans()]
    assert came == (sent if uncertain else ["s00", "s01"])
    assert bool(scripted_server.to("/api/3.0/mlflow/traces/batchGet")) is (uncertain and version != "3.17.2")
