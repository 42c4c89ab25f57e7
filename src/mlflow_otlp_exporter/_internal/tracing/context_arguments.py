"""Parsers for the arguments of `trace_context`; values that cannot be used are logged and left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.common.bounded_json import bounded_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger

_MAX_TAG_NAME_LENGTH = 250  # MLflow silently drops tags with longer names


def parse_text(value: Any) -> str | None:
    """Return the stripped text; None if it is empty."""
    text = "" if value is None else str(value).strip()
    return text or None


def parse_tags(tags: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return tags without values and tags with values."""
    if tags is None:
        return (), {}
    if not isinstance(tags, Iterable):
        logger.warning(
            "trace_context(tags=) is a %s and is ignored: expected a mapping or names [%s]",
            type(tags).__name__,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
        return (), {}
    names = {str(name).strip(): name for name in ((tags,) if isinstance(tags, str) else tags)}
    invalid = [name for name in names if not name or name.startswith("mlflow.") or len(name) > _MAX_TAG_NAME_LENGTH]
    if invalid:
        logger.warning(
            "trace_context(tags=) ignores tags %s: MLflow reserves names that begin with `mlflow.` "
            "and accepts at most %d characters [%s]",
            ", ".join(repr(name[:60]) for name in invalid),
            _MAX_TAG_NAME_LENGTH,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
    valid = [name for name in names if name not in invalid]
    if isinstance(tags, Mapping):
        return (), {name: _tag_value(tags[names[name]]) for name in valid}
    return tuple(valid), {}


def parse_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is None or isinstance(metadata, Mapping):
        return dict(metadata or {})
    logger.warning(
        "trace_context(metadata=) is a %s and is ignored: expected a mapping [%s]",
        type(metadata).__name__,
        MessageCode.INVALID_TRACE_CONTEXT,
    )
    return {}


def _tag_value(value: Any) -> str:
    return value if isinstance(value, str) else bounded_json(value).strip('"')


def parse_prompts(prompt: Any) -> tuple[tuple[str, str], ...]:
    """Return names and versions; the accepted forms are documented at `trace_context`."""
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        name, _, version = prompt.removeprefix("prompts:/").rpartition("/")
        if name and version:
            return ((name, version),)
    elif hasattr(prompt, "name") and hasattr(prompt, "version"):
        return ((str(prompt.name), str(prompt.version)),)
    elif isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[1], str | int):  # name and version
        if not (isinstance(prompt[1], str) and "/" in prompt[1]):
            return ((str(prompt[0]), str(prompt[1])),)
        return (*parse_prompts(prompt[0]), *parse_prompts(prompt[1]))
    elif isinstance(prompt, Iterable):
        return tuple(pair for item in prompt for pair in parse_prompts(item))
    logger.warning(
        "trace_context(prompt=) ignores a %s: expected 'name/version' [%s]",
        type(prompt).__name__,
        MessageCode.INVALID_TRACE_CONTEXT,
    )
    return ()
