"""Vercel AI SDK, versions 4 to 6 and the legacy exporter of 7: `ai.*`."""

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, collect_properties, read_usage
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_int, parse_structured, select_text

_CALLS = ("ai.generatetext", "ai.streamtext", "ai.generateobject", "ai.streamobject")
_EMBEDDINGS = ("ai.embed", "ai.embedmany", "ai.embed.doembed", "ai.embedmany.doembed")


def _complete(span: SpanView, normalized: NormalizedSpan) -> NormalizedSpan | None:
    attributes, kind = span.attributes, normalized.kind
    operation = str(attributes.get("ai.operationId"))
    if kind is Kind.EMBEDDING:
        tokens = parse_int(attributes.get("ai.usage.tokens")) if operation.endswith(".doEmbed") else None
        values = parse_structured(attributes.get("ai.values")) or [attributes.get("ai.value")]
        texts = tuple(text for value in values if isinstance(text := decode_json(value), str))
        usage = Usage(tokens, 0, tokens) if tokens is not None else None
        return normalized._replace(embedded_texts=texts or None, usage=usage)
    if kind is not Kind.CHAT_MODEL:
        return normalized if kind is not None else None
    text = select_text(*map(attributes.get, ("ai.response.text", "ai.response.object", "ai.result.text")))
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": text}] if text else None,
        "tool_calls": parse_structured(attributes.get("ai.response.toolCalls", attributes.get("ai.result.toolCalls"))),
        "reasoning": attributes.get("ai.response.reasoning"),
    }
    output_messages = read_messages([answer]) if any([*answer.values()][1:]) else None
    settings = collect_properties(attributes, ("ai.settings.",))
    settings.pop("maxRetries", None)
    is_outer = operation.count(".") == 1
    covered_keys = (*normalized.covered_keys, "ai.response.text", "ai.response.toolCalls")
    return normalized._replace(
        wraps_calls=is_outer or None,
        input=None,
        output_messages=output_messages,
        # The outer span has the usage of the last step only.
        usage=None if is_outer else read_usage(collect_properties(attributes, ("ai.usage.",))),
        invocation_parameters=settings or None,
        covered_keys=covered_keys if output_messages else normalized.covered_keys,
    )


VERCEL = Dialect(
    "Vercel AI SDK",
    frozenset({"ai"}),
    {
        "kind": ("ai.operationId",),
        "input": ("ai.toolCall.args", "ai.toolCall.input", "ai.prompt.messages", "ai.prompt"),
        "output": ("ai.toolCall.result", "ai.toolCall.output"),
        "tools": ("ai.prompt.tools",),
        "tool_name": ("ai.toolCall.name",),
        "tool_call_id": ("ai.toolCall.id",),
        "request_model": ("ai.model.id",),
        "response_model": ("ai.response.model",),
        "provider": ("ai.model.provider",),
        "finish_reason": ("ai.response.finishReason",),
        "response_id": ("ai.response.id",),
    },
    {
        "ai.toolcall": Kind.TOOL,
        **dict.fromkeys(_EMBEDDINGS, Kind.EMBEDDING),
        **dict.fromkeys(("ai.rerank", "ai.rerank.dorerank"), Kind.RERANKER),
        **{call + end: Kind.CHAT_MODEL for call in _CALLS for end in ("", ".dogenerate", ".dostream")},
    },
    ("ai.telemetry.metadata.",),
    complete=_complete,
)
