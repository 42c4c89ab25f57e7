"""CPU of a whole export, from spans to an answer: `MLflowSpanExporter.export` beside the stock exporter's.

To a trivial server in a process of its own; the process time of this one counts, with the threads that it has. Also
what gzip costs and saves by level, and from which size on it pays.
"""

from __future__ import annotations

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
from mlflow_otlp_exporter._delivery import compressed
from mlflow_otlp_exporter._encoded_span import assemble
from mlflow_otlp_exporter._encoder import Encoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import processes, workloads
from benchmarks.rows import HEADING, row, shown

BATCH = 512
ROUNDS = 5
LEVELS = (1, 3, 4, 6, 9)
CHARACTERS = (0, 256, 512, 768, 1024, 1536, 2048, 4096, 8192, 16_384)
# What a segment of TCP holds in an Ethernet frame; the first one holds a request's head of some 300 bytes too.
_PACKET = 1448
_FIRST_PACKET = _PACKET - 300


def _microseconds(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> float:
    begin = time.process_time()
    answer = exporter.export(spans)
    used = time.process_time() - begin
    if answer is not SpanExportResult.SUCCESS:
        raise RuntimeError("the trivial server did not take the spans")
    return used / len(spans) * 1e6


def _exports(address: str) -> list[dict[str, Any]]:
    rows = []
    for name in ("small", "LLM"):
        spans = workloads.ended(workloads.KINDS[name], BATCH)
        for compression in (Compression.NoCompression, Compression.Gzip):
            ours = MLflowSpanExporter(f"{address}/v1/traces", experiment_id="0", compression=compression)
            theirs = OTLPSpanExporter(f"{address}/v1/traces", compression=compression)
            _microseconds(ours, spans[:8])
            _microseconds(theirs, spans[:8])
            pairs = [(_microseconds(ours, spans), _microseconds(theirs, spans)) for _ in range(ROUNDS)]
            first, second = zip(*pairs, strict=True)
            said = "gzip" if compression is Compression.Gzip else "plain"
            rows.append(row(f"{BATCH} {name} spans, {said}", "us/span", first, second, best=True))
            ours.shutdown()
            theirs.shutdown()  # type: ignore[no-untyped-call]
    return rows


def _best(work: Callable[[], object], repeat: int = 7) -> float:
    """Milliseconds of the fastest run."""
    times = []
    for _ in range(repeat):
        begin = time.thread_time()
        work()
        times.append(time.thread_time() - begin)
    return min(times) * 1000


def _level(body: bytes, level: int) -> dict[str, float]:
    packed = gzip.compress(body, level, mtime=0)
    return {
        "level": level,
        "plain": len(body),
        "bytes": len(packed),
        "share": len(packed) / len(body),
        "ms": _best(lambda: gzip.compress(body, level, mtime=0)),
        "unpack_ms": _best(lambda: gzip.decompress(packed)),
    }


def _body(kind: Callable[[random.Random], dict[str, workloads.Value]], count: int) -> bytes:
    encoder = Encoder()
    return assemble([encoder.encode(span) for span in workloads.ended(kind, count)])


def _conversation() -> Callable[[random.Random], dict[str, workloads.Value]]:
    """LLM spans of conversations, each of which has all messages of the one before, and one more."""
    history: list[str] = []

    def attributes(source: random.Random) -> dict[str, workloads.Value]:
        if len(history) == 15:
            history.clear()
        history.append(workloads.text(source, 900))
        found: dict[str, workloads.Value] = {"openinference.span.kind": "LLM", "input.value": history[-1]}
        for number, message in enumerate(history):
            found[f"llm.input_messages.{number}.message.role"] = "user" if number % 2 else "assistant"
            found[f"llm.input_messages.{number}.message.content"] = message
        return found

    return attributes


def _packets(size: int) -> int:
    return 1 + max(0, -(-(size - _FIRST_PACKET) // _PACKET))


def _size(characters: int) -> dict[str, float]:
    """What compressing costs and saves for a request of one span with a text of so many characters."""
    body = _body(
        lambda source: {"openinference.span.kind": "LLM", "input.value": workloads.text(source, characters)}, 1
    )
    packed = compressed(body, "gzip")
    microseconds = _best(lambda: [compressed(body, "gzip") for _ in range(50)]) / 50 * 1000
    return {
        "plain": len(body),
        "bytes": len(packed),
        "us": microseconds,
        "packets": _packets(len(body)),
        "packets_packed": _packets(len(packed)),
        # On a line slower than this, sending the saved bytes would take longer than compressing.
        "pays_below_mbit_s": max(0.0, (len(body) - len(packed)) * 8 / microseconds),
    }


def measure() -> dict[str, Any]:
    """Microseconds a span, and the tables of gzip."""
    with processes.sink() as address:
        rows = _exports(address)
    kinds = {"small": workloads.small, "LLM": workloads.llm, "conversation's": _conversation()}
    bodies = {name: _body(kind, 100) for name, kind in kinds.items()}
    levels = {name: [_level(body, level) for level in LEVELS] for name, body in bodies.items()}
    for name, body in bodies.items():
        # Upstream leaves the level at gzip's default, 9.
        ours, theirs = _best(lambda: compressed(body, "gzip")), _best(lambda: gzip.compress(body))  # noqa: B023
        what = f"gzip of 100 {name} spans"
        rows.append(row(f"{what}: CPU", "ms", [ours], [theirs]))
        rows.append(row(f"{what}: bytes", "B", [len(compressed(body, "gzip"))], [len(gzip.compress(body))]))
    return {"rows": rows, "gzip_levels": levels, "gzip_sizes": [_size(characters) for characters in CHARACTERS]}


if __name__ == "__main__":
    # The exporters of both sides are made without what the environment says.
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "OTEL_"))]:
        del os.environ[variable]
    result = measure()
    print(HEADING, shown("export_path", result), json.dumps(result), sep="\n")
