"""Memory that the app's process gains while the server takes connections and never answers.

60,000 LLM spans of 5 kB, each with a text of its own, so that 300 MB have to be refused for the most part. What counts
is the peak of the resident set beyond what it was before the first span.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, row, shown

SPANS = 60_000
SPAN_BYTES = 5000
BUFFER_BYTES = 16 << 20
ROUNDS = 3
# For a moment what is sent is there three times: as spans, as their bytes, and as the bodies of requests.
FACTOR = 3.0
_SPANS_PER_PAUSE, _PAUSE = 300, 0.01
_MEBIBYTE = 1 << 20


def _resident(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / _MEBIBYTE


def grow(variant: str, address: str) -> dict[str, float]:
    """Makes the spans in this process, and tells what that took."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor  # noqa: PLC0415

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
    workloads.llm(source, SPAN_BYTES)  # reads the prose
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.monotonic()
    made = 0
    while made < SPANS:
        with tracer.start_as_current_span("root", attributes=workloads.llm(source, SPAN_BYTES)):
            for _ in range(workloads.SPANS_OF_A_TRACE - 1):
                with tracer.start_as_current_span("llm", attributes=workloads.llm(source, SPAN_BYTES)):
                    pass
        made += workloads.SPANS_OF_A_TRACE
        if made % _SPANS_PER_PAUSE == 0:
            time.sleep(_PAUSE)
    seconds = time.monotonic() - begin
    return {
        "growth": _resident("VmHWM") - before,
        "seconds": seconds,
        "refused": exporter.stats().refused if variant == "ours" else -1,
    }


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Growth in MiB, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for variant, found in runs.items():
            with processes.sink(stalled=True) as address:
                found.append(processes.child(__file__, "--variant", variant, "--address", address))
    ours, theirs = ([one["growth"] for one in found] for found in runs.values())
    limit = BUFFER_BYTES / _MEBIBYTE
    what = f"growth with a stalled server, ours limited to {limit:.0f} MiB"
    rows = [row(what, "MiB", ours, theirs, ours_bound=FACTOR * limit, runs=runs)]
    return {"rows": rows, "growth_per_limit": max(ours) / limit}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--address", default="")
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(grow(given.variant, given.address)), flush=True)
        os._exit(0)  # nothing is waited for: the server will never answer
    result = measure()
    print(HEADING, shown("memory", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
