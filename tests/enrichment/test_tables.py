"""The generic reader of dialects that are tables, and its parsers of usage, cost, identity and tags."""

from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Cost, Usage
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import (
    Dialect,
    parse_tags,
    read_cost,
    read_dialect,
    read_identity,
    read_usage,
)

DIALECT = Dialect(
    "Example",
    frozenset({"example"}),
    {
        "kind": ("example.kind", "example.type"),
        "input": ("example.input",),
        "output": ("example.output",),
        "usage": ("example.usage",),
        "usage.input": ("example.tokens.in",),
        "usage.output": ("example.tokens.out",),
        "cost.total": ("example.cost",),
        "response_model": ("example.model",),
        "session": ("example.session",),
    },
    {"llm": Kind.CHAT_MODEL, "tool": Kind.TOOL, "search": Kind.RETRIEVER, "embed": Kind.EMBEDDING},
    ("example.meta.", "example.extra."),
    frozenset({"stream"}),
)


def test_read_dialect_of_model_call_reads_every_field() -> None:
    normalized = read_dialect(
        DIALECT,
        SpanView(
            "call",
            "",
            {
                "example.type": "LLM",
                "example.input": '{"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "f"}]}',
                "example.output": "hello",
                "example.tokens.in": 3,
                "example.tokens.out": "4",
                "example.cost": 0.5,
                "example.model": "m",
                "example.meta.thread_id": '"t"',
                "example.session": "s",
                "example.extra.tenant": '"acme"',
                "example.extra.stream": True,
            },
        ),
    )
    assert normalized is not None
    messages = [*(normalized.input_messages or ()), *(normalized.output_messages or ())]
    assert [(message.role, message.text) for message in messages] == [("user", "hi"), ("assistant", "hello")]
    assert [tool.name for tool in normalized.tools or ()] == ["f"]
    assert (normalized.kind, normalized.usage, normalized.cost) == (Kind.CHAT_MODEL, Usage(3, 4), Cost(total=0.5))
    assert normalized.covered_keys == ("example.output",)  # the input is an object that holds more
    assert (normalized.response_model, normalized.session, normalized.metadata) == ("m", "s", {"tenant": "acme"})


@pytest.mark.parametrize(
    ("kind", "values", "field", "expected"),
    [
        ("tool", {"example.input": '{"args": [], "kwargs": {"a": 1}}'}, "input", {"args": [], "kwargs": {"a": 1}}),
        ("search", {"example.input": '{"args": ["q"], "kwargs": {}}'}, "query", "q"),
        ("search", {"example.input": '{"query": "q"}'}, "query", "q"),
        ("embed", {"example.input": '["a", "b"]'}, "embedded_texts", ("a", "b")),
        ("embed", {"example.input": '{"input": "a"}'}, "embedded_texts", ("a",)),
        ("other", {"example.input": '{"args": ["hi"], "kwargs": {}}'}, "input", "hi"),
        ("other", {"example.input": '{"args": [], "kwargs": {"a": 1}}'}, "input", {"a": 1}),
    ],
)
def test_read_dialect_reads_values_as_kind_requires(
    kind: str, values: dict[str, Any], field: str, expected: Any
) -> None:
    normalized = read_dialect(DIALECT, SpanView("span", "", {"example.kind": kind, **values}))
    assert getattr(normalized, field) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('[{"role": "user", "body": "hi"}]', [{"role": "user", "body": "hi"}]),
        ('[{"role": "user"}, {"role": "assistant", "type": "message", "content": ""}]', None),
    ],
    ids=["in a shape that is not known", "without content"],
)
def test_read_dialect_keeps_messages_of_model_call_with_content(value: str, expected: Any) -> None:
    normalized = read_dialect(DIALECT, SpanView("span", "", {"example.kind": "chat", "example.input": value}))
    assert normalized is not None
    assert (normalized.input, normalized.input_messages) == (expected, None)


def test_read_dialect_of_other_span_returns_none() -> None:
    assert read_dialect(DIALECT, SpanView("span", "", {"example.unknown": 1})) is None


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        # OpenAI: cached tokens are part of the input.
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(9, 4, 13, cache_read=2, reasoning=1),
        ),
        ('{"input": 60, "output": 24, "cache_read_input_tokens": 16, "total": 100}', Usage(60, 24, 100, cache_read=16)),
        ({"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}, Usage(3, 4, 7)),
        ({"inputTokens": 3, "outputTokens": 4, "cachedInputTokens": 1}, Usage(3, 4, cache_read=1)),
        ({"input_tokens": 3, "input_token_details": {"cache_read": 1}}, Usage(3, cache_read=1)),
        ("{'input_tokens': 3, 'cache_read': None, 'cached_tokens': 2}", Usage(3, cache_read=2)),
        ("{'a': '\\d'}", None),
        ({"seconds": 3}, None),
        ("text", None),
    ],
)
def test_read_usage_of_any_provider_returns_counts(value: Any, usage: Usage | None) -> None:
    assert read_usage(value) == usage


@pytest.mark.parametrize(
    ("value", "cost"),
    [
        ('{"input": 0.1, "output": 0.2, "total": 0.3}', Cost(0.1, 0.2, 0.3)),
        ({"prompt_cost": 0.1, "total_cost": 0.3}, Cost(0.1, None, 0.3)),
        ({"input": 0, "output": 0, "total": 0}, None),
        (0.5, Cost(total=0.5)),
        ("free", None),
    ],
)
def test_read_cost_of_object_or_number_returns_cost(value: Any, cost: Cost | None) -> None:
    assert read_cost(value) == cost


def test_read_identity_separates_session_user_tags_and_metadata() -> None:
    properties = {"threadId": "t", "session_id": "s", "user-id": 7, "tags": "b, a", "ls_x": 1, "tenant": "acme", "n": 2}
    assert read_identity(properties) == {
        "session": "s",
        "user": "7",
        "tags": ("b", "a"),
        "metadata": {"tenant": "acme", "n": "2"},
    }


@pytest.mark.parametrize(
    ("value", "tags"),
    [("b, a, seq:step:1", ("b", "a")), ('["a", "b"]', ("a", "b")), (("a",), ("a",)), ("", None), (3, None)],
)
def test_parse_tags_of_list_or_text_returns_tags(value: Any, tags: tuple[str, ...] | None) -> None:
    assert parse_tags(value) == tags
