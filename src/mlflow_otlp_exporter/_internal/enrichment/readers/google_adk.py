"""Google's Agent Development Kit: `gcp.vertex.agent.*`; version 1 keeps requests and responses as JSON."""

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import read_usage
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, parse_text

_PREFIX = "gcp.vertex.agent."
_MERGED_TOOLS = "(merged tools)"
_PLACEHOLDERS = frozenset({"N/A", "<not serializable>", "{}", ""})


def read(span: SpanView) -> NormalizedSpan | None:
    """Read model and tool calls."""
    attributes = span.attributes
    request = parse_structured(attributes.get(_PREFIX + "llm_request")) or {}
    response = parse_structured(attributes.get(_PREFIX + "llm_response")) or {}
    if not isinstance(request, dict) or not isinstance(response, dict):
        return None
    content, config = response.get("content"), request.get("config")
    input_messages = read_request(request, is_model=True) if request else None
    output_messages = read_messages([{"role": "model", **content}], "assistant") if isinstance(content, dict) else None
    reason = parse_text(response.get("finish_reason"))
    covered_keys = [_PREFIX + "llm_request"] if input_messages else []
    covered_keys += [_PREFIX + "llm_response"] if output_messages else []
    normalized = NormalizedSpan(
        kind=Kind.CHAT_MODEL if request.get("model") else None,
        input_messages=input_messages,
        output_messages=output_messages,
        input=_drop_placeholder(attributes.get(_PREFIX + "tool_call_args")),
        output=_drop_placeholder(attributes.get(_PREFIX + "tool_response")),
        tools=read_tools(config.get("tools")) if isinstance(config, dict) else None,
        usage=read_usage(response.get("usage_metadata")),
        request_model=parse_text(request.get("model")),
        provider="gemini" if str(request.get("model", "")).startswith("gemini") else None,
        finish_reason=reason.lower() if reason else None,
        session=parse_text(attributes.get(_PREFIX + "session_id")),
        covered_keys=tuple(covered_keys),
    )
    return normalized if any(normalized) else None


def read_merged(span: SpanView) -> NormalizedSpan | None:
    """Read the span after parallel tool calls: it is named like a tool, but MLflow's scorers must not count it."""
    if span.attributes.get("gen_ai.tool.name") == _MERGED_TOOLS:
        return NormalizedSpan(kind=Kind.CHAIN)
    return None


def _drop_placeholder(value: Any) -> Any:
    return None if isinstance(value, str) and value in _PLACEHOLDERS else value
