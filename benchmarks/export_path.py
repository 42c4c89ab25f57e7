"""Measure the CPU time of a whole export: `MLflowSpanExporter.export` and upstream's exporter.

Both send to a trivial server in another process. The process time of this process counts, including its threads. The
second part measures the time and the output size of gzip by level, and the body size from which gzip pays off.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.otlp_client import compress
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.spans import encode_request

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, format_rows, row

BATCH = 512
ROUNDS = 5
LEVELS = (1, 3, 4, 6, 9)
CHARACTERS = (0, 256, 512, 768, 1024, 1536, 2048, 4096, 8192, 16_384)
# Payload of a TCP segment in an Ethernet frame. The first segment also holds the request headers, about 300 bytes.
_PACKET = 1448
_FIRST_PACKET = _PACKET - 300


def _microseconds(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> float:
    begin = time.process_time()
    answer = exporter.export(spans)
    used = time.process_time() - begin
    if answer is not SpanExportResult.SUCCESS:
        raise RuntimeError("the trivial server did not accept the spans")
    return used / len(spans) * 1e6


def _measure_exports(address: str) -> list[dict[str, Any]]:
    rows = []
    for name in ("small", "LLM"):
        spans = workloads.make_spans(workloads.KINDS[name], BATCH)
        for compression in (Compression.NoCompression, Compression.Gzip):
            ours = MLflowSpanExporter(f"{address}/v1/traces", experiment_id="0", compression=compression)
            theirs = OTLPSpanExporter(f"{address}/v1/traces", compression=compression)
            _microseconds(ours, spans[:8])
            _microseconds(theirs, spans[:8])
            pairs = [(_microseconds(ours, spans), _microseconds(theirs, spans)) for _ in range(ROUNDS)]
            first, second = zip(*pairs, strict=True)
            encoding = "gzip" if compression is Compression.Gzip else "plain"
            rows.append(row(f"{BATCH} {name} spans, {encoding}", "us/span", first, second, best=True))
            ours.shutdown()
            theirs.shutdown()  # type: ignore[no-untyped-call]
    return rows


def _best_milliseconds(work: Callable[[], object], repeat: int = 7) -> float:
    """Return the milliseconds of the fastest run."""
    times = []
    for _ in range(repeat):
        begin = time.thread_time()
        work()
        times.append(time.thread_time() - begin)
    return min(times) * 1000


def _measure_level(body: bytes, level: int) -> dict[str, float]:
    packed = gzip.compress(body, level, mtime=0)
    return {
        "level": level,
        "plain": len(body),
        "bytes": len(packed),
        "share": len(packed) / len(body),
        "ms": _best_milliseconds(lambda: gzip.compress(body, level, mtime=0)),
        "unpack_ms": _best_milliseconds(lambda: gzip.decompress(packed)),
    }


def _make_body(kind: Callable[[random.Random], dict[str, workloads.Value]], count: int) -> bytes:
    encoder = SpanEncoder()
    return encode_request([encoder.encode(span) for span in workloads.make_spans(kind, count)])


def _conversation() -> Callable[[random.Random], dict[str, workloads.Value]]:
    """Return a kind of LLM spans where each span has all messages of the previous span, and one more."""
    history: list[str] = []

    def attributes(source: random.Random) -> dict[str, workloads.Value]:
        if len(history) == 15:
            history.clear()
        history.append(workloads.text(source, 900))
        span_attributes: dict[str, workloads.Value] = {"openinference.span.kind": "LLM", "input.value": history[-1]}
        for number, message in enumerate(history):
            span_attributes[f"llm.input_messages.{number}.message.role"] = "user" if number % 2 else "assistant"
            span_attributes[f"llm.input_messages.{number}.message.content"] = message
        return span_attributes

    return attributes


def _count_packets(size: int) -> int:
    return 1 + max(0, -(-(size - _FIRST_PACKET) // _PACKET))


def _measure_size(characters: int) -> dict[str, float]:
    """Measure the compression of a request with one span that has a text of this length."""
    body = _make_body(
        lambda source: {"openinference.span.kind": "LLM", "input.value": workloads.text(source, characters)}, 1
    )
    packed = compress(body, "gzip")
    microseconds = _best_milliseconds(lambda: [compress(body, "gzip") for _ in range(50)]) / 50 * 1000
    return {
        "plain": len(body),
        "bytes": len(packed),
        "us": microseconds,
        "packets": _count_packets(len(body)),
        "packets_packed": _count_packets(len(packed)),
        # On a slower network, sending the saved bytes would take longer than compressing.
        "pays_below_mbit_s": max(0.0, (len(body) - len(packed)) * 8 / microseconds),
    }


def measure() -> dict[str, Any]:
    """Return the rows of the table in microseconds per span, and the gzip tables."""
    with processes.start_sink() as address:
        rows = _measure_exports(address)
    kinds = {"small": workloads.small, "LLM": workloads.llm, "conversation's": _conversation()}
    bodies = {name: _make_body(kind, 100) for name, kind in kinds.items()}
    levels = {name: [_measure_level(body, level) for level in LEVELS] for name, body in bodies.items()}
    for name, body in bodies.items():
        # Upstream uses gzip's default level, 9.
        ours = _best_milliseconds(functools.partial(compress, body, "gzip"))
        theirs = _best_milliseconds(functools.partial(gzip.compress, body))
        what = f"gzip of 100 {name} spans"
        rows.append(row(f"{what}: CPU", "ms", [ours], [theirs]))
        rows.append(row(f"{what}: bytes", "B", [len(compress(body, "gzip"))], [len(gzip.compress(body))]))
    return {"rows": rows, "gzip_levels": levels, "gzip_sizes": [_measure_size(characters) for characters in CHARACTERS]}


if __name__ == "__main__":
    # Exporters of both sides ignore the caller's environment.
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "OTEL_"))]:
        del os.environ[variable]
    result = measure()
    print(HEADING, format_rows("export_path", result), json.dumps(result), sep="\n")
