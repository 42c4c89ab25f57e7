"""Bounded text, JSON of others, and dictionaries with a maximum size; nothing here raises."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

DEFAULT_LIMIT = 1 << 20
ELLIPSIS = "…"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text of others; None if it is no JSON, or nested by a thousand levels."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def bounded_text(text: str, limit: int = DEFAULT_LIMIT) -> str:
    return text if len(text) <= limit else text[: max(0, limit - len(ELLIPSIS))] + ELLIPSIS


def evict_oldest(entries: dict[K, V], max_count: int) -> dict[K, V]:
    """Remove the oldest entries until there is room for one more, and return the dict."""
    while len(entries) >= max_count:
        # Another thread may make room at the same moment.
        with suppress(KeyError, RuntimeError, StopIteration):
            del entries[next(iter(entries))]
    return entries
