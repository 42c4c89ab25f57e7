"""`MLflowSpanExporter`: OpenTelemetry's OTLP/HTTP span exporter for MLflow."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import log_exception, pluralize
from mlflow_otlp_exporter._internal.common.process_end import shut_down_at_signal
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.common.suppression import suppress_header_warnings, suppress_instrumentation

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from mlflow_otlp_exporter._internal.config.models import Settings
    from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
    from mlflow_otlp_exporter._internal.transport.client import Session

# Applications filter upstream's messages about a shutdown, or assert them, by the name of its module.
logger = logging.getLogger(OTLPSpanExporter.__module__)


class MLflowSpanExporter(OTLPSpanExporter):
    """Exporter that sends spans to MLflow, directly or through an OpenTelemetry Collector.

    It replaces `OTLPSpanExporter`: the first eight parameters are upstream's, in upstream's order. The target is the
    first of: `endpoint`, `tracking_uri`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `MLFLOW_TRACKING_URI`,
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `http://localhost:5000`. Headers, credentials and certificates of `OTEL_*` variables
    are not sent to a server that `tracking_uri` or `MLFLOW_TRACKING_URI` names, nor those of `MLFLOW_*` variables to an
    OTLP endpoint; arguments apply to the server of the spans. `mlflow-otlp settings` shows the settings and where they
    come from.

    Args:
        endpoint: Full URL of an OTLP/HTTP endpoint, such as `http://collector:4318/v1/traces`.
        certificate_file: Path of the CA certificates that verify the server's certificate.
        client_key_file: Path of the client's key (mTLS).
        client_certificate_file: Path of the client's certificate (mTLS).
        headers: Additional request headers; they override the headers that this library sets.
        timeout: Maximum seconds of each HTTP request, and of `export` with its retries (`MLFLOW_HTTP_REQUEST_TIMEOUT`,
            `OTEL_EXPORTER_OTLP_[TRACES_]TIMEOUT`; 10).
        compression: `none`, `gzip` or `deflate` (`OTEL_EXPORTER_OTLP_[TRACES_]COMPRESSION`; `none`).
        session: Session that is used unchanged and closed at shutdown, as upstream does.
        meter_provider: Meter provider for the SDK's exporter metrics `otel.sdk.exporter.span.exported`,
            `otel.sdk.exporter.span.inflight` and `otel.sdk.exporter.operation.duration`, instead of the global one.
            `OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true` enables them.
        max_request_size: Target size of a request in bytes, before compression; 0 for no limit
            (`MLFLOW_OTLP_MAX_REQUEST_SIZE`; 4 MiB). Larger requests are split; upstream, from 1.45 on, drops them.
        tracking_uri: URL of the MLflow server (`MLFLOW_TRACKING_URI`).
        experiment: Name of the experiment (`MLFLOW_EXPERIMENT_NAME`), looked up at the first export. Without name and
            id: the experiment named like `service.name`, else `Default`.
        experiment_id: Id of the experiment, instead of its name (`MLFLOW_EXPERIMENT_ID`).
        workspace: Name of the workspace (`MLFLOW_WORKSPACE`; MLflow 3.10 and newer).
        run_id: Id of a run that the traces are linked to (before MLflow 3.14 with a trace metadata update).
        credentials: A token, a `pathlib.Path` of a token file, a (user, password) pair, or a function that returns a
            token or the value of an Authorization header; read before every request.
        create_experiment: Create the experiment if it does not exist (`MLFLOW_OTLP_CREATE_EXPERIMENT`; false).
        enrich: Add the attributes that MLflow's console, search and scorers read (`MLFLOW_OTLP_ENRICH`; true).
        compact: Remove attributes whose content the added attributes hold (`MLFLOW_OTLP_COMPACT`; false).
        trace_info: Send the source (the name of the program) and OpenInference's metadata of each trace over MLflow's
            REST API, to servers of all versions. Servers before 3.14 get names, tags, sessions, users and runs in any
            case (`MLFLOW_OTLP_TRACE_INFO`; false).
        attachments: Upload large images, audio and files to MLflow and reference them in spans
            (`MLFLOW_OTLP_ATTACHMENTS`; false; docs/attachments.md).
        spool: Write spans to disk that the server does not accept now, and send them later (`MLFLOW_OTLP_SPOOL`;
            false).
        spool_dir: Directory of the spool (`MLFLOW_OTLP_SPOOL_DIR`; below `$XDG_STATE_HOME`, else `~/.local/state`, else
            a temporary directory).
        durability: `request` or `every-span`. With `every-span` and `MLflowSpanProcessor`, each span is on disk when
            its `end()` returns (`MLFLOW_OTLP_DURABILITY`; `request`).
        mask: Masking that is applied before spans are read, enriched or written (`MLFLOW_OTLP_MASK`): a function from
            text to text, called with each text in the exporting thread; or a sequence of `email`, `keys`, `cards`,
            `phones` and compiled regular expressions. If the function raises, the text is hidden.

    Raises:
        ConfigurationError: An argument, an environment variable or a file is invalid.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {}
    _pipeline: "Pipeline | None" = None

    def __init__(
        self,
        endpoint: str | None = None,
        certificate_file: str | None = None,
        client_key_file: str | None = None,
        client_certificate_file: str | None = None,
        headers: Mapping[str, str] | Sequence[Any] | str | None = None,
        timeout: float | None = None,
        compression: Compression | str | None = None,
        session: "Session | None" = None,
        *,
        meter_provider: "MeterProvider | None" = None,
        max_request_size: int | None = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        experiment_id: str | int | None = None,
        workspace: str | None = None,
        run_id: str | None = None,
        credentials: str | tuple[str, str] | Callable[[], str | None] | Any = None,
        create_experiment: bool | None = None,
        enrich: bool | None = None,
        compact: bool | None = None,
        trace_info: bool | None = None,
        attachments: bool | None = None,
        spool: bool | None = None,
        spool_dir: str | PathLike[str] | None = None,
        durability: str | None = None,
        mask: Callable[[str], str] | Sequence[str | re.Pattern[str]] | None = None,
    ) -> None:
        # Imported here, because an application that only imports the package should not wait for them.
        from mlflow_otlp_exporter._internal.config.resolver import resolve
        from mlflow_otlp_exporter._internal.config.schema import select_settings

        settings = resolve(select_settings(locals()), defaults=self._defaults)
        self._assemble(settings, session, meter_provider)
        if settings.disk.spool and settings.disk.handle_sigterm:
            shut_down_at_signal(self)

    def _assemble(
        self, settings: "Settings", session: "Session | None" = None, meter_provider: "MeterProvider | None" = None
    ) -> None:
        from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
        from mlflow_otlp_exporter._internal.transport.client import Session

        server, metrics = settings.traces, None
        if settings.metrics:
            from mlflow_otlp_exporter._internal.common.instruments import create_metrics

            metrics = create_metrics(meter_provider, server.url)
        pipeline = Pipeline(settings, session, metrics)
        # Upstream's own transport is never used. It gets the resolved values, so that it resolves nothing, and a
        # session of its own: it writes headers into the session, and would load a credential provider without one.
        with suppress_header_warnings():
            super().__init__(
                endpoint=server.url,
                certificate_file=server.certificate_file,
                client_key_file=server.client_key_file,
                client_certificate_file=server.client_certificate_file,
                headers=dict(server.headers),
                timeout=settings.timeout,  # type: ignore[arg-type,unused-ignore]  # int in upstream's hints up to 1.35
                compression=Compression(settings.compression),
                session=Session(),
            )
        self._pipeline = pipeline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans and wait for their outcome, for at most the timeout; never raises.

        Args:
            spans: Ended spans.

        Returns:
            `SUCCESS` if the server accepted all spans, or if the remaining ones are on disk (`spool`); else `FAILURE`,
            and the log says why. What may succeed later is retried in the background: do not export it again.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.is_closed:
            count, state = pluralize(len(spans), "span"), "shut down" if pipeline else "off"
            logger.warning("Dropped %s: the exporter is %s [%s]", count, state, MessageCode.EXPORT_DISABLED)
            return SpanExportResult.FAILURE
        with suppress_instrumentation():
            try:
                wait = pipeline.export(spans)
            except Exception as error:  # nothing of this library raises into the application
                if must_propagate(error):
                    raise
                log_exception(error, "export spans")
                return SpanExportResult.FAILURE
            # What is raised here comes from outside, such as a time limit of gevent.
            return SpanExportResult.SUCCESS if wait() else SpanExportResult.FAILURE

    def trace_url(
        self, trace_id: int, resource_attributes: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> str | None:
        """Return the address of a trace in the MLflow console.

        Args:
            trace_id: OpenTelemetry's trace id.
            resource_attributes: Attributes of the resource; `service.name` matters if no experiment is set.
            check: Ask MLflow for the trace, for at most the timeout. Without it, the address of a trace that is not
                there yet is returned, too; only an experiment that is not known yet is looked up.

        Returns:
            The URL; None without an MLflow server, or if it does not have the trace or is unavailable. The log says
            which.
        """
        if self._pipeline is None:
            return None
        with suppress_instrumentation():
            return self._pipeline.trace_url(trace_id, resource_attributes or {}, is_checked=check)

    def stats(self) -> Stats:
        """Return the counters of spans and requests since start."""
        return self._pipeline.stats() if self._pipeline else Stats()

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Wait for the spans that `export` left to the background.

        Args:
            timeout_millis: Maximum time to wait, in milliseconds.

        Returns:
            True if all spans were delivered, or written to the spool, within the time.
        """
        return self._pipeline.flush(timeout_millis / 1000) if self._pipeline else True

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Wait for spans in flight, end retries and close connections.

        Spans that remain are written to the spool, or dropped without one.

        Args:
            timeout_millis: Maximum time to wait, in milliseconds.
        """
        if self._pipeline is None:
            return
        if not self._pipeline.is_closed:
            self._pipeline.shutdown(timeout_millis / 1000)
        super().shutdown()  # type: ignore[no-untyped-call]


def pipeline_of(exporter: MLflowSpanExporter) -> "Pipeline | None":
    """Return the pipeline behind an exporter, for processor and set-up; None if the exporter is off."""
    return exporter._pipeline  # noqa: SLF001 - no public attribute: users see upstream's methods only
