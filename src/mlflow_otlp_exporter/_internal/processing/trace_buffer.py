"""Collects ended spans by trace and decides when a trace is ready.

Pure decisions without clock, lock or thread: events and times are arguments, and one thread calls.
"""

import heapq
import math
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.model.spans import (
    IS_REMOTE,
    TRACE_ID,
    estimate_bytes,
    find_topmost,
    is_local_root,
    with_remote_parent,
)
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

# How long an ended root waits for its open children: a streamed response is often read to its end after the root.
_GRACE_SECONDS = 5.0
# Traces without buffered spans, of which only the open spans are counted: spans that never end must not accumulate.
_MAX_OPEN_TRACES = 65_536  # of about 230 bytes each
_MAX_FINISHED_TRACES = 4096
# When a trace is sent because of its age, traces in progress older than two thirds of that age go with it.
_EARLY_SHARE = 1 / 3
# A batch of complete traces of this many bytes or spans is full: waiting would save at most a tenth of what the traces
# of eight agents cost MLflow. Under high load this bounds memory and the cost in application threads: with 3,600
# buffered spans they had 0.27 page faults per span, with 256 0.02 (upstream 0.12).
_FULL_BATCH_BYTES, _FULL_BATCH_SPANS = 8 * 1024 * 1024, 256
# A sent span of a trace that has open spans is remembered up to this size, because it may have to be sent again.
_MAX_REMEMBERED_BYTES = 64 * 1024
_OUTPUTS = ("output.value", "mlflow.spanOutputs", "gen_ai.output.messages")


@dataclass(slots=True, eq=False, repr=False)
class _Trace:
    """The spans of one trace."""

    spans: list[ReadableSpan] = field(default_factory=list)
    byte_count: int = 0
    open_count: int = 0
    first_ended_at: float = 0.0
    has_root: bool = False  # whether a root without parent is among the spans
    root_ended_at: float | None = None  # None while the local root is open
    due_at: float | None = None  # None without buffered spans
    is_complete: bool = False
    is_partly_sent: bool = False
    top: ReadableSpan | None = None  # of the spans that were sent: the local root without output, or the topmost span


class TraceBuffer:
    """Ended spans by trace, until each trace is complete or has reached the maximum age.

    A trace is ready `linger_seconds` after its last open span ended, so that small traces share a request, but not
    before `batch_interval_seconds` have passed since the last batch, unless the complete traces take 8 MiB or have 256
    spans. A trace whose root has ended while children are open is ready 5 s later. Every trace is ready
    `max_age_seconds` after its first buffered span ended, so that a long trace shows as in progress and memory stays
    bounded; traces of two thirds of that age go with it. Spans that end after their trace was popped are sent on their
    own. If span starts are not reported (`has_start_events`), a trace is complete when its root has ended.

    MLflow takes the request and the response of a trace only from its root. A root that was sent without output before
    its last child ended is therefore sent again with that child. If a trace ends without local root, because a filter
    removed it or another sampler dropped it, the topmost span becomes one: it gets a remote parent.
    """

    def __init__(
        self,
        *,
        linger_seconds: float,
        max_age_seconds: float,
        has_start_events: bool = True,
        trace_filter: TraceFilter | None = None,
    ) -> None:
        self._linger_seconds, self._max_age_seconds = linger_seconds, max_age_seconds
        self.has_start_events, self._trace_filter = has_start_events, trace_filter
        self._partly_sent: dict[int, None] = {}
        self.resent_spans: list[ReadableSpan] = []  # to be sent once more, until the caller takes them
        self.filtered_spans: list[ReadableSpan] = []  # of traces that the filter dropped, until the caller takes them
        self._traces: dict[int, _Trace] = {}
        self._queue: list[tuple[float, int]] = []
        self._changed: dict[int, float] = {}  # when a span ended last, by trace, since due times were computed
        self._finished: dict[int, None] = {}
        self._complete: dict[int, None] = {}  # traces that may go with any other
        self.batch_interval_seconds = 0.0  # set by the caller
        self._last_batch_at = -math.inf
        self._spanless: dict[int, None] = {}  # traces without buffered spans, oldest first
        self.span_count = self.byte_count = 0
        self.max_span_bytes = 0  # of a span, since the buffer was empty

    def record_starts(self, trace_id: int, count: int) -> None:
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = _Trace()
            self._spanless[trace_id] = None
        trace.open_count += count
        if trace.spans:
            self._changed.setdefault(trace_id, 0.0)

    def add(self, span: ReadableSpan, now: float) -> None:
        """Add an ended span; `now` is in seconds of a monotonic clock."""
        trace_id, parent, size = span.context[TRACE_ID], span.parent, estimate_bytes(span)
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = _Trace()
            if trace_id in self._finished:
                trace.root_ended_at = now
        if not trace.spans:
            trace.first_ended_at = now
            self._spanless.pop(trace_id, None)
        trace.spans.append(span)
        if trace.open_count:
            trace.open_count -= 1
        if parent is None or parent[IS_REMOTE]:
            trace.root_ended_at = now
            trace.has_root = trace.has_root or parent is None
        trace.byte_count += size
        if size > self.max_span_bytes or not self.span_count:
            self.max_span_bytes = size
        self.span_count += 1
        self.byte_count += size
        self._changed[trace_id] = now

    def _update_due(self) -> None:
        # Once for all events of a tick: a trace of 30 spans has 60.
        for trace_id, now in self._changed.items():
            trace = self._traces[trace_id]
            due = trace.first_ended_at + self._max_age_seconds
            is_complete = trace.open_count == 0 and (trace.root_ended_at is not None or self.has_start_events)
            trace.is_complete = is_complete
            if is_complete:
                self._complete[trace_id] = None
                due = min(due, max(now + self._linger_seconds, self._last_batch_at + self.batch_interval_seconds))
            else:
                self._complete.pop(trace_id, None)
                if trace.root_ended_at is not None:
                    due = min(due, trace.root_ended_at + _GRACE_SECONDS)
            if due != trace.due_at:
                trace.due_at = due
                heapq.heappush(self._queue, (due, trace_id))
        self._changed.clear()
        while len(self._spanless) > _MAX_OPEN_TRACES:
            del self._traces[oldest_id := next(iter(self._spanless))], self._spanless[oldest_id]

    def next_due(self) -> float | None:
        """Return when the next trace is ready; None without buffered spans."""
        self._update_due()
        queue = self._queue
        while queue:
            due, trace_id = queue[0]
            trace = self._traces.get(trace_id)
            if trace is not None and trace.due_at == due:
                return due
            heapq.heappop(queue)
        return None

    def pop_ready(self, now: float) -> list[ReadableSpan]:
        """Pop the traces that are due and, with them, all complete traces; the spans are grouped by trace."""
        spans: list[ReadableSpan] = []
        has_aged_trace = False
        while (due := self.next_due()) is not None and due <= now:
            _, trace_id = heapq.heappop(self._queue)
            trace = self._traces[trace_id]
            has_aged_trace = has_aged_trace or (trace.root_ended_at is None and not trace.is_complete)
            spans += self._pop_trace(trace_id)
        if has_aged_trace:
            # Long traces share requests, too: traces that would be due soon go now, a little before their time.
            cutoff = now - self._max_age_seconds * (1 - _EARLY_SHARE)
            for trace_id, trace in list(self._traces.items()):
                is_aged = trace.spans and trace.first_ended_at <= cutoff
                if is_aged and trace.root_ended_at is None and not trace.is_complete:
                    spans += self._pop_trace(trace_id)
        is_full = self.byte_count >= _FULL_BATCH_BYTES or self.span_count >= _FULL_BATCH_SPANS
        if spans or (is_full and self._has_full_batch()):
            self._last_batch_at = now
            spans += [span for trace_id in list(self._complete) for span in self._pop_trace(trace_id)]
        return spans

    def _has_full_batch(self) -> bool:
        complete = [self._traces[trace_id] for trace_id in self._complete]
        has_many_spans = sum(len(trace.spans) for trace in complete) >= _FULL_BATCH_SPANS
        return has_many_spans or sum(trace.byte_count for trace in complete) >= _FULL_BATCH_BYTES

    def pop_all(self, *, is_final: bool = False) -> list[ReadableSpan]:
        """Pop all buffered spans, grouped by trace; `is_final` if open spans will not end any more."""
        self._update_due()
        self._queue.clear()
        return [span for trace_id in list(self._traces) for span in self._pop_trace(trace_id, is_final=is_final)]

    def _pop_trace(self, trace_id: int, *, is_final: bool = False) -> list[ReadableSpan]:
        trace = self._traces[trace_id]
        spans, was_complete = trace.spans, trace.is_complete
        self._spanless[trace_id] = None
        self.span_count -= len(spans)
        self.byte_count -= trace.byte_count
        trace.spans, trace.byte_count, trace.due_at, trace.is_complete = [], 0, None, False
        self._complete.pop(trace_id, None)
        if spans and self._trace_filter is not None and self._is_filtered(trace_id, trace, spans, was_complete):
            self.filtered_spans += spans
            spans = []
        elif self.has_start_events and (spans or (is_final and trace.root_ended_at is None and trace.top is not None)):
            spans = self._complete_root(trace, spans, is_over=trace.open_count == 0 or is_final)
        trace.has_root = False
        if trace.open_count == 0:
            del self._traces[trace_id], self._spanless[trace_id]
            if trace.root_ended_at is not None and not self.has_start_events:
                # Late children need not wait for a root that has ended already.
                evict_oldest(self._finished, _MAX_FINISHED_TRACES)[trace_id] = None
        return spans

    def _complete_root(self, trace: _Trace, spans: list[ReadableSpan], *, is_over: bool) -> list[ReadableSpan]:
        """Remember the top span while others are open; at the end of the trace, send it again or mark it as root."""
        root = next((span for span in spans if span.parent is None or span.parent.is_remote), None)
        top, trace.top = trace.top, None
        if root is None and (top is None or not is_local_root(top)) and trace.root_ended_at is None:
            top = find_topmost([top, *spans] if top is not None else spans)
        elif root is not None:
            top = None if is_over or any(key in (root.attributes or {}) for key in _OUTPUTS) else root
        if top is None:
            return spans
        if not is_over:
            trace.top = top if estimate_bytes(top) <= _MAX_REMEMBERED_BYTES else None
            return spans
        marked = top if is_local_root(top) else with_remote_parent(top)
        others = [span for span in spans if span is not top]
        if len(others) < len(spans):
            return [*others, marked]
        self.resent_spans.append(marked)
        self.max_span_bytes = max(self.max_span_bytes, _MAX_REMEMBERED_BYTES)
        return spans

    def _is_filtered(self, trace_id: int, trace: _Trace, spans: list[ReadableSpan], was_complete: bool) -> bool:
        """Filter whole traces only: a trace of another process, or one that is partly sent, is sent completely."""
        assert self._trace_filter is not None
        is_partly_sent = trace.is_partly_sent or trace_id in self._partly_sent
        if was_complete and trace.has_root and not is_partly_sent and self._trace_filter(spans):
            return True
        trace.is_partly_sent = True
        if trace.open_count == 0:
            # Remembered after the trace is deleted: without start events, more spans of it may follow.
            self._partly_sent[trace_id] = None
            if len(self._partly_sent) > _MAX_FINISHED_TRACES:
                del self._partly_sent[next(iter(self._partly_sent))]
        return False
