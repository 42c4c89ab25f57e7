"""Dead letters: rejected requests, damaged files, and the bounds of their folders."""

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
from support.traces import make_traces, random_text

DESTINATION = Destination("team-a", experiment="Bücher & more")
MAX_FOLDER_BYTES = 10_000


def encode_spans(count: int = 1, size: int = 0) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [
        encoder.encode(span)
        for span in make_traces(count, attributes=lambda number, _: {"prompt": random_text(size, number)})
    ]


@pytest.fixture
def dead_letters() -> DeadLetterDirectory:
    numbers = itertools.count()

    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content)

    return DeadLetterDirectory(8 * MAX_FOLDER_BYTES, lambda: f"a-{0:08x}-{next(numbers)}", write)


def read_messages(folder: Path) -> list[str]:
    """Messages of the rejected requests, oldest first."""
    return [decode_file((folder / entry.name).read_bytes())[0].message for entry in sorted(list_entries(folder))]


def test_add_rejected_keeps_spans_and_server_message(dead_letters: DeadLetterDirectory, tmp_path: Path) -> None:
    request = encode_spans(2)
    dead_letters.add_rejected(tmp_path, DESTINATION, request, "400: too long", 7.0)
    [entry] = list_entries(tmp_path / REJECTED_FOLDER)
    header, state, spans = decode_file((tmp_path / REJECTED_FOLDER / entry.name).read_bytes())
    assert (header.destination, header.message, header.created_at, spans) == (
        DESTINATION,
        "400: too long",
        7.0,
        request,
    )
    assert (entry.span_count, entry.created_ns, state.sent_at) == (2, 7 * 10**9, 7.0)
    assert (tmp_path / REJECTED_FOLDER).stat().st_mode & 0o777 == 0o700


def test_quarantine_keeps_request_name_and_names_other_files(dead_letters: DeadLetterDirectory, tmp_path: Path) -> None:
    entry = Entry(5, 3, "0" * 8, f"b-{0:08x}-0", 2)
    (tmp_path / entry.name).write_bytes(b"ab")
    (tmp_path / "x.journal").write_bytes(b"cde")
    dead_letters.quarantine_request(tmp_path, entry)
    dead_letters.quarantine_file(tmp_path, tmp_path / "x.journal", 7.0)
    assert [
        (entry.created_ns, entry.span_count, entry.size_bytes)
        for entry in sorted(list_entries(tmp_path / DAMAGED_FOLDER))
    ] == [
        (5, 3, 2),
        (7 * 10**9, 0, 3),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [DAMAGED_FOLDER]


def test_dead_letters_above_file_limit_remove_oldest(
    dead_letters: DeadLetterDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_module, "_MAX_FILES", 3)
    for number in range(5):
        dead_letters.add_rejected(tmp_path, DESTINATION, encode_spans(), f"no {number}", float(number))
    assert read_messages(tmp_path / REJECTED_FOLDER) == ["no 2", "no 3", "no 4"]
    for number in range(5):
        (tmp_path / "x").write_bytes(b"x")
        dead_letters.quarantine_file(tmp_path, tmp_path / "x", float(number))
    assert [entry.created_ns for entry in sorted(list_entries(tmp_path / DAMAGED_FOLDER))] == [
        2 * 10**9,
        3 * 10**9,
        4 * 10**9,
    ]


def test_dead_letters_above_size_limit_remove_oldest(dead_letters: DeadLetterDirectory, tmp_path: Path) -> None:
    for number in range(5):
        dead_letters.add_rejected(tmp_path, DESTINATION, encode_spans(1, 3_000), f"no {number}", float(number))
    messages = read_messages(tmp_path / REJECTED_FOLDER)
    assert messages == [f"no {number}" for number in range(5)][-len(messages) :]
    assert 1 < len(messages) < 5
    assert sum(entry.size_bytes for entry in list_entries(tmp_path / REJECTED_FOLDER)) <= MAX_FOLDER_BYTES


def test_dead_letters_in_missing_folder_raise(dead_letters: DeadLetterDirectory, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dead_letters.add_rejected(tmp_path / "gone", DESTINATION, encode_spans(), "no", 7.0)
    with pytest.raises(FileNotFoundError):
        dead_letters.quarantine_file(tmp_path, tmp_path / "gone", 7.0)
