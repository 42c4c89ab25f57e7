"""A span while it is being enriched, and what is remembered of it when its trace goes on."""

from __future__ import annotations

from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter.enrichment._kinds import is_model
from mlflow_otlp_exporter.enrichment._observation import (
    Kind,
    Observation,
    Prompt,
    ToolCall,
    ToolDefinition,
)
from mlflow_otlp_exporter.enrichment._payloads import answer_of, final_text, last_user_text, question_of

# Longer questions and answers are not remembered whole: they are for previews of at most 1,000 characters.
_LONGEST_WORDS = 32_768
_MOST_CALLS = 64


class Seen(NamedTuple):
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
        session: Its session.
        user: Its user.
        tags: Its tags.
        metadata: Its metadata.
        prompt: The prompt that it used.
        response_id: The provider's id of the answer.
        raw_input: Its input, if it is short.
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
    session: str | None
    user: str | None
    tags: tuple[str, ...] | None
    metadata: tuple[tuple[str, Any], ...] | None
    prompt: Prompt | None
    response_id: str | None
    raw_input: Any


class Observed:
    """A span on its way through enrichment; only this package's stages change it.

    Attributes:
        span: The span.
        attributes: A copy of its attributes.
        observation: What was read from them.
        kind: What it is, after its trace was looked at.
        keeps_usage: False if its usage must not count, as spans below carry it or another span tells of the same call.
        question: What a root or an agent was asked, its own or that of a span below.
        answer: What it answered.
        lifted: For a root: session, user, tags, metadata and prompt that only spans below have.
    """

    __slots__ = (
        "answer",
        "attributes",
        "keeps_usage",
        "kind",
        "lifted",
        "observation",
        "parent_id",
        "question",
        "scope",
        "span",
        "span_id",
        "trace_id",
    )

    def __init__(self, span: ReadableSpan, attributes: dict[str, Any], observation: Observation, scope: str) -> None:
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
        self.question = _question(observation, self.kind)
        self.answer = _answer(observation, self.kind)
        self.lifted: Observation | None = None

    def seen(self) -> Seen:
        """What is remembered of it."""
        found = self.observation
        calls = [call for message in found.output_messages or () for call in message.tool_calls]
        metadata = tuple(found.metadata.items()) if found.metadata else None
        raw = found.input if isinstance(found.input, str) and len(found.input) < _LONGEST_WORDS else None
        return Seen(
            self.span_id,
            self.parent_id,
            self.span.start_time or 0,
            self.span.end_time or 0,
            self.kind,
            self.scope,
            found.usage is not None and self.keeps_usage,
            _cut(self.question),
            _cut(self.answer),
            tuple(calls[:_MOST_CALLS]),
            found.tools,
            found.session,
            found.user,
            found.tags,
            metadata,
            found.prompt,
            found.response_id,
            raw,
        )


def _cut(words: str | None) -> str | None:
    return words[:_LONGEST_WORDS] if words else words


def _question(found: Observation, kind: Kind | None) -> str | None:
    """The user's last words in a span's own input, if it has such."""
    if kind is None or kind in (Kind.TOOL, Kind.RETRIEVER, Kind.RERANKER, Kind.EMBEDDING):
        return last_user_text(found.input_messages)
    return last_user_text(found.input_messages) or (None if is_model(kind) else question_of(found.input))


def _answer(found: Observation, kind: Kind | None) -> str | None:
    if kind is None or kind in (Kind.TOOL, Kind.RETRIEVER, Kind.RERANKER, Kind.EMBEDDING):
        return final_text(found.output_messages)
    return final_text(found.output_messages) or (None if is_model(kind) else answer_of(found.output))
