"""The Model Context Protocol's SDK, which creates spans of its own."""

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import select_text

_CALL = "tools/call"


def read(span: SpanView) -> NormalizedSpan | None:
    """Read a tool call; the tool's name is the end of the span's name."""
    attributes = span.attributes
    if attributes.get("mcp.method.name") != _CALL:
        return None
    _, separator, name = span.name.rpartition(_CALL + " ")
    tool_name = select_text(
        attributes.get("gen_ai.tool.name"), attributes.get("mcp.tool.name"), name if separator else None
    )
    return NormalizedSpan(
        kind=Kind.TOOL,
        tool_name=tool_name,
        input=attributes.get("gen_ai.tool.call.arguments", attributes.get("mcp.request.argument")),
        output=attributes.get("gen_ai.tool.call.result"),
        session=select_text(attributes.get("mcp.session.id")),
    )
