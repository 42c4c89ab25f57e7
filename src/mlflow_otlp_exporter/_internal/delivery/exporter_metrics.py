"""The SDK's exporter metrics under upstream's names, for every version of OpenTelemetry.

Only the metrics API is used, so that versions without exporter metrics of their own have them, too.
"""

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.util.types import AttributeValue

from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome

_ENABLED = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_PORTS = {"http": 80, "https": 443}
_numbers = itertools.count()

OnCounted = Callable[[int, int, "ExportOutcome | None"], None]


class ExporterMetrics:
    """Counters of exported spans and of spans in flight, and the durations of requests."""

    def __init__(self, provider: MeterProvider, url: str) -> None:
        parts = urlsplit(url)
        self._attributes: dict[str, AttributeValue] = {
            "otel.component.type": "otlp_http_span_exporter",
            # Not upstream's name: its own exporters in this process use the numbers.
            "otel.component.name": f"mlflow_span_exporter/{next(_numbers)}",
            "server.address": parts.hostname or "",
            "server.port": parts.port or _PORTS.get(parts.scheme, 0),
        }
        meter = provider.get_meter("opentelemetry-sdk")
        # Units and descriptions are upstream's: different ones would create different instruments.
        self._exported = meter.create_counter(
            "otel.sdk.exporter.span.exported",
            "{span}",
            "The number of spans for which the export has finished, either successful or failed.",
        )
        self._inflight = meter.create_up_down_counter(
            "otel.sdk.exporter.span.inflight",
            "{span}",
            "The number of spans which were passed to the exporter, but that have not been exported yet "
            "(neither successful, nor failed).",
        )
        self._duration = meter.create_histogram(
            "otel.sdk.exporter.operation.duration", "s", "The duration of exporting a batch of telemetry records."
        )

    def record_start(self, span_count: int) -> OnCounted:
        """Count a batch in flight; call the result with delivered and dropped spans and their outcome."""
        self._add_inflight(span_count)

        def on_counted(delivered_count: int, dropped_count: int, outcome: ExportOutcome | None) -> None:
            self._add_inflight(-delivered_count - dropped_count)
            if delivered_count:
                self.record_exported(delivered_count)
            if dropped_count:
                self.record_exported(dropped_count, _error_attributes(outcome)["error.type"])

        return on_counted

    def record_request(self, outcome: ExportOutcome, seconds: float) -> None:
        """Record the duration of one attempt: with an outage of hours, a batch has none before the outage ends."""
        attributes = {} if outcome.disposition is Disposition.SUCCESS else _error_attributes(outcome)
        with suppress(Exception):
            self._duration.record(seconds, {**self._attributes, **attributes})

    def _add_inflight(self, span_count: int) -> None:
        with suppress(Exception):  # a broken meter provider must not affect spans
            self._inflight.add(span_count, self._attributes)

    def record_exported(self, span_count: int, error_type: AttributeValue = "") -> None:
        with suppress(Exception):
            attributes = {"error.type": error_type} if error_type else {}
            self._exported.add(span_count, {**self._attributes, **attributes})


def _error_attributes(outcome: ExportOutcome | None) -> dict[str, AttributeValue]:
    if outcome is None:
        return {"error.type": "shutdown"}
    if outcome.disposition is Disposition.PARTIAL_SUCCESS:
        return {"error.type": "partial_success"}
    if outcome.status is None:
        return {"error.type": "no_answer"}
    return {"error.type": str(outcome.status), "http.response.status_code": outcome.status}


def create_metrics(provider: MeterProvider | None, url: str) -> ExporterMetrics | None:
    """Create the metrics in the given provider or the global one, if the environment enables them."""
    if os.environ.get(_ENABLED, "").strip().lower() != "true":
        return None
    return ExporterMetrics(provider or get_meter_provider(), url)
