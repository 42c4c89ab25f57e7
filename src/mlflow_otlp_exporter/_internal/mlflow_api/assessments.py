"""Feedback and expectations as MLflow takes them: from arguments to a request's body; pure functions."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.privacy.mask import Mask

SOURCE_TYPES = ("HUMAN", "CODE", "LLM_JUDGE")
_SOMEBODY = "default"  # as MLflow's SDK names a source that nobody named
# What the columns of MLflow's databases hold.
_LONGEST_NAME, _LONGEST_SOURCE = 250, 250
_TRACE_BITS, _SPAN_BITS = 128, 64
_DEEPEST = 32


class Assessment(NamedTuple):
    """An assessment on its way.

    Attributes:
        workspace: The workspace of its trace; None for the server's default.
        trace: Its trace's id in MLflow.
        body: What MLflow is sent.
    """

    workspace: str | None
    trace: str
    body: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its own id, made here, so that MLflow takes it once however often it is sent."""
        return str(self.body["assessment_id"])


def trace_name(trace_id: int | str) -> str:
    """A trace's id in MLflow.

    Args:
        trace_id: OpenTelemetry's as a number or in hexadecimal, or MLflow's.

    Raises:
        ConfigurationError: It is neither.
    """
    return f"tr-{_number('trace_id', trace_id, _TRACE_BITS, 'tr-'):032x}"


def build_assessment(
    kind: str,
    trace: str,
    name: str,
    value: Any,
    *,
    workspace: str | None,
    rationale: str | None = None,
    source: str | None = None,
    source_type: str = "HUMAN",
    metadata: Mapping[str, Any] | None = None,
    span_id: int | str | None = None,
    mask: Mask | None = None,
) -> Assessment:
    """Makes an assessment.

    Args:
        kind: `feedback` or `expectation`.
        trace: What `trace_name` gave.
        name: What is judged.
        value: The judgement: anything that JSON has.
        workspace: The workspace of the trace.
        rationale: Why.
        source: Who says so.
        source_type: What that is.
        metadata: More, by name.
        span_id: The span that is judged; None for the trace.
        mask: What masks values, rationale and metadata.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    _check(name, value, rationale, source_type, metadata)
    value = _plain(value, 0)
    more = {str(key): _plain(each, 0) for key, each in (metadata or {}).items()}
    if mask is not None:
        value, rationale = mask.value(name, value), mask.text(rationale) if rationale else None
        more = {key: mask.value(key, each) for key, each in more.items()}
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body: dict[str, Any] = {
        "assessment_id": f"a-{uuid.uuid4().hex}",
        "assessment_name": name,
        "trace_id": trace,
        "source": {"source_type": source_type, "source_id": str(source or _SOMEBODY)[:_LONGEST_SOURCE]},
        "create_time": now,
        "last_update_time": now,
    }
    if kind == "expectation" and isinstance(value, (dict, list)):
        # As MLflow's SDK sends what is no scalar.
        body[kind] = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": json.dumps(value)}}
    else:
        body[kind] = {"value": value}
    if rationale:
        body["rationale"] = rationale
    if more:
        body["metadata"] = {key: each if isinstance(each, str) else json.dumps(each) for key, each in more.items()}
    if span_id is not None:
        body["span_id"] = f"{_number('span_id', span_id, _SPAN_BITS):016x}"
    return Assessment(workspace, trace, body)


def _check(name: Any, value: Any, rationale: Any, source_type: Any, metadata: Any) -> None:
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        raise ConfigurationError(f"name is {_short(name)}: expected 1 to {_LONGEST_NAME} characters")
    if source_type not in SOURCE_TYPES:
        raise ConfigurationError(f"source_type is {_short(source_type)}: expected one of {', '.join(SOURCE_TYPES)}")
    if rationale is not None and not isinstance(rationale, str):
        raise ConfigurationError(f"rationale is {_short(rationale)}: expected a text")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ConfigurationError(f"metadata is {_short(metadata)}: expected a mapping")
    if value is None:
        raise ConfigurationError("value is None: expected a truth value, a number, a text, a list or a mapping")


def _number(what: str, given: int | str, bits: int, prefix: str = "") -> int:
    found: int | None = None
    if isinstance(given, int) and not isinstance(given, bool):
        found = given
    elif isinstance(given, str):
        digits = given.strip().removeprefix(prefix)
        if len(digits) == bits // 4 and all(each in "0123456789abcdefABCDEF" for each in digits):
            found = int(digits, 16)
    if found is None or not 0 < found < 1 << bits:
        ours = f", or MLflow's ({prefix}...)" if prefix else ""
        raise ConfigurationError(
            f"{what} is {_short(given)}: expected OpenTelemetry's, as a number or as {bits // 4} hexadecimal "
            f"digits{ours}"
        )
    return found


def _plain(value: Any, depth: int) -> Any:
    """A value as JSON has it.

    Raises:
        ConfigurationError: It is nothing that JSON has.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(key): _plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [_plain(each, depth + 1) for each in value]
    raise ConfigurationError(
        f"value is or holds {_short(value)}: expected truth values, finite numbers, texts, lists and mappings"
    )


def _short(value: Any) -> str:
    """What was given, by its type where it may be long or private."""
    return repr(value) if isinstance(value, (str, int, float)) and len(str(value)) <= 50 else type(value).__name__
