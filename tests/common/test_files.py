"""Reading of files that may be anything, and the lock between processes, which the kernel frees with its holder."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.common.files import FileLock, UnsafeFileError, open_regular_file, read_regular_file
from support.children import run_in_fork
from support.special_files import SPECIAL_FILES, make_link

HOLD = """
import sys, time
from pathlib import Path
from mlflow_otlp_exporter._internal.common.files import FileLock
lock = FileLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_acquire_is_exclusive_until_release(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert first.acquire()
    assert first.is_held
    assert not second.acquire()
    assert not second.is_held
    first.release()
    assert second.acquire()
    second.release()
    assert path.read_text() == str(os.getpid())
    assert path.stat().st_mode & 0o777 == 0o600


def test_acquire_after_holder_was_killed_succeeds(path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert lock.acquire()
        lock.release()
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_forked_child_neither_holds_nor_releases_lock(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    assert run_in_fork(lambda: not lock.is_held and not lock.acquire())
    assert lock.is_held
    assert not FileLock(path).acquire()
    lock.release()
    assert FileLock(path).acquire()


def test_acquire_removed_file_loses_lock(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    path.unlink()
    assert second.acquire()
    assert not first.acquire()
    assert not first.is_held
    second.release()


def test_acquire_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        FileLock(tmp_path / "missing" / "lock").acquire()


@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_read_special_file_raises_without_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch, create: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.chdir(path.parent)
    create(path)
    with pytest.raises(UnsafeFileError) as caught:
        read_regular_file(path, 100)
    assert caught.value.strerror == reason


def test_read_device_raises() -> None:
    with pytest.raises(UnsafeFileError, match="it is a device"):
        read_regular_file(Path("/dev/zero"), 100)
    with pytest.raises(UnsafeFileError, match="it is a device"):
        read_regular_file(Path("/dev/zero"), 100, follow_symlinks=True)


def test_open_file_that_is_replaced_after_check_raises(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "victim").write_text("precious")
    status = (path.parent / "victim").stat()
    make_link(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda *_, **__: status)
        with pytest.raises(OSError, match="symbolic links"):
            open_regular_file(path, os.O_RDONLY)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    with pytest.raises(UnsafeFileError, match="FIFO"):
        open_regular_file(path, os.O_RDONLY)


def test_read_file_of_another_user_raises_unless_links_are_followed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("token")
    link = path.with_name("link")
    link.symlink_to(path)
    path.chmod(0o644)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(UnsafeFileError, match="it belongs to another user"):
        read_regular_file(path, 100)
    assert read_regular_file(link, 100, follow_symlinks=True) == b"token"
    assert path.stat().st_mode & 0o777 == 0o644


def test_read_file_bounds_size_and_restores_mode(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    path.chmod(0o666)
    assert read_regular_file(path, 100) == b"x" * 100
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UnsafeFileError, match="it is larger than 99 bytes"):
        read_regular_file(path, 99)
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(UnsafeFileError, match="it is larger than 99 bytes"):
        read_regular_file(path, 99)
    with pytest.raises(FileNotFoundError):
        read_regular_file(path.with_name("missing"), 99)


@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_acquire_special_file_sets_it_aside(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    create: Callable[[Path], object],
    reason: str,
) -> None:
    monkeypatch.chdir(path.parent)
    create(path)
    lock = FileLock(path)
    with caplog.at_level(logging.WARNING):
        assert lock.acquire()
        assert lock.acquire()
    assert not FileLock(path).acquire()
    assert path.read_text() == str(os.getpid())
    victim = path.with_name("victim")
    assert not victim.exists() or victim.read_text() == "precious"
    (aside,) = path.parent.glob("lock.*.bad")
    expected = f"Lock file {path} replaced: {reason}. What was there is now {aside.name}. [MLO-605]"
    assert caplog.messages == [expected]
