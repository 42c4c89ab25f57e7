"""Requests read from the spool, and what happens to their files."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpooledFuture, read_export_request
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.server import MAX_WRITE_SECONDS, ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, read_header
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from support.spans import make_spans

HERE = Destination("team-a", experiment="agents")
LATER = ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER, "down")


def encode_spans(*names: str) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in make_spans(*names)]


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "root" / "target"


@pytest.fixture
def make_queue(tmp_path: Path) -> Callable[[], PersistentQueue]:
    """Makes queues in one folder, as several processes have them."""

    def make() -> PersistentQueue:
        problem_log = ProblemLog()
        settings = SpoolSettings(spool=True, spool_dir=str(tmp_path / "root"))
        return PersistentQueue(SpoolStorage(settings, "target", "", problem_log), None, problem_log)

    return make


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


def state_on(path: Path) -> DeliveryState:
    return read_header(path.read_bytes())[1]


class DoneRecorder:
    """Records the calls of `on_done`."""

    def __init__(self) -> None:
        self.settled: list[bool] = []

    def __call__(self, entry: Entry, settled: bool) -> None:
        assert entry.name
        self.settled.append(settled)


@pytest.mark.parametrize(("attempted", "may_have_arrived"), [(False, False), (True, False), (True, True)])
def test_read_export_request_returns_what_was_put(
    make_queue: Callable[[], PersistentQueue], attempted: bool, may_have_arrived: bool
) -> None:
    queue, spans = make_queue(), encode_spans("a", "b")
    assert queue.append(HERE, spans, attempted=attempted, may_have_arrived=may_have_arrived)
    request = read_export_request(queue, queue.storage.entries()[0], DoneRecorder())
    assert request is not None
    assert request.future.is_on_disk
    assert (request.destination, request.spans, request.future.remaining_count) == (HERE, spans, 2)
    assert (request.was_sent, request.may_have_arrived) == (attempted, may_have_arrived)
    # The server may still be writing spans that were sent just before.
    remaining_seconds = request.check_until - time.monotonic()
    assert (
        MAX_WRITE_SECONDS - 10 < remaining_seconds <= MAX_WRITE_SECONDS
        if may_have_arrived
        else request.check_until == 0.0
    )


@pytest.mark.parametrize(("seconds", "asks"), [(-3600.0, False), (3600.0, True)], ids=["long ago", "clock set back"])
def test_check_until_is_bounded_if_clock_changed(
    make_queue: Callable[[], PersistentQueue], seconds: float, asks: bool
) -> None:
    queue = make_queue()
    assert queue.storage.append(HERE, encode_spans("a"), may_have_arrived=True, sent_at=time.time() + seconds)
    request = read_export_request(queue, queue.storage.entries()[0], DoneRecorder())
    assert request is not None
    remaining_seconds = request.check_until - time.monotonic()
    assert (0 < remaining_seconds <= MAX_WRITE_SECONDS) if asks else remaining_seconds <= 0


# State of the file


def append_and_read(
    make_queue: Callable[[], PersistentQueue], *names: str, may_have_arrived: bool = False
) -> tuple[PersistentQueue, SpooledFuture, DoneRecorder]:
    queue, on_done = make_queue(), DoneRecorder()
    assert queue.append(HERE, encode_spans(*names), attempted=may_have_arrived, may_have_arrived=may_have_arrived)
    request = read_export_request(queue, queue.storage.entries()[0], on_done)
    assert request is not None
    assert isinstance(request.future, SpooledFuture)
    return queue, request.future, on_done


def test_on_attempt_marks_that_file_may_have_arrived(make_queue: Callable[[], PersistentQueue], folder: Path) -> None:
    _, future, _ = append_and_read(make_queue, "a")
    [path] = files(folder)
    assert state_on(path) == DeliveryState(0, may_have_arrived=False, sent_at=0.0)
    before = time.time()
    future.record_attempt()
    state = state_on(path)
    assert (state.attempts, state.may_have_arrived) == (1, True)
    assert before <= state.sent_at <= time.time()


FATES: list[tuple[list[str], bool]] = [
    (["lost"], False),
    (["unclear"], True),
    (["lost", "unclear"], True),
    (["unclear", "lost"], True),  # a later failure does not undo a possible arrival
    (["some delivered", "lost"], True),
    (["some refused", "lost"], False),
    (["lost", "lost", "lost"], False),
]


@pytest.mark.parametrize(("fates", "may_have_arrived"), FATES)
@pytest.mark.parametrize("before", [False, True])
def test_file_state_follows_outcomes(
    make_queue: Callable[[], PersistentQueue], folder: Path, fates: list[str], may_have_arrived: bool, before: bool
) -> None:
    _, future, on_done = append_and_read(make_queue, "a", "b", "c", may_have_arrived=before)
    for fate in fates:
        future.record_attempt()
        if fate.startswith("some"):
            delivered = int(fate.endswith("delivered"))
            future.settle(delivered, 1 - delivered, LATER)
        else:
            future.record_failure(may_have_arrived=fate == "unclear")
    [path] = files(folder)
    state = state_on(path)
    assert (state.attempts, state.may_have_arrived) == (len(fates) + before, may_have_arrived or before)
    assert on_done.settled == []


def test_settle_deletes_file_after_last_span(make_queue: Callable[[], PersistentQueue], folder: Path) -> None:
    queue, future, on_done = append_and_read(make_queue, "a", "b", "c")
    future.settle(1, 0)
    future.settle(0, 1, LATER)
    assert files(folder)
    future.settle(1, 0)
    assert files(folder) == []
    assert on_done.settled == [True]
    assert queue.storage.totals().file_count == 0


def test_yield_slot_and_release_keep_file(make_queue: Callable[[], PersistentQueue], folder: Path) -> None:
    queue, future, on_done = append_and_read(make_queue, "a", "b")
    future.yield_slot()
    assert on_done.settled == [False]
    assert queue.storage.entries() == []  # still checked out
    future.release()
    assert on_done.settled == [False, True]
    assert [entry.name for entry in queue.storage.entries()] == [path.name for path in files(folder)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["killed while it is sent", "lost", "unclear", "deferred", "delivered", "refused", "killed"]),
        max_size=12,
    )
)
def test_file_is_marked_whenever_spans_may_have_arrived(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    """The file is marked after each attempt whose failure is not certain."""
    settings = SpoolSettings(spool=True, spool_dir=str(tmp_path_factory.mktemp("spool")))

    def read_again() -> SpooledFuture | None:
        queue = PersistentQueue(SpoolStorage(settings, "target", "", ProblemLog()), None, ProblemLog())
        [*entries] = queue.storage.entries()
        request = read_export_request(queue, entries[0], lambda _entry, _settled: None) if entries else None
        return cast("SpooledFuture", request.future) if request else None

    first = PersistentQueue(SpoolStorage(settings, "target", "", ProblemLog()), None, ProblemLog())
    assert first.append(HERE, encode_spans("a", "b", "c"), attempted=False, may_have_arrived=False)
    future, may_have_arrived = read_again(), False
    for event in events:
        if future is None or future.remaining_count <= 0:
            break
        if event == "killed":
            future = read_again()
            continue
        if event == "deferred":
            future.yield_slot()
            continue
        future.record_attempt()
        if event in ("delivered", "refused"):
            future.settle(int(event == "delivered"), int(event == "refused"))
        elif event != "killed while it is sent":
            future.record_failure(may_have_arrived=event == "unclear")
        may_have_arrived = may_have_arrived or event not in ("lost", "refused")
        paths = files(Path(str(settings.spool_dir), "target"))
        assert not paths or not may_have_arrived or state_on(paths[0]).may_have_arrived
        assert bool(paths) is (future.remaining_count > 0)
        if event == "killed while it is sent":
            future = read_again()


@pytest.mark.parametrize("arrived", [True, False])
def test_failed_attempt_at_shutdown_marks_file_only_if_spans_may_have_arrived(
    make_queue: Callable[[], PersistentQueue], folder: Path, arrived: bool
) -> None:
    class Client:
        def export(self, *_: object) -> ExportOutcome:
            return LATER._replace(may_have_arrived=arrived)

    queue = make_queue()
    assert queue.append(HERE, encode_spans("a"), attempted=False, may_have_arrived=False)
    request = read_export_request(queue, queue.storage.entries()[0], DoneRecorder())
    assert request is not None
    sender = RetrySender(
        cast("HttpClient", None),
        cast("OTLPClient", Client()),
        cast("ServerInfo", None),
        ProblemLog(),
        explain=lambda outcome: outcome.message,
        persistent_queue=queue,
    )
    sender.is_closing, request.delay_count = True, 1
    assert not sender.send(request, 1.0).remaining
    [path] = files(folder)
    assert state_on(path).may_have_arrived is arrived
