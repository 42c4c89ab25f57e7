"""Measure the time from the end of a root span until MLflow returns the trace, complete and with its state.

The server is idle. There is one trace of three spans at a time, at random times that are independent of batch
schedules.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes
from benchmarks.rows import HEADING, format_rows, row

SAMPLES = 20
BOUND = 1.0
_POLL_SECONDS, _LONGEST_SECONDS = 0.02, 30.0


def _is_readable(connection: http.client.HTTPConnection, trace_id: int) -> bool:
    connection.request("GET", f"/api/3.0/mlflow/traces/tr-{trace_id:032x}")
    answer = connection.getresponse()
    content = answer.read()
    return answer.status == 200 and json.loads(content)["trace"]["trace_info"]["state"] == "OK"


def measure_samples(variant: str, uri: str, count: int) -> list[float]:
    """Return the seconds from each root's end until its trace can be read. Runs in this process."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Status, StatusCode

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
    source = random.Random(5)
    latencies = []
    for _ in range(count):
        time.sleep(source.uniform(0.1, 5.1))
        with tracer.start_as_current_span("root") as root:
            for _ in range(2):
                with tracer.start_as_current_span("child"):
                    pass
            root.set_status(Status(StatusCode.OK))
        begin = time.monotonic()
        # One connection per trace, because uvicorn closes idle connections during the wait for upstream's batch.
        connection = http.client.HTTPConnection(urlsplit(uri).netloc, timeout=10)
        while not _is_readable(connection, root.get_span_context().trace_id):
            if time.monotonic() - begin > _LONGEST_SECONDS:
                raise RuntimeError(f"a trace was not readable after {_LONGEST_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        latencies.append(time.monotonic() - begin)
        connection.close()
    provider.shutdown()
    return latencies


def measure(count: int = SAMPLES) -> dict[str, Any]:
    """Return the rows of the table, in seconds."""
    from support.mlflow_server import MLflowServer

    samples: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            for _ in range(2):
                for variant in samples:
                    arguments = ("--variant", variant, "--uri", server.uri, "--count", str(count // 2))
                    samples[variant] += processes.run_child(__file__, *arguments)["samples"]
        finally:
            server.stop()
    ours, theirs = samples["ours"], samples["theirs"]
    rows = [
        row(f"end of root to readable trace, median of {len(ours)}", "s", ours, theirs),
        row("end of root to readable trace, longest", "s", [max(ours)], [max(theirs)], ours_bound=BOUND),
    ]
    return {"rows": rows, "mean": {name: statistics.mean(values) for name, values in samples.items()}}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--count", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps({"samples": measure_samples(arguments.variant, arguments.uri, arguments.count)}))
    else:
        result = measure(arguments.count)
        print(HEADING, format_rows("latency", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
