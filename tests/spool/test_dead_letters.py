"""What is set aside: it keeps its names, and its folders stay small."""

import itertools
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool import dead_letters as dead_letters_module
from mlflow_otlp_exporter._internal.spool.dead_letters import DAMAGED_FOLDER, REJECTED_FOLDER, DeadLetterDirectory
from mlflow_otlp_exporter._internal.spool.file_format import decode_file
from mlflow_otlp_exporter._internal.spool.index import Entry, list_entries
from support.traces import ended, noise

HERE = Destination("team-a", experiment="Bücher & more")
SHARE = 10_000


def spans(count: int = 1, size: int = 0) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in ended(count, attributes=lambda each, _: {"prompt": noise(size, each)})]


@pytest.fixture
def aside() -> DeadLetterDirectory:
    numbers = itertools.count()

    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content)

    return DeadLetterDirectory(8 * SHARE, lambda: f"a-{0:08x}-{next(numbers)}", write)


def words(folder: Path) -> list[str]:
    """What the server said of each request that was refused, oldest first."""
    return [decode_file((folder / entry.name).read_bytes())[0].message for entry in sorted(list_entries(folder))]


def test_what_was_refused_is_kept_with_the_servers_words(aside: DeadLetterDirectory, tmp_path: Path) -> None:
    request = spans(2)
    aside.add_rejected(tmp_path, HERE, request, "400: too long", 7.0)
    [entry] = list_entries(tmp_path / REJECTED_FOLDER)
    header, state, found = decode_file((tmp_path / REJECTED_FOLDER / entry.name).read_bytes())
    assert (header.destination, header.message, header.created_at, found) == (HERE, "400: too long", 7.0, request)
    assert (entry.span_count, entry.created_ns, state.sent_at) == (2, 7 * 10**9, 7.0)
    assert (tmp_path / REJECTED_FOLDER).stat().st_mode & 0o777 == 0o700


def test_a_damaged_request_keeps_its_name_and_a_damaged_file_gets_one(
    aside: DeadLetterDirectory, tmp_path: Path
) -> None:
    entry = Entry(5, 3, "0" * 8, f"b-{0:08x}-0", 2)
    (tmp_path / entry.name).write_bytes(b"ab")
    (tmp_path / "x.journal").write_bytes(b"cde")
    aside.quarantine_request(tmp_path, entry)
    aside.quarantine_file(tmp_path, tmp_path / "x.journal", 7.0)
    assert [
        (entry.created_ns, entry.span_count, entry.size_bytes)
        for entry in sorted(list_entries(tmp_path / DAMAGED_FOLDER))
    ] == [
        (5, 3, 2),
        (7 * 10**9, 0, 3),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [DAMAGED_FOLDER]


def test_of_many_files_the_oldest_go(
    aside: DeadLetterDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_module, "_MAX_FILES", 3)
    for number in range(5):
        aside.add_rejected(tmp_path, HERE, spans(), f"no {number}", float(number))
    assert words(tmp_path / REJECTED_FOLDER) == ["no 2", "no 3", "no 4"]
    for number in range(5):
        (tmp_path / "x").write_bytes(b"x")
        aside.quarantine_file(tmp_path, tmp_path / "x", float(number))
    assert [entry.created_ns for entry in sorted(list_entries(tmp_path / DAMAGED_FOLDER))] == [
        2 * 10**9,
        3 * 10**9,
        4 * 10**9,
    ]


def test_of_many_bytes_the_oldest_go(aside: DeadLetterDirectory, tmp_path: Path) -> None:
    for number in range(5):
        aside.add_rejected(tmp_path, HERE, spans(1, 3_000), f"no {number}", float(number))
    found = words(tmp_path / REJECTED_FOLDER)
    assert found == [f"no {number}" for number in range(5)][-len(found) :]
    assert 1 < len(found) < 5
    assert sum(entry.size_bytes for entry in list_entries(tmp_path / REJECTED_FOLDER)) <= SHARE


def test_what_cannot_be_kept_is_told(aside: DeadLetterDirectory, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        aside.add_rejected(tmp_path / "gone", HERE, spans(), "no", 7.0)
    with pytest.raises(FileNotFoundError):
        aside.quarantine_file(tmp_path, tmp_path / "gone", 7.0)
