"""From attribute values, which may be JSON text, structured values or Python reprs, to plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# What is larger is content that no convention puts there as JSON, and would take milliseconds to parse.
_MAX_JSON_LENGTH = 4 * 1024 * 1024
_MAX_DEPTH = 40
# One encoder: json.dumps makes a new one for each call that does not have its defaults.
_encode_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


def parse_structured(value: Any) -> Any:
    """What a value holds: JSON text parsed, anything else as it is; None if it is text that is no JSON object or array.

    Since OpenTelemetry 1.45 a structured value may stand where older versions have JSON text.
    """
    if isinstance(value, str):
        stripped = value.lstrip()
        if stripped[:1] not in ("{", "[") or len(value) > _MAX_JSON_LENGTH:
            return None
        try:
            return json.loads(stripped)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, (Mapping, list, tuple)):
        return to_plain(value)
    return None


def to_plain(value: Any, depth: int = 0) -> Any:
    """A structured value as dicts and lists; what is nested too deeply becomes None."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, depth + 1) for key, item in value.items()} if depth < _MAX_DEPTH else None
    if isinstance(value, (list, tuple)):
        return [to_plain(item, depth + 1) for item in value] if depth < _MAX_DEPTH else None
    return value


def parse_objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, given as text or structure; a single object counts as a list of one."""
    found = parse_structured(value)
    if isinstance(found, dict):
        return [found]
    if not isinstance(found, list):
        return []
    items = [parse_structured(item) if isinstance(item, str) else item for item in found]
    return [item for item in items if isinstance(item, dict)]


def decode_json(value: Any) -> Any:
    """JSON text of any kind, a string in quotes included, as its value; anything else as it is."""
    if isinstance(value, str) and value[:1] in ('"', "{", "[") and len(value) <= _MAX_JSON_LENGTH:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return to_plain(value) if isinstance(value, (Mapping, list, tuple)) else value


def parse_text(value: Any) -> str | None:
    """A text that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def select_text(*values: Any) -> str | None:
    """The first of some values that is a text and not empty."""
    for value in values:
        if isinstance(value, str) and value:
            return value
    return None


def parse_texts(value: Any) -> tuple[str, ...] | None:
    """The texts of a list, which may be given as JSON text; a single text counts as one."""
    found = parse_structured(value)
    if isinstance(found, list):
        return tuple(str(item) for item in found if isinstance(item, (str, int, float))) or None
    return (value,) if isinstance(value, str) and value else None


def parse_int(value: Any) -> int | None:
    """A count: an int, a float or text that is one; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    try:
        converted = float(value)
        return int(converted) if converted == converted and abs(converted) < 1e15 else None  # noqa: PLR0124 - NaN; no count
    except (TypeError, ValueError):
        return None


def parse_float(value: Any) -> float | None:
    """An amount; None if it is none, or not finite."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def to_json(value: Any) -> str:
    """A value as JSON text; what JSON does not have, as text."""
    try:
        return _encode_json(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(str(value)[:10_000], ensure_ascii=False)


def to_text(value: Any) -> str:
    """A value as what a person reads: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else to_json(value)
