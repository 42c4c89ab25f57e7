"""The spool: what is in it, how much may be, and what it does when the disk does not do what it should."""

import errno
import itertools
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool import storage as storage_module
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import list_entries
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from support.children import in_child
from support.traces import ended, noise

HERE = Destination("team-a", experiment="Bücher & more")
DAY = 86_400.0


def spans(count: int = 1, size: int = 0) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    found = ended(count, attributes=lambda number, _: {"prompt": noise(size, number)})
    return [encoder.encode(span) for span in found]


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SpoolStorage]:
    """Makes spools in one folder, as several processes have them; each looks at the disk every time."""
    monkeypatch.setattr(storage_module, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "_REFRESH_FACTOR", 0.0)

    def make(**changes: Any) -> SpoolStorage:
        settings = replace(SpoolSettings(spool=True, spool_dir=str(tmp_path / "root")), **changes)
        return SpoolStorage(settings, "target", "http://a, user ada", ProblemLog(), clock=clock)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "root" / "target"


def held(spool: SpoolStorage) -> list[list[EncodedSpan]]:
    found = []
    for entry in spool.entries():
        loaded = spool.checkout(entry)
        if loaded is not None:
            found.append(loaded[2])
            spool.release(entry)
    return found


def refused(spool: SpoolStorage) -> int:
    return spool._report.stats().dropped


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.otlp"))


# In and out


def test_what_is_put_in_comes_out_oldest_first(made: Callable[..., SpoolStorage], clock: Clock, folder: Path) -> None:
    spool, requests = made(), [spans(number) for number in (1, 2, 3)]
    for number, request in enumerate(requests):
        clock.now += 1
        assert spool.append(HERE, request, uncertain=number == 2, sent_at=5.0 * number)
    entries = spool.entries()
    assert [entry.span_count for entry in entries] == [1, 2, 3]
    assert len({entry.destination_hash for entry in entries}) == 1
    for entry, request in zip(entries, requests, strict=True):
        loaded = spool.checkout(entry)
        assert loaded is not None
        header, state, found = loaded
        assert found == request
        assert (header.destination, header.span_count) == (HERE, len(request))
        assert header.trace_ids == tuple(span.trace_id for span in request)
    assert (header.created_at, state) == (clock.now, DeliveryState(1, uncertain=True, sent_at=10.0))
    assert spool.entries() == []  # in hand
    spool.release(entries[1])
    assert spool.entries() == [entries[1]]
    assert spool.totals()[:2] == (3, 6)
    for entry in entries:
        spool.remove(entry)
    assert files(folder) == []
    assert spool.totals() == (0, 0, 0, 0.0)


def test_files_are_private_from_the_start(made: Callable[..., SpoolStorage], folder: Path) -> None:
    seen: list[int] = []
    write = os.write

    def look(descriptor: int, content: bytes) -> int:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        return write(descriptor, content)

    before = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", look)
            assert made().append(HERE, spans())
    finally:
        os.umask(before)
    assert seen == [0o600] * len(seen)
    assert [path.stat().st_mode & 0o777 for path in files(folder)] == [0o600]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "about.txt").read_text() == "http://a, user ada"


def test_another_process_sees_it_and_what_is_noted_on_it(made: Callable[..., SpoolStorage]) -> None:
    first, second = made(), made()
    assert first.append(HERE, spans())
    [entry] = second.entries()
    second.write_state(entry, DeliveryState(3, uncertain=True, sent_at=7.0))
    loaded = first.checkout(entry)
    assert loaded is not None
    assert loaded[1] == DeliveryState(3, uncertain=True, sent_at=7.0)
    second.remove(entry)
    first.release(entry)
    assert first.entries() == []
    assert first.checkout(entry) is None
    first.write_state(entry, DeliveryState())
    first.remove(entry)
    assert (refused(first), refused(second)) == (0, 0)


def test_what_this_process_put_in_is_told_apart(made: Callable[..., SpoolStorage]) -> None:
    first, second = made(), made()
    assert first.append(HERE, spans(2))
    assert second.append(HERE, spans(5))
    assert first.append(HERE, spans(3))
    assert (first.pending_span_count(), second.pending_span_count()) == (5, 5)
    second.remove(second.entries()[0])
    assert first.pending_span_count() == 3
    assert in_child(lambda: first.pending_span_count() == 0 and first.append(HERE, spans(4)))
    assert (first.pending_span_count(), first.totals().span_count) == (3, 12)


def test_nothing_is_made_before_something_is_put_in(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spool = made()
    assert spool.entries() == []
    spool.remove_temporary_files()
    spool.remove_expired()
    assert not folder.parent.exists()


# Bounds


def test_at_the_bound_of_bytes_the_oldest_go_first(
    made: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, requests = made(spool_max_bytes=35_000), [spans(2, 5_000) for _ in range(10)]
    for request in requests:
        assert spool.append(HERE, request)
        assert sum(path.stat().st_size for path in files(folder)) <= 35_000
    kept = held(spool)
    assert kept == requests[-len(kept) :]
    assert 3 <= len(kept) < 10
    assert refused(spool) == 2 * (10 - len(kept))
    [line] = caplog.messages
    assert "the spool is full" in line
    assert "oldest" in line


def test_the_bound_counts_what_other_processes_put_in(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spools = [made(spool_max_bytes=35_000) for _ in range(4)]
    for number in range(12):
        assert spools[number % 4].append(HERE, spans(2, 5_000))
        assert sum(path.stat().st_size for path in files(folder)) <= 35_000


def test_what_is_in_hand_is_not_given_up(made: Callable[..., SpoolStorage]) -> None:
    spool = made(spool_max_bytes=35_000)
    first = spans(2, 5_000)
    assert spool.append(HERE, first)
    [entry] = spool.entries()
    assert spool.checkout(entry) is not None
    for _ in range(9):
        assert spool.append(HERE, spans(2, 5_000))
    spool.release(entry)
    assert held(spool)[0] == first


def test_a_request_that_is_larger_than_the_bound_displaces_nothing(
    made: Callable[..., SpoolStorage], caplog: pytest.LogCaptureFixture
) -> None:
    spool = made(spool_max_bytes=35_000)
    assert spool.append(HERE, spans())
    assert not spool.append(HERE, spans(1, 60_000))
    assert len(held(spool)) == 1
    assert refused(spool) == 0
    assert "larger than the spool may be" in caplog.text


def test_the_bound_of_files(made: Callable[..., SpoolStorage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_MAX_FILES", 3)
    spool, requests = made(), [spans() for _ in range(5)]
    for request in requests:
        assert spool.append(HERE, request)
    assert held(spool) == requests[2:]
    assert refused(spool) == 2


def test_what_is_too_old_is_given_up(
    made: Callable[..., SpoolStorage], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    spool, new = made(), spans(2)
    assert spool.append(HERE, spans(3))
    clock.now += 4 * DAY
    assert spool.append(HERE, new)
    spool.remove_expired()
    assert refused(spool) == 0
    clock.now += 4 * DAY
    spool.remove_expired()
    assert held(spool) == [new]
    assert refused(spool) == 3
    assert "more than 7 days" in caplog.text


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: Callable[[], int]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(total, total - free(), free()))


@pytest.mark.parametrize(("total", "floor"), [(100 << 30, 256 << 20), (1 << 30, (1 << 30) // 20)])
def test_the_disk_is_never_filled(
    made: Callable[..., SpoolStorage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    total: int,
    floor: int,
) -> None:
    spool = made()
    disk(monkeypatch, total, lambda: floor)
    assert not spool.append(HERE, spans())
    assert "of the disk are free" in caplog.text
    caplog.clear()
    disk(monkeypatch, total, lambda: floor + 10_000)
    spool._retry_at = 0.0
    requests = [spans(size=2000) for _ in range(3)]
    for request in requests:
        assert spool.append(HERE, request)
    disk(monkeypatch, total, lambda: floor - 5)
    newest = spans(size=1000)
    assert not spool.append(HERE, newest)  # there is room in memory
    assert held(spool) == requests
    spool._retry_at = 0.0
    spool.is_memory_full = lambda: True
    assert spool.append(HERE, newest)  # it takes the place of the oldest
    assert held(spool) == [*requests[1:], newest]
    assert refused(spool) == 1


# Clocks


def test_the_order_stands_when_the_clock_is_set_back(made: Callable[..., SpoolStorage], clock: Clock) -> None:
    first, requests = made(), [spans() for _ in range(4)]
    assert first.append(HERE, requests[0])
    clock.now -= 400 * DAY
    assert first.append(HERE, requests[1])
    second = made()
    assert second.append(HERE, requests[2])
    assert second.append(HERE, requests[3])
    second.remove_expired()
    assert held(made()) == requests
    clock.now += 406 * DAY
    second.remove_expired()
    assert held(second) == requests
    clock.now += 2 * DAY
    second.remove_expired()
    assert held(second) == []


# What lies there


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "foreign"])
def test_damaged_files_are_set_aside_and_block_nothing(
    made: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    spool, good = made(), spans(2)
    assert spool.append(HERE, spans(3))
    assert spool.append(HERE, good)
    [path, _] = files(folder)
    content = path.read_bytes()
    path.write_bytes(
        {"cut off": content[:-1], "changed": content[:-1] + b"x", "empty": b"", "foreign": b"PK\x03\x04" * 50}[damage]
    )
    assert held(spool) == [good]
    assert held(spool) == [good]
    assert [each.name for each in (folder / "damaged").iterdir()] == [path.name]
    assert refused(spool) == 3
    [line] = caplog.messages
    assert "damaged" in line


def test_what_was_refused_is_kept_with_what_the_server_said(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spool, request = made(), spans(2)
    spool.dead_letter(HERE, request, "400: the session is too long")
    [entry] = list_entries(folder / "refused")
    content = (folder / "refused" / entry.name).read_bytes()
    header, _, found = spool_file.decode_file(content)
    assert (header.destination, header.message, found) == (HERE, "400: the session is too long", request)
    assert spool.entries() == []


def test_files_of_another_version_are_left_alone(
    made: Callable[..., SpoolStorage], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, good = made(), spans()
    for _ in range(2):
        assert spool.append(HERE, spans())
    assert spool.append(HERE, good)
    for path in files(folder)[:2]:
        content = bytearray(path.read_bytes())
        content[7] = 9
        path.write_bytes(content)
    assert held(spool) == [good]
    assert len(spool.entries()) == 1
    assert len(files(folder)) == 3
    assert refused(spool) == 0
    [line] = caplog.messages
    assert "version 9" in line


def test_foreign_files_are_nobodys_business(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spool = made(spool_max_bytes=2_000)
    assert spool.append(HERE, spans())
    name = files(folder)[0].name
    foreign = [folder / other for other in ("notes.txt", "x.otlp", f"{name}.bak", f"x{name}", "00000000.tmp")]
    for path in foreign:
        path.write_bytes(bytes(5_000))
    (folder / "folder.otlp").mkdir()
    for _ in range(5):
        assert spool.append(HERE, spans())
    held(spool)
    spool.remove_temporary_files()
    assert all(path.stat().st_size == 5_000 for path in foreign)


def test_what_a_killed_process_had_begun_to_write_goes_after_a_while(
    made: Callable[..., SpoolStorage], folder: Path, clock: Clock
) -> None:
    spool = made()
    assert spool.append(HERE, spans())
    path = folder / f"{files(folder)[0].name}.1a-0123abcd.tmp"
    path.write_bytes(b"half")
    os.utime(path, (clock.now, clock.now))
    spool.remove_temporary_files()
    assert path.exists()
    clock.now += 4000
    spool.remove_temporary_files()
    assert not path.exists()
    assert len(spool.entries()) == 1


# Faults of the disk


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
def test_a_fault_is_told_once_and_the_disk_tried_again(
    made: Callable[..., SpoolStorage], folder: Path, now: Clock, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    spool, name, number = made(), *FAULTS[fault]
    tries: list[float] = []

    def fail(*_: object, **__: object) -> None:
        tries.append(now.now)
        raise OSError(number, os.strerror(number))

    caplog.set_level(logging.WARNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail)
        for _ in range(600):
            assert not spool.append(HERE, spans())
            now.now += 0.5
    assert 5 < len(set(tries)) < 20  # after 1 s, 2 s, 4 s up to a minute
    assert sum("cannot be used" in line for line in caplog.messages) < 7  # at once, then summed up each minute
    assert caplog.messages[0].startswith(f"Spool in {folder.parent}")
    assert os.strerror(number) in caplog.messages[0]
    assert refused(spool) == 0
    now.now += 60
    assert spool.append(HERE, spans())
    assert "Spool recovered" in caplog.messages[-1]
    assert len(held(spool)) == 1
    assert list(folder.glob("*.tmp")) == []


def test_a_removed_folder_is_made_again(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spool, request = made(), spans(2)
    assert spool.append(HERE, spans())
    [entry] = spool.entries()
    shutil.rmtree(folder.parent)
    assert spool.checkout(entry) is None
    assert spool.entries() == []
    assert spool.append(HERE, request)
    assert held(spool) == [request]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_removed_in_between_is_made_again(
    made: Callable[..., SpoolStorage], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, request = made(), spans(2)
    assert spool.append(HERE, spans())
    usage = shutil.disk_usage

    def remove(path: Path) -> object:
        found = usage(path)
        shutil.rmtree(folder)
        monkeypatch.setattr(shutil, "disk_usage", usage)
        return found

    monkeypatch.setattr(shutil, "disk_usage", remove)
    assert spool.append(HERE, request)
    assert held(spool) == [request]


def test_what_cannot_be_read_or_removed_blocks_nothing(
    made: Callable[..., SpoolStorage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool, requests = made(), [spans(number) for number in (1, 2, 3)]
    for request in requests:
        assert spool.append(HERE, request)
    [first, second, _] = spool.entries()
    read, unlink = Path.read_bytes, Path.unlink

    def fail_to_read(path: Path) -> bytes:
        if path.name == first.name:
            raise PermissionError(errno.EACCES, "no")
        return read(path)

    def fail_to_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == second.name:
            raise PermissionError(errno.EACCES, "no")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "read_bytes", fail_to_read)
    monkeypatch.setattr(Path, "unlink", fail_to_unlink)
    assert held(spool) == requests[1:]
    spool.remove(second)
    assert held(spool) == requests[2:]
    assert "cannot be read" in caplog.text
    assert "cannot be removed" in caplog.text
    assert refused(spool) == 0


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


def test_a_real_disk_that_is_full(
    made: Callable[..., SpoolStorage], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = made(spool_dir=str(small_disk))
    spool.is_memory_full = lambda: True
    requests = [spans(2, 15_000) for _ in range(20)]
    for request in requests:
        assert spool.append(HERE, request)
    kept = held(spool)
    assert kept == requests[-len(kept) :]
    assert 3 < len(kept) < 20
    assert refused(spool) == 2 * (20 - len(kept))
    for entry in spool.entries():
        spool.remove(entry)
    with suppress(OSError), (small_disk / "others").open("wb", buffering=0) as file:
        while file.write(bytes(1000)):
            pass
    assert not spool.append(HERE, spans(2, 15_000))
    assert "cannot be used" in caplog.text
    (small_disk / "others").unlink()
    spool._retry_at = 0.0
    assert spool.append(HERE, requests[0])
    assert "Spool recovered" in caplog.messages[-1]


def test_a_real_disk_that_becomes_read_only(
    made: Callable[..., SpoolStorage], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = made(spool_dir=str(small_disk))
    assert spool.append(HERE, spans())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert not spool.append(HERE, spans())
    assert "Read-only file system" in caplog.text
    [entry] = spool.entries()
    assert spool.checkout(entry) is not None
    spool.remove(entry)
    assert spool.entries() == []
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    spool._retry_at = 0.0
    assert spool.append(HERE, spans())


def test_where_no_folder_can_be_had_one_line_says_so(
    made: Callable[..., SpoolStorage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    spool = made(spool_dir=str(tmp_path / "file"))
    for _ in range(3):
        assert not spool.append(HERE, spans())
    assert spool.entries() == []
    spool.dead_letter(HERE, spans(), "no")
    [line] = caplog.messages
    assert "MLFLOW_OTLP_SPOOL_DIR" in line


def test_many_threads_at_once(made: Callable[..., SpoolStorage], folder: Path) -> None:
    spool = made()
    taken: list[Sequence[EncodedSpan]] = []
    requests = [spans() for _ in range(200)]
    done = threading.Event()

    def put(part: list[list[EncodedSpan]]) -> None:
        for request in part:
            assert spool.append(HERE, request)

    def take() -> None:
        for _ in itertools.count():
            finished = done.is_set()
            entries = spool.entries()
            for entry in entries:
                loaded = spool.checkout(entry)
                assert loaded is not None
                taken.append(loaded[2])
                spool.remove(entry)
            if finished and not entries:
                return

    writers = [threading.Thread(target=put, args=(requests[start::4],)) for start in range(4)]
    taker = threading.Thread(target=take)
    for thread in (taker, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    taker.join()
    assert sorted(request[0].span_id for request in taken) == sorted(request[0].span_id for request in requests)
    assert files(folder) == []
