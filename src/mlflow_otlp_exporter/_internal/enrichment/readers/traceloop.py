"""OpenLLMetry's own attributes: `traceloop.*`."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import of_traceloop
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan, Prompt
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.values import as_text, decoded, first_text, text

_ASSOCIATED = "traceloop.association.properties."
_SESSIONS, _USERS = ("session_id", "thread_id", "conversation_id"), ("user_id", "userId")
_IDENTITIES = frozenset((*_SESSIONS, *_USERS))


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads workflows, tasks, agents, tools, and the properties of an association."""
    found = source.attributes
    kind = of_traceloop(found.get("traceloop.span.kind"))
    start = len(_ASSOCIATED)
    associated = {key[start:]: value for key, value in found.items() if key.startswith(_ASSOCIATED)}
    given, answered = _opened(found.get("traceloop.entity.input")), _opened(found.get("traceloop.entity.output"))
    rest = {
        key: value for key, value in associated.items() if key not in _IDENTITIES and not key.startswith(("lc_", "ls_"))
    }
    prompt = text(found.get("traceloop.prompt.key"))
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(given, model=False) if given is not None else None,
        output_messages=read_response(answered, model=False) if answered is not None else None,
        input=_arguments(given) if kind is Kind.TOOL else _words(given),
        output=answered if kind is Kind.TOOL else _words(answered),
        tool_name=text(found.get("traceloop.entity.name")) if kind is Kind.TOOL else None,
        prompt=Prompt(prompt, str(found.get("traceloop.prompt.version") or "")) if prompt else None,
        session=first_text(*(associated.get(key) for key in _SESSIONS)),
        user=first_text(*(associated.get(key) for key in _USERS)),
        metadata={key: as_text(value) for key, value in rest.items()} or None,
        agent_name=text(found.get("traceloop.entity.name")) if kind is Kind.AGENT else None,
    )


def _opened(value: Any) -> Any:
    """What an entity was given or returned, out of its envelope; `null` is nothing."""
    found = decoded(value)
    if found is None or found == "null":
        return None
    if isinstance(found, dict):
        for key in ("inputs", "outputs"):
            if key in found:
                return _opened(found[key]) if isinstance(found[key], str) else found[key]
    return found


def _arguments(given: Any) -> Any:
    """A tool's arguments; a lone positional one stays for whoever knows the tool's parameters."""
    if isinstance(given, dict) and isinstance(given.get("input_str"), str):
        return decoded(given["input_str"])
    return given


def _words(value: Any) -> Any:
    """The one positional argument, if that is all there is."""
    if isinstance(value, dict) and value.keys() == {"args", "kwargs"}:
        args, kwargs = value["args"], value["kwargs"]
        if isinstance(args, list) and len(args) == 1 and not kwargs:
            return args[0]
        if not args and isinstance(kwargs, dict):
            return kwargs
    return value
