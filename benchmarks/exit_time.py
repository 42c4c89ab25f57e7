"""Measure how long a process needs to end after its last span, beside upstream's exporter.

The time runs from the end of the main thread's code to the end of the process: with nothing to send, with a server that
accepts connections and never answers, and without a server.

    python benchmarks/exit_time.py           # all, as JSON
    python benchmarks/exit_time.py SIDE URL  # one process: prints the time at which its code ends
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes
from benchmarks.rows import row

ROUNDS = 3
_UNREACHABLE = "http://127.0.0.1:9"
# Situation, arguments of the process, bound of our seconds.
_CASES = (
    ("nothing to send", "none", "answers", 0.1),
    ("silent server, with a spool", "spool", "silent", 3.0),
    ("silent server, without a spool", "memory", "silent", 10.5),
    ("no server, with a spool", "spool", "away", 3.0),
)


def run(side: str, queue: str, url: str) -> None:
    """Create spans, and print when the code of the process ends."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

    provider = TracerProvider()
    if side == "ours":
        exporter = MLflowSpanExporter(f"{url}/v1/traces", experiment_id="0", spool=queue == "spool")
        provider.add_span_processor(MLflowSpanProcessor(exporter))
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    tracer = provider.get_tracer("bench")
    tracer.start_span("first").end()
    if queue == "none":
        provider.force_flush()
    print(time.time(), flush=True)


def _measure_exit(side: str, queue: str, url: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, __file__, side, queue, url],
            env=processes.make_environment({"MLFLOW_OTLP_SPOOL_DIR": folder}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        return time.time() - float(process.stdout)


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the seconds of each situation. Both sides alternate."""
    rows = []
    with processes.start_sink() as sink, processes.start_sink(stalled=True) as silent:
        addresses = {"answers": sink, "silent": silent, "away": _UNREACHABLE}
        for what, queue, server, bound in _CASES:
            runs: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(rounds):
                for side, seconds in runs.items():
                    seconds.append(_measure_exit(side, queue, addresses[server]))
            rows.append(row(f"exit, {what}", "s", runs["ours"], runs["theirs"], ours_bound=bound))
    return {"rows": rows}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(*sys.argv[1:])
    else:
        print(json.dumps({"exit_time": measure()}))
