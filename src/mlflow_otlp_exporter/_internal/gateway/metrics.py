"""What `/metrics` shows, in Prometheus' format: counters of intake and pipeline, read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlflow_otlp_exporter._internal.delivery.exporter_metrics import ExporterMetrics, OnCounted
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.gateway.intake import Intake
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome

_PREFIX = "mlflow_otlp_gateway_"
# The destinations with most spans; the others are counted as `other`.
_MAX_DESTINATIONS = 100
_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class RequestMetrics(ExporterMetrics):
    """Durations of requests to MLflow, and drops by reason, as the pipeline reports them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.dropped: Counter[str] = Counter()
        self.duration_seconds = Histogram(
            f"{_PREFIX}export_request_duration_seconds",
            "Duration of requests to MLflow, by HTTP status.",
            ["status"],
            buckets=_BUCKETS_SECONDS,
            registry=self.registry,
        )

    def record_start(self, span_count: int) -> OnCounted:
        """Count what is dropped of a batch."""

        def on_counted(_delivered_count: int, dropped_count: int, outcome: ExportOutcome | None) -> None:
            if dropped_count:
                self.dropped["shutdown" if outcome is None else f"status {outcome.status}"] += dropped_count

        return on_counted

    def record_request(self, outcome: ExportOutcome, seconds: float) -> None:
        is_success = outcome.disposition in (Disposition.SUCCESS, Disposition.PARTIAL_SUCCESS)
        self.duration_seconds.labels("200" if is_success else str(outcome.status or "none")).observe(seconds)

    def record_exported(self, span_count: int, error_type: object = "") -> None:
        if error_type:
            self.dropped[str(error_type)] += span_count


class GatewayCollector(Collector):
    """Reads the counters of intake and pipeline."""

    def __init__(self, intake: Intake, pipeline: Pipeline, metrics: RequestMetrics) -> None:
        self._intake, self._pipeline, self._metrics = intake, pipeline, metrics
        self.answers: Counter[tuple[str, str]] = Counter()  # by protocol and status
        metrics.registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._metrics.registry)

    def collect(self) -> Iterator[Metric]:
        intake, pipeline, stats = self._intake, self._pipeline, self._pipeline.stats()
        answers = CounterMetricFamily(
            f"{_PREFIX}requests", "Requests, by protocol and status.", labels=["protocol", "status"]
        )
        for labels, count in list(self.answers.items()):
            answers.add_metric(labels, count)
        yield answers
        yield _count_by(
            "received_spans", "Spans taken, by destination.", "destination", _limit_destinations(intake.received)
        )
        yield _count_by("rejected_spans", "Spans of answered requests that were not taken.", "reason", intake.rejected)
        yield _count_by("dropped_spans", "Spans taken and dropped later.", "reason", self._metrics.dropped)
        for name, description, value in (
            ("duplicate_spans", "Spans that clients sent again.", intake.duplicate_count),
            ("filtered_spans", "Spans of traces that the trace filter left out.", stats.filtered),
            ("delivered_spans", "Spans that MLflow accepted.", stats.delivered),
            ("spooled_spans", "Spans that were written to the spool.", stats.spooled),
            ("export_retries", "Requests to MLflow that repeated an earlier one.", stats.retries),
        ):
            yield CounterMetricFamily(_PREFIX + name, description, value)
        queue = pipeline.persistent_queue
        totals = queue.storage.totals() if queue is not None else None
        for name, description, value in (
            ("queued_spans", "Spans in memory.", intake.queued_span_count),
            ("queued_bytes", "Estimated bytes of the spans in memory.", intake.queued_byte_count),
            ("spool_spans", "Spans in the spool.", totals.span_count if totals else 0),
            ("spool_bytes", "Bytes of the spool.", totals.size_bytes if totals else 0),
            ("ready", "Whether requests are taken.", int(not intake.unavailable_reason)),
        ):
            yield GaugeMetricFamily(_PREFIX + name, description, value)


def _limit_destinations(counts: Counter[str]) -> Mapping[str, int]:
    counts = counts.copy()  # receivers add to it
    largest = dict(counts.most_common(_MAX_DESTINATIONS))
    if other_count := counts.total() - sum(largest.values()):
        largest["other"] = other_count
    return largest


def _count_by(name: str, description: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(_PREFIX + name, description, labels=[label])
    for value, count in list(counts.items()):
        family.add_metric([value], count)
    return family
