"""Transform attribute values: JSON text, also nested inside of text, structured values, sequences."""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

# Deeper nesting and longer text count as plain text.
MAX_DEPTH, _MAX_JSON_LENGTH = 40, 16 * 1024 * 1024
# JSON inside of JSON has several backslashes.
_ESCAPE = r"\\{1,8}(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([nrtbfv/\"']))"
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "/": "/", '"': '"', "'": "'"}


class DuplicateKeysDict(dict):  # type: ignore[type-arg]
    """A JSON object with a duplicate key: its text may hold a value that parsing drops, so it must not be kept."""


def parse_json(text: str) -> Any:
    """Parse JSON text of an object, array or string; None for any other text."""
    if text.lstrip()[:1] not in ("{", "[", '"') or len(text) > _MAX_JSON_LENGTH:
        return None
    try:
        return json.loads(text, object_pairs_hook=_object_from_pairs)
    except (ValueError, RecursionError):
        return None


def _object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else DuplicateKeysDict(fields)


def dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def unescape(text: str) -> str:
    r"""Replace the escapes of JSON and of Python, such as `\n` and `\u002d`, by characters."""
    return re.sub(_ESCAPE, lambda match: _CHARACTERS.get(match[3]) or chr(int(match[1] or match[2], 16)), text)


class Transform(Protocol):
    """A change to the objects and texts inside of a value."""

    def can_skip(self, text: str) -> bool:
        """Whether the transform cannot change anything in a text."""

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """Return the replacement of an object, and whether to visit the values inside of the replacement."""

    def visit_text(self, value: str, key: str) -> str:
        """Return the replacement of a text that is not JSON."""


def transform_json(value: Any, transform: Transform, key: str = "", depth: int = 0) -> Any:
    """Return a text or structured value after a transform; the same object if nothing changed.

    `key` is the key of the value and `depth` its depth of nesting.
    """
    if isinstance(value, str):
        if transform.can_skip(value):
            return value
        parsed = parse_json(value) if depth < MAX_DEPTH else None
        if parsed is None:
            return transform.visit_text(value, key)
        transformed = transform_json(parsed, transform, key, depth + 1)
        return value if transformed is parsed else dump_json(transformed)
    if isinstance(value, (Mapping, list, tuple)) and depth >= MAX_DEPTH:
        return transform.visit_text(dump_json(value), key)
    if isinstance(value, Mapping):
        replacement, should_descend = transform.visit_object(value, key)
        if not should_descend or not isinstance(replacement, Mapping):
            return replacement
        fields = {
            str(name): transform_json(item, transform, str(name), depth + 1) for name, item in replacement.items()
        }
        is_same = replacement is value and not isinstance(value, DuplicateKeysDict) and fields.keys() == value.keys()
        return value if is_same and all(fields[name] is item for name, item in value.items()) else fields
    if isinstance(value, (list, tuple)):
        items = [transform_json(item, transform, key, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value
