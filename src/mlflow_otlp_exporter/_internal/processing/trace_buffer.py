"""`TraceBuffer`: collects ended spans by trace and decides when a trace is handed over.

Only decisions: no clock, no lock, no thread. It is told what happens and when, and is used by one thread.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

# How long a root that has ended waits for its open children: a streamed answer is often read to its end after it.
_GRACE = 5.0
# Traces of which nothing is held but how many spans are open: spans that never end must not pile up.
_OPEN_TRACES = 10_000
_FINISHED_TRACES = 4096
# Measured with tracemalloc: a span without attributes takes 2.8 kB in memory, an attribute 100 bytes besides its text.
_SPAN_SIZE, _VALUE_SIZE = 2800, 100
# Seconds between two hand-overs: a request costs MLflow 11 to 35 ms whatever is in it, a trace that shares one half
# of what it costs alone. Where few traces end, each is to be seen within a second; where many do, or many agents run at
# once, nobody waits for a single one.
_CALM_SPACING, _BUSY_SPACING = 0.6, 5.0
# Few are so many that ended within the last 5 s, or are in progress. Seconds for each beyond.
_FEW_TRACES, _SPACING_PER_TRACE = 5, 0.9
# Part of `hold` by which a trace in progress may be handed over before its time, with another one.
_EARLY = 1 / 3
# Whole traces of so many bytes in memory, or of so many spans, need no more company: what eight agents' traces would
# save by waiting is a tenth of what they cost MLflow at most. Where very many spans end it bounds memory, and what the
# app's threads pay for it: with 3,600 spans kept they had 0.27 page faults a span, with 256 0.02 (upstream 0.12).
_COMPANY_BYTES, _COMPANY_SPANS = 8 * 1024 * 1024, 256


class _Trace:
    """What is known of a trace.

    Attributes:
        spans: Ended, not handed over.
        size: Their estimated bytes.
        open: How many spans have started and not ended.
        first: When the first of the held spans ended.
        root_ended: When the local root ended; None if it has not.
        due: When it is to be handed over; None if nothing is held.
        whole: Whether nothing more of it is expected.
        begun: Whether a part of it has been handed over.
    """

    __slots__ = ("begun", "due", "first", "open", "root_ended", "size", "spans", "whole")

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.size = 0
        self.open = 0
        self.first = 0.0
        self.root_ended: float | None = None
        self.due: float | None = None
        self.whole = False
        self.begun = False

    @property
    def is_in_progress(self) -> bool:
        """Whether spans of it are held only until it has been so for long enough."""
        return bool(self.spans) and not self.whole and self.root_ended is None


class TraceBuffer:
    """Ended spans by trace, until each trace is whole or has been held long enough.

    A trace is due `linger` seconds after its last open span ended, so that small traces share a request, and not before
    some time has passed since the last hand-over: 0.6 s as long as few traces end, and more the more do or are in
    progress, up to 5 s, unless what is whole takes 8 MiB or has 256 spans. If its root has ended and children are still
    open, a few seconds later; and `hold` seconds after its first held span ended in any case, so that a long trace
    shows as in progress and memory stays bounded; others go with it that have been held for two thirds of that. What
    comes later goes out on its own.

    Args:
        linger: Seconds that a whole trace waits for company.
        hold: Seconds that an ended span is held at most.
        sees_starts: False if nobody tells of starts, so that only a root's end says that a trace is whole.
        is_noise: Says of the spans of a whole trace whether it is left out; None if none is.

    Attributes:
        span_count: Spans that are held.
        byte_count: Their estimated size in bytes.
        sees_starts: As given; may become true later.
        left_out: Spans of traces that are left out, until somebody takes them away.
    """

    def __init__(
        self, *, linger: float, hold: float, sees_starts: bool = True, is_noise: TraceFilter | None = None
    ) -> None:
        self._linger, self._hold, self.sees_starts = linger, hold, sees_starts
        self._is_noise = is_noise
        self._begun: OrderedDict[int, None] = OrderedDict()
        self.left_out: list[ReadableSpan] = []
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        self._queue: list[tuple[float, int]] = []
        self._finished: OrderedDict[int, None] = OrderedDict()
        self._whole: dict[int, None] = {}  # those that may go with any other
        self._ends: deque[float] = deque()  # of whole traces, within the last seconds
        self._last_taken = -_BUSY_SPACING
        self._holding = 0  # traces of which spans are held
        self.span_count = 0
        self.byte_count = 0

    def started(self, trace_id: int) -> None:
        """Tells that a span of a trace has started."""
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = _Trace()
            self._forget_open()
        trace.open += 1
        self._set_due(trace_id, trace, None)

    def ended(self, span: ReadableSpan, now: float) -> None:
        """Tells that a span has ended.

        Args:
            span: The span.
            now: Seconds of a clock that only goes forward.
        """
        trace_id, size = span.context.trace_id, estimated_size(span)
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces[trace_id] = _Trace()
            if trace_id in self._finished:
                trace.root_ended = now
        if not trace.spans:
            trace.first = now
            self._holding += 1
        trace.spans.append(span)
        trace.open = max(0, trace.open - 1)
        if span.parent is None or span.parent.is_remote:
            trace.root_ended = now
        trace.size += size
        self.span_count += 1
        self.byte_count += size
        self._set_due(trace_id, trace, now)

    def _set_due(self, trace_id: int, trace: _Trace, now: float | None) -> None:
        if not trace.spans:
            return
        due = trace.first + self._hold
        whole = trace.open == 0 and (trace.root_ended is not None or self.sees_starts)
        if whole != trace.whole:
            trace.whole = whole
            if whole:
                self._whole[trace_id] = None
            else:
                self._whole.pop(trace_id, None)
        if whole:
            if now is not None:
                self._ends.append(now)
                due = min(due, max(now + self._linger, self._last_taken + self._spacing(now)))
        elif trace.root_ended is not None:
            due = min(due, trace.root_ended + _GRACE)
        if due != trace.due:
            trace.due = due
            heapq.heappush(self._queue, (due, trace_id))

    def _spacing(self, now: float) -> float:
        while self._ends[0] < now - _BUSY_SPACING:
            self._ends.popleft()
        # Those of which nothing is held do not count: spans that never end must not make others late for ever.
        in_progress = self._holding - len(self._whole)
        beyond = max(0, len(self._ends) + in_progress - _FEW_TRACES)
        return min(_CALM_SPACING + _SPACING_PER_TRACE * beyond, _BUSY_SPACING)

    def next_due(self) -> float | None:
        """When the next trace is due; None if nothing is held."""
        queue = self._queue
        while queue:
            due, trace_id = queue[0]
            trace = self._traces.get(trace_id)
            if trace is not None and trace.due == due:
                return due
            heapq.heappop(queue)
        return None

    def take(self, now: float) -> list[ReadableSpan]:
        """Takes what is due, trace by trace, and with it all other traces that are whole.

        Args:
            now: Seconds, as for `ended`.
        """
        taken: list[ReadableSpan] = []
        has_held_long = False
        while (due := self.next_due()) is not None and due <= now:
            _, trace_id = heapq.heappop(self._queue)
            has_held_long = has_held_long or self._traces[trace_id].is_in_progress
            taken += self._hand_over(trace_id)
        if has_held_long:
            # Long traces share requests as well: those that would follow soon go now, each a little before its time.
            soon = now - self._hold * (1 - _EARLY)
            long = [key for key, trace in self._traces.items() if trace.is_in_progress and trace.first <= soon]
            taken += [span for trace_id in long for span in self._hand_over(trace_id)]
        if taken or self._has_company_enough():
            self._last_taken = now
            taken += [span for trace_id in list(self._whole) for span in self._hand_over(trace_id)]
        return taken

    def _has_company_enough(self) -> bool:
        if self.byte_count < _COMPANY_BYTES and self.span_count < _COMPANY_SPANS:
            return False
        whole = [self._traces[trace_id] for trace_id in self._whole]
        many = sum(len(trace.spans) for trace in whole) >= _COMPANY_SPANS
        return many or sum(trace.size for trace in whole) >= _COMPANY_BYTES

    def take_all(self) -> list[ReadableSpan]:
        """Takes all that is held, whole or not."""
        self._queue.clear()
        return [span for trace_id in list(self._traces) for span in self._hand_over(trace_id)]

    def _hand_over(self, trace_id: int) -> list[ReadableSpan]:
        trace = self._traces[trace_id]
        spans, whole = trace.spans, trace.whole
        self._holding -= bool(spans)
        self.span_count -= len(spans)
        self.byte_count -= trace.size
        trace.spans, trace.size, trace.due, trace.whole = [], 0, None, False
        self._whole.pop(trace_id, None)
        if spans and self._leaves_out(trace_id, trace, spans, whole=whole):
            self.left_out += spans
            spans = []
        if trace.open == 0:
            del self._traces[trace_id]
            if trace.root_ended is not None and not self.sees_starts:
                # Late children of it need not wait for a root that has come already.
                self._finished[trace_id] = None
                if len(self._finished) > _FINISHED_TRACES:
                    self._finished.popitem(last=False)
        return spans

    def _leaves_out(self, trace_id: int, trace: _Trace, spans: list[ReadableSpan], *, whole: bool) -> bool:
        """Only all of a trace or nothing: what belongs to another process's, or has begun to be sent, is sent."""
        if self._is_noise is None:
            return False
        begun = trace.begun or trace_id in self._begun
        if whole and not begun and any(span.parent is None for span in spans) and self._is_noise(spans):
            return True
        trace.begun = True
        if trace.open == 0:
            # Kept beyond the trace itself: without starts nobody knows that more is to come.
            self._begun[trace_id] = None
            if len(self._begun) > _FINISHED_TRACES:
                self._begun.popitem(last=False)
        return False

    def _forget_open(self) -> None:
        if len(self._traces) - self._holding > _OPEN_TRACES:
            del self._traces[next(trace_id for trace_id, trace in self._traces.items() if not trace.spans)]


def estimated_size(span: ReadableSpan) -> int:
    """About how many bytes a span takes in memory and on the wire: its texts, and a little for each of the rest."""
    size = _SPAN_SIZE
    if attributes := span.attributes:
        # A copy, as iterating over the SDK's own mapping takes ten times as long.
        size += _values_size((attributes.copy() if hasattr(attributes, "copy") else attributes).values())
    for event in span.events:
        size += _SPAN_SIZE // 4
        if event.attributes:
            size += _values_size(event.attributes.values())
    return size + (_SPAN_SIZE // 4) * len(span.links)


def _values_size(values: Iterable[Any]) -> int:
    size = 0
    for value in values:
        size += _VALUE_SIZE
        kind = value.__class__
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is tuple or kind is list:
            size += _values_size(value)
        elif kind is dict:
            size += _values_size(value.values())
    return size
