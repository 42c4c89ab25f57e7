"""What the spans of a trace take from each other."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    EMPTY,
    Kind,
    NormalizedSpan,
    Prompt,
    ToolCall,
    ToolDefinition,
)
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState, SpanSummary
from mlflow_otlp_exporter._internal.enrichment.tools import has_named_arguments, is_repr, resolve_arguments

# Clients that create spans of their own for calls that an instrumentation describes as well, and better.
_CLIENT_SCOPES = frozenset({"com.anthropic.sdk.python"})
# A span of the trace: one that is enriched now, or the summary of an earlier one.
TreeSpan: TypeAlias = SpanState | SpanSummary
_CONVERSATION_KINDS = (Kind.AGENT, Kind.CHAT_MODEL, Kind.LLM, Kind.WORKFLOW, Kind.CHAIN, Kind.TASK)


class TraceTree:
    """A trace as far as it has arrived: the spans that are enriched now, and the summaries of earlier ones."""

    def __init__(self, current: Sequence[SpanState], earlier: Iterable[SpanSummary]) -> None:
        self.current = {span.span_id: span for span in current}
        self.spans: dict[int, TreeSpan] = {span.span_id: span for span in earlier}
        self.spans.update(self.current)
        self.root = next((span for span in self.spans.values() if span.parent_id is None), None)
        self.children: dict[int | None, list[TreeSpan]] = {}
        for span in self.spans.values():
            self.children.setdefault(self._parent_id(span), []).append(span)

    @property
    def is_complete(self) -> bool:
        """Whether the root has arrived, and the parent of every span."""
        return self.root is not None and all(
            span.parent_id is None or span.parent_id in self.spans for span in self.spans.values()
        )

    def _parent_id(self, span: TreeSpan) -> int | None:
        """The parent, or the root if the parent has not arrived: a span is below the root in any case."""
        if span.parent_id is None or span.parent_id in self.spans or self.root is None:
            return span.parent_id
        return self.root.span_id

    @functools.cached_property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls that models requested."""
        return [call for span in self.spans.values() for call in span.tool_calls]

    @functools.cached_property
    def tools(self) -> list[ToolDefinition]:
        """The tools that spans declare."""
        return [tool for span in self.spans.values() for tool in span.tools or ()]

    def ancestors(self, span: TreeSpan) -> Iterable[TreeSpan]:
        """The spans above a span, nearest first."""
        visited = {span.span_id}
        parent_id = self._parent_id(span)
        while parent_id is not None and parent_id not in visited and (parent := self.spans.get(parent_id)) is not None:
            visited.add(parent_id)
            yield parent
            parent_id = self._parent_id(parent)

    def descendants_by_level(self, span_id: int) -> Iterable[list[TreeSpan]]:
        visited = {span_id}
        level = self.children.get(span_id, [])
        while level:
            level = [span for span in level if span.span_id not in visited]
            visited.update(span.span_id for span in level)
            if level:
                yield level
            level = [child for span in level for child in self.children.get(span.span_id, ())]


def propagate(tree: TraceTree, response_scopes: Mapping[str, str]) -> None:
    """Fill in what spans can take from each other.

    `response_scopes` maps response ids, also those of other traces, to the scopes of the instrumentations that
    described the response.
    """
    is_single = len(tree.spans) == 1
    for span in tree.current.values():
        if span.scope in _CLIENT_SCOPES:
            _clear_duplicate_usage(span, tree, response_scopes)
    if not is_single:
        for span in tree.current.values():
            if span.normalized.wraps_calls and any(
                is_model(child.kind) for level in tree.descendants_by_level(span.span_id) for child in level
            ):
                span.kind = Kind.AGENT
        _clear_ancestor_usage(tree)
        _share_tools(tree)
    for span in tree.current.values():
        if span.kind is Kind.TOOL:
            _fill_arguments(span, tree)
    for span in tree.current.values():
        if span.parent_id is None:
            _fill_root(span, tree)
        elif span.kind is Kind.AGENT and not is_single:
            _fill_input_output(span, tree)


def _clear_duplicate_usage(span: SpanState, tree: TraceTree, response_scopes: Mapping[str, str]) -> None:
    """The usage of a client's own span does not count if another span describes the same call."""
    if response_scopes.get(span.normalized.response_id or "", span.scope) != span.scope or any(
        is_model(ancestor.kind) and ancestor.scope not in _CLIENT_SCOPES for ancestor in tree.ancestors(span)
    ):
        span.counts_usage = False


def _clear_ancestor_usage(tree: TraceTree) -> None:
    """Usage counts on the span of the call: in MLflow, a parent's usage hides that of its children."""
    for span in list(tree.spans.values()):
        if not span.has_usage:
            continue
        for ancestor in tree.ancestors(span):
            current = tree.current.get(ancestor.span_id)
            if current is not None and current.has_usage:
                current.counts_usage = False


def _share_tools(tree: TraceTree) -> None:
    """Give model spans without tools those of their agent, or of the tool spans below that agent."""
    for span in tree.current.values():
        if not is_model(span.kind) or span.normalized.tools:
            continue
        tools: tuple[ToolDefinition, ...] | None = None
        for ancestor in tree.ancestors(span):
            if ancestor.kind is Kind.AGENT:
                tools = ancestor.tools or _collect_called_tools(tree, ancestor.span_id)
                break
        else:
            # The agent has not ended yet: take the tools of the calls so far.
            tools = _collect_called_tools(tree, None) if span.parent_id not in tree.spans else None
        if tools and _may_have_tools(span, tree):
            span.normalized = span.normalized._replace(tools=tools)


def _may_have_tools(span: SpanState, tree: TraceTree) -> bool:
    return span.scope not in _CLIENT_SCOPES or not any(is_model(ancestor.kind) for ancestor in tree.ancestors(span))


def _collect_called_tools(tree: TraceTree, agent_id: int | None) -> tuple[ToolDefinition, ...] | None:
    """The definitions on tool spans below an agent, or in the whole trace if there is no agent."""
    if agent_id is None:
        spans: Iterable[TreeSpan] = tree.spans.values()
    else:
        spans = (span for level in tree.descendants_by_level(agent_id) for span in level)
    tools = {tool.name: tool for span in spans if span.kind is Kind.TOOL for tool in span.tools or ()}
    return tuple(tools.values()) or None


def _fill_arguments(span: SpanState, tree: TraceTree) -> None:
    """Replace a tool's bare value by arguments with names, from the call of the model."""
    if has_named_arguments(span.normalized.input) or span.normalized.input == REDACTED:
        return
    parent = tree.spans.get(span.parent_id or 0)
    arguments = resolve_arguments(span.normalized, tree.tool_calls, tree.tools, parent.raw_input if parent else None)
    if arguments is not None and arguments != span.normalized.input:
        span.normalized = span.normalized._replace(input=arguments)


def _fill_input_output(span: SpanState, tree: TraceTree) -> None:
    """Question and answer of a root or an agent that has none of its own: those of the nearest spans below."""
    if span.question is None and (span.normalized.input is None or is_repr(span.normalized.input)):
        for level in tree.descendants_by_level(span.span_id):
            with_question = [child for child in level if child.question and child.kind in _CONVERSATION_KINDS]
            if with_question:
                span.question = min(with_question, key=lambda child: child.start_time).question
                break
    if (span.answer is None and span.normalized.output is None) or is_repr(span.normalized.output):
        span.answer = None
        for level in tree.descendants_by_level(span.span_id):
            with_answer = [
                child
                for child in level
                if child.answer and child.kind in _CONVERSATION_KINDS and not is_repr(child.answer)
            ]
            if with_answer:
                span.answer = max(with_answer, key=lambda child: child.end_time).answer
                break


def _fill_root(span: SpanState, tree: TraceTree) -> None:
    if not is_model(span.kind):
        _fill_input_output(span, tree)
    tags: dict[str, None] = {}
    metadata: dict[str, Any] = {}
    prompts: dict[Prompt, None] = {}
    session = user = None
    descendants = (child for level in tree.descendants_by_level(span.span_id) for child in level)
    for member in [span, *descendants]:
        normalized = member.normalized
        if normalized is EMPTY:
            continue
        session, user = session or normalized.session, user or normalized.user
        if normalized.prompt is not None and normalized.prompt.version:
            prompts[normalized.prompt] = None
        if normalized.tags:
            tags.update(dict.fromkeys(normalized.tags))
        for key, value in (normalized.metadata or {}).items():
            metadata.setdefault(key, value)
    span.trace_fields = NormalizedSpan(session=session, user=user, tags=tuple(tags) or None, metadata=metadata or None)
    span.prompts = tuple(prompts)
