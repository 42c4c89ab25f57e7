"""`Telemetry`: what `configure()` returns, a handle on the running pipeline."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from mlflow_otlp_exporter._exporter import MLflowSpanExporter
from mlflow_otlp_exporter._report import Stats

_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class FlushResult:
    """What became of the spans that were settled since the last flush; true if all of them are safe.

    Attributes:
        delivered: Spans that the server accepted.
        refused: Spans that were given up; the log says why.
    """

    delivered: int = 0
    refused: int = 0

    def __bool__(self) -> bool:
        return not self.refused


class Slot(SpanProcessor):
    """A place on a tracer provider, which lets none be taken away: what stands behind it can be replaced.

    Attributes:
        inner: The processor that spans go to; None for none.
        last: The local root span that began last.
    """

    def __init__(self) -> None:
        self.inner: SpanProcessor | None = None
        self.last: Span | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Notes local roots."""
        inner = self.inner
        if inner is not None:
            if span.parent is None or span.parent.is_remote:
                self.last = span
            inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Hands the span on."""
        if self.inner is not None:
            self.inner.on_end(span)

    def shutdown(self) -> None:
        """Shuts down what stands behind."""
        inner, self.inner = self.inner, None
        if inner is not None:
            inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flushes what stands behind."""
        return self.inner.force_flush(timeout_millis) if self.inner else True


class Telemetry:
    """A running pipeline from the app's spans to MLflow.

    Attributes:
        tracer_provider: The provider whose spans are exported.
        exporter: The exporter.
    """

    def __init__(self, tracer_provider: TracerProvider, exporter: MLflowSpanExporter, slot: Slot) -> None:
        self.tracer_provider = tracer_provider
        self.exporter = exporter
        self._slot = slot
        self._lock = threading.Lock()
        self._told = Stats()
        slot.inner = self._processor = BatchSpanProcessor(exporter)

    def flush(self, timeout: float = _FLUSH_SECONDS) -> FlushResult:
        """Sends what has ended and waits for it.

        Args:
            timeout: Seconds to wait at most.
        """
        if self._slot.inner is self._processor:
            self._processor.force_flush(int(timeout * 1000))
        with self._lock:
            now, before = self.stats(), self._told
            self._told = now
        return FlushResult(now.delivered - before.delivered, now.refused - before.refused)

    def shutdown(self, timeout: float = _FLUSH_SECONDS) -> FlushResult:
        """Flushes, then stops exporting. Spans that end later are not exported.

        Args:
            timeout: Seconds to wait at most.
        """
        result = self.flush(timeout)
        if self._slot.inner is self._processor:
            self._slot.shutdown()
        return result

    def stats(self) -> Stats:
        """Counts of spans and requests since start."""
        return self.exporter.stats()

    def trace_url(self, trace_id: int | None = None) -> str | None:
        """The address of a trace in the MLflow console.

        Args:
            trace_id: OpenTelemetry's trace id; None for the current span's trace, else the one that began last.

        Returns:
            None if there was no trace, or if no MLflow server can be asked for the experiment.
        """
        if trace_id is None:
            current = trace.get_current_span().get_span_context()
            last = self._slot.last
            trace_id = current.trace_id if current.is_valid else last.context.trace_id if last else None
        if trace_id is None:
            return None
        return self.exporter.trace_url(trace_id, self.tracer_provider.resource.attributes)
