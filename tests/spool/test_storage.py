"""Request files: writing and reading, limits, damage, and errors of the disk."""

import errno
import itertools
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import list_entries
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.children import run_in_fork
from support.special_files import SPECIAL_FILES
from support.traces import make_traces, random_text

DESTINATION = Destination("team-a", experiment="Bücher & more")
DAY = 86_400.0


def encode_spans(count: int = 1, size: int = 0) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    requests_found = make_traces(count, attributes=lambda number, _: {"prompt": random_text(size, number)})
    return [encoder.encode(span) for span in requests_found]


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_storage(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SpoolStorage]:
    """Opens storages in one folder, as several processes do; each lists the folder every time."""
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)

    def make(**changes: Any) -> SpoolStorage:
        settings = SpoolSettings(spool=True, spool_dir=str(tmp_path / "root"))._replace(**changes)
        return SpoolStorage(settings, "target", "http://a, user ada", ProblemLog(), clock=clock)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "root" / "target"


def read_all(storage: SpoolStorage) -> list[list[EncodedSpan]]:
    requests_found = []
    for entry in storage.entries():
        content = storage.checkout(entry)
        if content is not None:
            requests_found.append(content[2])
            storage.release(entry)
    return requests_found


def count_dropped(storage: SpoolStorage) -> int:
    return storage._problem_log.stats.snapshot().dropped


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


# Writing and reading


def test_append_and_checkout_oldest_first(
    make_storage: Callable[..., SpoolStorage], clock: Clock, folder: Path
) -> None:
    storage, requests = make_storage(), [encode_spans(number) for number in (1, 2, 3)]
    for number, request in enumerate(requests):
        clock.now += 1
        assert storage.append(DESTINATION, request, may_have_arrived=number == 2, sent_at=5.0 * number)
    entries = storage.entries()
    assert [entry.span_count for entry in entries] == [1, 2, 3]
    assert len({entry.destination_hash for entry in entries}) == 1
    for entry, request in zip(entries, requests, strict=True):
        content = storage.checkout(entry)
        assert content is not None
        header, state, requests_found = content
        assert requests_found == request
        assert (header.destination, header.span_count) == (DESTINATION, len(request))
        assert header.trace_ids == tuple(span.trace_id for span in request)
    assert (header.created_at, state) == (clock.now, DeliveryState(1, may_have_arrived=True, sent_at=10.0))
    assert storage.entries() == []  # checked out
    storage.release(entries[1])
    assert storage.entries() == [entries[1]]
    assert storage.totals()[:2] == (3, 6)
    for entry in entries:
        storage.remove(entry)
    assert list_files(folder) == []
    assert storage.totals() == (0, 0, 0, 0.0)


def test_files_are_private_while_they_are_written(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    modes: list[int] = []
    write = os.write

    def record_mode(descriptor: int, content: bytes) -> int:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        return write(descriptor, content)

    before = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", record_mode)
            assert make_storage().append(DESTINATION, encode_spans())
    finally:
        os.umask(before)
    assert modes == [0o600] * len(modes)
    assert [path.stat().st_mode & 0o777 for path in list_files(folder)] == [0o600]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "about.txt").read_text() == "http://a, user ada"


def test_other_process_sees_request_and_its_state(make_storage: Callable[..., SpoolStorage]) -> None:
    first, second = make_storage(), make_storage()
    assert first.append(DESTINATION, encode_spans())
    [entry] = second.entries()
    second.write_state(entry, DeliveryState(3, may_have_arrived=True, sent_at=7.0))
    content = first.checkout(entry)
    assert content is not None
    assert content[1] == DeliveryState(3, may_have_arrived=True, sent_at=7.0)
    second.remove(entry)
    first.release(entry)
    assert first.entries() == []
    assert first.checkout(entry) is None
    first.write_state(entry, DeliveryState())
    first.remove(entry)
    assert (count_dropped(first), count_dropped(second)) == (0, 0)


def test_pending_span_count_excludes_other_processes(make_storage: Callable[..., SpoolStorage]) -> None:
    first, second = make_storage(), make_storage()
    assert first.append(DESTINATION, encode_spans(2))
    assert second.append(DESTINATION, encode_spans(5))
    assert first.append(DESTINATION, encode_spans(3))
    assert (first.pending_span_count(), second.pending_span_count()) == (5, 5)
    second.remove(second.entries()[0])
    assert first.pending_span_count() == 3
    assert run_in_fork(lambda: first.pending_span_count() == 0 and first.append(DESTINATION, encode_spans(4)))
    assert (first.pending_span_count(), first.totals().span_count) == (3, 12)


def test_storage_before_first_append_creates_nothing(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storage = make_storage()
    assert storage.entries() == []
    storage.remove_temporary_files()
    storage.remove_expired()
    assert not folder.parent.exists()


# Limits


def test_size_limit_drops_oldest_requests(
    make_storage: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, requests = make_storage(spool_max_bytes=35_000), [encode_spans(2, 5_000) for _ in range(10)]
    for request in requests:
        assert storage.append(DESTINATION, request)
        assert sum(path.stat().st_size for path in list_files(folder)) <= 35_000
    retained = read_all(storage)
    assert retained == requests[-len(retained) :]
    assert 3 <= len(retained) < 10
    assert count_dropped(storage) == 2 * (10 - len(retained))
    [line] = caplog.messages
    assert "the spool is full" in line
    assert "oldest" in line


def test_size_limit_counts_requests_of_other_processes(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storages = [make_storage(spool_max_bytes=35_000) for _ in range(4)]
    for number in range(12):
        assert storages[number % 4].append(DESTINATION, encode_spans(2, 5_000))
        assert sum(path.stat().st_size for path in list_files(folder)) <= 35_000


def test_size_limit_keeps_checked_out_request(make_storage: Callable[..., SpoolStorage]) -> None:
    storage = make_storage(spool_max_bytes=35_000)
    first = encode_spans(2, 5_000)
    assert storage.append(DESTINATION, first)
    [entry] = storage.entries()
    assert storage.checkout(entry) is not None
    for _ in range(9):
        assert storage.append(DESTINATION, encode_spans(2, 5_000))
    storage.release(entry)
    assert read_all(storage)[0] == first


def test_request_above_size_limit_drops_no_other(
    make_storage: Callable[..., SpoolStorage], caplog: pytest.LogCaptureFixture
) -> None:
    storage = make_storage(spool_max_bytes=35_000)
    assert storage.append(DESTINATION, encode_spans())
    assert not storage.append(DESTINATION, encode_spans(1, 60_000))
    assert len(read_all(storage)) == 1
    assert count_dropped(storage) == 0
    assert "larger than the spool may be" in caplog.text


def test_request_above_size_limit_keeps_no_other_in_memory(
    make_storage: Callable[..., SpoolStorage], caplog: pytest.LogCaptureFixture
) -> None:
    storage, small = make_storage(spool_max_bytes=35_000), encode_spans()
    for _ in range(3):
        assert not storage.append(DESTINATION, encode_spans(1, 60_000))
        assert storage.append(DESTINATION, small)
    assert read_all(storage) == [small] * 3
    [line] = caplog.messages
    assert "larger than the spool may be" in line


def test_file_limit_drops_oldest_requests(
    make_storage: Callable[..., SpoolStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MAX_FILES", 3)
    storage, requests = make_storage(), [encode_spans() for _ in range(5)]
    for request in requests:
        assert storage.append(DESTINATION, request)
    assert read_all(storage) == requests[2:]
    assert count_dropped(storage) == 2


def test_remove_expired_drops_old_requests(
    make_storage: Callable[..., SpoolStorage], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    storage, new = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans(3))
    clock.now += 4 * DAY
    assert storage.append(DESTINATION, new)
    storage.remove_expired()
    assert count_dropped(storage) == 0
    clock.now += 4 * DAY
    storage.remove_expired()
    assert read_all(storage) == [new]
    assert count_dropped(storage) == 3
    assert "more than 7 days" in caplog.text


def set_disk_usage(monkeypatch: pytest.MonkeyPatch, total: int, free: Callable[[], int]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(total, total - free(), free()))


@pytest.mark.parametrize(("total", "floor"), [(100 << 30, 256 << 20), (1 << 30, (1 << 30) // 20)])
def test_append_keeps_reserved_disk_space_free(
    make_storage: Callable[..., SpoolStorage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    total: int,
    floor: int,
) -> None:
    storage = make_storage()
    set_disk_usage(monkeypatch, total, lambda: floor)
    assert not storage.append(DESTINATION, encode_spans())
    assert "of the disk are free" in caplog.text
    caplog.clear()
    set_disk_usage(monkeypatch, total, lambda: floor + 10_000)
    storage._retry_at = 0.0
    requests = [encode_spans(size=2000) for _ in range(3)]
    for request in requests:
        assert storage.append(DESTINATION, request)
    set_disk_usage(monkeypatch, total, lambda: floor - 5)
    newest = encode_spans(size=1000)
    assert not storage.append(DESTINATION, newest)  # memory has room
    assert read_all(storage) == requests
    storage._retry_at = 0.0
    storage.is_memory_full = lambda: True
    assert storage.append(DESTINATION, newest)  # replaces the oldest
    assert read_all(storage) == [*requests[1:], newest]
    assert count_dropped(storage) == 1


# Clocks


def test_order_survives_clock_set_back(make_storage: Callable[..., SpoolStorage], clock: Clock) -> None:
    first, requests = make_storage(), [encode_spans() for _ in range(4)]
    assert first.append(DESTINATION, requests[0])
    clock.now -= 400 * DAY
    assert first.append(DESTINATION, requests[1])
    second = make_storage()
    assert second.append(DESTINATION, requests[2])
    assert second.append(DESTINATION, requests[3])
    second.remove_expired()
    assert read_all(make_storage()) == requests
    clock.now += 406 * DAY
    second.remove_expired()
    assert read_all(second) == requests
    clock.now += 2 * DAY
    second.remove_expired()
    assert read_all(second) == []


# Files in the folder


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "foreign"])
def test_damaged_file_is_quarantined_and_blocks_no_other(
    make_storage: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    storage, good = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans(3))
    assert storage.append(DESTINATION, good)
    [path, _] = list_files(folder)
    content = path.read_bytes()
    path.write_bytes(
        {"cut off": content[:-1], "changed": content[:-1] + b"x", "empty": b"", "foreign": b"PK\x03\x04" * 50}[damage]
    )
    assert read_all(storage) == [good]
    assert read_all(storage) == [good]
    assert [path.name for path in (folder / "damaged").iterdir()] == [path.name]
    assert count_dropped(storage) == 3
    [line] = caplog.messages
    assert "damaged" in line


def test_dead_letter_keeps_spans_and_server_message(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storage, request = make_storage(), encode_spans(2)
    storage.dead_letter(DESTINATION, request, "400: the session is too long")
    [entry] = list_entries(folder / "refused")
    content = (folder / "refused" / entry.name).read_bytes()
    header, _, requests_found = spool_file.decode_file(content)
    assert (header.destination, header.message, requests_found) == (
        DESTINATION,
        "400: the session is too long",
        request,
    )
    assert storage.entries() == []


def test_files_of_another_version_are_not_changed(
    make_storage: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, good = make_storage(), encode_spans()
    for _ in range(2):
        assert storage.append(DESTINATION, encode_spans())
    assert storage.append(DESTINATION, good)
    for path in list_files(folder)[:2]:
        content = bytearray(path.read_bytes())
        content[7] = 9
        path.write_bytes(content)
    assert read_all(storage) == [good]
    assert len(storage.entries()) == 1
    assert len(list_files(folder)) == 3
    assert count_dropped(storage) == 0
    [line] = caplog.messages
    assert "version 9" in line


def test_foreign_files_are_ignored(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storage = make_storage(spool_max_bytes=2_000)
    assert storage.append(DESTINATION, encode_spans())
    name = list_files(folder)[0].name
    foreign = [folder / other for other in ("notes.txt", "x.otlp", f"{name}.bak", f"x{name}", "00000000.tmp")]
    for path in foreign:
        path.write_bytes(bytes(5_000))
    (folder / "folder.otlp").mkdir()
    for _ in range(5):
        assert storage.append(DESTINATION, encode_spans())
    read_all(storage)
    storage.remove_temporary_files()
    assert all(path.stat().st_size == 5_000 for path in foreign)


def test_temporary_file_is_removed_after_an_hour(
    make_storage: Callable[..., SpoolStorage], folder: Path, clock: Clock
) -> None:
    storage = make_storage()
    assert storage.append(DESTINATION, encode_spans())
    path = folder / f"{list_files(folder)[0].name}.1a-0123abcd.tmp"
    path.write_bytes(b"half")
    os.utime(path, (clock.now, clock.now))
    storage.remove_temporary_files()
    assert path.exists()
    clock.now += 4000
    storage.remove_temporary_files()
    assert not path.exists()
    assert len(storage.entries()) == 1


# Errors of the disk


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The monotonic clock of the module."""
    clock = Clock()

    class Time:
        monotonic = staticmethod(clock)

    monkeypatch.setattr(storage_module, "time", Time)
    return clock


FAULTS: dict[str, tuple[str, int]] = {
    "full": ("write", errno.ENOSPC),
    "quota": ("write", errno.EDQUOT),
    "input/output error": ("write", errno.EIO),
    "read-only": ("open", errno.EROFS),
    "no permission": ("open", errno.EACCES),
    "no descriptors": ("open", errno.EMFILE),
    "rename": ("replace", errno.EIO),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_disk_error_is_logged_once_and_retried(
    make_storage: Callable[..., SpoolStorage], folder: Path, now: Clock, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    storage, name, number = make_storage(), *FAULTS[fault]
    attempt_times: list[float] = []

    def fail(*_: object, **__: object) -> None:
        attempt_times.append(now.now)
        raise OSError(number, os.strerror(number))

    caplog.set_level(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail)
        for _ in range(600):
            assert not storage.append(DESTINATION, encode_spans())
            now.now += 0.5
    assert 5 < len(set(attempt_times)) < 20  # after 1 s, 2 s, 4 s up to a minute
    assert sum("cannot be used" in line for line in caplog.messages) < 7  # at once, then a summary each minute
    assert caplog.messages[0].startswith(f"Spool in {folder.parent}")
    assert os.strerror(number) in caplog.messages[0]
    storage._problem_log.flush()
    assert "span]" not in caplog.text  # each attempt was of the same span
    assert "more spans" not in caplog.text
    assert count_dropped(storage) == 0
    now.now += 60
    assert storage.append(DESTINATION, encode_spans())
    assert "Spool recovered" in caplog.messages[-1]
    assert len(read_all(storage)) == 1
    assert list(folder.glob("*.tmp")) == []


def test_removed_folder_is_created_again(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storage, request = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans())
    [entry] = storage.entries()
    shutil.rmtree(folder.parent)
    assert storage.checkout(entry) is None
    assert storage.entries() == []
    assert storage.append(DESTINATION, request)
    assert read_all(storage) == [request]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_folder_removed_during_append_is_created_again(
    make_storage: Callable[..., SpoolStorage], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, request = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans())
    usage = shutil.disk_usage

    def remove(path: Path) -> object:
        requests_found = usage(path)
        shutil.rmtree(folder)
        monkeypatch.setattr(shutil, "disk_usage", usage)
        return requests_found

    monkeypatch.setattr(shutil, "disk_usage", remove)
    assert storage.append(DESTINATION, request)
    assert read_all(storage) == [request]


def test_unreadable_or_unremovable_file_blocks_no_other(
    make_storage: Callable[..., SpoolStorage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage, requests = make_storage(), [encode_spans(number) for number in (1, 2, 3)]
    for request in requests:
        assert storage.append(DESTINATION, request)
    [first, second, _] = storage.entries()
    read, unlink = read_regular_file, Path.unlink

    def fail_to_read(path: Path, max_bytes: int) -> bytes:
        if path.name == first.name:
            raise PermissionError(errno.EACCES, "no")
        return read(path, max_bytes)

    def fail_to_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == second.name:
            raise PermissionError(errno.EACCES, "no")
        unlink(path, missing_ok)

    monkeypatch.setattr(storage_module, "read_regular_file", fail_to_read)
    monkeypatch.setattr(Path, "unlink", fail_to_unlink)
    assert read_all(storage) == requests[1:]
    storage.remove(second)
    assert read_all(storage) == requests[2:]
    assert "cannot be read" in caplog.text
    assert "cannot be removed" in caplog.text
    assert count_dropped(storage) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_full_disk_drops_oldest_and_recovers(
    make_storage: Callable[..., SpoolStorage], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make_storage(spool_dir=str(small_disk))
    storage.is_memory_full = lambda: True
    requests = [encode_spans(2, 15_000) for _ in range(20)]
    for request in requests:
        assert storage.append(DESTINATION, request)
    retained = read_all(storage)
    assert retained == requests[-len(retained) :]
    assert 3 < len(retained) < 20
    assert count_dropped(storage) == 2 * (20 - len(retained))
    for entry in storage.entries():
        storage.remove(entry)
    with suppress(OSError), (small_disk / "others").open("wb", buffering=0) as file:
        while file.write(bytes(1000)):
            pass
    assert not storage.append(DESTINATION, encode_spans(2, 15_000))
    assert "cannot be used" in caplog.text
    (small_disk / "others").unlink()
    storage._retry_at = 0.0
    assert storage.append(DESTINATION, requests[0])
    assert "Spool recovered" in caplog.messages[-1]


def test_read_only_disk_keeps_serving_requests(
    make_storage: Callable[..., SpoolStorage], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make_storage(spool_dir=str(small_disk))
    assert storage.append(DESTINATION, encode_spans())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert not storage.append(DESTINATION, encode_spans())
    assert "Read-only file system" in caplog.text
    [entry] = storage.entries()
    assert storage.checkout(entry) is not None
    storage.remove(entry)
    assert storage.entries() == []
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    storage._retry_at = 0.0
    assert storage.append(DESTINATION, encode_spans())


def test_unusable_spool_dir_is_logged_once(
    make_storage: Callable[..., SpoolStorage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    storage = make_storage(spool_dir=str(tmp_path / "file"))
    for _ in range(3):
        assert not storage.append(DESTINATION, encode_spans())
    assert storage.entries() == []
    storage.dead_letter(DESTINATION, encode_spans(), "no")
    [line] = caplog.messages
    assert "MLFLOW_OTLP_SPOOL_DIR" in line


def test_concurrent_append_and_checkout_loses_nothing(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    storage = make_storage()
    requests_read: list[Sequence[EncodedSpan]] = []
    requests = [encode_spans() for _ in range(200)]
    done = threading.Event()

    def put(part: list[list[EncodedSpan]]) -> None:
        for request in part:
            assert storage.append(DESTINATION, request)

    def read_requests() -> None:
        for _ in itertools.count():
            finished = done.is_set()
            entries = storage.entries()
            for entry in entries:
                content = storage.checkout(entry)
                assert content is not None
                requests_read.append(content[2])
                storage.remove(entry)
            if finished and not entries:
                return

    writers = [threading.Thread(target=put, args=(requests[start::4],)) for start in range(4)]
    reader = threading.Thread(target=read_requests)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert sorted(request[0].span_id for request in requests_read) == sorted(request[0].span_id for request in requests)
    assert list_files(folder) == []


# Files that are not what they should be


@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_special_file_is_skipped_and_blocks_no_other(
    make_storage: Callable[..., SpoolStorage],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    create: Callable[[Path], object],
    reason: str,
) -> None:
    storage, good = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans(3))
    assert storage.append(DESTINATION, good)
    monkeypatch.chdir(folder)
    [path, _] = list_files(folder)
    path.unlink()
    create(path)
    assert read_all(storage) == [good]
    assert read_all(storage) == [good]
    assert storage.totals().file_count == 1
    assert caplog.messages == [f"Spool file {path.name} in {folder} is skipped: {reason}. [MLO-605]"]
    assert storage.append(DESTINATION, good)
    [entry, _] = storage.entries()
    (folder / entry.name).unlink()
    os.mkfifo(folder / entry.name)
    storage.write_state(entry, DeliveryState(1))  # replaced since it was listed
    assert storage.checkout(entry) is None
    assert (folder / entry.name).is_fifo()
    victim = folder / "victim"
    assert not victim.exists() or victim.read_text() == "precious"


def test_file_of_another_user_is_skipped(
    make_storage: Callable[..., SpoolStorage],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = make_storage()
    assert storage.append(DESTINATION, encode_spans())
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert storage.entries() == []
    assert "it belongs to another user" in caplog.text
    assert len(list_files(folder)) == 1


def test_huge_file_neither_fills_spool_nor_memory(
    make_storage: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, good = make_storage(), encode_spans(2)
    assert storage.append(DESTINATION, encode_spans(3))
    os.truncate(list_files(folder)[0], 2 << 30)  # sparse
    for _ in range(3):
        assert storage.append(DESTINATION, good)
    assert read_all(storage) == [good] * 3
    assert count_dropped(storage) == 0
    [line] = caplog.messages
    assert "it is larger than 269484032 bytes" in line


@pytest.mark.parametrize(
    "name",
    [
        f"{'9' * 20}-3-01234567-1a-0123abcd-0.otlp",  # the names after it would have another digit
        f"{5:020d}-003-01234567-1a-0123abcd-0.otlp",
        f"{5:019d}\N{ARABIC-INDIC DIGIT FIVE}-3-01234567-1a-0123abcd-0.otlp",
    ],
)
def test_impossible_name_is_skipped_and_blocks_no_other(
    make_storage: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    storage, good = make_storage(), encode_spans(2)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"x")
    assert storage.append(DESTINATION, good)
    assert storage.append(DESTINATION, good)
    assert read_all(storage) == [good, good]
    assert storage.totals().file_count == 2
    assert caplog.messages == [f"Spool file {name} in {folder} is skipped: it has an impossible name. [MLO-605]"]


def test_latest_possible_time_in_a_name_leaves_names_of_the_same_length(
    make_storage: Callable[..., SpoolStorage], folder: Path
) -> None:
    storage, good = make_storage(), encode_spans(2)
    folder.mkdir(parents=True)
    (folder / f"{10**19 - 1:020d}-3-01234567-1a-0123abcd-0.otlp").write_bytes(b"x")
    assert storage.append(DESTINATION, good)
    assert storage.append(DESTINATION, good)
    assert read_all(storage) == [good, good]


def test_modes_that_were_opened_are_restored(make_storage: Callable[..., SpoolStorage], folder: Path) -> None:
    assert make_storage().append(DESTINATION, encode_spans())
    for storage in (make_storage(), make_storage()):
        folder.chmod(0o777)
        list_files(folder)[0].chmod(0o666)
        assert storage.find_folder() == folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(read_all(storage)) == 1
        assert list_files(folder)[0].stat().st_mode & 0o777 == 0o600
        folder.chmod(0o777)
        assert storage.find_folder() == folder
        assert folder.stat().st_mode & 0o777 == 0o700


def test_folder_replaced_by_link_is_not_used(
    make_storage: Callable[..., SpoolStorage], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = make_storage()
    assert storage.append(DESTINATION, encode_spans())
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert not storage.append(DESTINATION, encode_spans())
    assert storage.find_folder() is None
    assert "is not a directory" in caplog.text
    assert len(list_files(tmp_path / "elsewhere")) == 1


@pytest.mark.parametrize("create", [create for create, _ in SPECIAL_FILES])
def test_special_file_as_about_or_temporary_file_blocks_nothing(
    make_storage: Callable[..., SpoolStorage],
    folder: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    create: Callable[[Path], object],
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.chdir(folder)
    create(folder / "about.txt")
    create_again = Path.mkdir if create is Path.mkdir else os.mkfifo
    temporary = folder / "x.1a-0123abcd.tmp"
    create_again(temporary)
    abandoned = folder / "y.1a-0123abcd.tmp"
    abandoned.write_bytes(b"half")
    storage = make_storage()
    assert storage.append(DESTINATION, encode_spans())
    clock.now = abandoned.stat().st_mtime + 4000
    storage.remove_temporary_files()
    assert not abandoned.exists()
    assert temporary.exists() == (create is Path.mkdir)
    victim = folder / "victim"
    assert not victim.exists() or victim.read_text() == "precious"
