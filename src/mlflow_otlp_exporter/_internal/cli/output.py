"""Text for terminals: colours, control characters, widths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ESCAPE = re.compile(r"\x1b\[\d{1,2}m")


def has_colors(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to use colours: on a terminal, unless NO_COLOR is set; elsewhere, if FORCE_COLOR is set."""
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    try:
        return stream.isatty() and environment.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # the process started with the stream closed, or it was closed since
        return False


def paint(text: str, style: str) -> str:
    """Add a colour for stdout, if it shows colours."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style and text and has_colors(sys.stdout) else text


def clean(text: str) -> str:
    """Replace what could control the terminal, and lone surrogates."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shorten(text: str, max_length: int) -> str:
    """Return a text as one line of at most this length, without control characters."""
    line = clean(" ".join(text[: 4 * max_length + 100].split()))
    is_cut = len(line) > max_length or len(text) > 4 * max_length + 100
    return line if not is_cut else f"{line[: max_length - 3].rstrip()}..."


def replace_unencodable() -> None:
    """Print `?` for characters that the terminal's encoding does not have, instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def page_url(name: str) -> str:
    """Return the address of a page of the documentation, on the site that pyproject.toml names."""
    import importlib.metadata  # 10 ms, for this line of the doctor only

    try:
        pairs = importlib.metadata.metadata("mlflow-otlp-exporter").get_all("Project-URL", [])
        site = dict(pair.split(", ") for pair in pairs)["Documentation"]
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):  # on PYTHONPATH, or in an archive
        return f"docs/{name}.md"
    return f"{site}{name}/"
