"""`mlflow-otlp doctor`: all checks, from the settings to a test trace that is read back and deleted.

After a failed step, the remaining steps are skipped, because they would fail for the same reason.
"""

import email.utils
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus, create_failure, create_warning
from mlflow_otlp_exporter._internal.cli.doctor.connection_checks import check_connection
from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog, run_local_checks
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import (
    create_test_spans,
    find_missing_spans,
    mlflow_trace_id_of,
    read_experiment_id,
    read_trace,
)
from mlflow_otlp_exporter._internal.common.bounded import bounded_text
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.credentials import (
    CredentialsUnavailableError,
    describe_token,
    has_credential,
)
from mlflow_otlp_exporter._internal.config.models import SettingGroup, Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH
from mlflow_otlp_exporter._internal.delivery.clients import Clients, build_clients
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    OTLP_SINCE,
    RestResult,
    identify_server,
    parse_version,
    request_json,
)
from mlflow_otlp_exporter._internal.mlflow_api.workspace import SERVER_INFO_PATH
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import encode_request
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport, TransportError
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

TIMEOUT_SECONDS = 5.0
STEPS = (
    *("settings", "tracing", "packages", "instrumentations", "spool"),
    *("proxy", "name", "connection", "tls"),
    *("server", "clock", "endpoint", "credentials", "workspace", "experiment"),
    *("write", "read back", "delete"),
)
_INDEPENDENT_STEPS = ("tracing", "spool")
# MLflow 3.6 to 3.17 check everything about a request without spans, and store nothing.
_REQUEST_WITHOUT_SPANS = b"\x0a\x00"
_PROTOBUF = {"content-type": "application/x-protobuf"}
# Steps that a failed request to the endpoint concerns.
_STEP_BY_CODE = {
    MessageCode.UNAUTHENTICATED: "credentials",
    MessageCode.CREDENTIAL_UNAVAILABLE: "credentials",
    MessageCode.GATEWAY_UNAUTHENTICATED: "credentials",
    MessageCode.PERMISSION_DENIED: "write",
    MessageCode.GATEWAY_DENIED: "write",
    MessageCode.WORKSPACES_DISABLED: "workspace",
    MessageCode.WORKSPACE_NOT_FOUND: "workspace",
    MessageCode.WORKSPACE_REQUIRED: "workspace",
    MessageCode.AUTHORIZATION_CHECK_FAILED: "credentials",
}
_OTHER_SERVER_CODES = frozenset(
    {MessageCode.REDIRECTED, MessageCode.HTML_PAGE, MessageCode.HOST_NOT_ALLOWED, MessageCode.TLS_REQUIRED}
    | {MessageCode.TLS_REJECTED, MessageCode.HTTP2_ONLY, MessageCode.PROXY}
)
# Applications create such an experiment, but the doctor does not, because the name may be mistyped.
_SIMILAR_NAME_FIX = (
    "Correct `MLFLOW_EXPERIMENT_NAME` if it is mistyped. If it is a new experiment, start the application, which "
    "creates it, or run `mlflow experiments create --experiment-name NAME`."
)
# With a larger difference of the clocks, expired tokens seem valid, and traces appear at the wrong time.
_MAX_CLOCK_SKEW_SECONDS = 30.0
# A Collector forwards a trace with a delay.
_COLLECTOR_WAIT_SECONDS = 8.0


def run_checks(
    arguments: Mapping[str, Any], environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[CheckResult]:
    """Run all checks; `arguments` are settings of the command line, `defaults` those of `configure()`."""
    last_step = ""
    has_failed = False
    for result in _run_until_failure(arguments, environment, defaults):
        yield result
        last_step = result.step
        has_failed = has_failed or (result.status is CheckStatus.FAILED and result.step not in _INDEPENDENT_STEPS)
    if has_failed:
        for step in STEPS[STEPS.index(last_step) + 1 :]:
            yield CheckResult(step, CheckStatus.SKIPPED, f"because {last_step} failed", is_consequence=True)


def _run_until_failure(
    arguments: Mapping[str, Any], environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[CheckResult]:
    try:
        settings = resolve(arguments, environment=environment, defaults=defaults)
        log = RecordingLog()
        clients = build_clients(settings, log)
    except ConfigurationError as error:
        yield create_failure("settings", error.code, str(error.args[0]))
        return
    try:
        for result in _run_with_clients(settings, clients, log, environment):
            is_sent = has_credential(clients.server.credentials)
            yield result.with_address(settings.traces.url, settings.traces.url_variable, has_credential=is_sent)
    finally:
        clients.close()


def _run_with_clients(
    settings: Settings, clients: Clients, log: RecordingLog, environment: Mapping[str, str]
) -> Iterator[CheckResult]:
    yield from run_local_checks(settings)
    for result in check_connection(clients.server, settings.traces, environment):
        yield result
        if result.status is CheckStatus.FAILED:
            return
    yield from ServerChecks(settings, clients, log).run()


class ServerChecks:
    """Checks of one server."""

    def __init__(self, settings: Settings, clients: Clients, log: RecordingLog) -> None:
        self._settings, self._clients, self._log = settings, clients, log
        clients.experiments.creates_similar = False
        resource = Resource.create()
        self._destination = clients.destination.for_trace(resource.attributes)
        if settings.traces.group is not SettingGroup.MLFLOW:
            resource = resource.merge(Resource(self._destination.attributes))
        self._spans = create_test_spans(resource, "mlflow-otlp doctor")
        self._version: tuple[int, ...] | None = None
        self._has_workspaces: bool | None = None
        self._needs_experiment = True
        self._probe_outcome: ExportOutcome | None = None

    def run(self) -> Iterator[CheckResult]:
        """Check credentials, server, destination and a test trace."""
        try:
            self._clients.server.credentials.header_value()
        except CredentialsUnavailableError as error:
            yield create_failure("credentials", MessageCode.CREDENTIAL_UNAVAILABLE, str(error))
            return
        for check in (self._check_server, self._check_endpoint, self._check_experiment, self._check_write):
            for result in check():
                yield result
                if result.status is CheckStatus.FAILED:
                    return

    # Server

    def _check_server(self) -> Iterator[CheckResult]:
        if self._clients.api is None:
            yield CheckResult("server", CheckStatus.OK, "an OTLP endpoint; no setting names the MLflow server")
            return
        response = self._clients.api.send(HttpRequest("GET", "/version", timeout_seconds=TIMEOUT_SECONDS))
        if isinstance(response, TransportError):
            yield create_failure("server", response.code, response.message)
            return
        self._version = parse_version(response)
        if self._version:
            yield self._check_mlflow(self._clients.api)
        else:
            yield self._classify_other_server(self._clients.api, response)
        yield _check_clock(response)

    def _check_mlflow(self, api: Transport) -> CheckResult:
        assert self._version is not None
        number = ".".join(map(str, self._version))
        info = request_json(api, "GET", SERVER_INFO_PATH, None, workspace=None, timeout_seconds=TIMEOUT_SECONDS).content
        if info.get("store_type") == "FileStore":
            return create_failure("server", MessageCode.FILE_STORE, f"MLflow {number} with a file store")
        if self._version < OTLP_SINCE:
            detail = f"MLflow {number}, which does not support OpenTelemetry"
            return create_failure("server", MessageCode.OTLP_UNSUPPORTED, detail)
        self._has_workspaces = info.get("workspaces_enabled")
        state = "" if self._has_workspaces is None else f", workspaces {'on' if self._has_workspaces else 'off'}"
        return CheckResult("server", CheckStatus.OK, f"MLflow {number}{state}")

    def _classify_other_server(self, api: Transport, response: HttpResponse) -> CheckResult:
        """The server returned no version: a login page, a Collector, or MLflow that requires authentication."""
        outcome = classify_response(response)
        if outcome.code in _OTHER_SERVER_CODES:
            return create_failure("server", outcome.code, "not an MLflow server", outcome.message)
        if response.headers.get("server", "").startswith("mlflow-otlp-gateway/"):
            return CheckResult("server", CheckStatus.OK, f"{bounded_text(response.headers['server'], 100)}, a gateway")
        product = f" (server: {response.headers['server']})" if "server" in response.headers else ""
        if response.status == 401:
            return CheckResult(
                "server", CheckStatus.OK, f"requires authentication before it returns its version{product}"
            )
        if outcome.cause is FailureKind.SERVER:
            return create_failure("server", outcome.code, f"returns an error{product}", outcome.message)
        if self._settings.traces.group is SettingGroup.MLFLOW and (probe := self._probe()).is_foreign:
            other = identify_server(api, probe, TIMEOUT_SECONDS)
            if other.code is MessageCode.NOT_MLFLOW:
                return create_failure("server", other.code, "not an MLflow server", other.message)
        return CheckResult("server", CheckStatus.OK, f"returns no version: not MLflow, perhaps a Collector{product}")

    # Endpoint, credentials, workspace

    def _probe(self) -> ExportOutcome:
        """Send one request without spans and experiment."""
        if self._probe_outcome is None:
            headers = {**_PROTOBUF, **Destination(self._destination.workspace).headers(None)}
            response = self._clients.traces.send(
                HttpRequest("POST", "", headers=headers, body=_REQUEST_WITHOUT_SPANS, timeout_seconds=TIMEOUT_SECONDS)
            )
            self._probe_outcome = (
                classify_response(response) if isinstance(response, HttpResponse) else classify_error(response)
            )
        return self._probe_outcome

    def _check_endpoint(self) -> Iterator[CheckResult]:
        """Check all of them with one request without spans and experiment."""
        outcome = self._probe()
        where = getattr(self._clients.traces, "url", self._clients.server.url).partition("?")[0]
        is_ok = outcome.disposition is Disposition.SUCCESS or outcome.code is MessageCode.EXPERIMENT_REQUIRED
        step = "" if is_ok else _STEP_BY_CODE.get(outcome.code, "endpoint")
        if step == "endpoint":
            failure = create_failure(
                "endpoint", outcome.code, f"{where} is not a usable OTLP endpoint", outcome.message
            )
            if outcome.code is MessageCode.NO_OTLP_ENDPOINT and not where.endswith(TRACES_PATH):
                cause = (
                    "`/v1/traces` is appended only to `OTEL_EXPORTER_OTLP_ENDPOINT`, not to the endpoint for traces."
                )
                fix = f"Set `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={where}{TRACES_PATH}`."
                failure = replace(failure, cause=cause, fix=fix)
            yield failure
            return
        self._needs_experiment = outcome.disposition is not Disposition.SUCCESS
        kind = "requires an experiment, like MLflow" if self._needs_experiment else "requires no experiment"
        yield CheckResult("endpoint", CheckStatus.OK, where if step else f"{where}, which {kind}")
        yield self._check_credentials(outcome if step == "credentials" else None)
        if step == "credentials":
            return
        yield from self._check_workspace(outcome if step == "workspace" else None)
        if step == "write":
            yield create_failure("write", outcome.code, "not permitted", outcome.message)

    def _check_credentials(self, rejected: ExportOutcome | None) -> CheckResult:
        credentials = self._clients.server.credentials
        note = describe_token(credentials)
        if rejected is not None:
            return create_failure("credentials", rejected.code, f"{credentials}{note}", rejected.message)
        limit = "" if self._needs_experiment else " for a request without spans, which a Collector does not forward"
        return CheckResult("credentials", CheckStatus.OK, f"{credentials}{note}; accepted{limit}")

    def _check_workspace(self, rejected: ExportOutcome | None) -> Iterator[CheckResult]:
        name = self._destination.workspace
        source = self._settings.sources["workspace"]
        if rejected is not None:
            yield create_failure("workspace", rejected.code, f"{name} ({source})" if name else "none", rejected.message)
            return
        if not name:
            note = " (the server's default)" if self._has_workspaces else ""
            if self._has_workspaces and self._settings.namespace:
                note = f" set; the pod's namespace {self._settings.namespace} if there is such a workspace"
            yield CheckResult("workspace", CheckStatus.OK, f"none{note}")
            return
        if self._version is not None and self._version < (3, 10):
            detail = f"{name} ({source}), which MLflow before 3.10 ignores"
            yield create_warning("workspace", MessageCode.WORKSPACES_DISABLED, detail)
            return
        yield CheckResult("workspace", CheckStatus.OK, f"{name} ({source})")

    # Experiment

    def _check_experiment(self) -> Iterator[CheckResult]:
        if self._destination.experiment_id:
            yield self._check_experiment_id(self._destination.experiment_id)
            return
        resolved = self._clients.experiments.resolve(self._destination, TIMEOUT_SECONDS)
        code = f" [{MessageCode.EXPERIMENT_CREATED}]"  # printed with the result
        messages = "; ".join(message.removesuffix(code) for message in self._log.messages)
        if isinstance(resolved, ExportOutcome):
            name = self._destination.experiment or self._destination.service_name or "Default"
            detail = f"{name!r} ({self._experiment_source()})"
            failure = create_failure("experiment", resolved.code, detail, resolved.message)
            if resolved.code is MessageCode.EXPERIMENT_NOT_FOUND and self._settings.create_experiment:
                failure = replace(failure, fix=_SIMILAR_NAME_FIX)
            yield failure
        elif resolved is None:
            if self._needs_experiment:
                yield create_failure("experiment", MessageCode.EXPERIMENT_REQUIRED, messages)
            else:
                setting = self._destination.experiment
                detail = f"{setting!r} ({self._experiment_source()}), looked up" if setting else "chosen"
                yield CheckResult("experiment", CheckStatus.OK, f"{detail} by the receiver of the spans")
        else:
            name = f"{self._destination.experiment!r}, " if self._destination.experiment else ""
            detail = f"{name}id {resolved} ({self._experiment_source()}){f'; {messages}' if messages else ''}"
            if "Did you mean" in messages:  # named after service.name
                yield create_warning("experiment", MessageCode.EXPERIMENT_CREATED, detail)
            else:
                yield CheckResult("experiment", CheckStatus.OK, detail)

    def _experiment_source(self) -> str:
        sources = self._settings.sources
        if self._destination.experiment:
            return str(sources["experiment"])
        return "service.name" if self._destination.service_name else "default"

    def _check_experiment_id(self, experiment_id: str) -> CheckResult:
        detail = f"id {experiment_id} ({self._settings.sources['experiment_id']})"
        api = self._clients.api
        if api is None or not (self._clients.is_api_certain or self._version):
            return CheckResult("experiment", CheckStatus.OK, f"{detail}, not checked: the MLflow server is unknown")
        path = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment_id}"
        workspace = self._destination.workspace
        result = request_json(api, "GET", path, None, workspace=workspace, timeout_seconds=TIMEOUT_SECONDS)
        outcome, experiment = result.outcome, result.content.get("experiment")
        if outcome.status in (401, 403):
            return CheckResult(
                "experiment", CheckStatus.NOT_PERMITTED, f"{detail}, not checked: the token may not read it"
            )
        if isinstance(experiment, dict):
            if experiment.get("lifecycle_stage") == "deleted":
                return create_failure(
                    "experiment", MessageCode.EXPERIMENT_DELETED, f"{detail}, {experiment.get('name')!r}, is deleted"
                )
            return CheckResult("experiment", CheckStatus.OK, f"{detail}, {experiment.get('name')!r}")
        is_missing = result.error_code == "RESOURCE_DOES_NOT_EXIST" or result.is_ok
        code = MessageCode.EXPERIMENT_NOT_FOUND if is_missing else outcome.code
        return create_failure("experiment", code, detail, outcome.message)

    # A trace

    def _check_write(self) -> Iterator[CheckResult]:
        encoder = SpanEncoder()
        body = encode_request([encoder.encode(span) for span in self._spans])
        outcome = self._clients.otlp.export(self._destination, body, TIMEOUT_SECONDS)
        trace_id = mlflow_trace_id_of(self._spans)
        if outcome.disposition is not Disposition.SUCCESS:
            yield create_failure("write", outcome.code, f"the test trace {trace_id} was not accepted", outcome.message)
            return
        note = f"; {outcome.message}" if outcome.message else ""
        yield CheckResult("write", CheckStatus.OK, f"the test trace {trace_id} was accepted{note}")
        yield from self._check_read_back(trace_id)

    def _check_read_back(self, trace_id: str) -> Iterator[CheckResult]:
        api = self._clients.api
        if api is None or not (self._clients.is_api_certain or self._version):
            detail = "unknown whether the trace arrived in MLflow: no setting names the MLflow server"
            yield create_warning("read back", MessageCode.NO_MLFLOW_SERVER, detail)
            yield CheckResult("delete", CheckStatus.SKIPPED, f"{trace_id} remains where it arrived")
            return
        wait_seconds = 0.0 if self._needs_experiment else _COLLECTOR_WAIT_SECONDS
        workspace = self._destination.workspace
        result = read_trace(api, trace_id, workspace, wait_seconds=wait_seconds, timeout_seconds=TIMEOUT_SECONDS)
        trace = result.content.get("trace")
        if not result.is_ok or not isinstance(trace, dict):
            yield from self._report_unreadable_trace(result, trace_id)
            return
        missing = find_missing_spans(self._spans, trace)
        if missing:
            detail = f"spans are missing in MLflow: {', '.join(missing)}"
            yield create_failure("read back", MessageCode.NOT_DELIVERED, detail)
            return
        detail = "MLflow has both spans" if "spans" in trace else "MLflow has the trace; before 3.8 it returns no spans"
        yield CheckResult("read back", CheckStatus.OK, detail)
        yield self._check_delete(api, trace_id, read_experiment_id(trace))

    def _report_unreadable_trace(self, result: RestResult, trace_id: str) -> Iterator[CheckResult]:
        outcome = result.outcome
        if outcome.status is None and not result.is_ok:  # no response
            yield create_failure("read back", outcome.code, outcome.message)
            return
        if outcome.status in (401, 403):
            detail = "the token may write, but not read"
            yield CheckResult("read back", CheckStatus.NOT_PERMITTED, detail, outcome.message)
            yield CheckResult("delete", CheckStatus.NOT_PERMITTED, f"{trace_id} remains in MLflow")
            return
        is_missing = outcome.status == 404 and not self._needs_experiment
        code = MessageCode.NOT_DELIVERED if is_missing else outcome.code
        detail = "MLflow does not have the trace" if is_missing else "the trace could not be read"
        yield create_failure("read back", code, detail, outcome.message)

    def _check_delete(self, api: Transport, trace_id: str, experiment_id: str) -> CheckResult:
        body = {"experiment_id": experiment_id, "request_ids": [trace_id]}
        path, workspace = "/api/3.0/mlflow/traces/delete-traces", self._destination.workspace
        result = request_json(api, "POST", path, body, workspace=workspace, timeout_seconds=TIMEOUT_SECONDS)
        outcome = result.outcome
        if result.is_ok:
            return CheckResult("delete", CheckStatus.OK, f"{trace_id} is deleted")
        if outcome.status is None:  # no response
            detail = f"{trace_id} remains in MLflow: {outcome.message}"
            return CheckResult("delete", CheckStatus.WARNING, detail, code=outcome.code)
        status = CheckStatus.NOT_PERMITTED if outcome.status in (401, 403) else CheckStatus.WARNING
        return CheckResult("delete", status, f"{trace_id} remains in MLflow", outcome.message)


def _check_clock(response: HttpResponse) -> CheckResult:
    try:
        server_time = email.utils.parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        return CheckResult("clock", CheckStatus.SKIPPED, "the server's response has no date")
    difference = time.time() - server_time
    if abs(difference) < _MAX_CLOCK_SKEW_SECONDS:
        return CheckResult("clock", CheckStatus.OK, "matches the server's clock")
    detail = f"{difference:.0f} s ahead of the server's clock"
    if difference < 0:
        detail = f"{-difference:.0f} s behind the server's clock"
    return create_warning("clock", MessageCode.CLOCK_SKEW, detail)
