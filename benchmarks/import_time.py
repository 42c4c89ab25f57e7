"""Measure the CPU time of the library's import and of `configure()`, and of upstream's exporter module and set-up.

Fresh processes alternate. Each process measures itself, so that the interpreter's start does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.rows import row

OURS = "from mlflow_otlp_exporter import MLflowSpanExporter, configure"
THEIRS = "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter"
# No span ends, so nothing is sent.
CONFIGURE = "configure(tracking_uri='http://127.0.0.1:9', experiment_id='1', auto_instrument=False)"
SET_UP = """
provider = TracerProvider()
exporter = OTLPSpanExporter('http://127.0.0.1:9/v1/traces', headers={'x-mlflow-experiment-id': '1'})
provider.add_span_processor(BatchSpanProcessor(exporter))
"""
SDK = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
"""
ROUNDS = 15


def measure_cpu(preparation: str, statement: str) -> float:
    """Run a statement in a fresh process. Return its CPU milliseconds."""
    code = f"{preparation}\nimport time\nbegin = time.process_time()\n{statement}\nprint(time.process_time() - begin)"
    # Allow byte code, which an installed package has. pip has already compiled upstream's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) * 1000


def measure() -> dict[str, Any]:
    """Return the rows of import and set-up."""
    measure_cpu(OURS, CONFIGURE)  # fills the file cache and writes the byte code
    imports, set_ups = [], []
    for _ in range(ROUNDS):
        imports.append((measure_cpu("", OURS), measure_cpu("", THEIRS)))
        set_ups.append((measure_cpu(OURS, CONFIGURE), measure_cpu(SDK + THEIRS, SET_UP)))
    rows = []
    for what, runs, bound in (("import", imports, 1.15), ("set-up", set_ups, 1.15)):
        ours, theirs = zip(*runs, strict=True)
        rows.append(row(f"{what}, CPU, minimum", "ms", ours, theirs, bound=bound, best=True))
        rows.append(row(f"{what}, CPU, median", "ms", ours, theirs))
    return {"rows": rows}


if __name__ == "__main__":
    print(json.dumps({"import_time": measure()}))
