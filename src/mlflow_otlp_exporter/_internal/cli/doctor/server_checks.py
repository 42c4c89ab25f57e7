"""`mlflow-otlp doctor`: from the settings to a trace that was read back and deleted, step by step.

A step that fails ends the way, as the next ones would only say the same in other words; they are told as skipped.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.resources import Resource

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus
from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog, run_local_checks
from mlflow_otlp_exporter._internal.cli.doctor.probe import failed, probe
from mlflow_otlp_exporter._internal.cli.doctor.trace_check import (
    delete,
    differences,
    experiment_of,
    read_back,
    trace_id_of,
    two_spans,
)
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.hints import HINTS
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH
from mlflow_otlp_exporter._internal.delivery.clients import Clients, build_clients
from mlflow_otlp_exporter._internal.delivery.otlp_client import EncodedBatch
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.server import parse_version
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import encode_request
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.authorization import CredentialsUnavailableError, read_token_expiry
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, TransportError
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response, error_code

SECONDS = 5.0
STEPS = (
    "settings",
    "packages",
    "instrumentations",
    "spool",
    "proxy",
    "name",
    "connection",
    "tls",
    "server",
    "clock",
    "endpoint",
    "credentials",
    "workspace",
    "experiment",
    "write",
    "read back",
    "delete",
)
# A request without a span: everything about it is checked, and nothing is stored (MLflow 3.6 to 3.17).
_EMPTY = b"\x0a\x00"
_PROTOBUF = {"content-type": "application/x-protobuf"}
# What a look at the endpoint can say about later steps.
_STEP_OF = {
    MessageCode.UNAUTHENTICATED: "credentials",
    MessageCode.CREDENTIAL_UNAVAILABLE: "credentials",
    MessageCode.PERMISSION_DENIED: "write",
    MessageCode.WORKSPACES_DISABLED: "workspace",
    MessageCode.WORKSPACE_NOT_FOUND: "workspace",
    MessageCode.WORKSPACE_REQUIRED: "workspace",
    MessageCode.AUTHORIZATION_CHECK_FAILED: "credentials",
}
# Clocks that differ by so much make expired tokens look good, and traces appear at the wrong time.
_CLOCK_SECONDS = 30.0
# How long a Collector may take to pass a trace on.
_COLLECTOR_SECONDS = 8.0
_OLDEST = (3, 6)


def run_checks(
    arguments: Mapping[str, Any], environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[CheckResult]:
    """Goes all steps.

    Args:
        arguments: Settings of the command line, by name.
        environment: Environment variables.
        defaults: Defaults of `configure()`.
    """
    last = ""
    broken = False
    for finding in _way(arguments, environment, defaults):
        yield finding
        last, broken = finding.step, broken or (finding.state is CheckStatus.FAILED and finding.step != "spool")
    if broken:
        rest = STEPS[STEPS.index(last) + 1 :]
        for step in rest:
            yield CheckResult(step, CheckStatus.SKIPPED, f"as {last} failed")


def _way(
    arguments: Mapping[str, Any], environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[CheckResult]:
    try:
        settings = resolve(arguments, environment=environment, defaults=defaults)
        notes = RecordingLog()
        found = build_clients(settings, notes)
    except ConfigurationError as error:
        yield failed("settings", error.code, str(error.args[0]))
        return
    try:
        yield from run_local_checks(settings)
        for finding in probe(settings.traces, environment):
            yield finding
            if finding.state is CheckStatus.FAILED:
                return
        yield from _Examination(settings, found, notes).findings()
    finally:
        found.close()


class _Examination:
    """Asks one server."""

    def __init__(self, settings: Settings, found: Clients, notes: RecordingLog) -> None:
        self._settings, self._reach, self._notes = settings, found, notes
        resource = Resource.create()
        self._spans = two_spans(resource, "mlflow-otlp doctor")
        self._destination = found.destination.for_trace(resource.attributes)
        self._version: tuple[int, ...] | None = None
        self._workspaces: bool | None = None
        self._needs_experiment = True

    def findings(self) -> Iterator[CheckResult]:
        """From the server's kind to the deleted trace."""
        try:
            self._reach.server.credentials.authorization()
        except CredentialsUnavailableError as error:
            yield failed("credentials", MessageCode.CREDENTIAL_UNAVAILABLE, str(error))
            return
        for step in (self._server, self._endpoint, self._experiment, self._write):
            for finding in step():
                yield finding
                if finding.state is CheckStatus.FAILED:
                    return

    # Server

    def _server(self) -> Iterator[CheckResult]:
        if self._reach.api is None:
            yield CheckResult("server", CheckStatus.OK, "an OTLP endpoint; nothing says where MLflow is")
            return
        answer = self._reach.api.send(HttpRequest("GET", "/version", timeout_seconds=SECONDS))
        if isinstance(answer, TransportError):
            yield failed("server", answer.code, answer.message)
            return
        self._version = parse_version(answer)
        if self._version:
            yield self._mlflow()
        else:
            yield self._unknown(answer)
        yield _clock(answer)

    def _mlflow(self) -> CheckResult:
        assert self._reach.api is not None
        assert self._version is not None
        number = ".".join(map(str, self._version))
        features = self._reach.api.send(HttpRequest("GET", "/api/3.0/mlflow/server-info", timeout_seconds=SECONDS))
        info = _object(features)
        if info.get("store_type") == "FileStore":
            return failed("server", MessageCode.FILE_STORE, f"MLflow {number} with a file store")
        if self._version < _OLDEST:
            found = f"MLflow {number}, which takes no OpenTelemetry"
            fix = "Use MLflow 3.6 or newer: `pip install --upgrade mlflow`."
            return replace(failed("server", MessageCode.NO_OTLP_ENDPOINT, found), fix=fix)
        self._workspaces = info.get("workspaces_enabled")
        spoken = "" if self._workspaces is None else f", workspaces {'on' if self._workspaces else 'off'}"
        return CheckResult("server", CheckStatus.OK, f"MLflow {number}{spoken}")

    def _unknown(self, answer: HttpResponse) -> CheckResult:
        """Something that does not tell a version: a login page, a Collector, an MLflow that wants to know who asks."""
        outcome = classify_response(answer)
        if outcome.code in (
            MessageCode.REDIRECTED,
            MessageCode.HTML_PAGE,
            MessageCode.HOST_NOT_ALLOWED,
            MessageCode.TLS_REQUIRED,
        ):
            return failed("server", outcome.code, "no MLflow", outcome.message)
        by = f" (server: {answer.headers['server']})" if "server" in answer.headers else ""
        if answer.status == 401:
            return CheckResult("server", CheckStatus.OK, f"wants to know who asks, before it tells its version{by}")
        if outcome.cause is FailureKind.SERVER:
            return failed("server", outcome.code, f"answers, but not well{by}", outcome.message)
        return CheckResult("server", CheckStatus.OK, f"tells no version: no MLflow, perhaps a Collector{by}")

    # Endpoint, credentials, workspace

    def _endpoint(self) -> Iterator[CheckResult]:
        """One request without a span and without an experiment tells of all these."""
        headers = {**_PROTOBUF, **Destination(self._destination.workspace).headers(None)}
        answer = self._reach.traces.send(HttpRequest("POST", "", headers=headers, body=_EMPTY, timeout_seconds=SECONDS))
        outcome = classify_response(answer) if isinstance(answer, HttpResponse) else classify_error(answer)
        where = getattr(self._reach.traces, "url", self._reach.server.url).partition("?")[0]
        passed = outcome.disposition is Disposition.SUCCESS or outcome.code is MessageCode.EXPERIMENT_REQUIRED
        step = "" if passed else _STEP_OF.get(outcome.code, "endpoint")
        if step == "endpoint":
            found = failed("endpoint", outcome.code, f"{where} is no OTLP endpoint that can be used", outcome.message)
            if outcome.code is MessageCode.NO_OTLP_ENDPOINT and not where.endswith(TRACES_PATH):
                cause = (
                    "`/v1/traces` is appended only to `OTEL_EXPORTER_OTLP_ENDPOINT`, not to the endpoint for traces."
                )
                fix = f"Set `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={where}{TRACES_PATH}`."
                found = replace(found, cause=cause, fix=fix)
            yield found
            return
        self._needs_experiment = outcome.disposition is not Disposition.SUCCESS
        kind = "wants an experiment, as MLflow's does" if self._needs_experiment else "wants no experiment"
        yield CheckResult("endpoint", CheckStatus.OK, where if step else f"{where}, which {kind}")
        yield self._credentials(outcome if step == "credentials" else None)
        if step == "credentials":
            return
        yield from self._workspace(outcome if step == "workspace" else None)
        if step == "write":
            yield failed("write", outcome.code, "not permitted", outcome.message)

    def _credentials(self, refused: ExportOutcome | None) -> CheckResult:
        given = self._reach.server.credentials
        ends = read_token_expiry(given.authorization())
        life = "" if ends is None else f", {_lifetime(ends - time.time())}"
        if refused is not None:
            return failed("credentials", refused.code, f"{given}{life}", refused.message)
        return CheckResult("credentials", CheckStatus.OK, f"{given}{life}; accepted")

    def _workspace(self, refused: ExportOutcome | None) -> Iterator[CheckResult]:
        name = self._destination.workspace
        source = self._settings.sources["workspace"]
        if refused is not None:
            yield failed("workspace", refused.code, f"{name} ({source})" if name else "none", refused.message)
            return
        if not name:
            note = " (the server's default)" if self._workspaces else ""
            if self._workspaces and self._settings.namespace:
                note = f" given; {self._settings.namespace}, the pod's namespace, if there is such a one"
            yield CheckResult("workspace", CheckStatus.OK, f"none{note}")
            return
        if self._version is not None and self._version < (3, 10):
            code = MessageCode.WORKSPACES_DISABLED
            found = f"{name} ({source}), which MLflow before 3.10 does not know: it is not looked at"
            yield CheckResult("workspace", CheckStatus.WARNING, found, "", *HINTS[code], code)
            return
        yield CheckResult("workspace", CheckStatus.OK, f"{name} ({source})")

    # Experiment

    def _experiment(self) -> Iterator[CheckResult]:
        if self._destination.experiment_id:
            yield self._by_id(self._destination.experiment_id)
            return
        found = self._reach.experiments.resolve(self._destination, SECONDS)
        said = "; ".join(self._notes.said)
        if isinstance(found, ExportOutcome):
            name = self._destination.experiment or self._destination.service_name or "Default"
            yield failed("experiment", found.code, f"{name!r} ({self._named()})", found.message)
        elif found is None:
            if self._needs_experiment:
                yield failed("experiment", MessageCode.EXPERIMENT_REQUIRED, said)
            else:
                yield CheckResult("experiment", CheckStatus.OK, said or "left to what takes the spans")
        else:
            name = f"{self._destination.experiment!r}, " if self._destination.experiment else ""
            note = f"; {said}" if said else ""
            yield CheckResult("experiment", CheckStatus.OK, f"{name}id {found} ({self._named()}){note}")

    def _named(self) -> str:
        sources = self._settings.sources
        if self._destination.experiment:
            return str(sources["experiment"])
        return "service.name" if self._destination.service_name else "default"

    def _by_id(self, number: str) -> CheckResult:
        line = f"id {number} ({self._settings.sources['experiment_id']})"
        api = self._reach.api
        if api is None or not (self._reach.is_api_certain or self._version):
            return CheckResult("experiment", CheckStatus.OK, f"{line}, not checked: no MLflow to ask")
        headers = Destination(self._destination.workspace).headers(None)
        path = f"/api/2.0/mlflow/experiments/get?experiment_id={number}"
        answer = api.send(HttpRequest("GET", path, headers=headers, timeout_seconds=SECONDS))
        if isinstance(answer, TransportError):
            return failed("experiment", answer.code, line, answer.message)
        if answer.status in (401, 403):
            return CheckResult(
                "experiment", CheckStatus.NOT_PERMITTED, f"{line}, not checked: the token may not read it"
            )
        experiment = _object(answer).get("experiment")
        if isinstance(experiment, dict):
            if experiment.get("lifecycle_stage") == "deleted":
                return failed(
                    "experiment", MessageCode.EXPERIMENT_DELETED, f"{line}, {experiment.get('name')!r}, is deleted"
                )
            return CheckResult("experiment", CheckStatus.OK, f"{line}, {experiment.get('name')!r}")
        outcome = classify_response(answer)
        missing = error_code(answer) == "RESOURCE_DOES_NOT_EXIST"
        code = (
            MessageCode.EXPERIMENT_NOT_FOUND if missing or outcome.disposition is Disposition.SUCCESS else outcome.code
        )
        return failed("experiment", code, line, outcome.message)

    # A trace

    def _write(self) -> Iterator[CheckResult]:
        encoder = SpanEncoder()
        body = encode_request([encoder.encode(span) for span in self._spans])
        outcome = self._reach.otlp.export(EncodedBatch(self._destination, body, len(self._spans)), SECONDS)
        trace_id = trace_id_of(self._spans)
        if outcome.disposition is not Disposition.SUCCESS:
            yield failed("write", outcome.code, f"the test trace {trace_id} was not accepted", outcome.message)
            return
        note = f"; {outcome.message}" if outcome.message else ""
        yield CheckResult("write", CheckStatus.OK, f"the test trace {trace_id} was accepted{note}")
        yield from self._read_back(trace_id)

    def _read_back(self, trace_id: str) -> Iterator[CheckResult]:
        api = self._reach.api
        if api is None or not (self._reach.is_api_certain or self._version):
            code = MessageCode.NO_MLFLOW_SERVER
            found = "whether it arrived in MLflow is not known: nothing says where MLflow is"
            yield CheckResult("read back", CheckStatus.WARNING, found, "", *HINTS[code], code)
            yield CheckResult("delete", CheckStatus.SKIPPED, f"{trace_id} stays where it arrived")
            return
        wait = 0.0 if self._needs_experiment else _COLLECTOR_SECONDS
        trace = read_back(api, trace_id, self._destination, wait=wait, seconds=SECONDS)
        if isinstance(trace, TransportError):
            yield failed("read back", trace.code, trace.message)
            return
        if isinstance(trace, HttpResponse):
            yield from self._not_read(trace, trace_id)
            return
        different = differences(self._spans, trace)
        if different:
            yield failed("read back", MessageCode.NOT_DELIVERED, different)
            return
        compared = "as it was sent" if "spans" in trace else "there; MLflow before 3.8 does not give spans back"
        yield CheckResult("read back", CheckStatus.OK, compared)
        yield self._deleted(trace_id, experiment_of(trace))

    def _not_read(self, answer: HttpResponse, trace_id: str) -> Iterator[CheckResult]:
        outcome = classify_response(answer)
        if answer.status in (401, 403):
            found = "the token may write, but not read"
            yield CheckResult("read back", CheckStatus.NOT_PERMITTED, found, said=outcome.message)
            yield CheckResult("delete", CheckStatus.NOT_PERMITTED, f"{trace_id} stays")
            return
        missing = answer.status == 404 and not self._needs_experiment
        code = MessageCode.NOT_DELIVERED if missing else outcome.code
        found = "MLflow does not have the trace" if missing else "the trace is not there"
        yield failed("read back", code, found, outcome.message)

    def _deleted(self, trace_id: str, experiment: str) -> CheckResult:
        assert self._reach.api is not None
        answer = delete(self._reach.api, trace_id, self._destination, experiment, SECONDS)
        if isinstance(answer, TransportError):
            return CheckResult("delete", CheckStatus.WARNING, f"{trace_id} stays: {answer.message}", code=answer.code)
        if answer.status == 200:
            return CheckResult("delete", CheckStatus.OK, f"{trace_id} is deleted")
        outcome = classify_response(answer)
        state = CheckStatus.NOT_PERMITTED if answer.status in (401, 403) else CheckStatus.WARNING
        return CheckResult("delete", state, f"{trace_id} stays", said=outcome.message)


def _clock(answer: HttpResponse) -> CheckResult:
    """How far the server's clock is from the one here."""
    try:
        theirs = email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (TypeError, ValueError):
        return CheckResult("clock", CheckStatus.SKIPPED, "the server's response has no date")
    difference = time.time() - theirs
    if abs(difference) < _CLOCK_SECONDS:
        return CheckResult("clock", CheckStatus.OK, "matches the server's clock")
    code = MessageCode.CLOCK_SKEW
    seconds = abs(difference)
    found = (
        f"{seconds:.0f} s ahead of the server's clock"
        if difference > 0
        else f"{seconds:.0f} s behind the server's clock"
    )
    return CheckResult("clock", CheckStatus.WARNING, found, "", *HINTS[code], code)


def _lifetime(seconds: float) -> str:
    minutes = abs(seconds) / 60
    return f"which expired {minutes:.0f} min ago" if seconds < 0 else f"good for {minutes:.0f} more min"


def _object(answer: HttpResponse | TransportError) -> dict[str, Any]:
    try:
        found = json.loads(answer.body) if isinstance(answer, HttpResponse) else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
