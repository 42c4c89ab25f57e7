"""Parsing of attribute values: JSON text, structured values or Python reprs."""

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from json.encoder import encode_basestring
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import Kind

# No convention has larger JSON text; parsing it would take milliseconds.
MAX_JSON_LENGTH = 4 * 1024 * 1024
JSON_STARTS = ('"', "{", "[")
_MAX_REPR_LENGTH = 20_000
_ESCAPE = r"\\[\\'\"abfnrtvxuUN0-7]"
_MAX_DEPTH = 40
# json.dumps creates an encoder for each call with other than its default arguments.
_encode_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


def parse_kind(name: Any, kinds: Mapping[str, Kind]) -> Kind | None:
    """The kind for a name that a convention writes; LiteLLM writes that of a function, such as `acompletion`."""
    if not isinstance(name, str):
        return None
    if (kind := kinds.get(name)) is not None:
        return kind
    word = name.strip().lower().replace(" ", "_")
    return kinds.get(word) or kinds.get(word.removeprefix("a"))


def parse_structured(value: Any) -> Any:
    """Parse JSON text, and copy a structured value; None for text that is no JSON object or array.

    Since OpenTelemetry 1.45 an attribute may hold a structured value where older versions have JSON text.
    """
    if isinstance(value, str):
        stripped = value.lstrip()
        if stripped[:1] not in ("{", "[") or len(value) > MAX_JSON_LENGTH:
            return None
        try:
            return json.loads(stripped)
        except (ValueError, RecursionError):
            return None
    return to_plain(value) if value is not None and isinstance(value, (list, tuple, Mapping)) else None


def parse_repr(value: Any) -> Any:
    """Parse the repr of a dict, list or text, which some SDKs write where others write JSON."""
    if not isinstance(value, str) or value[:1] not in ("{", "[", "'", '"') or len(value) > _MAX_REPR_LENGTH:
        return None
    if "\\" not in re.sub(_ESCAPE, "", value):  # Python would warn of an invalid escape
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return ast.literal_eval(value)
    return None


def to_plain(value: Any, depth: int = 0) -> Any:
    """Copy a structured value into dicts and lists; what is nested too deeply becomes None."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, depth + 1) for key, item in value.items()} if depth < _MAX_DEPTH else None
    if isinstance(value, (list, tuple)):
        return [to_plain(item, depth + 1) for item in value] if depth < _MAX_DEPTH else None
    return value


def parse_objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, as JSON text or structured; a single object counts as a list of one."""
    parsed = parse_structured(value)
    if not isinstance(parsed, list):
        return [parsed] if isinstance(parsed, dict) else []
    items = [parse_structured(item) if isinstance(item, str) else item for item in parsed]
    return [item for item in items if isinstance(item, dict)]


def decode_json(value: Any) -> Any:
    """Decode JSON text of any kind, a quoted string included; any other value stays as it is."""
    if not isinstance(value, str):
        return to_plain(value)
    if value[:1] in JSON_STARTS and len(value) <= MAX_JSON_LENGTH:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def parse_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def select_text(*values: Any) -> str | None:
    for value in values:
        if isinstance(value, str) and value:
            return value
    return None


def parse_texts(value: Any) -> tuple[str, ...] | None:
    """The texts of a list, as JSON text or structured; a single text counts as a list of one."""
    parsed = parse_structured(value)
    if isinstance(parsed, list):
        return tuple(str(item) for item in parsed if isinstance(item, (str, int, float))) or None
    return (value,) if isinstance(value, str) and value else None


def parse_int(value: Any) -> int | None:
    """A count: an int, a float, or text that holds one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    try:
        converted = float(value)
        return int(converted) if abs(converted) < 1e15 else None  # larger values are no counts
    except (TypeError, ValueError):
        return None


def parse_float(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if abs(converted) < float("inf") else None


def to_json(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    try:
        return _encode_json(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(str(value)[:10_000], ensure_ascii=False)


def to_text(value: Any) -> str:
    """A text as it is, any other value as JSON."""
    return value if isinstance(value, str) else to_json(value)
