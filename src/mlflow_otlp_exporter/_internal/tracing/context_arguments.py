"""What an app gives to `trace_context`, read in the forms in which people have it; what is not understood is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.common.bounded_json import bounded_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger

_LONGEST_TAG_NAME = 250  # MLflow drops what is longer, without a word


def parse_text(value: Any) -> str | None:
    """A name without what is around it; None if there is none."""
    text = "" if value is None else str(value).strip()
    return text or None


def parse_tags(tags: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names alone, and names with values."""
    if tags is None:
        return (), {}
    if not isinstance(tags, Iterable):
        said = "trace_context(tags=) is a %s: expected a mapping or names [%s]"
        logger.warning(said, type(tags).__name__, MessageCode.INVALID_TRACE_CONTEXT)
        return (), {}
    names = {str(name).strip(): name for name in ((tags,) if isinstance(tags, str) else tags)}
    refused = [name for name in names if not name or name.startswith("mlflow.") or len(name) > _LONGEST_TAG_NAME]
    if refused:
        logger.warning(
            "tags %s are left out: MLflow keeps names that begin with `mlflow.` for itself, "
            "and takes %d characters [%s]",
            ", ".join(repr(name[:60]) for name in refused),
            _LONGEST_TAG_NAME,
            MessageCode.INVALID_TRACE_CONTEXT,
        )
    kept = [name for name in names if name not in refused]
    if isinstance(tags, Mapping):
        return (), {name: _value(tags[names[name]]) for name in kept}
    return tuple(kept), {}


def parse_metadata(metadata: Any) -> dict[str, Any]:
    """What more there is to know."""
    if metadata is None or isinstance(metadata, Mapping):
        return dict(metadata or {})
    said = "trace_context(metadata=) is a %s: expected a mapping [%s]"
    logger.warning(said, type(metadata).__name__, MessageCode.INVALID_TRACE_CONTEXT)
    return {}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else bounded_json(value).strip('"')


def parse_prompts(prompt: Any) -> tuple[tuple[str, str], ...]:
    """Names and versions, from the forms in which people have them."""
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
        return tuple(each for one in prompt for each in parse_prompts(one))
    said = "trace_context(prompt=) has a %s: expected 'name/version' [%s]"
    logger.warning(said, type(prompt).__name__, MessageCode.INVALID_TRACE_CONTEXT)
    return ()
