"""Readers as a whole: kinds of all conventions, precedence, flattened attributes."""

from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan, Enricher
from mlflow_otlp_exporter._internal.enrichment.normalized_span import EMPTY, NormalizedSpan, Usage, merge
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


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_read_empty_span_returns_nothing(reader: Any) -> None:
    normalized = reader.read(SpanView("span", "scope", {}))
    assert normalized is None or not any(normalized)
