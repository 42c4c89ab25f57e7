"""Finds the experiment of a trace that MLflow has elsewhere than its spans are sent to.

MLflow 3.18 answers 400 to a request with spans of a trace that another experiment has, and stores none of its spans.
MLflow 3.12 and newer answers 200 if another workspace has a trace of the request, and stores none of its new traces.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.mlflow_api.experiments import parse_experiment_id
from mlflow_otlp_exporter._internal.mlflow_api.server import request_json
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport

# A service that sends to the experiment of another one learns again after this time if the trace was deleted there.
_VALID_SECONDS = 600.0
_MAX_TRACES = 10_000
_TRACES_PER_REQUEST, _MAX_SINGLE_REQUESTS = 100, 1000
_PATH = "/api/3.0/mlflow/traces"
_NO_REST_API = ExportOutcome(
    Disposition.PERMANENT,
    FailureKind.DESTINATION,
    "no MLflow server answers next to the OTLP endpoint",
    code=MessageCode.NO_MLFLOW_SERVER,
)
_NO_EXPERIMENT = ExportOutcome(
    Disposition.PERMANENT, FailureKind.NOT_MLFLOW, "the server's answer names no experiment", code=MessageCode.HTML_PAGE
)


class TraceLocator:
    """Asks MLflow's REST API for the experiments of traces, and remembers them for a while.

    `checks_workspaces` is false if a Collector may be between, which stores spans later than it accepts them.
    """

    def __init__(
        self, api: Transport | None, *, checks_workspaces: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._clock = api, clock
        self._checks_workspaces = checks_workspaces and api is not None
        self._has_workspaces, self._ask_again_at = False, 0.0
        self.locations: dict[tuple[str | None, int], tuple[str, float]] = {}
        self._stored: dict[tuple[str | None, int], None] = {}

    def experiment_of(self, workspace: str | None, trace_id: int) -> str | None:
        """The other experiment that has a trace, as far as it is known without a request."""
        experiment_id, until = self.locations.get((workspace, trace_id), (None, 0.0))
        return experiment_id if self._clock() < until else None

    def remember(self, workspace: str | None, trace_id: int, experiment_id: str) -> None:
        until = self._clock() + _VALID_SECONDS
        evict_oldest(self.locations, _MAX_TRACES)[workspace, trace_id] = (experiment_id, until)

    def forget(self, workspace: str | None, trace_ids: Collection[int]) -> None:
        for trace_id in trace_ids:
            self.locations.pop((workspace, trace_id), None)

    def locate(
        self, trace_id: int, other_ids: Iterable[int], workspace: str | None, timeout_seconds: float
    ) -> str | ExportOutcome:
        """The experiment of a trace, or why it is unknown; remembers which of the traces are in this experiment."""
        located = self.look_up(list(dict.fromkeys((trace_id, *other_ids))), workspace, timeout_seconds)
        location = located[trace_id]
        if isinstance(location, str):
            # Traces in further experiments are named by the server's next answers.
            for located_id, experiment_id in located.items():
                if experiment_id == location:
                    self.remember(workspace, located_id, location)
        return location

    def look_up(
        self, trace_ids: Sequence[int], workspace: str | None, timeout_seconds: float, *, confirms_missing: bool = False
    ) -> dict[int, str | ExportOutcome]:
        """The experiments of traces, or why they are unknown; the first trace has one of both in any case.

        `confirms_missing` asks again for each trace that is missing in a common answer.
        """
        if self._api is None:
            return dict.fromkeys(trace_ids, _NO_REST_API)
        common = self._look_up_together(trace_ids, workspace, timeout_seconds) if len(trace_ids) > 1 else None
        located: dict[int, str | ExportOutcome] = {**(common or {})}
        others = trace_ids[1:_MAX_SINGLE_REQUESTS] if confirms_missing or common is None else ()
        for trace_id in (trace_ids[0], *others):
            if trace_id in located:
                continue
            path = f"{_PATH}/{_name(trace_id)}"
            result = request_json(self._api, "GET", path, None, workspace=workspace, timeout_seconds=timeout_seconds)
            experiment_id = _read_experiment_id(_child(result.content, "trace"), trace_id)
            located[trace_id] = (experiment_id or _NO_EXPERIMENT) if result.is_ok else result.outcome
            is_refused = trace_id == trace_ids[0] and not result.is_ok and not confirms_missing
            if is_refused or result.outcome.cause is FailureKind.SERVER:
                break
        return located

    def _look_up_together(
        self, trace_ids: Sequence[int], workspace: str | None, timeout_seconds: float
    ) -> dict[int, str] | None:
        """The experiments of traces, without those that are missing; None if the server does not tell (before 3.17)."""
        assert self._api is not None
        located: dict[int, str] = {}
        for start in range(0, len(trace_ids), _TRACES_PER_REQUEST):
            names = {_name(trace_id): trace_id for trace_id in trace_ids[start : start + _TRACES_PER_REQUEST]}
            path, body = f"{_PATH}/batchGetInfos", {"trace_ids": list(names)}
            result = request_json(self._api, "POST", path, body, workspace=workspace, timeout_seconds=timeout_seconds)
            infos = result.content.get("trace_infos")
            for info in infos if result.is_ok and isinstance(infos, list) else ():
                trace_id = names.get(str(info.get("trace_id"))) if isinstance(info, dict) else None
                if trace_id is not None and (experiment_id := _read_experiment_id({"trace_info": info}, trace_id)):
                    located[trace_id] = experiment_id
            if not result.is_ok:
                return located or None
        return located

    def find_missing(self, trace_ids: Collection[int], workspace: str | None, timeout_seconds: float) -> set[int]:
        """The traces that MLflow does not have in a workspace; each trace is asked for until it is stored.

        A trace about which the server does not tell counts as stored.
        """
        if not self._checks_workspaces or not self._are_workspaces_enabled(workspace, timeout_seconds):
            return set()
        unknown = [trace_id for trace_id in trace_ids if (workspace, trace_id) not in self._stored]
        located = self.look_up(unknown, workspace, timeout_seconds, confirms_missing=True) if unknown else {}
        missing: set[int] = set()
        for trace_id, location in located.items():
            if isinstance(location, str):
                evict_oldest(self._stored, _MAX_TRACES)[workspace, trace_id] = None
            elif location.status == 404 and _name(trace_id) in location.message:
                missing.add(trace_id)
        return missing

    def _are_workspaces_enabled(self, workspace: str | None, timeout_seconds: float) -> bool:
        if workspace is None and self._api is not None and self._clock() >= self._ask_again_at:
            from mlflow_otlp_exporter._internal.mlflow_api import workspace as server_info  # few applications need it

            request = HttpRequest("GET", server_info.SERVER_INFO_PATH, timeout_seconds=timeout_seconds)
            response = self._api.send(request)
            answer = server_info.are_workspaces_enabled(response) if isinstance(response, HttpResponse) else None
            self._has_workspaces = bool(answer)
            self._ask_again_at = self._clock() + _VALID_SECONDS
        return workspace is not None or self._has_workspaces


def _name(trace_id: int) -> str:
    return f"tr-{trace_id:032x}"


def _child(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _read_experiment_id(trace: Mapping[str, Any], trace_id: int) -> str | None:
    info = _child(trace, "trace_info")
    location = _child(_child(info, "trace_location"), "mlflow_experiment")
    return parse_experiment_id(dict(location)) if info.get("trace_id") == _name(trace_id) else None


def format_console_url(url: str, experiment_id: str, trace_id: int | None, workspace: str | None) -> str:
    """The address of a trace in the MLflow console, which writes both names: older ones read the first.

    Without a trace: the address of the experiment.
    """
    query = {"selectedEvaluationId": _name(trace_id), "traceId": _name(trace_id)} if trace_id else {}
    if workspace:
        query["workspace"] = workspace
    return f"{url}/#/experiments/{experiment_id}/traces" + (f"?{urlencode(query)}" if query else "")


def explain_missing(outcome: ExportOutcome) -> str:
    if outcome.status == 404 and "tr-" in outcome.message:
        return (
            "MLflow does not have the trace yet; flush() sends its spans, which a Collector or gateway may hold for "
            "some time; check=False returns the address anyway"
        )
    return outcome.message or "the server's answer names no experiment"
