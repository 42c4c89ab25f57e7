"""OpenInference's attributes, for spans that were written in another convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openinference.semconv.trace import (
    DocumentAttributes,
    MessageAttributes,
    OpenInferenceMimeTypeValues,
    RerankerAttributes,
    SpanAttributes,
    ToolCallAttributes,
)

from mlflow_otlp_exporter._internal.enrichment.kinds import is_model, to_openinference_kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, Message, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.providers import resolve_provider, to_openinference_provider
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import unwrap_result
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, to_json, to_text

_JSON, _TEXT = OpenInferenceMimeTypeValues.JSON.value, OpenInferenceMimeTypeValues.TEXT.value
_COUNT_KEYS = (
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION,
    SpanAttributes.LLM_TOKEN_COUNT_TOTAL,
    "llm.token_count.prompt_details.cache_read",
    "llm.token_count.prompt_details.cache_write",
    "llm.token_count.completion_details.reasoning",
    "llm.token_count.prompt_details.audio",
    "llm.token_count.completion_details.audio",
)
_SYSTEMS = frozenset({"openai", "anthropic", "cohere", "mistralai", "vertexai"})


def write(span: SpanState, *, messages: bool) -> dict[str, Any]:
    """The attributes of OpenInference's for a span.

    Args:
        span: The span.
        messages: Whether to write messages and tools too, and the values that MLflow has in attributes of its own.
    """
    found, kind = span.observation, span.kind
    if kind is None:
        return {}
    there = span.attributes
    written: dict[str, Any] = {SpanAttributes.OPENINFERENCE_SPAN_KIND: to_openinference_kind(kind)}
    if found.session:
        written[SpanAttributes.SESSION_ID] = found.session
    if found.user:
        written[SpanAttributes.USER_ID] = found.user
    if found.tags:
        written[SpanAttributes.TAG_TAGS] = list(found.tags)
    if found.metadata:
        written[SpanAttributes.METADATA] = to_json(found.metadata)
    if found.agent_name:
        written["agent.name"] = found.agent_name
    _write_model(found, kind, written)
    if found.usage is not None and span.keeps_usage and not any(key in there for key in _COUNT_KEYS):
        counts = found.usage
        if counts.total is None:
            counts = counts._replace(total=(counts.input or 0) + (counts.output or 0))
        written.update((key, count) for key, count in zip(_COUNT_KEYS, counts, strict=True) if count is not None)
    if kind is Kind.TOOL:
        _write_tool(found, written)
    if messages:
        _write_values(span, written)
        if is_model(kind):
            _write_messages(found, there, written)
    return written


def has_all_counts(usage: Usage | None, attributes: Mapping[str, Any]) -> bool:
    """Whether OpenInference's counts among a span's attributes say all that MLflow wants to know of its tokens.

    Args:
        usage: What is known.
        attributes: All attributes of the span.
    """
    if usage is None or not usage.input or not usage.output or usage.cache_read or usage.cache_write:
        return False
    given, answered, total = map(attributes.get, _COUNT_KEYS[:3])
    # MLflow adds up what has no total.
    totals = (None, usage.input + usage.output)
    return (given, answered) == (usage.input, usage.output) and total in totals and usage.total in totals


def _write_model(found: NormalizedSpan, kind: Kind, written: dict[str, Any]) -> None:
    model = found.response_model or found.request_model
    if is_model(kind):
        if model:
            written[SpanAttributes.LLM_MODEL_NAME] = model
        if provider := resolve_provider(found.provider, model):
            written[SpanAttributes.LLM_PROVIDER] = to_openinference_provider(provider)
            if provider in _SYSTEMS:
                written[SpanAttributes.LLM_SYSTEM] = provider
        if found.invocation_parameters:
            written[SpanAttributes.LLM_INVOCATION_PARAMETERS] = to_json(found.invocation_parameters)
        if found.finish_reason:
            written["llm.finish_reason"] = found.finish_reason
    elif model and kind is Kind.EMBEDDING:
        written[SpanAttributes.EMBEDDING_MODEL_NAME] = model
    elif model and kind is Kind.RERANKER:
        written[RerankerAttributes.RERANKER_MODEL_NAME] = model


def _write_tool(found: NormalizedSpan, written: dict[str, Any]) -> None:
    if found.tool_name:
        written[SpanAttributes.TOOL_NAME] = found.tool_name
    if found.tool_description:
        written[SpanAttributes.TOOL_DESCRIPTION] = found.tool_description
    if found.tool_call_id:
        written["tool.id"] = found.tool_call_id


def _write_values(span: SpanState, written: dict[str, Any]) -> None:
    """`input.value` and `output.value`, each with what it is; documents."""
    found, kind, there = span.observation, span.kind, span.attributes
    given: Any = found.input
    answered: Any = found.output
    if kind is Kind.TOOL:
        given, answered = decode_json(given), unwrap_result(answered)
    elif found.query is not None and given is None:
        given = found.query
    elif found.embedded_texts and given is None:
        given = {"input": list(found.embedded_texts)}
    elif is_model(kind):
        if found.input_messages and SpanAttributes.INPUT_VALUE not in there:
            given = {"messages": _build_plain_messages(found.input_messages)}
        if found.output_messages and SpanAttributes.OUTPUT_VALUE not in there:
            answered = {"messages": _build_plain_messages(found.output_messages)}
    elif kind is Kind.AGENT or span.parent_id is None:
        given, answered = (
            given if given is not None else span.question,
            answered if answered is not None else span.answer,
        )
    for value, name, mime in (
        (given, SpanAttributes.INPUT_VALUE, SpanAttributes.INPUT_MIME_TYPE),
        (answered, SpanAttributes.OUTPUT_VALUE, SpanAttributes.OUTPUT_MIME_TYPE),
    ):
        if value is not None and name not in there:
            written[name] = to_text(value)
            written[mime] = _TEXT if isinstance(value, str) else _JSON
    if found.documents and not _has_prefix(there, SpanAttributes.RETRIEVAL_DOCUMENTS + "."):
        for index, document in enumerate(found.documents):
            prefix = f"{SpanAttributes.RETRIEVAL_DOCUMENTS}.{index}."
            written[prefix + DocumentAttributes.DOCUMENT_CONTENT] = document.content
            if document.id:
                written[prefix + DocumentAttributes.DOCUMENT_ID] = document.id
            if document.score is not None:
                written[prefix + DocumentAttributes.DOCUMENT_SCORE] = document.score
            if document.metadata:
                written[prefix + DocumentAttributes.DOCUMENT_METADATA] = to_json(document.metadata)


def _has_prefix(there: Mapping[str, Any], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in there)


def _build_plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    made = []
    for message in messages:
        item: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            item["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            item["tool_call_id"] = message.tool_call_id
        made.append(item)
    return made


def _write_messages(found: NormalizedSpan, there: Any, written: dict[str, Any]) -> None:
    for messages, group in (
        (found.input_messages, SpanAttributes.LLM_INPUT_MESSAGES),
        (found.output_messages, SpanAttributes.LLM_OUTPUT_MESSAGES),
    ):
        if messages and f"{group}.0.message.role" not in there and not _has_prefix(there, group + "."):
            for index, message in enumerate(messages):
                _write_message(message, f"{group}.{index}.", written)
    if found.tools and not _has_prefix(there, SpanAttributes.LLM_TOOLS + "."):
        for index, tool in enumerate(found.tools):
            function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters or {}}
            written[f"{SpanAttributes.LLM_TOOLS}.{index}.tool.json_schema"] = to_json(
                {"type": "function", "function": function}
            )


def _write_message(message: Message, prefix: str, written: dict[str, Any]) -> None:
    written[prefix + MessageAttributes.MESSAGE_ROLE] = message.role
    if all(part.kind == "text" for part in message.parts):
        if message.parts:
            written[prefix + MessageAttributes.MESSAGE_CONTENT] = message.text
    else:
        for index, part in enumerate(message.parts):
            inner = f"{prefix}{MessageAttributes.MESSAGE_CONTENTS}.{index}.message_content."
            written[inner + "type"] = part.kind if part.kind != "file" else "document"
            if part.kind == "text":
                written[inner + "text"] = part.text
            elif part.kind == "image":
                written[inner + "image.image.url"] = part.url
            elif part.url or part.text:
                written[inner + "text"] = part.text or part.url
    if message.name:
        written[prefix + MessageAttributes.MESSAGE_NAME] = message.name
    if message.tool_call_id:
        written[prefix + MessageAttributes.MESSAGE_TOOL_CALL_ID] = message.tool_call_id
    for index, call in enumerate(message.tool_calls):
        inner = f"{prefix}{MessageAttributes.MESSAGE_TOOL_CALLS}.{index}."
        if call.id:
            written[inner + "tool_call.id"] = call.id
        written[inner + ToolCallAttributes.TOOL_CALL_FUNCTION_NAME] = call.name
        written[inner + ToolCallAttributes.TOOL_CALL_FUNCTION_ARGUMENTS_JSON] = call.arguments
