"""`MLflowSpanProcessor`: a span processor that sends whole traces."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import log_exception
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter, pipeline_of
from mlflow_otlp_exporter._internal.model.spans import IS_REMOTE, TRACE_FLAGS, TRACE_ID
from mlflow_otlp_exporter._internal.tracing.context import apply_context
from mlflow_otlp_exporter._internal.tracing.routing import on_root_end

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.config.models import AppSettings
    from mlflow_otlp_exporter._internal.processing.worker import TraceWorker

_SAMPLED = 1
# Sampling by trace id looks at its last 64 bits.
_TRACE_ID_RANGE = 1 << 64
APPLY_CONTEXT = "apply trace context to a span"


def sampling_bound(ratio: float) -> int:
    """Return the bound below which trace ids are sampled; the same as OpenTelemetry's TraceIdRatioBased."""
    return round(ratio * _TRACE_ID_RANGE)


def is_sampled(context: SpanContext, bound: int) -> bool:
    return bool(context.trace_flags & _SAMPLED) and context.trace_id & (_TRACE_ID_RANGE - 1) < bound


class MLflowSpanProcessor(SpanProcessor):
    """Span processor that collects spans by trace and sends each trace when it is complete, in the background.

    It replaces `BatchSpanProcessor`, which splits traces after 512 spans or 5 s: a trace that arrives in pieces costs
    MLflow up to three times as much, and its totals appear late. Nothing blocks or raises in the application's threads.

    Memory is bounded by `buffer_spans` and `buffer_bytes`. When a limit is reached, as while the server is unavailable,
    the newest spans are dropped, counted in `stats()` and logged once. If the process is killed, spans in memory are
    lost: at most the spans that ended within `hold` seconds, and those that are being sent.

    Args:
        exporter: Exporter that receives the traces.
        linger: Seconds that a complete trace waits, so that traces can share a request (`MLFLOW_OTLP_LINGER`; 0.1).
        hold: Maximum seconds that an ended span waits for its trace to be complete (`MLFLOW_OTLP_HOLD`; 45). A longer
            trace is sent in pieces and shows as in progress.
        buffer_spans: Maximum number of spans in memory (`MLFLOW_OTLP_BUFFER_SPANS`; 65536).
        buffer_bytes: Maximum estimated size of the spans in memory, in bytes (`MLFLOW_OTLP_BUFFER_BYTES`; 64 MiB).
        sampling_ratio: Share of the traces that is sent, from 0 to 1 (`MLFLOW_TRACE_SAMPLING_RATIO`; 1).
        noise: Which traces are filtered out, as for `configure()` (`MLFLOW_OTLP_NOISE`; `default`).
        baggage: Baggage entries of incoming requests that are set on spans (`MLFLOW_OTLP_BAGGAGE`; none).

    Raises:
        ConfigurationError: An argument or an environment variable is invalid.
    """

    def __init__(
        self,
        exporter: MLflowSpanExporter,
        *,
        linger: float | None = None,
        hold: float | None = None,
        buffer_spans: int | None = None,
        buffer_bytes: int | None = None,
        sampling_ratio: float | None = None,
        noise: str | Sequence[str] | None = None,
        baggage: str | Sequence[str] | None = None,
    ) -> None:
        from mlflow_otlp_exporter._internal.config.models import AppSettings, BufferSettings
        from mlflow_otlp_exporter._internal.config.schema import select_settings

        self._buffer_arguments = select_settings(locals(), BufferSettings)
        self._app_arguments = select_settings(locals(), AppSettings)
        self._worker: TraceWorker | None = None
        self._attach(exporter, None)

    def _attach(self, exporter: MLflowSpanExporter, app: "AppSettings | None") -> "TraceWorker | None":
        from mlflow_otlp_exporter._internal.config.resolver import resolve_app, resolve_buffer

        settings = resolve_app(self._app_arguments) if app is None else app
        buffer = resolve_buffer(self._buffer_arguments)
        pipeline, worker = pipeline_of(exporter), None
        if pipeline is not None:  # only then is the worker imported, as in the exporter
            from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
            from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

            pipeline.set_trace_filter(settings.noise)
            trace_filter = make_trace_filter(settings.noise)
            worker = TraceWorker(pipeline, buffer, has_start_events=True, trace_filter=trace_filter)
        self._bound = sampling_bound(settings.sampling_ratio)
        # Where all traces are sent, trace ids are not compared: the application's thread would pay twice per span.
        self._sends_all = self._bound == _TRACE_ID_RANGE
        self._baggage_keys = settings.baggage
        self._exporter, self._worker = exporter, worker
        return worker

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Count the open span and set the attributes of `trace_context` and of baggage on it."""
        worker, context = self._worker, span.context
        if worker is None or context is None:
            return
        if context[TRACE_FLAGS] & _SAMPLED if self._sends_all else is_sampled(context, self._bound):
            worker.last_trace_id = trace_id = context[TRACE_ID]
            worker.enqueue_start(span)
            try:
                apply_context(span, trace_id, parent_context, self._baggage_keys)
            except BaseException as error:  # nothing of this library raises into the application
                if must_propagate(error):
                    raise
                log_exception(error, APPLY_CONTEXT)

    def on_end(self, span: ReadableSpan) -> None:
        """Take the ended span; never blocks, never raises."""
        worker, context = self._worker, span.context
        if worker is None or context is None:
            return
        if context[TRACE_FLAGS] & _SAMPLED if self._sends_all else is_sampled(context, self._bound):
            parent = span.parent
            if parent is None or parent[IS_REMOTE]:
                on_root_end(context[TRACE_ID])
            worker.enqueue(span)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Send all ended spans, also of traces in progress, and wait for their outcome.

        Args:
            timeout_millis: Maximum time to wait, in milliseconds.

        Returns:
            True if all spans were delivered, or written to the spool, within the time.
        """
        worker = self._worker
        return worker.flush(timeout_millis / 1000) if worker is not None else True

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Flush, then shut the exporter down. Spans that end later are dropped.

        Args:
            timeout_millis: Maximum time to wait in total, in milliseconds.
        """
        worker = self._worker
        if worker is not None:
            worker.close(timeout_millis / 1000, self._exporter.shutdown)


def attach_exporter(
    processor: MLflowSpanProcessor, exporter: MLflowSpanExporter, app: "AppSettings | None" = None
) -> "TraceWorker | None":
    """Let a processor, which no provider can remove, send to this exporter from now on; return its worker, if any."""
    return processor._attach(exporter, app)  # noqa: SLF001 - no public method, for set-up only


def worker_of(processor: MLflowSpanProcessor) -> "TraceWorker | None":
    """Return the worker that collects the spans; None if the exporter is off."""
    return processor._worker  # noqa: SLF001 - no public attribute, for set-up only


def detach_worker(processor: MLflowSpanProcessor, worker: "TraceWorker") -> None:
    """Let a processor ignore spans from now on, if it still has this worker."""
    if worker_of(processor) is worker:
        processor._worker = None  # noqa: SLF001 - no public method, for set-up only
