"""The kind of content of attributes and events."""

import pytest

from mlflow_otlp_exporter._internal.enrichment.readers.dialects import DIALECTS, MCP
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect
from mlflow_otlp_exporter._internal.privacy.content_kinds import (
    Content,
    classify_attribute,
    classify_event_attribute,
)

CONTENT_FIELDS = ("input", "output", "instructions", "tools", "tool_description", "documents", "invocation_parameters")


@pytest.mark.parametrize("dialect", [*DIALECTS, MCP], ids=lambda dialect: dialect.name)
def test_classify_attribute_that_a_dialect_reads_as_content_returns_a_kind(dialect: Dialect) -> None:
    keys = [key for field in CONTENT_FIELDS for key in dialect.fields.get(field, ())]
    assert [key for key in keys if classify_attribute(key) is None] == []


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("langfuse.observation.input", Content.INPUT),
        ("genkit:output", Content.OUTPUT),
        ("agent.messages.ui", Content.INPUT),
        ("user_prompt", Content.INPUT),
        ("llm.anthropic.system", Content.INPUT_MESSAGES),
        ("llm.openai.choices", Content.OUTPUT_MESSAGES),
        ("llm.anthropic.content", Content.TRANSCRIPT),
        ("mastra.metadata.body", Content.TRANSCRIPT),
        ("llamaindex.step.input_summary", Content.TRANSCRIPT),
        ("mlflow.chunk.value", Content.OUTPUT),
        ("db.vector.query.response.documents", Content.DOCUMENTS),
        ("acme.messages.0.content", Content.INPUT),
        ("acme.systemPrompt", Content.INPUT_MESSAGES),
        ("acme.tool_calls", Content.TOOL_CALLS),
        ("gen_ai.system", None),
        ("gen_ai.usage.prompt_tokens", None),
        ("acme.cost.input", None),
        ("gen_ai.request.model", None),
        ("acme.model", None),
        ("session.id", None),
    ],
)
def test_classify_attribute_with_key_returns_its_kind(key: str, content: Content | None) -> None:
    assert classify_attribute(key) is content


@pytest.mark.parametrize(
    ("event", "key", "content"),
    [
        ("LLMChatStartEvent", "messages", Content.INPUT_MESSAGES),
        ("LLMChatStartEvent", "model_dict.system_prompt", Content.INPUT_MESSAGES),
        ("LLMChatStartEvent", "model_dict.model", None),
        ("LLMChatEndEvent", "response.message.blocks", Content.OUTPUT),
        ("LLMChatEndEvent", "response.raw.usage.prompt_tokens", None),
        ("LLMChatInProgressEvent", "response.delta", Content.OUTPUT),
        ("LLMPredictStartEvent", "template_args.context_str", Content.TEMPLATE),
        ("EmbeddingEndEvent", "chunks", Content.EMBEDDED_TEXT),
        ("EmbeddingEndEvent", "embeddings", Content.VECTOR),
        ("RetrievalEndEvent", "nodes", Content.DOCUMENTS),
        ("RetrievalEndEvent", "str_or_query_bundle.query_str", Content.INPUT),
        ("step.output", "output", Content.TRANSCRIPT),
        ("step.output", "tags.llamaindex.step.input_summary", Content.TRANSCRIPT),
        ("workflow.output", "value", Content.TRANSCRIPT),
        ("tool.output", "stdout", Content.OUTPUT),
        ("tool.output", "input", Content.INPUT),
        ("exception", "exception.message", None),
    ],
)
def test_classify_event_attribute_with_key_returns_its_kind(event: str, key: str, content: Content | None) -> None:
    assert classify_event_attribute(event, key) is content
