"""Summaries of spans of traces that arrive in pieces; bounded by count, size and age."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from mlflow_otlp_exporter._internal.enrichment.span_state import SpanSummary

_MAX_TRACES, _MAX_SPANS = 2_000, 2_000
_MAX_AGE_SECONDS = 900.0
_MAX_CHARACTERS = 16 * 1024 * 1024
_SPAN_OVERHEAD = 400


class _CachedTrace:
    def __init__(self) -> None:
        self.spans: dict[int, SpanSummary] = {}
        self.last_used = 0.0
        self.size = 0


class TraceCache:
    """Keeps the spans of traces whose root has not arrived yet, for 15 minutes; may be used by several threads.

    At most 2,000 traces of 2,000 spans, and 16 million characters of text in all; the least recently used go first.
    The clock returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self.traces: OrderedDict[int, _CachedTrace] = OrderedDict()
        self._size = 0

    def get(self, trace_id: int) -> Sequence[SpanSummary]:
        if trace_id not in self.traces:
            return ()
        with self._lock:
            trace = self.traces.get(trace_id)
            return tuple(trace.spans.values()) if trace else ()

    def add(self, trace_id: int, spans: Sequence[SpanSummary]) -> None:
        with self._lock:
            trace = self.traces.pop(trace_id, None) or _CachedTrace()
            self.traces[trace_id] = trace
            trace.last_used = self._clock()
            for span in spans:
                if len(trace.spans) >= _MAX_SPANS:
                    break
                size = _SPAN_OVERHEAD + sum(len(call.arguments) for call in span.tool_calls)
                size += sum(len(text or "") for text in (span.question, span.answer, span.raw_input, span.raw_output))
                trace.spans[span.span_id] = span
                trace.size += size
                self._size += size
            self._evict()

    def remove(self, trace_id: int) -> None:
        if trace_id in self.traces:
            with self._lock:
                trace = self.traces.pop(trace_id, None)
                self._size -= trace.size if trace is not None else 0

    def _evict(self) -> None:
        oldest = self._clock() - _MAX_AGE_SECONDS
        while self.traces:
            trace_id, trace = next(iter(self.traces.items()))
            is_full = len(self.traces) > _MAX_TRACES or self._size > _MAX_CHARACTERS
            if not is_full and trace.last_used >= oldest:
                return
            self.remove(trace_id)
