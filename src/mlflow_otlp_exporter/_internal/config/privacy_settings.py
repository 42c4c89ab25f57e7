"""What must not leave the app, as settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

READY_MADE = ("email", "keys", "cards", "phones")
HIDE_VARIABLE = "OPENINFERENCE_HIDE_"
# What may be hidden: OpenInference's variables without their beginning, in lower case (0.1.72). The last two are older
# names, which its documents still have.
HIDEABLE = (
    "inputs",
    "outputs",
    "input_messages",
    "output_messages",
    "input_images",
    "input_text",
    "output_text",
    "prompts",
    "choices",
    "retrieval_documents",
    "llm_invocation_parameters",
    "llm_tools",
    "embeddings_vectors",
    "embeddings_text",
    "embedding_vectors",
    "llm_prompts",
)
# Characters of base64 that an attachment may have: what is larger is not worth the app's memory.
LONGEST_ATTACHMENT = 32 * 1024 * 1024
HIDE_VARIABLES = tuple(HIDE_VARIABLE + name.upper() for name in HIDEABLE)


@dataclass(frozen=True)
class PrivacySettings:
    """What must not leave the app.

    Attributes:
        mask: What masks texts: a function, or names and expressions; None for nothing.
        hide: What is hidden, by the names of `HIDEABLE`.
        base64_max_length: Characters of base64 that an image, a sound or a file may have.
        drop_resource: Resource attributes that are left out when spans are compacted.
    """

    mask: Callable[[str], str] | tuple[str | re.Pattern[str], ...] | None
    hide: tuple[str, ...]
    base64_max_length: int
    drop_resource: tuple[str, ...]


def mask(value: Any) -> Callable[[str], str] | tuple[str | re.Pattern[str], ...]:
    """Reads a function from text to text, or names of ready-made expressions and expressions of one's own."""
    if callable(value):
        return value  # type: ignore[no-any-return]  # its result is looked at when it is called
    listed = _names(value) if isinstance(value, (str, Iterable)) and not isinstance(value, bytes) else (value,)
    for each in listed:
        if not (each in READY_MADE if isinstance(each, str) else _is_expression(each)):
            raise ValueError(
                f"expected a function from text to text, or some of {', '.join(READY_MADE)} and compiled expressions"
            )
    return listed


def _is_expression(value: Any) -> bool:
    return isinstance(value, re.Pattern) and isinstance(value.pattern, str)


def _names(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(name for each in value.split(",") if (name := each.strip().lower()))
    return tuple(value)


def hidden(value: Any) -> tuple[str, ...]:
    """Reads names of what is hidden."""
    listed = _names(value)
    if not set(listed) <= set(HIDEABLE):
        raise ValueError(f"expected some of {', '.join(HIDEABLE)}")
    return listed


def globs(value: Any) -> tuple[str, ...]:
    """Reads patterns of keys, as a shell has them; `none` for no pattern."""
    listed = tuple(str(each).strip() for each in (value.split(",") if isinstance(value, str) else value))
    return tuple(each for each in listed if each and each.lower() != "none")


def characters(value: Any) -> int:
    """Reads a number of characters, 0 included."""
    try:
        number = int(str(value).strip())
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError("expected a whole number of characters, 0 to keep none")
    return number
