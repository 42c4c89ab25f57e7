"""A span while it is enriched, and the summary that the trace cache keeps of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    EMPTY,
    Kind,
    NormalizedSpan,
    Prompt,
    ToolCall,
    ToolDefinition,
)
from mlflow_otlp_exporter._internal.enrichment.payloads import find_last_text, read_answer, read_question

# Longer texts are truncated in summaries: they only serve previews of at most 1,000 characters.
_MAX_TEXT_LENGTH = 32_768
_MAX_TOOL_CALLS = 64
_NO_CONVERSATION = frozenset({None, Kind.TOOL, Kind.RETRIEVER, Kind.RERANKER, Kind.EMBEDDING})


class SpanSummary(NamedTuple):
    """What later spans of the same trace may need from a span; the fields are those of SpanState."""

    span_id: int
    parent_id: int | None
    start_time: int
    end_time: int
    kind: Kind | None
    scope: str
    has_usage: bool
    question: str | None
    answer: str | None
    tool_calls: tuple[ToolCall, ...]
    tools: tuple[ToolDefinition, ...] | None
    raw_input: Any
    normalized: NormalizedSpan  # only session, user, tags, metadata and prompt, which the root may need


class SpanState:
    """A span on its way through enrichment; only this package's stages change it."""

    def __init__(self, span: ReadableSpan, attributes: dict[str, Any], normalized: NormalizedSpan, scope: str) -> None:
        context = span.get_span_context()
        assert context is not None
        self.span = span
        self.trace_id, self.span_id = context.trace_id, context.span_id
        self.parent_id = span.parent.span_id if span.parent is not None else None
        self.attributes = attributes
        self.normalized = normalized
        self.kind = normalized.kind
        self.scope = scope
        # False if spans below have the same usage, or another span describes the same call.
        self.counts_usage = True
        # A root or an agent without question and answer gets those of a span below.
        self.question = _read_question(normalized)
        self.answer = _read_answer(normalized)
        # Of a root: session, user, tags and metadata of all spans below; prompts of a registry with a version.
        self.trace_fields: NormalizedSpan | None = None
        self.prompts: tuple[Prompt, ...] = ()

    @property
    def start_time(self) -> int:
        """Nanoseconds."""
        return self.span.start_time or 0

    @property
    def end_time(self) -> int:
        """Nanoseconds."""
        return self.span.end_time or 0

    @property
    def has_usage(self) -> bool:
        """Whether the span is exported with token usage."""
        return self.normalized.usage is not None and self.counts_usage

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that a model requested in this span."""
        messages = self.normalized.output_messages
        return tuple([call for message in messages for call in message.tool_calls]) if messages else ()

    @property
    def tools(self) -> tuple[ToolDefinition, ...] | None:
        """The tools that the span declares."""
        return self.normalized.tools

    @property
    def raw_input(self) -> Any:
        """The input, if it is a short text."""
        raw = self.normalized.input
        return raw if isinstance(raw, str) and len(raw) < _MAX_TEXT_LENGTH else None

    def summarize(self) -> SpanSummary:
        normalized = self.normalized
        return SpanSummary(
            self.span_id,
            self.parent_id,
            self.start_time,
            self.end_time,
            self.kind,
            self.scope,
            self.has_usage,
            _truncate(self.question),
            _truncate(self.answer),
            self.tool_calls[:_MAX_TOOL_CALLS],
            normalized.tools,
            self.raw_input,
            normalized._replace(
                input_messages=None, output_messages=None, transcript=None, input=None, output=None, documents=None
            )
            if normalized.session or normalized.user or normalized.tags or normalized.metadata or normalized.prompt
            else EMPTY,
        )


def _truncate(text: str | None) -> str | None:
    return text[:_MAX_TEXT_LENGTH] if text else text


def _read_question(normalized: NormalizedSpan) -> str | None:
    """The last text of the user in a span's own input."""
    text = find_last_text(normalized.input_messages, "user")
    if text or normalized.kind in _NO_CONVERSATION or is_model(normalized.kind):
        return text
    return read_question(normalized.input)


def _read_answer(normalized: NormalizedSpan) -> str | None:
    text = find_last_text(normalized.output_messages, "assistant")
    if text or normalized.kind in _NO_CONVERSATION or is_model(normalized.kind):
        return text
    return read_answer(normalized.output)
