"""Dictionaries with a maximum number of entries."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def evict_oldest(entries: dict[K, V], max_count: int) -> dict[K, V]:
    """Remove the oldest entries until there is room for one more, and return the dict."""
    while len(entries) >= max_count:
        # Another thread may make room at the same moment.
        with suppress(KeyError, RuntimeError, StopIteration):
            del entries[next(iter(entries))]
    return entries
