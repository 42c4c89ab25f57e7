"""pydantic-ai's own attributes, in all versions of its data format; keys distinguish them, not the version number."""

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan, Part
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_objects, parse_structured, parse_text, to_text


def read(span: SpanView) -> NormalizedSpan | None:
    """Read agent runs, tool calls, and the events that the first format keeps in an attribute."""
    attributes = span.attributes
    input_messages, output_messages = _read_events(attributes)
    transcript = read_messages(attributes.get("pydantic_ai.all_messages")) or read_messages(
        attributes.get("all_messages_events")
    )
    if transcript:
        input_messages, output_messages = _split_run(attributes, transcript)
    parameters = parse_structured(attributes.get("model_request_parameters"))
    tools = read_tools(parameters.get("function_tools")) if isinstance(parameters, dict) else None
    normalized = NormalizedSpan(
        input_messages=input_messages,
        output_messages=output_messages,
        transcript=transcript,
        input=attributes.get("tool_arguments"),
        output=attributes.get("tool_response"),
        tools=tools,
        agent_name=parse_text(attributes.get("agent_name")),
        covered_keys=("pydantic_ai.all_messages",) if transcript and "pydantic_ai.all_messages" in attributes else (),
    )
    return normalized if any(normalized) else None


def _read_events(attributes: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """Format 1: a JSON list of events, which later versions replaced by messages."""
    if "events" not in attributes:
        return None, None
    input_messages: list[Message] = []
    output_messages: list[Message] = []
    for event in parse_objects(attributes["events"]):
        name = event.get("event.name", "")
        if name == "gen_ai.choice":
            message = event.get("message")
            output_messages += read_messages([message] if isinstance(message, dict) else None, "assistant") or ()
        elif isinstance(name, str) and name.startswith("gen_ai."):
            input_messages += read_messages([event]) or ()
    return tuple(input_messages) or None, tuple(output_messages) or None


def _split_run(
    attributes: Mapping[str, Any], transcript: tuple[Message, ...]
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """The input of a run, up to the user's last message, and its result."""
    last_user_index = max((index for index, message in enumerate(transcript) if message.role == "user"), default=-1)
    result = attributes.get("final_result")
    if result is not None:
        output_messages: tuple[Message, ...] | None = (Message("assistant", (Part("text", to_text(result)),)),)
    elif transcript[-1].role == "assistant" and transcript[-1].text:
        output_messages = transcript[-1:]
    else:
        output_messages = None
    return transcript[: last_user_index + 1] or None, output_messages
