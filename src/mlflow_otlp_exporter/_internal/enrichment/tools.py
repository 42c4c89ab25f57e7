"""Tool definitions of any shape to the one of the normal form, and schemas as MLflow takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.normalized_span import ToolDefinition
from mlflow_otlp_exporter._internal.enrichment.values import select_text, parse_structured

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
                    str(name): _normalize_node(each, depth + 1) if isinstance(each, Mapping) and depth < _MAX_DEPTH else {}
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
