"""The Model Context Protocol's SDK, which makes spans of its own."""

from __future__ import annotations

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import select_text

_CALL = "tools/call"


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads the call of a tool; the tool's name is the end of the span's name."""
    found = source.attributes
    if found.get("mcp.method.name") != _CALL:
        return None
    _, called, name = source.name.rpartition(_CALL + " ")
    tool = select_text(found.get("gen_ai.tool.name"), found.get("mcp.tool.name"), name if called else None)
    return NormalizedSpan(
        kind=Kind.TOOL,
        tool_name=tool,
        input=found.get("gen_ai.tool.call.arguments", found.get("mcp.request.argument")),
        output=found.get("gen_ai.tool.call.result"),
        session=select_text(found.get("mcp.session.id")),
    )
