"""Images, sound and files that stand in attributes as base64: over a limit, a marker takes their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.media import read_media
from mlflow_otlp_exporter._internal.privacy.json_walk import transform_json

# The greatest number that an expression may repeat is 2 ** 32 - 2.
_MOST = 2**31
# Below, a text of base64's characters without a data URL around may be a word.
_SHORTEST_BARE = 1000
_BARE = re.compile(r"[A-Za-z0-9+/_-]{1000,}={0,2}")
_MIXED = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"))
# Parts of the GenAI conventions, whose text stands in `content`.
_GENAI = frozenset({"blob", "uri", "file"})
_RESPONSES = frozenset({"input_image", "input_audio", "input_file"})


# OpenInference's flattened image of a message.
IMAGE_URL = ".message_content.image.image.url"


def data_url(shortest: int) -> re.Pattern[str]:
    """Data URLs of at least so many characters of base64: media type, parameters, base64."""
    repeated = f"{{{min(shortest, _MOST)},}}"
    return re.compile(r"data:([\w.+/-]{0,100})((?:;[\w.+=-]{1,100}){0,5});base64,([A-Za-z0-9+/=_%-]" + repeated + ")")


def is_bare(text: str) -> bool:
    """Whether a text is nothing but base64, as far as its characters tell."""
    return len(text) > _SHORTEST_BARE and bool(
        _BARE.fullmatch(text) and all(each.search(text[:_SHORTEST_BARE]) for each in _MIXED)
    )


def part_of_text(part: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The text part that takes another part's place, in the same convention."""
    kind = part.get("type")
    if kind in _RESPONSES:
        return {"type": "input_text", "text": text}
    if kind in _GENAI or (kind is not None and "modality" in part):
        return {"type": "text", "content": text}
    return {"text": text} if kind is None else {"type": "text", "text": text}


def kind_of_part(part: Mapping[str, Any]) -> str:
    """What a part of a message says it is."""
    kind = part.get("type") or part.get("part_kind") or part.get("kind") or ""
    return kind if isinstance(kind, str) else ""


def marker(kind: str, characters: int) -> str:
    """What stands in place of a payload: its media type and its size."""
    size = float(characters * 3 // 4)
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:  # as people write sizes
            break
        size, unit = size / 1000, larger
    return (
        f"[{kind or 'base64'}, {size:.0f} {unit}, not kept]"
        if unit == "B"
        else f"[{kind or 'base64'}, {size:.1f} {unit}, not kept]"
    )


class InlineData:
    """Replaces payloads of more characters than a limit.

    Args:
        longest: How many characters of base64 may stay.
    """

    def __init__(self, longest: int) -> None:
        self.longest = min(longest, _MOST)
        self._url = data_url(self.longest + 1)

    def holds(self, value: Any) -> bool:
        """Whether a value may hold such a payload; quick."""
        if isinstance(value, str):
            return len(value) > self.longest
        if isinstance(value, Mapping):
            return any(self.holds(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return any(self.holds(item) for item in value)
        return isinstance(value, (bytes, bytearray)) and len(value) > self.longest

    def without_payloads(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes with markers for their payloads; large values alone are looked into."""
        made = dict(attributes)
        for key in [key for key, value in made.items() if self.holds(value)]:
            changed = self.without(made[key], key.rpartition(".")[2])
            if key.endswith(IMAGE_URL) and changed is not made[key]:
                # OpenInference's image becomes a text, or the chat would show a broken picture.
                part = key[: -len(IMAGE_URL)] + ".message_content."
                del made[key]
                made[part + "type"], made[part + "text"] = "text", changed
            else:
                made[key] = changed
        return made

    def without(self, value: Any, key: str = "") -> Any:
        """A value with markers for its payloads."""
        if isinstance(value, (bytes, bytearray)):
            return marker("bytes", len(value) * 4 // 3)
        return transform_json(value, self, key)

    def skips(self, text: str) -> bool:
        """Nothing of a short text is too long."""
        return len(text) <= self.longest

    def node(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """A part with a payload becomes one with a text."""
        part = read_media(value, kind_of_part(value)) if self.holds(value) else None
        if part is None:
            return value, True
        data = part.url if part.url.startswith("data:") else part.data
        said = data[5:100].partition(",")[0].partition(";")[0] if part.url else ""
        payload = len(data.partition(";base64,")[2] or data)
        if payload <= self.longest:
            return value, True
        kind = said or (f"audio/{part.format}" if part.kind == "audio" else part.format)
        return part_of_text(value, marker(kind, payload)), False

    def text(self, value: str, key: str) -> str:
        """Data URLs anywhere in a text, and a text that is nothing but base64."""
        changed = self._url.sub(lambda match: marker(match[1], len(match[3])), value)
        if len(changed) > self.longest and is_bare(changed):
            return marker("", len(changed))
        return changed if changed != value else value
