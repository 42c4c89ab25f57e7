"""Arguments and results of tools out of the envelopes that frameworks put around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import result_text
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan, ToolCall, ToolDefinition
from mlflow_otlp_exporter._internal.enrichment.values import decoded, structured, text

# A Python object's repr, which no person reads: `StopEvent(result=..`, `<Context object at 0x7f..>`.
_REPR = re.compile(r"^\s*[A-Za-z_][\w.]*\(\w+=|<[A-Za-z_][\w.]*(?:\(| object at 0x| object>)")
_LOOKED_AT = 20_000


def is_dump(value: Any) -> bool:
    """Whether a value is a framework's inner state rather than something that was said."""
    return isinstance(value, str) and _REPR.search(value[:_LOOKED_AT]) is not None


def has_names(value: Any) -> bool:
    """Whether a tool's input is an object of arguments by name already."""
    found = structured(value)
    return isinstance(found, dict) and not found.keys() & {"args", "kwargs", "input_str"}


def arguments_for(
    found: NormalizedSpan,
    calls: Sequence[ToolCall],
    tools: Sequence[ToolDefinition],
    parent_input: Any,
) -> Any:
    """A tool's arguments as an object; what is given if nothing better is known, None if nothing is.

    Args:
        found: The tool's span.
        calls: What models in the trace asked for.
        tools: What they were offered.
        parent_input: The input of the span above.
    """
    given = _unwrapped(decoded(found.input))
    if isinstance(given, dict) and not given.keys() <= {"args", "kwargs"}:
        return given
    identity = found.tool_call_id or call_id(found.output)
    if identity:
        for call in calls:
            if call.id == identity and isinstance(asked := structured(call.arguments), dict):
                return asked
    above = structured(parent_input)
    if isinstance(above, list) and len(above) == 1 and isinstance(above[0], dict):
        named, asked = above[0].get("name"), above[0].get("args")
        if named == found.tool_name and isinstance(asked, dict):
            return asked
    positional = given.get("args") if isinstance(given, dict) else ([given] if given is not None else None)
    if isinstance(positional, list) and positional:
        for tool in tools:
            names = _parameters(tool) if tool.name == found.tool_name else ()
            if len(names) >= len(positional):
                return dict(zip(names, positional, strict=False))
        for call in calls:
            asked = structured(call.arguments) if call.name == found.tool_name else None
            if isinstance(asked, dict) and list(asked.values()) == positional:
                return asked
    return given


def _parameters(tool: ToolDefinition) -> tuple[str, ...]:
    properties = (tool.parameters or {}).get("properties")
    return tuple(properties) if isinstance(properties, Mapping) else ()


def _unwrapped(value: Any) -> Any:
    """Arguments without `kwargs` around them."""
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("input_str"), str) and len(value) <= 2:  # beside LangChain's `inputs`
        inner = decoded(value["input_str"])
        return inner if isinstance(inner, dict) else value
    kwargs, args = value.get("kwargs"), value.get("args")
    if isinstance(kwargs, dict) and (isinstance(args, list) or value.keys() == {"kwargs"}):
        if kwargs and not args:
            return kwargs
        return {"args": args} if args and not kwargs else (kwargs if not args else value)
    return value


def call_id(output: Any) -> str | None:
    """The id of the call that a result names, as in LangChain's dump of a tool message."""
    found = structured(output)
    for _ in range(3):
        if not isinstance(found, dict):
            return None
        if identity := text(found.get("tool_call_id")):
            return identity
        found = found.get("data") or found.get("kwargs")
    return None


def result_of(output: Any) -> Any:
    """What a tool returned, without the message or object around it."""
    found = decoded(output)
    if isinstance(found, str):
        # Vercel AI 7 encodes twice.
        inner = decoded(found) if found[:1] == '"' else found
        return inner if isinstance(inner, str) else found
    if isinstance(found, list) and found and all(isinstance(item, dict) for item in found):
        blocks = result_text(found)
        return found if blocks.startswith("[") and structured(blocks) is not None else blocks
    if not isinstance(found, dict):
        return found
    if isinstance(found.get("data"), dict) and found.get("type") == "tool":
        return result_of(found["data"].get("content"))
    if isinstance(found.get("kwargs"), dict) and found.get("lc"):
        return result_of(found["kwargs"].get("content"))
    if found.get("type") == "tool" and "content" in found:
        return result_of(found["content"])
    if "raw_output" in found and "tool_name" in found:  # LlamaIndex
        return found["raw_output"]
    if found.keys() == {"type", "value"}:
        return found["value"]
    return found
