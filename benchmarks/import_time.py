"""Measure the time of `from mlflow_otlp_exporter import MLflowSpanExporter`, and of upstream's exporter module.

Fresh processes alternate. Each process measures its own import, so that the interpreter's start does not count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

OURS = "from mlflow_otlp_exporter import MLflowSpanExporter"
THEIRS = "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter"
ROUNDS = 15


def measure_import(statement: str) -> float:
    """Run one import in a fresh process. Return its seconds."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    # Allow byte code, which an installed package has. pip has already compiled upstream's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def measure() -> dict[str, float]:
    """Return the medians in milliseconds, and their ratio."""
    measure_import(OURS)  # fills the file cache and writes the byte code
    pairs = [(measure_import(THEIRS), measure_import(OURS)) for _ in range(ROUNDS)]
    theirs, ours = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    return {"theirs_ms": round(theirs, 1), "ours_ms": round(ours, 1), "ratio": round(ours / theirs, 3)}


if __name__ == "__main__":
    print(json.dumps({"import_time": measure()}))
