"""Parsers of arguments and of variables' texts. Each raises `ValueError` with what it expected."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlflow_otlp_exporter._internal.common.files import open_regular_file
from mlflow_otlp_exporter._internal.config.urls import hide_secrets
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, plain_experiment_id

Parser = Callable[[Any], Any]

MASK_PATTERNS = ("email", "keys", "cards", "phones")
# What can be hidden: OpenInference's variables (0.1.72) without `OPENINFERENCE_HIDE_`, in lower case.
HIDEABLE = (
    *("inputs", "outputs", "input_messages", "output_messages", "input_images", "input_text", "output_text"),
    *("prompts", "choices", "retrieval_documents", "llm_invocation_parameters", "llm_tools"),
    *("embeddings_vectors", "embeddings_text"),
    *("embedding_vectors", "llm_prompts"),  # older names, which its documentation still has
)
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
# Characters that RFC 9110 (5.6.2) allows in a header's name.
_HEADER_NAME = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_WORKSPACE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_MAX_EXPERIMENT_NAME = 500  # MLflow 3.17
_MAX_PORT = 65_535
_MIN_TOKEN_LENGTH = 20  # shorter names are files in the current folder


class SecretValueError(ValueError):
    """A value that is itself a secret, such as a token where the path of its file is expected."""


def parse_boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("expected true or false")


def parse_boolean_or_names(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE):
        return parse_boolean(value)
    return parse_names(value) or False


def _to_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def parse_seconds(value: Any) -> float:
    number = _to_number(value)
    if not 0 < number < math.inf:
        raise ValueError("expected a number of seconds above 0")
    return number


def parse_wait(value: Any) -> float:
    if str(value).strip().lower() == "none":
        return math.inf
    number = _to_number(value)
    if math.isnan(number) or number < 0:
        raise ValueError("expected a number of seconds from 0, or none")
    return number


def parse_ratio(value: Any) -> float:
    number = _to_number(value)
    if not 0 <= number <= 1:
        raise ValueError("expected a number from 0 to 1")
    return number


def _parse_integer(value: Any, minimum: int, expected: str) -> int:
    try:
        number = int(str(value).strip())
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise ValueError(f"expected {expected}")
    return number


def parse_positive_integer(value: Any) -> int:
    return _parse_integer(value, 1, "a whole number above 0")


def parse_length(value: Any) -> int:
    return _parse_integer(value, 0, "a whole number of characters, 0 to keep none")


def parse_size_limit(value: Any) -> int:
    """Parse a number of bytes; 0 and below mean no limit, as for upstream's `max_request_size`."""
    try:
        return max(0, int(str(value).strip()))
    except ValueError:
        raise ValueError("expected a whole number of bytes, 0 for no limit") from None


def parse_names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(name for item in names if (name := str(item).strip()))
    except TypeError:
        raise ValueError("expected names, with commas between") from None


def choices(*allowed: str) -> Parser:
    """Make a parser of names that accepts only these."""

    def parse(value: Any) -> tuple[str, ...]:
        names = parse_names(value)
        if set(names) - set(allowed):
            raise ValueError(f"expected some of {', '.join(allowed)}")
        return names

    return parse


def one_of(*allowed: str) -> Parser:
    """Make a parser of one name, also as a member of an enum such as upstream's `Compression`."""

    def parse(value: Any) -> str:
        name = str(getattr(value, "value", value)).strip().lower()
        if name not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return name

    return parse


def parse_globs(value: Any) -> tuple[str, ...]:
    """Parse shell patterns; `none` for no pattern."""
    patterns = tuple(str(item).strip() for item in (value.split(",") if isinstance(value, str) else value))
    return tuple(pattern for pattern in patterns if pattern and pattern.lower() != "none")


def parse_hidden(value: Any) -> tuple[str, ...]:
    names = _split_names(value)
    if not set(names) <= set(HIDEABLE):
        raise ValueError(f"expected some of {', '.join(HIDEABLE)}")
    return names


def parse_mask(value: Any) -> Callable[[str], str] | tuple[str | re.Pattern[str], ...]:
    """Parse a function from text to text, or names of built-in patterns and compiled expressions."""
    if callable(value):
        return value  # type: ignore[no-any-return]  # its result is checked when it is called
    patterns = _split_names(value) if isinstance(value, (str, Iterable)) and not isinstance(value, bytes) else (value,)
    for pattern in patterns:
        if not (pattern in MASK_PATTERNS if isinstance(pattern, str) else _is_text_pattern(pattern)):
            raise ValueError(
                f"expected a function from text to text, or some of {', '.join(MASK_PATTERNS)} and compiled expressions"
            )
    return patterns


def _is_text_pattern(value: Any) -> bool:
    return isinstance(value, re.Pattern) and isinstance(value.pattern, str)


def _split_names(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(name for item in value.split(",") if (name := item.strip().lower()))
    return tuple(value)


def parse_listen_address(value: Any) -> str:
    """Parse `host:port`; an IPv6 address stands in brackets."""
    address = str(value).strip()
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _MAX_PORT
    if not host or not is_port or (":" in host and host[0] + host[-1] != "[]"):
        raise ValueError("expected host:port, such as 127.0.0.1:4318")
    return address


def parse_listen_address_or_none(value: Any) -> str | None:
    return None if str(value).strip().lower() == "none" else parse_listen_address(value)


def parse_text(value: Any) -> str:
    text = str(value).strip()
    if not text or not text.isprintable():
        raise ValueError("expected a text that is not blank and has no control characters")
    return text


def parse_experiment_id(value: Any) -> str:
    """Parse a number: MLflow's SQL stores answer 422 or 400 to any other id."""
    number = plain_experiment_id(str(value).strip())
    if not (number.isascii() and number.isdigit()):
        raise ValueError(
            "expected the number that the console shows as the experiment's id; a name goes into experiment="
        )
    return number


def parse_experiment_name(value: Any) -> str:
    name = parse_text(value)
    if len(name) > _MAX_EXPERIMENT_NAME:
        raise ValueError(f"expected at most {_MAX_EXPERIMENT_NAME} characters, got {len(name)}")
    return name


def parse_workspace(value: Any) -> str:
    """Parse a workspace's name by MLflow's own rule."""
    name = str(value).strip()
    if not 2 <= len(name) <= 63 or not _WORKSPACE.issuperset(name) or "-" in (name[0], name[-1]):
        raise ValueError("expected 2 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")
    return name


def parse_readable_file(value: Any) -> str:
    path = _parse_path(value)
    try:
        os.close(open_regular_file(path, os.O_RDONLY, follow_symlinks=True))
        return str(path)
    except OSError as error:
        raise ValueError(f"expected a file that can be read ({error.strerror or type(error).__name__})") from error


def parse_optional_file(value: Any) -> str:
    """Parse the path of a file that may not exist yet, as a projected token may not at start."""
    return str(_parse_path(value))


def expand_home(path: str) -> str:
    """Replace a leading `~`; raises ValueError for a user without home directory."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser() raises RuntimeError
    if expanded.startswith("~"):
        raise ValueError("expected a path without ~, because this user has no home directory")
    return expanded


def _parse_path(value: Any) -> Path:
    path = Path(expand_home(os.fspath(value)))
    text = str(path)
    # A token without a known form is not told from a file's name that does not exist yet by more than its length.
    is_token = hide_secrets(text) != text or len(text) >= _MIN_TOKEN_LENGTH
    if "-----BEGIN" in text or (is_token and len(path.parts) == 1 and not os.path.exists(text)):  # noqa: PTH110 - of any text
        raise SecretValueError("expected the path of a file, not its content")
    return path


def parse_directory(value: Any) -> str:
    """Parse the path of a folder, which may not exist yet."""
    path = os.path.abspath(expand_home(str(value).strip()))  # noqa: PTH100 - no link is followed
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - as above
        raise ValueError("expected the path of a folder")
    return path


def parse_directory_or_none(value: Any) -> str | None:
    return None if str(value).strip().lower() == "none" else parse_directory(value)


def parse_headers(value: Any) -> dict[str, str]:
    """Parse a mapping, pairs, declarative `{name, value}` items, or OpenTelemetry's `a=1,b=2` with %-escapes."""
    try:
        return dict(_parse_header(name, content) for name, content in _header_items(value))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("expected a mapping of header names to values") from error


def _header_items(value: Any) -> Iterable[tuple[Any, Any]]:
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


def _parse_header(name: Any, value: Any) -> tuple[str, str]:
    name, value = str(name).strip().lower(), str(value).strip()
    if not name or not _HEADER_NAME.issuperset(name):
        # Never the name itself: in `Authorization: Bearer abc=` the secret stands before the equals sign.
        raise ValueError("expected header names of letters, digits and '-'")
    if not value.isprintable() or not all(ord(character) < 256 for character in value):  # latin-1
        raise ValueError("expected header values of printable latin-1 characters")
    return name, plain_experiment_id(value) if name == EXPERIMENT_HEADER else value
