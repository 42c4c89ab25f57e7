"""Shipments to disk and back, and what killed processes left of each span."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, read_header
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.persistent_queue import (
    PersistentQueue,
    RecoveredSpans,
    open_queue,
)
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.spans import finished
from support.traces import ended

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
def made(tmp_path: Path, folder: Path) -> Iterator[Callable[..., PersistentQueue]]:
    """Makes depots in one folder, as several processes have them."""
    journals: list[Journal] = []

    def make(*, every_span: bool = False, **changes: Any) -> PersistentQueue:
        report = ProblemLog()
        settings = replace(SpoolSettings(spool=True, spool_dir=str(tmp_path / "root")), **changes)
        journal = Journal(lambda: folder / "journal", report) if every_span else None
        if journal is not None:
            folder.mkdir(parents=True, exist_ok=True)
            journals.append(journal)
        return PersistentQueue(SpoolStorage(settings, "target", "", report), journal, report)

    yield make
    for journal in journals:
        journal.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


def state_on(path: Path) -> DeliveryState:
    return read_header(path.read_bytes())[1]


# What was put there


@pytest.mark.parametrize(("attempted", "uncertain"), [(False, False), (True, False), (True, True)])
def test_read_returns_what_was_put(made: Callable[..., PersistentQueue], attempted: bool, uncertain: bool) -> None:
    depot, spans, changes = made(), encoded("a", "b"), list[bool]()
    depot.on_append = lambda: changes.append(True)
    assert depot.append(HERE, spans, attempted=attempted, uncertain=uncertain)
    assert changes == [True]
    [entry] = depot.storage.entries()
    stored = depot.read(entry)
    assert stored is not None
    assert (stored.destination, stored.spans, stored.state.uncertain) == (HERE, spans, uncertain)
    assert (stored.state.attempts > 0, stored.state.sent_at > 0) == (attempted, attempted)


def test_read_of_missing_or_damaged_file_returns_none(made: Callable[..., PersistentQueue], folder: Path) -> None:
    depot = made()
    for name in "ab":
        assert depot.append(HERE, encoded(name), attempted=False, uncertain=False)
    gone, damaged = depot.storage.entries()
    (folder / gone.name).unlink()
    (folder / damaged.name).write_bytes(b"what")
    assert depot.read(gone) is None
    assert depot.read(damaged) is None


def test_where_the_disk_takes_nothing_it_stays_with_the_caller(
    made: Callable[..., PersistentQueue], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    depot = made(spool_dir=str(tmp_path / "file" / "spool"))
    depot.on_append = lambda: pytest.fail("nothing is there")
    assert not depot.append(HERE, encoded("a"), attempted=True, uncertain=True)
    assert not depot.has_leftovers()


def test_what_is_on_disk_as_a_request_is_needed_in_the_journal_no_more(
    made: Callable[..., PersistentQueue], folder: Path
) -> None:
    depot, found = made(every_span=True), finished("a", "b")
    assert depot.journal is not None
    for span in found:
        depot.journal.append(span)
    encoder = SpanEncoder()
    assert depot.append(HERE, [encoder.encode(found[0])], attempted=False, uncertain=False)
    depot.acknowledge([encoder.encode(found[1])])  # delivered
    depot.close()
    assert list((folder / "journal").iterdir()) == []


def test_refused_is_set_aside_with_its_message(made: Callable[..., PersistentQueue], folder: Path) -> None:
    depot = made()
    depot.dead_letter(HERE, encoded("a"), "400: no")
    [path] = files(folder / "refused")
    assert read_header(path.read_bytes())[0].message == "400: no"
    assert not depot.has_leftovers()


# What others have left


@pytest.mark.parametrize(
    ("name", "there"),
    [("", False), ("notes.txt", False), ("journal/x-000000.journal", True), ("refused/x.otlp", False)],
)
def test_leftovers_are_requests_and_journals(
    made: Callable[..., PersistentQueue], folder: Path, name: str, there: bool
) -> None:
    assert not made().has_leftovers()
    if name:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    assert made().has_leftovers() is there
    assert made().append(HERE, encoded("a"), attempted=False, uncertain=False)
    assert made().has_leftovers()


class Encoding:
    """As the pipeline does it; keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[RecoveredSpans] = []
        self.noise: list[ReadableSpan] = []

    def __call__(self, left: RecoveredSpans) -> Sequence[tuple[Destination, list[EncodedSpan]]]:
        self.given.append(left)
        encoder = SpanEncoder()
        return [(left.destination, [encoder.encode(span)]) for span in left.spans]  # a request each

    def leave_out(self, spans: Sequence[ReadableSpan]) -> None:
        self.noise += spans


def left_behind(made: Callable[..., PersistentQueue], spans: Sequence[ReadableSpan]) -> None:
    """As if a process with `every-span` had been killed: what it had locked is free."""
    dead = made(every_span=True)
    assert dead.journal is not None
    for span in spans:
        dead.journal.append(span)
    dead.close()


def test_what_the_dead_have_left_becomes_requests_that_may_have_arrived(
    made: Callable[..., PersistentQueue], folder: Path
) -> None:
    found, encoding = ended(2, children=2), Encoding()
    left_behind(made, found)
    left_behind(made, [])
    depot = made(every_span=True)
    depot.recover_journals(encoding, encoding.leave_out)
    assert sorted(span.name for left in encoding.given for span in left.spans) == sorted(span.name for span in found)
    assert [state_on(path).uncertain and state_on(path).attempts for path in files(folder)] == [1] * 6
    assert list((folder / "journal").iterdir()) == []
    encoding.given.clear()
    depot.recover_journals(encoding, encoding.leave_out)
    assert encoding.given == []


def test_the_living_keep_what_they_have(made: Callable[..., PersistentQueue], folder: Path) -> None:
    living, depot, encoding = made(every_span=True), made(every_span=True), Encoding()
    for each in (living, depot):
        assert each.journal is not None
        each.journal.append(finished("a")[0])
    depot.recover_journals(encoding, encoding.leave_out)
    assert encoding.given == []
    assert len(list((folder / "journal").iterdir())) == 2
    living.close()  # now it is dead
    depot.recover_journals(encoding, encoding.leave_out)
    assert len(encoding.given) == 1
    assert len(list((folder / "journal").iterdir())) == 1


def test_what_cannot_be_made_a_request_now_is_left_for_later(
    made: Callable[..., PersistentQueue], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(made, finished("a", "b"))
    depot, encoding = made(), Encoding()
    with monkeypatch.context() as patch:
        patch.setattr(depot.storage, "append", lambda *_, **__: None)
        depot.recover_journals(encoding, encoding.leave_out)
    assert len(list((folder / "journal").iterdir())) == 1
    depot.recover_journals(encoding, encoding.leave_out)  # it is not locked any more
    assert len(files(folder)) == 2
    assert list((folder / "journal").iterdir()) == []


def test_where_nothing_is_nothing_is_made(made: Callable[..., PersistentQueue], folder: Path) -> None:
    encoding = Encoding()
    made().recover_journals(encoding, encoding.leave_out)
    assert not folder.parent.exists()


def whose(depot: PersistentQueue) -> list[str]:
    requests = [depot.read(entry) for entry in depot.storage.entries()]
    return [request.origin_label for request in requests if request is not None]


def test_whoever_takes_it_is_told_who_has_left_it(made: Callable[..., PersistentQueue]) -> None:
    left_behind(made, finished("killed"))
    earlier = made()
    assert earlier.append(HERE, encoded("a"), attempted=False, uncertain=False)
    depot, beside, encoding = made(), made(), Encoding()
    assert depot.append(HERE, encoded("b"), attempted=False, uncertain=False)
    assert beside.append(HERE, encoded("c"), attempted=False, uncertain=False)
    depot.recover_journals(encoding, encoding.leave_out)
    assert whose(depot) == ["left by an earlier run", "", "left by another exporter", "left by a killed process"]
    # The next run has made none of them.
    assert whose(made()) == ["left by an earlier run"] * 4


# How it is opened


@pytest.mark.parametrize(("durability", "journal"), [("request", False), ("every-span", True)])
def test_only_every_span_has_a_journal(tmp_path: Path, durability: str, journal: bool) -> None:
    settings = resolve({"spool": True, "spool_dir": tmp_path, "durability": durability}, environment={})
    depot = open_queue(settings, "none", ProblemLog())
    assert (depot.journal is not None) is journal
    assert list(tmp_path.iterdir()) == []  # until there is something to keep
    depot.close()


IDENTITIES: dict[str, dict[str, Any]] = {
    "none": {},
    "ada": {"credentials": ("ada", "planted-1")},
    "bob": {"credentials": ("bob", "planted-1")},
    "file": {"credentials": Path("/var/token")},
    "another file": {"credentials": Path("/var/token2")},
    "function": {"credentials": encoded},
    "another function": {"credentials": finished},
    "token": {"credentials": "planted-2"},
    "another server": {"tracking_uri": "http://other:5000"},
}


def test_each_target_and_identity_has_a_folder_without_any_credential(tmp_path: Path) -> None:
    for arguments in IDENTITIES.values():
        given = {"tracking_uri": "http://mlflow:5000", "spool": True, "spool_dir": tmp_path, **arguments}
        depot = open_queue(resolve(given, environment={}), "somebody", ProblemLog())
        assert depot.append(HERE, encoded("a"), attempted=False, uncertain=False)
    assert len(list(tmp_path.iterdir())) == len(IDENTITIES)
    rotated = {"credentials": ("ada", "planted-3"), "tracking_uri": "http://mlflow:5000"}
    again = open_queue(
        resolve({**rotated, "spool": True, "spool_dir": tmp_path}, environment={}), "somebody", ProblemLog()
    )
    assert again.storage.totals().file_count == 1  # a new password is no new user
    for path in tmp_path.rglob("*"):
        assert "planted" not in str(path)
        assert path.is_dir() or b"planted" not in path.read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("planted-1", "planted-2", True),
        ("planted-1", "planted-1", False),
        (("ada", "planted-1"), ("ada", "planted-1"), False),
        (("ada", "planted-1"), ("bob", "planted-1"), False),  # a folder each
        (lambda: "planted-1", lambda: "planted-2", True),
        (encoded, finished, False),
    ],
)
def test_exporters_that_cannot_be_told_apart_on_disk_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: Any, second: Any, told: bool
) -> None:
    given = {"tracking_uri": "http://mlflow:5000", "spool": True, "spool_dir": tmp_path}
    one, other = (
        open_queue(resolve({**given, "credentials": each}, environment={}), "somebody", ProblemLog())
        for each in (first, second)
    )
    for depot in (one, other):
        assert depot.append(HERE, encoded("a"), attempted=False, uncertain=False)
    for depot in (one, other):
        for entry in depot.storage.entries_of_this_process():
            depot.read(entry)
    assert "told apart" not in caplog.text
    for entry in other.storage.entries():
        other.read(entry)
    assert caplog.text.count("cannot be told apart on disk") == told
    assert "planted" not in caplog.text
    one.close()
    caplog.clear()
    third = open_queue(resolve({**given, "credentials": second}, environment={}), "somebody", ProblemLog())
    for entry in third.storage.entries():
        third.read(entry)
    assert "told apart" not in caplog.text  # as when configure() puts a new pipeline in the place of an old one
    for depot in (other, third):
        depot.close()
