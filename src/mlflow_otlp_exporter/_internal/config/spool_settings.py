"""What is kept on disk: the part of the settings that the spool knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpoolSettings:
    """What is kept on disk, where, and for how long.

    Attributes:
        spool: Whether anything is.
        spool_dir: In which folder; None for the usual places.
        spool_max_bytes: How many bytes, for one target.
        spool_max_age: For how many seconds.
        spool_fsync: Whether to wait until the disk itself has it.
        durability: `request` or `every-span`.
        handle_sigterm: Whether SIGTERM, which the app does not handle, puts on disk what is in memory.
    """

    spool: bool = False
    spool_dir: str | None = None
    spool_max_bytes: int = 512 * 1024 * 1024
    spool_max_age: float = 7 * 86_400.0
    spool_fsync: bool = False
    durability: str = "request"
    handle_sigterm: bool = False
