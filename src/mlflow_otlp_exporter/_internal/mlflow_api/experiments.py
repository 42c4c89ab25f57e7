"""Where spans go inside MLflow: workspace, experiment, run; and how an experiment's name becomes its id.

An empty experiment header is never sent: MLflow answers it with 200 from 3.13 on, and stores nothing.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import Code, coded
from mlflow_otlp_exporter._internal.common.fork import after_fork_in_child
from mlflow_otlp_exporter._internal.common.problem_log import Report
from mlflow_otlp_exporter._internal.tracing.routing import Route, fix_ended, in_attributes, route_of, with_room
from mlflow_otlp_exporter._internal.transport.messages import Answer, Transport
from mlflow_otlp_exporter._internal.transport.response import (
    Cause,
    Outcome,
    Verdict,
    error_code,
    read_answer,
    read_failure,
)

EXPERIMENT_HEADER = "x-mlflow-experiment-id"
WORKSPACE_HEADER = "x-mlflow-workspace"
RUN_HEADER = "x-mlflow-run-id"
_DEFAULT_EXPERIMENT = "Default"
# Experiments whose ids are known at a time: an app with more of them looks those up again that it used first.
_KEPT = 4096
_EXPERIMENTS = "/api/2.0/mlflow/experiments"


@dataclass(frozen=True)
class Destination:
    """Where a trace goes inside MLflow.

    Attributes:
        workspace: The workspace's name; None for the server's default.
        experiment: The experiment's name.
        experiment_id: The experiment's id, instead of a name.
        run_id: A run that the trace is linked to.
        service_name: The resource's `service.name`, after which an experiment is chosen if none was given.
    """

    workspace: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    service_name: str | None = None

    @property
    def route(self) -> Route:
        """All that a trace's own route could say in its place."""
        return Route(self.workspace, self.experiment, self.experiment_id, self.run_id)

    @property
    def name(self) -> str:
        """Workspace and experiment: what refuses or accepts spans, whatever run they belong to."""
        return f"{self.workspace}/{self.experiment or self.experiment_id}"

    def for_trace(self, attributes: Mapping[str, Any], route: Route | None = None) -> Destination:
        """This destination for a trace: its own route beats what its resource says, which beats what is here.

        Args:
            attributes: The resource's attributes: `mlflow.workspace`, `mlflow.experiment` and so on; `service.name`
                matters if there is no experiment.
            route: Where the trace goes; None for the default.
        """
        own = self.route
        for each in (in_attributes(attributes), route):
            own = own if each is None else each.inside(own)
        if own.experiment or own.experiment_id:
            return Destination(*own)
        name = str(attributes.get("service.name") or "").strip()
        # `unknown_service` is the SDK's way to say that the app gave no name.
        return Destination(*own, None if not name or name.startswith("unknown_service") else name)

    def headers(self, experiment_id: str | None) -> dict[str, str]:
        """The request headers, with the experiment's id as far as it is known."""
        found = {EXPERIMENT_HEADER: experiment_id, WORKSPACE_HEADER: self.workspace, RUN_HEADER: self.run_id}
        # A name that no header can hold is still sent, so that the server refuses it: a tenant's traces must not go to
        # the default for a mistyped name.
        return {
            name: value if value.isascii() and value.isprintable() else quote(value)
            for name, value in found.items()
            if value
        }


def by_destination(spans: Sequence[ReadableSpan], default: Destination) -> dict[Destination, list[ReadableSpan]]:
    """Groups spans by where they go, in their order: all of a trace to one destination."""
    for trace_id, route in routes_in_attributes(spans).items():
        fix_ended(trace_id, route)
    groups: dict[Destination, list[ReadableSpan]] = {}
    known: dict[tuple[int, Route | None], Destination] = {}
    for span in spans:
        context, resource = span.get_span_context(), span.resource
        key = (id(resource), route_of(context.trace_id) if context is not None else None)
        destination = known.get(key)
        if destination is None:
            destination = known[key] = default.for_trace(resource.attributes, key[1])
        groups.setdefault(destination, []).append(span)
    return groups


def routes_in_attributes(spans: Sequence[ReadableSpan]) -> dict[int, Route]:
    """Where traces go that no span processor of ours saw start: by the local root's attributes, else by any span's."""
    told: dict[int, Route] = {}
    for span in spans:
        attributes, context = span.attributes, span.get_span_context()
        if attributes and context is not None and (route := in_attributes(attributes)):
            if span.parent is None or span.parent.is_remote:
                told[context.trace_id] = route
            else:
                told.setdefault(context.trace_id, route)
    return told


class _Absent(Exception):  # noqa: N818 - an answer to a question, not a mistake
    """There is no MLflow REST side at the guessed address."""


class _Unresolved(Exception):  # noqa: N818 - carries a decision
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class Experiments:
    """Experiment names and their ids, looked up through MLflow's REST side when they are first needed, and kept.

    Args:
        api: MLflow's REST side; None if there is none.
        certain: False if `api` is only a guess, behind which a Collector may be.
        create: Whether a missing experiment is created.
        report: Where to say what was chosen.
    """

    def __init__(self, api: Transport | None, *, certain: bool, create: bool, report: Report) -> None:
        self._api, self._certain, self._create, self._report = api, certain, create, report
        self._ids: dict[tuple[str | None, str], str] = {}
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[tuple[str | None, str], threading.Lock] = {}

    def _asking_for(self, destination: Destination) -> threading.Lock:
        """Held by the thread that asks for an experiment: others that need it wait, those that need another do not."""
        key = (destination.workspace, destination.experiment or destination.service_name or _DEFAULT_EXPERIMENT)
        with self._lock:
            return with_room(self._asking, _KEPT).setdefault(key, threading.Lock())

    def id_of(self, destination: Destination, seconds: float) -> str | Outcome | None:
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
            self._report.once(logging.WARNING, coded(Code.NOBODY_TO_ASK, _nobody_to_ask(destination)))
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
            if error.outcome.cause is not Cause.DESTINATION or name == _DEFAULT_EXPERIMENT:
                raise
            name = _DEFAULT_EXPERIMENT
            found = self._id(workspace, name, seconds)
        why = "named like service.name" if name == service else "as none is named like service.name" if service else ""
        where = f"experiment {name!r} (id {found})" + (f" of workspace {workspace!r}" if workspace else "")
        self._report.once(
            logging.WARNING if name == _DEFAULT_EXPERIMENT else logging.INFO,
            coded(
                Code.EXPERIMENT_CHOSEN,
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
                raise _Unresolved(_wrong(said, Code.EXPERIMENT_UNKNOWN))
            with self._lock:
                with_room(self._ids, _KEPT)[workspace, name] = known
        return known

    def _look_up(self, workspace: str | None, name: str, seconds: float) -> str | None:
        path = f"{_EXPERIMENTS}/get-by-name?experiment_name={quote(name, safe='')}"
        answer = self._ask("GET", path, workspace, None, seconds)
        experiment = _object(answer).get("experiment")
        if answer.status == 200 and isinstance(experiment, dict) and experiment.get("experiment_id"):  # noqa: PLR2004
            if experiment.get("lifecycle_stage") == "deleted":
                said = f"the experiment {name!r}{_in(workspace)} is deleted: restore it, or give another"
                raise _Unresolved(_wrong(said, Code.EXPERIMENT_DELETED))
            return str(experiment["experiment_id"])
        outcome = read_answer(answer)
        missing = error_code(answer) == "RESOURCE_DOES_NOT_EXIST"
        if missing and "workspace" not in outcome.message.lower():
            return None
        if not self._certain and not missing:
            # A Collector, a login page or something else that is not MLflow: it is not asked again.
            if outcome.cause in (Cause.SERVER, Cause.CREDENTIALS):
                raise _Unresolved(outcome)
            self._api = None
            raise _Absent
        raise _Unresolved(self._explained(outcome, name))

    def _created(self, workspace: str | None, name: str, seconds: float) -> str | None:
        answer = self._ask("POST", f"{_EXPERIMENTS}/create", workspace, {"name": name}, seconds)
        found = _object(answer).get("experiment_id")
        if answer.status == 200 and found:  # noqa: PLR2004
            said = f"created the experiment {name!r}{_in(workspace)} (id {found})"
            self._report.once(logging.INFO, coded(Code.CREATED, said))
            return str(found)
        if error_code(answer) == "RESOURCE_ALREADY_EXISTS":
            return None
        raise _Unresolved(self._explained(read_answer(answer), name))

    def _ask(self, method: str, path: str, workspace: str | None, body: Any, seconds: float) -> Answer:
        if self._api is None:
            raise _Absent
        headers = {"content-type": "application/json", **Destination(workspace=workspace).headers(None)}
        content = None if body is None else json.dumps(body).encode()
        answer = self._api.request(method, path, headers=headers, body=content, seconds=seconds)
        if isinstance(answer, Answer):
            return answer
        raise _Unresolved(read_failure(answer))

    @staticmethod
    def _explained(outcome: Outcome, name: str) -> Outcome:
        hint = "; a token that may only export needs experiment_id= instead of a name" if outcome.status == 403 else ""  # noqa: PLR2004
        # An answer that is fine for spans is none to this question.
        verdict = Verdict.RETRY if outcome.verdict is Verdict.DELIVERED else outcome.verdict
        said = outcome.message or "an answer that is not MLflow's"
        message = f"the experiment {name!r} cannot be looked up: {said}{hint}"
        # Without its status: a 500 to this question is no reason to look for a span that the server trips over.
        return replace(
            outcome,
            status=None,
            verdict=verdict,
            cause=outcome.cause or Cause.NOT_MLFLOW,
            message=message,
            ambiguous=False,
            code=Code.LOOK_UP_DENIED if outcome.status == 403 else outcome.code,  # noqa: PLR2004
        )


def _in(workspace: str | None) -> str:
    return f" in workspace {workspace!r}" if workspace else ""


def _object(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _wrong(message: str, code: Code) -> Outcome:
    return Outcome(Verdict.RETRY, Cause.DESTINATION, message, code=code)


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
