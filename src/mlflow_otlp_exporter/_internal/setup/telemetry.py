"""`Telemetry`: what `configure()` returns, a handle on the running pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.processor import MLflowSpanProcessor
from mlflow_otlp_exporter._internal.processing.worker import TraceWorker

# Stands for the trace where there is none, while arguments are looked at.
_NO_TRACE = "tr-" + "f" * 32
FLUSH_SECONDS, SHUTDOWN_SECONDS = 30.0, 10.0


@dataclass(frozen=True)
class FlushResult:
    """What became of the spans that were settled since the last flush; true if all that ended is safe.

    Attributes:
        delivered: Spans that the server accepted.
        spooled: Spans that are safe on disk now, to be sent when the server takes them.
        dropped: Spans that were dropped. The log says why.
        pending: Spans that have ended and have no outcome yet, as the time was up.
    """

    delivered: int = 0
    spooled: int = 0
    dropped: int = 0
    pending: int = 0

    def __bool__(self) -> bool:
        return not (self.dropped or self.pending)


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
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
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
        return FlushResult(now.delivered - before.delivered, spooled, now.dropped - before.dropped, pending)

    def stats(self) -> Stats:
        """Counts of spans and requests since start."""
        return self.exporter.stats()

    def log_feedback(
        self,
        trace_id: int | str | None,
        name: str,
        value: Any,
        *,
        rationale: str | None = None,
        source: str | None = None,
        source_type: str = "HUMAN",
        metadata: Mapping[str, Any] | None = None,
        span_id: int | str | None = None,
        workspace: str | None = None,
    ) -> str | None:
        """Sends feedback on a trace to MLflow, as the MLflow SDK's `log_feedback` does (docs/feedback.md).

        Waits for nothing: it is sent in the background, repeated while the server is away or has no such trace yet, and
        kept on disk meanwhile where spans are (`spool`).

        Args:
            trace_id: OpenTelemetry's trace id, as a number or in hexadecimal, or MLflow's (`tr-...`); None for the
                current span's trace.
            name: What is judged, such as `helpful`; 250 characters at most.
            value: The judgement: a truth value, a number, a text, a list or a mapping.
            rationale: Why.
            source: Who says so, such as a user's name.
            source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
            metadata: More, by name.
            span_id: The span that is judged, as a number or in hexadecimal; None for the trace.
            workspace: The trace's workspace; None for the one that its spans went to from here, else the default.

        Returns:
            The id of the assessment; None if it cannot be sent, which the log says.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        return self._assess(
            "feedback",
            trace_id,
            name,
            value,
            rationale=rationale,
            source=source,
            source_type=source_type,
            metadata=metadata,
            span_id=span_id,
            workspace=workspace,
        )

    def log_expectation(
        self,
        trace_id: int | str | None,
        name: str,
        value: Any,
        *,
        source: str | None = None,
        source_type: str = "HUMAN",
        metadata: Mapping[str, Any] | None = None,
        span_id: int | str | None = None,
        workspace: str | None = None,
    ) -> str | None:
        """Sends what a trace should have answered to MLflow, for scorers; see `log_feedback`.

        Args:
            trace_id: The trace; None for the current span's.
            name: What is expected, such as `expected_response`.
            value: What it should have been.
            source: Who says so.
            source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
            metadata: More, by name.
            span_id: The span; None for the trace.
            workspace: The trace's workspace.

        Returns:
            The id of the assessment; None if it cannot be sent, which the log says.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        return self._assess(
            "expectation",
            trace_id,
            name,
            value,
            source=source,
            source_type=source_type,
            metadata=metadata,
            span_id=span_id,
            workspace=workspace,
        )

    def _assess(
        self, kind: str, trace_id: int | str | None, name: str, value: Any, *, workspace: str | None, **more: Any
    ) -> str | None:
        # Here, as few apps do so, and importing this library must stay cheap.
        from mlflow_otlp_exporter._internal.mlflow_api.assessments import build_assessment, mlflow_trace_id

        current = trace.get_current_span().get_span_context()
        given = trace_id if trace_id is not None else current.trace_id or _NO_TRACE
        found = mlflow_trace_id(given)
        if workspace is None:
            workspace = self.exporter.workspace_of(int(found[3:], 16), self.tracer_provider.resource.attributes)
        try:
            made = build_assessment(kind, found, name, value, workspace=workspace, mask=self.exporter.mask, **more)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing else of this library raises into the app
            self.exporter.assess(None, f"it could not be made ({type(error).__name__})")
            return None
        if given is _NO_TRACE:
            self.exporter.assess(None, "no trace_id is given, and no span is current")
            return None
        return made.id if self.exporter.assess(made) else None

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
