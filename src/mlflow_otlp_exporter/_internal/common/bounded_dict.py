"""Dictionaries that stay below a number of entries."""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

K = TypeVar("K")


V = TypeVar("V")


def evict_oldest(kept: dict[K, V], most: int) -> dict[K, V]:
    """Remove the oldest entries until there is room for one more, and return the dict."""
    while len(kept) >= most:
        # Another thread may make room at the same moment.
        with suppress(KeyError, RuntimeError, StopIteration):
            del kept[next(iter(kept))]
    return kept
