"""Walks through attribute values: JSON text, also inside of texts, structured values, sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

# What is nested more deeply, or is longer, counts as plain text.
DEEPEST, _LONGEST_JSON = 40, 16 * 1024 * 1024
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


class DuplicateKeysDict(dict):  # type: ignore[type-arg]
    """An object of a JSON text in which a key stood twice: the text cannot be kept, even if all that is seen can."""


def parse_json(text: str) -> Any:
    """What a JSON text of an object, array or string holds; None if it is none."""
    if text.lstrip()[:1] not in ("{", "[", '"') or len(text) > _LONGEST_JSON:
        return None
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else DuplicateKeysDict(found)


def dump_json(value: Any) -> str:
    """A value as JSON text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def unescaped(text: str) -> str:
    r"""A text with JSON's `\uXXXX` as characters: what is cut off in the middle cannot be parsed, but can be read."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


class Transform(Protocol):
    """What is done to a value on a walk through it."""

    def skips(self, text: str) -> bool:
        """Whether there is no need to look at a text."""

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """What stands instead of an object, and whether it is to be walked through."""

    def text(self, value: str, key: str) -> str:
        """What stands instead of a text that is no JSON."""


def transform_json(value: Any, change: Transform, key: str = "", depth: int = 0) -> Any:
    """A value after a change; the very same object if nothing has changed.

    Args:
        value: A text or a structured value.
        change: What is done to it.
        key: The key that it stands under.
        depth: How deep that is.
    """
    if isinstance(value, str):
        if change.skips(value):
            return value
        inner = parse_json(value) if depth < DEEPEST else None
        if inner is None:
            return change.text(value, key)
        made = transform_json(inner, change, key, depth + 1)
        return value if made is inner else dump_json(made)
    if isinstance(value, (Mapping, list, tuple)) and depth >= DEEPEST:
        return change.text(dump_json(value), key)
    if isinstance(value, Mapping):
        node, further = change.node(value, key)
        if not further or not isinstance(node, Mapping):
            return node
        items = {str(name): transform_json(item, change, str(name), depth + 1) for name, item in node.items()}
        same = node is value and not isinstance(value, DuplicateKeysDict) and items.keys() == value.keys()
        return value if same and all(items[name] is item for name, item in value.items()) else items
    if isinstance(value, (list, tuple)):
        made_items = [transform_json(item, change, key, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(made_items, value, strict=True)) else made_items
    return value
