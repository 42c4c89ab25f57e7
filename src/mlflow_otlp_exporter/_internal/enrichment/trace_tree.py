"""What the spans of a trace take from each other.

A trace may be a chain of thousands of spans, so each step takes time in proportion to their number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, repeat
from operator import attrgetter
from typing import TypeAlias

from mlflow_otlp_exporter._internal.common.attribute_names import REDACTED
from mlflow_otlp_exporter._internal.enrichment.kinds import AGENT, LLM, MODEL_KINDS, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import ToolDefinition, has_content
from mlflow_otlp_exporter._internal.enrichment.payloads import is_empty
from mlflow_otlp_exporter._internal.enrichment.span_state import (
    LazyAttribute,
    SpanState,
    SpanSummary,
    collect_trace_fields,
)
from mlflow_otlp_exporter._internal.enrichment.tools import ToolIndex, has_named_arguments, is_repr, resolve_arguments

# Clients that create spans of their own for calls that an instrumentation describes as well, and better.
CLIENT_SCOPES = frozenset({"com.anthropic.sdk.python"})
# A span of the trace: one that is enriched now, or the summary of an earlier one.
TreeSpan: TypeAlias = SpanState | SpanSummary
# Depth of a span, the span and its question or answer.
_Text: TypeAlias = tuple[int, TreeSpan, str]
_get_span_id, _wraps_calls = attrgetter("span_id"), attrgetter("normalized.wraps_calls")
_is_local_root = attrgetter("is_local_root")
_get_tools, _get_tool_calls = attrgetter("tools"), attrgetter("tool_calls")
_CONVERSATION_KINDS = (AGENT, Kind.CHAT_MODEL, LLM, Kind.WORKFLOW, Kind.CHAIN, Kind.TASK)
# Kinds of roots that show values of spans below.
_VALUE_KINDS = (None, AGENT, Kind.WORKFLOW, Kind.CHAIN, Kind.TASK)


class TraceTree:
    """A trace as far as it has arrived: the spans that are enriched now, and the summaries of earlier ones."""

    def __init__(self, current: Sequence[SpanState], earlier: Iterable[SpanSummary]) -> None:
        self.current = {span.span_id: span for span in current}
        self.spans: dict[int, TreeSpan] = {**{span.span_id: span for span in earlier}, **self.current}
        spans = list(self.spans.values())
        parent_ids = [span.parent_id for span in spans]
        self.root = spans[parent_ids.index(None)] if None in parent_ids else None
        # Whether the root has arrived, and the parent of every span.
        self.is_complete = self.root is not None and self.spans.keys() >= {*parent_ids} - {None}
        if not self.is_complete:
            parent_ids = [parent.span_id if parent is not None else None for parent in map(self.parent, spans)]
        self._children: dict[int | None, list[TreeSpan]] = defaultdict(list)  # those of None are the roots
        for span, parent_id in zip(spans, parent_ids, strict=True):
            self._children[parent_id].append(span)

    def parent(self, span: TreeSpan) -> TreeSpan | None:
        """The parent, or the root if the parent has not arrived: a span is below the root in any case."""
        return None if span.parent_id is None else self.spans.get(span.parent_id, self.root)

    def children(self, span: TreeSpan) -> Sequence[TreeSpan]:
        return self._children.get(span.span_id, ())

    @LazyAttribute
    def tools(self) -> ToolIndex:
        """The tool calls that models requested, and the tools that spans declare."""
        calls = chain.from_iterable(map(_get_tool_calls, self.spans.values()))
        return ToolIndex(calls, chain.from_iterable([span.tools or () for span in self.with_tools]))

    @LazyAttribute
    def with_tools(self) -> list[TreeSpan]:
        """The spans that declare tools."""
        return [*filter(_get_tools, self.spans.values())]

    @LazyAttribute
    def levels(self) -> list[list[TreeSpan]]:
        """All spans by their depth, roots first; without spans that are their own ancestors."""
        return list(self._descend(self._children[None]))

    def _descend(self, level: list[TreeSpan]) -> Iterator[list[TreeSpan]]:
        while level:
            yield level
            level = [*chain.from_iterable(map(self._children.get, map(_get_span_id, level), repeat(())))]

    def levels_below(self, span: TreeSpan) -> Iterator[list[TreeSpan]]:
        """The spans below a span by their depth."""
        return self._descend(self._children.get(span.span_id, []))

    def with_descendants(self, span: TreeSpan) -> Iterator[TreeSpan]:
        """A local root and all spans below it, the nearest first."""
        return chain.from_iterable(self._descend([span]))

    def nearest_above(self, is_match: Callable[[TreeSpan], bool]) -> dict[int, TreeSpan]:
        """By the id of a span, the nearest span above it that matches."""
        nearest: dict[int, TreeSpan] = {}
        for level in self.levels:
            for span in level:
                children = self._children.get(span.span_id)
                if children and (match := span if is_match(span) else nearest.get(span.span_id)) is not None:
                    nearest.update([(child.span_id, match) for child in children])
        return nearest

    def ids_above(self, spans: Iterable[TreeSpan]) -> set[int]:
        """The ids of the spans above spans."""
        ids: set[int] = set()
        for span in spans:
            parent = self.parent(span)
            while parent is not None and parent.span_id not in ids:
                ids.add(parent.span_id)
                parent = self.parent(parent)
        return ids


def propagate(tree: TraceTree) -> None:
    """Fill in what spans can take from each other."""
    tools = [span for span in tree.current.values() if span.kind is TOOL]
    if len(tree.spans) > 1:
        _mark_agents(tree)
        _mark_tool_layers(tools, tree)
        models = [span for span in tree.current.values() if span.kind in MODEL_KINDS]
        _join_calls(models, tree)
        _share_tools(models, tree)
    for span in filter(_is_local_root, tree.current.values()):
        span.is_local_root = span.parent_id not in tree.spans  # else a request of this process to itself
    for span in tools:
        if span.kind is TOOL:
            _fill_arguments(span, tree)
    _fill_conversations(tree)
    for span in filter(_is_local_root, tree.current.values()):
        collect_trace_fields(span, tree.with_descendants(span))


def _mark_tool_layers(tools: Iterable[TreeSpan], tree: TraceTree) -> None:
    """Leave one TOOL span of a tool call that several layers report, such as FastMCP's client and server."""
    if not any(map(tree.children, tools)):
        return
    above = tree.nearest_above(lambda span: span.kind is TOOL)
    for span in (span for level in reversed(tree.levels) for span in level):  # content moves up layer by layer
        outer = above.get(span.span_id)
        if span.kind is not TOOL or not isinstance(span, SpanState) or not isinstance(outer, SpanState):
            continue
        own, content = span.normalized, outer.normalized
        is_same_input = own.input is None or content.input is None or own.input == content.input
        if is_same_input and own.tool_name == content.tool_name:
            span.kind = Kind.TASK
            outer.normalized = content._replace(
                input=own.input if content.input is None else content.input,
                output=own.output if content.output is None else content.output,
            )


def _mark_agents(tree: TraceTree) -> None:
    spans = tree.current.values()
    callers = [*compress(spans, map(_wraps_calls, spans))]
    if callers:
        ids = tree.ids_above([span for span in tree.spans.values() if span.kind in MODEL_KINDS])
        for span in callers:
            if span.span_id in ids:
                span.kind = AGENT


def _join_calls(models: Sequence[SpanState], tree: TraceTree) -> None:
    """Give model spans what stands above them: the messages of a span around this one call, the model."""
    sources: dict[int, TreeSpan] | None = None
    for span in models:
        normalized = span.normalized
        above = tree.current.get(span.parent_id or 0) if not normalized.input_messages else None
        if above is not None and _is_same_call(span, above, tree):
            own, other = normalized.output_messages or (), above.normalized.output_messages or ()
            is_own = has_content(own) and (span.tool_calls or not above.tool_calls)
            outputs = own if is_own or not has_content(other) else other
            span.normalized = normalized._replace(
                input_messages=above.normalized.input_messages,
                output_messages=outputs if has_content(outputs) else None,
            )
        if not normalized.response_model and not normalized.request_model:
            if sources is None:
                sources = tree.nearest_above(lambda span: span.normalized.request_model is not None)
            if (source := sources.get(span.span_id)) is not None:
                span.normalized = span.normalized._replace(request_model=source.normalized.request_model)


def _is_same_call(span: SpanState, above: SpanState, tree: TraceTree) -> bool:
    if above.kind in (AGENT, *MODEL_KINDS) or not above.normalized.input_messages:
        return False
    if span.start_time < above.start_time or span.end_time > above.end_time:
        return False
    return [child for child in tree.children(above) if child.kind in MODEL_KINDS] == [span]


def _share_tools(models: Iterable[SpanState], tree: TraceTree) -> None:
    """Give model spans without tools those of their agent, or of the tool spans whose nearest agent is the same."""
    models = [span for span in models if not span.normalized.tools]
    if not models or not tree.with_tools:
        return
    agents = tree.nearest_above(lambda span: span.kind is AGENT)
    tools_by_agent: dict[int, dict[str, ToolDefinition]] = {}
    all_tools: dict[str, ToolDefinition] = {}
    for span in tree.with_tools:
        if span.kind is TOOL and span.tools:
            tools = {tool.name: tool for tool in span.tools}
            all_tools.update(tools)
            if span.span_id in agents:
                tools_by_agent.setdefault(agents[span.span_id].span_id, {}).update(tools)
    calls_below_models = tree.nearest_above(lambda span: span.kind in MODEL_KINDS)
    for model in models:
        if model.scope in CLIENT_SCOPES and model.span_id in calls_below_models:
            continue  # another span describes the call
        agent = agents.get(model.span_id)
        below = next((child.tools for child in tree.children(model) if child.tools), None)
        if below:
            shared = below
        elif agent is not None:
            shared = agent.tools or tuple(tools_by_agent.get(agent.span_id, {}).values())
        else:
            # The agent has not ended yet: take the tools of the calls so far.
            shared = tuple(all_tools.values()) if model.parent_id not in tree.spans else ()
        if shared:
            model.normalized = model.normalized._replace(tools=shared)


def _fill_arguments(span: SpanState, tree: TraceTree) -> None:
    """Replace a tool's bare value by arguments with names, from the call of the model."""
    if has_named_arguments(span.normalized.input) or span.normalized.input == REDACTED:
        return
    arguments = resolve_arguments(span.normalized, tree.tools)
    if arguments is not None and arguments != span.normalized.input:
        span.normalized = span.normalized._replace(input=arguments)


def _fill_conversations(tree: TraceTree) -> None:
    """Question and answer of a root or an agent that has none of its own: those of the nearest spans below."""
    spans = [span for span in tree.current.values() if span.is_local_root or span.kind is AGENT]
    incomplete = {span.span_id for span in spans if _takes_conversation(span, tree)}
    if not incomplete:
        return
    questions: dict[int, _Text] = {}  # by the id of the span above
    answers: dict[int, _Text] = {}
    for depth, level in reversed(list(enumerate(tree.levels))):
        for span in sorted(level, key=lambda span: span.start_time):
            question, answer = questions.get(span.span_id), answers.get(span.span_id)
            if span.span_id in incomplete:
                current = tree.current[span.span_id]
                if _needs_question(current):
                    current.question = question and question[2]
                if _needs_answer(current):
                    current.answer = answer and answer[2]
                if current.is_local_root and current.normalized.kind in _VALUE_KINDS:
                    _fill_values(current, tree)
            if span.kind in _CONVERSATION_KINDS:
                if span.question:
                    question = (depth, span, span.question)
                if span.answer and not is_repr(span.answer):
                    answer = (depth, span, span.answer)
            if (parent := tree.parent(span)) is not None:
                other_question, other_answer = questions.get(parent.span_id), answers.get(parent.span_id)
                if question is not None and (other_question is None or _precedes(question, other_question)):
                    questions[parent.span_id] = question
                if answer is not None and (
                    other_answer is None
                    or (answer[0], -answer[1].end_time) < (other_answer[0], -other_answer[1].end_time)
                ):
                    answers[parent.span_id] = answer


def _precedes(question: _Text, other: _Text) -> bool:
    """Whether a question stands for the trace rather than another of an earlier span.

    The nearest does, and the earliest, because later ones may be a pipeline's own prompts; but of several turns the
    last, which has the other in its history or is another run of the same agent.
    """
    (depth, span, _), (other_depth, other_span, other_text) = question, other
    if depth != other_depth:
        return depth < other_depth
    if span.start_time < other_span.end_time:
        return span.start_time < other_span.start_time
    is_same_step = span.kind not in MODEL_KINDS and (span.kind, span.name) == (other_span.kind, other_span.name)
    return is_same_step or hash(other_text) in span.earlier_questions


def _takes_conversation(span: SpanState, tree: TraceTree) -> bool:
    is_agent = span.kind is AGENT and len(tree.spans) > 1
    shows_conversation = is_agent or (span.is_local_root and span.kind not in (TOOL, *MODEL_KINDS))
    return shows_conversation and (_needs_question(span) or _needs_answer(span))


def _needs_question(span: SpanState) -> bool:
    value = span.normalized.input
    return span.question is None and (is_empty(value) or is_repr(value))


def _needs_answer(span: SpanState) -> bool:
    value = span.normalized.output
    return (span.answer is None and is_empty(value)) or is_repr(value)


def _fill_values(root: SpanState, tree: TraceTree) -> None:
    """The first input and the last output of the nearest spans below a root that has neither text nor value."""
    normalized = root.normalized
    if "mlflow.spanType" in root.attributes:
        return  # enriched before, as were the spans below, whose values are others now
    needs_input = root.question is None and is_empty(normalized.input)
    needs_output = root.answer is None and is_empty(normalized.output)
    for level in tree.levels_below(root) if needs_input or needs_output else ():
        inputs = [span for span in level if not is_empty(span.raw_input) and not is_repr(span.raw_input)]
        outputs = [span for span in level if not is_empty(span.raw_output) and not is_repr(span.raw_output)]
        if needs_input and inputs:
            needs_input = False
            first = min(inputs, key=lambda span: span.start_time)
            root.normalized = root.normalized._replace(input=first.raw_input)
        if needs_output and outputs:
            needs_output = False
            last = max(outputs, key=lambda span: span.end_time)
            root.normalized = root.normalized._replace(output=last.raw_output)
