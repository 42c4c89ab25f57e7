"""Measure `mlflow-otlp gateway` on one core beside a Collector that only forwards: CPU, answers, memory.

The gateway, and then OpenTelemetry's Collector with the shipped configuration that only forwards, run on the first CPU.
Clients and a trivial server that accepts everything run on the second. Requests of whole traces arrive at random times
that are independent of the answers, and the time to an answer counts from then. Both keep spans on disk: the gateway in
its journal, the Collector in its queue.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import encode_request

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes
from benchmarks.rows import HEADING, format_rows, row
from benchmarks.workloads import SPANS_OF_A_TRACE, make_agent_trace

SECONDS, SPANS_PER_SECOND = 30.0, 2000
MICROSECONDS_BOUND, ANSWER_BOUND = 500.0, 50.0
_TRACES, _CONNECTIONS, _TIMEOUT_SECONDS, _DRAIN_SECONDS = 200, 16, 30.0, 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
# Of all recorded requests, without the few that consist of images.
_MAX_RECORDING_BYTES = 60_000


class _Request(NamedTuple):
    """The body of a request whose trace ids are replaced each time that it is sent."""

    body: bytes
    trace_ids: Sequence[bytes]
    span_count: int

    def renew(self) -> bytes:
        body = self.body
        for trace_id in self.trace_ids:
            body = body.replace(trace_id, secrets.token_bytes(16))
        return body


def _make_agent_requests() -> list[_Request]:
    source, encoder, requests = random.Random(7), SpanEncoder(), []
    for _ in range(_TRACES):
        memory = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(memory))
        trace_id = make_agent_trace(provider.get_tracer("bench"), source, lambda _: None, 1.0)
        spans = memory.get_finished_spans()
        body = encode_request([encoder.encode(span) for span in spans])
        requests.append(_Request(body, [trace_id.to_bytes(16, "big")], len(spans)))
    return requests


def _read_recordings() -> list[_Request]:
    from support.recordings import cases

    requests: list[_Request] = []
    body, trace_ids, span_count = b"", set[bytes](), 0
    bodies = [path.read_bytes() for path in cases().values()]
    random.Random(7).shuffle(bodies)
    for content in bodies:
        if len(content) > _MAX_RECORDING_BYTES:
            continue
        message = ExportTraceServiceRequest.FromString(content)
        scopes = [scope for resource in message.resource_spans for scope in resource.scope_spans]
        body += content
        trace_ids |= {span.trace_id for scope in scopes for span in scope.spans}
        span_count += sum(len(scope.spans) for scope in scopes)
        if span_count >= SPANS_OF_A_TRACE:
            requests.append(_Request(body, sorted(trace_ids), span_count))
            body, trace_ids, span_count = b"", set(), 0
    return requests


MIXES: dict[str, Callable[[], list[_Request]]] = {
    "agents' traces": _make_agent_requests,
    "recordings of all sources": _read_recordings,
}


class _Clients:
    """Sends requests at random times over a few connections; one that waits for a connection is late."""

    def __init__(self, address: str, requests: Sequence[_Request], seconds: float, rate: float) -> None:
        self._netloc, self._lock = urlsplit(address).netloc, threading.Lock()
        self._schedule = self._make_schedule(requests, seconds, rate)
        self.milliseconds: list[float] = []
        self.statuses = Counter[int]()
        self.span_count = 0

    @staticmethod
    def _make_schedule(requests: Sequence[_Request], seconds: float, rate: float) -> Iterator[tuple[float, _Request]]:
        source, due, end = random.Random(3), time.monotonic() + 0.5, time.monotonic() + 0.5 + seconds
        while due < end:
            request = source.choice(requests)
            yield due, request
            due += source.expovariate(rate / request.span_count)

    def run(self) -> None:
        threads = [threading.Thread(target=self._send) for _ in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send(self) -> None:
        connection = http.client.HTTPConnection(self._netloc, timeout=_TIMEOUT_SECONDS)
        while True:
            with self._lock:
                due, request = next(self._schedule, (0.0, None))
            if request is None:
                connection.close()
                return
            body = request.renew()
            time.sleep(max(0.0, due - time.monotonic()))
            connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf"})
            answer = connection.getresponse()
            answer.read()
            self.milliseconds.append((time.monotonic() - due) * 1000)
            with self._lock:
                self.statuses[answer.status] += 1
                self.span_count += request.span_count


@contextmanager
def _on_cpu(number: int) -> Iterator[None]:
    """Run the processes that are started meanwhile on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _read_memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1000


def _run_load(
    pid: int, address: str, requests: Sequence[_Request], seconds: float, rate: float, count_queued: Callable[[], float]
) -> dict[str, Any]:
    # A second of load first: caches, connections, and the code that is compiled at its first use.
    _Clients(address, requests, 1.0, rate).run()
    _drain(count_queued)
    begin, cpu = time.monotonic(), _read_cpu_seconds(pid)
    clients = _Clients(address, requests, seconds, rate)
    memory_mb: list[float] = []
    is_over = threading.Event()

    def read_memory() -> None:
        while not is_over.wait(min(1.0, seconds / 10)):
            memory_mb.append(_read_memory_mb(pid, "VmRSS"))

    reader = threading.Thread(target=read_memory)
    reader.start()
    clients.run()
    is_over.set()
    reader.join()
    wall, load_cpu, queued = time.monotonic() - begin, _read_cpu_seconds(pid) - cpu, count_queued()
    _drain(count_queued)
    if clients.statuses.keys() != {200}:
        raise RuntimeError(f"answers other than 200: {dict(clients.statuses)}")
    times, half = sorted(clients.milliseconds), len(memory_mb) // 2
    return {
        "microseconds": (_read_cpu_seconds(pid) - cpu) / clients.span_count * 1e6,
        "busy": load_cpu / wall,
        "spans": clients.span_count,
        "spans_per_second": clients.span_count / wall,
        "queued": queued,
        "p50": times[len(times) // 2],
        "p99": times[int(len(times) * 0.99)],
        "longest": times[-1],
        "memory": _read_memory_mb(pid, "VmHWM"),
        "memory_halves": [max(memory_mb[:half], default=0.0), max(memory_mb[half:], default=0.0)],
    }


def _drain(count_queued: Callable[[], float]) -> None:
    end = time.monotonic() + _DRAIN_SECONDS
    while count_queued():
        if time.monotonic() > end:
            raise RuntimeError(f"spans were queued {_DRAIN_SECONDS:.0f} s after the load")
        time.sleep(0.1)


def _measure_gateway(sink: str, requests: Sequence[_Request], seconds: float, rate: float) -> dict[str, Any]:
    from support.gateway import GatewayProcess

    with tempfile.TemporaryDirectory() as folder:
        with _on_cpu(0):
            gateway = GatewayProcess(Path(folder), sink, ["--experiment-id", "1"]).start()

        def count_queued() -> float:
            metrics = gateway.metrics()
            return metrics["mlflow_otlp_queue_spans"] + metrics["mlflow_otlp_spool_spans"]

        try:
            result = _run_load(
                gateway.process.pid,
                f"http://127.0.0.1:{gateway.port}",
                requests,
                seconds,
                rate,
                count_queued,
            )
            metrics = gateway.metrics()
        finally:
            gateway.kill()
    sent = sum(metrics[f"mlflow_otlp_span_{name}_total"] for name in ("delivered", "filtered"))
    if sent < result["spans"]:
        raise RuntimeError(f"{sent:.0f} of {result['spans']} spans were delivered: {metrics}")
    return result


def _measure_collector(sink: str, requests: Sequence[_Request], seconds: float, rate: float) -> dict[str, Any]:
    from support.collector import Collector

    variables = {"MLFLOW_TRACKING_URI": sink, "MLFLOW_EXPERIMENT_ID": "1", "GOMAXPROCS": "1"}
    # As the gateway, it sends to a server that is near without compression.
    changes = {"exporters": {"otlp_http/mlflow": {"compression": "none"}}}
    with tempfile.TemporaryDirectory() as folder:
        with _on_cpu(0):
            collector = Collector(Path(folder), "fixed-no-auth", variables, changes)
        with collector:
            return _run_load(
                collector.process.pid,
                collector.http,
                requests,
                seconds,
                rate,
                lambda: collector.metric("otelcol_exporter_queue_size"),
            )


def measure(
    seconds: float = SECONDS,
    rate: float = SPANS_PER_SECOND,
    mixes: Sequence[str] = tuple(MIXES),
    *,
    collector: bool = True,
) -> dict[str, Any]:
    """Return the rows of the table.

    Args:
        seconds: Duration of the load, for each mix and side.
        rate: Spans per second.
        mixes: Names in `MIXES`.
        collector: Also measure the Collector, which needs Go.
    """
    rows, details = [], {}
    for mix in mixes:
        requests = MIXES[mix]()
        with _on_cpu(1), processes.start_sink() as sink:
            ours = _measure_gateway(sink, requests, seconds, rate)
            theirs = _measure_collector(sink, requests, seconds, rate) if collector else dict.fromkeys(ours, 0.0)
        details[mix] = {"gateway": ours, "collector": theirs}
        for what, unit, name, bound in (
            ("CPU", "us/span", "microseconds", MICROSECONDS_BOUND),
            (f"CPU of one core at {rate:.0f} spans/s", "", "busy", None),
            ("time to the answer, median", "ms", "p50", None),
            ("time to the answer, 99 %", "ms", "p99", ANSWER_BOUND),
            ("time to the answer, longest", "ms", "longest", None),
            ("memory, most", "MB", "memory", None),
        ):
            rows.append(row(f"{mix}: {what}", unit, [ours[name]], [theirs[name]], ours_bound=bound))
    return {"rows": rows, "details": details}


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of the load for each mix and side")
    parser.add_argument("--rate", type=float, default=SPANS_PER_SECOND, help="spans per second")
    parser.add_argument("--mix", choices=tuple(MIXES), action="append", help="default: all")
    parser.add_argument("--no-collector", action="store_true", help="measure the gateway only")
    arguments = parser.parse_args()
    mixes = arguments.mix or tuple(MIXES)
    result = measure(arguments.seconds, arguments.rate, mixes, collector=not arguments.no_collector)
    print(HEADING, format_rows("gateway", result), json.dumps(result["details"]), sep="\n")


if __name__ == "__main__":
    _main()
