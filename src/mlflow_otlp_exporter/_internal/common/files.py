"""A file that is whole from the moment on at which it has its name, and that nobody else may read."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, content: bytes, unique: str, *, sync: bool) -> None:
    """Writes a file under a temporary name, and then renames it.

    Args:
        path: Its name, in a folder that exists.
        content: All of it.
        unique: What no other process and no other run has in its temporary names.
        sync: Whether it has to survive a power cut.

    Raises:
        OSError: It could not be written; nothing is left of it.
    """
    temporary = path.with_name(f"{path.name}.{unique}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a new name survive a power cut."""
    if sys.platform == "win32":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
