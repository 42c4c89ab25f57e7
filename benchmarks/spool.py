"""Measure the cost of durability: writing a request to disk and reading it again, and recording a span in the journal.

Each run is the best of several tries, which other processes on the machine disturb least.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.rows import row
from benchmarks.workloads import KINDS, llm, make_agent_trace, make_spans, small

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage

_RUNS, _TRIES, _REQUESTS, _SPANS = 3, 8, 10, 500
_HERE = Destination(experiment="bench")


def _measure_seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _make_agent_traces() -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    source = random.Random(7)
    for _ in range(3):
        make_agent_trace(provider.get_tracer("bench"), source, lambda _: None, 1.0)
    return list(memory.get_finished_spans())


def _measure_requests(folder: Path, kind: str, spans: Sequence[ReadableSpan]) -> tuple[list[float], list[float]]:
    """Return the milliseconds to write and to read 100 kB, one value per run."""
    encoder = SpanEncoder()
    encoded = [encoder.encode(span) for span in spans]
    share = sum(len(span.body) for span in encoded) / 100_000
    settings = SpoolSettings(spool=True, spool_dir=str(folder))
    written, read = [], []
    for number in range(_RUNS):
        spool = SpoolStorage(settings, f"{kind} {number}", "", ProblemLog())
        spool.append(_HERE, encoded)
        writes, reads = [], []

        def write(spool: SpoolStorage = spool) -> None:
            for _ in range(_REQUESTS):
                assert spool.append(_HERE, encoded)

        def take(spool: SpoolStorage = spool) -> None:
            for entry in spool.entries()[:_REQUESTS]:
                assert spool.checkout(entry) is not None
                spool.remove(entry)

        for _ in range(_TRIES):
            writes.append(_measure_seconds(write) * 1000 / _REQUESTS / share)
            reads.append(_measure_seconds(take) * 1000 / _REQUESTS / share)
        written.append(min(writes))
        read.append(min(reads))
    return written, read


def _measure_journal(folder: Path, kind: str) -> list[float]:
    """Return the microseconds per span in the app's thread, one value per run."""
    spans = make_spans(KINDS[kind], _SPANS)
    times = []
    for _ in range(_RUNS):
        journal = Journal(lambda: folder, ProblemLog())

        def write(record: Callable[[Any], object] = journal.append) -> None:
            for span in spans:
                record(span)

        times.append(min(_measure_seconds(write) for _ in range(_TRIES)) * 1e6 / _SPANS)
        journal.acknowledge([(span.context.trace_id, span.context.span_id) for span in spans if span.context])
        journal.close()
    return times


def measure() -> Mapping[str, Any]:
    """Return the rows of the table. The bounds are guarantees of this project."""
    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        kinds = {
            "agents' traces": _make_agent_traces(),
            "small spans": make_spans(small, 300),
            "random prose": make_spans(llm, 6),
        }
        for kind, spans in kinds.items():
            written, read = _measure_requests(folder, kind, spans)
            # Agents' traces repeat their history and compress faster than random prose, so random prose has no bound.
            bound = None if kind == "random prose" else 1.0
            rows.append(row(f"100 kB of {kind} written", "ms", written, [0.0], ours_bound=bound))
            rows.append(row(f"100 kB of {kind} read and removed", "ms", read, [0.0]))
        for kind in KINDS:
            bound = 25.0 if kind == "small" else None
            times = _measure_journal(folder, kind)
            rows.append(row(f"a {kind} span in the journal", "us", times, [0.0], ours_bound=bound))
    finally:
        shutil.rmtree(folder)
    return {"rows": rows}
