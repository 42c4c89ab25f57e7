"""Measure what agents' traces cost the MLflow server: CPU seconds of its processes, and requests.

Twenty agents run at the same time. A trace has ten LLM calls with about 400 tokens of output, which take 5 s each at 80
tokens a second, and fourteen tools and lookups of half a second: a minute, 48 to 72 s. Upstream's batch, every 5 s,
splits each of these traces, and MLflow computes a trace's totals again for each part. Both sides send the same spans,
to one fresh server each. The server has stored one trace before, because the first trace makes it import modules. A run
counts only if the database has all spans. With shorter traces (`--trace-seconds`) less can be saved, and there is no
bound.
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
from benchmarks.rows import HEADING, format_rows, row

AGENTS = 20
SECONDS = 60.0
TRACE_SECONDS = 60.0
BOUND = 0.60
# The run without waiting times: one trace every tenth of a second. Faster, upstream's queue of 2048 spans would
# overflow.
QUICK_TRACES, QUICK_PAUSE = 200, 0.1
_IDLE_SECONDS = 10.0
_FLUSH_MILLIS = 60_000


def run_agents(variant: str, uri: str, seconds: float, trace_seconds: float) -> dict[str, float]:
    """Run the agents in this process, and flush.

    Args:
        variant: `ours` or `theirs`.
        uri: Address of the MLflow server.
        seconds: Approximate duration; 0 for many short traces one after the other.
        trace_seconds: Approximate duration of a trace.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor

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
            workloads.make_agent_trace(tracer, source, time.sleep, trace_seconds * source.uniform(0.8, 1.2))

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
            workloads.make_agent_trace(tracer, source, lambda _: None, 0.0)
            time.sleep(QUICK_PAUSE)
        traces[0] = QUICK_TRACES
    is_flushed = processor.force_flush(_FLUSH_MILLIS)
    result = {"traces": traces[0], "flushed": float(is_flushed), "app_cpu": time.process_time() - begin}
    provider.shutdown()
    return result


def warm_up(uri: str) -> None:
    """Store one trace: the first one makes the server import modules."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=f"{uri}/v1/traces", headers={"x-mlflow-experiment-id": "0"})
    provider.add_span_processor(BatchSpanProcessor(exporter))
    workloads.make_agent_trace(provider.get_tracer("bench"), random.Random(1), lambda _: None, 0.0)
    provider.shutdown()


def measure_run(variant: str, seconds: float, trace_seconds: float) -> dict[str, Any]:
    """Run one side against a fresh server.

    Args:
        variant: `ours` or `theirs`.
        seconds: As for `run_agents`.
        trace_seconds: As for `run_agents`.

    Raises:
        RuntimeError: Spans are missing in the database.
    """
    from support.mlflow_server import MLflowServer

    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            warm_up(server.uri)
            time.sleep(2.0)  # background work of the server's start
            group, before = server.process.pid, server.count_requests()
            begin, clock = processes.read_group_seconds(group), time.monotonic()
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
            client = processes.run_child(__file__, *arguments)
            used, duration = processes.read_group_seconds(group) - begin, time.monotonic() - clock
            requests = server.count_requests() - before
            time.sleep(0.5)
            begin = processes.read_group_seconds(group)
            time.sleep(_IDLE_SECONDS)
            idle = (processes.read_group_seconds(group) - begin) / _IDLE_SECONDS
        finally:
            server.stop()
        with sqlite3.connect(Path(folder) / "mlflow.db") as database:
            spans = database.execute("SELECT count(*) FROM spans").fetchone()[0]
            traces = database.execute("SELECT count(*) FROM trace_info WHERE status = 'OK'").fetchone()[0]
    expected = client["traces"] + 1
    if (spans, traces) != (expected * workloads.SPANS_OF_A_TRACE, expected):
        raise RuntimeError(f"{variant}: {spans} spans of {traces} complete traces arrived, expected {expected} traces")
    return {
        "busy": used - idle * duration,
        "idle_share": idle,
        "duration": duration,
        "requests": requests,
        "spans": spans - workloads.SPANS_OF_A_TRACE,
        "app_cpu": client["app_cpu"],
    }


def measure(seconds: float = SECONDS, rounds: int = 1, trace_seconds: float = TRACE_SECONDS) -> dict[str, Any]:
    """Return the rows of the table. Both sides alternate.

    Args:
        seconds: Duration of a run.
        rounds: Number of pairs of runs.
        trace_seconds: Approximate duration of a trace.
    """
    rows = []
    long = f"{AGENTS} agents at once, traces of {trace_seconds:g} s"
    for length, what in ((seconds, long), (0.0, f"{QUICK_TRACES} quick traces")):
        pairs = [[measure_run(side, length, trace_seconds) for side in ("ours", "theirs")] for _ in range(rounds)]
        ours, theirs = ([*column] for column in zip(*pairs, strict=True))
        bound = BOUND if length and trace_seconds >= TRACE_SECONDS else None
        details = {"spans": ours[0]["spans"], "runs": {"ours": ours, "theirs": theirs}}
        for key, quantity, unit in (
            ("busy", "server's CPU", "s"),
            ("requests", "requests", ""),
            ("app_cpu", "app's CPU", "s"),
        ):
            values = ([run[key] for run in runs] for runs in (ours, theirs))
            rows.append(row(f"{what}: {quantity}", unit, *values, bound=bound if key == "busy" else None, **details))
            details = {}
    return {"rows": rows}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trace-seconds", type=float, default=TRACE_SECONDS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(run_agents(arguments.variant, arguments.uri, arguments.seconds, arguments.trace_seconds)))
    else:
        result = measure(arguments.seconds, arguments.rounds, arguments.trace_seconds)
        print(HEADING, format_rows("server_time", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
