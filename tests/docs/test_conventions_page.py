"""The small tables of enrichment: kinds, providers, schemas, values of tools, compact spans."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan, Enricher
from mlflow_otlp_exporter._internal.enrichment.normalized_span import EMPTY, Kind, NormalizedSpan, Usage, merge
from mlflow_otlp_exporter._internal.enrichment.providers import (
    resolve_provider,
    to_catalog_provider,
    to_openinference_provider,
)
from mlflow_otlp_exporter._internal.enrichment.readers import READERS
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanSummary
from mlflow_otlp_exporter._internal.enrichment.tools import (
    find_call_id,
    is_repr,
    normalize_schema,
    read_tools,
    unwrap_result,
)
from mlflow_otlp_exporter._internal.enrichment.trace_cache import TraceCache


def attributes_of(own: Mapping[str, Any], *, compact: bool = False, name: str = "span") -> Mapping[str, Any]:
    context = SpanContext(1, 1, False, TraceFlags(1))
    span = ReadableSpan(name, context, attributes=own, resource=Resource({}))
    (made,) = Enricher(compact=compact).enrich([span])
    assert isinstance(made, EnrichedSpan)
    return made.attributes


@pytest.mark.parametrize(
    ("own", "mlflow", "openinference"),
    [
        ({"openinference.span.kind": "llm"}, "LLM", "llm"),
        ({"openinference.span.kind": "PROMPT"}, "CHAIN", "PROMPT"),
        ({"openinference.span.kind": "DECISION"}, "LLM", "DECISION"),
        ({"openinference.span.kind": "GUARDRAIL"}, "GUARDRAIL", "GUARDRAIL"),
        ({"openinference.span.kind": "something"}, "UNKNOWN", "something"),
        ({"gen_ai.operation.name": "chat"}, "CHAT_MODEL", "LLM"),
        ({"gen_ai.operation.name": "text_completion"}, "LLM", "LLM"),
        ({"gen_ai.operation.name": "invoke_workflow"}, "WORKFLOW", "CHAIN"),
        ({"gen_ai.operation.name": "retrieval"}, "RETRIEVER", "RETRIEVER"),
        ({"gen_ai.operation.name": "search_memory"}, "MEMORY", "CHAIN"),
        ({"gen_ai.operation.name": "create_agent"}, "AGENT", "AGENT"),
        ({"gen_ai.operation.name": "chat", "gen_ai.tool.name": "search"}, "CHAT_MODEL", "LLM"),  # OpenLIT
        ({"traceloop.span.kind": "task"}, "TASK", "CHAIN"),
        ({"traceloop.span.kind": "tool"}, "TOOL", "TOOL"),
        ({"gen_ai.system": "x", "llm.request.type": "rerank"}, "RERANKER", "RERANKER"),
        ({"ai.operationId": "ai.embedMany.doEmbed"}, "EMBEDDING", "EMBEDDING"),
        ({"mcp.method.name": "tools/call"}, "TOOL", "TOOL"),
        ({"mcp.method.name": "tools/list"}, "UNKNOWN", None),
        ({"mlflow.spanType": '"RETRIEVER"'}, '"RETRIEVER"', None),
        ({"http.method": "GET"}, "UNKNOWN", None),
    ],
)
def test_kinds(own: Mapping[str, Any], mlflow: str, openinference: str | None) -> None:
    found = attributes_of(own)
    assert (found["mlflow.spanType"], found.get("openinference.span.kind")) == (mlflow, openinference)


@pytest.mark.parametrize(
    ("said", "model", "openinference", "catalog"),
    [
        ("openai", None, "openai", "openai"),
        ("OpenAI", None, "openai", "openai"),
        ("openai.chat", None, "openai", "openai"),
        ("azure.ai.openai", None, "azure", "azure"),
        ("az.ai.inference", None, "azure", "azure_ai"),
        ("aws.bedrock", None, "aws", "bedrock"),
        ("amazon-bedrock", None, "aws", "bedrock"),
        ("gcp.gemini", None, "google", "gemini"),
        ("gcp.vertex_ai", None, "google", "vertex_ai"),
        ("mistral_ai", None, "mistralai", "mistral"),
        ("mistralai", None, "mistralai", "mistral"),
        ("x_ai", None, "xai", "xai"),
        ("strands-agents", "gpt-4o", "openai", "openai"),
        ("langgraph", "claude-sonnet-4-5", "anthropic", "anthropic"),
        (None, "models/gemini-2.5-flash", "google", "gemini"),
        ("my-gateway", "gpt-4o", "my-gateway", "my-gateway"),
    ],
)
def test_providers(said: str | None, model: str | None, openinference: str, catalog: str) -> None:
    provider = resolve_provider(said, model)
    assert provider is not None
    assert (to_openinference_provider(provider), to_catalog_provider(provider)) == (openinference, catalog)


def test_framework_is_no_provider() -> None:
    assert resolve_provider("crewai", "my-model") is None
    assert resolve_provider(None, None) is None


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
def test_tools(name: str) -> None:
    assert read_tools([TOOLS[name]]) == (("f", "d", {"type": "object"}),)


@pytest.mark.parametrize("value", [None, "", "x", [], [{}], [{"type": "function"}], 5, '{"a": '])
def test_no_tools(value: Any) -> None:
    assert read_tools(value) is None


@pytest.mark.parametrize(
    ("schema", "cleaned"),
    [
        (None, {"type": "object", "properties": {}}),
        ({"type": "OBJECT"}, {"type": "object", "properties": {}}),
        (
            {"properties": {"a": {"type": "STRING"}, "b": True, "c": {"type": "any"}, "d": {"type": ["null", "X"]}}},
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {}, "c": {}, "d": {"type": ["null"]}}},
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
def test_schemas_as_mlflow_takes_them(schema: Any, cleaned: Any) -> None:
    assert normalize_schema(schema) == cleaned
    assert normalize_schema(cleaned) == cleaned


@pytest.mark.parametrize(
    ("written", "result"),
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
def test_results_of_tools(written: Any, result: Any) -> None:
    assert unwrap_result(written) == result


def test_call_that_a_result_answers() -> None:
    assert find_call_id('{"type": "tool", "data": {"tool_call_id": "c1"}}') == "c1"
    assert find_call_id('{"lc": 1, "kwargs": {"tool_call_id": "c1"}}') == "c1"
    assert find_call_id("sunny") is None


@pytest.mark.parametrize(
    ("value", "dump"),
    [
        ("StopEvent(result=AgentOutput(response=...", True),
        ('{"ctx": "<workflows.context.Context object at 0x7f51de189f10>"}', True),
        ("I called f(x) and it was fine", False),
        ('{"question": "a < b(c)"}', False),
        (None, False),
    ],
)
def test_dumps(value: Any, dump: bool) -> None:
    assert is_repr(value) is dump


def test_flattened_attributes_with_gaps() -> None:
    found = {"a.1.b": 1, "a.10.b": 3, "a.2.b": 2, "a.2.c.d": 4, "x": 5}
    assert unflatten(found, "a.") == [{"b": 1}, {"b": 2, "c": {"d": 4}}, {"b": 3}]
    assert unflatten(found, "y.") is None


def test_first_reader_wins_field_by_field() -> None:
    first = NormalizedSpan(user="ada", usage=Usage(10, 2), metadata={"a": 1})
    second = NormalizedSpan(user="bob", session="s", usage=Usage(10, 2, 15, cache_read=4), metadata={"a": 2, "b": 3})
    found = merge([first, second])
    assert (found.user, found.session, found.metadata) == ("ada", "s", {"a": 1, "b": 3})
    # Details of the same call, but not a total that counts something else.
    assert found.usage == Usage(10, 2, None, cache_read=4)
    assert merge([first, NormalizedSpan(usage=Usage(99, 2, cache_read=4))]).usage == Usage(10, 2)
    assert merge([]) == EMPTY


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_readers_know_nothing_of_an_empty_span(reader: Any) -> None:
    found = reader.read(SpanView("span", "scope", {}))
    assert found is None or not any(value for value in found)


def test_memory_is_bounded() -> None:
    now = [0.0]
    memory = TraceCache(lambda: now[0])
    seen = SpanSummary(1, 2, 0, 0, Kind.CHAT_MODEL, "", False, "q" * 100, None, (), None, None, EMPTY)
    for number in range(3000):
        memory.add(number, [seen])
    assert len(memory) == 2000
    assert memory.of(0) == ()
    assert memory.of(2999) == (seen,)
    now[0] = 1000.0
    memory.add(5000, [seen])
    assert len(memory) == 1
    memory.forget(5000)
    assert len(memory) == 0
    large = seen._replace(question="q" * 4_000_000)
    for number in range(10):
        memory.add(number, [large])
    assert len(memory) <= 4


TURN = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])
ANSWER = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "yo"}]}])
OPENAI = '{"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}'
ANSWERED = '{"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yo"}}], "model": "m"}'
FLAT = {
    "openinference.span.kind": "LLM",
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "hi",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "yo",
    "llm.invocation_parameters": '{"temperature": 0.5}',
}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": TURN, "gen_ai.output.messages": ANSWER}


@pytest.mark.parametrize(
    ("own", "dropped"),
    [
        (CHAT, {"gen_ai.input.messages", "gen_ai.output.messages"}),
        (
            {**FLAT, "input.value": OPENAI, "output.value": ANSWERED},
            {*(key for key in FLAT if "messages" in key), "input.value", "output.value"},
        ),
        # A key that nothing else carries: the value stays.
        (
            {**FLAT, "input.value": OPENAI[:-1] + ', "seed": 1}', "output.value": ANSWERED[:-1] + ', "logprobs": [1]}'},
            {key for key in FLAT if "messages" in key},
        ),
        # The application's own inputs carry nothing of ours.
        ({**CHAT, "mlflow.spanInputs": "{}"}, set()),
        (
            {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.arguments": '{"a": 1}'},
            {"gen_ai.tool.call.arguments"},
        ),
        ({"openinference.span.kind": "CHAIN", "input.value": "hi"}, set()),
        (
            {"openinference.span.kind": "RETRIEVER", "retrieval.documents.0.document.content": "x"},
            {"retrieval.documents.0.document.content"},
        ),
        ({"http.method": "GET"}, set()),
    ],
)
def test_compact_drops_what_is_carried(own: Mapping[str, Any], dropped: set[str]) -> None:
    assert set(own) - set(attributes_of(own, compact=True)) == dropped
    assert set(own) - set(attributes_of(own)) == set()
