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


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads workflows, tasks, agents, tools, and the properties of an association."""
    found = source.attributes
    kind = parse_traceloop_kind(found.get("traceloop.span.kind"))
    start = len(_ASSOCIATION)
    associated = {key[start:]: value for key, value in found.items() if key.startswith(_ASSOCIATION)}
    given, answered = (
        _unwrap_entity(found.get("traceloop.entity.input")),
        _unwrap_entity(found.get("traceloop.entity.output")),
    )
    rest = {
        key: value
        for key, value in associated.items()
        if key not in _IDENTITY_KEYS and not key.startswith(("lc_", "ls_"))
    }
    prompt = parse_text(found.get("traceloop.prompt.key"))
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(given, model=False) if given is not None else None,
        output_messages=read_response(answered, model=False) if answered is not None else None,
        input=_read_arguments(given) if kind is Kind.TOOL else _unwrap_call(given),
        output=answered if kind is Kind.TOOL else _unwrap_call(answered),
        tool_name=parse_text(found.get("traceloop.entity.name")) if kind is Kind.TOOL else None,
        prompt=Prompt(prompt, str(found.get("traceloop.prompt.version") or "")) if prompt else None,
        session=select_text(*(associated.get(key) for key in _SESSION_KEYS)),
        user=select_text(*(associated.get(key) for key in _USER_KEYS)),
        metadata={key: to_text(value) for key, value in rest.items()} or None,
        agent_name=parse_text(found.get("traceloop.entity.name")) if kind is Kind.AGENT else None,
    )


def _unwrap_entity(value: Any) -> Any:
    """What an entity was given or returned, out of its envelope; `null` is nothing."""
    found = decode_json(value)
    if found is None or found == "null":
        return None
    if isinstance(found, dict):
        for key in ("inputs", "outputs"):
            if key in found:
                return _unwrap_entity(found[key]) if isinstance(found[key], str) else found[key]
    return found


def _read_arguments(given: Any) -> Any:
    """A tool's arguments; a lone positional one stays for whoever knows the tool's parameters."""
    if isinstance(given, dict) and isinstance(given.get("input_str"), str):
        return decode_json(given["input_str"])
    return given


def _unwrap_call(value: Any) -> Any:
    """The one positional argument, if that is all there is."""
    if isinstance(value, dict) and value.keys() == {"args", "kwargs"}:
        args, kwargs = value["args"], value["kwargs"]
        if isinstance(args, list) and len(args) == 1 and not kwargs:
            return args[0]
        if not args and isinstance(kwargs, dict):
            return kwargs
    return value
