"""`Telemetry`: what `configure()` returns, a handle on the running pipeline."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._exporter import MLflowSpanExporter
from mlflow_otlp_exporter._fork import after_fork_in_child
from mlflow_otlp_exporter._processor import MLflowSpanProcessor
from mlflow_otlp_exporter._report import Stats
from mlflow_otlp_exporter._worker import TraceWorker

FLUSH_SECONDS, SHUTDOWN_SECONDS = 30.0, 10.0


@dataclass(frozen=True)
class FlushResult:
    """What became of the spans that were settled since the last flush; true if all that ended is safe.

    Attributes:
        delivered: Spans that the server accepted.
        spooled: Spans that are safe on disk now, to be sent when the server takes them.
        refused: Spans that were given up; the log says why.
        pending: Spans that have ended and have no outcome yet, as the time was up.
    """

    delivered: int = 0
    spooled: int = 0
    refused: int = 0
    pending: int = 0

    def __bool__(self) -> bool:
        return not (self.refused or self.pending)


class Telemetry:
    """A running pipeline from the app's spans to MLflow.

    Attributes:
        tracer_provider: The provider whose spans are exported.
        exporter: The exporter.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        exporter: MLflowSpanExporter,
        processor: MLflowSpanProcessor,
        worker: TraceWorker,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.exporter = exporter
        self._processor, self._worker = processor, worker
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        """Also in a forked child, whose counters begin anew."""
        self._lock = threading.Lock()
        self._told = Stats()

    @property
    def closed(self) -> bool:
        """Whether it takes no spans in any more: after `shutdown`, its own or the provider's."""
        return self._worker.closed

    def flush(self, timeout: float = FLUSH_SECONDS) -> FlushResult:
        """Sends what has ended, traces in progress too, and waits for it.

        Args:
            timeout: Seconds to wait at most.
        """
        deadline = time.monotonic() + timeout
        delivered = self._worker.flush(timeout)
        self.exporter.told(deadline - time.monotonic())
        return self._settled(all_delivered=delivered)

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> FlushResult:
        """Flushes, then stops exporting. Spans that end later are not exported.

        Args:
            timeout: Seconds to wait at most.
        """
        self._processor.detach(self._worker)
        self._worker.close(timeout, self.exporter.shutdown)
        return self._settled(all_delivered=True)

    def retire(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """Flushes and takes no more spans in, but leaves the exporter as it is: another pipeline has it.

        Args:
            timeout: Seconds to wait at most.
        """
        self._processor.detach(self._worker)
        self._worker.close(timeout, lambda _: None)

    def _settled(self, *, all_delivered: bool) -> FlushResult:
        with self._lock:
            now, before = self.stats(), self._told
            self._told = now
        pending = 0 if all_delivered else self._worker.pending()
        spooled = self.exporter.drained(0.0)
        return FlushResult(now.delivered - before.delivered, spooled, now.refused - before.refused, pending)

    def stats(self) -> Stats:
        """Counts of spans and requests since start."""
        return self.exporter.stats()

    def trace_url(self, trace_id: int | None = None) -> str | None:
        """The address of a trace in the MLflow console.

        Args:
            trace_id: OpenTelemetry's trace id; None for the current span's trace, else that of the span that started
                last.

        Returns:
            None if there was no trace, or if no MLflow server can be asked for the experiment.
        """
        if trace_id is None:
            current = trace.get_current_span().get_span_context()
            trace_id = current.trace_id if current.is_valid else self._worker.last_trace_id
        if not trace_id:
            return None
        return self.exporter.trace_url(trace_id, self.tracer_provider.resource.attributes)
