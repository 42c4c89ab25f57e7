"""Files that only this user may read: reading, atomic writing, and a lock between processes.

Anything may stand where a file is expected: a FIFO or a device, which would hang its reader, a link to a file that must
not be changed, a file of another user, or one that would fill the memory.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset

_PRIVATE_DIRECTORY_MODE, _PRIVATE_FILE_MODE = 0o700, 0o600
# Without O_NONBLOCK, opening a FIFO that replaced the file after the first check would hang.
_OPEN_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# By the first letter of `ls -l`.
_KINDS = {"l": "a symbolic link", "d": "a directory", "p": "a FIFO", "s": "a socket", "c": "a device", "b": "a device"}
logger = logging.getLogger("mlflow_otlp_exporter")


class UnsafeFileError(OSError):
    """What stands at a path is not a file that may be used; `strerror` says what it is."""


def find_problem(status: os.stat_result, *, is_private: bool = True) -> str | None:
    """Say why something is not a regular file, or with `is_private` not one of this user only; None if it is."""
    if not stat.S_ISREG(status.st_mode):
        return f"it is {_KINDS.get(stat.filemode(status.st_mode)[0], 'something else')}, not a regular file"
    if is_private and hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            return "it belongs to another user"
        if status.st_nlink > 1:
            return "it has a second name (hard link)"
    return None


def open_regular_file(path: Path, flags: int, *, follow_symlinks: bool = False) -> int:
    """Open a file without waiting, and return its descriptor; raises UnsafeFileError for anything but a regular file.

    It must be a file of this user, whose mode 0600 is restored. With `follow_symlinks`, it may be any user's, such as
    a mounted secret.
    """
    with suppress(FileNotFoundError):  # with O_CREAT, it is created
        _raise_if_unsafe(path.stat(follow_symlinks=follow_symlinks), path, is_private=not follow_symlinks)
    flags |= _OPEN_FLAGS | (0 if follow_symlinks else _NO_FOLLOW)
    descriptor = os.open(path, flags, _PRIVATE_FILE_MODE)
    try:
        status = os.fstat(descriptor)
        _raise_if_unsafe(status, path, is_private=not follow_symlinks)
        if not follow_symlinks and status.st_mode & 0o077 and hasattr(os, "fchmod"):
            with suppress(OSError):  # a read-only file system, or one without modes
                os.fchmod(descriptor, _PRIVATE_FILE_MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _raise_if_unsafe(status: os.stat_result, path: Path, *, is_private: bool) -> None:
    problem = find_problem(status, is_private=is_private)
    if problem is not None:
        raise UnsafeFileError(errno.EINVAL, problem, str(path))


def read_regular_file(path: Path, max_bytes: int, *, follow_symlinks: bool = False) -> bytes:
    """Read a file as `open_regular_file` opens it; raises UnsafeFileError if it is larger than `max_bytes`."""
    with os.fdopen(open_regular_file(path, os.O_RDONLY, follow_symlinks=follow_symlinks), "rb") as file:
        # Not `max_bytes`, which `read` allocates at once. Some file systems report the size 0.
        size_bytes = max(os.fstat(file.fileno()).st_size, 1 << 16)
        content = file.read(min(size_bytes, max_bytes) + 1)
    if len(content) > max_bytes:
        raise UnsafeFileError(errno.EFBIG, f"it is larger than {max_bytes} bytes", str(path))
    return content


def atomic_write(path: Path, content: bytes, unique: str) -> None:
    """Write a file under a temporary name with `unique` in it, and rename it. After a failure, no file remains.

    The file survives a killed process. It is not synchronised with the disk, so a power cut may lose it.
    """
    temporary = path.with_name(f"{path.name}.{unique}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_FOLLOW | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, _PRIVATE_FILE_MODE)
    try:
        try:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def create_private_directory(folder: Path) -> None:
    """Create a directory that only this user can use, with its parents, or secure an existing one; raises OSError."""
    _create_directories(folder)
    secure_directory(folder)


def secure_directory(folder: Path) -> None:
    """Restore mode 0700; raises OSError unless it is a directory of this user.

    Where all users may write, another user may have created it to read the spans, or a link to a directory elsewhere.
    """
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a directory")
    if hasattr(os, "getuid"):
        if status.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        if stat.S_IMODE(status.st_mode) != _PRIVATE_DIRECTORY_MODE:
            folder.chmod(_PRIVATE_DIRECTORY_MODE)


def _create_directories(folder: Path) -> None:
    # Not mkdir(parents=True), which gives parents the mode of the umask.
    if not folder.parent.is_dir():
        _create_directories(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(_PRIVATE_DIRECTORY_MODE)


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
    with suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):
        path.unlink(missing_ok=True)


class FileLock:
    """A lock file, held until it is released or the process ends, when the kernel releases it.

    A forked child does not hold its parent's lock.
    """

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
        descriptor = self._open()
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

    def _open(self) -> int:
        flags = os.O_CREAT | os.O_RDWR
        try:
            return open_regular_file(self.path, flags)
        except UnsafeFileError as error:
            aside = self.path.with_name(f"{self.path.name}.{os.urandom(4).hex()}.bad")
            self.path.replace(aside)
            message = f"Lock file {self.path} replaced: {error.strerror}. What was there is now {aside.name}."
            logger.warning("%s", add_code(MessageCode.SPOOL_FILE_UNREADABLE, message))
            return open_regular_file(self.path, flags)

    def release(self) -> None:
        # A forked child must only close the file: if it unlocked it, its parent would lose the lock, too.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False
