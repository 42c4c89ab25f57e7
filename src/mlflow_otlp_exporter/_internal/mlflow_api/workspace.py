"""The workspace of a pod's namespace, for requests that name no workspace, if the server has such a workspace.

The server is asked once, when the first request is made: a server without workspaces answers 500 to the header (3.10
and newer), and one that does not take its workspaces from Kubernetes need not have one of that name.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import parse_version
from mlflow_otlp_exporter._internal.model.destination import WORKSPACE_HEADER
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport, TransportError
from mlflow_otlp_exporter._internal.transport.response import classify_response, server_message

SERVER_INFO_PATH = "/api/3.0/mlflow/server-info"
# A namespace becomes a workspace when it gets a label; look again after this many seconds.
_RECHECK_SECONDS = 60.0


class _Unavailable(Exception):
    def __init__(self, error: TransportError) -> None:
        super().__init__(error.message)
        self.error = error


class NamespaceWorkspace:
    """The workspace that is named after a pod's namespace."""

    def __init__(
        self, api: Transport, namespace: str, problem_log: ProblemLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._namespace, self._problem_log, self._clock = api, namespace, problem_log, clock
        self._workspace: str | None = None
        self._valid_until = -1.0
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()

    @property
    def cached_name(self) -> str | None:
        """The workspace as far as it is known without a request."""
        return self._workspace

    def resolve(self, timeout_seconds: float) -> str | TransportError | None:
        """The workspace; None if requests shall name none; an error if the server cannot say now."""
        if self._clock() < self._valid_until:
            return self._workspace
        with self._lock:
            if self._clock() < self._valid_until:
                return self._workspace
            try:
                self._workspace = self._look_up(timeout_seconds)
            except _Unavailable as unavailable:
                return unavailable.error
            return self._workspace

    def _look_up(self, timeout_seconds: float) -> str | None:
        are_enabled = are_workspaces_enabled(self._request(SERVER_INFO_PATH, {}, timeout_seconds))
        if not are_enabled:
            # An unusable response, such as a login page, is not cached: spans that are sent without a workspace once
            # the server is available again would be stored in another workspace.
            self._valid_until = float("inf") if are_enabled is False else -1.0
            return None
        response = self._request("/version", {WORKSPACE_HEADER: self._namespace}, timeout_seconds)
        exists = _has_workspace(response)
        if exists is None:
            self._valid_until = -1.0
            return None
        if exists:
            message = (
                f"no workspace is configured: traces go to workspace {self._namespace!r}, the pod's namespace. "
                "Set workspace= or MLFLOW_WORKSPACE to choose another"
            )
            self._problem_log.log_once(logging.INFO, add_code(MessageCode.EXPORT_CONFIGURED, message))
            self._valid_until = float("inf")
            return self._namespace
        message = (
            f"no workspace is configured, and the pod's namespace {self._namespace!r} is not a workspace "
            f"({response.status}: {server_message(response)}). Set workspace= or MLFLOW_WORKSPACE"
        )
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.WORKSPACE_NOT_FOUND, message))
        self._valid_until = self._clock() + _RECHECK_SECONDS
        return None

    def _request(self, path: str, headers: Mapping[str, str], timeout_seconds: float) -> HttpResponse:
        response = self._api.send(HttpRequest("GET", path, headers=headers, timeout_seconds=timeout_seconds))
        if isinstance(response, TransportError):
            # The request of the caller was not sent, so it cannot have arrived.
            raise _Unavailable(TransportError(response.message, is_credential_error=response.is_credential_error))
        if response.status >= 500 or response.status == 429:
            message = f"cannot determine whether the server has workspaces: {classify_response(response).message}"
            raise _Unavailable(TransportError(message))
        return response


class WorkspaceTransport:
    """Adds the workspace of the pod's namespace to requests that name no workspace."""

    def __init__(self, server: Transport, workspace: NamespaceWorkspace) -> None:
        self.server, self._workspace = server, workspace

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        if WORKSPACE_HEADER not in request.headers:
            workspace = self._workspace.resolve(request.timeout_seconds)
            if isinstance(workspace, TransportError):
                return workspace
            if workspace:
                request = request._replace(headers={**request.headers, WORKSPACE_HEADER: workspace})
        return self.server.send(request)


def with_namespace_workspace(
    namespace: str, traces: Transport, api: Transport, problem_log: ProblemLog
) -> tuple[Transport, Transport, NamespaceWorkspace]:
    """Wrap the transports of a server's OTLP endpoint and REST API, and return the workspace that they share."""
    workspace = NamespaceWorkspace(api, namespace, problem_log)
    return WorkspaceTransport(traces, workspace), WorkspaceTransport(api, workspace), workspace


def are_workspaces_enabled(response: HttpResponse) -> bool | None:
    """None if the response does not say. MLflow before 3.10 has neither workspaces nor this path."""
    if response.status == 404:
        return False
    content = parse_json(response.body) if response.status == 200 else None
    return bool(content.get("workspaces_enabled")) if isinstance(content, dict) else None


def _has_workspace(response: HttpResponse) -> bool | None:
    """Read the response to `GET /version` in a workspace; None if it does not say whether the workspace exists."""
    if response.status != 200:
        return False
    return True if parse_version(response) else None
