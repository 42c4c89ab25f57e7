"""Tool definitions, schemas, arguments and results in the shapes of all providers."""

from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.tools import (
    find_call_id,
    is_repr,
    normalize_schema,
    read_tools,
    unwrap_result,
)

TOOLS = {
    "OpenAI": {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
    "flat": {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}},
    "Anthropic": {"name": "f", "description": "d", "input_schema": {"type": "object"}},
    "MCP": {"name": "f", "description": "d", "inputSchema": {"type": "object"}},
    "Strands": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}},
    "Bedrock": {"toolSpec": {"name": "f", "description": "d", "inputSchema": {"json": {"type": "object"}}}},
    "Gemini": {"function_declarations": [{"name": "f", "description": "d", "parameters": {"type": "object"}}]},
    "pydantic-ai": {"name": "f", "description": "d", "parameters_json_schema": {"type": "object"}},
    "Vercel AI": '{"type": "function", "name": "f", "description": "d", "inputSchema": {"type": "object"}}',
    "schema as text": {"name": "f", "description": "d", "parameters": '{"type": "object"}'},
}


@pytest.mark.parametrize("name", TOOLS)
def test_read_tools_of_each_shape_returns_definition(name: str) -> None:
    assert read_tools([TOOLS[name]]) == (("f", "d", {"type": "object"}),)


@pytest.mark.parametrize("value", [None, "", "x", [], [{}], [{"type": "function"}], 5, '{"a": '])
def test_read_tools_without_definition_returns_none(value: Any) -> None:
    assert read_tools(value) is None


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (None, {"type": "object", "properties": {}}),
        ({"type": "OBJECT"}, {"type": "object", "properties": {}}),
        (
            {"properties": {"a": {"type": "STRING"}, "b": True, "c": {"type": "any"}, "d": {"type": ["null", "X"]}}},
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {}, "c": {}, "d": {"type": "null"}}},
        ),
        (
            {"properties": {"a": {"type": ["INTEGER", "null"]}, "b": {"type": ["string", "number", "null"]}}},
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
            },
        ),
        (
            {"properties": {"a": {"enum": ["x", None]}}, "additionalProperties": {"type": "string"}},
            {"type": "object", "properties": {"a": {"enum": ["x"]}}},
        ),
        (
            {"properties": {"a": {"type": "ARRAY", "items": {"type": "NUMBER"}}}, "additionalProperties": False},
            {
                "type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "number"}}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_normalize_schema_returns_schema_that_mlflow_accepts(schema: Any, expected: Any) -> None:
    assert normalize_schema(schema) == expected
    assert normalize_schema(expected) == expected


@pytest.mark.parametrize(
    ("output", "result"),
    [
        ("sunny", "sunny"),
        ('"sunny"', "sunny"),
        ('"\\"sunny\\""', "sunny"),  # Vercel AI 7
        ("5", "5"),
        ('{"answer": 5}', {"answer": 5}),
        ('{"type": "tool", "data": {"content": "sunny", "tool_call_id": "c1"}}', "sunny"),
        ('{"lc": 1, "type": "constructor", "kwargs": {"content": "sunny"}}', "sunny"),
        ('{"type": "tool", "content": "sunny"}', "sunny"),
        ('{"blocks": [], "tool_name": "f", "raw_output": "sunny"}', "sunny"),
        ('[{"text": "sunny"}]', "sunny"),
        ('{"type": "text", "value": "sunny"}', "sunny"),
        (None, None),
    ],
)
def test_unwrap_result_removes_envelope(output: Any, result: Any) -> None:
    assert unwrap_result(output) == result


def test_find_call_id_reads_serialized_tool_messages() -> None:
    assert find_call_id('{"type": "tool", "data": {"tool_call_id": "c1"}}') == "c1"
    assert find_call_id('{"lc": 1, "kwargs": {"tool_call_id": "c1"}}') == "c1"
    assert find_call_id("sunny") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("StopEvent(result=AgentOutput(response=...", True),
        ('{"ctx": "<workflows.context.Context object at 0x7f51de189f10>"}', True),
        ("I called f(x) and it was fine", False),
        ('{"question": "a < b(c)"}', False),
        (None, False),
    ],
)
def test_is_repr_recognizes_python_objects(value: Any, expected: bool) -> None:
    assert is_repr(value) is expected
