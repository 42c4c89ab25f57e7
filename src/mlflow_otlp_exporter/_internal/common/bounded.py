"""Bounded text, JSON of others, dictionaries with a maximum size, and caches; nothing here raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

DEFAULT_LIMIT = 1 << 20
# Longer ones, such as flattened conversations, rarely occur twice.
_MAX_CACHED_KEYS, _MAX_CACHED_KEY_LENGTH, _MAX_CACHED_RESULTS = 100, 200, 512
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


class _CacheByKeys(dict[tuple[str, ...], V]):
    def __init__(self, function: Callable[[tuple[str, ...]], V]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, keys: tuple[str, ...]) -> V:
        result = self._function(keys)
        if len(keys) <= _MAX_CACHED_KEYS and max(map(len, keys), default=0) <= _MAX_CACHED_KEY_LENGTH:
            evict_oldest(self, _MAX_CACHED_RESULTS)[keys] = result
        return result


def cache_by_keys(function: Callable[[tuple[str, ...]], V]) -> Callable[[tuple[str, ...]], V]:
    """Cache what depends on the keys of attributes alone: spans of one source have the same keys."""
    return _CacheByKeys(function).__getitem__  # a cached result takes no call of a Python function
