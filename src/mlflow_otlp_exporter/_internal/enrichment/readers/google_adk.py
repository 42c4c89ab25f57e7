"""Google's Agent Development Kit: `gcp.vertex.agent.*`; version 1 keeps requests and responses as JSON."""

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, find_model_call, read_dialect

_PREFIX = "gcp.vertex.agent."
_MERGED_TOOLS = "(merged tools)"
_REQUEST, _RESPONSE = _PREFIX + "llm_request", _PREFIX + "llm_response"
_PLACEHOLDERS = ("N/A", "<not serializable>", "{}")


def _complete(_: SpanView, normalized: NormalizedSpan) -> NormalizedSpan:
    if normalized.kind is not Kind.CHAT_MODEL:
        return normalized
    messages = {_REQUEST: normalized.input_messages, _RESPONSE: normalized.output_messages}
    reason = (normalized.finish_reason or "").lower() or None
    return normalized._replace(finish_reason=reason, covered_keys=tuple(key for key in messages if messages[key]))


_ADK = Dialect(
    "Google ADK",
    frozenset({"gcp"}),
    {
        "input": (_PREFIX + "tool_call_args", _REQUEST),
        "output": (_PREFIX + "tool_response", _RESPONSE),
        "session": (_PREFIX + "session_id",),
    },
    find_kind=find_model_call(_REQUEST),
    complete=_complete,
)


def read(span: SpanView) -> NormalizedSpan | None:
    """Read model and tool calls."""
    values = {key: value for key, value in span.attributes.items() if value not in _PLACEHOLDERS}
    return read_dialect(_ADK, span._replace(attributes=values))


def read_merged(span: SpanView) -> NormalizedSpan | None:
    """Read the span after parallel tool calls: it is named like a tool, but MLflow's scorers must not count it."""
    if span.attributes.get("gen_ai.tool.name") == _MERGED_TOOLS:
        return NormalizedSpan(kind=Kind.CHAIN)
    return None
