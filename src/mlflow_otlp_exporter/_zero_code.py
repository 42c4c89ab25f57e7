"""The exporter behind `OTEL_TRACES_EXPORTER=mlflow`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._errors import ConfigurationError
from mlflow_otlp_exporter._exporter import MLflowSpanExporter
from mlflow_otlp_exporter._report import logger
from mlflow_otlp_exporter._settings import resolve_buffer
from mlflow_otlp_exporter._worker import TraceWorker


class ZeroCodeSpanExporter(MLflowSpanExporter):
    """`MLflowSpanExporter` with the defaults of `configure()`, whole traces, and a constructor that never raises.

    OpenTelemetry's auto-instrumentation puts its own batch processor before every exporter, which cuts traces at 512
    spans or 5 s. What it gives goes into the same buffer as that of `MLflowSpanProcessor` and leaves it trace by trace;
    as nobody tells of starts here, a trace is whole when its root has come.

    `opentelemetry-instrument` switches off all tracing, other exporters included, when a constructor raises. A wrong
    setting is logged as an error instead, and this exporter alone stays off.

    Args:
        **arguments: Those of `MLflowSpanExporter`, as a declarative configuration file gives them.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {"create_experiment": True, "compact": True}
    _worker: TraceWorker | None = None

    def __init__(self, **arguments: Any) -> None:
        try:
            buffer = resolve_buffer({})
            super().__init__(**arguments)
            self._worker = TraceWorker(self, buffer, sees_starts=False)
        except (ConfigurationError, TypeError) as error:
            # TypeError: an argument that does not exist, from a configuration file.
            logger.error("no spans will be exported to MLflow: %s", error)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Takes spans in; they are sent in the background.

        Returns:
            `FAILURE` if some are refused, as the buffer is full or the exporter is off.
        """
        if self._worker is None:
            return super().export(spans)
        taken = [self._worker.ended(span) for span in spans]
        return SpanExportResult.SUCCESS if all(taken) else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Sends all that was taken in, and waits for it.

        Args:
            timeout_millis: How long to wait at most.

        Returns:
            True if all of it was delivered within the time.
        """
        return self._worker.flush(timeout_millis / 1000) if self._worker else True

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Sends all that was taken in, then shuts down.

        Args:
            timeout_millis: How long to wait at most, all in all.
        """
        if self._worker is None:
            super().shutdown(timeout_millis)
        else:
            self._worker.close(timeout_millis / 1000, super().shutdown)
