"""Tool definitions in any shape, and arguments and results of tools without the envelopes of frameworks."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import to_result_text
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan, ToolCall, ToolDefinition
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_structured, parse_text, select_text

_SCHEMA_KEYS = (
    *("parameters", "input_schema", "inputSchema"),
    *("parameters_json_schema", "parametersJsonSchema", "json_schema"),
)
_JSON_TYPES = frozenset({"string", "number", "integer", "object", "array", "boolean", "null"})
# Values of other types are left out.
_SCHEMA_TYPES: dict[str, Any] = {
    "additionalProperties": bool,
    **dict.fromkeys(("properties", "items"), Mapping),
    **dict.fromkeys(("enum", "required", "anyOf", "oneOf", "allOf"), list),
}
_MAX_DEPTH = 12
_MAX_TOOLS = 512
# A Python object's repr: `StopEvent(result=..` at the beginning, `<Context object at 0x7f..>` anywhere. Two patterns,
# because a search for one that begins with a literal is ten times faster.
_CALL_REPR = r"\s*[A-Za-z_][\w.]*\(\w+="
_OBJECT_REPR = r"<[A-Za-z_][\w.]*(?:\(| object at 0x| object>)"
_MAX_SEARCHED_LENGTH = 20_000


def read_tools(value: Any) -> tuple[ToolDefinition, ...] | None:
    """The tool definitions in a list in any provider's shape, as JSON text or structured; None if there are none.

    OpenAI nests them under `function`, Gemini under `function_declarations`, Bedrock under `toolSpec`; OTel GenAI and
    Anthropic have them flat. An item may be JSON text itself (Vercel AI).
    """
    parsed = parse_structured(value)
    if isinstance(parsed, dict):
        nested = parsed.get("tools")
        parsed = nested if isinstance(nested, list) else [parsed]
    if not isinstance(parsed, list):
        return None
    tools: list[ToolDefinition] = []
    for item in parsed[:_MAX_TOOLS]:
        definition = (parse_structured(item) or {"name": item}) if isinstance(item, str) else item
        if isinstance(definition, dict):
            _collect_tools(definition, tools)
    return tuple(tools) or None


def find_tools(request: Mapping[str, Any]) -> tuple[ToolDefinition, ...] | None:
    """The tools that a model's request, or the configuration in it, offers."""
    holders = (request, request.get("config"), request.get("kwargs"))
    return next(filter(None, (read_tools(holder.get("tools")) for holder in holders if isinstance(holder, dict))), None)


def _collect_tools(item: dict[str, Any], tools: list[ToolDefinition]) -> None:
    declared = item.get("function_declarations", item.get("functionDeclarations"))
    if isinstance(declared, list):
        for declaration in declared:
            if isinstance(declaration, dict):
                _collect_tools(declaration, tools)
        return
    nested_keys = ("function", "toolSpec", "tool", "custom")
    definition = next((item[key] for key in nested_keys if isinstance(item.get(key), dict)), item)
    name = select_text(definition.get("name"), item.get("name"))
    if not name:
        return
    schema: Any = next(filter(None, (parse_structured(definition.get(key)) for key in _SCHEMA_KEYS)), None)
    if isinstance(schema, dict) and isinstance(schema.get("json"), dict):
        schema = schema["json"]
    description = select_text(definition.get("description"), item.get("description")) or ""
    tools.append(ToolDefinition(name, description, schema if isinstance(schema, dict) else None))


def normalize_schema(schema: Mapping[str, Any] | None, depth: int = 0) -> dict[str, Any]:
    """A JSON schema that MLflow's tool model accepts; it drops tools with other schemas (measured on 3.17.2).

    `properties` must exist and hold objects; types are lower case, known and no lists; `additionalProperties` is a
    boolean; an enumeration holds no null.
    """
    normalized: dict[str, Any] = {"type": "object", "properties": {}}
    normalized.update(_normalize_node(schema or {}, depth))
    if not isinstance(normalized.get("properties"), dict):
        normalized["properties"] = {}
    normalized["type"] = "object"
    return normalized


def _normalize_node(schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if depth > _MAX_DEPTH:
        return result
    for key, value in schema.items():
        if not isinstance(value, _SCHEMA_TYPES.get(key, object)):
            continue
        if key == "type":
            kinds = [_normalize_type(item) for item in value] if isinstance(value, list) else [_normalize_type(value)]
            names = [kind for kind in dict.fromkeys(kinds) if kind]
            # The console takes no list of types, which SDKs write for optional arguments: ["integer", "null"].
            if len(names) > 1:
                names = [kind for kind in names if kind != "null"]
            if len(names) == 1:
                result[key] = names[0]
            elif names and "anyOf" not in schema:
                result["anyOf"] = [{"type": kind} for kind in names]
        elif key == "enum":
            result[key] = [item for item in value if item is not None]
        elif key == "properties":
            result[key] = {
                str(name): _normalize_node(child, depth + 1) if isinstance(child, Mapping) else {}
                for name, child in value.items()
            }
        elif key == "required":
            result[key] = [item for item in value if isinstance(item, str)]
        elif key == "items":
            result[key] = _normalize_node(value, depth + 1)
        elif key in ("anyOf", "oneOf", "allOf"):
            result[key] = [_normalize_node(child, depth + 1) for child in value if isinstance(child, Mapping)]
        else:
            result[str(key)] = value
    return result


def _normalize_type(value: Any) -> str | None:
    lower = value.lower() if isinstance(value, str) else ""
    return lower if lower in _JSON_TYPES else None


def is_repr(value: Any) -> bool:
    """Whether a value is the internal state of a framework rather than text for people."""
    if not isinstance(value, str):
        return False
    text = value[:_MAX_SEARCHED_LENGTH]
    return bool(re.match(_CALL_REPR, text) or re.search(_OBJECT_REPR, text))


def has_named_arguments(value: Any) -> bool:
    """Whether a tool's input is an object of arguments by name already."""
    arguments = parse_structured(value)
    return isinstance(arguments, dict) and not arguments.keys() & {"args", "kwargs", "input_str"}


class ToolIndex:
    """The tool calls and the tools of a trace, by what the span of a tool may know of its call."""

    def __init__(self, calls: Iterable[ToolCall], tools: Iterable[ToolDefinition]) -> None:
        self.arguments_by_id: dict[str, dict[str, Any]] = {}
        self._arguments_by_values: dict[tuple[str, str], dict[str, Any]] = {}
        for call in calls:
            if isinstance(arguments := parse_structured(call.arguments), dict):
                self.arguments_by_id.setdefault(call.id, arguments)
                self._arguments_by_values.setdefault((call.name, repr(list(arguments.values()))), arguments)
        self._parameter_names: dict[str, tuple[str, ...]] = {}
        for tool in tools:
            names = _parameter_names(tool)
            if len(names) > len(self._parameter_names.get(tool.name, ())):
                self._parameter_names[tool.name] = names
        self.is_empty = not self.arguments_by_id and not self._parameter_names

    def name_arguments(self, tool_name: str, values: list[Any]) -> dict[str, Any] | None:
        names = self._parameter_names.get(tool_name, ())
        if len(names) >= len(values):
            return dict(zip(names, values, strict=False))
        return self._arguments_by_values.get((tool_name, repr(values))) if self._arguments_by_values else None


def resolve_arguments(normalized: NormalizedSpan, index: ToolIndex) -> Any:
    """A tool's arguments as an object if calls or tools of the trace tell the names; otherwise its input."""
    arguments = _unwrap_arguments(decode_json(normalized.input))
    if index.is_empty or (isinstance(arguments, dict) and not arguments.keys() <= {"args", "kwargs"}):
        return arguments
    call_id = normalized.tool_call_id or find_call_id(normalized.output)
    if call_id and call_id in index.arguments_by_id:
        return index.arguments_by_id[call_id]
    values = arguments.get("args") if isinstance(arguments, dict) else [arguments] if arguments is not None else None
    if isinstance(values, list) and values and normalized.tool_name:
        return index.name_arguments(normalized.tool_name, values) or arguments
    return arguments


def _parameter_names(tool: ToolDefinition) -> tuple[str, ...]:
    properties = (tool.parameters or {}).get("properties")
    return tuple(properties) if isinstance(properties, Mapping) else ()


def _unwrap_arguments(value: Any) -> Any:
    """Arguments without `kwargs` around them."""
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("input_str"), str) and len(value) <= 2:  # LangChain has `inputs` beside it
        decoded = decode_json(value["input_str"])
        return decoded if isinstance(decoded, dict) or len(value) == 1 else value
    kwargs, args = value.get("kwargs"), value.get("args")
    if isinstance(kwargs, dict) and (isinstance(args, list) or value.keys() == {"kwargs"}):
        if kwargs and not args:
            return kwargs
        return {"args": args} if args and not kwargs else (kwargs if not args else value)
    return value


def _open_message(output: Any) -> Iterator[dict[str, Any]]:
    """A tool's result and, if LangChain serialized it, the message in it."""
    node = parse_structured(output)
    while isinstance(node, dict):
        yield node
        node = node.get("data") or node.get("kwargs")


def find_call_id(output: Any) -> str | None:
    """The id of the call that a result names, as in LangChain's serialized tool messages."""
    return next((call_id for node in _open_message(output) if (call_id := parse_text(node.get("tool_call_id")))), None)


def is_error_result(output: Any) -> bool:
    """Whether a tool's result says that it is an error, as those of MCP and LangChain's tool messages do."""
    if isinstance(output, str) and 'rror"' not in output:
        return False
    return any(
        node.get("isError") is True
        or node.get("is_error") is True
        or (node.get("status") == "error" and "tool_call_id" in node)
        for node in _open_message(output)
    )


def unwrap_result(output: Any) -> Any:
    """A tool's result without the message or object around it."""
    result = decode_json(output)
    if isinstance(result, str):
        # Vercel AI 7 encodes results twice.
        decoded = decode_json(result) if result[:1] == '"' else result
        return decoded if isinstance(decoded, str) else result
    if isinstance(result, list) and result and all(isinstance(item, dict) for item in result):
        text = to_result_text(result)
        return result if text.startswith("[") and parse_structured(text) is not None else text
    if not isinstance(result, dict):
        return result
    if result.get("type") == "tool" or result.get("lc"):  # LangChain
        *_, message = _open_message(result)
        if "content" in message:
            return unwrap_result(message["content"])
    if "raw_output" in result and "tool_name" in result:  # LlamaIndex
        return result["raw_output"]
    if result.keys() == {"type", "value"}:
        return result["value"]
    return result
