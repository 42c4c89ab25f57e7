"""Events of the GenAI conventions before messages became attributes: `gen_ai.user.message`, `gen_ai.choice` and others.

Strands writes them by default; older instrumentations of OpenTelemetry and Azure do.
"""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import parse_operation
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages, to_result_text
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, Message, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_structured, parse_text

_ROLES = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_CHOICE = "gen_ai.choice"


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads a span whose messages are events."""
    kind = parse_operation(source.attributes.get("gen_ai.operation.name"))
    if kind is Kind.TOOL:
        return _read_tool(source)
    given: list[Message] = []
    answered: list[Message] = []
    reason = None
    for event in source.events:
        role = _ROLES.get(event.name)
        if role is not None:
            given += _read_message(event.attributes, role)
        elif event.name == _CHOICE:
            answered += _read_message(event.attributes, "assistant")
            reason = parse_text(event.attributes.get("finish_reason")) or reason
        elif event.name == "gen_ai.content.prompt":
            given += _read_content(event.attributes.get("gen_ai.prompt"), "user")
        elif event.name == "gen_ai.content.completion":
            answered += _read_content(event.attributes.get("gen_ai.completion"), "assistant")
    if not given and not answered:
        return None
    return NormalizedSpan(
        input_messages=tuple(given) or None, output_messages=tuple(answered) or None, finish_reason=reason
    )


def _read_message(attributes: Any, role: str) -> list[Message]:
    item = dict(attributes)
    message = parse_structured(item.get("message"))
    if isinstance(message, dict):
        item.update(message)
    elif "message" in item:
        item["content"] = item.pop("message")
    item["role"] = role
    item.pop("tool.result", None)  # Strands repeats there what follows as a tool message
    if isinstance(content := item.get("content"), str):
        item["content"] = content.rstrip("\n") if role == "assistant" else content
    return list(read_messages([item]) or ())


def _read_content(value: Any, role: str) -> list[Message]:
    return list(read_messages(value, role) or ())


def _read_tool(source: SpanView) -> NormalizedSpan | None:
    arguments = result = None
    for event in source.events:
        if event.name == "gen_ai.tool.message":
            arguments = event.attributes.get("content")
        elif event.name == _CHOICE:
            said = decode_json(event.attributes.get("message"))
            result = to_result_text(said) if isinstance(said, list) else said
    tools = None
    name, schema = source.attributes.get("gen_ai.tool.name"), source.attributes.get("gen_ai.tool.json_schema")
    if name and schema:
        description = source.attributes.get("gen_ai.tool.description")
        tools = read_tools([{"name": name, "description": description, "parameters": schema}])
    if arguments is None and result is None and tools is None:
        return None
    return NormalizedSpan(input=arguments, output=result, tools=tools)
