"""Dead letters: rejected requests, damaged files, and the bounds of their folders."""

from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import decode_file
from mlflow_otlp_exporter._internal.spool.index import Entry, list_entries
from mlflow_otlp_exporter._internal.spool.storage import ABOUT_FILE, DAMAGED_FOLDER, REJECTED_FOLDER, SpoolStorage
from support.traces import make_traces, random_text

DESTINATION = Destination("team-a", experiment="Bücher & more")
MAX_FOLDER_BYTES = 10_000


def encode_spans(count: int = 1, size: int = 0) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [
        encoder.encode(span)
        for span in make_traces(count, attributes=lambda number, _: {"prompt": random_text(size, number)})
    ]


class DeadLetters(SpoolStorage):
    """A storage of 80,000 bytes in a folder that exists, at a given time."""

    def __init__(self, root: Path) -> None:
        self.now = 7.0
        settings = SpoolSettings(spool=True, spool_dir=str(root), spool_max_bytes=8 * MAX_FOLDER_BYTES)
        super().__init__(settings, "target", "", ProblemLog(), clock=lambda: self.now)
        self.folder = self.ensure_folder()
        (self.folder / ABOUT_FILE).unlink()


@pytest.fixture
def dead_letters(tmp_path: Path) -> DeadLetters:
    return DeadLetters(tmp_path)


def read_messages(folder: Path) -> list[str]:
    """Messages of the rejected requests, oldest first."""
    return [decode_file((folder / entry.name).read_bytes())[0].message for entry in sorted(list_entries(folder))]


def test_add_rejected_keeps_spans_and_server_message(dead_letters: DeadLetters) -> None:
    request = encode_spans(2)
    dead_letters.dead_letter(DESTINATION, request, "400: too long")
    [entry] = list_entries(dead_letters.folder / REJECTED_FOLDER)
    header, state, spans = decode_file((dead_letters.folder / REJECTED_FOLDER / entry.name).read_bytes())
    assert (header.destination, header.message, header.created_at, spans) == (
        DESTINATION,
        "400: too long",
        7.0,
        request,
    )
    assert (entry.span_count, entry.created_ns, state.sent_at) == (2, 7 * 10**9, 7.0)
    assert (dead_letters.folder / REJECTED_FOLDER).stat().st_mode & 0o777 == 0o700


def test_quarantine_keeps_request_name_and_names_other_files(dead_letters: DeadLetters) -> None:
    entry = Entry(5, 3, "0" * 8, f"b-{0:08x}-0", 2)
    (dead_letters.folder / entry.name).write_bytes(b"ab")
    (dead_letters.folder / "x.journal").write_bytes(b"cde")
    [listed] = dead_letters.entries()
    assert listed == entry
    assert dead_letters.checkout(entry) is None
    dead_letters.quarantine_file(dead_letters.folder / "x.journal")
    assert [
        (entry.created_ns, entry.span_count, entry.size_bytes)
        for entry in sorted(list_entries(dead_letters.folder / DAMAGED_FOLDER))
    ] == [
        (5, 3, 2),
        (7 * 10**9, 0, 3),
    ]
    assert [path.name for path in dead_letters.folder.iterdir()] == [DAMAGED_FOLDER]


def test_dead_letters_above_file_limit_remove_oldest(
    dead_letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "_MAX_DEAD_LETTERS", 3)
    for number in range(5):
        dead_letters.now = float(number)
        dead_letters.dead_letter(DESTINATION, encode_spans(), f"no {number}")
    assert read_messages(dead_letters.folder / REJECTED_FOLDER) == ["no 2", "no 3", "no 4"]
    for number in range(5):
        (dead_letters.folder / "x").write_bytes(b"x")
        dead_letters.now = float(number)
        dead_letters.quarantine_file(dead_letters.folder / "x")
    assert [entry.created_ns for entry in sorted(list_entries(dead_letters.folder / DAMAGED_FOLDER))] == [
        2 * 10**9,
        3 * 10**9,
        4 * 10**9,
    ]


def test_dead_letters_above_size_limit_remove_oldest(dead_letters: DeadLetters) -> None:
    for number in range(5):
        dead_letters.now = float(number)
        dead_letters.dead_letter(DESTINATION, encode_spans(1, 3_000), f"no {number}")
    messages = read_messages(dead_letters.folder / REJECTED_FOLDER)
    assert messages == [f"no {number}" for number in range(5)][-len(messages) :]
    assert 1 < len(messages) < 5
    assert sum(entry.size_bytes for entry in list_entries(dead_letters.folder / REJECTED_FOLDER)) <= MAX_FOLDER_BYTES


def test_dead_letter_in_removed_folder_creates_it(dead_letters: DeadLetters) -> None:
    dead_letters.folder.rmdir()
    dead_letters.quarantine_file(dead_letters.folder / "gone")
    dead_letters.dead_letter(DESTINATION, encode_spans(), "no")
    assert read_messages(dead_letters.folder / REJECTED_FOLDER) == ["no"]
    assert not list((dead_letters.folder / DAMAGED_FOLDER).glob("*"))


@pytest.mark.parametrize("is_link", [True, False])
def test_dead_letter_folder_that_is_not_private_is_not_used(
    dead_letters: DeadLetters, tmp_path: Path, is_link: bool
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = dead_letters.folder / REJECTED_FOLDER
    if is_link:
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("precious")
    dead_letters.dead_letter(DESTINATION, encode_spans(), "no")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert is_link or path.read_text() == "precious"


def test_dead_letter_folder_open_to_others_becomes_private(dead_letters: DeadLetters) -> None:
    (dead_letters.folder / REJECTED_FOLDER).mkdir(mode=0o777)
    (dead_letters.folder / REJECTED_FOLDER).chmod(0o777)
    dead_letters.dead_letter(DESTINATION, encode_spans(), "no")
    assert (dead_letters.folder / REJECTED_FOLDER).stat().st_mode & 0o777 == 0o700
