"""A span while it is being enriched, and what is remembered of it when its trace goes on."""

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
from mlflow_otlp_exporter._internal.enrichment.payloads import (
    find_final_text,
    find_last_user_text,
    read_answer,
    read_question,
)

# Longer questions and answers are not remembered whole: they are for previews of at most 1,000 characters.
_MAX_TEXT_LENGTH = 32_768
_MAX_TOOL_CALLS = 64


class SpanSummary(NamedTuple):
    """What the rest of a trace may need to know of a span.

    Attributes:
        span_id: Its id.
        parent_id: Its parent's; None for a root.
        start: When it began, in nanoseconds.
        end: When it ended.
        kind: What it is.
        scope: Its instrumentation scope.
        counts: True if it was exported with token usage.
        question: What was asked, in words.
        answer: What was answered, in words.
        calls: Tools that a model asked for in it.
        tools: Tools that it declares.
        raw_input: Its input, if it is short.
        observation: Whose session, user, tags, metadata and prompt the root may need.
    """

    span_id: int
    parent_id: int | None
    start: int
    end: int
    kind: Kind | None
    scope: str
    counts: bool
    question: str | None
    answer: str | None
    calls: tuple[ToolCall, ...]
    tools: tuple[ToolDefinition, ...] | None
    raw_input: Any
    observation: NormalizedSpan


class SpanState:
    """A span on its way through enrichment; only this package's stages change it.

    Attributes:
        span: The span.
        attributes: A copy of its attributes.
        observation: What was read from them.
        kind: What it is, after its trace was looked at.
        keeps_usage: False if its usage must not count, as spans below carry it or another span tells of the same call.
        question: What a root or an agent was asked, its own or that of a span below.
        answer: What it answered.
        lifted: For a root: session, user, tags and metadata that only spans below have.
        prompts: For a root: the prompts of a registry that it and the spans below name, with their versions.
    """

    __slots__ = (
        "answer",
        "attributes",
        "keeps_usage",
        "kind",
        "lifted",
        "observation",
        "parent_id",
        "prompts",
        "question",
        "scope",
        "span",
        "span_id",
        "trace_id",
    )

    def __init__(self, span: ReadableSpan, attributes: dict[str, Any], observation: NormalizedSpan, scope: str) -> None:
        context = span.get_span_context()
        assert context is not None
        self.span = span
        self.trace_id, self.span_id = context.trace_id, context.span_id
        self.parent_id = span.parent.span_id if span.parent is not None else None
        self.attributes = attributes
        self.observation = observation
        self.kind = observation.kind
        self.scope = scope
        self.keeps_usage = True
        self.question = _read_question(observation, self.kind)
        self.answer = _read_answer(observation, self.kind)
        self.lifted: NormalizedSpan | None = None
        self.prompts: tuple[Prompt, ...] = ()

    @property
    def start(self) -> int:
        """When it began, in nanoseconds."""
        return self.span.start_time or 0

    @property
    def end(self) -> int:
        """When it ended."""
        return self.span.end_time or 0

    @property
    def counts(self) -> bool:
        """True if it is exported with token usage."""
        return self.observation.usage is not None and self.keeps_usage

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Tools that a model asked for in it."""
        found = self.observation.output_messages
        return tuple([call for message in found for call in message.tool_calls]) if found else ()

    @property
    def tools(self) -> tuple[ToolDefinition, ...] | None:
        """Tools that it declares."""
        return self.observation.tools

    @property
    def raw_input(self) -> Any:
        """Its input, if it is short."""
        raw = self.observation.input
        return raw if isinstance(raw, str) and len(raw) < _MAX_TEXT_LENGTH else None

    def seen(self) -> SpanSummary:
        """What is remembered of it when its trace goes on."""
        found = self.observation
        return SpanSummary(
            self.span_id,
            self.parent_id,
            self.start,
            self.end,
            self.kind,
            self.scope,
            self.counts,
            _truncate(self.question),
            _truncate(self.answer),
            self.calls[:_MAX_TOOL_CALLS],
            found.tools,
            self.raw_input,
            found._replace(
                input_messages=None, output_messages=None, transcript=None, input=None, output=None, documents=None
            )
            if found.session or found.user or found.tags or found.metadata or found.prompt
            else EMPTY,
        )


def _truncate(words: str | None) -> str | None:
    return words[:_MAX_TEXT_LENGTH] if words else words


def _read_question(found: NormalizedSpan, kind: Kind | None) -> str | None:
    """The user's last words in a span's own input, if it has such."""
    if kind is None or kind in (Kind.TOOL, Kind.RETRIEVER, Kind.RERANKER, Kind.EMBEDDING):
        return find_last_user_text(found.input_messages)
    return find_last_user_text(found.input_messages) or (None if is_model(kind) else read_question(found.input))


def _read_answer(found: NormalizedSpan, kind: Kind | None) -> str | None:
    if kind is None or kind in (Kind.TOOL, Kind.RETRIEVER, Kind.RERANKER, Kind.EMBEDDING):
        return find_final_text(found.output_messages)
    return find_final_text(found.output_messages) or (None if is_model(kind) else read_answer(found.output))
