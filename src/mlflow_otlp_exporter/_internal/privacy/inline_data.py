"""Base64 content (images, audio, files) in attributes: above a limit, a marker replaces it."""

import re
from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_media
from mlflow_otlp_exporter._internal.privacy.json_walk import transform_json

# The highest repetition count of a regular expression is 2 ** 32 - 2.
_MAX_REPETITIONS = 2**31
# Shorter text of base64 characters without a data URL around it may be a word.
_MIN_BARE_LENGTH = 1000
_BARE = r"[A-Za-z0-9+/_-]{1000,}={0,2}"
_CHARACTER_CLASSES = ("[a-z]", "[A-Z]", "[0-9]")
# Types of parts in the GenAI conventions, whose text is in `content`.
_GENAI_TYPES = frozenset({"blob", "uri", "file"})
_RESPONSES_TYPES = frozenset({"input_image", "input_audio", "input_file"})

# OpenInference's flattened image of a message.
IMAGE_URL = ".message_content.image.image.url"


def compile_data_url(min_length: int) -> re.Pattern[str]:
    """Compile an expression for data URLs with at least `min_length` characters of base64.

    Its groups are media type, parameters and base64.
    """
    repetition = f"{{{min(min_length, _MAX_REPETITIONS)},}}"
    return re.compile(r"data:([\w.+/-]{0,100})((?:;[\w.+=-]{1,100}){0,5});base64,([A-Za-z0-9+/=_%-]" + repetition + ")")


def is_bare_base64(text: str) -> bool:
    """Whether a text consists of base64 only, judged by its characters."""
    return len(text) > _MIN_BARE_LENGTH and bool(
        re.fullmatch(_BARE, text) and all(re.search(pattern, text[:_MIN_BARE_LENGTH]) for pattern in _CHARACTER_CLASSES)
    )


def make_text_part(part: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Make the text part that replaces another part, in the same convention."""
    part_type = part.get("type")
    if part_type in _RESPONSES_TYPES:
        return {"type": "input_text", "text": text}
    if part_type in _GENAI_TYPES or (part_type is not None and "modality" in part):
        return {"type": "text", "content": text}
    return {"text": text} if part_type is None else {"type": "text", "text": text}


def read_part_type(part: Mapping[str, Any]) -> str:
    part_type = part.get("type") or part.get("part_kind") or part.get("kind") or ""
    return part_type if isinstance(part_type, str) else ""


def format_marker(media_type: str, base64_length: int) -> str:
    """Format the text that replaces content: its media type and its size."""
    size = float(base64_length * 3 // 4)
    unit = "B"
    for larger_unit in ("kB", "MB", "GB"):
        if size < 1000:  # SI units
            break
        size, unit = size / 1000, larger_unit
    digits = 0 if unit == "B" else 1
    return f"[{media_type or 'base64'}, {size:.{digits}f} {unit}, not kept]"


class InlineDataReplacer:
    """Replaces content of more than `max_length` characters of base64 by a marker; a transform of values."""

    def __init__(self, max_length: int) -> None:
        self.max_length = min(max_length, _MAX_REPETITIONS)

    def has_long_value(self, value: Any) -> bool:
        """Whether a value is, or holds, a text or bytes over the limit; fast, without a look at the characters."""
        if isinstance(value, str):
            return len(value) > self.max_length
        if isinstance(value, Mapping):
            return any(self.has_long_value(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return any(self.has_long_value(item) for item in value)
        return isinstance(value, (bytes, bytearray)) and len(value) > self.max_length

    def replace_in_attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes with markers; only long values are searched."""
        result = dict(attributes)
        for key in [key for key, value in result.items() if self.has_long_value(value)]:
            value = self.replace_in_value(result[key], key.rpartition(".")[2])
            if key.endswith(IMAGE_URL) and value is not result[key]:
                # OpenInference's image becomes a text, or the chat would show a broken picture.
                part = key[: -len(IMAGE_URL)] + ".message_content."
                del result[key]
                result[part + "type"], result[part + "text"] = "text", value
            else:
                result[key] = value
        return result

    def replace_in_value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, (bytes, bytearray)):
            return format_marker("bytes", len(value) * 4 // 3)
        return transform_json(value, self, key)

    def can_skip(self, text: str) -> bool:
        return len(text) <= self.max_length

    def visit_object(self, value: Mapping[str, Any], key: str) -> tuple[Any, bool]:
        """Replace a part that has content over the limit by a text part."""
        part = read_media(value, read_part_type(value)) if self.has_long_value(value) else None
        if part is None:
            return value, True
        data = part.url if part.url.startswith("data:") else part.data
        url_media_type = data[5:100].partition(",")[0].partition(";")[0] if part.url else ""
        base64_length = len(data.partition(";base64,")[2] or data)
        if base64_length <= self.max_length:
            return value, True
        media_type = url_media_type or (f"audio/{part.format}" if part.kind == "audio" else part.format)
        return make_text_part(value, format_marker(media_type, base64_length)), False

    def visit_text(self, value: str, key: str) -> str:
        """Replace data URLs anywhere in a text, and a text that consists of base64 only."""
        data_url = compile_data_url(self.max_length + 1)  # here, because few applications have such texts
        replaced = data_url.sub(lambda match: format_marker(match[1], len(match[3])), value)
        if len(replaced) > self.max_length and is_bare_base64(replaced):
            return format_marker("", len(replaced))
        return replaced if replaced != value else value
