"""The lock between processes: one has it, and the kernel frees it when that one dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from support.children import in_child

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


def test_one_has_it_until_it_is_released(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert first.acquire()
    assert first.held
    assert not second.acquire()
    assert not second.held
    first.release()
    assert second.acquire()
    second.release()
    assert path.read_text() == str(os.getpid())
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_free_when_its_holder_was_killed(path: Path) -> None:
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


def test_a_forked_child_neither_holds_nor_frees_it(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    assert in_child(lambda: not lock.held and not lock.acquire())
    assert lock.held
    assert not FileLock(path).acquire()
    lock.release()
    assert FileLock(path).acquire()


def test_a_lock_whose_file_was_removed_is_none(path: Path) -> None:
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    path.unlink()
    assert second.acquire()
    assert not first.acquire()
    assert not first.held
    second.release()


def test_where_no_file_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        FileLock(tmp_path / "missing" / "lock").acquire()
