"""The workspace of a pod's namespace, for requests that name none, where the server has such a workspace.

Whether it has is asked once, when the first request is made: a server without workspaces answers 500 to the header
(3.10 and newer), and one that keeps them elsewhere than in Kubernetes need not have one of that name.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import read_version
from mlflow_otlp_exporter._internal.model.destination import WORKSPACE_HEADER
from mlflow_otlp_exporter._internal.transport.messages import LONGEST_ANSWER, HttpResponse, Transport, TransportError
from mlflow_otlp_exporter._internal.transport.response import classify_response, server_message

_SERVER_INFO = "/api/3.0/mlflow/server-info"
# A namespace is labelled, and is a workspace from then on: looked for again after so many seconds.
_LOOK_AGAIN_SECONDS = 60.0


class _Away(Exception):
    def __init__(self, failure: TransportError) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NamespaceWorkspace:
    """The workspace that has a pod's namespace for its name.

    Args:
        api: MLflow's REST side.
        namespace: The pod's namespace.
        report: Where to say what was found.
        clock: Monotonic seconds.
    """

    def __init__(
        self, api: Transport, namespace: str, report: ProblemLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._namespace, self._report, self._clock = api, namespace, report, clock
        # What is known, and until when.
        self._found: str | None = None
        self._until = -1.0
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    @property
    def known(self) -> str | None:
        """The workspace, as far as that is known without asking."""
        return self._found

    def name(self, seconds: float) -> str | TransportError | None:
        """The workspace; None if requests are to go without one; or why that cannot be told now.

        Args:
            seconds: How long a request may take.
        """
        if self._clock() < self._until:
            return self._found
        with self._lock:
            if self._clock() < self._until:
                return self._found
            try:
                self._found = self._look(seconds)
            except _Away as error:
                return error.failure
            return self._found

    def _look(self, seconds: float) -> str | None:
        enabled = _workspaces_enabled(self._ask(_SERVER_INFO, {}, seconds))
        if not enabled:
            # An answer that is none, as that of a login page, says nothing about the next one: asked at every request,
            # as spans that go without a workspace once the server is back would land in another one.
            self._until = float("inf") if enabled is False else -1.0
            return None
        answer = self._ask("/version", {WORKSPACE_HEADER: self._namespace}, seconds)
        exists = _workspace_exists(answer)
        if exists is None:
            self._until = -1.0
            return None
        if exists:
            said = f"no workspace was given: traces go to {self._namespace!r}, which is the pod's namespace"
            more = "Give workspace= or MLFLOW_WORKSPACE to choose"
            self._report.once(logging.INFO, add_code(MessageCode.EXPORT_CONFIGURED, f"{said}. {more}"))
            self._until = float("inf")
            return self._namespace
        said = f"no workspace was given, and the pod's namespace {self._namespace!r} is none"
        more = f"({answer.status}: {server_message(answer)}). Give workspace= or MLFLOW_WORKSPACE"
        self._report.once(logging.WARNING, add_code(MessageCode.WORKSPACE_NOT_FOUND, f"{said} {more}"))
        self._until = self._clock() + _LOOK_AGAIN_SECONDS
        return None

    def _ask(self, path: str, headers: Mapping[str, str], seconds: float) -> HttpResponse:
        answer = self._api.request("GET", path, headers=headers, seconds=seconds)
        if isinstance(answer, TransportError):
            # Nothing was sent that could have arrived.
            raise _Away(TransportError(answer.message, credentials=answer.credentials))
        if answer.status >= 500 or answer.status == 429:
            raise _Away(
                TransportError(f"it cannot be told whether there are workspaces: {classify_response(answer).message}")
            )
        return answer


class WorkspaceTransport:
    """A server whose requests go to the workspace of the pod's namespace where they name none.

    Args:
        server: Sends the requests.
        workspace: Tells the workspace.

    Attributes:
        server: The same.
    """

    def __init__(self, server: Transport, workspace: NamespaceWorkspace) -> None:
        self.server, self._workspace = server, workspace

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        longest: int = LONGEST_ANSWER,
    ) -> HttpResponse | TransportError:
        """Sends one request; see `Connection.request`."""
        if WORKSPACE_HEADER not in headers:
            found = self._workspace.name(seconds)
            if isinstance(found, TransportError):
                return found
            if found:
                headers = {**headers, WORKSPACE_HEADER: found}
        return self.server.request(method, path, headers=headers, body=body, seconds=seconds, longest=longest)


def with_namespace_workspace(
    namespace: str, traces: Transport, api: Transport, report: ProblemLog
) -> tuple[Transport, Transport, NamespaceWorkspace]:
    """The OTLP endpoint and the REST side of one server, in the workspace of a namespace where none is named.

    Args:
        namespace: The pod's namespace.
        traces: The OTLP endpoint.
        api: The REST side.
        report: Where to say what was found.
    """
    workspace = NamespaceWorkspace(api, namespace, report)
    return WorkspaceTransport(traces, workspace), WorkspaceTransport(api, workspace), workspace


def _workspaces_enabled(answer: HttpResponse) -> bool | None:
    """Whether a server has workspaces; None if it did not say. MLflow before 3.10 has neither them nor the question."""
    if answer.status == 404:
        return False
    try:
        found = json.loads(answer.body) if answer.status == 200 else None
    except ValueError:
        return None
    return bool(found.get("workspaces_enabled")) if isinstance(found, dict) else None


def _workspace_exists(answer: HttpResponse) -> bool | None:
    """Whether a server that was asked for its version in a workspace has that one; None if it did not say."""
    if answer.status != 200:
        return False
    return True if read_version(answer) else None
