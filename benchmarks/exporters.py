"""Measure the creation and the shutdown of the first and the thousandth exporter in one process.

A service with many tenants may have an exporter for each. What an exporter registers (fork hooks, exit handlers, open
queues) must not make the next one slower.

    python benchmarks/exporters.py       # all, as JSON
    python benchmarks/exporters.py SIDE  # one process
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes
from benchmarks.rows import row

ROUNDS = 3
_EXPORTERS, _GROUP = 1000, 50
_URL = "http://127.0.0.1:9/v1/traces"


def run(side: str) -> dict[str, float]:
    """Return the mean milliseconds per exporter, to create the first 50 and the last 50, and to shut one down."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from mlflow_otlp_exporter import MLflowSpanExporter

    logging.disable(logging.CRITICAL)
    make: Callable[[], SpanExporter] = (
        (lambda: MLflowSpanExporter(_URL, experiment_id="0")) if side == "ours" else (lambda: OTLPSpanExporter(_URL))
    )
    make().shutdown()  # imports what is needed
    exporters, seconds = [], []
    for _ in range(_EXPORTERS):
        begin = time.process_time()
        exporters.append(make())
        seconds.append(time.process_time() - begin)
    begin = time.process_time()
    for exporter in exporters:
        exporter.shutdown()
    return {
        "first": sum(seconds[:_GROUP]) / _GROUP * 1000,
        "last": sum(seconds[-_GROUP:]) / _GROUP * 1000,
        "shutdown": (time.process_time() - begin) / _EXPORTERS * 1000,
    }


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the rows of the first and last exporters, and of our last ones in relation to our first ones."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, results in runs.items():
            results.append(processes.run_child(__file__, side))
    columns = {(side, key): [result[key] for result in results] for side, results in runs.items() for key in results[0]}
    rows = [
        row(what, "ms", columns["ours", key], columns["theirs", key], best=True)
        for key, what in (
            ("first", "create one of the first 50 exporters"),
            ("last", "create one of the last 50 of 1,000"),
            ("shutdown", "shut one down"),
        )
    ]
    what = "ours: one of the last 50, beside one of the first 50"
    return {"rows": [*rows, row(what, "ms", columns["ours", "last"], columns["ours", "first"], bound=1.5, best=True)]}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1])))
        os._exit(0)  # no exit handlers: what they cost is another benchmark
    print(json.dumps({"exporters": measure()}))
