"""What spans of a trace tell about each other."""

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

# Clients that make spans of their own for calls that an instrumentation tells of as well, and better.
_CLIENTS = frozenset({"com.anthropic.sdk.python"})
# A span of the trace: one that is enriched now, or what is remembered of one.
TreeSpan: TypeAlias = SpanState | SpanSummary
_CONVERSATION_KINDS = (Kind.AGENT, Kind.CHAT_MODEL, Kind.LLM, Kind.WORKFLOW, Kind.CHAIN, Kind.TASK)


class TraceTree:
    """A trace as far as it is known: spans that are exported now, and those that were before.

    Args:
        now: The spans that are enriched now.
        before: What is remembered.
    """

    def __init__(self, now: Sequence[SpanState], before: Iterable[SpanSummary]) -> None:
        self.now = {each.span_id: each for each in now}
        self.known: dict[int, TreeSpan] = {each.span_id: each for each in before}
        self.known.update(self.now)
        self.root = next((each for each in self.known.values() if each.parent_id is None), None)
        self.children: dict[int | None, list[TreeSpan]] = {}
        for seen in self.known.values():
            self.children.setdefault(self._parent(seen), []).append(seen)

    @property
    def connected(self) -> bool:
        """Whether the root is known, and the parent of every span."""
        return self.root is not None and all(
            each.parent_id is None or each.parent_id in self.known for each in self.known.values()
        )

    def _parent(self, span: TreeSpan) -> int | None:
        """A span's parent as far as it is known: a span whose parent has not ended is below the root in any case."""
        if span.parent_id is None or span.parent_id in self.known or self.root is None:
            return span.parent_id
        return self.root.span_id

    @functools.cached_property
    def calls(self) -> list[ToolCall]:
        """Tools that models asked for."""
        return [call for each in self.known.values() for call in each.calls]

    @functools.cached_property
    def tools(self) -> list[ToolDefinition]:
        """Tools that are declared."""
        return [tool for each in self.known.values() for tool in each.tools or ()]

    def above(self, span: TreeSpan) -> Iterable[TreeSpan]:
        """The known spans above one, nearest first."""
        visited = {span.span_id}
        parent = self._parent(span)
        while parent is not None and parent not in visited and (found := self.known.get(parent)) is not None:
            visited.add(parent)
            yield found
            parent = self._parent(found)

    def levels(self, span_id: int) -> Iterable[list[TreeSpan]]:
        """The known spans below one, level by level."""
        visited = {span_id}
        level = self.children.get(span_id, [])
        while level:
            level = [each for each in level if each.span_id not in visited]
            visited.update(each.span_id for each in level)
            if level:
                yield level
            level = [child for each in level for child in self.children.get(each.span_id, ())]


def propagate(tree: TraceTree, twins: Mapping[str, str]) -> None:
    """Fills in what spans can tell each other.

    Args:
        tree: The trace.
        twins: Scopes of instrumentations that told of an answer, by the answer's id; of other traces too.
    """
    if len(tree.known) == 1:
        for span in tree.now.values():
            _strip_twin(span, twins)
            if span.kind is Kind.TOOL:
                _fill_arguments(span, tree)
            if span.parent_id is None:
                _fill_root(span, tree)
        return
    for span in tree.now.values():
        if span.scope in _CLIENTS:
            _strip_duplicate(span, tree, twins)
    for span in tree.now.values():
        if span.observation.wraps_calls and any(is_model(s.kind) for level in tree.levels(span.span_id) for s in level):
            span.kind = Kind.AGENT
    _clear_ancestor_usage(tree)
    _share_tools(tree)
    for span in tree.now.values():
        if span.kind is Kind.TOOL:
            _fill_arguments(span, tree)
    for span in tree.now.values():
        if span.parent_id is None:
            _fill_root(span, tree)
        elif span.kind is Kind.AGENT:
            _fill_input_output(span, tree)


def _strip_twin(span: SpanState, twins: Mapping[str, str]) -> None:
    if span.scope in _CLIENTS and twins.get(span.observation.response_id or "", span.scope) != span.scope:
        span.keeps_usage = False


def _strip_duplicate(span: SpanState, tree: TraceTree, twins: Mapping[str, str]) -> None:
    """A client's own span counts nothing when another one tells of the same call."""
    covered = any(is_model(each.kind) and each.scope not in _CLIENTS for each in tree.above(span))
    if covered:
        span.keeps_usage = False
    else:
        _strip_twin(span, twins)


def _clear_ancestor_usage(tree: TraceTree) -> None:
    """Usage counts where the call was: MLflow lets a parent's usage hide that of its children."""
    for seen in list(tree.known.values()):
        if not seen.counts:
            continue
        for parent in tree.above(seen):
            span = tree.now.get(parent.span_id)
            if span is not None and span.keeps_usage and span.observation.usage is not None:
                span.keeps_usage = False


def _share_tools(tree: TraceTree) -> None:
    """Tools that only an agent declares, or only the spans of their calls, belong to its models' spans too."""
    lacking = [span for span in tree.now.values() if is_model(span.kind) and not span.observation.tools]
    if not lacking:
        return
    for span in lacking:
        found: tuple[ToolDefinition, ...] | None = None
        for above in tree.above(span):
            if above.kind is Kind.AGENT:
                found = above.tools or _collect_called_tools(tree, above.span_id)
                break
        else:
            # The agent has not ended yet: what its calls have said so far.
            found = _collect_called_tools(tree, None) if span.parent_id not in tree.known else None
        if found and _may_have_tools(span, tree):
            span.observation = span.observation._replace(tools=found)


def _may_have_tools(span: SpanState, tree: TraceTree) -> bool:
    return span.scope not in _CLIENTS or not any(is_model(s.kind) for s in tree.above(span))


def _collect_called_tools(tree: TraceTree, agent: int | None) -> tuple[ToolDefinition, ...] | None:
    """The definitions on the spans of tool calls below an agent; anywhere if there is none."""
    if agent is None:
        spans: Iterable[TreeSpan] = tree.known.values()
    else:
        spans = (each for level in tree.levels(agent) for each in level)
    found = {tool.name: tool for each in spans if each.kind is Kind.TOOL for tool in each.tools or ()}
    return tuple(found.values()) or None


def _fill_arguments(span: SpanState, tree: TraceTree) -> None:
    """A tool's arguments as names and values, from the call of the model if the span has a bare value only."""
    if has_named_arguments(span.observation.input) or span.observation.input == REDACTED:
        return
    parent = tree.known.get(span.parent_id or 0)
    arguments = resolve_arguments(span.observation, tree.calls, tree.tools, parent.raw_input if parent else None)
    if arguments is not None and arguments != span.observation.input:
        span.observation = span.observation._replace(input=arguments)


def _fill_input_output(span: SpanState, tree: TraceTree) -> None:
    """Question and answer of a root or an agent that has none of its own: those of the nearest spans below."""
    if span.question is None and (span.observation.input is None or is_repr(span.observation.input)):
        for level in tree.levels(span.span_id):
            asked = [each for each in level if each.question and each.kind in _CONVERSATION_KINDS]
            if asked:
                span.question = min(asked, key=lambda each: each.start).question
                break
    dumped = is_repr(span.observation.output)
    if (span.answer is None and span.observation.output is None) or dumped:
        span.answer = None
        for level in tree.levels(span.span_id):
            said = [
                each for each in level if each.answer and each.kind in _CONVERSATION_KINDS and not is_repr(each.answer)
            ]
            if said and level:
                span.answer = max(said, key=lambda each: each.end).answer
                break


def _fill_root(span: SpanState, tree: TraceTree) -> None:
    if not is_model(span.kind):
        _fill_input_output(span, tree)
    tags: dict[str, None] = {}
    metadata: dict[str, Any] = {}
    prompts: dict[Prompt, None] = {}
    session = user = None
    for each in [span, *(seen for level in tree.levels(span.span_id) for seen in level)]:
        found = each.observation
        if found is EMPTY:
            continue
        session, user = session or found.session, user or found.user
        if found.prompt is not None and found.prompt.version:
            prompts[found.prompt] = None
        if found.tags:
            tags.update(dict.fromkeys(found.tags))
        for key, value in (found.metadata or {}).items():
            metadata.setdefault(key, value)
    span.lifted = NormalizedSpan(session=session, user=user, tags=tuple(tags) or None, metadata=metadata or None)
    span.prompts = tuple(prompts)
