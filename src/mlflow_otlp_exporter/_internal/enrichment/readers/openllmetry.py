"""OpenLLMetry: `traceloop.*`; before 0.47 also `gen_ai.prompt.N` and `gen_ai.completion.N`, which others write, too."""

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import REQUEST_TYPES, TRACELOOP_KINDS, parse_kind
from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, Message, NormalizedSpan, Prompt
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response, simplify_call
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.readers.tables import collect_properties, read_identity
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_text

_PROMPT, _COMPLETION, _FUNCTIONS = "gen_ai.prompt.", "gen_ai.completion.", "llm.request.functions."
_FLATTENED_PREFIXES = (_PROMPT, _COMPLETION, "llm.request.")
_ASSOCIATION = "traceloop.association.properties."
_MESSAGE_KEYS = {"role", "content", "tool_calls", "function_call"}


def read(span: SpanView) -> NormalizedSpan | None:
    """Read workflows, tasks, agents, tools, and association properties."""
    attributes = span.attributes
    kind = parse_kind(attributes.get("traceloop.span.kind"), TRACELOOP_KINDS)
    input_value = _unwrap_entity(attributes.get("traceloop.entity.input"))
    output_value = _unwrap_entity(attributes.get("traceloop.entity.output"))
    prompt_name = parse_text(attributes.get("traceloop.prompt.key"))
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(input_value, is_model=False) if input_value is not None else None,
        output_messages=read_response(output_value, is_model=False) if output_value is not None else None,
        input=_unwrap_arguments(input_value) if kind is Kind.TOOL else simplify_call(input_value),
        output=output_value if kind is Kind.TOOL else simplify_call(output_value),
        tool_name=parse_text(attributes.get("traceloop.entity.name")) if kind is Kind.TOOL else None,
        prompt=Prompt(prompt_name, str(attributes.get("traceloop.prompt.version") or "")) if prompt_name else None,
        agent_name=parse_text(attributes.get("traceloop.entity.name")) if kind is Kind.AGENT else None,
        **read_identity(collect_properties(attributes, (_ASSOCIATION,))),
    )


def _unwrap_entity(value: Any) -> Any:
    """The input or output of an entity without its envelope; None for `null`."""
    decoded = decode_json(value)
    if decoded is None or decoded == "null":
        return None
    if isinstance(decoded, dict):
        for key in ("inputs", "outputs"):
            if key in decoded:
                return _unwrap_entity(decoded[key]) if isinstance(decoded[key], str) else decoded[key]
    return decoded


def _unwrap_arguments(value: Any) -> Any:
    """A tool's arguments; a single positional one stays, because only the trace tells the tool's parameters."""
    if isinstance(value, dict) and isinstance(value.get("input_str"), str):
        return decode_json(value["input_str"])
    return value


def read_flattened(span: SpanView) -> NormalizedSpan | None:
    """Read the messages and the tools of a model call, each in attributes of its own."""
    attributes = span.attributes
    if not any(key.startswith(_FLATTENED_PREFIXES) for key in attributes):
        return None
    input_messages = _read_messages(attributes, _PROMPT, "user")
    output_messages = _read_messages(attributes, _COMPLETION, "assistant")
    functions = unflatten(attributes, _FUNCTIONS)
    tools = read_tools(functions) if isinstance(functions, list) else None
    kind = parse_kind(attributes.get("llm.request.type"), REQUEST_TYPES)
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


def _read_items(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    items = unflatten(attributes, prefix)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _read_messages(attributes: Mapping[str, Any], prefix: str, role: str) -> tuple[Message, ...] | None:
    items = [item for item in _read_items(attributes, prefix) if item.keys() & _MESSAGE_KEYS]
    messages: list[Message] = []
    for item in items:
        messages += read_messages([item], role) or ()
    # LiteLLM writes each of several calls as a completion of its own.
    is_one_message = role == "user" or all("function_call" in item for item in items)
    result = merge_messages(messages) if is_one_message else tuple(messages)
    return result if any(message.parts or message.tool_calls for message in result) else None
