"""The lock between processes: one has it, and the kernel frees it when that one dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from support.children import run_in_fork

HOLD = """
import sys, time
from pathlib import Path
from mlflow_otlp_exporter._internal.common.file_lock import FileLock
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
