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
from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpooledOrigin, read_export_request
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.server import MAX_WRITE_SECONDS
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, read_header
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.spans import finished

HERE = Destination("team-a", experiment="agents")
LATER = ExportOutcome(Disposition.RETRY, FailureKind.SERVER, "down")


def encoded(*names: str) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in finished(*names)]


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "root" / "target"


@pytest.fixture
def made(tmp_path: Path) -> Callable[[], PersistentQueue]:
    """Makes queues in one folder, as several processes have them."""

    def make() -> PersistentQueue:
        report = ProblemLog()
        settings = SpoolSettings(spool=True, spool_dir=str(tmp_path / "root"))
        return PersistentQueue(SpoolStorage(settings, "target", "", report), None, report)

    return make


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


def state_on(path: Path) -> DeliveryState:
    return read_header(path.read_bytes())[1]


class Told:
    """What is said of a request to whoever took it."""

    def __init__(self) -> None:
        self.ended: list[bool] = []

    def __call__(self, entry: Entry, ended: bool) -> None:
        assert entry.name
        self.ended.append(ended)


@pytest.mark.parametrize(("attempted", "uncertain"), [(False, False), (True, False), (True, True)])
def test_read_export_request_returns_what_was_put(
    made: Callable[[], PersistentQueue], attempted: bool, uncertain: bool
) -> None:
    depot, spans = made(), encoded("a", "b")
    assert depot.append(HERE, spans, attempted=attempted, uncertain=uncertain)
    shipment = read_export_request(depot, depot.storage.entries()[0], Told())
    assert shipment is not None
    assert shipment.origin.kept
    assert (shipment.destination, shipment.spans, shipment.origin.remaining) == (HERE, spans, 2)
    assert (shipment.attempted, shipment.uncertain) == (attempted, uncertain)
    # The server may still be writing what was sent just now: it is asked so long.
    left = shipment.ask_until - time.monotonic()
    assert MAX_WRITE_SECONDS - 10 < left <= MAX_WRITE_SECONDS if uncertain else shipment.ask_until == 0.0


@pytest.mark.parametrize(("seconds", "asks"), [(-3600.0, False), (3600.0, True)], ids=["long ago", "clock set back"])
def test_a_server_is_asked_no_longer_than_it_may_write(
    made: Callable[[], PersistentQueue], seconds: float, asks: bool
) -> None:
    depot = made()
    assert depot.storage.append(HERE, encoded("a"), uncertain=True, sent_at=time.time() + seconds)
    shipment = read_export_request(depot, depot.storage.entries()[0], Told())
    assert shipment is not None
    left = shipment.ask_until - time.monotonic()
    assert (0 < left <= MAX_WRITE_SECONDS) if asks else left <= 0


# What happens to it


def taken(
    made: Callable[[], PersistentQueue], *names: str, uncertain: bool = False
) -> tuple[PersistentQueue, SpooledOrigin, Told]:
    depot, told = made(), Told()
    assert depot.append(HERE, encoded(*names), attempted=uncertain, uncertain=uncertain)
    shipment = read_export_request(depot, depot.storage.entries()[0], told)
    assert shipment is not None
    assert isinstance(shipment.origin, SpooledOrigin)
    return depot, shipment.origin, told


def test_before_it_is_sent_its_file_says_that_it_may_have_arrived(
    made: Callable[[], PersistentQueue], folder: Path
) -> None:
    _, origin, _ = taken(made, "a")
    [path] = files(folder)
    assert state_on(path) == DeliveryState(0, uncertain=False, sent_at=0.0)
    before = time.time()
    origin.sending()
    state = state_on(path)
    assert (state.attempts, state.uncertain) == (1, True)
    assert before <= state.sent_at <= time.time()


FATES: list[tuple[list[str], bool]] = [
    (["lost"], False),
    (["unclear"], True),
    (["lost", "unclear"], True),
    (["unclear", "lost"], True),  # what arrived once is not undone by a later failure
    (["some delivered", "lost"], True),
    (["some refused", "lost"], False),
    (["lost", "lost", "lost"], False),
]


@pytest.mark.parametrize(("fates", "uncertain"), FATES)
@pytest.mark.parametrize("before", [False, True])
def test_whoever_finds_it_knows_whether_it_may_have_arrived(
    made: Callable[[], PersistentQueue], folder: Path, fates: list[str], uncertain: bool, before: bool
) -> None:
    _, origin, told = taken(made, "a", "b", "c", uncertain=before)
    for fate in fates:
        origin.sending()
        if fate.startswith("some"):
            delivered = int(fate.endswith("delivered"))
            origin.settle(delivered, 1 - delivered, LATER)
        else:
            origin.failed(uncertain=fate == "unclear")
    [path] = files(folder)
    state = state_on(path)
    assert (state.attempts, state.uncertain) == (len(fates) + before, uncertain or before)
    assert told.ended == []


def test_it_goes_when_each_span_has_an_outcome(made: Callable[[], PersistentQueue], folder: Path) -> None:
    depot, origin, told = taken(made, "a", "b", "c")
    origin.settle(1, 0)
    origin.settle(0, 1, LATER)
    assert files(folder)
    origin.settle(1, 0)
    assert files(folder) == []
    assert told.ended == [True]
    assert depot.storage.totals().file_count == 0


def test_what_waits_for_longer_lets_others_go_and_stays(made: Callable[[], PersistentQueue], folder: Path) -> None:
    depot, origin, told = taken(made, "a", "b")
    origin.deferred()
    origin.suspect(10)
    assert told.ended == [False]
    origin.suspect(10)  # all that is left are suspects
    assert told.ended == [False, False]
    assert depot.storage.entries() == []  # in hand still
    origin.release()
    assert told.ended == [False, False, True]
    assert [entry.name for entry in depot.storage.entries()] == [path.name for path in files(folder)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["killed while it is sent", "lost", "unclear", "deferred", "delivered", "refused", "killed"]),
        max_size=12,
    )
)
def test_whatever_happens_to_a_request_nothing_is_sent_unasked_twice(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    """What is on disk says that it may have arrived whenever it was sent and is not known to be lost."""
    settings = SpoolSettings(spool=True, spool_dir=str(tmp_path_factory.mktemp("spool")))

    def take() -> SpooledOrigin | None:
        depot = PersistentQueue(SpoolStorage(settings, "target", "", ProblemLog()), None, ProblemLog())
        [*entries] = depot.storage.entries()
        shipment = read_export_request(depot, entries[0], lambda _entry, _ended: None) if entries else None
        return cast("SpooledOrigin", shipment.origin) if shipment else None

    first = PersistentQueue(SpoolStorage(settings, "target", "", ProblemLog()), None, ProblemLog())
    assert first.append(HERE, encoded("a", "b", "c"), attempted=False, uncertain=False)
    origin, may_have_arrived = take(), False
    for event in events:
        if origin is None or origin.remaining <= 0:
            break
        if event == "killed":
            origin = take()
            continue
        if event == "deferred":
            origin.deferred()
            continue
        origin.sending()
        if event in ("delivered", "refused"):
            origin.settle(int(event == "delivered"), int(event == "refused"))
        elif event != "killed while it is sent":
            origin.failed(uncertain=event == "unclear")
        may_have_arrived = may_have_arrived or event not in ("lost", "refused")
        paths = files(Path(str(settings.spool_dir), "target"))
        assert not paths or not may_have_arrived or state_on(paths[0]).uncertain
        assert bool(paths) is (origin.remaining > 0)
        if event == "killed while it is sent":
            origin = take()
