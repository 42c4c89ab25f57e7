"""The workspace of a pod's namespace: requested once, and used only if it exists."""

import json
from collections.abc import Mapping

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.workspace import NamespaceWorkspace, WorkspaceTransport
from mlflow_otlp_exporter._internal.transport.http_types import (
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.transport import workspace_of

INFO, VERSION = "/api/3.0/mlflow/server-info", "/version"
VERSION_RESPONSE = HttpResponse(200, {"content-type": "text/html"}, b"3.17.2")
PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<!doctype html><title>Sign in</title>")
HEADER = "x-mlflow-workspace"


class Server:
    """Answers each path from a table, and records the workspace of each request."""

    def __init__(self, answers: Mapping[str, HttpResponse | TransportError]) -> None:
        self.answers = dict(answers)
        self.calls: list[tuple[str, str | None]] = []

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        self.calls.append((request.path, workspace_of(request)))
        return self.answers.get(request.path, HttpResponse(200))


def info(enabled: bool) -> HttpResponse:
    return HttpResponse(200, body=json.dumps({"workspaces_enabled": enabled}).encode())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_workspace(server: Server, clock: Clock | None = None) -> NamespaceWorkspace:
    return NamespaceWorkspace(server, "team-a", ProblemLog(), clock or Clock())


def send_and_read_workspace(
    workspace: NamespaceWorkspace, server: Server, headers: Mapping[str, str] | None = None
) -> str | None:
    """The workspace with which a request is sent."""
    answer = WorkspaceTransport(server, workspace).send(
        HttpRequest("POST", "/v1/traces", headers=headers or {}, timeout_seconds=1)
    )
    assert isinstance(answer, HttpResponse)
    assert server.calls[-1][0] == "/v1/traces"
    return server.calls[-1][1]


@pytest.mark.parametrize(
    ("about", "version", "expected"),
    [
        (info(True), VERSION_RESPONSE, "team-a"),
        (info(False), VERSION_RESPONSE, None),
        (HttpResponse(404, body=b"<html>"), VERSION_RESPONSE, None),  # MLflow before 3.10
        (info(True), HttpResponse(404), None),
    ],
)
def test_send_with_known_server_info_adds_existing_workspace(
    about: HttpResponse, version: HttpResponse, expected: str | None
) -> None:
    server = Server({INFO: about, VERSION: version})
    workspace = make_workspace(server)
    assert workspace.cached_name is None
    assert send_and_read_workspace(workspace, server) == expected
    first = len(server.calls)
    assert send_and_read_workspace(workspace, server) == expected
    assert len(server.calls) == first + 1
    assert workspace.cached_name == expected


def test_send_with_named_workspace_keeps_it_without_request() -> None:
    server = Server({})
    assert send_and_read_workspace(make_workspace(server), server, {HEADER: "team-b"}) == "team-b"
    assert len(server.calls) == 1


@pytest.mark.parametrize("path", [INFO, VERSION])
@pytest.mark.parametrize(
    "away", [TransportError("refused", may_have_arrived=True), HttpResponse(503, body=b"busy"), HttpResponse(429)]
)
def test_send_during_outage_returns_error_without_sending(path: str, away: HttpResponse | TransportError) -> None:
    server = Server({INFO: info(True), VERSION: VERSION_RESPONSE, path: away})
    workspace = make_workspace(server)
    result = WorkspaceTransport(server, workspace).send(HttpRequest("POST", "/v1/traces", timeout_seconds=1))
    assert isinstance(result, TransportError)
    assert not result.may_have_arrived
    assert "/v1/traces" not in [path for path, _ in server.calls]
    server.answers = {INFO: info(True), VERSION: VERSION_RESPONSE}
    assert send_and_read_workspace(workspace, server) == "team-a"


def test_send_after_namespace_becomes_workspace_adds_it() -> None:
    server, clock = Server({INFO: info(True), VERSION: HttpResponse(404)}), Clock()
    workspace = make_workspace(server, clock)
    assert send_and_read_workspace(workspace, server) is None
    server.answers[VERSION] = VERSION_RESPONSE
    assert send_and_read_workspace(workspace, server) is None
    clock.now += 61
    assert send_and_read_workspace(workspace, server) == "team-a"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (INFO, PAGE),
        (INFO, HttpResponse(200, body=b"[]")),
        (INFO, HttpResponse(302, {"location": "https://sso.invalid/"})),
        (INFO, HttpResponse(401)),
        (INFO, HttpResponse(403)),
        (VERSION, PAGE),
        (VERSION, HttpResponse(200)),
        (VERSION, HttpResponse(200, body=b"ok")),
    ],
    ids=str,
)
def test_send_after_unusable_response_requests_workspace_again(
    path: str, answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = Server({INFO: info(True), VERSION: VERSION_RESPONSE, path: answer})
    workspace = make_workspace(server)
    for _ in range(3):
        assert send_and_read_workspace(workspace, server) is None
    assert [request_path for request_path, _ in server.calls].count(path) == 3
    assert workspace.cached_name is None
    assert caplog.messages == []
    # Immediately, because spans that are sent without a workspace would be stored in another one.
    server.answers = {INFO: info(True), VERSION: VERSION_RESPONSE}
    assert send_and_read_workspace(workspace, server) == workspace.cached_name == "team-a"
