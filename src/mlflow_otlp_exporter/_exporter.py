"""`MLflowSpanExporter`: OpenTelemetry's OTLP/HTTP span exporter, made for MLflow."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode, urlsplit

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter._delivery import Delivery, Request
from mlflow_otlp_exporter._destination import EXPERIMENT_HEADER, Destination, Experiments, by_destination
from mlflow_otlp_exporter._encoder import Encoder, assemble
from mlflow_otlp_exporter._report import Report, Stats, logger
from mlflow_otlp_exporter._response import Cause, Outcome, Verdict
from mlflow_otlp_exporter._settings import Settings, resolve
from mlflow_otlp_exporter._suppression import suppressed_instrumentation

if TYPE_CHECKING:
    import requests

_UPSTREAM_PARAMETERS = frozenset(inspect.signature(OTLPSpanExporter.__init__).parameters)
_ADVICE = {
    Cause.CREDENTIALS: "check the token, its file, or user and password",
    Cause.DESTINATION: "check experiment, workspace, and the permission to write there",
    Cause.NOT_MLFLOW: "check the address: it should be that of an MLflow server with a database (3.6 or newer)",
    Cause.SERVER: "check that the server is up",
    Cause.SIZE: "let the proxy in front of MLflow accept larger bodies",
    Cause.CONTENT: "the server took the request, not its content",
}


class _Pipeline:
    """What an exporter holds: settings, connections, delivery. One attribute, so that it meets none of upstream's."""

    def __init__(self, settings: Settings, session: requests.Session | None) -> None:
        # Here, not at the top: requests is half of the import time, and an app that only imports should not pay it.
        from mlflow_otlp_exporter._connection import Connection  # noqa: PLC0415

        self.settings = settings
        self.report = Report()
        self.encoder = Encoder()
        self.server = Connection(settings.traces, session)
        # A session of the user's may sign requests or hold proxies for this server, not for another one.
        same = settings.api is not None and urlsplit(settings.api.url).netloc == urlsplit(settings.traces.url).netloc
        self.api = Connection(settings.api, session if same else None) if settings.api else None
        self.destination = Destination(settings.workspace, settings.experiment, settings.experiment_id, settings.run_id)
        self.experiments = Experiments(
            self.api, certain=settings.api_certain, create=settings.create_experiment, report=self.report
        )
        self.delivery = Delivery(
            self.server,
            self.experiments,
            compression=settings.compression,
            report=self.report,
            experiment_is_set=EXPERIMENT_HEADER in self.server.header_names,
        )
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.delivery.close()
        self.server.close()
        if self.api:
            self.api.close()


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
        meter_provider: Handed on to upstream's constructor (OpenTelemetry 1.42 and newer).
        max_request_size: Handed on to upstream's constructor (OpenTelemetry 1.45 and newer).
        tracking_uri: The address of the MLflow server (`MLFLOW_TRACKING_URI`).
        experiment: The experiment's name (`MLFLOW_EXPERIMENT_NAME`), looked up at the first export, not here.
            Without name and id: the one named like `service.name`, else `Default`.
        experiment_id: The experiment's id, instead of its name (`MLFLOW_EXPERIMENT_ID`).
        workspace: The workspace (`MLFLOW_WORKSPACE`; MLflow 3.10 and newer).
        run_id: A run to link the traces to (MLflow 3.14 and newer).
        credentials: A token, a `pathlib.Path` of a token file, a (user, password) pair, or a function that returns a
            token or an Authorization header's value; asked before every request.
        create_experiment: Create the experiment if it does not exist (`MLFLOW_OTLP_CREATE_EXPERIMENT`; false).

    Raises:
        ConfigurationError: An argument, a variable or a file is wrong.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {}
    _pipeline: _Pipeline | None = None

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
        meter_provider: Any = None,
        max_request_size: int | None = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        experiment_id: str | int | None = None,
        workspace: str | None = None,
        run_id: str | None = None,
        credentials: str | tuple[str, str] | Callable[[], str | None] | Any = None,
        create_experiment: bool | None = None,
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
        }
        settings = resolve(arguments, defaults=self._defaults)
        self._assemble(settings, session, meter_provider=meter_provider, max_request_size=max_request_size)

    def _assemble(self, settings: Settings, session: requests.Session | None = None, **upstream: Any) -> None:
        import requests  # noqa: PLC0415 - see _Pipeline

        pipeline = _Pipeline(settings, session)
        server = settings.traces
        known = {name: value for name, value in upstream.items() if value is not None and name in _UPSTREAM_PARAMETERS}
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
            **known,
        )
        self._pipeline = pipeline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans and waits for what becomes of them; never raises.

        Returns:
            `SUCCESS` if the server has accepted all of them, else `FAILURE`; the log says why.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            logger.warning(
                "%d spans are refused: the exporter %s", len(spans), "is shut down" if pipeline else "is off"
            )
            return SpanExportResult.FAILURE
        try:
            with suppressed_instrumentation():
                groups = by_destination(spans, pipeline.destination)
                results = [self._send(pipeline, destination, group) for destination, group in groups.items()]
        except Exception:  # noqa: BLE001 - nothing of this library raises into the app
            pipeline.report.count(refused=len(spans))
            logger.exception("%d spans are lost by a mistake in this library; please report it", len(spans))
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS if all(results) else SpanExportResult.FAILURE

    def _send(self, pipeline: _Pipeline, destination: Destination, spans: Sequence[ReadableSpan]) -> bool:
        request = Request(destination, assemble([pipeline.encoder.encode(span) for span in spans]), len(spans))
        outcome = pipeline.delivery.deliver(request, pipeline.settings.timeout)
        key = f"{destination.workspace}/{destination.experiment or destination.experiment_id}"
        delivered = outcome.verdict is Verdict.DELIVERED
        refused = 0 if delivered else min(outcome.rejected, len(spans)) or len(spans)
        pipeline.report.count(delivered=len(spans) - refused, refused=refused)
        if delivered:
            pipeline.report.solved(key, f"spans are accepted again by {pipeline.server.url}")
            if outcome.message:
                pipeline.report.once(logging.WARNING, f"{pipeline.server.url} says: {outcome.message}")
        else:
            pipeline.report.problem(key, self._explained(pipeline, outcome), refused)
        return delivered

    @staticmethod
    def _explained(pipeline: _Pipeline, outcome: Outcome) -> str:
        said = f"spans are lost: {pipeline.server.url}: {outcome.message}"
        advice = _ADVICE.get(outcome.cause, "") if outcome.cause else ""
        if outcome.cause is Cause.CREDENTIALS:
            advice = f"credentials: {pipeline.server.credentials}; {advice}"
            if pipeline.server.unused_variables:
                names = ", ".join(pipeline.server.unused_variables)
                advice += f" ({names} not used: set for another server than the one that spans are sent to)"
        return f"{said}. {advice}" if advice else said

    def trace_url(self, trace_id: int, resource_attributes: Mapping[str, Any] | None = None) -> str | None:
        """The address of a trace in the MLflow console.

        Looks up the experiment if that has not happened yet, for at most the export's time-out.

        Args:
            trace_id: OpenTelemetry's trace id.
            resource_attributes: The resource's attributes; `service.name` matters if no experiment was given.

        Returns:
            None if there is no MLflow to ask, or it is away.
        """
        pipeline = self._pipeline
        if pipeline is None or pipeline.settings.api is None:
            return None
        destination = pipeline.destination.for_service(resource_attributes or {})
        with suppressed_instrumentation():
            experiment = pipeline.experiments.id_of(destination, pipeline.settings.timeout)
        if not isinstance(experiment, str):
            return None
        # The console itself writes both names: older ones read the first, newer ones the second.
        query = {"selectedEvaluationId": f"tr-{trace_id:032x}", "traceId": f"tr-{trace_id:032x}"}
        if destination.workspace:
            query["workspace"] = destination.workspace
        return f"{pipeline.settings.api.url}/#/experiments/{experiment}/traces?{urlencode(query)}"

    def stats(self) -> Stats:
        """Counts of spans and requests since start."""
        return self._pipeline.report.stats() if self._pipeline else Stats()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - upstream's signature
        """Nothing is kept in this exporter: `export` has returned when spans are through."""
        return True

    def shutdown(self, timeout_millis: int = 30_000) -> None:  # noqa: ARG002 - the SDK passes it from 1.36 on
        """Ends retries and closes connections; later exports are refused."""
        pipeline = self._pipeline
        if pipeline is None or pipeline.closed:
            return
        pipeline.close()
        super().shutdown()  # type: ignore[no-untyped-call]
