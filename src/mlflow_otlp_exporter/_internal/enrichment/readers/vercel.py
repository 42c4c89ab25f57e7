"""Vercel AI SDK, versions 4 to 6 and the legacy exporter of 7: `ai.*`."""

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
from mlflow_otlp_exporter._internal.enrichment.readers.tables import collect_properties, read_identity, read_usage
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    decode_json,
    parse_int,
    parse_objects,
    parse_structured,
    parse_text,
    select_text,
    to_text,
)

_METADATA, _SETTINGS = "ai.telemetry.metadata.", "ai.settings."
_CALL_SUFFIXES = (".doGenerate", ".doStream")
_OUTER_OPERATIONS = frozenset({"ai.generateText", "ai.streamText", "ai.generateObject", "ai.streamObject"})


def read(span: SpanView) -> NormalizedSpan | None:
    """Read model calls, their outer spans, tool calls, embeddings and reranking."""
    attributes = span.attributes
    operation = attributes.get("ai.operationId")
    if not isinstance(operation, str):
        return None
    common = _read_common(attributes)
    if operation == "ai.toolCall":
        return common._replace(
            kind=Kind.TOOL,
            tool_name=parse_text(attributes.get("ai.toolCall.name")),
            tool_call_id=parse_text(attributes.get("ai.toolCall.id")),
            input=attributes.get("ai.toolCall.args", attributes.get("ai.toolCall.input")),
            output=decode_json(attributes.get("ai.toolCall.result", attributes.get("ai.toolCall.output"))),
        )
    if operation.startswith("ai.embed"):
        return common._replace(
            kind=Kind.EMBEDDING,
            embedded_texts=_read_embedded_texts(attributes),
            usage=_read_embedding_usage(attributes),
        )
    if operation.startswith("ai.rerank"):
        return common._replace(kind=Kind.RERANKER)
    if operation not in _OUTER_OPERATIONS and not operation.endswith(_CALL_SUFFIXES):
        return None
    is_outer = operation in _OUTER_OPERATIONS
    if is_outer:
        input_messages = read_request(attributes.get("ai.prompt"), is_model=True)
    else:
        input_messages = read_messages(attributes.get("ai.prompt.messages"))
    output_messages = _read_answer(attributes)
    covered_keys = [key for key in ("ai.prompt.messages", "ai.prompt") if input_messages and key in attributes]
    covered_keys += [
        key for key in ("ai.response.text", "ai.response.toolCalls") if output_messages and key in attributes
    ]
    return common._replace(
        kind=Kind.CHAT_MODEL,
        wraps_calls=is_outer or None,
        input_messages=input_messages,
        output_messages=output_messages,
        tools=read_tools(attributes.get("ai.prompt.tools")),
        # The outer span has the usage of the last step only.
        usage=None if is_outer else read_usage(collect_properties(attributes, ("ai.usage.",))),
        finish_reason=parse_text(attributes.get("ai.response.finishReason")),
        invocation_parameters=_read_parameters(attributes),
        covered_keys=tuple(covered_keys),
    )


def _read_common(attributes: Mapping[str, Any]) -> NormalizedSpan:
    return NormalizedSpan(
        request_model=parse_text(attributes.get("ai.model.id")),
        response_model=parse_text(attributes.get("ai.response.model")),
        provider=parse_text(attributes.get("ai.model.provider")),
        response_id=parse_text(attributes.get("ai.response.id")),
        **read_identity(collect_properties(attributes, (_METADATA,))),
    )


def _read_answer(attributes: Mapping[str, Any]) -> tuple[Message, ...] | None:
    answer = select_text(
        attributes.get("ai.response.text"), attributes.get("ai.response.object"), attributes.get("ai.result.text")
    )
    calls = []
    for call in parse_objects(attributes.get("ai.response.toolCalls", attributes.get("ai.result.toolCalls"))):
        name = parse_text(call.get("toolName"))
        if name:
            arguments = call.get("input", call.get("args"))
            calls.append(ToolCall(to_text(call.get("toolCallId") or ""), name, to_text(arguments)))
    reasoning = to_text(attributes.get("ai.response.reasoning") or "")
    if not answer and not calls and not reasoning:
        return None
    parts = (Part("text", answer),) if answer else ()
    return (Message("assistant", parts, tuple(calls), reasoning=reasoning),)


def _read_embedding_usage(attributes: Mapping[str, Any]) -> Usage | None:
    tokens = parse_int(attributes.get("ai.usage.tokens"))
    is_call = str(attributes.get("ai.operationId")).endswith(".doEmbed")
    return Usage(tokens, 0, tokens) if tokens is not None and is_call else None


def _read_embedded_texts(attributes: Mapping[str, Any]) -> tuple[str, ...] | None:
    values = attributes.get("ai.values")
    if values is None:
        single = decode_json(attributes.get("ai.value"))
        return (single,) if isinstance(single, str) else None
    values = parse_structured(values) or []
    embedded_texts = tuple(decoded for item in values if isinstance(decoded := decode_json(item), str))
    return embedded_texts or None


def _read_parameters(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    settings = collect_properties(attributes, (_SETTINGS,))
    settings.pop("maxRetries", None)
    return settings or None
