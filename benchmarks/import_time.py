"""What `from mlflow_otlp_exporter import MLflowSpanExporter` costs beside upstream's exporter module.

Alternating fresh processes; each times its own import, so that the interpreter's start does not count.
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


def seconds(statement: str) -> float:
    """Runs one import in a fresh process."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    # With byte code, as an installed package has it; pip has compiled upstream's already.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def measure() -> dict[str, float]:
    """Medians in milliseconds, and their ratio."""
    seconds(OURS)  # warms the file cache and writes the byte code
    pairs = [(seconds(THEIRS), seconds(OURS)) for _ in range(ROUNDS)]
    theirs, ours = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    return {"theirs_ms": round(theirs, 1), "ours_ms": round(ours, 1), "ratio": round(ours / theirs, 3)}


if __name__ == "__main__":
    print(json.dumps({"import_time": measure()}))
