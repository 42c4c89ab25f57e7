"""A lock between processes that the kernel frees when its holder dies, whatever it dies of."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset

if sys.platform == "win32":
    import msvcrt

    # What is locked there cannot be read by others: a byte far behind all that is ever written.
    _FAR = 0x7FFF_FFFE

    def locked(descriptor: int) -> bool:
        """Locks an open file, if no other process has; never waits."""
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def locked(descriptor: int) -> bool:
        """Locks an open file, if no other process has; never waits."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def remove_if_locked(path: Path, descriptor: int) -> None:
    """Removes a file that is locked here, and closes it; never raises.

    First removed, so that nobody takes it up in between; on Windows that is not possible before it is closed.
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
    """A lock file, held until it is released or the process ends; a forked child does not hold what its parent does.

    Args:
        path: The file; made where it is missing.

    Attributes:
        path: The same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        register_fork_reset(self.release)

    @property
    def held(self) -> bool:
        """Whether it is held here."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Takes the lock if nobody has it; never waits.

        Raises:
            OSError: The file cannot be made, or the file system knows no locks.
        """
        if self._descriptor is not None:
            if _same(self._descriptor, self.path):
                return True
            self.release()  # the folder was removed, and with it what others would see of the lock
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            # Between opening and locking, another one may have removed the file.
            taken = locked(descriptor) and _same(descriptor, self.path)
            if taken:
                # For people: who has it.
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
        except OSError:
            os.close(descriptor)
            raise
        if taken:
            self._descriptor = descriptor
        else:
            os.close(descriptor)
        return taken

    def release(self) -> None:
        """Gives the lock back.

        Closing is enough, and all that a forked child may do: what it unlocks would be unlocked for its parent, too.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
