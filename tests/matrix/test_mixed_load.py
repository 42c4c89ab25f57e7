"""Minutes of mixed load: nothing is dropped, and memory hardly grows in the second half.

The caches of spans whose traces never become complete are full after 14 of 20 minutes: from then on, memory is flat.

25 traces/s of seven spans; of each twenty traces, one has an exception, one a local root that never ends, one a remote
parent, and one a new instrumentation scope and attribute. A new destination comes each minute.
"""

import os
import re
import threading
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context
from support.scripted_server import ScriptedServer

pytestmark = pytest.mark.matrix
SECONDS = float(os.environ.get("MIXED_LOAD_SECONDS", "1200"))
TRACES_PER_SECOND = 25
# From the middle to the end, and in the last quarter.
MAX_GROWTH_MIB, MAX_LATE_GROWTH_MIB = 12.0, 4.0


def _resident_mib() -> float:
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def _make_trace(provider: TracerProvider, number: int) -> int:
    """Create a trace, and return the number of its spans that ended."""
    case = number % 20
    scope = f"scope {number}" if case == 3 else "app"
    tracer = provider.get_tracer(scope)
    remote = NonRecordingSpan(SpanContext(number + 1, 1, is_remote=True, trace_flags=TraceFlags(1)))
    root = tracer.start_span("root", context=set_span_in_context(remote) if case == 2 else None)
    for _ in range(6):
        with tracer.start_as_current_span("step", context=set_span_in_context(root)) as span:
            span.set_attribute("input.value", f"text {number} " * 20)
            if case == 3:
                span.set_attribute(f"key {number}", number)
            if case == 0:
                span.record_exception(ValueError(f"error {number}"))
    if case == 1:
        return 6
    root.end()
    return 7


def test_mixed_load_loses_nothing_and_keeps_its_memory(scripted_server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(scripted_server.traces_url, experiment_id="1")
    processor = MLflowSpanProcessor(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    began_at, span_count, pause = time.monotonic(), 0, threading.Event()
    sizes: list[float] = []
    for number in range(round(SECONDS * TRACES_PER_SECOND)):
        elapsed_seconds = number / TRACES_PER_SECOND
        with trace_context(experiment_id=str(1 + int(elapsed_seconds // 60))):
            span_count += _make_trace(provider, number)
        if number % 100 == 0:
            scripted_server.clear_requests()  # the server's memory is that of the same process
        if elapsed_seconds > SECONDS * (0.5 + 0.25 * len(sizes)):
            sizes.append(_resident_mib())
        pause.wait(max(0.0, began_at + elapsed_seconds - time.monotonic()))
    end_mib = _resident_mib()
    assert processor.force_flush(60_000)
    assert (exporter.stats().delivered, exporter.stats().dropped) == (span_count, 0)
    middle_mib, late_mib = sizes
    assert end_mib - middle_mib <= MAX_GROWTH_MIB
    assert end_mib - late_mib <= MAX_LATE_GROWTH_MIB
    provider.shutdown()
