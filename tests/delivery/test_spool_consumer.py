"""The spool consumer, tick by tick: leadership, order and limits."""

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
from mlflow_otlp_exporter._internal.common.files import FileLock
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.delivery import spool_consumer as spool_consumer_module
from mlflow_otlp_exporter._internal.delivery.export_request import ExportFuture, ExportRequest
from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue, open_queue
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.children import run_in_fork
from support.scripted_server import ACCEPTED, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

PLACES = [Destination(experiment_id=str(number)) for number in range(4)]


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)
    monkeypatch.setattr(spool_consumer_module, "_BUSY_SECONDS", 0.0)


def encode_spans(*names: str) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in make_spans(*names)]


@dataclass
class Process:
    """A consumer without threads and its surroundings.

    Attributes:
        requests: Enqueued requests without an outcome.
        has_queued: Whether requests are queued in memory.
    """

    queue: PersistentQueue
    requests: list[ExportRequest] = field(default_factory=list)
    spilled_count: int = 0
    maintained_count: int = 0
    has_queued: bool = False

    def __post_init__(self) -> None:
        self.consumer = SpoolConsumer(
            self.queue, send=self.requests.append, spill=self._spill, maintain=self._maintain, problem_log=ProblemLog()
        )

    def _spill(self) -> bool:
        self.spilled_count += 1
        return self.has_queued

    def _maintain(self) -> None:
        self.maintained_count += 1

    def tick(self) -> bool:
        return self.consumer._tick()

    def put(self, name: str, place: Destination = PLACES[0]) -> None:
        assert self.queue.append(place, encode_spans(name), attempted=False, may_have_arrived=False)

    @property
    def names(self) -> list[str]:
        return [span_name(request) for request in self.requests]

    def deliver(self, index: int = 0) -> str:
        request = self.requests.pop(index)
        request.future.settle(len(request.spans), 0)
        return span_name(request)


def span_name(request: ExportRequest) -> str:
    [span] = request.spans
    return next(name for name in NAMES if b"\x2a" + bytes([len(name)]) + name.encode() in span.body)


NAMES = [f"s{number:02d}" for number in range(40)]


@pytest.fixture
def make_process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def make() -> Process:
        problem_log = ProblemLog()
        spool = SpoolStorage(SpoolSettings(spool=True, spool_dir=str(tmp_path / "root")), "target", "", problem_log)
        processes.append(Process(PersistentQueue(spool, None, problem_log)))
        return processes[-1]

    yield make
    for make_process in processes:
        make_process.consumer.close()
        make_process.consumer.release()


# Order and limits


def test_consumer_enqueues_two_oldest_requests_first(make_process: Callable[..., Process]) -> None:
    process = make_process()
    for name in NAMES[:5]:
        process.put(name)
    assert process.tick()
    assert process.names == NAMES[:2]
    assert process.tick()
    assert process.names == NAMES[:2]  # these are still enqueued
    delivered = []
    while process.requests:
        delivered.append(process.deliver())
        process.tick()
    assert delivered == NAMES[:5]
    assert not process.tick()


def test_destinations_do_not_delay_each_other(make_process: Callable[..., Process]) -> None:
    process = make_process()
    for number in range(8):
        process.put(NAMES[number], PLACES[0])
    for number, place in enumerate(PLACES[1:], 8):
        process.put(NAMES[number], place)
    process.tick()
    assert Counter(request.destination for request in process.requests) == {
        PLACES[0]: 2,
        **dict.fromkeys(PLACES[1:], 1),
    }


@pytest.mark.parametrize(("limit", "value", "at_once"), [("_MAX_REQUESTS", 5, 5), ("_MAX_BYTES", 1, 1)])
def test_requests_in_memory_are_bounded(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, limit: str, value: int, at_once: int
) -> None:
    monkeypatch.setattr(spool_consumer_module, limit, value)
    process = make_process()
    for number in range(12):
        process.put(NAMES[number], PLACES[number % 4])
    process.tick()
    assert len(process.requests) == at_once
    seen = []
    while process.requests:
        seen.append(process.deliver())
        process.tick()
        assert len(process.requests) <= at_once
    assert sorted(seen) == NAMES[:12]


def test_delayed_request_frees_slot_but_not_memory(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_consumer_module, "_MAX_REQUESTS", 4)
    process = make_process()
    for name in NAMES[:9]:
        process.put(name)
    process.tick()
    for request in tuple(process.requests):
        request.future.yield_slot()
    process.tick()
    assert process.names == NAMES[:4]
    for request in process.requests[2:]:
        request.future.yield_slot()
    process.tick()
    assert process.names == NAMES[:4]  # four are in memory
    process.requests.pop(0).future.release()
    process.tick()
    assert process.names[-1] in NAMES[:5]
    assert len(process.requests) == 4


def test_missing_or_damaged_file_takes_no_slot(make_process: Callable[..., Process], tmp_path: Path) -> None:
    process = make_process()
    for name in NAMES[:4]:
        process.put(name)
    paths = sorted((tmp_path / "root" / "target").glob("*.otlp"))
    paths[0].write_bytes(b"what")
    paths[1].unlink()
    process.tick()
    assert process.names == NAMES[2:4]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pdrl"), st.integers(0, 3), st.integers(0, 63)), max_size=40))
def test_consumer_keeps_order_and_slot_limit_per_destination(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int]]
) -> None:
    problem_log = ProblemLog()
    spool = SpoolStorage(
        SpoolSettings(spool=True, spool_dir=str(tmp_path_factory.mktemp("spool"))), "target", "", problem_log
    )
    process = Process(PersistentQueue(spool, None, problem_log))
    names, delivered = iter(NAMES), dict[Destination, list[str]]()
    put = dict[Destination, list[str]]()
    for kind, place, index in events:
        if kind == "p":
            put.setdefault(PLACES[place], []).append(new := next(names))
            process.put(new, PLACES[place])
        elif kind == "l":
            process.tick()
        elif process.requests:
            request = process.requests[index % len(process.requests)]
            # The work queue sends one request of a destination at a time.
            request = next(request for request in process.requests if request.destination == request.destination)
            if kind == "d":
                delivered.setdefault(request.destination, []).append(process.deliver(process.requests.index(request)))
            else:  # released at shutdown, and read again
                for request in [request for request in process.requests if request.destination == request.destination]:
                    process.requests.remove(request)
                    request.future.release()
        assert max(Counter(request.destination for request in process.requests).values(), default=0) <= 2
    while process.tick() or process.requests:
        if process.requests:
            delivered.setdefault(process.requests[0].destination, []).append(process.deliver())
    process.consumer.release()
    assert delivered == put


def test_new_spans_are_sent_after_at_most_two_spooled_requests(make_process: Callable[..., Process]) -> None:
    process, sent = make_process(), list[str]()
    begin, done = threading.Event(), threading.Event()

    def step(request: ExportRequest) -> SendResult:
        begin.wait(20)
        sent.append("live" if not request.future.is_on_disk else span_name(request))
        request.future.settle(len(request.spans), 0)
        done.set()
        return SendResult()

    work_queue: WorkQueue[ExportRequest] = WorkQueue(step, lambda _: None)
    for name in NAMES[:10]:
        process.put(name)

    def send(request: ExportRequest) -> None:
        work_queue.enqueue(request.destination, request)

    process.consumer._send = send
    process.tick()
    work_queue.enqueue(PLACES[0], ExportRequest(PLACES[0], encode_spans("live"), ExportFuture(1)))
    begin.set()
    end = time.monotonic() + 20
    while len(sent) < 11 and time.monotonic() < end:
        done.wait(1)
        done.clear()
        process.tick()
    work_queue.close(5)
    assert sent == [*NAMES[:2], "live", *NAMES[2:10]]


# Leadership


def test_one_process_consumes_and_another_takes_over(make_process: Callable[..., Process]) -> None:
    first, second = make_process(), make_process()
    for name in NAMES[:3]:
        first.put(name)
    first.tick()
    assert second.tick()  # there is work, but not for this process
    assert (len(first.requests), len(second.requests)) == (2, 0)
    assert (first.consumer.is_leader, second.consumer.is_leader) == (True, False)
    while first.requests:
        first.requests.pop().future.release()
    first.consumer.close()
    first.consumer.release()
    second.tick()
    assert second.consumer.is_leader
    assert second.names == NAMES[:2]  # also requests of the other process


def test_lock_is_released_when_spool_is_empty(make_process: Callable[..., Process]) -> None:
    process = make_process()
    process.put(NAMES[0])
    process.tick()
    assert process.consumer.is_leader
    process.deliver()
    process.tick()
    assert not process.tick()
    assert not process.consumer.is_leader


def test_only_leader_maintains_at_intervals(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(spool_consumer_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    first, second = make_process(), make_process()
    first.put(NAMES[0])
    for _ in range(5):
        first.tick()
        second.tick()
    assert (first.maintained_count, second.maintained_count) == (1, 0)
    assert (first.spilled_count, second.spilled_count) == (5, 5)  # each process has its own memory
    clock.now += spool_consumer_module._MAINTENANCE_SECONDS
    first.tick()
    assert first.maintained_count == 2


def test_tick_on_missing_spool_creates_nothing(make_process: Callable[..., Process], tmp_path: Path) -> None:
    process = make_process()
    assert not process.tick()
    process.has_queued = True
    assert process.tick()  # the next tick follows soon
    assert list(tmp_path.iterdir()) == []


def test_each_process_sends_its_own_requests_without_locks(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(_: FileLock) -> bool:
        raise OSError("No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    first, second = make_process(), make_process()
    first.put(NAMES[0])
    second.put(NAMES[1])
    for _ in range(3):
        first.tick()
        second.tick()
    assert (first.names, second.names) == ([NAMES[0]], [NAMES[1]])
    assert first.maintained_count == second.maintained_count == 0
    # Each process logs it once.
    assert [line.count("cannot be locked") for line in caplog.messages] == [1, 1]


def test_forked_child_starts_empty(make_process: Callable[..., Process]) -> None:
    process = make_process()
    for name in NAMES[:3]:
        process.put(name)
    process.tick()

    def child() -> bool:
        before = len(process.requests)
        process.tick()
        return not process.consumer.is_leader and len(process.requests) == before

    assert run_in_fork(child)
    assert process.consumer.is_leader
    assert process.names == NAMES[:2]


# The thread


def test_thread_starts_at_wake_and_ends_at_close(make_process: Callable[..., Process]) -> None:
    process = make_process()
    process.put(NAMES[0])
    process.consumer.wake()
    wait_until(lambda: process.requests)
    spilled_count = process.spilled_count
    process.consumer.wake()
    wait_until(lambda: process.spilled_count > spilled_count)
    process.consumer.close()
    process.consumer.close()
    thread = process.consumer._thread
    assert thread is not None
    thread.join(30)  # close() waits only 1 s
    spilled_count = process.spilled_count
    process.consumer.wake()
    assert process.consumer._thread is thread
    assert not thread.is_alive()
    assert process.spilled_count == spilled_count


def test_thread_survives_exception(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process, errors = make_process(), [RuntimeError("a bug")]

    def spill() -> bool:
        if errors:
            raise errors.pop()
        return False

    monkeypatch.setattr(process.consumer, "_spill", spill)
    process.put(NAMES[0])
    process.consumer.wake()
    wait_until(lambda: process.requests)
    assert "Please report this." in caplog.text


def test_requests_stay_on_disk_without_thread(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    process = make_process()
    process.put(NAMES[0])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        process.consumer.wake()
    assert len(process.queue.storage.entries()) == 1
    process.consumer.wake()  # when threads can start again
    wait_until(lambda: process.requests)


# Waiting


class FakeRetrySender:
    def __init__(self, *, had_failures: bool = False, keeps_failing: bool = False) -> None:
        self._failures, self.backoff = 0, SimpleNamespace(failure_counts=had_failures)
        self.keeps_failing = keeps_failing

    @property
    def failure_count(self) -> int:
        self._failures += self.keeps_failing
        return self._failures


def wait_and_measure(process: Process, timeout: float, sender: Any) -> tuple[int, float]:
    started_at = time.monotonic()
    return process.consumer.wait(timeout, sender), time.monotonic() - started_at


def test_wait_ignores_requests_of_other_processes(make_process: Callable[..., Process]) -> None:
    first, second = make_process(), make_process()
    first.put(NAMES[0])
    remaining_count, seconds = wait_and_measure(second, 60, FakeRetrySender())
    assert remaining_count == 0
    assert seconds < 30


@pytest.mark.parametrize("had_failures", [False, True], ids=["healthy", "other destination fails"])
def test_wait_continues_while_requests_are_delivered(
    make_process: Callable[..., Process], *, had_failures: bool
) -> None:
    """Another destination may have failed before the wait."""
    process = make_process()
    for name in NAMES[:5]:
        process.put(name)
    process.tick()

    def deliver() -> None:
        while process.requests:
            process.deliver()
            process.tick()

    thread = threading.Thread(target=deliver)
    thread.start()
    assert wait_and_measure(process, 60, FakeRetrySender(had_failures=had_failures))[0] == 0
    thread.join()


@pytest.mark.parametrize("is_leader", [True, False], ids=["here", "elsewhere"])
def test_wait_stops_without_progress(
    make_process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, is_leader: bool
) -> None:
    """In the leader as soon as an attempt fails; in other processes after a while without progress."""
    monkeypatch.setattr(spool_consumer_module, "_STALL_SECONDS", 0.2)
    process, other = make_process(), make_process()
    process.put(NAMES[0])
    (process if is_leader else other).tick()
    remaining_count, seconds = wait_and_measure(
        process, 60, FakeRetrySender(had_failures=is_leader, keeps_failing=is_leader)
    )
    assert remaining_count == 1
    assert seconds < 30


def test_wait_keeps_timeout(make_process: Callable[..., Process]) -> None:
    process = make_process()
    process.put(NAMES[0])
    process.tick()
    remaining_count, seconds = wait_and_measure(process, 0.3, FakeRetrySender())
    assert remaining_count == 1
    assert 0.3 <= seconds < 30


# With a real retry sender


@pytest.mark.parametrize(("version", "sent"), [("3.10.1", ["s01"]), ("3.16.1", ["s01"]), ("3.17.2", ["s00", "s01"])])
@pytest.mark.parametrize("may_have_arrived", [True, False])
def test_request_that_may_have_arrived_is_looked_up_on_servers_before_3_17(
    scripted_server: ScriptedServer, tmp_path: Path, version: str, sent: list[str], may_have_arrived: bool
) -> None:
    """The server has stored the first of two spans."""
    spans = encode_spans("s00", "s01")
    settings = resolve({"tracking_uri": scripted_server.url, "spool": True, "spool_dir": tmp_path})
    queue = open_queue(settings, "none", ProblemLog())
    long_ago = time.time() - 3600
    assert queue.storage.append(PLACES[1], spans, may_have_arrived=may_have_arrived, sent_at=long_ago)

    def stored_spans_response(_: RecordedRequest) -> Answer:
        ids = {"trace_id": spans[0].trace_id.to_bytes(16, "big"), "span_id": spans[0].span_id.to_bytes(8, "big")}
        span = {key: base64.b64encode(value).decode() for key, value in ids.items()}
        body = json.dumps({"traces": [{"spans": [span]}]}).encode()
        return Answer(200, headers={"Content-Type": "application/json"}, body=body)

    scripted_server.answer_with("/version", lambda _: Answer(200, body=version.encode()))
    scripted_server.answer_with("/api/3.0/mlflow/traces/batchGet", stored_spans_response)
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, spool=True, spool_dir=tmp_path)
    wait_until(lambda: queue.storage.totals().file_count == 0)
    exporter.shutdown(5000)
    names = [span.name for request in scripted_server.to("/v1/traces") for span in request.spans()]
    assert names == (sent if may_have_arrived else ["s00", "s01"])
    assert bool(scripted_server.to("/api/3.0/mlflow/traces/batchGet")) is (may_have_arrived and version != "3.17.2")
