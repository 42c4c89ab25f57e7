"""The own metrics of a pipeline, for applications and the gateway alike; docs/monitoring.md lists them."""

import time
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Protocol

from opentelemetry.metrics import MeterProvider, get_meter_provider

from mlflow_otlp_exporter._internal.common.exporter_metrics import ExporterMetrics, Instrument
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.stats import Stats

# Destinations with an attribute of their own; further ones are counted as `other`.
MAX_DESTINATIONS = 20

_Values = Iterator[tuple[float, Mapping[str, str]]]


class ObservedPipeline(Protocol):
    """What the instruments read of a pipeline."""

    problem_log: ProblemLog
    # Of packages that this one does not import.
    retry_sender: Any
    trace_buffer: Any
    persistent_queue: Any

    def stats(self) -> Stats:
        """Return the counters."""


def _read_drops(pipeline: ObservedPipeline) -> _Values:
    for reason, count in pipeline.problem_log.stats.drop_reasons().items():
        yield count, {"reason": reason}


def _read_failing(pipeline: ObservedPipeline) -> _Values:
    failing: dict[tuple[str, str], int] = {}
    for destination in list(pipeline.retry_sender.backoff.failure_counts):
        outcome = pipeline.retry_sender.backoff.last_failure(destination)
        name = destination.label if len(failing) < MAX_DESTINATIONS else "other"
        key = name, (outcome and outcome.error_type) or ""
        failing[key] = failing.get(key, 0) + 1
    for (name, error_type), count in failing.items():
        yield count, {"destination": name, "error.type": error_type}


def _counter(name: str, field: str, unit: str, description: str) -> Instrument:
    return Instrument(name, unit, description, lambda pipeline: [(getattr(pipeline.stats(), field), {})], True)


def _queue(name: str, field: str, unit: str, description: str) -> Instrument:
    def read(pipeline: ObservedPipeline) -> _Values:
        yield getattr(pipeline, f"in_flight_{field}") + getattr(pipeline.trace_buffer, field, 0), {}

    return Instrument(f"mlflow_otlp.queue.{name}", unit, description, read)


def _spool(name: str, unit: str, description: str, read_totals: Callable[[Any], float]) -> Instrument:
    def read(pipeline: ObservedPipeline) -> _Values:
        if pipeline.persistent_queue is not None:
            yield read_totals(pipeline.persistent_queue.storage.listed_totals), {}

    return Instrument(f"mlflow_otlp.spool.{name}", unit, description, read)


def _age(totals: Any) -> float:
    return max(0.0, time.time() - totals.oldest_at) if totals.oldest_at else 0.0


INSTRUMENTS = (
    _counter("mlflow_otlp.span.delivered", "delivered", "{span}", "Spans that the server accepted."),
    Instrument("mlflow_otlp.span.dropped", "{span}", "Spans that were dropped, by reason.", _read_drops, True),
    _counter("mlflow_otlp.span.spooled", "spooled", "{span}", "Spans that were written to the spool."),
    _counter("mlflow_otlp.span.filtered", "filtered", "{span}", "Spans of traces that the trace filter left out."),
    _counter("mlflow_otlp.request.sent", "requests", "{request}", "Requests to the OTLP endpoint."),
    _counter("mlflow_otlp.request.retried", "retries", "{request}", "Those that repeated an earlier one."),
    _queue("spans", "span_count", "{span}", "Ended spans in memory."),
    _queue("size", "byte_count", "By", "Estimated size of the spans in memory."),
    _spool("spans", "{span}", "Spans in the spool.", attrgetter("span_count")),
    _spool("size", "By", "Size of the spool.", attrgetter("size_bytes")),
    _spool("age", "s", "Age of the oldest request in the spool; 0 without one.", _age),
    Instrument("mlflow_otlp.destination.failing", "{destination}", "Destinations that fail now.", _read_failing),
)


def create_metrics(provider: MeterProvider | None, url: str) -> ExporterMetrics:
    """Create the metrics of an exporter for the provider, or for the global one."""
    return ExporterMetrics(provider or get_meter_provider(), url, INSTRUMENTS)
