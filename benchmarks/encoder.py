"""Measure the CPU time of encoding spans to the bytes of a request: our encoder and upstream's, for three span sizes.

Both encoders alternate in one process. The ratio is that of the minima, which other processes on the machine disturb
least.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import encode_request

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads
from benchmarks.rows import HEADING, format_rows, row

SPANS = 128
ROUNDS = 25
BOUNDS = {"small": 0.40, "medium": None, "LLM": 0.30}


def _microseconds(work: Callable[[], object]) -> float:
    begin = time.thread_time()
    work()
    return (time.thread_time() - begin) / SPANS * 1e6


def _ours(encoder: SpanEncoder, spans: list[ReadableSpan]) -> bytes:
    return encode_request([encoder.encode(span) for span in spans])


def _theirs(spans: list[ReadableSpan]) -> bytes:
    return encode_spans(spans).SerializePartialToString()


def measure() -> dict[str, Any]:
    """Return the rows of the table: microseconds per span, for each span size."""
    rows = []
    for name, kind in workloads.KINDS.items():
        spans = workloads.make_spans(kind, SPANS)
        ours = functools.partial(_ours, SpanEncoder(), spans)
        theirs = functools.partial(_theirs, spans)
        size = len(ours()) / SPANS
        theirs()
        pairs = [(_microseconds(ours), _microseconds(theirs)) for _ in range(ROUNDS)]
        first, second = zip(*pairs, strict=True)
        what = f"{name} span, {len(spans[0].attributes or {})} attributes, {size:.0f} B"
        rows.append(row(what, "us/span", first, second, bound=BOUNDS[name], best=True, bytes=size))
    return {"rows": rows}


if __name__ == "__main__":
    result = measure()
    print(HEADING, format_rows("encoder", result), json.dumps(result), sep="\n")
