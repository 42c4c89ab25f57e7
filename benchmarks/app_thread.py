"""Measure the cost of a span in the app's own thread: start, 20 attributes, end.

The variants are `MLflowSpanProcessor`, upstream's `BatchSpanProcessor` with its own exporter, and `mlflow.start_span`
in its default configuration. Each run is a fresh process; the variants alternate. Both processors send to a trivial
server. MLflow's SDK sends to a real server, because it also makes other requests. Spans come in bursts of 30 with
pauses, so that no span is dropped and the background thread works at the same time, as in an app. The variant "bare" is
OpenTelemetry's SDK with a processor that does nothing. The cost beyond "bare" is the processor's own share.

`time.thread_time()` measures the CPU time of the thread: the mean of all bursts, including those in which the
background thread encodes. The wall time is a median. It includes the time in which the thread waits for the
interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, format_rows, row

BURST = 30
SHAPES = {"single": "root spans only", "traces": "traces of 30 spans"}
ROUNDS = 5
AGAINST_BATCH, AGAINST_MLFLOW = 1.10, 1 / 15
# MLflow's SDK sends each trace in two requests of its own. The pauses let the server keep up, or the SDK's queue fills.
_BURSTS = {"mlflow": (12, 0.5), "ours": (120, 0.02), "batch": (120, 0.02), "bare": (120, 0.02)}
_WARM_UP = 5
# Most of the cost of MLflow's SDK is per trace. With 30 spans per trace, OpenTelemetry's SDK without any processor
# already takes more than a 15th of it.
_NOT_BOUND = {("mlflow", "traces")}


def _burst(start: Callable[[str], Any], shape: str, attributes: list[dict[str, workloads.Value]]) -> None:
    with start("root") if shape == "traces" else nullcontext() as root:
        if root is not None:
            root.set_attributes(attributes[0])
        for step in attributes[1:] if shape == "traces" else attributes:
            with start("step") as span:
                span.set_attributes(step)


def _provider(variant: str, address: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

    provider = TracerProvider()
    if variant == "ours":
        exporter = MLflowSpanExporter(endpoint=f"{address}/v1/traces", experiment_id="0")
        provider.add_span_processor(MLflowSpanProcessor(exporter))
    elif variant == "batch":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{address}/v1/traces")))
    else:
        provider.add_span_processor(SpanProcessor())
    return provider


def run(variant: str, shape: str, address: str) -> dict[str, float]:
    """Run one variant in this process. Return microseconds per span."""
    source = random.Random(3)
    attributes = [workloads.medium(source) for _ in range(BURST)]
    provider = None
    start: Callable[[str], Any]
    if variant == "mlflow":
        import mlflow

        start = mlflow.start_span
    else:
        provider = _provider(variant, address)
        start = provider.get_tracer("bench").start_as_current_span
    count, pause = _BURSTS[variant]
    thread, wall = [], []
    for number in range(count + _WARM_UP):
        begin, clock = time.thread_time(), time.perf_counter()
        _burst(start, shape, attributes)
        if number >= _WARM_UP:
            thread.append((time.thread_time() - begin) / BURST * 1e6)
            wall.append((time.perf_counter() - clock) / BURST * 1e6)
        time.sleep(pause)
    if provider is not None:
        provider.shutdown()
    else:
        mlflow.flush_trace_async_logging()
    return {"thread": statistics.mean(thread), "wall": statistics.median(wall)}


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the rows of the table: microseconds per span, for each shape of traces."""
    from support.mlflow_server import MLflowServer

    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, processes.start_sink() as address:
        server = MLflowServer.start(Path(folder))
        try:
            for _ in range(rounds):
                for shape in SHAPES:
                    for variant in _BURSTS:
                        arguments = ("--variant", variant, "--shape", shape, "--address", address)
                        variables = {"MLFLOW_TRACKING_URI": server.uri} if variant == "mlflow" else None
                        result = processes.run_child(__file__, *arguments, variables=variables)
                        results.setdefault((variant, shape), []).append(result)
        finally:
            server.stop()
    rows = []
    for shape, shape_text in SHAPES.items():
        for clock in ("thread", "wall"):
            runs = {variant: [result[clock] for result in results[variant, shape]] for variant in _BURSTS}
            kind = "CPU" if clock == "thread" else "wall"
            for theirs, name, bound in (
                ("batch", "BatchSpanProcessor", AGAINST_BATCH),
                ("mlflow", "mlflow.start_span", AGAINST_MLFLOW),
            ):
                rows.append(
                    row(
                        f"{kind}, {shape_text}, compared with {name}",
                        "us/span",
                        runs["ours"],
                        runs[theirs],
                        bound=None if (theirs, shape) in _NOT_BOUND else bound,
                        bare_sdk=statistics.median(runs["bare"]),
                    )
                )
    return {"rows": rows}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=sorted(_BURSTS))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="traces")
    parser.add_argument("--address", default="")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(run(arguments.variant, arguments.shape, arguments.address)))
    else:
        result = measure(arguments.rounds)
        print(HEADING, format_rows("app_thread", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
