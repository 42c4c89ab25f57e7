"""Bounded JSON and text of any value, JSON of others, and dictionaries with a maximum size; nothing here raises."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

DEFAULT_LIMIT = 1 << 20
_MAX_DEPTH = 20
# Limits that are tried in this order: characters of a text, items of a collection.
_BOUNDS = ((20_000, 1000), (2000, 200), (200, 50), (50, 10))
_ELLIPSIS = "…"


def bounded_json(value: Any, limit: int = DEFAULT_LIMIT) -> str:
    """Return a value as JSON of at most `limit` characters; long texts and collections inside are cut and marked.

    A value that JSON cannot represent is converted to the most similar one, or to its `repr`.
    """
    try:
        text = _encoder.encode(value)
    except Exception:  # noqa: BLE001 - a value's methods may raise anything
        text = _encode_bounded(value, limit, DEFAULT_LIMIT)
    if len(text) <= limit:
        return text
    for max_length, max_items in _BOUNDS:
        text = _encode_bounded(value, max_length, max_items)
        if len(text) <= limit:
            return text
    for share in (1, 2, 6):  # quoting makes up to six of one character
        quoted = json.dumps(bounded_text(text, (limit - 2) // share), ensure_ascii=False)
        if len(quoted) <= limit:
            break
    return quoted


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text of others; None if it is no JSON, or nested by a thousand levels."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def bounded_text(text: str, limit: int = DEFAULT_LIMIT) -> str:
    return text if len(text) <= limit else text[: max(0, limit - len(_ELLIPSIS))] + _ELLIPSIS


def _encode_bounded(value: Any, max_length: int, max_items: int) -> str:
    try:
        return json.dumps(_to_json_value(value, max_length, max_items, 0), ensure_ascii=False)
    except Exception as error:  # noqa: BLE001 - as above
        return json.dumps(f"<{type(value).__name__}: not readable ({type(error).__name__})>")


def _to_json_value(value: Any, max_length: int, max_items: int, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        is_huge = isinstance(value, int) and not -(1 << 1024) < value < 1 << 1024
        return _safe_repr(value, max_length) if is_huge else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return bounded_text(value, max_length)
    if depth >= _MAX_DEPTH:
        return _safe_repr(value, min(max_length, 200))
    if isinstance(value, Mapping):
        entries = {
            str(key): _to_json_value(item, max_length, max_items, depth + 1)
            for key, item in islice(value.items(), max_items)
        }
        return {**entries, _ELLIPSIS: f"{len(value) - max_items} more"} if len(value) > max_items else entries
    if isinstance(value, list | tuple | AbstractSet):
        items = [_to_json_value(item, max_length, max_items, depth + 1) for item in islice(value, max_items)]
        return [*items, f"{_ELLIPSIS} {len(value) - max_items} more"] if len(value) > max_items else items
    converted = _convert(value)
    if isinstance(converted, str):
        return bounded_text(converted, max_length)
    return _to_json_value(converted, max_length, max_items, depth + 1)


def _convert(value: Any) -> Any:
    """Convert a value that JSON cannot represent."""
    for name in ("model_dump", "to_dict", "isoformat"):
        method = getattr(value, name, None)
        if callable(method) and not isinstance(value, type):
            converted = _try_call(method)
            if converted is not None and converted is not value:
                return converted
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, AbstractSet | tuple):
        return list(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return _safe_repr(value, 10_000)


def _try_call(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:  # noqa: BLE001 - a method of this name may do anything
        return None


def _safe_repr(value: Any, max_length: int) -> str:
    try:
        return bounded_text(repr(value), max_length)
    except Exception as error:  # noqa: BLE001 - a repr may raise, too
        return f"<{type(value).__name__}: no repr ({type(error).__name__})>"


# NaN is not JSON, so it becomes a text. One encoder for all calls: creating one takes as long as using it.
_encoder = json.JSONEncoder(default=_convert, ensure_ascii=False, allow_nan=False)


def evict_oldest(entries: dict[K, V], max_count: int) -> dict[K, V]:
    """Remove the oldest entries until there is room for one more, and return the dict."""
    while len(entries) >= max_count:
        # Another thread may make room at the same moment.
        with suppress(KeyError, RuntimeError, StopIteration):
            del entries[next(iter(entries))]
    return entries
