"""From spans as their instrumentations wrote them to spans that MLflow's console can show."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.enrichment.deduplicate import drop_duplicate_attributes
from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import EMPTY, Kind, NormalizedSpan, merge
from mlflow_otlp_exporter._internal.enrichment.readers import READERS
from mlflow_otlp_exporter._internal.enrichment.readers.base import EventView, SpanView
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.trace_cache import TraceCache
from mlflow_otlp_exporter._internal.enrichment.trace_tree import TraceTree, propagate
from mlflow_otlp_exporter._internal.enrichment.writers import mlflow, openinference

SPAN_NAME = "mlflow_otlp.span_name"
_PREFIXES = frozenset().union(*(reader.prefixes for reader in READERS))
# Usage that must not count is kept under these names: pydantic-ai's own for sums over the spans below.
_RENAMED_PREFIXES = (
    ("gen_ai.usage.", "gen_ai.aggregated_usage."),
    ("llm.token_count.", "llm.aggregated_token_count."),
    ("llm.usage.", "llm.aggregated_usage."),
    ("llm.cost.", "llm.aggregated_cost."),
)
_MAX_RESPONSE_SCOPES = 10_000


class EnrichedSpan(NamedTuple):
    """What is sent instead of a span's own.

    Attributes:
        span: The span.
        attributes: All its attributes.
        name: Its name.
        events: Its events.
        ok: True if its status, which was left unset, becomes OK.
    """

    span: ReadableSpan
    attributes: Mapping[str, Any]
    name: str
    events: Sequence[Event]
    ok: bool


class Enricher:
    """Enriches spans; may be used by several threads.

    Args:
        compact: Whether attributes are dropped whose content stands in those of MLflow's.
        rename_tools: Whether a tool's span gets the tool's name, which is what MLflow counts and scores tools by.
    """

    def __init__(self, *, compact: bool = False, rename_tools: bool = True) -> None:
        self._compact, self._rename_tools = compact, rename_tools
        self._twins: OrderedDict[str, str] = OrderedDict()
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # Another thread of the parent may hold a lock for ever; what was exported there is told there.
        self._memory = TraceCache()
        self._lock = threading.Lock()

    def enrich(self, spans: Sequence[ReadableSpan]) -> list[EnrichedSpan | ReadableSpan]:
        """Enriches spans of one or more traces, whole ones or parts.

        Returns:
            For each span, in the same order, what is sent; the span itself if it could not be enriched.
        """
        observed: list[SpanState | None] = []
        traces: dict[int, list[SpanState]] = {}
        for span in spans:
            try:
                each: SpanState | None = read_span(span)
            except Exception:  # noqa: BLE001 - what a foreign span holds must never cost the span
                each = None
            observed.append(each)
            if each is not None:
                traces.setdefault(each.trace_id, []).append(each)
        twins = self._note_twins(each for each in observed if each is not None)
        for trace_id, members in traces.items():
            try:
                tree = TraceTree(members, self._memory.of(trace_id))
                propagate(tree, twins)
                if tree.connected:
                    self._memory.forget(trace_id)
                else:
                    self._memory.add(trace_id, [each.seen() for each in members])
            except Exception:  # noqa: BLE001, S110 - each span is still enriched alone
                pass
        return [self._written(each) if each is not None else span for span, each in zip(spans, observed, strict=True)]

    def _note_twins(self, spans: Iterable[SpanState]) -> Mapping[str, str]:
        """Remembers which instrumentation told of which answer."""
        with self._lock:
            for span in spans:
                identity = span.observation.response_id
                if identity and is_model(span.kind) and span.observation.input_messages:
                    self._twins[identity] = span.scope
                    if len(self._twins) > _MAX_RESPONSE_SCOPES:
                        self._twins.popitem(last=False)
            return dict(self._twins) if len(self._twins) < 100 else self._twins  # a small copy is cheap

    def _written(self, span: SpanState) -> EnrichedSpan | ReadableSpan:
        try:
            return self._write(span)
        except Exception:  # noqa: BLE001 - the span as it was is better than none
            return span.span

    def _write(self, span: SpanState) -> EnrichedSpan:
        there = span.attributes
        if not span.keeps_usage:
            there = _rename_usage_keys(there)
            span.attributes = there
        theirs = mlflow.write(span)
        written = theirs
        if mlflow.TYPE not in there:
            # A span that has a type was enriched before, or is MLflow's own: it has all that it needs.
            written = {**theirs, **openinference.write(span, messages=not self._compact)}
        if self._compact:
            there = drop_duplicate_attributes(span, theirs)
        attributes = {**written, **there}
        if mlflow.USAGE not in there and openinference.has_all_counts(span.observation.usage, attributes):
            # Every MLflow reads those. 3.6 reads this one wrongly, and no other beside it.
            attributes.pop(mlflow.USAGE, None)
        name = span.span.name
        tool = span.observation.tool_name
        if self._rename_tools and span.kind is Kind.TOOL and tool and tool != name:
            attributes.setdefault(SPAN_NAME, name)
            name = tool
        code = span.span.status.status_code
        return EnrichedSpan(
            span.span,
            attributes,
            name,
            _add_exception_event(span) if code is StatusCode.ERROR else span.span.events,
            code is StatusCode.UNSET and span.kind is not None,
        )


def read_span(span: ReadableSpan) -> SpanState:
    """Reads a span: what all readers together know of it."""
    found = span.attributes
    attributes: dict[str, Any] = {}
    if found:
        attributes = dict(found.copy() if hasattr(found, "copy") else found)  # iterating the SDK's own is slow
        if attributes.get(mlflow.TYPE) == "null":
            # MLflow's SDK in the same app puts it onto the spans that others made.
            del attributes[mlflow.TYPE]
    prefixes = {key.partition(".")[0] for key in attributes}
    events = span.events
    prefixes.update(event.name.partition(".")[0] for event in events)
    scope = span.instrumentation_scope.name if span.instrumentation_scope is not None else ""
    if prefixes.isdisjoint(_PREFIXES):
        return SpanState(span, attributes, EMPTY, scope)
    status = span.status
    source = SpanView(
        span.name,
        scope,
        attributes,
        [EventView(event.name, dict(event.attributes or {})) for event in events],
        status.status_code is StatusCode.ERROR,
        status.description or "",
    )
    said: list[NormalizedSpan] = []
    for reader in READERS:
        if not prefixes.isdisjoint(reader.prefixes):
            try:
                observation = reader.read(source)
            except Exception:  # noqa: BLE001, S112 - one reader that stumbles leaves the others
                continue
            if observation is not None:
                said.append(observation)
    observation = merge(said)
    if observation.kind is Kind.LLM and (observation.input_messages or observation.output_messages):
        observation = observation._replace(kind=Kind.CHAT_MODEL)
    return SpanState(span, attributes, observation, scope)


def _rename_usage_keys(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with counts and costs under names that no server adds up."""
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        for prefix, other in _RENAMED_PREFIXES:
            if key.startswith(prefix):
                result[other + key[len(prefix) :]] = value
                break
        else:
            if key == "operation.cost":
                result["operation.aggregated_cost"] = value
            elif not key.startswith("ai.usage."):
                result[key] = value
            else:
                result["ai.aggregated_usage." + key[len("ai.usage.") :]] = value
    return result


def _add_exception_event(span: SpanState) -> Sequence[Event]:
    """A failed span's events, with an `exception` that says what its status says, without which no console shows it."""
    events = span.span.events
    if any(event.name == "exception" for event in events):
        return events
    description = span.span.status.description or ""
    kind = span.observation.error_type or span.attributes.get("error.type")
    attributes = {"exception.type": str(kind or "Error"), "exception.message": description}
    return (*events, Event("exception", attributes, span.span.end_time))
