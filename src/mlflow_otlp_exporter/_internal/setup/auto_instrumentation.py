"""The exporter behind `OTEL_TRACES_EXPORTER=mlflow`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.config.models import AppSettings
from mlflow_otlp_exporter._internal.config.resolver import resolve_app, resolve_buffer
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.processor import is_sampled, sampling_bound
from mlflow_otlp_exporter._internal.processing.worker import TraceWorker
from mlflow_otlp_exporter._internal.tracing.context import apply_context
from mlflow_otlp_exporter._internal.tracing.routing import on_root_end
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

_SILENCE_MILLISECONDS = 5000
_made: weakref.WeakSet[AutoInstrumentationSpanExporter] = weakref.WeakSet()


class AutoInstrumentationSpanExporter(MLflowSpanExporter):
    """`MLflowSpanExporter` with the defaults of `configure()`, whole traces, and a constructor that never raises.

    OpenTelemetry's auto-instrumentation puts its own batch processor before every exporter, which cuts traces at 512
    spans or 5 s. What it gives goes into the same buffer as that of `MLflowSpanProcessor` and leaves it trace by trace.
    Span starts are reported by `SpanStartListener`, which is added after set-up; until then a trace is complete when
    its root has ended.

    `opentelemetry-instrument` switches off all tracing, other exporters included, when a constructor raises. A wrong
    setting is logged as an error instead, and this exporter alone stays off.

    Args:
        **arguments: Those of `MLflowSpanExporter`, as a declarative configuration file gives them.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {"create_experiment": True, "compact": True, "spool": True}
    _worker: TraceWorker | None = None
    _silent = False
    _app: AppSettings | None = None

    def __init__(self, **arguments: Any) -> None:
        try:
            buffer, app = resolve_buffer({}), resolve_app({})
            if not app.enabled:
                self._silent = True
                logger.info("no spans will be exported to MLflow: it is switched off [%s]", MessageCode.EXPORT_DISABLED)
                return
            super().__init__(**arguments)
            self._app = app
            self.note_noise(app.noise)
            self._worker = TraceWorker(self, buffer, sees_starts=False, is_noise=make_trace_filter(app.noise))
            _made.add(self)
        except (ConfigurationError, TypeError) as error:
            # TypeError: an argument that does not exist, from a configuration file.
            said = (
                str(error)
                if isinstance(error, ConfigurationError)
                else add_code(MessageCode.INVALID_SETTING, str(error))
            )
            logger.error("no spans will be exported to MLflow: %s", said)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Takes spans in; they are sent in the background.

        Returns:
            `FAILURE` if some are refused, as the buffer is full or the exporter is off.
        """
        if self._silent:
            return SpanExportResult.SUCCESS
        if self._worker is None or self._app is None:
            return super().export(spans)
        bound = sampling_bound(self._app.sampling_ratio)
        taken = [
            self._worker.ended(span)
            for span in spans
            if (context := span.get_span_context()) is None or is_sampled(context, bound)
        ]
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

    def watch(self, provider: TracerProvider) -> None:
        """Has the provider tell of starts from now on."""
        if self._worker is not None and self._app is not None and not self._silent:
            provider.add_span_processor(SpanStartListener(self, self._worker, self._app))
            self._worker.see_starts()

    def silence(self) -> None:
        """Sends what was taken in, and nothing more: `configure()` sends the spans of the same provider now."""
        self.force_flush(_SILENCE_MILLISECONDS)
        self._silent = True

    @property
    def silent(self) -> bool:
        """Whether it takes nothing in."""
        return self._silent


class SpanStartListener(SpanProcessor):
    """Tells the exporter's worker of starts, and puts onto spans what the context says; ends come by the exporter.

    Args:
        exporter: The exporter.
        worker: Its worker.
        app: What becomes of the spans before they are sent.
    """

    def __init__(self, exporter: AutoInstrumentationSpanExporter, worker: TraceWorker, app: AppSettings) -> None:
        self._exporter, self._worker, self._received = exporter, worker, app.baggage
        self._bound = sampling_bound(app.sampling_ratio)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """As `MLflowSpanProcessor` does it."""
        context = span.context
        if context is not None and is_sampled(context, self._bound) and not self._exporter.silent:
            self._worker.last_trace_id = context.trace_id
            self._worker.started(context.trace_id)
            try:
                apply_context(span, context.trace_id, parent_context, self._received)
            except Exception:  # noqa: BLE001 - nothing of this library raises into the app
                said = "a span starts without its session and tags, by a mistake; please report it [%s]"
                logger.exception(said, MessageCode.INTERNAL_ERROR)

    def on_end(self, span: ReadableSpan) -> None:
        """Notes that a local root has ended."""
        context = span.context
        if context is not None and not self._exporter.silent and (span.parent is None or span.parent.is_remote):
            on_root_end(context.trace_id)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Has the exporter send what the batch processor, which is flushed before, has given to it."""
        return self._exporter.silent or self._exporter.force_flush(timeout_millis)


def after_instrumentation() -> None:
    """What `opentelemetry-instrument` calls at the end (entry point `opentelemetry_post_instrument`)."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        for exporter in list(_made):
            exporter.watch(provider)


def disable_auto_exporters(provider: TracerProvider) -> None:
    """Silences the exporters behind `OTEL_TRACES_EXPORTER=mlflow`: else each span would be sent twice.

    Args:
        provider: Where `configure()` sends spans from; only the global one has such exporters.
    """
    if provider is not trace.get_tracer_provider():
        return
    for exporter in [each for each in _made if not each.silent]:
        logger.info("configure() takes the place of OTEL_TRACES_EXPORTER=mlflow [%s]", MessageCode.PIPELINE_REPLACED)
        exporter.silence()
