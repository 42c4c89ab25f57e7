"""MLflow's own attributes: what the application set itself, or MLflow's SDK in the same application."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_int, parse_structured, parse_text

# Not UNKNOWN, which says no more than no type at all.
_KINDS = {kind.value: kind for kind in Kind if kind is not Kind.UNKNOWN}


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads `mlflow.*`; the SDK writes each value as JSON, others write plain text."""
    found = source.attributes
    said = decode_json(found.get("mlflow.spanType"))
    kind = _KINDS.get(said.upper()) if isinstance(said, str) else None
    given, answered = found.get("mlflow.spanInputs"), found.get("mlflow.spanOutputs")
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(given, model=is_model(kind)) if given is not None else None,
        output_messages=read_response(answered, model=is_model(kind)) if answered is not None else None,
        input=_read_value(given),
        output=_read_value(answered),
        tools=read_tools(found.get("mlflow.chat.tools")),
        usage=_read_usage(found.get("mlflow.chat.tokenUsage")),
        response_model=parse_text(decode_json(found.get("mlflow.llm.model"))),
        provider=parse_text(decode_json(found.get("mlflow.llm.provider"))),
    )


def _read_value(value: Any) -> Any:
    return decode_json(value) if value is not None else None


def _read_usage(value: Any) -> Usage | None:
    found = parse_structured(value)
    if not isinstance(found, dict):
        return None
    usage = Usage(
        parse_int(found.get("input_tokens")),
        parse_int(found.get("output_tokens")),
        parse_int(found.get("total_tokens")),
        parse_int(found.get("cache_read_input_tokens")),
        parse_int(found.get("cache_creation_input_tokens")),
    )
    return usage if any(count is not None for count in usage) else None
