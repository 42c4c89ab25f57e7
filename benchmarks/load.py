"""Measure sustained load with a trivial server in its own process: many destinations, and a high rate of spans.

- Destinations: 200 traces/s of nine spans, each for the next of 1,000 experiments; the server takes 50 ms for each
  request. Upstream's exporter knows one destination; it gets the same traces for one, and one request at a time.
- Rate: 5,000 spans/s in traces of agents of 30 spans, and a server that answers at once.

A latency is the time from the end of a root span until its request has arrived. The server reads the root's end from
the span, so that both sides are measured in the same way.
"""

from __future__ import annotations

import argparse
import http.server
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, format_rows, row

SECONDS, FULL_SECONDS = 15.0, 120.0
LATENCY_BOUND = 2.0
# Spans per trace, traces per second, number of destinations, and seconds for which the server delays a response.
LOADS = {
    "1,000 destinations, 50 ms, 200 traces/s": (9, 200.0, 1000, 0.05),
    "5,000 spans/s": (workloads.SPANS_OF_A_TRACE, 5000.0 / workloads.SPANS_OF_A_TRACE, 1, 0.0),
}
_DRAIN_MILLIS = 30_000


def _make_trace(tracer: Any, source: random.Random, span_count: int) -> None:
    if span_count == workloads.SPANS_OF_A_TRACE:
        workloads.make_agent_trace(tracer, source, lambda _: None, 0.0)
        return
    with tracer.start_as_current_span("agent", attributes=workloads.small(source)):
        for _ in range(span_count - 1):
            with tracer.start_as_current_span("step", attributes=workloads.medium(source)):
                pass


def run_app(variant: str, address: str, load: str, seconds: float) -> dict[str, float]:
    """Create the spans in this process at a constant rate, and return what it used."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context

    span_count, traces_per_second, destination_count, _ = LOADS[load]
    exporter = MLflowSpanExporter(f"{address}/v1/traces", experiment_id="0")
    processor: SpanProcessor
    if variant == "ours":
        processor = MLflowSpanProcessor(exporter)
    else:
        processor = BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces"))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer, source = provider.get_tracer("bench"), random.Random(3)

    def route(number: int) -> AbstractContextManager[Any]:
        if variant == "ours" and destination_count > 1:
            return trace_context(experiment_id=str(number % destination_count + 1))
        return nullcontext()

    trace_count = round(seconds * traces_per_second)
    begin, cpu = time.monotonic(), time.process_time()
    for number in range(trace_count):
        with route(number):
            _make_trace(tracer, source, span_count)
        time.sleep(max(0.0, begin + number / traces_per_second - time.monotonic()))
    took = time.monotonic() - begin
    processor.force_flush(_DRAIN_MILLIS)
    used = time.process_time() - cpu
    provider.shutdown()
    return {"spans": trace_count * span_count, "seconds": took, "cpu": used}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Records arrival and body of each request; `GET` decodes and summarizes them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    delay_seconds = 0.0
    requests: list[tuple[float, bytes]] = []  # noqa: RUF012 - of all connections

    def do_POST(self) -> None:
        """Record the request."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.requests.append((time.time(), body))
        time.sleep(self.delay_seconds)
        self._respond(b"")

    def do_GET(self) -> None:
        """Return the number of spans and requests, and the latencies of the roots, in seconds."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        span_count, latencies = 0, []
        for arrived_at, body in self.requests:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    span_count += len(scope.spans)
                    latencies += [arrived_at - s.end_time_unix_nano / 1e9 for s in scope.spans if not s.parent_span_id]
        summary = {"spans": span_count, "requests": len(self.requests), "latencies": sorted(latencies)}
        self._respond(json.dumps(summary).encode())

    def _respond(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing."""


@contextmanager
def _start_server(delay_seconds: float) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the address, and a function that returns what has arrived."""
    command = [sys.executable, __file__, "--delay", str(delay_seconds)]
    with subprocess.Popen(command, env=processes.make_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = f"http://127.0.0.1:{int(process.stdout.readline())}"

            def read_summary() -> dict[str, Any]:
                with urllib.request.urlopen(address) as response:
                    summary: dict[str, Any] = json.loads(response.read())
                    return summary

            yield address, read_summary
        finally:
            process.kill()


def _serve(delay_seconds: float) -> None:
    _Handler.delay_seconds = delay_seconds
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.request_queue_size = True, 128
    threading.Thread(target=server.serve_forever).start()
    print(server.server_address[1], flush=True)


def _measure_run(variant: str, load: str, seconds: float) -> dict[str, Any]:
    with _start_server(LOADS[load][3]) as (address, read_summary):
        arguments = ("--variant", variant, "--address", address, "--load", load, "--seconds", str(seconds))
        app, server = processes.run_child(__file__, *arguments), read_summary()
    latencies = server["latencies"]
    return {
        "dropped": app["spans"] - server["spans"],
        "p50": latencies[len(latencies) // 2],
        "p95": latencies[int(len(latencies) * 0.95)],
        "requests": server["requests"] / app["seconds"],
        "cpu": app["cpu"] / app["spans"] * 1e6,
        "rate": app["spans"] / app["seconds"],
    }


def measure(seconds: float = SECONDS) -> dict[str, Any]:
    """Return the rows of the table."""
    rows = []
    for load in LOADS:
        ours, theirs = (_measure_run(variant, load, seconds) for variant in ("ours", "theirs"))
        for key, what, unit, bound in (
            ("dropped", "dropped spans", "", 0.0),
            ("p50", "end of root to arrival, p50", "s", None),
            ("p95", "end of root to arrival, p95", "s", LATENCY_BOUND),
            ("cpu", "app's CPU", "us/span", None),
        ):
            runs = {"ours": ours, "theirs": theirs}
            rows.append(row(f"{load}: {what}", unit, [ours[key]], [theirs[key]], ours_bound=bound, runs=runs))
    return {"rows": rows, "seconds": seconds}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=("ours", "theirs"))
    parser.add_argument("--address", default="")
    parser.add_argument("--load", choices=tuple(LOADS))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--delay", type=float)
    arguments = parser.parse_args()
    if arguments.delay is not None:
        _serve(arguments.delay)
    elif arguments.variant:
        print(json.dumps(run_app(arguments.variant, arguments.address, arguments.load, arguments.seconds)))
    else:
        result = measure(arguments.seconds)
        print(HEADING, format_rows("load", result), json.dumps(result), sep="\n")


if __name__ == "__main__":
    _main()
