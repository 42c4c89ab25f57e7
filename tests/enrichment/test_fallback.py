"""Spans of unknown dialects: what is recognised by the ends of keys and the shapes of values, and what is not."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher, read_span
from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Document, NormalizedSpan, Usage
from support.random_traces import JSON, LEAVES, span

USER = [{"role": "user", "content": "Weather in Paris?"}]
REQUEST = json.dumps({"model": "m", "messages": USER, "tools": [{"type": "function", "function": {"name": "f"}}]})
OPENAI = json.dumps(
    {
        "id": "r1",
        "model": "m-1",
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Sunny."}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
)
ANTHROPIC = json.dumps(
    {
        "id": "r1",
        "model": "m-1",
        "role": "assistant",
        "type": "message",
        "content": [{"type": "text", "text": "Sunny."}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
)
GEMINI = json.dumps(
    {
        "modelVersion": "m-1",
        "candidates": [{"content": {"role": "model", "parts": [{"text": "Sunny."}]}}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4},
    }
)
BEDROCK = json.dumps(
    {
        "output": {"message": {"role": "assistant", "content": [{"text": "Sunny."}]}},
        "usage": {"inputTokens": 3, "outputTokens": 4},
    }
)


def read(attributes: Mapping[str, Any]) -> NormalizedSpan:
    return read_span(span(1, attributes)).normalized


@pytest.mark.parametrize(
    "response", [OPENAI, ANTHROPIC, GEMINI, BEDROCK], ids=["OpenAI", "Anthropic", "Gemini", "Bedrock"]
)
@pytest.mark.parametrize("prefix", ["acme.llm.", "acme/", "acme:", "gen_ai.acme.", ""])
def test_read_request_and_response_under_any_prefix_gives_chat(prefix: str, response: str) -> None:
    normalized = read({prefix + "request": REQUEST, prefix + "response": response, prefix + "model": "m"})
    messages = [*(normalized.input_messages or ()), *(normalized.output_messages or ())]
    assert [(message.role, message.text) for message in messages] == [
        ("user", "Weather in Paris?"),
        ("assistant", "Sunny."),
    ]
    assert (normalized.kind, normalized.usage and normalized.usage[:2]) == (Kind.CHAT_MODEL, (3, 4))
    assert [tool.name for tool in normalized.tools or ()] == ["f"]


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"acme.prompt": "hi", "acme.model": "m", "acme.usage.input_tokens": 3}, Kind.CHAT_MODEL),
        ({"acme.messages.0.role": "user", "acme.messages.0.content": "hi", "acme.model": "m"}, Kind.CHAT_MODEL),
        ({"acme.input": "hi", "acme.model": "embed-3", "acme.usage": '{"prompt_tokens": 3}'}, Kind.EMBEDDING),
        ({"acme.query": "hi", "acme.documents": '[{"page_content": "a"}]'}, Kind.RETRIEVER),
        ({"acme.tool.name": "search", "acme.tool.arguments": '{"q": 1}'}, Kind.TOOL),
        ({"acme.span.kind": "agent", "acme.input": "hi"}, Kind.AGENT),
        ({"gen_ai.operation.name": "acompletion", "gen_ai.request.model": "m"}, Kind.LLM),
        (
            {"gen_ai.operation.name": "ask", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3},
            Kind.CHAT_MODEL,
        ),
        # Not enough to be sure.
        ({"acme.input": "hi", "acme.output": "ho"}, None),
        ({"acme.messages": json.dumps(USER)}, None),
        ({"acme.model": "m", "acme.output": "ho"}, None),
        ({"acme.span.kind": "agent"}, None),
        ({"acme.type": "tool"}, None),
        ({"acme.kind": "server", "acme.input": "hi"}, None),
    ],
)
def test_read_unknown_dialect_infers_kind_only_if_sure(attributes: dict[str, Any], kind: Kind | None) -> None:
    assert read(attributes).kind is kind


def test_read_unknown_dialect_reads_identity_usage_and_documents() -> None:
    normalized = read(
        {
            "acme.session.id": "s",
            "acme.userId": "u",
            "acme.tags": ["a"],
            "acme.metadata": '{"tenant": "acme"}',
            "acme.token_count.prompt": 3,
            "acme.token_count.completion": 4,
            "acme.search.query": "q",
            "acme.search.documents.0.content": "text",
            "acme.search.documents.0.id": "d",
            "acme.total_cost": 0.5,
        }
    )
    assert (normalized.session, normalized.user, normalized.tags) == ("s", "u", ("a",))
    assert (normalized.metadata, normalized.usage) == ({"tenant": "acme"}, Usage(3, 4))
    assert (normalized.input, normalized.cost and normalized.cost.total) == ("q", 0.5)
    assert read({"acme.q.documents.0.content": "text", "acme.q.documents.0.id": "d"}).documents == (
        Document("text", "d"),
    )


def test_read_session_of_application_beside_known_convention() -> None:
    model_call = {"openinference.span.kind": "LLM", "input.value": "hi"}
    assert read({**model_call, "app.session_id": "s", "app.user.id": "u"})[-12:] != read(model_call)[-12:]
    assert (read({**model_call, "app.session_id": "s"}).session, read(model_call).session) == ("s", None)


def test_read_identity_in_parameters_of_call() -> None:
    parameters = {
        "user": "u",
        "metadata": {"session_id": "s", "tags": ["a"], "tenant": "acme", "user_api_key": "x", "headers": {"a": "b"}},
    }
    normalized = read({"openinference.span.kind": "LLM", "llm.invocation_parameters": json.dumps(parameters)})
    assert (normalized.session, normalized.user, normalized.tags, normalized.metadata) == (
        "s",
        "u",
        ("a",),
        {"tenant": "acme"},
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"http.request.body": '{"messages": []}', "url.query": "a=b", "thread.id": "7", "server.address": "host"},
        {"db.query": "SELECT", "db.response": "1", "messaging.message.body": "x", "rpc.request": "x"},
        {"app.count": 1, "app.name": "x", "request": ""},
    ],
)
def test_read_span_of_other_instrumentation_finds_nothing(attributes: dict[str, Any]) -> None:
    assert not any(read(attributes))


SEGMENTS = st.text(max_size=5) | st.sampled_from(
    [
        "acme",
        "gen_ai",
        "llm",
        "input",
        "output",
        "messages",
        "0",
        "1",
        "role",
        "content",
        "documents",
        "usage",
        "tokens",
    ]
)
ENDS = SEGMENTS | st.sampled_from(
    [
        "prompt",
        "completion",
        "model",
        "kind",
        "tool",
        "name",
        "session",
        "id",
        "user",
        "cost",
        "metadata",
        "tags",
        "http",
    ]
)
KEYS = st.lists(ENDS, min_size=1, max_size=6).flatmap(
    lambda segments: st.sampled_from([".", "_", ":", "/"]).map(lambda separator: separator.join(segments))
)
ATTRIBUTES = st.dictionaries(KEYS, LEAVES | JSON | st.sampled_from([REQUEST, OPENAI, "agent", "llm", 7]), max_size=12)


def to_readable_span(enriched: EnrichedSpan) -> ReadableSpan:
    return span(1, enriched.attributes, name=enriched.name, events=enriched.events)


@settings(max_examples=300, deadline=None)
@example({"output": '"{\\"type\\":[]}"'})  # a type that cannot be hashed
@example({"output": '[{"role": "user", "content": [{"type": []}]}]'})
@example({"MODEL": "0", "prompt": '[{"role":"0"}]'})
@example({"model": "0", "usage.input_tokens": 1, "prompt": '[{"role":"0"}]'})
@given(ATTRIBUTES)
def test_enrich_any_attributes_keeps_them_and_is_idempotent(attributes: dict[str, Any]) -> None:
    (first,) = Enricher().enrich([span(1, attributes)])
    assert isinstance(first, EnrichedSpan)
    for key, value in attributes.items():
        assert first.attributes[key] == value or value != value  # noqa: PLR0124 - NaN
    (second,) = Enricher().enrich([to_readable_span(first)])
    assert isinstance(second, EnrichedSpan)
    assert {key: repr(value) for key, value in second.attributes.items()} == {
        key: repr(value) for key, value in first.attributes.items()
    }


@pytest.mark.parametrize(
    "key", ["acme.input", "acme.messages.{}.content", "acme.{}.session_id", "acme.usage", "{}.a.b.c"]
)
def test_enrich_many_or_large_attributes_takes_linear_time(key: str) -> None:
    attributes = {key.format(number): "x" for number in range(20_000)} if "{}" in key else {key: "{" * 1_000_000}
    begin = time.thread_time()
    Enricher().enrich([span(1, attributes)])
    assert time.thread_time() - begin < 2.0
