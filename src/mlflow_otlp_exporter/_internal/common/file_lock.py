"""A lock between processes, which the kernel releases when its holder dies."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset

if sys.platform == "win32":
    import msvcrt

    # Other processes cannot read a locked byte, so this one is far behind all content.
    _LOCKED_BYTE = 0x7FFF_FFFE

    def try_lock(descriptor: int) -> bool:
        """Lock an open file unless another process has locked it; never wait."""
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock an open file unless another process has locked it; never wait."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def remove_if_locked(path: Path, descriptor: int) -> None:
    """Remove and close a file that is locked here; never raise.

    It is removed first, so that no other process opens it in between. On Windows it must be closed first.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        os.close(descriptor)
    except OSError:
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()
    else:
        os.close(descriptor)


class FileLock:
    """A lock file, held until it is released or the process ends. A forked child does not hold its parent's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        register_fork_reset(self.release)

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; never wait. Raises `OSError`, also if the file system has no locks."""
        if self._descriptor is not None:
            if _is_same_file(self._descriptor, self.path):
                return True
            self.release()  # the folder was removed, so other processes do not see this lock
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            # Another process may have removed the file between opening and locking.
            is_locked = try_lock(descriptor) and _is_same_file(descriptor, self.path)
            if is_locked:
                # For administrators: the process that holds it.
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
        except OSError:
            os.close(descriptor)
            raise
        if is_locked:
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        return is_locked

    def release(self) -> None:
        # A forked child must only close the file: if it unlocked it, its parent would lose the lock, too.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
