"""Any value as JSON of a bounded length; never raises."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

DEFAULT_LIMIT = 1 << 20
_DEEPEST = 20
# What is tried, in turn, to get a value under the limit: characters of a text, items of a collection.
_BOUNDS = ((20_000, 1000), (2000, 200), (200, 50), (50, 10))
_MORE = "…"


def bounded_json(value: Any, limit: int = DEFAULT_LIMIT) -> str:
    """A value as JSON; what JSON does not have becomes what comes nearest, at last its `repr`.

    Args:
        value: Anything.
        limit: Characters that it may have; longer texts and collections inside are cut then, and say so.
    """
    try:
        text = _encoder.encode(value)
    except Exception:  # noqa: BLE001 - a value may raise anything when it is looked at
        text = _walked(value, limit, DEFAULT_LIMIT)
    if len(text) <= limit:
        return text
    for longest, most in _BOUNDS:
        text = _walked(value, longest, most)
        if len(text) <= limit:
            return text
    for share in (1, 2, 6):  # of what is left, quoting makes up to six of one character
        quoted = json.dumps(bounded_text(text, (limit - 2) // share), ensure_ascii=False)
        if len(quoted) <= limit:
            break
    return quoted


def bounded_text(text: str, limit: int = DEFAULT_LIMIT) -> str:
    """A text that is not longer than the limit, with a mark where it was cut."""
    return text if len(text) <= limit else text[: max(0, limit - len(_MORE))] + _MORE


def _walked(value: Any, longest: int, most: int) -> str:
    try:
        return json.dumps(_plain(value, longest, most, 0), ensure_ascii=False)
    except Exception as error:  # noqa: BLE001 - as above
        return json.dumps(f"<{type(value).__name__}: not readable ({type(error).__name__})>")


def _plain(value: Any, longest: int, most: int, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or -(1 << 1024) < value < 1 << 1024 else _shown(value, longest)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return bounded_text(value, longest)
    if depth >= _DEEPEST:
        return _shown(value, min(longest, 200))
    if isinstance(value, Mapping):
        items = {str(key): _plain(item, longest, most, depth + 1) for key, item in islice(value.items(), most)}
        return {**items, _MORE: f"{len(value) - most} more"} if len(value) > most else items
    if isinstance(value, list | tuple | AbstractSet):
        listed = [_plain(item, longest, most, depth + 1) for item in islice(value, most)]
        return [*listed, f"{_MORE} {len(value) - most} more"] if len(value) > most else listed
    natural = _natural(value)
    return bounded_text(natural, longest) if isinstance(natural, str) else _plain(natural, longest, most, depth + 1)


def _natural(value: Any) -> Any:
    """What stands for a value that JSON does not have."""
    for name in ("model_dump", "to_dict", "isoformat"):
        found = getattr(value, name, None)
        if callable(found) and not isinstance(value, type):
            natural = _called(found)
            if natural is not None and natural is not value:
                return natural
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, AbstractSet | tuple):
        return list(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return _shown(value, 10_000)


def _called(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:  # noqa: BLE001 - a method of that name may be something else altogether
        return None


def _shown(value: Any, longest: int) -> str:
    try:
        return bounded_text(repr(value), longest)
    except Exception as error:  # noqa: BLE001 - also a repr may raise
        return f"<{type(value).__name__}: no repr ({type(error).__name__})>"


# Not allowing NaN, which is no JSON: the walk makes a text of it. Kept, as making one takes as long as using it.
_encoder = json.JSONEncoder(default=_natural, ensure_ascii=False, allow_nan=False)
