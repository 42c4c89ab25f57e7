"""Measure the CPU time of a whole process that exports, and of its application thread, beside upstream's exporter.

Fresh processes alternate. Each plays the same traces: starts and ends spans in its main thread, then flushes. Our side
enriches them, as by default. The server, in another process, accepts everything.

    python benchmarks/whole_process.py                           # all, as JSON
    python benchmarks/whole_process.py SIDE MIX COMPRESSION URL  # one run: microseconds per span of process and thread
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import row

ROUNDS = 12
_TRACES, _WARM_UP_TRACES = 18, 2
# Mix, compression, bounds of the whole process and of the application thread.
_CASES = (
    ("agent", "none", 0.90, 0.80),
    ("small", "none", 1.10, None),
    ("LLM", "none", 0.70, None),
    ("LLM", "gzip", 0.40, None),
)


def _make_agent_spans(count: int) -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    source = random.Random(7)
    for _ in range(count):
        workloads.make_agent_trace(provider.get_tracer("bench"), source, lambda _: None, 1.0)
    return list(memory.get_finished_spans())


def _play(tracer: Tracer, span: ReadableSpan, children: Mapping[int, Sequence[ReadableSpan]]) -> None:
    with tracer.start_as_current_span(span.name, attributes=span.attributes) as current:
        for child in children.get(span.context.span_id, ()):
            _play(tracer, child, children)
        current.set_status(span.status)


def _create_processor(side: str, compression: Compression, url: str) -> SpanProcessor:
    if side == "theirs":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        return BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces", compression=compression))
    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

    return MLflowSpanProcessor(MLflowSpanExporter(f"{url}/v1/traces", experiment_id="0", compression=compression))


def run(side: str, mix: str, compression: str, url: str) -> dict[str, float]:
    """Export the traces of a mix in this process.

    Returns:
        CPU microseconds per span: of the process from the first start to the end of the flush, and of its main thread
        from the first start to the last end.
    """
    count = _TRACES + _WARM_UP_TRACES
    if mix == "agent":
        spans = _make_agent_spans(count)
    else:
        spans = workloads.make_spans(workloads.KINDS[mix], count * workloads.SPANS_OF_A_TRACE)
    roots, children = [], dict[int, list[ReadableSpan]]()
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if span.parent is None:
            roots.append(span)
        else:
            children.setdefault(span.parent.span_id, []).append(span)
    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    provider.add_span_processor(
        _create_processor(side, Compression.Gzip if compression == "gzip" else Compression.NoCompression, url)
    )
    tracer = provider.get_tracer("bench", "1.0")
    for root in roots[:_WARM_UP_TRACES]:
        _play(tracer, root, children)
    provider.force_flush()
    gc.collect()
    process_begin, thread_begin = time.process_time(), time.thread_time()
    for root in roots[_WARM_UP_TRACES:]:
        _play(tracer, root, children)
    thread_seconds = time.thread_time() - thread_begin
    provider.force_flush()
    process_seconds = time.process_time() - process_begin
    span_count = _TRACES * workloads.SPANS_OF_A_TRACE
    return {"process": process_seconds / span_count * 1e6, "thread": thread_seconds / span_count * 1e6}


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return minima and medians of the runs for each mix."""
    rows = []
    with processes.start_sink() as url:
        for mix, compression, bound, thread_bound in _CASES:
            runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for number in range(rounds):
                for side in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                    runs[side].append(processes.run_child(__file__, side, mix, compression, url))
            name = mix if compression == "none" else f"{mix}, {compression}"
            for key, what, upper in (("process", "process", bound), ("thread", "application thread", thread_bound)):
                ours, theirs = ([values[key] for values in runs[side]] for side in ("ours", "theirs"))
                rows.append(row(f"{name}: {what}, minimum", "us/span", ours, theirs, bound=upper, best=True))
                rows.append(row(f"{name}: {what}, median", "us/span", ours, theirs))
    return {"rows": rows}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(*sys.argv[1:])))
        os._exit(0)  # no exit handlers: what they cost is another benchmark
    print(json.dumps({"whole_process": measure()}))
