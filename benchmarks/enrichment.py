"""Measure the CPU time of enriching spans, compared with upstream's encoding of the same spans, for three span sizes.

Both alternate in one process. The ratio is that of the minima, which other processes on the machine disturb least.
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

from mlflow_otlp_exporter._internal.enrichment.enricher import Enricher

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads
from benchmarks.rows import HEADING, format_rows, row

SPANS = 128
ROUNDS = 25
# Enrichment may cost as much as upstream's encoding of the same span.
BOUND = 1.0


def _microseconds(work: Callable[[], object], count: int) -> float:
    begin = time.thread_time()
    work()
    return (time.thread_time() - begin) / count * 1e6


def _theirs(spans: list[ReadableSpan]) -> bytes:
    return encode_spans(spans).SerializePartialToString()


def measure() -> dict[str, Any]:
    """Return the rows of the table: microseconds per span, for each span size."""
    rows = []
    for name, kind in workloads.KINDS.items():
        spans = workloads.make_spans(kind, SPANS)
        for compact in (False, True):
            ours = functools.partial(Enricher(compact=compact).enrich, spans)
            theirs = functools.partial(_theirs, spans)
            ours()
            theirs()
            pairs = [(_microseconds(ours, SPANS), _microseconds(theirs, SPANS)) for _ in range(ROUNDS)]
            first, second = zip(*pairs, strict=True)
            what = f"{name} span, {len(spans[0].attributes or {})} attributes{', compact' if compact else ''}"
            rows.append(row(what, "us/span", first, second, bound=BOUND, best=True))
    return {"rows": rows}


if __name__ == "__main__":
    result = measure()
    print(HEADING, format_rows("enrichment", result), json.dumps(result), sep="\n")
