"""Atomic writing of files that only this user may read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, content: bytes, unique: str) -> None:
    """Write a file under a temporary name with `unique` in it, and rename it. On `OSError` no file remains.

    The file survives a killed process. It is not synchronised with the disk, so a power cut may lose it.
    """
    temporary = path.with_name(f"{path.name}.{unique}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
