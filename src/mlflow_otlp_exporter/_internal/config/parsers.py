"""From what users write to values: a function per kind of setting; each raises `ValueError` with what it expected."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Parser = Callable[[Any], Any]

_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
_COMPRESSIONS = ("none", "gzip", "deflate")
_DURABILITIES = ("request", "every-span")
# Characters that RFC 9110 (5.6.2) allows in a header's name.
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_WORKSPACE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def boolean(value: Any) -> bool:
    """Reads `True`, `"true"`, `"1"`, `"yes"`, `"on"` and their opposites."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("expected true or false")


def seconds(value: Any) -> float:
    """Reads a positive, finite number of seconds."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("expected a number of seconds above 0")
    return number


def ratio(value: Any) -> float:
    """Reads a number from 0 to 1."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError("expected a number from 0 to 1")
    return number


def words(value: Any) -> tuple[str, ...]:
    """Reads names: a sequence, or a text with commas between them."""
    found = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(word for each in found if (word := str(each).strip()))
    except TypeError:
        raise ValueError("expected names, with commas between") from None


def names_among(*known: str) -> Parser:
    """Makes a reader of names of which only some are known."""

    def parse(value: Any) -> tuple[str, ...]:
        found = words(value)
        if set(found) - set(known):
            raise ValueError(f"expected some of {', '.join(known)}")
        return found

    return parse


def boolean_or_names(value: Any) -> bool | tuple[str, ...]:
    """Reads true, false, or names; one that begins with `-` is left out of all."""
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE):
        return boolean(value)
    return words(value) or False


def positive_integer(value: Any) -> int:
    """Reads a whole number above 0."""
    try:
        number = int(str(value).strip())
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("expected a whole number above 0")
    return number


def size_limit(value: Any) -> int:
    """Reads a number of bytes; 0 and below mean no limit, as for upstream's `max_request_size`."""
    try:
        return max(0, int(str(value).strip()))
    except ValueError:
        raise ValueError("expected a whole number of bytes, 0 for no limit") from None


def text(value: Any) -> str:
    """Reads a text that is not blank and can stand in a header."""
    found = str(value).strip()
    if not found or not found.isprintable():
        raise ValueError("expected a text that is not blank and has no control characters")
    return found


def experiment_id(value: Any) -> str:
    """Reads an experiment's id: MLflow's SQL stores number them (`422` or `400` for anything else)."""
    found = str(value).strip()
    if not (found.isascii() and found.isdigit()):
        raise ValueError(
            "expected the number that the console shows as the experiment's id; a name goes into experiment="
        )
    return found


def experiment_name(value: Any) -> str:
    """Reads an experiment's name: at most 500 characters (MLflow 3.17)."""
    found = text(value)
    if len(found) > 500:  # the limit is named in the docstring
        raise ValueError(f"expected at most 500 characters, got {len(found)}")
    return found


def workspace(value: Any) -> str:
    """Reads a workspace's name by MLflow's rule: 2 to 63 of a-z, 0-9 and -, not beginning or ending with -."""
    found = str(value).strip()
    if not 2 <= len(found) <= 63 or not _WORKSPACE.issuperset(found) or "-" in (found[0], found[-1]):
        raise ValueError("expected 2 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")
    return found


def compression(value: Any) -> str:
    """Reads `none`, `gzip` or `deflate`, or upstream's `Compression` members."""
    found = str(getattr(value, "value", value)).strip().lower()
    if found not in _COMPRESSIONS:
        raise ValueError(f"expected one of {', '.join(_COMPRESSIONS)}")
    return found


def readable_file(value: Any) -> str:
    """Reads the path of a file that can be opened now, as certificates must be."""
    path = Path(os.fspath(value)).expanduser()
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise ValueError(f"expected a file that can be read ({error.strerror or type(error).__name__})") from error


def file_to_be(value: Any) -> str:
    """Reads the path of a file that may not exist yet, as a projected token may at start."""
    return str(Path(os.fspath(value)).expanduser())


def _header(name: Any, value: Any) -> tuple[str, str]:
    name, value = str(name).strip().lower(), str(value).strip()
    if not name or not _TOKEN.issuperset(name):
        # Never the name itself: `Authorization: Bearer abc=` has the secret in what stands before the equals sign.
        raise ValueError("expected header names of letters, digits and '-'")
    if not value.isprintable() or not all(ord(character) < 256 for character in value):  # latin-1
        raise ValueError("expected header values of printable latin-1 characters")
    return name, value


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, str):
        for number, item in enumerate(value.split(","), 1):
            if not item.strip():
                continue
            name, equals, content = item.partition("=")
            if not equals:
                # Never the item itself: a malformed header is most often a bare secret.
                raise ValueError(f"expected name=value pairs with commas between, item {number} has no '='")
            yield unquote(name), unquote(content)
    elif isinstance(value, Mapping):
        yield from value.items()
    else:
        for item in value:
            yield (item["name"], item["value"]) if isinstance(item, Mapping) else (item[0], item[1])


def headers(value: Any) -> dict[str, str]:
    """Reads headers: a mapping, pairs, declarative `{name, value}` items, or OpenTelemetry's `a=1,b=2` with %-escapes.

    Returns:
        Header values by lower-case name.
    """
    try:
        return dict(_header(name, content) for name, content in _pairs(value))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("expected a mapping of header names to values") from error


def user_agent_safe(value: str) -> str:
    """Drops what may not stand in a header."""
    return "".join(character for character in value if character.isascii() and character.isprintable())


def durability(value: Any) -> str:
    """Reads what is to survive a killed process."""
    found = str(value).strip().lower()
    if found not in _DURABILITIES:
        raise ValueError(f"expected one of {', '.join(_DURABILITIES)}")
    return found


def folder(value: Any) -> str:
    """Reads the path of a folder, which need not exist yet."""
    found = os.path.abspath(os.path.expanduser(str(value).strip()))  # noqa: PTH100, PTH111 - no link is followed
    if os.path.exists(found) and not os.path.isdir(found):  # noqa: PTH110, PTH112 - as above
        raise ValueError("expected the path of a folder")
    return found


def folder_or_none(value: Any) -> str | None:
    """Reads the path of a folder; `none` for no folder."""
    return None if str(value).strip().lower() == "none" else folder(value)
