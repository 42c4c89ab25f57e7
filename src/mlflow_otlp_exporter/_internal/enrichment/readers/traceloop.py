"""OpenLLMetry's own attributes: `traceloop.*`."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import parse_traceloop_kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan, Prompt
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_text, select_text, to_text

_ASSOCIATION = "traceloop.association.properties."
_SESSION_KEYS, _USER_KEYS = ("session_id", "thread_id", "conversation_id"), ("user_id", "userId")
_IDENTITY_KEYS = frozenset((*_SESSION_KEYS, *_USER_KEYS))


def read(span: SpanView) -> NormalizedSpan | None:
    """Read workflows, tasks, agents, tools, and association properties."""
    attributes = span.attributes
    kind = parse_traceloop_kind(attributes.get("traceloop.span.kind"))
    start = len(_ASSOCIATION)
    properties = {key[start:]: value for key, value in attributes.items() if key.startswith(_ASSOCIATION)}
    input_value = _unwrap_entity(attributes.get("traceloop.entity.input"))
    output_value = _unwrap_entity(attributes.get("traceloop.entity.output"))
    metadata = {
        key: to_text(value)
        for key, value in properties.items()
        if key not in _IDENTITY_KEYS and not key.startswith(("lc_", "ls_"))
    }
    prompt_name = parse_text(attributes.get("traceloop.prompt.key"))
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(input_value, is_model=False) if input_value is not None else None,
        output_messages=read_response(output_value, is_model=False) if output_value is not None else None,
        input=_unwrap_arguments(input_value) if kind is Kind.TOOL else _unwrap_call(input_value),
        output=output_value if kind is Kind.TOOL else _unwrap_call(output_value),
        tool_name=parse_text(attributes.get("traceloop.entity.name")) if kind is Kind.TOOL else None,
        prompt=Prompt(prompt_name, str(attributes.get("traceloop.prompt.version") or "")) if prompt_name else None,
        session=select_text(*(properties.get(key) for key in _SESSION_KEYS)),
        user=select_text(*(properties.get(key) for key in _USER_KEYS)),
        metadata=metadata or None,
        agent_name=parse_text(attributes.get("traceloop.entity.name")) if kind is Kind.AGENT else None,
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


def _unwrap_call(value: Any) -> Any:
    """The single positional argument or the keyword arguments of a call, if it has nothing else."""
    if isinstance(value, dict) and value.keys() == {"args", "kwargs"}:
        args, kwargs = value["args"], value["kwargs"]
        if isinstance(args, list) and len(args) == 1 and not kwargs:
            return args[0]
        if not args and isinstance(kwargs, dict):
            return kwargs
    return value
