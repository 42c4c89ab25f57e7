"""Requests on disk, recovery of journals of killed processes, and the folders of targets."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, read_header
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import encode_line
from mlflow_otlp_exporter._internal.spool.persistent_queue import (
    PersistentQueue,
    RecoveredSpans,
    open_queue,
)
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.spans import make_spans
from support.special_files import SPECIAL_FILES
from support.traces import make_traces

DESTINATION = Destination("team-a", experiment="agents")
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
def make_queue(tmp_path: Path, folder: Path) -> Iterator[Callable[..., PersistentQueue]]:
    """Opens queues in one folder, as several processes do."""
    journals: list[Journal] = []

    def make(*, every_span: bool = False, **changes: Any) -> PersistentQueue:
        problem_log = ProblemLog()
        settings = SpoolSettings(spool=True, spool_dir=str(tmp_path / "root"))._replace(**changes)
        journal = Journal(lambda: folder / "journal", problem_log) if every_span else None
        if journal is not None:
            folder.mkdir(parents=True, exist_ok=True)
            journals.append(journal)
        return PersistentQueue(SpoolStorage(settings, "target", "", problem_log), journal, problem_log)

    yield make
    for journal in journals:
        journal.close()


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


def read_state(path: Path) -> DeliveryState:
    return read_header(path.read_bytes())[1]


# Requests


@pytest.mark.parametrize(("attempted", "may_have_arrived"), [(False, False), (True, False), (True, True)])
def test_read_returns_what_was_put(
    make_queue: Callable[..., PersistentQueue], attempted: bool, may_have_arrived: bool
) -> None:
    queue, spans, changes = make_queue(), encode_spans("a", "b"), list[bool]()
    queue.on_append = lambda: changes.append(True)
    assert queue.append(DESTINATION, spans, attempted=attempted, may_have_arrived=may_have_arrived)
    assert changes == [True]
    [entry] = queue.storage.entries()
    stored = queue.read(entry)
    assert stored is not None
    assert (stored.destination, stored.spans, stored.state.may_have_arrived) == (DESTINATION, spans, may_have_arrived)
    assert (stored.state.attempts > 0, stored.state.sent_at > 0) == (attempted, attempted)


def test_read_of_missing_or_damaged_file_returns_none(make_queue: Callable[..., PersistentQueue], folder: Path) -> None:
    queue = make_queue()
    for name in "ab":
        assert queue.append(DESTINATION, encode_spans(name), attempted=False, may_have_arrived=False)
    missing, damaged = queue.storage.entries()
    (folder / missing.name).unlink()
    (folder / damaged.name).write_bytes(b"what")
    assert queue.read(missing) is None
    assert queue.read(damaged) is None


def test_append_to_unusable_disk_returns_false(make_queue: Callable[..., PersistentQueue], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    queue = make_queue(spool_dir=str(tmp_path / "file" / "spool"))
    queue.on_append = lambda: pytest.fail("nothing is there")
    assert not queue.append(DESTINATION, encode_spans("a"), attempted=True, may_have_arrived=True)
    assert not queue.has_leftovers()


def test_stored_and_acknowledged_spans_leave_the_journal(
    make_queue: Callable[..., PersistentQueue], folder: Path
) -> None:
    queue, spans = make_queue(every_span=True), make_spans("a", "b")
    assert queue.journal is not None
    for span in spans:
        queue.journal.append(span)
    encoder = SpanEncoder()
    assert queue.append(DESTINATION, [encoder.encode(spans[0])], attempted=False, may_have_arrived=False)
    queue.acknowledge([encoder.encode(spans[1])])  # delivered
    queue.close()
    assert list((folder / "journal").iterdir()) == []


def test_dead_letter_keeps_message_and_is_no_leftover(make_queue: Callable[..., PersistentQueue], folder: Path) -> None:
    queue = make_queue()
    queue.dead_letter(DESTINATION, encode_spans("a"), "400: no")
    [path] = list_files(folder / "refused")
    assert read_header(path.read_bytes())[0].message == "400: no"
    assert not queue.has_leftovers()


# Leftovers


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", False), ("notes.txt", False), ("journal/x-000000.journal", True), ("refused/x.otlp", False)],
)
def test_has_leftovers_counts_requests_and_journals(
    make_queue: Callable[..., PersistentQueue], folder: Path, name: str, expected: bool
) -> None:
    assert not make_queue().has_leftovers()
    if name:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    assert make_queue().has_leftovers() is expected
    assert make_queue().append(DESTINATION, encode_spans("a"), attempted=False, may_have_arrived=False)
    assert make_queue().has_leftovers()


class RecoveryCallbacks:
    """Encodes recovered spans like the pipeline, and records its arguments."""

    def __init__(self) -> None:
        self.arguments: list[RecoveredSpans] = []
        self.filtered: list[ReadableSpan] = []

    def __call__(self, recovered: RecoveredSpans) -> Sequence[tuple[Destination, list[EncodedSpan]]]:
        self.arguments.append(recovered)
        encoder = SpanEncoder()
        return [(recovered.destination, [encoder.encode(span)]) for span in recovered.spans]  # one request each

    def record_filtered(self, spans: Sequence[ReadableSpan]) -> None:
        self.filtered += spans


def leave_journal(make_queue: Callable[..., PersistentQueue], spans: Sequence[ReadableSpan]) -> None:
    """Leave the journal of a process with `every-span` that was killed, without its locks."""
    killed = make_queue(every_span=True)
    assert killed.journal is not None
    for span in spans:
        killed.journal.append(span)
    killed.close()


def test_recover_journals_stores_requests_that_may_have_arrived(
    make_queue: Callable[..., PersistentQueue], folder: Path
) -> None:
    spans, callbacks = make_traces(2, children=2), RecoveryCallbacks()
    leave_journal(make_queue, spans)
    leave_journal(make_queue, [])
    queue = make_queue(every_span=True)
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert sorted(span.name for recovered in callbacks.arguments for span in recovered.spans) == sorted(
        span.name for span in spans
    )
    assert [read_state(path).may_have_arrived and read_state(path).attempts for path in list_files(folder)] == [1] * 6
    assert list((folder / "journal").iterdir()) == []
    callbacks.arguments.clear()
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert callbacks.arguments == []


def test_recover_journals_ignores_running_processes(make_queue: Callable[..., PersistentQueue], folder: Path) -> None:
    running, queue, callbacks = make_queue(every_span=True), make_queue(every_span=True), RecoveryCallbacks()
    for journal in (running.journal, queue.journal):
        assert journal is not None
        journal.append(make_spans("a")[0])
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert callbacks.arguments == []
    assert len(list((folder / "journal").iterdir())) == 2
    running.close()  # like a dead process
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert len(callbacks.arguments) == 1
    assert len(list((folder / "journal").iterdir())) == 1


@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_recover_journals_skips_special_file(
    make_queue: Callable[..., PersistentQueue],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    create: Callable[[Path], object],
    reason: str,
) -> None:
    leave_journal(make_queue, make_spans("a"))
    [journal] = (folder / "journal").iterdir()
    monkeypatch.chdir(folder / "journal")
    same_process = folder / "journal" / f"{journal.stem.rpartition('-')[0]}-000001.journal"
    create(same_process)
    create_other = Path.mkdir if create is os.mkfifo else os.mkfifo
    create_other(folder / "journal" / "\x1b-12345678-000000.journal")
    queue, callbacks = make_queue(), RecoveryCallbacks()
    for _ in range(2):
        queue.recover_journals(callbacks, callbacks.record_filtered)
    assert len(list_files(folder)) == 1
    assert not journal.exists()
    assert f"Journal file {same_process.name!r} in {folder} is skipped: {reason}." in caplog.text
    assert len(caplog.messages) == 2
    assert r"'\x1b-12345678-000000.journal'" in caplog.text
    victim = folder / "journal" / "victim"
    assert not victim.exists() or victim.read_text() == "precious"


def test_journal_folder_that_is_a_link_is_not_used(
    make_queue: Callable[..., PersistentQueue], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_journal(make_queue, make_spans("a"))
    (folder / "journal").rename(tmp_path / "elsewhere")
    (folder / "journal").symlink_to(tmp_path / "elsewhere")
    queue, callbacks = make_queue(every_span=True), RecoveryCallbacks()
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert callbacks.arguments == []
    assert f"{folder / 'journal'} is not a directory" in caplog.text
    assert queue.journal is not None
    queue.journal.append(make_spans("b")[0])
    queue.journal.rotate()
    assert "Journal cannot be written" in caplog.text
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


CRAFTED_RECORDS: list[Any] = [
    ["span"],
    ["span", *[None] * 13],
    ["owner", []],
    ["owner", {}, 5],
    ["gone", [[1, 2], "x", None]],
    ["gone", 7],
    ["origins", [7, None, None, None], False, []],
    ["origins", "x", False, 7],
    [[], {}],
    [None],
]


def test_recover_journals_with_crafted_lines_keeps_other_spans(
    make_queue: Callable[..., PersistentQueue], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_journal(make_queue, make_spans("a", "b"))
    [journal] = (folder / "journal").iterdir()
    nested = b"[" * 100_000 + b"]" * 100_000
    lines = [*map(encode_line, CRAFTED_RECORDS), b"\n%08x %b\n" % (zlib.crc32(nested), nested), b"\n" + b"9" * 9000]
    journal.write_bytes(b"".join(lines) + journal.read_bytes() + b"".join(lines))
    queue, callbacks = make_queue(), RecoveryCallbacks()
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert [span.name for recovered in callbacks.arguments for span in recovered.spans] == ["a", "b"]
    assert len(list_files(folder)) == 2
    assert len(list_files(folder / "damaged")) == 1
    [line] = caplog.messages
    assert "lines in the journal of a killed process cannot be read" in line


def test_destination_with_lone_surrogates_reaches_the_reader(make_queue: Callable[..., PersistentQueue]) -> None:
    queue = make_queue()
    destination = Destination("a\ud800b", run_id="\udfff\n", service_name="\x1b[2J")
    assert queue.append(destination, encode_spans("a\ud800b"), attempted=False, may_have_arrived=False)
    [entry] = queue.storage.entries()
    stored = queue.read(entry)
    assert stored is not None
    assert stored.destination == destination
    assert stored.destination.headers("1")["x-mlflow-workspace"] == "a\\ud800b"


def test_recover_journals_with_failing_disk_keeps_journal(
    make_queue: Callable[..., PersistentQueue], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_journal(make_queue, make_spans("a", "b"))
    queue, callbacks = make_queue(), RecoveryCallbacks()
    with monkeypatch.context() as patch:
        patch.setattr(queue.storage, "append", lambda *_, **__: None)
        queue.recover_journals(callbacks, callbacks.record_filtered)
    assert len(list((folder / "journal").iterdir())) == 1
    queue.recover_journals(callbacks, callbacks.record_filtered)  # its lock is free again
    assert len(list_files(folder)) == 2
    assert list((folder / "journal").iterdir()) == []


def test_recover_journals_without_folder_creates_nothing(
    make_queue: Callable[..., PersistentQueue], folder: Path
) -> None:
    callbacks = RecoveryCallbacks()
    make_queue().recover_journals(callbacks, callbacks.record_filtered)
    assert not folder.parent.exists()


def read_origin_labels(queue: PersistentQueue) -> list[str]:
    requests = [queue.read(entry) for entry in queue.storage.entries()]
    return [request.origin_label for request in requests if request is not None]


def test_read_labels_requests_of_other_runs(make_queue: Callable[..., PersistentQueue]) -> None:
    leave_journal(make_queue, make_spans("killed"))
    earlier = make_queue()
    assert earlier.append(DESTINATION, encode_spans("a"), attempted=False, may_have_arrived=False)
    queue, other, callbacks = make_queue(), make_queue(), RecoveryCallbacks()
    assert queue.append(DESTINATION, encode_spans("b"), attempted=False, may_have_arrived=False)
    assert other.append(DESTINATION, encode_spans("c"), attempted=False, may_have_arrived=False)
    queue.recover_journals(callbacks, callbacks.record_filtered)
    assert read_origin_labels(queue) == [
        "left by an earlier run",
        "",
        "left by another exporter",
        "left by a killed process",
    ]
    # For the next run, all of them are older.
    assert read_origin_labels(make_queue()) == ["left by an earlier run"] * 4


# Opening


@pytest.mark.parametrize(("durability", "journal"), [("request", False), ("every-span", True)])
def test_open_queue_creates_journal_for_every_span_only(tmp_path: Path, durability: str, journal: bool) -> None:
    settings = resolve({"spool": True, "spool_dir": tmp_path, "durability": durability}, environment={})
    queue = open_queue(settings, "none", ProblemLog())
    assert (queue.journal is not None) is journal
    assert list(tmp_path.iterdir()) == []  # before the first request
    queue.close()


IDENTITIES: dict[str, dict[str, Any]] = {
    "none": {},
    "ada": {"credentials": ("ada", "planted-1")},
    "bob": {"credentials": ("bob", "planted-1")},
    "file": {"credentials": Path("/var/token")},
    "another file": {"credentials": Path("/var/token2")},
    "function": {"credentials": encode_spans},
    "another function": {"credentials": make_spans},
    "token": {"credentials": "planted-2"},
    "another server": {"tracking_uri": "http://other:5000"},
}


def test_each_target_and_identity_has_its_own_folder_without_credentials(tmp_path: Path) -> None:
    common = {"tracking_uri": "http://mlflow:5000", "spool": True, "spool_dir": tmp_path}
    for identity in IDENTITIES.values():
        arguments = {**common, **identity}
        queue = open_queue(resolve(arguments, environment={}), "a user", ProblemLog())
        assert queue.append(DESTINATION, encode_spans("a"), attempted=False, may_have_arrived=False)
    assert len(list(tmp_path.iterdir())) == len(IDENTITIES)
    new_password = {"credentials": ("ada", "planted-3"), "tracking_uri": "http://mlflow:5000"}
    reopened = open_queue(
        resolve({**new_password, "spool": True, "spool_dir": tmp_path}, environment={}), "a user", ProblemLog()
    )
    assert reopened.storage.totals().file_count == 1  # a new password does not make another user
    for path in tmp_path.rglob("*"):
        assert "planted" not in str(path)
        assert path.is_dir() or b"planted" not in path.read_bytes()


@pytest.mark.parametrize(
    ("first", "second", "is_warned"),
    [
        ("planted-1", "planted-2", True),
        ("planted-1", "planted-1", False),
        (("ada", "planted-1"), ("ada", "planted-1"), False),
        (("ada", "planted-1"), ("bob", "planted-1"), False),  # different folders
        (lambda: "planted-1", lambda: "planted-2", True),
        (encode_spans, make_spans, False),
    ],
)
def test_exporters_sharing_a_folder_with_other_secrets_are_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: Any, second: Any, is_warned: bool
) -> None:
    arguments = {"tracking_uri": "http://mlflow:5000", "spool": True, "spool_dir": tmp_path}
    one, other = (
        open_queue(resolve({**arguments, "credentials": credentials}, environment={}), "a user", ProblemLog())
        for credentials in (first, second)
    )
    for queue in (one, other):
        assert queue.append(DESTINATION, encode_spans("a"), attempted=False, may_have_arrived=False)
    for queue in (one, other):
        for entry in [entry for entry in queue.storage.entries() if entry.name in queue.storage.own_names]:
            queue.read(entry)
    assert "told apart" not in caplog.text
    for entry in other.storage.entries():
        other.read(entry)
    assert caplog.text.count("cannot be told apart on disk") == is_warned
    assert "planted" not in caplog.text
    one.close()
    caplog.clear()
    third = open_queue(resolve({**arguments, "credentials": second}, environment={}), "a user", ProblemLog())
    for entry in third.storage.entries():
        third.read(entry)
    assert "told apart" not in caplog.text  # like configure() when it replaces a pipeline
    for queue in (other, third):
        queue.close()
