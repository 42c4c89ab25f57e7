"""Feedback and expectations as request bodies of MLflow; pure functions."""

import json
import math
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.privacy.mask import Mask

SOURCE_TYPES = ("HUMAN", "CODE", "LLM_JUDGE")
_DEFAULT_SOURCE_ID = "default"  # as in MLflow's SDK
# Limits of the columns in MLflow's databases.
_MAX_NAME_LENGTH, _MAX_SOURCE_LENGTH = 250, 250
_TRACE_ID_BITS, _SPAN_ID_BITS = 128, 64
_MAX_DEPTH = 32
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Assessment(NamedTuple):
    """A request body, with the MLflow id of the trace; `workspace=None` is the server's default."""

    workspace: str | None
    trace_id: str
    body: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The id of the assessment, generated here, so that MLflow stores it once however often it is sent."""
        return str(self.body["assessment_id"])


def mlflow_trace_id(trace_id: int | str) -> str:
    """MLflow's id of a trace, from OpenTelemetry's id (number or hexadecimal) or MLflow's; or `ConfigurationError`."""
    return f"tr-{_parse_id('trace_id', trace_id, _TRACE_ID_BITS, 'tr-'):032x}"


def build_assessment(
    kind: str,
    trace_id: str,
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
    """Build an assessment from the arguments of `log_feedback` and `log_expectation`.

    `kind` is `feedback` or `expectation`; `trace_id` is MLflow's id. The mask applies to value, rationale and metadata.
    """
    _check_arguments(name, value, rationale, source_type, metadata)
    value = _to_json_value(value, 0)
    details = {str(key): _to_json_value(item, 0) for key, item in (metadata or {}).items()}
    if mask is not None:
        value, rationale = mask.mask_attribute(name, value), mask.mask_text(rationale) if rationale else None
        details = {key: mask.mask_attribute(key, item) for key, item in details.items()}
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body: dict[str, Any] = {
        "assessment_id": f"a-{uuid.uuid4().hex}",
        "assessment_name": name,
        "trace_id": trace_id,
        "source": {"source_type": source_type, "source_id": str(source or _DEFAULT_SOURCE_ID)[:_MAX_SOURCE_LENGTH]},
        "create_time": now,
        "last_update_time": now,
    }
    if kind == "expectation" and isinstance(value, (dict, list)):
        # MLflow's SDK serializes lists and mappings in the same way.
        body[kind] = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": json.dumps(value)}}
    else:
        body[kind] = {"value": value}
    if rationale:
        body["rationale"] = rationale
    if details:
        body["metadata"] = {key: item if isinstance(item, str) else json.dumps(item) for key, item in details.items()}
    if span_id is not None:
        body["span_id"] = f"{_parse_id('span_id', span_id, _SPAN_ID_BITS):016x}"
    return Assessment(workspace, trace_id, body)


def _check_arguments(name: Any, value: Any, rationale: Any, source_type: Any, metadata: Any) -> None:
    if not isinstance(name, str) or not name or len(name) > _MAX_NAME_LENGTH:
        raise ConfigurationError(f"name is {_describe(name)}: expected 1 to {_MAX_NAME_LENGTH} characters")
    if source_type not in SOURCE_TYPES:
        raise ConfigurationError(f"source_type is {_describe(source_type)}: expected one of {', '.join(SOURCE_TYPES)}")
    if rationale is not None and not isinstance(rationale, str):
        raise ConfigurationError(f"rationale is {_describe(rationale)}: expected a string")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ConfigurationError(f"metadata is {_describe(metadata)}: expected a mapping")
    if value is None:
        raise ConfigurationError("value is None: expected a boolean, a number, a string, a list or a mapping")


def _parse_id(argument: str, value: int | str, bits: int, prefix: str = "") -> int:
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        digits = value.strip().removeprefix(prefix)
        if len(digits) == bits // 4 and _HEX_DIGITS.issuperset(digits):
            number = int(digits, 16)
    if number is None or not 0 < number < 1 << bits:
        or_mlflow_id = f", or an id of MLflow ({prefix}...)" if prefix else ""
        raise ConfigurationError(
            f"{argument} is {_describe(value)}: expected an id of OpenTelemetry, as a number or as {bits // 4} "
            f"hexadecimal digits{or_mlflow_id}"
        )
    return number


def _to_json_value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(key): _to_json_value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [_to_json_value(item, depth + 1) for item in value]
    raise ConfigurationError(
        f"value is or contains {_describe(value)}: expected booleans, finite numbers, strings, lists and mappings"
    )


def _describe(value: Any) -> str:
    """The value, or only its type if the value may be long or private."""
    return repr(value) if isinstance(value, (str, int, float)) and len(str(value)) <= 50 else type(value).__name__
