"""What agents' traces cost the MLflow server: CPU seconds of its processes, and requests.

Twenty agents run at once. A trace has ten LLM calls with some 400 tokens of output each, which take 5 s at 80 tokens a
second, and fourteen tools and look-ups of half a second: a minute, 48 to 72 s. Upstream's batch of every 5 s cuts
through all of them, and MLflow works a trace's totals out anew for each piece. Both sides send the very same spans,
into a fresh server each, which has seen a trace before, as its first one makes it import things; the run counts only if
the database has all of them. With shorter traces (`--trace-seconds`) there is less to be saved, and no bound.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, row, shown

AGENTS = 20
SECONDS = 60.0
TRACE_SECONDS = 60.0
BOUND = 0.60
# Without waiting: this many traces, one every tenth of a second. Faster, upstream's queue of 2048 spans would overflow.
QUICK_TRACES, QUICK_PAUSE = 200, 0.1
_IDLE_SECONDS = 10.0
_FLUSH_MILLIS = 60_000


def agents(variant: str, uri: str, seconds: float, trace_seconds: float) -> dict[str, float]:
    """Runs the agents in this process, and flushes.

    Args:
        variant: `ours` or `theirs`.
        uri: The address of the MLflow server.
        seconds: About how long; 0 for many short traces one after the other.
        trace_seconds: How long a trace lasts, about.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor  # noqa: PLC0415

    processor: SpanProcessor
    if variant == "ours":
        processor = MLflowSpanProcessor(MLflowSpanExporter(tracking_uri=uri, experiment_id="0"))
    else:
        headers = {"x-mlflow-experiment-id": "0"}
        processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{uri}/v1/traces", headers=headers))
    provider = TracerProvider()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    begin = time.process_time()
    traces = [0]

    def agent(number: int) -> None:
        source = random.Random(number)
        time.sleep(source.uniform(0, trace_seconds / 2))
        for _ in range(max(1, round(seconds / trace_seconds))):
            workloads.agent_trace(tracer, source, time.sleep, trace_seconds * source.uniform(0.8, 1.2))

    if seconds:
        threads = [threading.Thread(target=agent, args=(number,)) for number in range(AGENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        traces[0] = AGENTS * max(1, round(seconds / trace_seconds))
    else:
        source = random.Random(0)
        for _ in range(QUICK_TRACES):
            workloads.agent_trace(tracer, source, lambda _: None, 0.0)
            time.sleep(QUICK_PAUSE)
        traces[0] = QUICK_TRACES
    flushed = processor.force_flush(_FLUSH_MILLIS)
    found = {"traces": traces[0], "flushed": float(flushed), "app_cpu": time.process_time() - begin}
    provider.shutdown()
    return found


def _warm_up(uri: str) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"{uri}/v1/traces", headers={"x-mlflow-experiment-id": "0"})
    provider.add_span_processor(BatchSpanProcessor(exporter))
    workloads.agent_trace(provider.get_tracer("bench"), random.Random(1), lambda _: None, 0.0)
    provider.shutdown()


def busy(variant: str, seconds: float, trace_seconds: float) -> dict[str, Any]:
    """One run against a fresh server.

    Args:
        variant: `ours` or `theirs`.
        seconds: As for `agents`.
        trace_seconds: As for `agents`.

    Raises:
        RuntimeError: Spans are missing in the database, so that the run compares nothing.
    """
    from support.mlflow_server import MLflowServer  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            _warm_up(server.uri)
            time.sleep(2.0)  # what a start still does in the background
            group, before = server.process.pid, server.count_requests()
            begin, clock = processes.group_seconds(group), time.monotonic()
            arguments = (
                "--variant",
                variant,
                "--uri",
                server.uri,
                "--seconds",
                str(seconds),
                "--trace-seconds",
                str(trace_seconds),
            )
            client = processes.child(__file__, *arguments)
            used, duration = processes.group_seconds(group) - begin, time.monotonic() - clock
            requests = server.count_requests() - before
            time.sleep(0.5)
            begin = processes.group_seconds(group)
            time.sleep(_IDLE_SECONDS)
            idle = (processes.group_seconds(group) - begin) / _IDLE_SECONDS
        finally:
            server.stop()
        with sqlite3.connect(Path(folder) / "mlflow.db") as database:
            spans = database.execute("SELECT count(*) FROM spans").fetchone()[0]
            traces = database.execute("SELECT count(*) FROM trace_info WHERE status = 'OK'").fetchone()[0]
    wanted = client["traces"] + 1
    if (spans, traces) != (wanted * workloads.SPANS_OF_A_TRACE, wanted):
        raise RuntimeError(f"{variant}: {spans} spans of {traces} whole traces arrived, of {wanted} traces")
    return {
        "busy": used - idle * duration,
        "idle_share": idle,
        "duration": duration,
        "requests": requests,
        "spans": spans - workloads.SPANS_OF_A_TRACE,
        "app_cpu": client["app_cpu"],
    }


def measure(seconds: float = SECONDS, rounds: int = 1, trace_seconds: float = TRACE_SECONDS) -> dict[str, Any]:
    """Busy seconds of the server, in turns.

    Args:
        seconds: How long the agents run.
        rounds: How many pairs of runs.
        trace_seconds: How long a trace lasts, about.
    """
    rows = []
    long = f"{AGENTS} agents at once, traces of {trace_seconds:g} s"
    for length, what in ((seconds, long), (0.0, f"{QUICK_TRACES} quick traces")):
        pairs = [(busy("ours", length, trace_seconds), busy("theirs", length, trace_seconds)) for _ in range(rounds)]
        ours, theirs = ([*column] for column in zip(*pairs, strict=True))
        bound = BOUND if length and trace_seconds >= TRACE_SECONDS else None
        more = {"spans": ours[0]["spans"], "runs": {"ours": ours, "theirs": theirs}}
        for key, said, unit in (
            ("busy", "server's CPU", "s"),
            ("requests", "requests", ""),
            ("app_cpu", "app's CPU", "s"),
        ):
            values = ([one[key] for one in side] for side in (ours, theirs))
            rows.append(row(f"{what}: {said}", unit, *values, bound=bound if key == "busy" else None, **more))
            more = {}
    return {"rows": rows}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trace-seconds", type=float, default=TRACE_SECONDS)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(agents(given.variant, given.uri, given.seconds, given.trace_seconds)))
    else:
        result = measure(given.seconds, given.rounds, given.trace_seconds)
        print(HEADING, shown("server_time", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
