"""The SDK's metrics about an exporter, under upstream's names, as this pipeline knows them.

By the metrics API alone: versions of OpenTelemetry that have no such metrics of their own get them, too.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.util.types import AttributeValue

from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome

_ENABLED = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_PORTS = {"http": 80, "https": 443}
_numbers = itertools.count()

Settled = Callable[[int, int, "ExportOutcome | None"], None]


class ExporterMetrics:
    """Spans that were exported, spans in flight, and how long a batch took.

    Args:
        provider: Where the instruments are made.
        url: The OTLP endpoint.
        clock: Monotonic seconds.
    """

    def __init__(self, provider: MeterProvider, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        parts = urlsplit(url)
        self._attributes: dict[str, AttributeValue] = {
            "otel.component.type": "otlp_http_span_exporter",
            # Not upstream's name, whose numbers its own exporters in this process have taken.
            "otel.component.name": f"mlflow_span_exporter/{next(_numbers)}",
            "server.address": parts.hostname or "",
            "server.port": parts.port or _PORTS.get(parts.scheme, 0),
        }
        meter = provider.get_meter("opentelemetry-sdk")
        # Units and descriptions are upstream's: other ones would make other instruments.
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
            "otel.sdk.exporter.operation.duration",
            "s",
            "The duration of exporting a batch of telemetry records.",
        )

    def started(self, spans: int) -> Settled:
        """Counts a batch that is to be sent.

        Args:
            spans: How many spans it has.

        Returns:
            What is to be called with the spans that were delivered and refused, and with the outcome behind that; None
            if they were given up at the end.
        """
        began, left, failed = self._clock(), spans, dict[str, AttributeValue]()
        self._add_inflight(spans)

        def settled(delivered: int, refused: int, outcome: ExportOutcome | None) -> None:
            nonlocal left
            left -= delivered + refused
            self._add_inflight(-delivered - refused)
            if delivered:
                self._add_exported(delivered, {})
            if refused:
                failed.update(_failed(outcome))
                self._add_exported(refused, {"error.type": failed["error.type"]})
            # A broken meter provider must cost no span.
            with suppress(Exception):
                if left <= 0:
                    self._duration.record(self._clock() - began, {**self._attributes, **failed})

        return settled

    def lost(self, spans: int, why: str) -> None:
        """Counts spans that never were in a batch.

        Args:
            spans: How many.
            why: In a word.
        """
        self._add_exported(spans, {"error.type": why})

    def _add_inflight(self, spans: int) -> None:
        with suppress(Exception):
            self._inflight.add(spans, self._attributes)

    def _add_exported(self, spans: int, further: dict[str, AttributeValue]) -> None:
        with suppress(Exception):
            self._exported.add(spans, {**self._attributes, **further})


def _failed(outcome: ExportOutcome | None) -> dict[str, AttributeValue]:
    if outcome is None:
        return {"error.type": "shutdown"}
    if outcome.verdict is Disposition.PARTLY:
        return {"error.type": "partial_success"}
    if outcome.status is None:
        return {"error.type": "no_answer"}
    return {"error.type": str(outcome.status), "http.response.status_code": outcome.status}


def exporter_metrics(provider: MeterProvider | None, url: str) -> ExporterMetrics | None:
    """Metrics for an exporter: into a provider that was given, or into the app's if the environment wants them.

    Args:
        provider: What was given as `meter_provider=`.
        url: The OTLP endpoint.
    """
    if provider is None and os.environ.get(_ENABLED, "").strip().lower() != "true":
        return None
    return ExporterMetrics(provider or get_meter_provider(), url)
