"""Events that the GenAI conventions had before message attributes: `gen_ai.user.message`, `gen_ai.choice` and others.

Written by Strands by default, and by older instrumentations of OpenTelemetry and Azure; by the first format of
pydantic-ai as a list in an attribute.
"""

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import OPERATIONS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages, to_result_text
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan, Part
from mlflow_otlp_exporter._internal.enrichment.readers.base import EventView, SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_kind,
    parse_objects,
    parse_structured,
    parse_text,
    parse_texts,
)

_ROLES = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_CHOICE = "gen_ai.choice"


def read(span: SpanView) -> NormalizedSpan | None:
    kind = parse_kind(span.attributes.get("gen_ai.operation.name"), OPERATIONS)
    if kind is Kind.TOOL:
        return _read_tool(span)
    input_messages: list[Message] = []
    output_messages: list[Message] = []
    reason = None
    listed = parse_objects(span.attributes["events"]) if "events" in span.attributes else ()
    for event in (*span.events, *(EventView(str(item.get("event.name")), item) for item in listed)):
        role = _ROLES.get(event.name)
        if role is not None:
            input_messages += _read_message(event.attributes, role)
        elif event.name == _CHOICE:
            output_messages += _read_message(event.attributes, "assistant")
            reason = parse_text(event.attributes.get("finish_reason")) or reason
        elif event.name == "gen_ai.content.prompt":
            input_messages += _read_contents(event.attributes.get("gen_ai.prompt"), "user")
        elif event.name == "gen_ai.content.completion":
            output_messages += _read_contents(event.attributes.get("gen_ai.completion"), "assistant")
    if not input_messages and not output_messages:
        return None
    return NormalizedSpan(
        input_messages=tuple(input_messages) or None,
        output_messages=tuple(output_messages) or None,
        finish_reason=reason,
    )


def _read_message(attributes: Any, role: str) -> tuple[Message, ...]:
    item = dict(attributes)
    content = parse_structured(item.pop("gen_ai.event.content", None))  # Azure AI Inference
    if isinstance(content, dict):
        item.update(content)
    message = parse_structured(item.get("message"))
    if isinstance(message, dict):
        item.update(message)
    elif "message" in item:
        item["content"] = item.pop("message")
    item["role"] = role
    item.pop("tool.result", None)  # Strands repeats the result in the tool message that follows
    if isinstance(content := item.get("content"), str):
        item["content"] = content.rstrip("\n") if role == "assistant" else content
    return read_messages([item]) or ()


def _read_contents(value: Any, role: str) -> tuple[Message, ...]:
    """Messages, or a list of texts, as Spring AI writes them."""
    messages = read_messages(value, role)
    return messages or tuple(Message(role, (Part("text", text),)) for text in parse_texts(value) or ())


def _read_tool(span: SpanView) -> NormalizedSpan | None:
    arguments = result = None
    for event in span.events:
        if event.name == "gen_ai.tool.message":
            arguments = event.attributes.get("content")
        elif event.name == _CHOICE:
            message = decode_json(event.attributes.get("message"))
            result = to_result_text(message) if isinstance(message, list) else message
    tools = None
    name, schema = span.attributes.get("gen_ai.tool.name"), span.attributes.get("gen_ai.tool.json_schema")
    if name and schema:
        description = span.attributes.get("gen_ai.tool.description")
        tools = read_tools([{"name": name, "description": description, "parameters": schema}])
    if arguments is None and result is None and tools is None:
        return None
    return NormalizedSpan(input=arguments, output=result, tools=tools)
