"""Resolution of experiment names to ids over MLflow's REST API.

An empty experiment header is never sent: MLflow answers it with 200 from 3.13 on, and stores nothing.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import RestResult, identify_server, request_json
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import MAX_RESPONSE_BYTES, Transport

_DEFAULT_EXPERIMENT = "Default"
# An application with more experiments looks the oldest ones up again.
_MAX_CACHED = 4096
# Limits of the names that a mistyped one is compared with.
_MAX_COMPARED, _MAX_COMPARED_LENGTH, _MIN_SIMILARITY = 200, 100, 0.8
# Between two lookups at a guessed address that does not answer.
_GUESS_SECONDS = 60.0
_EXPERIMENT_ID = r"[!-~](?:[ -~]{0,98}[!-~])?"  # printable ASCII
_EXPERIMENTS_PATH = "/api/2.0/mlflow/experiments"
# A slow server's response, which the timeout cut off: its status says nothing about the experiment.
_CUT_OFF = ExportOutcome(
    Disposition.RETRYABLE,
    FailureKind.SERVER,
    "the response did not arrive completely in time",
    code=MessageCode.RESPONSE_TIMEOUT,
)


class _NoRestApi(Exception):
    """No MLflow REST API answers at the guessed address."""


class _Unresolved(Exception):
    def __init__(self, outcome: ExportOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class ExperimentResolver:
    """Looks up the ids of experiments when they are first needed, and caches them.

    `certain=False` means that `api` is a guess, behind which a Collector may be. If it does not answer, spans are sent
    without experiment, as upstream sends them: MLflow rejects them, and the experiment is looked up before the retry.
    """

    def __init__(
        self,
        api: Transport | None,
        *,
        certain: bool,
        create: bool,
        problem_log: ProblemLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._certain, self._create, self._problem_log = api, certain, create, problem_log
        self._clock, self._silent_until = clock, 0.0
        self._ids: dict[tuple[str | None, str], str] = {}
        self.creates_similar = True  # the doctor does not create one for a name that may be mistyped
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lookup_locks: dict[tuple[str | None, str], threading.RLock] = {}

    def _lookup_lock(self, destination: Destination) -> threading.RLock:
        """A lock per experiment, so that a slow lookup delays only the threads that need the same experiment."""
        key = (destination.workspace, destination.experiment or destination.service_name or _DEFAULT_EXPERIMENT)
        return evict_oldest(self._lookup_locks, _MAX_CACHED).setdefault(key, threading.RLock())

    def has_api(self) -> bool:
        """Whether MLflow's REST API is known, or may answer at the guessed address."""
        return self._api is not None and self._clock() >= self._silent_until

    def resolve(self, destination: Destination, timeout_seconds: float) -> str | ExportOutcome | None:
        """The id of the experiment; None if no MLflow is known, so that spans are sent without id; or a failure."""
        if destination.trace_experiment_id or destination.experiment_id:
            return destination.trace_experiment_id or destination.experiment_id
        try:
            with self._lookup_lock(destination):
                return self._from_settings(destination, timeout_seconds)
        except _NoRestApi:
            if self._api is None:
                message = _no_rest_api_message(destination)
                self._problem_log.log_once(logging.WARNING, add_code(MessageCode.NO_MLFLOW_SERVER, message))
            return None
        except _Unresolved as error:
            return error.outcome

    def invalidate(self, destination: Destination) -> None:
        """Look up the destination's experiment again the next time."""
        self._silent_until = 0.0
        names = (destination.experiment, destination.service_name, _DEFAULT_EXPERIMENT)
        for name in filter(None, names):
            self._ids.pop((destination.workspace, name), None)

    def _from_settings(self, destination: Destination, timeout_seconds: float) -> str:
        workspace = destination.workspace
        if destination.experiment:
            return self._find_or_create(destination, destination.experiment, timeout_seconds)
        service = destination.service_name
        name = service or _DEFAULT_EXPERIMENT
        try:
            experiment_id = self._find_or_create(destination, name, timeout_seconds)
        except _Unresolved as error:
            if error.outcome.cause is not FailureKind.DESTINATION or name == _DEFAULT_EXPERIMENT:
                raise
            name = _DEFAULT_EXPERIMENT
            experiment_id = self._find_or_create(destination, name, timeout_seconds)
        reason = ""
        if service:
            reason = ", named after service.name" if name == service else ", because none is named after service.name"
        of_workspace = f" of workspace {workspace!r}" if workspace else ""
        message = (
            f"no experiment is configured: traces go to experiment {name!r} (id {experiment_id}){of_workspace}{reason}"
            ". Set experiment= or MLFLOW_EXPERIMENT_NAME to choose another, the same in all services of a trace"
        )
        level = logging.WARNING if name == _DEFAULT_EXPERIMENT else logging.INFO
        self._problem_log.log_once(level, add_code(MessageCode.NO_EXPERIMENT_SET, message))
        return experiment_id

    def _find_or_create(self, destination: Destination, name: str, timeout_seconds: float) -> str:
        workspace = destination.workspace
        experiment_id = self._ids.get((workspace, name))
        if experiment_id is None:
            experiment_id = self._look_up(workspace, name, timeout_seconds)
            creates, hint = self._create and destination.creation is None, ""
            if experiment_id is None and (creates or destination.experiment):
                closest = self._find_similar(workspace, name, timeout_seconds)
                hint = f". Did you mean {closest!r}?" if closest else ""
            if experiment_id is None and creates and (self.creates_similar or not (hint and destination.experiment)):
                # Of concurrent creations one succeeds; the others get RESOURCE_ALREADY_EXISTS, and can look it up.
                experiment_id = self._create_experiment(workspace, name, hint, timeout_seconds) or self._look_up(
                    workspace, name, timeout_seconds
                )
            if experiment_id is None:
                message = f"there is no experiment {name!r}{_in_workspace(workspace)}: create it, or give another{hint}"
                raise _Unresolved(_destination_error(message, MessageCode.EXPERIMENT_NOT_FOUND))
            evict_oldest(self._ids, _MAX_CACHED)[workspace, name] = experiment_id
        return experiment_id

    def _look_up(self, workspace: str | None, name: str, timeout_seconds: float) -> str | None:
        path = f"{_EXPERIMENTS_PATH}/get-by-name?experiment_name={quote(name, safe='')}"
        result = self._request("GET", path, None, workspace, timeout_seconds)
        outcome, experiment = result.outcome, result.content.get("experiment")
        experiment_id = parse_experiment_id(experiment) if isinstance(experiment, dict) else None
        if result.is_ok and isinstance(experiment, dict) and experiment_id:
            if experiment.get("lifecycle_stage") == "deleted":
                message = f"the experiment {name!r}{_in_workspace(workspace)} is deleted: restore it, or give another"
                raise _Unresolved(_destination_error(message, MessageCode.EXPERIMENT_DELETED))
            return experiment_id
        if result.is_ok and not result.is_complete:
            raise _Unresolved(_lookup_error(_CUT_OFF, name))
        is_missing = result.error_code == "RESOURCE_DOES_NOT_EXIST"
        if is_missing and "workspace" not in outcome.message.lower():
            return None
        if not self._certain and not is_missing:
            # A Collector, a login page or another server that is not MLflow is not asked again.
            if outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
                raise _Unresolved(outcome)
            self._api = None
            raise _NoRestApi
        raise _Unresolved(self._lookup_error(outcome, name, timeout_seconds))

    def _create_experiment(self, workspace: str | None, name: str, hint: str, timeout_seconds: float) -> str | None:
        result = self._request("POST", f"{_EXPERIMENTS_PATH}/create", {"name": name}, workspace, timeout_seconds)
        experiment_id = parse_experiment_id(result.content)
        if result.is_ok and experiment_id:
            message = f"created the experiment {name!r}{_in_workspace(workspace)} (id {experiment_id})"
            message += f", because there was none of this name{hint}"
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.EXPERIMENT_CREATED, message))
            return experiment_id
        if result.error_code == "RESOURCE_ALREADY_EXISTS":
            return None
        raise _Unresolved(self._lookup_error(result.outcome, name, timeout_seconds))

    def _lookup_error(self, outcome: ExportOutcome, name: str, timeout_seconds: float) -> ExportOutcome:
        if outcome.is_foreign and self._certain and self._api is not None:
            outcome = identify_server(self._api, outcome, timeout_seconds)
        return _lookup_error(outcome, name)

    def _find_similar(self, workspace: str | None, name: str, timeout_seconds: float) -> str | None:
        """The existing experiment with the most similar name, among those that changed last."""
        body = {"max_results": _MAX_COMPARED, "order_by": ["last_update_time DESC"]}
        try:
            result = self._request("POST", f"{_EXPERIMENTS_PATH}/search", body, workspace, timeout_seconds)
        except (_NoRestApi, _Unresolved):
            return None
        experiments = result.content.get("experiments") if result.is_ok else None
        names = [
            text
            for experiment in (experiments[:_MAX_COMPARED] if isinstance(experiments, list) else ())
            if isinstance(experiment, dict)
            and isinstance(text := experiment.get("name"), str)
            and text != name
            and text.isprintable()
            and len(text) <= _MAX_COMPARED_LENGTH
        ]
        import difflib  # imported only for an experiment that does not exist

        return next(iter(difflib.get_close_matches(name[:_MAX_COMPARED_LENGTH], names, 1, _MIN_SIMILARITY)), None)

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, workspace: str | None, timeout_seconds: float
    ) -> RestResult:
        api = self._api if self.has_api() else None
        if api is None:
            raise _NoRestApi
        result = request_json(
            api,
            method,
            path,
            body,
            workspace=workspace,
            timeout_seconds=timeout_seconds,
            max_response_bytes=MAX_RESPONSE_BYTES,
        )
        if result.is_ok or result.outcome.status is not None:
            return result
        if self._certain or result.outcome.cause is FailureKind.CREDENTIALS:
            raise _Unresolved(result.outcome)
        self._silent_until = self._clock() + _GUESS_SECONDS
        raise _NoRestApi


def _in_workspace(workspace: str | None) -> str:
    return f" in workspace {workspace!r}" if workspace else ""


def parse_experiment_id(experiment: Mapping[str, Any]) -> str | None:
    """Return the id if it can be a header value: the log and every request contain it."""
    experiment_id = str(experiment.get("experiment_id") or "")
    return experiment_id if re.fullmatch(_EXPERIMENT_ID, experiment_id) else None


def _destination_error(message: str, code: MessageCode) -> ExportOutcome:
    return ExportOutcome(Disposition.RETRYABLE, FailureKind.DESTINATION, message, code=code)


def _lookup_error(outcome: ExportOutcome, name: str) -> ExportOutcome:
    code = outcome.code
    if outcome.disposition is Disposition.SUCCESS:
        # A response that means success for spans does not answer a lookup.
        code = MessageCode.HTML_PAGE
    elif code is MessageCode.PERMISSION_DENIED:
        code = MessageCode.LOOKUP_DENIED
    reason = outcome.message or "an answer that is not MLflow's"
    # Without the status: a 500 to a lookup is no reason to search for a span at which the server fails.
    return outcome._replace(
        status=None,
        lookup_status=outcome.status,
        # Nothing that a server answers to a lookup says anything about the spans.
        disposition=Disposition.RETRYABLE,
        cause=FailureKind.NOT_MLFLOW
        if outcome.cause in (None, FailureKind.CONTENT, FailureKind.SIZE)
        else outcome.cause,
        message=f"the experiment {name!r} cannot be looked up: {reason}",
        may_have_arrived=False,
        code=code,
    )


def _no_rest_api_message(destination: Destination) -> str:
    problem = (
        f"experiment {destination.experiment!r} cannot be looked up"
        if destination.experiment
        else "no experiment is configured, and none can be looked up"
    )
    return (
        f"{problem}, because no MLflow server answers next to the OTLP endpoint: spans are sent without an experiment "
        "header. A gateway reads the name from the spans; a Collector must add the header x-mlflow-experiment-id; "
        "otherwise set experiment_id=, or MLFLOW_TRACKING_URI for the lookup"
    )
