"""The exporter behind `OTEL_TRACES_EXPORTER=mlflow`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import log_exception, logger
from mlflow_otlp_exporter._internal.config.models import AppSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve_app, resolve_buffer
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.processor import APPLY_CONTEXT, is_sampled, sampling_bound
from mlflow_otlp_exporter._internal.setup.tracer_provider import log_disabled, watch_sampler
from mlflow_otlp_exporter._internal.tracing.context import apply_context
from mlflow_otlp_exporter._internal.tracing.routing import on_root_end

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.processing.worker import TraceWorker

_DISABLE_TIMEOUT_MILLIS = 5000
_exporters: weakref.WeakSet[AutoInstrumentationSpanExporter] = weakref.WeakSet()


class AutoInstrumentationSpanExporter(MLflowSpanExporter):
    """`MLflowSpanExporter` with the defaults of `configure()`, whole traces, and a constructor that never raises.

    OpenTelemetry's auto-instrumentation adds its own batch processor before every exporter, which splits traces at 512
    spans or 5 s. The spans therefore pass the trace buffer of `MLflowSpanProcessor`. `SpanStartListener`, which is
    added after set-up, reports span starts to the buffer; until then a trace is complete when its root has ended.

    If a constructor raises, `opentelemetry-instrument` disables all tracing, other exporters included. So a wrong
    setting is logged as an error, and only this exporter is off. A declarative configuration file passes `arguments`.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {
        "create_experiment": True,
        "compact": True,
        "spool": True,
        "handle_sigterm": True,
    }
    _worker: TraceWorker | None = None
    _app: AppSettings | None = None
    is_disabled = False

    def __init__(self, **arguments: Any) -> None:
        try:
            buffer, app = resolve_buffer({}), resolve_app({})
            if not app.enabled:
                self.is_disabled = True
                log_disabled({})
                return
            from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
            from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

            super().__init__(**arguments)
            self._app = app
            assert self._pipeline is not None
            self._pipeline.set_trace_filter(app.noise)
            trace_filter = make_trace_filter(app.noise)
            self._worker = TraceWorker(self._pipeline, buffer, has_start_events=False, trace_filter=trace_filter)
            _exporters.add(self)
            self._watch_sampler(trace.get_tracer_provider())  # before the instrumentations get their tracers
        except (ConfigurationError, TypeError) as error:
            # TypeError: a configuration file names an argument that does not exist. It has no code yet.
            is_coded = isinstance(error, ConfigurationError)
            message = str(error) if is_coded else add_code(MessageCode.INVALID_SETTING, str(error))
            logger.error("No spans will be exported to MLflow: %s", message)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Add spans to the trace buffer; `FAILURE` if some are dropped, because it is full or the exporter is off."""
        if self.is_disabled:
            return SpanExportResult.SUCCESS
        if self._worker is None or self._app is None:
            return super().export(spans)
        bound = sampling_bound(self._app.sampling_ratio)
        accepted = [
            self._worker.enqueue(span)
            for span in spans
            if (context := span.get_span_context()) is None or is_sampled(context, bound)
        ]
        return SpanExportResult.SUCCESS if all(accepted) else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Send the buffered spans; True if all were delivered within the time."""
        return self._worker.flush(timeout_millis / 1000) if self._worker else True

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Send the buffered spans, then shut down, within the time."""
        if self._worker is None:
            super().shutdown(timeout_millis)
        else:
            self._worker.close(timeout_millis / 1000, super().shutdown)

    def end_open_spans(self) -> None:
        """End the spans that a signal interrupts."""
        if self._worker is not None:
            self._worker.end_open_spans()

    def listen(self, provider: TracerProvider) -> None:
        """Receive the span starts of the provider from now on."""
        if self._worker is not None and self._app is not None and not self.is_disabled:
            self._watch_sampler(provider)
            provider.add_span_processor(SpanStartListener(self, self._worker, self._app))
            self._worker.enable_start_events()

    def _watch_sampler(self, provider: object) -> None:
        if isinstance(provider, TracerProvider) and self._app is not None and self._pipeline is not None:
            watch_sampler(provider, self._app, self._pipeline.problem_log)

    def disable(self) -> None:
        """Send the buffered spans and ignore later ones, which the pipeline of `configure()` sends."""
        self.force_flush(_DISABLE_TIMEOUT_MILLIS)
        self.is_disabled = True


class SpanStartListener(SpanProcessor):
    """Reports span starts to the exporter's worker and applies the trace context; the exporter receives the ends."""

    def __init__(self, exporter: AutoInstrumentationSpanExporter, worker: TraceWorker, app: AppSettings) -> None:
        self._exporter, self._worker, self._received = exporter, worker, app.baggage
        self._bound = sampling_bound(app.sampling_ratio)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do the same as `MLflowSpanProcessor.on_start`."""
        context = span.context
        if context is not None and is_sampled(context, self._bound) and not self._exporter.is_disabled:
            self._worker.last_trace_id = context.trace_id
            self._worker.enqueue_start(span)
            try:
                apply_context(span, context.trace_id, parent_context, self._received)
            except Exception as error:  # noqa: BLE001 - nothing of this library raises into the application
                log_exception(error, APPLY_CONTEXT)

    def on_end(self, span: ReadableSpan) -> None:
        """Record the end of a local root."""
        context = span.context
        if context is not None and not self._exporter.is_disabled and (span.parent is None or span.parent.is_remote):
            on_root_end(context.trace_id)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Send what the batch processor, which was added and flushed before this processor, has exported."""
        return self._exporter.is_disabled or self._exporter.force_flush(timeout_millis)


def after_instrumentation() -> None:
    """Add the span start listeners; `opentelemetry-instrument` calls this last (`opentelemetry_post_instrument`)."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        for exporter in list(_exporters):
            exporter.listen(provider)


def disable_auto_exporters(provider: TracerProvider) -> None:
    """Disable the exporters behind `OTEL_TRACES_EXPORTER=mlflow`, because each span would be sent twice."""
    if provider is not trace.get_tracer_provider():
        return  # only the global provider has such exporters
    for exporter in [exporter for exporter in _exporters if not exporter.is_disabled]:
        logger.info(
            "configure() replaces the exporter of OTEL_TRACES_EXPORTER=mlflow. [%s]", MessageCode.PIPELINE_REPLACED
        )
        exporter.disable()
