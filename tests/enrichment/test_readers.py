"""Readers as a whole: kinds of all conventions, precedence, flattened attributes."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    EMPTY,
    Cost,
    Message,
    NormalizedSpan,
    Part,
    Usage,
    merge,
)
from mlflow_otlp_exporter._internal.enrichment.readers import READERS
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from support.random_traces import span


def enrich_attributes(own: Mapping[str, Any]) -> Mapping[str, Any]:
    (enriched,) = Enricher().enrich([span(1, own)])
    assert isinstance(enriched, EnrichedSpan)
    return enriched.attributes


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
        # The source's own kind is more exact than its operation.
        ({"langsmith.span.kind": "retriever", "gen_ai.operation.name": "embeddings"}, "RETRIEVER", "RETRIEVER"),
        ({"langfuse.observation.type": "generation"}, "CHAT_MODEL", "LLM"),
        ({"langfuse.observation.type": "span"}, "UNKNOWN", None),
        ({"traceloop.span.kind": "task"}, "TASK", "CHAIN"),
        ({"traceloop.span.kind": "tool"}, "TOOL", "TOOL"),
        ({"gen_ai.system": "x", "llm.request.type": "rerank"}, "RERANKER", "RERANKER"),
        ({"ai.operationId": "ai.embedMany.doEmbed"}, "EMBEDDING", "EMBEDDING"),
        ({"mcp.method.name": "tools/call"}, "TOOL", "TOOL"),
        ({"mcp.method.name": "tools/list"}, "UNKNOWN", None),
        ({"mlflow.spanType": '"RETRIEVER"'}, "RETRIEVER", None),
        ({"http.method": "GET"}, "UNKNOWN", None),
    ],
)
def test_enrich_span_of_each_kind_sets_types(own: Mapping[str, Any], mlflow: str, openinference: str | None) -> None:
    attributes = enrich_attributes(own)
    assert (attributes["mlflow.spanType"], attributes.get("openinference.span.kind")) == (mlflow, openinference)


def test_unflatten_indexes_with_gaps_returns_list() -> None:
    attributes = {"a.1.b": 1, "a.10.b": 3, "a.2.b": 2, "a.2.c.d": 4, "x": 5}
    assert unflatten(attributes, "a.") == [{"b": 1}, {"b": 2, "c": {"d": 4}}, {"b": 3}]
    assert unflatten(attributes, "y.") is None


def test_merge_takes_each_field_from_first_reader_that_has_it() -> None:
    first = NormalizedSpan(user="ada", usage=Usage(10, 2), metadata={"a": 1})
    second = NormalizedSpan(user="bob", session="s", usage=Usage(10, 2, 15, cache_read=4), metadata={"a": 2, "b": 3})
    merged = merge([first, second])
    assert (merged.user, merged.session, merged.metadata) == ("ada", "s", {"a": 1, "b": 3})
    # Missing counts of the same call, but not the total, which may count something else.
    assert merged.usage == Usage(10, 2, None, cache_read=4)
    assert merge([first, NormalizedSpan(usage=Usage(99, 2, cache_read=4))]).usage == Usage(10, 2)
    assert merge([]) == EMPTY


def test_merge_prefers_content_to_empty_values() -> None:
    empty = NormalizedSpan(
        input_messages=(Message("user"),),
        output_messages=(),
        input="",
        output={},
        usage=Usage(0, 0),
        cost=Cost(total=0),
    )
    text = (Message("user", (Part("text", "hi"),)),)
    content = NormalizedSpan(
        input_messages=text, output_messages=text, input="a", output="b", usage=Usage(3, 4), cost=Cost(total=1)
    )
    assert merge([empty, content]) == content
    assert merge([content, empty]) == content
    assert merge([empty, NormalizedSpan(session="s")]) == empty._replace(session="s")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_read_empty_span_returns_nothing(reader: Any) -> None:
    normalized = reader.read(SpanView("span", "scope", {}))
    assert normalized is None or not any(normalized)


def test_documents_without_ids_get_those_of_the_output() -> None:
    own = {  # as of OpenInference's instrumentation of LangChain
        "openinference.span.kind": "RETRIEVER",
        "retrieval.documents.0.document.content": "It rains.",
        "output.value": '{"documents": [{"id": "d-1", "page_content": "It rains.", "metadata": {"source": "a.md"}}]}',
    }
    assert json.loads(enrich_attributes(own)["mlflow.spanOutputs"])[0]["id"] == "d-1"
    hidden = enrich_attributes(own | {"output.value": "__REDACTED__"})["mlflow.spanOutputs"]
    assert json.loads(hidden) == [{"page_content": "It rains.", "metadata": {}}]
