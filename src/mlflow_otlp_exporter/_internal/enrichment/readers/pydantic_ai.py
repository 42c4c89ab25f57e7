"""pydantic-ai's own attributes, in all versions of its data format; the keys tell them apart, not the version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan, Part
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_objects, parse_structured, parse_text, to_text


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads agent runs, tool calls, and the events that the first format keeps in an attribute."""
    found = source.attributes
    given, answered = _read_events(found)
    transcript = read_messages(found.get("pydantic_ai.all_messages")) or read_messages(found.get("all_messages_events"))
    if transcript:
        given, answered = _split_run(found, transcript)
    parameters = parse_structured(found.get("model_request_parameters"))
    tools = read_tools(parameters.get("function_tools")) if isinstance(parameters, dict) else None
    observation = NormalizedSpan(
        input_messages=given,
        output_messages=answered,
        transcript=transcript,
        input=found.get("tool_arguments"),
        output=found.get("tool_response"),
        tools=tools,
        agent_name=parse_text(found.get("agent_name")),
        carried=("pydantic_ai.all_messages",) if transcript and "pydantic_ai.all_messages" in found else (),
    )
    return observation if any(observation) else None


def _read_events(found: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """Format 1: a JSON list of what later became messages."""
    if "events" not in found:
        return None, None
    given: list[Message] = []
    answered: list[Message] = []
    for event in parse_objects(found["events"]):
        name = event.get("event.name", "")
        if name == "gen_ai.choice":
            message = event.get("message")
            answered += read_messages([message] if isinstance(message, dict) else None, "assistant") or ()
        elif isinstance(name, str) and name.startswith("gen_ai."):
            given += read_messages([event]) or ()
    return tuple(given) or None, tuple(answered) or None


def _split_run(
    found: Mapping[str, Any], transcript: tuple[Message, ...]
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """What a run was given and what it answered: everything up to the user's last words, and the result."""
    last = max((index for index, message in enumerate(transcript) if message.role == "user"), default=-1)
    result = found.get("final_result")
    if result is not None:
        answered: tuple[Message, ...] | None = (Message("assistant", (Part("text", to_text(result)),)),)
    elif transcript[-1].role == "assistant" and transcript[-1].text:
        answered = transcript[-1:]
    else:
        answered = None
    return transcript[: last + 1] or None, answered
