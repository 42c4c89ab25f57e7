"""The enrichment stage: adds attributes to spans so that MLflow's console can display them."""

import functools
import operator
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status, StatusCode

from mlflow_otlp_exporter._internal.common.attribute_names import SESSION_ID, TRACE_SESSION
from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys, evict_oldest
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.enrichment.duplicate_attributes import drop_duplicate_attributes
from mlflow_otlp_exporter._internal.enrichment.kinds import LLM, MODEL_KINDS, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import EMPTY, NormalizedSpan, merge
from mlflow_otlp_exporter._internal.enrichment.readers import READERS, fallback
from mlflow_otlp_exporter._internal.enrichment.readers.base import EventView, Reader, SpanView
from mlflow_otlp_exporter._internal.enrichment.span_state import CallSummary, SpanState, collect_trace_fields
from mlflow_otlp_exporter._internal.enrichment.token_usage import (
    MAX_DELAY_NANOS,
    count_usage_once,
    include_cached_tokens,
    is_same_call,
    rename_usage_keys,
)
from mlflow_otlp_exporter._internal.enrichment.tools import unwrap_result
from mlflow_otlp_exporter._internal.enrichment.trace_cache import TraceCache
from mlflow_otlp_exporter._internal.enrichment.trace_tree import CLIENT_SCOPES, TraceTree, propagate
from mlflow_otlp_exporter._internal.enrichment.values import parse_text, to_text
from mlflow_otlp_exporter._internal.enrichment.writers import mlflow, openinference

SPAN_NAME = "mlflow_otlp.span_name"
_readers: tuple[Reader, ...]
_prefixes: frozenset[str]
_Plan: TypeAlias = tuple[bool, frozenset[str], tuple[Reader, ...]]
_make_plan: Callable[[tuple[str, ...]], _Plan]
_MAX_RESPONSE_SCOPES, _MAX_MESSAGE_LENGTH = 10_000, 1000
_MAX_CALLS, _MAX_CALLS_OF_SAME_COUNTS = 1_000, 16
_OK, _UNSET, _new = Status(StatusCode.OK), StatusCode.UNSET, tuple.__new__
_CONTENT = ("input_messages", "output_messages", "input", "output", "documents", "query", "embedded_texts")
_read_content_fields = operator.itemgetter(*map(NormalizedSpan._fields.index, _CONTENT))
_NO_CONTENT = (None,) * len(_CONTENT)
_IDENTITY: tuple[fallback.Place, ...] = (("session", ""), ("user", ""))


class EnrichedSpan(NamedTuple):
    """A span with the attributes, name and events that are sent instead of its own."""

    span: ReadableSpan
    attributes: Mapping[str, Any]
    name: str
    events: Sequence[Event]
    status: Status | None  # instead of its own status, if that was unset


class Enricher:
    """Enriches spans; may be used by several threads.

    `compact` drops attributes whose content is in MLflow's attributes.
    """

    def __init__(self, *, compact: bool = False) -> None:
        self._compact = compact
        self._response_scopes: dict[str, str] = {}  # which instrumentation described which response
        self._calls: dict[tuple[int | None, int | None], deque[CallSummary]] = {}
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # Another thread of the parent may hold a lock forever; the parent completes the traces that it exported.
        self._trace_cache = TraceCache()

    def enrich(self, spans: Sequence[ReadableSpan]) -> list[EnrichedSpan | ReadableSpan]:
        """Enrich spans of one or more traces, complete or not.

        The result has the same order; a span that could not be enriched stays as it is.
        """
        states: list[SpanState | None] = []
        traces: dict[int, list[SpanState]] = defaultdict(list)
        for span in spans:
            try:
                state: SpanState | None = read_span(span)
            except Exception:  # noqa: BLE001 - a span with unexpected content is sent as it is
                state = None
            states.append(state)
            if state is not None:
                traces[state.trace_id].append(state)
                normalized = state.normalized
                if normalized.response_id and normalized.input_messages and state.kind in MODEL_KINDS:
                    evict_oldest(self._response_scopes, _MAX_RESPONSE_SCOPES)[normalized.response_id] = state.scope
        # Of a call in several traces, that in the largest trace counts, where a framework tells more about it.
        for trace_id, members in sorted(traces.items(), key=lambda item: -len(item[1])):
            try:
                for state in members:
                    # Spans of clients never count beside others; see count_usage_once.
                    if state.has_usage and state.scope not in CLIENT_SCOPES and (call := state.call) and call.is_model:
                        state.counts_usage = state.has_usage = self._record_call(call)
                root = members[0]
                is_call = len(members) == 1 and root.parent_id is None and root.kind in MODEL_KINDS
                if is_call and root.scope not in CLIENT_SCOPES and trace_id not in self._trace_cache.traces:
                    collect_trace_fields(root, members)  # there is nothing else to share
                    continue
                tree = TraceTree(members, self._trace_cache.get(trace_id))
                count_usage_once(tree, self._response_scopes)
                propagate(tree)
                if tree.is_complete:
                    self._trace_cache.remove(trace_id)
                else:
                    self._trace_cache.add(trace_id, [state.summarize() for state in members])
            except Exception:  # noqa: BLE001, S110 - each span is still enriched alone
                pass
        enriched: list[EnrichedSpan | ReadableSpan] = []
        for span, state in zip(spans, states, strict=True):
            try:
                enriched.append(self._write(state) if state is not None else span)
            except Exception:  # noqa: BLE001 - the span is sent as it was
                enriched.append(span)
        return enriched

    def _record_call(self, call: CallSummary) -> bool:
        """Whether a call counts: no other trace of this process has it."""
        calls = self._calls.get(call.counts)
        if calls is None:
            calls = evict_oldest(self._calls, _MAX_CALLS)[call.counts] = deque(maxlen=_MAX_CALLS_OF_SAME_COUNTS)
        for other in tuple(calls):
            # Some servers repeat the ids of their responses.
            is_near = max(other.start_time, call.start_time) <= min(other.end_time, call.end_time) + MAX_DELAY_NANOS
            is_layer = is_near and other.scope != call.scope and other.process is call.process
            if is_layer and other.trace_id != call.trace_id:
                outer_first = sorted((other, call), key=lambda call: call.start_time - call.end_time)
                if is_same_call(*outer_first):
                    return False
        calls.append(call)
        return True

    def _write(self, state: SpanState) -> EnrichedSpan:
        own_attributes: Mapping[str, Any] = state.attributes
        if not state.counts_usage:
            own_attributes = state.attributes = rename_usage_keys(own_attributes)
        attributes = mlflow.write(state)
        if self._compact:
            own_attributes = drop_duplicate_attributes(state, attributes)
        if mlflow.TYPE not in own_attributes:
            # A span that has a type was enriched before, or comes from MLflow's SDK: it needs no more.
            openinference.write(state, attributes, with_messages=not self._compact)
        attributes |= own_attributes
        span, normalized, kind, has_failed = state.span, state.normalized, state.kind, state.has_failed
        adds_usage = normalized.usage and mlflow.USAGE in attributes and mlflow.USAGE not in own_attributes
        if adds_usage and openinference.has_all_counts(normalized.usage, attributes):
            del attributes[mlflow.USAGE]
        name = state.name
        # MLflow counts and scores tools by the name of the span.
        if kind is TOOL and (tool_name := normalized.tool_name) and tool_name != name:
            attributes.setdefault(SPAN_NAME, name)
            name = tool_name
        status = None
        if kind is not None and span.status.status_code is _UNSET:
            status = Status(StatusCode.ERROR, normalized.error_type) if has_failed else _OK
        events = _add_exception_event(state) if has_failed else state.events
        return _new(EnrichedSpan, (span, attributes, name, events, status))


def read_span(span: ReadableSpan) -> SpanState:
    source: Any = span.attributes or {}
    # Iterating over the SDK's own mapping is slow.
    attributes = dict(source.copy() if source.__class__ is not dict and hasattr(source, "copy") else source)
    keys = tuple(attributes)
    has_replaced_keys, prefixes, readers = _make_plan(keys)
    if has_replaced_keys:
        span_type = attributes.get(mlflow.TYPE)
        if span_type == "null":
            del attributes[mlflow.TYPE]  # MLflow's SDK in the same app puts it onto the spans of others
        elif isinstance(span_type, str) and span_type[:1] == '"':
            attributes[mlflow.TYPE] = span_type.strip('"')  # of the SDK's JSON; the server would search for the quotes
        if TRACE_SESSION in attributes:
            attributes[SESSION_ID] = attributes.pop(TRACE_SESSION)
        keys = tuple(attributes)
        _, prefixes, readers = _make_plan(keys)
    state = SpanState(span, attributes)
    views: Sequence[EventView] = ()
    if state.events:
        views = [EventView(event.name, dict(event.attributes or {})) for event in state.events]
        readers = _select_readers(prefixes | _prefixes.intersection([view.name.partition(".")[0] for view in views]))
    normalized = EMPTY
    if readers:
        view = _new(SpanView, (state.name, state.scope, attributes, views))
        for reader in readers:
            try:
                candidate = reader.read(view)
            except Exception:  # noqa: BLE001, S112 - the other readers are not affected
                continue
            if candidate is not None:
                normalized = candidate if normalized is EMPTY else merge((normalized, candidate))
    if normalized.kind is None:
        state.has_own_kind = False
    try:  # noqa: SIM105 - suppress() takes 0.5 us
        normalized = _complete(attributes, keys, normalized)
    except Exception:  # noqa: BLE001, S110 - what the readers found stays
        pass
    usage = normalized.usage
    if usage is not None:
        state.has_usage = True
        if usage.input is not None and mlflow.TYPE not in attributes:  # a span that has a type was enriched before
            model = normalized.response_model or normalized.request_model
            counted = include_cached_tokens(usage, state.scope, model, normalized.output)
            normalized = normalized if counted is usage else normalized._replace(usage=counted)
    if normalized.kind is LLM and (normalized.input_messages or normalized.output_messages):
        normalized = normalized._replace(kind=Kind.CHAT_MODEL)
    state.normalized, state.kind = normalized, normalized.kind
    return state


def add_readers(readers: Sequence[Reader]) -> None:
    """Read with these, too, where the own readers find nothing; replaces what was added before."""
    global _readers, _prefixes, _make_plan  # noqa: PLW0603 - of this process, as READERS
    _readers = (*READERS, *readers)
    _prefixes = frozenset().union(*(reader.prefixes for reader in _readers))
    _select_readers.cache_clear()
    _make_plan = cache_by_keys(_plan_reading)


def _plan_reading(keys: tuple[str, ...]) -> _Plan:
    """Whether the span's type or session may have to be replaced; the known prefixes, and their readers."""
    prefixes = _prefixes.intersection([key.partition(".")[0] for key in keys])
    return mlflow.TYPE in keys or TRACE_SESSION in keys, prefixes, _select_readers(prefixes)


@functools.lru_cache(maxsize=1024)  # spans of one source have the same prefixes
def _select_readers(prefixes: frozenset[str]) -> tuple[Reader, ...]:
    return tuple(reader for reader in _readers if not prefixes.isdisjoint(reader.prefixes))


add_readers(())


def _complete(attributes: Mapping[str, Any], keys: tuple[str, ...], normalized: NormalizedSpan) -> NormalizedSpan:
    """Add what readers did not find: session and user under any name; content and kind if there is no content."""
    parameters = normalized.invocation_parameters
    if parameters and ("metadata" in parameters or "user" in parameters):
        normalized = merge((normalized, NormalizedSpan(**fallback.read_parameters(parameters))))
    is_read = _read_content_fields(normalized) != _NO_CONTENT
    if is_read and (normalized.session is not None or normalized.user is not None):
        return normalized
    is_unknown = not any(normalized)
    places = fallback.classify_keys(keys)
    for key, place in places:
        if place in _IDENTITY and getattr(normalized, place[0]) is None:
            identity: dict[str, Any] = {place[0]: parse_text(attributes[key])}
            normalized = normalized._replace(**identity)
    if is_read or not places:
        return normalized
    return merge((normalized, fallback.read_content(attributes, places, normalized.kind, is_unknown)))


def _add_exception_event(state: SpanState) -> Sequence[Event]:
    """Add an `exception` event with the text of the status, because MLflow's console does not show the status."""
    events = state.events
    if any(event.name == "exception" for event in events):
        return events
    error_type = state.normalized.error_type or state.attributes.get("error.type")
    message = state.span.status.description or ""
    if not message and state.kind is Kind.TOOL and state.normalized.output is not None:
        message = to_text(unwrap_result(state.normalized.output))[:_MAX_MESSAGE_LENGTH]
    attributes = {"exception.type": str(error_type or "Error"), "exception.message": message}
    return (*events, Event("exception", attributes, state.span.end_time))
