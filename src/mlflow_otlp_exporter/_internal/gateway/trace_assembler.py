"""Collects spans of many processes by trace and decides when a trace goes out.

Pure decisions without clock, lock or thread, like `TraceBuffer`, which knows the starts of spans of its own process.
Here only ends are known, in any order: the callee's spans usually come before those of its caller.
"""

import heapq
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.model.spans import estimate_bytes, mark_local_root
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

# A callee's spans wait for those of its caller, in units of the decision wait.
_CALLER_WAIT_FACTOR = 5
# Traces of which spans were sent: later spans need not wait for a root, and the filter must not drop them.
_MAX_SENT_TRACES = 65_536
# Roots that were sent without output: one is sent again with late spans, from which its output may come.
_MAX_REMEMBERED_ROOTS, _MAX_REMEMBERED_BYTES = 2000, 8 * 1024
_OUTPUTS = frozenset({"output.value", "mlflow.spanOutputs", "gen_ai.output.messages"})


@dataclass(slots=True, eq=False)
class _Trace:
    spans: list[ReadableSpan] = field(default_factory=list)
    byte_count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    has_root: bool = False  # a root without parent came, now or earlier
    has_local_root: bool = False
    queued_due: float = float("inf")  # its time in the heap


class TraceAssembler:
    """Spans by trace, until each trace is likely to be complete.

    A trace goes out `decision_wait_seconds` after its last span came, if its root came; five times as long after its
    last span, if only the local root of a called process came; and `max_age_seconds` after its first span in any case.
    Spans that come later go out on their own, after the decision wait. A root that was sent without output is sent
    again with them: the output of a trace may be that of a span of another process. A trace without any root gets one:
    its topmost span has a remote parent then.
    """

    def __init__(
        self, *, decision_wait_seconds: float, max_age_seconds: float, trace_filter: TraceFilter | None
    ) -> None:
        self._wait_seconds, self._max_age_seconds = decision_wait_seconds, max_age_seconds
        self._trace_filter = trace_filter
        self._traces: dict[int, _Trace] = {}
        self._heap: list[tuple[float, int]] = []
        self._sent: dict[int, bool] = {}  # by trace id: whether its root was among them
        self._roots: dict[int, ReadableSpan] = {}
        self.filtered_spans: list[ReadableSpan] = []  # until the caller takes them
        self.resent_count = 0  # of the last pop
        self.span_count = self.byte_count = 0

    def add(self, span: ReadableSpan, now: float) -> None:
        """Add an ended span; `now` is in seconds of a monotonic clock."""
        trace_id, size = span.context.trace_id, estimate_bytes(span)
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = _Trace(first_at=now, has_root=self._sent.get(trace_id, False))
        trace.spans.append(span)
        trace.last_at = now
        trace.byte_count += size
        if span.parent is None:
            trace.has_root = True
        elif span.parent.is_remote:
            trace.has_local_root = True
        self.span_count += 1
        self.byte_count += size
        due = self._due(trace)
        if due < trace.queued_due:  # a later time is queued when this one is over
            trace.queued_due = due
            heapq.heappush(self._heap, (due, trace_id))

    def _due(self, trace: _Trace) -> float:
        wait = self._max_age_seconds
        if trace.has_root:
            wait = self._wait_seconds
        elif trace.has_local_root:
            wait = _CALLER_WAIT_FACTOR * self._wait_seconds
        return min(trace.last_at + wait, trace.first_at + self._max_age_seconds)

    def next_due(self) -> float | None:
        """Return when to call `pop_ready`; None without spans. The next trace may be ready later."""
        return self._heap[0][0] if self._heap else None

    def pop_ready(self, now: float) -> list[ReadableSpan]:
        """Pop the spans of the traces that are due, grouped by trace."""
        self.resent_count = 0
        spans: list[ReadableSpan] = []
        while self._heap and self._heap[0][0] <= now:
            queued_due, trace_id = heapq.heappop(self._heap)
            trace = self._traces.get(trace_id)
            if trace is None or trace.queued_due != queued_due:
                continue
            due = self._due(trace)
            if due > now:
                trace.queued_due = due
                heapq.heappush(self._heap, (due, trace_id))
            else:
                spans += self._pop_trace(trace_id)
        return spans

    def pop_all(self) -> list[ReadableSpan]:
        """Pop all spans, grouped by trace, before their time."""
        self.resent_count = 0
        self._heap.clear()
        return [span for trace_id in list(self._traces) for span in self._pop_trace(trace_id, is_early=True)]

    def _pop_trace(self, trace_id: int, *, is_early: bool = False) -> list[ReadableSpan]:
        trace = self._traces.pop(trace_id)
        self.span_count -= len(trace.spans)
        self.byte_count -= trace.byte_count
        is_late = trace_id in self._sent
        # In the order of their ends, as in a process of its own.
        by_id = {span.context.span_id: span for span in sorted(trace.spans, key=lambda span: span.end_time or 0)}
        root = next((span for span in by_id.values() if span.parent is None), None)
        if root is not None and not is_late and self._trace_filter is not None:
            spans = list(by_id.values())
            if self._trace_filter(spans):
                self.filtered_spans += spans
                return []
        if not trace.has_root and not is_early:
            mark_local_root(by_id)
        evict_oldest(self._sent, _MAX_SENT_TRACES)[trace_id] = trace.has_root
        spans = list(by_id.values())
        previous_root = self._roots.pop(trace_id, None)
        if root is None and previous_root is not None:
            spans.append(previous_root)
            self.resent_count += 1
            root = previous_root
        if root is not None and _OUTPUTS.isdisjoint(root.attributes or ()):
            self._remember_root(trace_id, root)
        return spans

    def _remember_root(self, trace_id: int, root: ReadableSpan) -> None:
        if estimate_bytes(root) <= _MAX_REMEMBERED_BYTES:
            evict_oldest(self._roots, _MAX_REMEMBERED_ROOTS)[trace_id] = root
