"""What a span costs the app's own thread: start, 20 attributes, end.

`MLflowSpanProcessor`, upstream's `BatchSpanProcessor` with the stock exporter, and `mlflow.start_span` as MLflow sets
it up by itself, each in a fresh process, in turns. The two processors send to a trivial server; MLflow's SDK, which
asks its server this and that, to a real one. Spans come in bursts of 30 with pauses in between, so that nothing drops
and the background thread works beside the app's, as it does in an app. "bare" is the SDK with a processor that does
nothing: what lies beyond it is the processor's own share.

`time.thread_time()` is what the thread itself computes: the mean of all bursts, those too during which the background
thread encodes. The wall time, a median, has in it that the thread waits for the interpreter's lock.
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
from benchmarks.rows import HEADING, row, shown

BURST = 30
SHAPES = {"single": "root spans only", "traces": "traces of 30 spans"}
ROUNDS = 5
AGAINST_BATCH, AGAINST_MLFLOW = 1.10, 1 / 15
# MLflow's SDK sends each trace on its own, in two requests; the server has to keep up, or its queue fills.
_BURSTS = {"mlflow": (12, 0.5), "ours": (120, 0.02), "batch": (120, 0.02), "bare": (120, 0.02)}
_WARM_UP = 5
# Most of what MLflow's SDK costs is paid once a trace. With 30 spans in each, already OpenTelemetry's SDK without any
# processor takes more than a 15th of it.
_NOT_BOUND = {("mlflow", "traces")}


def _burst(start: Callable[[str], Any], shape: str, attributes: list[dict[str, workloads.Value]]) -> None:
    with start("root") if shape == "traces" else nullcontext() as root:
        if root is not None:
            root.set_attributes(attributes[0])
        for found in attributes[1:] if shape == "traces" else attributes:
            with start("step") as span:
                span.set_attributes(found)


def _provider(variant: str, address: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor  # noqa: PLC0415

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
    """One run, in this process, in microseconds a span."""
    source = random.Random(3)
    attributes = [workloads.medium(source) for _ in range(BURST)]
    provider = None
    start: Callable[[str], Any]
    if variant == "mlflow":
        import mlflow  # noqa: PLC0415

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
    """Microseconds a span on the app's thread, for each shape of traces."""
    from support.mlflow_server import MLflowServer  # noqa: PLC0415

    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, processes.sink() as address:
        server = MLflowServer.start(Path(folder))
        try:
            more = {"MLFLOW_TRACKING_URI": server.uri}
            for _ in range(rounds):
                for shape in SHAPES:
                    for variant in _BURSTS:
                        arguments = ("--variant", variant, "--shape", shape, "--address", address)
                        one = processes.child(__file__, *arguments, more=more if variant == "mlflow" else None)
                        found.setdefault((variant, shape), []).append(one)
        finally:
            server.stop()
    rows = []
    for shape, said in SHAPES.items():
        for clock in ("thread", "wall"):
            runs = {variant: [one[clock] for one in found[variant, shape]] for variant in _BURSTS}
            kind = "CPU" if clock == "thread" else "wall"
            for theirs, name, bound in (
                ("batch", "BatchSpanProcessor", AGAINST_BATCH),
                ("mlflow", "mlflow.start_span", AGAINST_MLFLOW),
            ):
                rows.append(
                    row(
                        f"{kind}, {said}, beside {name}",
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
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(run(given.variant, given.shape, given.address)))
    else:
        result = measure(given.rounds)
        print(HEADING, shown("app_thread", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
