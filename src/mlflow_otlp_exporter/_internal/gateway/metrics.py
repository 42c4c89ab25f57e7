"""What `/metrics` shows: OpenTelemetry metrics of intake and pipeline, collected when they are asked for.

The pipeline reports the same metrics as in an application, here to a meter provider of the gateway's own. Their names
in Prometheus' format are those of OpenTelemetry's Prometheus exporters: the same alerts and dashboards fit both.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.exporter_metrics import DURATION, Instrument, observe
from mlflow_otlp_exporter._internal.common.problem_log import logger, pluralize
from mlflow_otlp_exporter._internal.gateway.intake import Intake
from mlflow_otlp_exporter._internal.gateway.protocol import Answer, AnswerKind
from mlflow_otlp_exporter._internal.model.destination import Destination

# The destinations with most spans, and the first ones that requests were sent to; the others are counted as `other`.
_MAX_DESTINATIONS, _OTHER = 100, "other"
# OpenTelemetry's default buckets are those for milliseconds.
_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# A client with a wrong token sends again and again.
_REJECTION_LOG_SECONDS = 60.0
_CODES = {
    AnswerKind.UNAUTHENTICATED: MessageCode.GATEWAY_UNAUTHENTICATED,
    AnswerKind.DENIED: MessageCode.GATEWAY_DENIED,
    AnswerKind.UNAVAILABLE: MessageCode.GATEWAY_UNAVAILABLE,
}
_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


class GatewayMetrics(Collector):
    """The meter provider of the gateway, and the counters of its answers."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()  # by protocol and status
        self._reader = otel.InMemoryMetricReader()
        view = View(instrument_name=DURATION, aggregation=ExplicitBucketHistogramAggregation(_BUCKETS_SECONDS))
        self.provider = MeterProvider([self._reader], Resource({}), shutdown_on_exit=False, views=[view])
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._named_destinations: set[str] = set()
        self._unlogged: Counter[AnswerKind] = Counter()  # rejected requests; accepted ones with denied spans
        self._logged_at: dict[AnswerKind, float] = {}

    def observe(self, intake: Intake) -> None:
        observe(self.provider, _INTAKE, intake, {})
        observe(self.provider, _ANSWERS, self, {})

    def record_answer(self, answer: Answer, protocol: str, status: str, client: str) -> None:
        """Count an answer, and log rejected requests and denied spans, each at most once a minute."""
        self.answers[protocol, status] += 1
        code = MessageCode.GATEWAY_DENIED if answer.has_denied else _CODES.get(answer.kind)
        if code is None:
            return
        self._unlogged[answer.kind] += 1
        now = time.monotonic()
        is_due = now - self._logged_at.get(answer.kind, -_REJECTION_LOG_SECONDS) >= _REJECTION_LOG_SECONDS
        if is_due and (count := self._unlogged.pop(answer.kind, 0)):  # 0: another thread has just logged them
            self._logged_at[answer.kind] = now
            requests = pluralize(count, "request")
            if answer.has_denied:
                message = "Dropped spans of %s over %s, the last one from %s: %s [%s]"
                logger.warning(message, requests, protocol, client, answer.message, code)
            else:
                message = "Rejected %s with %s over %s, the last one from %s: %s [%s]"
                logger.warning(message, requests, status, protocol, client, answer.message, code)

    def name_destination(self, destination: Destination) -> str:
        """Return the name of a destination in the durations of requests, whose series stay until the end."""
        name = destination.label
        if name not in self._named_destinations and len(self._named_destinations) >= _MAX_DESTINATIONS:
            return _OTHER
        self._named_destinations.add(name)
        return name

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                yield from map(_to_prometheus, scope.metrics)


def _to_prometheus(metric: otel.Metric) -> Metric:
    name = metric.name.replace(".", "_") + _SUFFIXES.get(metric.unit or "", "")
    data = metric.data
    kind = "counter" if isinstance(data, otel.Sum) and data.is_monotonic else "gauge"
    if isinstance(data, otel.Histogram):
        return _to_histogram(name, metric, data)
    family = Metric(name, metric.description or "", kind)
    for point in data.data_points:
        if isinstance(point, otel.NumberDataPoint):
            family.add_sample(f"{name}_total" if kind == "counter" else name, _labels(point), point.value)
    return family


def _to_histogram(name: str, metric: otel.Metric, data: otel.Histogram) -> Metric:
    names = sorted({label for point in data.data_points for label in _labels(point)})
    family = HistogramMetricFamily(name, metric.description or "", labels=names)
    for point in data.data_points:
        labels, count, buckets = _labels(point), 0, []
        for bound, bucket_count in zip((*point.explicit_bounds, float("inf")), point.bucket_counts, strict=True):
            count += bucket_count
            buckets.append((f"{bound:g}".replace("inf", "+Inf"), count))
        family.add_metric([labels.get(label, "") for label in names], buckets, point.sum)
    return family


def _labels(point: otel.NumberDataPoint | otel.HistogramDataPoint) -> dict[str, str]:
    return {re.sub(r"\W", "_", key): str(value) for key, value in (point.attributes or {}).items()}


def _limit_destinations(counts: Counter[str]) -> Mapping[str, int]:
    counts = counts.copy()  # receivers add to it
    largest = dict(counts.most_common(_MAX_DESTINATIONS))
    if other_count := counts.total() - sum(largest.values()):
        largest[_OTHER] = other_count
    return largest


def _by(attribute: str, counts: Mapping[str, int]) -> list[tuple[float, dict[str, str]]]:
    return [(count, {attribute: value}) for value, count in list(counts.items())]


def _read_answers(metrics: GatewayMetrics) -> Iterator[tuple[float, dict[str, str]]]:
    for (protocol, status), count in list(metrics.answers.items()):
        yield count, {"protocol": protocol, "status": status}


_ANSWERS = (
    Instrument(
        "mlflow_otlp.gateway.request.answered", "{request}", "Requests, by protocol and status.", _read_answers, True
    ),
)
_INTAKE = (
    Instrument(
        "mlflow_otlp.gateway.span.received",
        "{span}",
        "Spans taken, by destination.",
        lambda intake: _by("destination", _limit_destinations(intake.counts.received)),
        True,
    ),
    Instrument(
        "mlflow_otlp.gateway.span.rejected",
        "{span}",
        "Spans of answered requests that were not taken, by reason.",
        lambda intake: _by("reason", intake.counts.rejected),
        True,
    ),
    Instrument(
        "mlflow_otlp.gateway.span.duplicate",
        "{span}",
        "Spans that clients sent again.",
        lambda intake: [(intake.counts.duplicate_count, {})],
        True,
    ),
    Instrument(
        "mlflow_otlp.gateway.ready",
        "",
        "Whether requests are taken.",
        lambda intake: [(int(not intake.unavailable_reason), {})],
    ),
)
