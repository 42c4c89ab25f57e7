"""How long after its root has ended a trace can be read in MLflow, whole and with its state.

An idle server, one trace of three spans at a time, at moments that have nothing to do with a batch's rhythm.
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
from benchmarks.rows import HEADING, row, shown

SAMPLES = 20
BOUND = 1.0
_POLL_SECONDS, _LONGEST_SECONDS = 0.02, 30.0


def _readable(connection: http.client.HTTPConnection, trace_id: int) -> bool:
    connection.request("GET", f"/api/3.0/mlflow/traces/tr-{trace_id:032x}")
    answer = connection.getresponse()
    content = answer.read()
    return answer.status == 200 and json.loads(content)["trace"]["trace_info"]["state"] == "OK"


def samples(variant: str, uri: str, count: int) -> list[float]:
    """Seconds from a root's end until its trace can be read, in this process."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

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
    source = random.Random(5)
    found = []
    for _ in range(count):
        time.sleep(source.uniform(0.1, 5.1))
        with tracer.start_as_current_span("root") as root:
            for _ in range(2):
                with tracer.start_as_current_span("child"):
                    pass
            root.set_status(Status(StatusCode.OK))
        begin = time.monotonic()
        # A new connection for each: uvicorn closes idle ones while upstream's batch is waited for.
        connection = http.client.HTTPConnection(urlsplit(uri).netloc, timeout=10)
        while not _readable(connection, root.get_span_context().trace_id):
            if time.monotonic() - begin > _LONGEST_SECONDS:
                raise RuntimeError(f"a trace was not there after {_LONGEST_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        found.append(time.monotonic() - begin)
        connection.close()
    provider.shutdown()
    return found


def measure(count: int = SAMPLES) -> dict[str, Any]:
    """Seconds, for each sample."""
    from support.mlflow_server import MLflowServer  # noqa: PLC0415

    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            for _ in range(2):
                for variant in found:
                    arguments = ("--variant", variant, "--uri", server.uri, "--count", str(count // 2))
                    found[variant] += processes.child(__file__, *arguments)["samples"]
        finally:
            server.stop()
    ours, theirs = found["ours"], found["theirs"]
    rows = [
        row(f"root's end to readable, median of {len(ours)}", "s", ours, theirs),
        row("root's end to readable, longest", "s", [max(ours)], [max(theirs)], ours_bound=BOUND),
    ]
    return {"rows": rows, "mean": {name: statistics.mean(values) for name, values in found.items()}}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--uri", default="")
    parser.add_argument("--count", type=int, default=SAMPLES)
    given = parser.parse_args()
    if given.variant:
        print(json.dumps({"samples": samples(given.variant, given.uri, given.count)}))
    else:
        result = measure(given.count)
        print(HEADING, shown("latency", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
