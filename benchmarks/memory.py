"""Measure the memory growth of the app's process while the server accepts connections and never answers.

60,000 LLM spans of 5 kB, each with different texts, are 300 MB, most of which must be dropped. The result is the peak
of the resident set, minus its size before the first span. The other rows are peaks of Python's allocations: of an idle
exporter, of values of 10 MB, and of traces that do not end.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, format_rows, row

SPANS = 60_000
SPAN_BYTES = 5000
BUFFER_BYTES = 16 << 20
VALUE_BYTES, OPEN_TRACES = 10_000_000, 5000
ROUNDS = 3
# Beside the span's own text; a message without an answer is sent four times.
PEAK_BOUNDS = {"tool": 4.0, "message": 6.5}
# During sending, spans exist three times for a short time: as spans, as encoded bytes, and as request bodies.
FACTOR = 3.0
_SPANS_PER_PAUSE, _PAUSE = 300, 0.01
_MEBIBYTE = 1 << 20


def _read_memory(name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024 / _MEBIBYTE


def measure_growth(variant: str, address: str) -> dict[str, float]:
    """Create the spans in this process. Return memory growth, time and dropped spans."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

    logging.disable(logging.CRITICAL)
    exporter = MLflowSpanExporter(endpoint=f"{address}/v1/traces", experiment_id="0")
    processor: SpanProcessor
    if variant == "ours":
        processor = MLflowSpanProcessor(exporter, buffer_bytes=BUFFER_BYTES)
    else:
        processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{address}/v1/traces"))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    source = random.Random(11)
    workloads.llm(source, SPAN_BYTES)  # loads the text
    before = _read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    begin = time.monotonic()
    span_count = 0
    while span_count < SPANS:
        with tracer.start_as_current_span("root", attributes=workloads.llm(source, SPAN_BYTES)):
            for _ in range(workloads.SPANS_OF_A_TRACE - 1):
                with tracer.start_as_current_span("llm", attributes=workloads.llm(source, SPAN_BYTES)):
                    pass
        span_count += workloads.SPANS_OF_A_TRACE
        if span_count % _SPANS_PER_PAUSE == 0:
            time.sleep(_PAUSE)
    seconds = time.monotonic() - begin
    return {
        "growth": _read_memory("VmHWM") - before,
        "seconds": seconds,
        "dropped": exporter.stats().dropped if variant == "ours" else -1,
    }


def _traced_growth(work: Callable[[], object]) -> float:
    """Return the peak of Python's allocations during the work, beyond those before it, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return float(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def measure_parts(variant: str, address: str) -> dict[str, float]:
    """Return bytes: of an idle exporter, of a value of 10 MB in relation to its size, and of traces that do not end."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

    def make_processor() -> SpanProcessor:
        if variant == "ours":
            return MLflowSpanProcessor(MLflowSpanExporter(endpoint=f"{address}/v1/traces", experiment_id="0"))
        return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{address}/v1/traces"))

    processor = make_processor()  # imports what is needed
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    tracer.start_span("warm-up").end()
    processor.force_flush()
    processors: list[SpanProcessor] = []
    results = {"idle": _traced_growth(lambda: processors.append(make_processor()))}
    text = ("The quick brown fox jumps.\n" * (VALUE_BYTES // 27 + 1))[:VALUE_BYTES]
    message = "llm.input_messages.0.message"
    for name, attributes in {
        "tool": {"openinference.span.kind": "TOOL", "input.value": text},
        "message": {"openinference.span.kind": "LLM", f"{message}.role": "user", f"{message}.content": text},
    }.items():
        span = tracer.start_span("value", attributes=attributes)

        def send(span: Any = span) -> None:
            span.end()
            processor.force_flush()

        results[name] = _traced_growth(send) / VALUE_BYTES
    open_spans: list[Any] = []

    def start_spans() -> None:
        open_spans.extend(tracer.start_span("open") for _ in range(OPEN_TRACES))
        processor.force_flush()

    results["open"] = _traced_growth(start_spans) / OPEN_TRACES
    return results


def _measure_part_rows() -> list[dict[str, Any]]:
    with processes.start_sink() as address:
        ours, theirs = (
            processes.run_child(__file__, "--variant", variant, "--address", address, "--parts")
            for variant in ("ours", "theirs")
        )
    return [
        row(what, unit, [ours[key] / divisor], [theirs[key] / divisor], ours_bound=bound)
        for key, what, unit, divisor, bound in (
            ("idle", "idle exporter and processor", "kB", 1000, None),
            ("tool", "10 MB text of a tool, peak per byte", "", 1, PEAK_BOUNDS["tool"]),
            ("message", "10 MB message of a chat, peak per byte", "", 1, PEAK_BOUNDS["message"]),
            ("open", "open trace, with the SDK's span", "kB", 1000, None),
        )
    ]


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the rows of the table, in MiB. Both sides alternate."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for variant, results in runs.items():
            with processes.start_sink(stalled=True) as address:
                results.append(processes.run_child(__file__, "--variant", variant, "--address", address))
    ours, theirs = ([result["growth"] for result in results] for results in runs.values())
    limit = BUFFER_BYTES / _MEBIBYTE
    what = f"growth with a stalled server, ours limited to {limit:.0f} MiB"
    rows = [row(what, "MiB", ours, theirs, ours_bound=FACTOR * limit, runs=runs), *_measure_part_rows()]
    return {"rows": rows, "growth_per_limit": max(ours) / limit}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--address", default="")
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    if arguments.parts:
        print(json.dumps(measure_parts(arguments.variant, arguments.address)), flush=True)
        os._exit(0)
    elif arguments.variant:
        print(json.dumps(measure_growth(arguments.variant, arguments.address)), flush=True)
        os._exit(0)  # exit without waiting, because the server will never answer
    result = measure()
    print(HEADING, format_rows("memory", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
