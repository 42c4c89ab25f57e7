"""`gen_ai.prompt.N` and `gen_ai.completion.N`: OpenLLMetry before 0.47, and what follows its example."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import parse_request_type
from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools

_PROMPT, _COMPLETION, _FUNCTIONS = "gen_ai.prompt.", "gen_ai.completion.", "llm.request.functions."
_PREFIXES = (_PROMPT, _COMPLETION, "llm.request.")


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads flattened prompts and completions."""
    found = source.attributes
    if not any(key.startswith(_PREFIXES) for key in found):
        return None
    given, answered = _read_messages(found, _PROMPT, "user"), _read_messages(found, _COMPLETION, "assistant")
    functions = unflatten(found, _FUNCTIONS)
    tools = read_tools(functions) if isinstance(functions, list) else None
    kind = parse_request_type(found.get("llm.request.type"))
    if given is None and answered is None and tools is None and kind is None:
        return None
    carried = [
        key
        for key in found
        if (given and key.startswith(_PROMPT))
        or (answered and key.startswith(_COMPLETION))
        or (tools and key.startswith(_FUNCTIONS))
    ]
    reasons = [item.get("finish_reason") for item in _read_items(found, _COMPLETION)]
    reason = next((each for each in reasons if isinstance(each, str) and each), None)
    return NormalizedSpan(
        kind=kind,
        input_messages=given,
        output_messages=answered,
        tools=tools,
        finish_reason=reason,
        carried=tuple(carried),
    )


def _read_items(found: Any, prefix: str) -> list[dict[str, Any]]:
    listed = unflatten(found, prefix)
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def _read_messages(found: Any, prefix: str, role: str) -> tuple[Message, ...] | None:
    items = [item for item in _read_items(found, prefix) if item.keys() & {"role", "content", "tool_calls"}]
    messages: list[Message] = []
    for item in items:
        messages += read_messages([item], role) or ()
    said = merge_messages(messages) if role == "user" else tuple(messages)
    return said if any(each.parts or each.tool_calls for each in said) else None
