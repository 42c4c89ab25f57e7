"""Dialects without a recording: spans written by hand as the packages write them (names from their source)."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.enricher import read_span
from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan, Usage
from support.random_traces import span


def read(attributes: Mapping[str, Any], name: str = "span") -> NormalizedSpan:
    return read_span(span(1, attributes, name=name)).normalized


def texts(normalized: NormalizedSpan) -> list[tuple[str, str]]:
    messages = [*(normalized.input_messages or ()), *(normalized.output_messages or ())]
    return [(message.role, message.text) for message in messages]


HAYSTACK_REPLY = {
    "role": "assistant",
    "content": [{"text": "Paris."}],
    "name": None,
    "meta": {
        "model": "gpt-4o-mini-2024-07-18",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    },
}


def test_read_haystack_generator_reads_chat_usage_and_model() -> None:
    question: dict[str, Any] = {"role": "user", "content": [{"text": "Capital?"}], "meta": {}, "name": None}
    normalized = read(
        {
            "haystack.component.name": "llm",
            "haystack.component.type": "OpenAIChatGenerator",
            "haystack.component.input": json.dumps({"messages": [question], "streaming_callback": None}),
            "haystack.component.output": json.dumps({"replies": [HAYSTACK_REPLY]}),
        },
        "haystack.component.run",
    )
    assert (normalized.kind, texts(normalized)) == (Kind.CHAT_MODEL, [("user", "Capital?"), ("assistant", "Paris.")])
    assert (normalized.usage, normalized.response_model, normalized.finish_reason) == (
        Usage(9, 2, cache_read=4),
        "gpt-4o-mini-2024-07-18",
        "stop",
    )


@pytest.mark.parametrize(
    ("component", "kind"),
    [
        ("InMemoryBM25Retriever", Kind.RETRIEVER),
        ("SentenceTransformersTextEmbedder", Kind.EMBEDDING),
        ("LLMRanker", Kind.RERANKER),
        ("HuggingFaceLocalGenerator", Kind.LLM),
        ("ChatPromptBuilder", Kind.PROMPT),
        ("DocumentJoiner", Kind.CHAIN),
    ],
)
def test_read_haystack_component_takes_kind_from_class(component: str, kind: Kind) -> None:
    assert read({"haystack.component.type": component}).kind is kind


def test_read_haystack_retriever_reads_query_and_documents() -> None:
    document = {"id": "d1", "content": "Spans.", "score": 0.5, "meta": {"source": "a.md"}}
    normalized = read(
        {
            "haystack.component.type": "InMemoryBM25Retriever",
            "haystack.component.input": json.dumps({"query": "tracing?", "top_k": 2}),
            "haystack.component.output": json.dumps({"documents": [document]}),
        }
    )
    assert normalized.query == "tracing?"
    assert [(item.content, item.id, item.metadata) for item in normalized.documents or ()] == [
        ("Spans.", "d1", {"source": "a.md"})
    ]


def test_read_haystack_agent_and_tool_spans() -> None:
    messages = json.dumps({"messages": [{"role": "user", "content": [{"text": "Capital?"}]}, HAYSTACK_REPLY]})
    agent = read({"haystack.agent.input": messages, "haystack.agent.output": messages}, "haystack.agent.run")
    assert (agent.kind, texts(agent)[-1]) == (Kind.AGENT, ("assistant", "Paris."))
    tool = read(
        {
            "haystack.tool.name": "search",
            "haystack.agent.step.tool.input": '{"q": "rain"}',
            "haystack.agent.step.tool.output": "wet",
        },
        "haystack.agent.step.tool",
    )
    assert (tool.kind, tool.tool_name, tool.input, tool.output) == (Kind.TOOL, "search", {"q": "rain"}, "wet")
    assert read({"haystack.pipeline.input_data": "{}"}, "haystack.pipeline.run").kind is Kind.CHAIN


def test_read_laminar_span_reads_type_values_and_identity() -> None:
    normalized = read(
        {
            "lmnr.span.type": "LLM",
            "lmnr.span.input": '[{"role": "user", "content": "hi"}]',
            "lmnr.span.output": '"hello"',
            "lmnr.association.properties.session_id": "s",
            "lmnr.association.properties.user_id": "u",
            "lmnr.association.properties.metadata.tenant": "acme",
            "lmnr.association.properties.tags": ["a"],
            "lmnr.association.properties.trace_type": "DEFAULT",
        }
    )
    assert (normalized.kind, texts(normalized)) == (Kind.CHAT_MODEL, [("user", "hi"), ("assistant", "hello")])
    assert (normalized.session, normalized.user, normalized.tags) == ("s", "u", ("a",))
    assert normalized.metadata == {"tenant": "acme"}
    assert read({"lmnr.span.type": "DEFAULT", "lmnr.span.input": '{"q": 1}'}).kind is None


@pytest.mark.parametrize("prefix", ["nat", "aiq"])
def test_read_nemo_span_reads_kind_beside_openinference_values(prefix: str) -> None:
    normalized = read(
        {
            f"{prefix}.span.kind": "LLM",
            f"{prefix}.conversation.id": "c",
            "input.value": '[{"role": "user", "content": "hi"}]',
            "output.value": "hello",
            "llm.model_name": "meta/llama-3",
            "llm.provider": "langchain",
            "llm.token_count.prompt": 3,
            "llm.token_count.completion": 4,
        }
    )
    assert (normalized.kind, texts(normalized)) == (Kind.CHAT_MODEL, [("user", "hi"), ("assistant", "hello")])
    assert (normalized.session, normalized.usage) == ("c", Usage(3, 4))
    tool = read({f"{prefix}.span.kind": "TOOL", f"{prefix}.function.name": "search", "input.value": '{"q": 1}'})
    assert (tool.kind, tool.tool_name) == (Kind.TOOL, "search")


def test_read_pipecat_spans_read_chat_speech_and_turns() -> None:
    normalized = read(
        {
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.operation.name": "chat",
            "gen_ai.system_instructions": "Be brief.",
            "stream": True,
            "input": '[{"role": "user", "content": "hi"}]',
            "output": "hello",
            "tools": '[{"type": "function", "function": {"name": "search"}}]',
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 4,
        }
    )
    assert (normalized.kind, normalized.usage) == (Kind.CHAT_MODEL, Usage(3, 4))
    assert texts(normalized) == [("system", "Be brief."), ("user", "hi"), ("assistant", "hello")]
    assert [tool.name for tool in normalized.tools or ()] == ["search"]
    speech = read({"gen_ai.operation.name": "tts", "voice_id": "v", "text": "hello", "metrics.ttfb": 0.1})
    assert (speech.kind, speech.input) == (Kind.TASK, "hello")
    turn_span = read({"turn.number": 1, "turn.type": "conversation", "conversation.id": "c"}, "turn")
    assert (turn_span.kind, turn_span.session) == (Kind.CHAIN, "c")


@pytest.mark.parametrize(
    "attributes",
    [
        {"wandb.thread_id": "s", "weave.tags": ["a"]},
        {"opik.thread_id": "s", "opik.tags": ["a"]},
        {"thread_id": "s", "opik.tags": '["a"]'},
    ],
)
def test_read_weave_and_opik_attributes_read_identity(attributes: dict[str, Any]) -> None:
    normalized = read(attributes)
    assert (normalized.session, normalized.tags) == ("s", ("a",))


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"gen_ai.operation.name": "vectordb", "gen_ai.retrieval.query": "q"}, None),
        ({"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.input": "hi"}, Kind.WORKFLOW),
        ({"traceloop.span.kind": "workflow", "gen_ai.operation.name": "chat"}, Kind.WORKFLOW),
    ],
)
def test_read_openlit_and_traceloop_spans_keep_own_kind(attributes: dict[str, Any], kind: Kind | None) -> None:
    normalized = read(attributes)
    assert normalized.kind is kind
    assert (normalized.input is None) == ("traceloop.span.kind" in attributes)
