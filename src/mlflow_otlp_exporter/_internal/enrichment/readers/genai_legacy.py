"""`gen_ai.prompt.N` and `gen_ai.completion.N`: OpenLLMetry before 0.47, and instrumentations modelled on it."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import parse_request_type
from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools

_PROMPT, _COMPLETION, _FUNCTIONS = "gen_ai.prompt.", "gen_ai.completion.", "llm.request.functions."
_PREFIXES = (_PROMPT, _COMPLETION, "llm.request.")


def read(span: SpanView) -> NormalizedSpan | None:
    attributes = span.attributes
    if not any(key.startswith(_PREFIXES) for key in attributes):
        return None
    input_messages = _read_messages(attributes, _PROMPT, "user")
    output_messages = _read_messages(attributes, _COMPLETION, "assistant")
    functions = unflatten(attributes, _FUNCTIONS)
    tools = read_tools(functions) if isinstance(functions, list) else None
    kind = parse_request_type(attributes.get("llm.request.type"))
    if input_messages is None and output_messages is None and tools is None and kind is None:
        return None
    covered_keys = [
        key
        for key in attributes
        if (input_messages and key.startswith(_PROMPT))
        or (output_messages and key.startswith(_COMPLETION))
        or (tools and key.startswith(_FUNCTIONS))
    ]
    reasons = [item.get("finish_reason") for item in _read_items(attributes, _COMPLETION)]
    finish_reason = next((reason for reason in reasons if isinstance(reason, str) and reason), None)
    return NormalizedSpan(
        kind=kind,
        input_messages=input_messages,
        output_messages=output_messages,
        tools=tools,
        finish_reason=finish_reason,
        covered_keys=tuple(covered_keys),
    )


def _read_items(attributes: Any, prefix: str) -> list[dict[str, Any]]:
    items = unflatten(attributes, prefix)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _read_messages(attributes: Any, prefix: str, role: str) -> tuple[Message, ...] | None:
    items = [item for item in _read_items(attributes, prefix) if item.keys() & {"role", "content", "tool_calls"}]
    messages: list[Message] = []
    for item in items:
        messages += read_messages([item], role) or ()
    result = merge_messages(messages) if role == "user" else tuple(messages)
    return result if any(message.parts or message.tool_calls for message in result) else None
