"""`MLflowSpanProcessor`: a span processor that sends whole traces."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.config.models import AppSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve_app, resolve_buffer
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
from mlflow_otlp_exporter._internal.tracing.context import IS_REMOTE, TRACE_FLAGS, TRACE_ID, apply_context
from mlflow_otlp_exporter._internal.tracing.routing import on_root_end
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

_SAMPLED = 1
# What sampling by trace id looks at: its last 64 bits.
_ALL_TRACES = 1 << 64


def sampling_bound(ratio: float) -> int:
    """What a trace id stays below to be sampled: as OpenTelemetry's TraceIdRatioBased has it, so that both agree."""
    return round(ratio * _ALL_TRACES)


def is_sampled(context: SpanContext, bound: int) -> bool:
    """Whether a span is recorded, and of a trace that is chosen."""
    return bool(context.trace_flags & _SAMPLED) and context.trace_id & (_ALL_TRACES - 1) < bound


class MLflowSpanProcessor(SpanProcessor):
    """Collects spans by trace and sends each trace when it is whole, in the background.

    Takes the place of `BatchSpanProcessor`, which cuts traces at 512 spans or 5 s: MLflow pays 1.7 to 30 times more for
    a trace that arrives in pieces, and shows its totals late. Nothing in the app's threads waits or raises.

    Memory is bounded by `buffer_spans` and `buffer_bytes`; when they are reached, as while the server is away, the
    newest spans are refused, counted in `stats()` and told once. What is in memory is lost if the process is killed:
    at most what ended within `hold` seconds, and what is being sent.

    Args:
        exporter: Where the traces go.
        linger: Seconds that a whole trace waits for others to share a request with (`MLFLOW_OTLP_LINGER`; 0.1).
        hold: Seconds that an ended span waits for its trace to be whole, at most (`MLFLOW_OTLP_HOLD`; 45). A longer
            trace is sent in pieces and shows as in progress.
        buffer_spans: How many spans may wait in memory (`MLFLOW_OTLP_BUFFER_SPANS`; 65536).
        buffer_bytes: How many bytes of spans, as estimated, may wait in memory (`MLFLOW_OTLP_BUFFER_BYTES`; 64 MiB).
        sampling_ratio: Which part of the traces is sent (`MLFLOW_TRACE_SAMPLING_RATIO`; 1).
        noise: Which traces are left out (`MLFLOW_OTLP_NOISE`; those of HTTP, database and messaging spans alone).
        baggage: What is taken from the baggage of incoming requests (`MLFLOW_OTLP_BAGGAGE`; nothing).

    Attributes:
        worker: What collects the spans; the first one, if another exporter was attached since.

    Raises:
        ConfigurationError: An argument or a variable is wrong.
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
        self._arguments = {
            "linger": linger,
            "hold": hold,
            "buffer_spans": buffer_spans,
            "buffer_bytes": buffer_bytes,
        }
        self._app = {"sampling_ratio": sampling_ratio, "noise": noise, "baggage": baggage}
        self._bound, self._sends_all = _ALL_TRACES, True
        self._received: tuple[str, ...] = ()
        self._exporter = exporter
        self._worker: TraceWorker | None = None
        self.worker = self.attach(exporter)

    def attach(self, exporter: MLflowSpanExporter, app: AppSettings | None = None) -> TraceWorker:
        """Sends to this exporter from now on. What went to another one before is to be flushed by whoever had it.

        A tracer provider lets no processor be taken away: this is how `configure()` puts another pipeline in its place.

        Args:
            exporter: Where the traces go.
            app: What becomes of the spans before; None for what the processor was made with.
        """
        settings = resolve_app(self._app) if app is None else app
        buffer = resolve_buffer(self._arguments)
        exporter.note_noise(settings.noise)
        worker = TraceWorker(exporter, buffer, sees_starts=True, is_noise=make_trace_filter(settings.noise))
        self._bound = sampling_bound(settings.sampling_ratio)
        # Where all traces are sent, nothing is computed of their ids: the app's thread pays for it twice a span.
        self._sends_all = self._bound == _ALL_TRACES
        self._received = settings.baggage
        self._exporter, self._worker = exporter, worker
        return worker

    def detach(self, worker: TraceWorker) -> None:
        """Takes no more spans in, if this worker still has them.

        Args:
            worker: What `attach` returned.
        """
        if self._worker is worker:
            self._worker = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Notes that a trace has one more open span, and puts onto it what `trace_context` and others say."""
        worker, context = self._worker, span.context
        if worker is None or context is None:
            return
        if context[TRACE_FLAGS] & _SAMPLED if self._sends_all else is_sampled(context, self._bound):
            worker.last_trace_id = trace_id = context[TRACE_ID]
            worker.started(trace_id)
            try:
                apply_context(span, trace_id, parent_context, self._received)
            except Exception:  # noqa: BLE001 - nothing of this library raises into the app
                said = "a span starts without its session and tags, by a mistake; please report it [%s]"
                logger.exception(said, MessageCode.INTERNAL_ERROR)

    def on_end(self, span: ReadableSpan) -> None:
        """Takes the span in."""
        worker, context = self._worker, span.context
        if worker is None or context is None:
            return
        if context[TRACE_FLAGS] & _SAMPLED if self._sends_all else is_sampled(context, self._bound):
            parent = span.parent
            if parent is None or parent[IS_REMOTE]:
                on_root_end(context[TRACE_ID])
            worker.ended(span)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Sends all that has ended, traces in progress too, and waits for it.

        Args:
            timeout_millis: How long to wait at most.

        Returns:
            True if all of it was delivered within the time.
        """
        worker = self._worker
        return worker.flush(timeout_millis / 1000) if worker is not None else True

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Flushes, then shuts the exporter down. Spans that end later are refused.

        Args:
            timeout_millis: How long to wait at most, all in all.
        """
        worker = self._worker
        if worker is not None:
            worker.close(timeout_millis / 1000, self._exporter.shutdown)
