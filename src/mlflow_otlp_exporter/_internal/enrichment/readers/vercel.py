"""Vercel AI SDK, versions 4 to 6 and the legacy exporter of 7: `ai.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    Kind,
    Message,
    NormalizedSpan,
    Part,
    ToolCall,
    Usage,
)
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_int,
    parse_objects,
    parse_structured,
    parse_text,
    parse_texts,
    select_text,
    to_text,
)

_METADATA, _SETTINGS = "ai.telemetry.metadata.", "ai.settings."
_IDENTITY_KEYS = frozenset({"sessionId", "session_id", "threadId", "conversationId", "userId", "user_id", "tags"})
_CALL_SUFFIXES = (".doGenerate", ".doStream")
_OUTER_OPERATIONS = frozenset({"ai.generateText", "ai.streamText", "ai.generateObject", "ai.streamObject"})


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads calls of models, their outer spans, tool calls, embeddings and reranking."""
    found = source.attributes
    operation = found.get("ai.operationId")
    if not isinstance(operation, str):
        return None
    shared = _read_common(found)
    if operation == "ai.toolCall":
        return shared._replace(
            kind=Kind.TOOL,
            tool_name=parse_text(found.get("ai.toolCall.name")),
            tool_call_id=parse_text(found.get("ai.toolCall.id")),
            input=found.get("ai.toolCall.args", found.get("ai.toolCall.input")),
            output=decode_json(found.get("ai.toolCall.result", found.get("ai.toolCall.output"))),
        )
    if operation.startswith("ai.embed"):
        return shared._replace(
            kind=Kind.EMBEDDING,
            embedded_texts=_read_embedded_texts(found),
            usage=_read_embedding_usage(found),
        )
    if operation.startswith("ai.rerank"):
        return shared._replace(kind=Kind.RERANKER)
    if operation not in _OUTER_OPERATIONS and not operation.endswith(_CALL_SUFFIXES):
        return None
    outer = operation in _OUTER_OPERATIONS
    given = (
        read_request(found.get("ai.prompt"), model=True) if outer else read_messages(found.get("ai.prompt.messages"))
    )
    answered = _read_answer(found)
    carried = [key for key in ("ai.prompt.messages", "ai.prompt") if given and key in found]
    carried += [key for key in ("ai.response.text", "ai.response.toolCalls") if answered and key in found]
    return shared._replace(
        kind=Kind.CHAT_MODEL,
        wraps_calls=outer or None,
        input_messages=given,
        output_messages=answered,
        tools=read_tools(found.get("ai.prompt.tools")),
        # The outer span has the usage of the last step only.
        usage=None if outer else _read_usage(found),
        finish_reason=parse_text(found.get("ai.response.finishReason")),
        invocation_parameters=_read_parameters(found),
        carried=tuple(carried),
    )


def _read_common(found: Mapping[str, Any]) -> NormalizedSpan:
    start = len(_METADATA)
    metadata = {key[start:]: value for key, value in found.items() if key.startswith(_METADATA)}
    rest = {key: to_text(value) for key, value in metadata.items() if key not in _IDENTITY_KEYS}
    return NormalizedSpan(
        request_model=parse_text(found.get("ai.model.id")),
        response_model=parse_text(found.get("ai.response.model")),
        provider=parse_text(found.get("ai.model.provider")),
        session=select_text(*(metadata.get(key) for key in ("sessionId", "session_id", "threadId", "conversationId"))),
        user=select_text(metadata.get("userId"), metadata.get("user_id")),
        tags=parse_texts(metadata.get("tags")),
        metadata=rest or None,
        response_id=parse_text(found.get("ai.response.id")),
    )


def _read_answer(found: Mapping[str, Any]) -> tuple[Message, ...] | None:
    said = select_text(found.get("ai.response.text"), found.get("ai.response.object"), found.get("ai.result.text"))
    calls = []
    for call in parse_objects(found.get("ai.response.toolCalls", found.get("ai.result.toolCalls"))):
        name = parse_text(call.get("toolName"))
        if name:
            arguments = call.get("input", call.get("args"))
            calls.append(ToolCall(to_text(call.get("toolCallId") or ""), name, to_text(arguments)))
    reasoning = to_text(found.get("ai.response.reasoning") or "")
    if not said and not calls and not reasoning:
        return None
    parts = (Part("text", said),) if said else ()
    return (Message("assistant", parts, tuple(calls), reasoning=reasoning),)


def _read_usage(found: Mapping[str, Any]) -> Usage | None:
    given = parse_int(found.get("ai.usage.inputTokens", found.get("ai.usage.promptTokens")))
    answered = parse_int(found.get("ai.usage.outputTokens", found.get("ai.usage.completionTokens")))
    if given is None and answered is None:
        return None
    return Usage(
        given,
        answered,
        parse_int(found.get("ai.usage.totalTokens")),
        cache_read=parse_int(found.get("ai.usage.cachedInputTokens")),
        reasoning=parse_int(found.get("ai.usage.reasoningTokens")),
    )


def _read_embedding_usage(found: Mapping[str, Any]) -> Usage | None:
    tokens = parse_int(found.get("ai.usage.tokens"))
    is_call = str(found.get("ai.operationId")).endswith(".doEmbed")
    return Usage(tokens, 0, tokens) if tokens is not None and is_call else None


def _read_embedded_texts(found: Mapping[str, Any]) -> tuple[str, ...] | None:
    values = found.get("ai.values")
    if values is None:
        single = decode_json(found.get("ai.value"))
        return (single,) if isinstance(single, str) else None
    listed = parse_structured(values) or []
    said = tuple(each for item in listed if isinstance(each := decode_json(item), str))
    return said or None


def _read_parameters(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    start = len(_SETTINGS)
    settings = {key[start:]: value for key, value in found.items() if key.startswith(_SETTINGS)}
    settings.pop("maxRetries", None)
    return settings or None
