"""OpenLLMetry: `traceloop.*`; before 0.47 also `gen_ai.prompt.N` and `gen_ai.completion.N`, which others write, too."""

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import OPERATIONS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan, has_content
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import read_prompt
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, read_dialect
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_kind, parse_text

_PROMPT, _COMPLETION, _FUNCTIONS = "gen_ai.prompt.", "gen_ai.completion.", "llm.request.functions."
_FLATTENED_PREFIXES = (_PROMPT, _COMPLETION, "llm.request.")
_INPUT, _OUTPUT = "traceloop.entity.input", "traceloop.entity.output"
_MESSAGE_KEYS = {"role", "content", "tool_calls", "function_call"}


# Workflows, tasks, agents, tools, and association properties.
_ENTITY = Dialect(
    "OpenLLMetry",
    frozenset({"traceloop"}),
    {
        "kind": ("traceloop.span.kind",),
        "input": (_INPUT,),
        "output": (_OUTPUT,),
        "tool_name": ("traceloop.entity.name",),
    },
    metadata_prefixes=("traceloop.association.properties.",),
)


def read(span: SpanView) -> NormalizedSpan | None:
    values = {key: _unwrap_entity(span.attributes[key]) for key in (_INPUT, _OUTPUT) if key in span.attributes}
    normalized = read_dialect(_ENTITY, span._replace(attributes={**span.attributes, **values})) or NormalizedSpan()
    name = parse_text(span.attributes.get("traceloop.entity.name")) if normalized.kind is Kind.AGENT else None
    prompt = read_prompt(span.attributes, "traceloop.prompt.version", "traceloop.prompt.key")
    return normalized._replace(agent_name=name, prompt=prompt)


def _unwrap_entity(value: Any) -> Any:
    """The input or output of an entity without its envelope; None for `null`."""
    decoded = decode_json(value)
    if isinstance(decoded, dict):
        for key in ("inputs", "outputs"):
            if key in decoded:
                return _unwrap_entity(decoded[key]) if isinstance(decoded[key], str) else decoded[key]
    return None if decoded == "null" else decoded


def read_flattened(span: SpanView) -> NormalizedSpan | None:
    """Read the messages and the tools of a model call, each in attributes of its own."""
    attributes = span.attributes
    if not any(key.startswith(_FLATTENED_PREFIXES) for key in attributes):
        return None
    input_messages = _read_messages(attributes, _PROMPT, "user")
    output_messages = _read_messages(attributes, _COMPLETION, "assistant")
    functions = unflatten(attributes, _FUNCTIONS)
    tools = read_tools(functions) if isinstance(functions, list) else None
    kind = parse_kind(attributes.get("llm.request.type"), OPERATIONS)
    contents = {_PROMPT: input_messages, _COMPLETION: output_messages, _FUNCTIONS: tools}
    covered_prefixes = tuple(prefix for prefix, content in contents.items() if content)
    reasons = [item.get("finish_reason") for item in _read_items(attributes, _COMPLETION)]
    finish_reason = next((reason for reason in reasons if isinstance(reason, str) and reason), None)
    return NormalizedSpan(
        kind=kind,
        input_messages=input_messages,
        output_messages=output_messages,
        tools=tools,
        finish_reason=finish_reason,
        covered_keys=tuple(key for key in attributes if key.startswith(covered_prefixes)),
    )


def _read_items(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    items = unflatten(attributes, prefix)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _read_messages(attributes: Mapping[str, Any], prefix: str, role: str) -> tuple[Message, ...] | None:
    items = [item for item in _read_items(attributes, prefix) if item.keys() & _MESSAGE_KEYS]
    messages = [message for item in items for message in read_messages([item], role) or ()]
    # LiteLLM writes each of several calls as a completion of its own.
    is_one_message = role == "user" or all("function_call" in item for item in items)
    result = merge_messages(messages) if is_one_message else tuple(messages)
    return result if has_content(result) else None
