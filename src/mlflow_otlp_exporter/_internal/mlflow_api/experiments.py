"""Where spans go inside MLflow: workspace, experiment, run; and how an experiment's name becomes its id.

An empty experiment header is never sent: MLflow answers it with 200 from 3.13 on, and stores nothing.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.bounded_dict import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response, error_code

_DEFAULT_EXPERIMENT = "Default"
# ExperimentResolver whose ids are known at a time: an app with more of them looks those up again that it used first.
_KEPT = 4096
_EXPERIMENTS = "/api/2.0/mlflow/experiments"


class _Absent(Exception):
    """There is no MLflow REST side at the guessed address."""


class _Unresolved(Exception):
    def __init__(self, outcome: ExportOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class ExperimentResolver:
    """Experiment names and their ids, looked up through MLflow's REST side when they are first needed, and kept.

    Args:
        api: MLflow's REST side; None if there is none.
        certain: False if `api` is only a guess, behind which a Collector may be.
        create: Whether a missing experiment is created.
        report: Where to say what was chosen.
    """

    def __init__(self, api: Transport | None, *, certain: bool, create: bool, report: ProblemLog) -> None:
        self._api, self._certain, self._create, self._report = api, certain, create, report
        self._ids: dict[tuple[str | None, str], str] = {}
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[tuple[str | None, str], threading.Lock] = {}

    def _asking_for(self, destination: Destination) -> threading.Lock:
        """Held by the thread that asks for an experiment: others that need it wait, those that need another do not."""
        key = (destination.workspace, destination.experiment or destination.service_name or _DEFAULT_EXPERIMENT)
        with self._lock:
            return evict_oldest(self._asking, _KEPT).setdefault(key, threading.Lock())

    def id_of(self, destination: Destination, seconds: float) -> str | ExportOutcome | None:
        """The experiment's id.

        Args:
            destination: Where spans go.
            seconds: How long a request may take.

        Returns:
            The id; None if there is no MLflow to ask, so that spans go on without one; or what stands in the way.
        """
        if destination.experiment_id:
            return destination.experiment_id
        try:
            with self._asking_for(destination):
                return self._chosen(destination, seconds)
        except _Absent:
            self._report.once(logging.WARNING, add_code(MessageCode.NO_MLFLOW_SERVER, _nobody_to_ask(destination)))
            return None
        except _Unresolved as error:
            return error.outcome

    def forget(self, destination: Destination) -> None:
        """Looks a destination's experiment up anew the next time."""
        names = (destination.experiment, destination.service_name, _DEFAULT_EXPERIMENT)
        for name in filter(None, names):
            self._ids.pop((destination.workspace, name), None)

    def _chosen(self, destination: Destination, seconds: float) -> str:
        workspace = destination.workspace
        if destination.experiment:
            return self._id(workspace, destination.experiment, seconds)
        service = destination.service_name
        name = service or _DEFAULT_EXPERIMENT
        try:
            found = self._id(workspace, name, seconds)
        except _Unresolved as error:
            if error.outcome.cause is not FailureKind.DESTINATION or name == _DEFAULT_EXPERIMENT:
                raise
            name = _DEFAULT_EXPERIMENT
            found = self._id(workspace, name, seconds)
        why = "named like service.name" if name == service else "as none is named like service.name" if service else ""
        where = f"experiment {name!r} (id {found})" + (f" of workspace {workspace!r}" if workspace else "")
        self._report.once(
            logging.WARNING if name == _DEFAULT_EXPERIMENT else logging.INFO,
            add_code(
                MessageCode.NO_EXPERIMENT_SET,
                f"no experiment was given: traces go to {where}{', ' + why if why else ''}. "
                "Give experiment= or MLFLOW_EXPERIMENT_NAME to choose",
            ),
        )
        return found

    def _id(self, workspace: str | None, name: str, seconds: float) -> str:
        known = self._ids.get((workspace, name))
        if known is None:
            known = self._look_up(workspace, name, seconds)
            if known is None and self._create:
                # Of creates at the same time one wins; the others get RESOURCE_ALREADY_EXISTS, and can look it up.
                known = self._created(workspace, name, seconds) or self._look_up(workspace, name, seconds)
            if known is None:
                said = f"there is no experiment {name!r}{_in(workspace)}: create it, or give another"
                raise _Unresolved(_wrong(said, MessageCode.EXPERIMENT_NOT_FOUND))
            with self._lock:
                evict_oldest(self._ids, _KEPT)[workspace, name] = known
        return known

    def _look_up(self, workspace: str | None, name: str, seconds: float) -> str | None:
        path = f"{_EXPERIMENTS}/get-by-name?experiment_name={quote(name, safe='')}"
        answer = self._ask("GET", path, workspace, None, seconds)
        experiment = _object(answer).get("experiment")
        if answer.status == 200 and isinstance(experiment, dict) and experiment.get("experiment_id"):
            if experiment.get("lifecycle_stage") == "deleted":
                said = f"the experiment {name!r}{_in(workspace)} is deleted: restore it, or give another"
                raise _Unresolved(_wrong(said, MessageCode.EXPERIMENT_DELETED))
            return str(experiment["experiment_id"])
        outcome = classify_response(answer)
        missing = error_code(answer) == "RESOURCE_DOES_NOT_EXIST"
        if missing and "workspace" not in outcome.message.lower():
            return None
        if not self._certain and not missing:
            # A Collector, a login page or something else that is not MLflow: it is not asked again.
            if outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
                raise _Unresolved(outcome)
            self._api = None
            raise _Absent
        raise _Unresolved(self._explained(outcome, name))

    def _created(self, workspace: str | None, name: str, seconds: float) -> str | None:
        answer = self._ask("POST", f"{_EXPERIMENTS}/create", workspace, {"name": name}, seconds)
        found = _object(answer).get("experiment_id")
        if answer.status == 200 and found:
            said = f"created the experiment {name!r}{_in(workspace)} (id {found})"
            self._report.once(logging.INFO, add_code(MessageCode.EXPERIMENT_CREATED, said))
            return str(found)
        if error_code(answer) == "RESOURCE_ALREADY_EXISTS":
            return None
        raise _Unresolved(self._explained(classify_response(answer), name))

    def _ask(self, method: str, path: str, workspace: str | None, body: Any, seconds: float) -> HttpResponse:
        if self._api is None:
            raise _Absent
        headers = {"content-type": "application/json", **Destination(workspace=workspace).headers(None)}
        content = b"" if body is None else json.dumps(body).encode()
        answer = self._api.send(HttpRequest(method, path, headers=headers, body=content, timeout_seconds=seconds))
        if isinstance(answer, HttpResponse):
            return answer
        raise _Unresolved(classify_error(answer))

    @staticmethod
    def _explained(outcome: ExportOutcome, name: str) -> ExportOutcome:
        verdict, code = outcome.verdict, outcome.code
        if verdict is Disposition.DELIVERED:
            # A response that is a success for spans does not answer this question.
            verdict, code = Disposition.RETRY, MessageCode.HTML_PAGE
        elif code is MessageCode.PERMISSION_DENIED:
            code = MessageCode.LOOKUP_DENIED
        said = outcome.message or "an answer that is not MLflow's"
        message = f"the experiment {name!r} cannot be looked up: {said}"
        # Without its status: a 500 to this question is no reason to look for a span that the server trips over.
        return replace(
            outcome,
            status=None,
            verdict=verdict,
            cause=outcome.cause or FailureKind.NOT_MLFLOW,
            message=message,
            ambiguous=False,
            code=code,
        )


def _in(workspace: str | None) -> str:
    return f" in workspace {workspace!r}" if workspace else ""


def _object(answer: HttpResponse) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _wrong(message: str, code: MessageCode) -> ExportOutcome:
    return ExportOutcome(Disposition.RETRY, FailureKind.DESTINATION, message, code=code)


def _nobody_to_ask(destination: Destination) -> str:
    wanted = (
        f"experiment {destination.experiment!r} cannot"
        if destination.experiment
        else "no experiment was given and none can"
    )
    return (
        f"{wanted} be looked up, as no MLflow server answers beside the OTLP endpoint: spans are sent without an "
        "experiment header. Behind a Collector, let it add the header x-mlflow-experiment-id; else give experiment_id= "
        "or, for the look-up, MLFLOW_TRACKING_URI"
    )
