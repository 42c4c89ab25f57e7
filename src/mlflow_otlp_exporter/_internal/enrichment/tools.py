"""Tool definitions of any shape, and arguments and results of tools without the envelopes of frameworks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import to_result_text
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan, ToolCall, ToolDefinition
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_structured, parse_text, select_text

_SCHEMA_KEYS = (
    "parameters",
    "input_schema",
    "inputSchema",
    "parameters_json_schema",
    "parametersJsonSchema",
    "json_schema",
)
_JSON_TYPES = frozenset({"string", "number", "integer", "object", "array", "boolean", "null"})
_MAX_DEPTH = 12
_MAX_TOOLS = 512
# A Python object's repr, which no person reads: `StopEvent(result=..`, `<Context object at 0x7f..>`.
_REPR = re.compile(r"^\s*[A-Za-z_][\w.]*\(\w+=|<[A-Za-z_][\w.]*(?:\(| object at 0x| object>)")
_MAX_SEARCHED_LENGTH = 20_000


def read_tools(value: Any) -> tuple[ToolDefinition, ...] | None:
    """Tool definitions out of a list in any provider's shape, as JSON text or structured; None if there are none.

    OpenAI nests them under `function`, Gemini under `function_declarations`, Bedrock under `toolSpec`; OTel GenAI and
    Anthropic have them flat. An item may be JSON text itself (Vercel AI).
    """
    found = parse_structured(value)
    if isinstance(found, dict):
        inner = found.get("tools")
        found = inner if isinstance(inner, list) else [found]
    if not isinstance(found, list):
        return None
    tools: list[ToolDefinition] = []
    for item in found[:_MAX_TOOLS]:
        each = parse_structured(item) if isinstance(item, str) else item
        if isinstance(each, dict):
            _collect_tools(each, tools)
    return tuple(tools) or None


def _collect_tools(item: dict[str, Any], tools: list[ToolDefinition]) -> None:
    for key in ("function_declarations", "functionDeclarations"):
        declared = item.get(key)
        if isinstance(declared, list):
            for each in declared:
                if isinstance(each, dict):
                    _collect_tools(each, tools)
            return
    inner: dict[str, Any] = item
    for key in ("function", "toolSpec", "tool", "custom"):
        nested = item.get(key)
        if isinstance(nested, dict):
            inner = nested
            break
    name = select_text(inner.get("name"), item.get("name"))
    if not name:
        return
    schema: Any = None
    for key in _SCHEMA_KEYS:
        schema = parse_structured(inner.get(key))
        if isinstance(schema, dict):
            nested = schema.get("json")
            schema = nested if isinstance(nested, dict) else schema
            break
    description = select_text(inner.get("description"), item.get("description")) or ""
    tools.append(ToolDefinition(name, description, schema if isinstance(schema, dict) else None))


def normalize_schema(schema: Mapping[str, Any] | None, depth: int = 0) -> dict[str, Any]:
    """A JSON schema as MLflow's tool model takes it, or it drops the tool (measured on 3.17.2).

    `properties` must be there; types are lower case and known; `additionalProperties` is a boolean; an enumeration
    holds no null; a property is an object.
    """
    cleaned: dict[str, Any] = {"type": "object", "properties": {}}
    cleaned.update(_normalize_node(schema or {}, depth))
    if not isinstance(cleaned.get("properties"), dict):
        cleaned["properties"] = {}
    cleaned["type"] = "object"
    return cleaned


def _normalize_node(schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            if (kind := _normalize_type(value)) is not None:
                result[key] = kind
        elif key == "additionalProperties":
            if isinstance(value, bool):
                result[key] = value
        elif key == "enum":
            if isinstance(value, list):
                result[key] = [item for item in value if item is not None]
        elif key == "properties":
            if isinstance(value, Mapping):
                result[key] = {
                    str(name): _normalize_node(each, depth + 1)
                    if isinstance(each, Mapping) and depth < _MAX_DEPTH
                    else {}
                    for name, each in value.items()
                }
        elif key == "required":
            if isinstance(value, list):
                result[key] = [item for item in value if isinstance(item, str)]
        elif key == "items":
            if isinstance(value, Mapping) and depth < _MAX_DEPTH:
                result[key] = _normalize_node(value, depth + 1)
        elif key in ("anyOf", "oneOf", "allOf"):
            if isinstance(value, list) and depth < _MAX_DEPTH:
                result[key] = [_normalize_node(each, depth + 1) for each in value if isinstance(each, Mapping)]
        else:
            result[str(key)] = value
    return result


def _normalize_type(value: Any) -> Any:
    if isinstance(value, str):
        lower = value.lower()
        return lower if lower in _JSON_TYPES else None
    if isinstance(value, list):
        kinds = [item.lower() for item in value if isinstance(item, str) and item.lower() in _JSON_TYPES]
        return kinds or None
    return None


def is_repr(value: Any) -> bool:
    """Whether a value is a framework's inner state rather than something that was said."""
    return isinstance(value, str) and _REPR.search(value[:_MAX_SEARCHED_LENGTH]) is not None


def has_named_arguments(value: Any) -> bool:
    """Whether a tool's input is an object of arguments by name already."""
    found = parse_structured(value)
    return isinstance(found, dict) and not found.keys() & {"args", "kwargs", "input_str"}


def resolve_arguments(
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
    given = _unwrap_arguments(decode_json(found.input))
    if isinstance(given, dict) and not given.keys() <= {"args", "kwargs"}:
        return given
    identity = found.tool_call_id or find_call_id(found.output)
    if identity:
        for call in calls:
            if call.id == identity and isinstance(asked := parse_structured(call.arguments), dict):
                return asked
    above = parse_structured(parent_input)
    if isinstance(above, list) and len(above) == 1 and isinstance(above[0], dict):
        named, asked = above[0].get("name"), above[0].get("args")
        if named == found.tool_name and isinstance(asked, dict):
            return asked
    positional = given.get("args") if isinstance(given, dict) else ([given] if given is not None else None)
    if isinstance(positional, list) and positional:
        for tool in tools:
            names = _parameter_names(tool) if tool.name == found.tool_name else ()
            if len(names) >= len(positional):
                return dict(zip(names, positional, strict=False))
        for call in calls:
            asked = parse_structured(call.arguments) if call.name == found.tool_name else None
            if isinstance(asked, dict) and list(asked.values()) == positional:
                return asked
    return given


def _parameter_names(tool: ToolDefinition) -> tuple[str, ...]:
    properties = (tool.parameters or {}).get("properties")
    return tuple(properties) if isinstance(properties, Mapping) else ()


def _unwrap_arguments(value: Any) -> Any:
    """Arguments without `kwargs` around them."""
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("input_str"), str) and len(value) <= 2:  # beside LangChain's `inputs`
        inner = decode_json(value["input_str"])
        return inner if isinstance(inner, dict) else value
    kwargs, args = value.get("kwargs"), value.get("args")
    if isinstance(kwargs, dict) and (isinstance(args, list) or value.keys() == {"kwargs"}):
        if kwargs and not args:
            return kwargs
        return {"args": args} if args and not kwargs else (kwargs if not args else value)
    return value


def find_call_id(output: Any) -> str | None:
    """The id of the call that a result names, as in LangChain's dump of a tool message."""
    found = parse_structured(output)
    for _ in range(3):
        if not isinstance(found, dict):
            return None
        if identity := parse_text(found.get("tool_call_id")):
            return identity
        found = found.get("data") or found.get("kwargs")
    return None


def unwrap_result(output: Any) -> Any:
    """What a tool returned, without the message or object around it."""
    found = decode_json(output)
    if isinstance(found, str):
        # Vercel AI 7 encodes twice.
        inner = decode_json(found) if found[:1] == '"' else found
        return inner if isinstance(inner, str) else found
    if isinstance(found, list) and found and all(isinstance(item, dict) for item in found):
        blocks = to_result_text(found)
        return found if blocks.startswith("[") and parse_structured(blocks) is not None else blocks
    if not isinstance(found, dict):
        return found
    if isinstance(found.get("data"), dict) and found.get("type") == "tool":
        return unwrap_result(found["data"].get("content"))
    if isinstance(found.get("kwargs"), dict) and found.get("lc"):
        return unwrap_result(found["kwargs"].get("content"))
    if found.get("type") == "tool" and "content" in found:
        return unwrap_result(found["content"])
    if "raw_output" in found and "tool_name" in found:  # LlamaIndex
        return found["raw_output"]
    if found.keys() == {"type", "value"}:
        return found["value"]
    return found
