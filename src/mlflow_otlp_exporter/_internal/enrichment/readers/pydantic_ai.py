"""pydantic-ai's own attributes, in all versions of its data format; keys distinguish them, not the version number."""

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import to_message
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, parse_text, to_text


def read(span: SpanView) -> NormalizedSpan | None:
    """Read agent runs and tool calls; the events of the first format are those of GenAI."""
    attributes = span.attributes
    keys = ("pydantic_ai.all_messages", "all_messages_events")
    transcript = next(filter(None, map(read_messages, map(attributes.get, keys))), None)
    input_messages, output_messages = _split_run(attributes, transcript) if transcript else (None, None)
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


def _split_run(
    attributes: Mapping[str, Any], transcript: tuple[Message, ...]
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """The input of a run, up to the user's last message, and its result."""
    last_user_index = max((index for index, message in enumerate(transcript) if message.role == "user"), default=-1)
    result, last = attributes.get("final_result"), transcript[-1]
    output_messages = to_message("assistant", to_text(result)) if result is not None else None
    if result is None and last.role == "assistant" and last.text:
        output_messages = (last,)
    return transcript[: last_user_index + 1] or None, output_messages
