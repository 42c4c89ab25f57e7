"""OpenInference's attributes, for spans in another convention."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from openinference.semconv.trace import (
    DocumentAttributes,
    MessageAttributes,
    OpenInferenceMimeTypeValues,
    RerankerAttributes,
    SpanAttributes,
    ToolCallAttributes,
)

from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys
from mlflow_otlp_exporter._internal.enrichment.kinds import AGENT, EMBEDDING, MODEL_KINDS, TO_OPENINFERENCE, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Message, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.providers import resolve_provider, to_openinference_provider
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import COUNT_KEYS
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import unwrap_result
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, to_json, to_text

_JSON, _TEXT = OpenInferenceMimeTypeValues.JSON.value, OpenInferenceMimeTypeValues.TEXT.value
_INPUT, _OUTPUT = SpanAttributes.INPUT_VALUE, SpanAttributes.OUTPUT_VALUE
_PARAMETERS = SpanAttributes.LLM_INVOCATION_PARAMETERS
_SYSTEMS = frozenset({"openai", "anthropic", "cohere", "mistralai", "vertexai"})


def write(span: SpanState, attributes: dict[str, Any], *, with_messages: bool) -> None:
    """OpenInference's attributes for a span.

    `with_messages` includes messages, tools and the values that MLflow has in attributes of its own.
    """
    normalized, kind, own = span.normalized, span.kind, span.attributes
    if kind is None:
        return
    attributes[SpanAttributes.OPENINFERENCE_SPAN_KIND] = TO_OPENINFERENCE[kind]
    if normalized.session:
        attributes[SpanAttributes.SESSION_ID] = normalized.session
    if normalized.user:
        attributes[SpanAttributes.USER_ID] = normalized.user
    if normalized.tags:
        attributes[SpanAttributes.TAG_TAGS] = list(normalized.tags)
    if normalized.metadata:
        attributes[SpanAttributes.METADATA] = to_json(normalized.metadata)
    if normalized.agent_name:
        attributes["agent.name"] = normalized.agent_name
    model = normalized.response_model or normalized.request_model or ""
    if kind in MODEL_KINDS:
        attributes |= _describe_model((normalized.provider or "", model))
        if normalized.invocation_parameters:
            attributes[_PARAMETERS] = own.get(_PARAMETERS) or to_json(normalized.invocation_parameters)
        if normalized.finish_reason:
            attributes["llm.finish_reason"] = normalized.finish_reason
    elif model and kind is EMBEDDING:
        attributes[SpanAttributes.EMBEDDING_MODEL_NAME] = model
    elif model and kind is Kind.RERANKER:
        attributes[RerankerAttributes.RERANKER_MODEL_NAME] = model
    if normalized.usage is not None and span.counts_usage and own.keys().isdisjoint(COUNT_KEYS):
        counts = normalized.usage
        if counts.total is None:
            counts = counts._replace(total=(counts.input or 0) + (counts.output or 0))
        attributes.update((key, count) for key, count in zip(COUNT_KEYS, counts, strict=False) if count is not None)
    if kind is TOOL:
        if normalized.tool_name:
            attributes[SpanAttributes.TOOL_NAME] = normalized.tool_name
        if normalized.tool_description:
            attributes[SpanAttributes.TOOL_DESCRIPTION] = normalized.tool_description
        if normalized.tool_call_id:
            attributes["tool.id"] = normalized.tool_call_id
    if with_messages:
        if normalized.documents or _INPUT not in own or _OUTPUT not in own:
            _write_values(span, attributes)
        if kind in MODEL_KINDS:
            _write_messages(normalized, own, attributes)


def has_all_counts(usage: Usage | None, attributes: Mapping[str, Any]) -> bool:
    """Whether OpenInference's counts among a span's attributes hold everything that MLflow reads about its tokens."""
    if usage is None or not usage.input or not usage.output or usage.cache_read or usage.cache_write:
        return False
    input_tokens, output_tokens, total = map(attributes.get, COUNT_KEYS[:3])
    # Without a total, MLflow adds input and output tokens.
    totals = (None, usage.input + usage.output)
    return usage.total in totals and total in totals and (input_tokens, output_tokens) == (usage.input, usage.output)


@cache_by_keys
def _describe_model(names: tuple[str, ...]) -> dict[str, str]:
    attributes = {SpanAttributes.LLM_MODEL_NAME: names[1]} if names[1] else {}
    if provider := resolve_provider(*names):
        attributes[SpanAttributes.LLM_PROVIDER] = to_openinference_provider(provider)
        if provider in _SYSTEMS:
            attributes[SpanAttributes.LLM_SYSTEM] = provider
    return attributes


def _write_values(span: SpanState, attributes: dict[str, Any]) -> None:
    """`input.value` and `output.value` with their media types, and documents."""
    normalized, kind, own = span.normalized, span.kind, span.attributes
    input_value: Any = normalized.input
    output_value: Any = normalized.output
    if kind is TOOL:
        input_value, output_value = decode_json(input_value), unwrap_result(output_value)
    elif normalized.query is not None and input_value is None:
        input_value = normalized.query
    elif normalized.embedded_texts and input_value is None:
        input_value = {"input": list(normalized.embedded_texts)}
    elif kind in MODEL_KINDS:
        if normalized.input_messages and _INPUT not in own:
            input_value = {"messages": _build_plain_messages(normalized.input_messages)}
        if normalized.output_messages and _OUTPUT not in own:
            output_value = {"messages": _build_plain_messages(normalized.output_messages)}
    elif kind is AGENT or span.is_local_root:
        input_value, output_value = (
            input_value if input_value is not None else span.question,
            output_value if output_value is not None else span.answer,
        )
    for value, name, mime in (
        (input_value, _INPUT, SpanAttributes.INPUT_MIME_TYPE),
        (output_value, _OUTPUT, SpanAttributes.OUTPUT_MIME_TYPE),
    ):
        if value is not None and name not in own:
            attributes[name] = to_text(value)
            attributes[mime] = _TEXT if isinstance(value, str) else _JSON
    if normalized.documents and not _has_prefix(own, SpanAttributes.RETRIEVAL_DOCUMENTS + "."):
        for index, document in enumerate(normalized.documents):
            prefix = f"{SpanAttributes.RETRIEVAL_DOCUMENTS}.{index}."
            attributes[prefix + DocumentAttributes.DOCUMENT_CONTENT] = document.content
            if document.id:
                attributes[prefix + DocumentAttributes.DOCUMENT_ID] = document.id
            if document.score is not None:
                attributes[prefix + DocumentAttributes.DOCUMENT_SCORE] = document.score
            if document.metadata:
                attributes[prefix + DocumentAttributes.DOCUMENT_METADATA] = to_json(document.metadata)


def _has_prefix(attributes: Mapping[str, Any], prefix: str) -> bool:
    return any(map(str.startswith, attributes, repeat(prefix)))


def _build_plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    result = []
    for message in messages:
        item: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            item["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            item["tool_call_id"] = message.tool_call_id
        result.append(item)
    return result


def _write_messages(normalized: NormalizedSpan, own: Any, attributes: dict[str, Any]) -> None:
    for messages, group in (
        (normalized.input_messages, SpanAttributes.LLM_INPUT_MESSAGES),
        (normalized.output_messages, SpanAttributes.LLM_OUTPUT_MESSAGES),
    ):
        if messages and f"{group}.0.message.role" not in own and not _has_prefix(own, group + "."):
            for index, message in enumerate(messages):
                _write_message(message, f"{group}.{index}.", attributes)
    if normalized.tools and not _has_prefix(own, SpanAttributes.LLM_TOOLS + "."):
        for index, tool in enumerate(normalized.tools):
            function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters or {}}
            attributes[f"{SpanAttributes.LLM_TOOLS}.{index}.tool.json_schema"] = to_json(
                {"type": "function", "function": function}
            )


def _write_message(message: Message, prefix: str, attributes: dict[str, Any]) -> None:
    attributes[prefix + MessageAttributes.MESSAGE_ROLE] = message.role
    if all(part.kind == "text" for part in message.parts):
        if message.parts:
            attributes[prefix + MessageAttributes.MESSAGE_CONTENT] = message.text
    else:
        for index, part in enumerate(message.parts):
            part_prefix = f"{prefix}{MessageAttributes.MESSAGE_CONTENTS}.{index}.message_content."
            attributes[part_prefix + "type"] = part.kind if part.kind != "file" else "document"
            if part.kind == "text":
                attributes[part_prefix + "text"] = part.text
            elif part.kind == "image":
                attributes[part_prefix + "image.image.url"] = part.url
            elif part.url or part.text:
                attributes[part_prefix + "text"] = part.text or part.url
    if message.name:
        attributes[prefix + MessageAttributes.MESSAGE_NAME] = message.name
    if message.tool_call_id:
        attributes[prefix + MessageAttributes.MESSAGE_TOOL_CALL_ID] = message.tool_call_id
    for index, call in enumerate(message.tool_calls):
        part_prefix = f"{prefix}{MessageAttributes.MESSAGE_TOOL_CALLS}.{index}."
        if call.id:
            attributes[part_prefix + "tool_call.id"] = call.id
        attributes[part_prefix + ToolCallAttributes.TOOL_CALL_FUNCTION_NAME] = call.name
        attributes[part_prefix + ToolCallAttributes.TOOL_CALL_FUNCTION_ARGUMENTS_JSON] = call.arguments
