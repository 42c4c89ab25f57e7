"""`MLflowSpanExporter`: OpenTelemetry's OTLP/HTTP span exporter, made for MLflow."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.common.suppression import suppressed_instrumentation
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.tracing.routing import route_of

if TYPE_CHECKING:
    import requests
    from opentelemetry.metrics import MeterProvider

    from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
    from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
    from mlflow_otlp_exporter._internal.privacy.mask import Mask


class MLflowSpanExporter(OTLPSpanExporter):
    """Exports spans to MLflow, directly or through an OpenTelemetry Collector; a drop-in for `OTLPSpanExporter`.

    The first eight arguments are upstream's, in upstream's order. The target is, in this order: `endpoint`,
    `tracking_uri`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `MLFLOW_TRACKING_URI`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `http://localhost:5000`. Headers, credentials and certificates of `OTEL_*` variables are not used for a server that
    `tracking_uri` or `MLFLOW_TRACKING_URI` named, nor those of `MLFLOW_*` variables for an OTLP endpoint; what is
    given as an argument counts always. `mlflow-otlp settings` shows what is in force, and why.

    Args:
        endpoint: The full address of an OTLP/HTTP endpoint, such as `http://collector:4318/v1/traces`.
        certificate_file: The path of the certificates that the server's is checked against.
        client_key_file: The path of the client's key (mTLS).
        client_certificate_file: The path of the client's certificate (mTLS).
        headers: More request headers; they win over those that this library sets.
        timeout: Seconds for the export of one request with its retries (`MLFLOW_HTTP_REQUEST_TIMEOUT`,
            `OTEL_EXPORTER_OTLP_[TRACES_]TIMEOUT`; 10).
        compression: `none`, `gzip` or `deflate` (`OTEL_EXPORTER_OTLP_[TRACES_]COMPRESSION`; `none`).
        session: A session to use as it is; closed at shutdown, as upstream does.
        meter_provider: Where the SDK's metrics about exporters go: `otel.sdk.exporter.span.exported` and `.inflight`,
            `otel.sdk.exporter.operation.duration`. With `OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true` and none given:
            the app's.
        max_request_size: Bytes that a request aims at, before compression; 0 for no limit
            (`MLFLOW_OTLP_MAX_REQUEST_SIZE`; 4 MiB). Upstream, from 1.45 on, drops what is larger; here it is cut.
        tracking_uri: The address of the MLflow server (`MLFLOW_TRACKING_URI`).
        experiment: The experiment's name (`MLFLOW_EXPERIMENT_NAME`), looked up at the first export, not here.
            Without name and id: the one named like `service.name`, else `Default`.
        experiment_id: The experiment's id, instead of its name (`MLFLOW_EXPERIMENT_ID`).
        workspace: The workspace (`MLFLOW_WORKSPACE`; MLflow 3.10 and newer).
        run_id: A run to link the traces to (MLflow 3.14 and newer).
        credentials: A token, a `pathlib.Path` of a token file, a (user, password) pair, or a function that returns a
            token or an Authorization header's value; asked before every request.
        create_experiment: Create the experiment if it does not exist (`MLFLOW_OTLP_CREATE_EXPERIMENT`; false).
        enrich: Add what MLflow's console, search and scorers read (`MLFLOW_OTLP_ENRICH`; true).
        compact: Drop attributes whose content the added ones carry (`MLFLOW_OTLP_COMPACT`; false).
        trace_info: Send the source and OpenInference's metadata of each trace over MLflow's REST API, to servers of all
            versions. Servers before 3.14 get names, tags, sessions, users and runs in any case
            (`MLFLOW_OTLP_TRACE_INFO`; false).
        attachments: Upload large images, sounds and files to MLflow, and refer to them in spans (docs/attachments.md;
            `MLFLOW_OTLP_ATTACHMENTS`; false).
        spool: Keep on disk what the server does not take now, and send it later (`MLFLOW_OTLP_SPOOL`; false).
        spool_dir: The folder for it (`MLFLOW_OTLP_SPOOL_DIR`; in `$XDG_STATE_HOME`, else `~/.local/state`, else a
            temporary folder).
        durability: `request` or `every-span`: with the latter, and `MLflowSpanProcessor`, each span is on disk when its
            `end()` returns (`MLFLOW_OTLP_DURABILITY`; `request`).
        mask: What is masked before anything is read, added or written (`MLFLOW_OTLP_MASK`): a function from text to
            text, called with each text in the thread that exports; or some of `email`, `keys`, `cards`, `phones`, and
            compiled expressions. Where it raises, the text is hidden.

    Raises:
        ConfigurationError: An argument, a variable or a file is wrong.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {}
    _pipeline: Pipeline | None = None

    def __init__(
        self,
        endpoint: str | None = None,
        certificate_file: str | None = None,
        client_key_file: str | None = None,
        client_certificate_file: str | None = None,
        headers: Mapping[str, str] | Sequence[Any] | str | None = None,
        timeout: float | None = None,
        compression: Compression | str | None = None,
        session: requests.Session | None = None,
        *,
        meter_provider: MeterProvider | None = None,
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
        arguments = {
            "endpoint": endpoint,
            "certificate_file": certificate_file,
            "client_key_file": client_key_file,
            "client_certificate_file": client_certificate_file,
            "headers": headers,
            "timeout": timeout,
            "compression": compression,
            "tracking_uri": tracking_uri,
            "experiment": experiment,
            "experiment_id": experiment_id,
            "workspace": workspace,
            "run_id": run_id,
            "credentials": credentials,
            "create_experiment": create_experiment,
            "max_request_size": max_request_size,
            "enrich": enrich,
            "compact": compact,
            "trace_info": trace_info,
            "attachments": attachments,
            "spool": spool,
            "spool_dir": spool_dir,
            "durability": durability,
            "mask": mask,
        }
        settings = resolve(arguments, defaults=self._defaults)
        self._assemble(settings, session, meter_provider)

    def _assemble(
        self,
        settings: Settings,
        session: requests.Session | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        # Here, not at the top: all that sends is most of the import time, and an app that only imports, or that is
        # switched off, should not pay it.
        import requests

        from mlflow_otlp_exporter._internal.delivery.exporter_metrics import exporter_metrics
        from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline

        server = settings.traces
        pipeline = Pipeline(settings, session, exporter_metrics(meter_provider, server.url))
        # Upstream's own transport is never used. It gets the resolved values, so that nothing is resolved twice, and a
        # session of its own: it writes headers into the session, and would load a credential provider without one.
        super().__init__(
            endpoint=server.url,
            certificate_file=server.certificate_file,
            client_key_file=server.client_key_file,
            client_certificate_file=server.client_certificate_file,
            headers=dict(server.headers),
            timeout=settings.timeout,  # type: ignore[arg-type,unused-ignore]  # int in upstream's hints up to 1.35
            compression=Compression(settings.compression),
            session=requests.Session(),
        )
        self._pipeline = pipeline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans and waits for what becomes of them, for the time-out at most; never raises.

        Returns:
            `SUCCESS` if the server has accepted all of them, or if what it has not is safe on disk (`spool`); else
            `FAILURE`, and the log says why. What may succeed later is sent again in the background: it need not be
            exported again.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            why = "is shut down" if pipeline else "is off"
            logger.warning("%d spans are refused: the exporter %s [%s]", len(spans), why, MessageCode.EXPORT_DISABLED)
            return SpanExportResult.FAILURE
        try:
            with suppressed_instrumentation():
                batches, broken = pipeline.batching.batches(spans)
                delivered = pipeline.deliver(batches)
        except Exception:  # noqa: BLE001 - nothing of this library raises into the app
            said = "%d spans are lost by a mistake in this library; please report it [%s]"
            logger.exception(said, len(spans), MessageCode.INTERNAL_ERROR)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS if delivered and not broken else SpanExportResult.FAILURE

    def submit(self, spans: list[ReadableSpan], opened: Callable[[int, int], Ticket]) -> None:
        """Sends spans in the background; what `MLflowSpanProcessor` calls instead of `export`.

        Args:
            spans: Whole traces, or what there is of them, trace by trace. The list is emptied as they are encoded: a
                span of the SDK takes many times the memory of its bytes.
            opened: Called with spans and bytes of each request; what it returns is told when the request is settled, or
                when all that is left of it are spans that alone are answered 500.
        """
        pipeline = self._pipeline
        if pipeline is None:
            self.refuse(len(spans), "the exporter is off")
            return
        if pipeline.closed:
            pipeline.keep(spans, "the exporter is shut down")
            return
        for batch in pipeline.batching.batches_out_of(spans):
            pipeline.send(batch, opened)

    def keep(self, spans: Sequence[ReadableSpan], why: str) -> None:
        """Puts on disk what a span processor has no time left to send, or gives it up where there is no spool.

        Args:
            spans: The spans.
            why: In words, following "spans are lost: ".
        """
        if self._pipeline is not None:
            self._pipeline.keep(spans, why)

    def drained(self, seconds: float) -> int:
        """Waits until what this process has put on disk is sent, as long as the server takes anything.

        Args:
            seconds: How long to wait at most.

        Returns:
            How many of its spans are on disk still.
        """
        return self._pipeline.drained(seconds) if self._pipeline else 0

    def told(self, seconds: float) -> bool:
        """Waits until MLflow was told what follows spans (`trace_info`), as long as it listens.

        Args:
            seconds: How long to wait at most.

        Returns:
            Whether nothing is left to tell.
        """
        rest_side = self._pipeline.rest_side if self._pipeline else None
        return rest_side is None or rest_side.wait(max(0.0, seconds))

    def workspace_of(self, trace_id: int, resource_attributes: Mapping[str, Any]) -> str | None:
        """The workspace that a trace goes to; None for the server's default.

        Args:
            trace_id: OpenTelemetry's trace id.
            resource_attributes: The resource's attributes.
        """
        if self._pipeline is None:
            return None
        return self._pipeline.destination.for_trace(resource_attributes, route_of(trace_id)).workspace

    @property
    def mask(self) -> Mask | None:
        """What masks texts, if anything does."""
        return self._pipeline.batching.cleaner.mask if self._pipeline else None

    def assess(self, assessment: Assessment | None, why_not: str = "the exporter is off") -> bool:
        """Sends feedback in the background, or counts it as lost.

        Args:
            assessment: What is sent; None if it cannot be.
            why_not: Why it cannot be, in words.

        Returns:
            Whether it is on its way.
        """
        pipeline = self._pipeline
        if pipeline is None:
            return False
        if assessment is not None and pipeline.rest_side is not None:
            pipeline.rest_side.send_assessment(assessment)
            return True
        why_not = why_not if assessment is None else "no MLflow is known beside the OTLP endpoint"
        pipeline.report.count(feedback_dropped=1)
        pipeline.report.once(logging.WARNING, add_code(MessageCode.FEEDBACK_DROPPED, f"feedback is dropped: {why_not}"))
        return False

    @property
    def record(self) -> Callable[[ReadableSpan], None] | None:
        """What a span processor is to call with each span when it ends; None unless every span is to be on disk."""
        return self._pipeline.record if self._pipeline else None

    def note_noise(self, noise: Sequence[str]) -> None:
        """Learns from a span processor which traces it leaves out; what is found after a kill is judged alike.

        Args:
            noise: The setting's words.
        """
        if self._pipeline is not None:
            self._pipeline.note_noise(noise)

    def refuse(self, count: int, why: str) -> None:
        """Counts spans that a span processor had to give up, and logs why.

        Args:
            count: How many.
            why: In words, following "spans are lost: ".
        """
        if self._pipeline is not None:
            self._pipeline.refuse(count, why)

    def leave_out(self, spans: Sequence[ReadableSpan]) -> None:
        """Counts spans of traces that a span processor leaves out, and says so the first time.

        Args:
            spans: All spans of these traces.
        """
        if self._pipeline is not None:
            self._pipeline.leave_out(spans)

    def refused(self) -> int:
        """How many spans were given up since start."""
        return self.stats().dropped

    def solve(self, why: str, message: str) -> None:
        """Logs that what made a span processor give up spans is over.

        Args:
            why: What `refuse` was given.
            message: What is so again.
        """
        if self._pipeline is not None:
            self._pipeline.solve(why, message)

    def hurry(self, seconds: float) -> None:
        """Ends waits between attempts, as somebody waits for the outcome; `relax` undoes it.

        Args:
            seconds: How long somebody waits.
        """
        if self._pipeline is not None:
            self._pipeline.hurry(seconds)

    def relax(self) -> None:
        """Gives requests and waits their own time again."""
        if self._pipeline is not None:
            self._pipeline.relax()

    def trace_url(self, trace_id: int, resource_attributes: Mapping[str, Any] | None = None) -> str | None:
        """The address of a trace in the MLflow console.

        Looks up the experiment if that has not happened yet, for at most the export's time-out.

        Args:
            trace_id: OpenTelemetry's trace id.
            resource_attributes: The resource's attributes; `service.name` matters if no experiment was given.

        Returns:
            None if there is no MLflow to ask, or it is away.
        """
        if self._pipeline is None:
            return None
        with suppressed_instrumentation():
            return self._pipeline.trace_url(trace_id, resource_attributes or {})

    def stats(self) -> Stats:
        """Counts of spans and requests since start."""
        return self._pipeline.stats() if self._pipeline else Stats()

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Waits for what `export` has left to the background.

        Args:
            timeout_millis: How long to wait at most.

        Returns:
            True if all of it was delivered within the time, or is safe on disk.
        """
        if self._pipeline is None:
            return True
        refused, deadline = self.refused(), time.monotonic() + timeout_millis / 1000
        self.hurry(timeout_millis / 1000)
        try:
            settled = self._pipeline.in_flight.wait(timeout_millis / 1000)
            self.drained(deadline - time.monotonic())
            self.told(deadline - time.monotonic())
            return settled and self.refused() == refused
        finally:
            self.relax()

    def shutdown(self, timeout_millis: float = 10_000) -> None:
        """Waits for what is being sent in the background, ends repetitions and closes connections.

        Args:
            timeout_millis: How long to wait at most.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            return
        pipeline.close(timeout_millis / 1000)
        super().shutdown()  # type: ignore[no-untyped-call]
