"""`Telemetry`, the handle of a running pipeline that `configure()` returns, and `FlushResult`."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError, must_propagate
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.process_end import is_ending
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.common.types import SourceType
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter, pipeline_of
from mlflow_otlp_exporter._internal.processing.processor import MLflowSpanProcessor, detach_worker
from mlflow_otlp_exporter._internal.setup.tracer_provider import CallerSampler, describe_sampler
from mlflow_otlp_exporter._internal.tracing.parents import find_current_span

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.processing.worker import TraceWorker

# A trace id for the check of the other arguments if there is no trace.
_NO_TRACE = "tr-" + "f" * 32
FLUSH_TIMEOUT_SECONDS, SHUTDOWN_TIMEOUT_SECONDS = 30.0, 10.0
_DISPLAY_TIMEOUT_SECONDS = 2.0
_NOTHING_SAMPLED = "No trace was sent: the sampler recorded 0 of %d; sampler: %s [%s]"


class FlushResult(NamedTuple):
    """Outcome of the spans since the last flush; true if no span was dropped and none is pending.

    Attributes:
        delivered: Number of spans that the server accepted.
        spooled: Number of spans on disk, which are sent when the server accepts them.
        dropped: Number of spans that were dropped. The log says why.
        pending: Number of ended spans that had no outcome when the timeout was over.
    """

    delivered: int = 0
    spooled: int = 0
    dropped: int = 0
    pending: int = 0

    def __bool__(self) -> bool:
        return not (self.dropped or self.pending)


class Telemetry:
    """A running pipeline from the application's spans to MLflow; `configure()` returns it.

    As a context manager or an async context manager, it is shut down at the end of the block. In a notebook, it shows
    links, counts, and the last trace if MLflow can be embedded there.

    Attributes:
        tracer_provider: The provider whose spans are exported.
        exporter: The exporter of the pipeline.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        exporter: MLflowSpanExporter,
        processor: MLflowSpanProcessor,
        worker: "TraceWorker | None",
    ) -> None:
        self.tracer_provider = tracer_provider
        self.exporter = exporter
        # Both are None if the exporter is off.
        self._pipeline, self._worker = pipeline_of(exporter), worker
        self._processor, self._is_closed = processor, False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> "Telemetry":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio  # imported by the application, whose event loop must not wait

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another event loop, such as trio's
            self.shutdown()
        else:
            await loop.run_in_executor(None, self.shutdown)

    def __repr__(self) -> str:
        stats, state = self.stats(), ", closed" if self.is_closed else ""
        counts = f"delivered={stats.delivered}, spooled={stats.spooled}, dropped={stats.dropped}"
        return f"<Telemetry to {self._target}: {counts}{state}>"

    def _repr_html_(self) -> str:
        from mlflow_otlp_exporter._internal.setup.notebook import render

        url = None
        if self._worker is not None and self._worker.last_trace_id and not self.is_closed:
            self._worker.flush(_DISPLAY_TIMEOUT_SECONDS)
            url = self.trace_url(self._worker.last_trace_id)
        settings = self._pipeline.settings if self._pipeline is not None else None
        return render(self._target, self.stats(), settings, url, is_closed=self.is_closed)

    @property
    def _target(self) -> str:
        from mlflow_otlp_exporter._internal.config.describe import describe_target

        return "nowhere (disabled)" if self._pipeline is None else describe_target(self._pipeline.settings)

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._last_stats = Stats()

    @property
    def is_closed(self) -> bool:
        """Whether it accepts no more spans, because it or the tracer provider was shut down."""
        return self._is_closed or (self._worker is not None and self._worker.is_closed)

    def flush(self, timeout: float = FLUSH_TIMEOUT_SECONDS) -> FlushResult:
        """Send all ended spans, also those of traces in progress, and wait for their outcome.

        Args:
            timeout: Maximum time to wait, in seconds; 30 by default.

        Returns:
            The outcome of the spans since the last flush.
        """
        deadline = time.monotonic() + timeout
        all_delivered = self._worker is None or self._worker.flush(timeout)
        if self._pipeline is not None:
            self._pipeline.wait_for_rest_calls(deadline - time.monotonic())
        return self._flush_result(all_delivered=all_delivered)

    def shutdown(self, timeout: float = SHUTDOWN_TIMEOUT_SECONDS) -> FlushResult:
        """Flush, then stop exporting. Spans that end later are dropped, counted and logged once.

        Args:
            timeout: Maximum time to wait, in seconds; 10 by default.

        Returns:
            The outcome of the spans since the last flush.
        """
        is_first = not self._is_closed
        self._close_worker(timeout, self.exporter.shutdown)
        if is_first:
            self._log_unsampled()
        return self._flush_result(all_delivered=True)

    def _log_unsampled(self) -> None:
        sampler, has_sampled = self.tracer_provider.sampler, self._worker is None or self._worker.last_trace_id
        if isinstance(sampler, CallerSampler) and sampler.dropped_root_count and not has_sampled:
            description = describe_sampler(self.tracer_provider)
            logger.info(_NOTHING_SAMPLED, sampler.dropped_root_count, description, MessageCode.EXPORT_DISABLED)

    def _end_open_spans(self) -> None:
        """End the open spans of a process that a signal ends: without its root, a trace would stay in progress."""
        if self._worker is not None:
            self._worker.end_open_spans()

    def _detach(self, *, keeps_exporter: bool) -> None:
        """Flush, and ignore the spans that follow, which are those of the next pipeline."""
        if self._worker is not None and not is_ending():  # else spans that end later are written to disk
            detach_worker(self._processor, self._worker)
        if keeps_exporter:
            self._close_worker(SHUTDOWN_TIMEOUT_SECONDS, lambda _: None)
        else:
            self.shutdown()

    def _close_worker(self, timeout: float, shutdown: Callable[[float], None]) -> None:
        self._is_closed = True
        if self._worker is not None:
            self._worker.close(timeout, shutdown)

    def _flush_result(self, *, all_delivered: bool) -> FlushResult:
        with self._lock:
            stats, last = self.stats(), self._last_stats
            self._last_stats = stats
        pending = 0 if all_delivered or self._worker is None else self._worker.pending_count()
        spooled = self._pipeline.wait_until_drained(0.0) if self._pipeline is not None else 0
        return FlushResult(stats.delivered - last.delivered, spooled, stats.dropped - last.dropped, pending)

    def stats(self) -> Stats:
        """Return the counters of spans and requests since start."""
        return self.exporter.stats()

    def log_feedback(
        self,
        trace_id: int | str | None = None,
        name: str = "feedback",
        value: Any = None,
        *,
        rationale: str | None = None,
        source: str | None = None,
        source_type: SourceType = "HUMAN",
        metadata: Mapping[str, Any] | None = None,
        span_id: int | str | None = None,
        workspace: str | None = None,
    ) -> str | None:
        """Send feedback on a trace to MLflow, like the MLflow SDK's `log_feedback` (docs/feedback.md).

        Returns at once. The feedback is sent in the background, retried while the server is unavailable or does not
        have the trace yet, and kept on disk meanwhile if the spool is enabled. The package's function of this name uses
        the pipeline of `configure()`, and returns None before `configure()`.

        Args:
            trace_id: OpenTelemetry's trace id as a number or in hexadecimal, or MLflow's (`tr-...`); None for the trace
                of the current span.
            name: What is assessed, such as `helpful`; at most 250 characters.
            value: The assessment: a boolean, a number, a string, a list or a mapping.
            rationale: The reason for the assessment.
            source: Who assessed, such as a username.
            source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
            metadata: More details, by name.
            span_id: The assessed span as a number or in hexadecimal; None for the whole trace.
            workspace: The workspace of the trace; None for the one that this process sent the trace's spans to, else
                the default.

        Returns:
            The id of the assessment; None if it cannot be sent. The log says why.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        details = {"source": source, "source_type": source_type, "metadata": metadata, "span_id": span_id}
        return self._log_assessment("feedback", trace_id, name, value, workspace, rationale=rationale, **details)

    def log_expectation(
        self,
        trace_id: int | str | None = None,
        name: str = "expected_response",
        value: Any = None,
        *,
        source: str | None = None,
        source_type: SourceType = "HUMAN",
        metadata: Mapping[str, Any] | None = None,
        span_id: int | str | None = None,
        workspace: str | None = None,
    ) -> str | None:
        """Send the expected result of a trace to MLflow, for scorers; see `log_feedback`.

        Args:
            trace_id: The trace; None for the trace of the current span.
            name: What is expected, such as `expected_response`.
            value: The expected value.
            source: Who expects it.
            source_type: `HUMAN`, `CODE` or `LLM_JUDGE`.
            metadata: More details, by name.
            span_id: The span; None for the whole trace.
            workspace: The workspace of the trace.

        Returns:
            The id of the assessment; None if it cannot be sent. The log says why.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        details = {"source": source, "source_type": source_type, "metadata": metadata, "span_id": span_id}
        return self._log_assessment("expectation", trace_id, name, value, workspace, **details)

    def _log_assessment(
        self, kind: str, trace_id: int | str | None, name: str, value: Any, workspace: str | None, **details: Any
    ) -> str | None:
        # Imported here, because few applications use it, and importing this library must stay cheap.
        from mlflow_otlp_exporter._internal.mlflow_api.assessments import build_assessment, mlflow_trace_id

        if trace_id is None:
            trace_id = find_current_span().get_span_context().trace_id or _NO_TRACE
        mlflow_id = mlflow_trace_id(trace_id)
        pipeline = self._pipeline
        if workspace is None and pipeline is not None:
            workspace = pipeline.workspace_of(int(mlflow_id[3:], 16), self.tracer_provider.resource.attributes)
        try:
            mask = pipeline.batcher.redactor.mask if pipeline is not None else None
            assessment = build_assessment(kind, mlflow_id, name, value, workspace=workspace, mask=mask, **details)
        except ConfigurationError:
            raise
        except BaseException as error:  # a method of the value raised
            if must_propagate(error):
                raise
            if pipeline is not None:
                pipeline.drop_assessment(f"it could not be built ({type(error).__name__})")
            return None
        if pipeline is None:
            return None
        if trace_id is _NO_TRACE:
            pipeline.drop_assessment("no trace_id was passed, and no span is current")
            return None
        return assessment.id if pipeline.send_assessment(assessment) else None

    def trace_url(self, trace_id: int | None = None, *, check: bool = True) -> str | None:
        """Return the address of a trace in the MLflow console.

        Args:
            trace_id: OpenTelemetry's trace id; None for the trace of the current span, else of the last started span.
            check: Ask MLflow whether it has the trace, for at most the timeout. False: return the address also before
                the trace has arrived, for example to show it to a user inside the trace.

        Returns:
            The URL; None if there was no trace, without an MLflow server, or if the server does not have the trace or
            is unavailable. The log says which.
        """
        if trace_id is None:
            current = find_current_span().get_span_context()
            last_trace_id = self._worker.last_trace_id if self._worker is not None else 0
            trace_id = current.trace_id if current.is_valid else last_trace_id
        if not trace_id:
            return None
        return self.exporter.trace_url(trace_id, self.tracer_provider.resource.attributes, check=check)
