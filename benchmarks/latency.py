"""Measure the time from the end of a root span until MLflow returns the trace with its state, under the load of agents.

1, 5 and 20 agents run at the same time; each creates traces of 2 s with 30 spans, one after the other. Both sides send
the same traces to one MLflow server, one side after the other. The server's database is polled for the traces, because
requests for traces would load the server as much as the spans do; afterwards, each trace is read from the server once.
The CPU time is that of the server's process group from the start of the agents until all their traces are stored.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, format_rows, row

TRACE_SECONDS = 2.0
SECONDS = 20.0
# Number of agents, the share of the latencies that a bound is for, and the bound in seconds.
BOUNDS = {1: (0.95, 0.5), 5: (0.5, 1.0), 20: (0.5, 1.5)}
CPU_BOUND = 0.8
_POLL_SECONDS = 0.03


def run_agents(variant: str, uri: str, agent_count: int, seconds: float) -> dict[str, float]:
    """Run the agents in this process. Return when each root ended, in monotonic seconds, by trace id."""
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
    ends: dict[str, float] = {}
    stop_at = time.monotonic() + seconds

    def agent(number: int) -> None:
        source = random.Random(number)
        time.sleep(source.uniform(0, TRACE_SECONDS))
        while time.monotonic() < stop_at:
            duration = TRACE_SECONDS * source.uniform(0.8, 1.2)
            trace_id = workloads.make_agent_trace(tracer, source, time.sleep, duration)
            ends[f"tr-{trace_id:032x}"] = time.monotonic()

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(agent_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    provider.shutdown()
    return ends


def _is_readable(uri: str, trace_id: str) -> bool:
    with urllib.request.urlopen(f"{uri}/api/3.0/mlflow/traces/{trace_id}") as response:
        return bool(json.loads(response.read())["trace"]["trace_info"]["state"] == "OK")


def _select_complete(database: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return {trace_id for (trace_id,) in connection.execute("SELECT request_id FROM trace_info WHERE status = 'OK'")}


def measure_run(variant: str, agent_count: int, seconds: float, server: Any, database: Path) -> dict[str, Any]:
    """Run one side, and return its latencies in seconds and the server's CPU seconds per trace."""
    earlier_ids = _select_complete(database)
    seen_at: dict[str, float] = {}
    begin, request_count = processes.read_group_seconds(server.process.pid), server.count_requests()
    arguments = ["--variant", variant, "--uri", server.uri, "--agents", str(agent_count), "--seconds", str(seconds)]
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, env=processes.make_environment(), stdout=subprocess.PIPE, text=True) as child:
        is_running = True
        while is_running:
            is_running = child.poll() is None  # the traces are looked up once more after the end
            for trace_id in _select_complete(database) - earlier_ids:
                seen_at.setdefault(trace_id, time.monotonic())
            time.sleep(_POLL_SECONDS)
        used = processes.read_group_seconds(server.process.pid) - begin
        assert child.stdout is not None
        ends = json.loads(child.stdout.read().strip().splitlines()[-1])
    if missing := [trace_id for trace_id in ends if trace_id not in seen_at or not _is_readable(server.uri, trace_id)]:
        raise RuntimeError(f"{variant}: {len(missing)} traces did not arrive")
    return {
        "latencies": sorted(seen_at[trace_id] - end for trace_id, end in ends.items()),
        "cpu": used / len(ends),
        "traces": len(ends),
        "requests": server.count_requests() - request_count,
    }


def _select_share(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, round(share * (len(values) - 1)))]


def measure(seconds: float = SECONDS, agent_counts: Iterable[int] = tuple(BOUNDS)) -> dict[str, Any]:
    """Return the rows of the table: seconds, and the server's CPU time in milliseconds per trace."""
    from benchmarks.server_time import warm_up

    from support.mlflow_server import MLflowServer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server, database = MLflowServer.start(Path(folder)), Path(folder) / "mlflow.db"
        try:
            warm_up(server.uri)
            time.sleep(2.0)  # background work of the server's start
            for agent_count in agent_counts:
                share, bound = BOUNDS[agent_count]
                runs = {
                    variant: measure_run(variant, agent_count, seconds, server, database)
                    for variant in ("ours", "theirs")
                }
                agents = "1 agent" if agent_count == 1 else f"{agent_count} agents"
                for percent in (50, 95):
                    ours, theirs = (_select_share(run["latencies"], percent / 100) for run in runs.values())
                    limit = bound if percent == share * 100 else None
                    what = f"{agents}: end of root to readable trace, p{percent}"
                    rows.append(row(what, "s", [ours], [theirs], ours_bound=limit))
                cpu = ([run["cpu"] * 1000] for run in runs.values())
                bound_of_cpu = CPU_BOUND if agent_count == max(BOUNDS) else None
                rows.append(row(f"{agents}: server's CPU per trace", "ms", *cpu, bound=bound_of_cpu, runs=runs))
        finally:
            server.stop()
    return {"rows": rows}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--agents", type=int, choices=tuple(BOUNDS))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(run_agents(arguments.variant, arguments.uri, arguments.agents, arguments.seconds)))
    else:
        result = measure(arguments.seconds, (arguments.agents,) if arguments.agents else tuple(BOUNDS))
        print(HEADING, format_rows("latency", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
