"""The workspace of a pod's namespace: asked about once, and only used where it is one."""

import json
from collections.abc import Mapping

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.workspace import NamespaceWorkspace, WorkspaceTransport
from mlflow_otlp_exporter._internal.transport.messages import (
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.transport import workspace_of

INFO, VERSION = "/api/3.0/mlflow/server-info", "/version"
TOLD = HttpResponse(200, {"content-type": "text/html"}, b"3.17.2")
PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<!doctype html><title>Sign in</title>")
HEADER = "x-mlflow-workspace"


class Server:
    """Answers each path as told, and remembers what was asked with which workspace."""

    def __init__(self, answers: Mapping[str, HttpResponse | TransportError]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, str | None]] = []

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        self.asked.append((asked.path, workspace_of(asked)))
        return self.answers.get(asked.path, HttpResponse(200))


def info(enabled: bool) -> HttpResponse:
    return HttpResponse(200, body=json.dumps({"workspaces_enabled": enabled}).encode())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(server: Server, clock: Clock | None = None) -> NamespaceWorkspace:
    return NamespaceWorkspace(server, "team-a", ProblemLog(), clock or Clock())


def sent_with(workspace: NamespaceWorkspace, server: Server, headers: Mapping[str, str] | None = None) -> str | None:
    """The workspace that a request goes out with."""
    answer = WorkspaceTransport(server, workspace).send(
        HttpRequest("POST", "/v1/traces", headers=headers or {}, timeout_seconds=1)
    )
    assert isinstance(answer, HttpResponse)
    assert server.asked[-1][0] == "/v1/traces"
    return server.asked[-1][1]


@pytest.mark.parametrize(
    ("about", "version", "expected"),
    [
        (info(True), TOLD, "team-a"),
        (info(False), TOLD, None),
        (HttpResponse(404, body=b"<html>"), TOLD, None),  # MLflow before 3.10
        (info(True), HttpResponse(404), None),  # within the minute
    ],
)
def test_what_a_request_goes_out_with(about: HttpResponse, version: HttpResponse, expected: str | None) -> None:
    server = Server({INFO: about, VERSION: version})
    workspace = made(server)
    assert workspace.cached_name is None
    assert sent_with(workspace, server) == expected
    first = len(server.asked)
    assert sent_with(workspace, server) == expected
    assert len(server.asked) == first + 1
    assert workspace.cached_name == expected


def test_a_workspace_that_is_named_stays_and_nothing_is_asked() -> None:
    server = Server({})
    assert sent_with(made(server), server, {HEADER: "team-b"}) == "team-b"
    assert len(server.asked) == 1


@pytest.mark.parametrize("path", [INFO, VERSION])
@pytest.mark.parametrize(
    "away", [TransportError("refused", may_have_arrived=True), HttpResponse(503, body=b"busy"), HttpResponse(429)]
)
def test_nothing_is_sent_while_it_cannot_be_told(path: str, away: HttpResponse | TransportError) -> None:
    server = Server({INFO: info(True), VERSION: TOLD, path: away})
    workspace = made(server)
    found = WorkspaceTransport(server, workspace).send(HttpRequest("POST", "/v1/traces", timeout_seconds=1))
    assert isinstance(found, TransportError)
    assert not found.may_have_arrived  # the spans were not sent
    assert "/v1/traces" not in [path for path, _ in server.asked]
    server.answers = {INFO: info(True), VERSION: TOLD}
    assert sent_with(workspace, server) == "team-a"


def test_namespace_that_becomes_a_workspace_is_found() -> None:
    server, clock = Server({INFO: info(True), VERSION: HttpResponse(404)}), Clock()
    workspace = made(server, clock)
    assert sent_with(workspace, server) is None
    server.answers[VERSION] = TOLD
    assert sent_with(workspace, server) is None
    clock.now += 61
    assert sent_with(workspace, server) == "team-a"


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
def test_answer_that_tells_nothing_says_nothing_about_the_next_one(
    path: str, answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = Server({INFO: info(True), VERSION: TOLD, path: answer})
    workspace = made(server)
    for _ in range(3):
        assert sent_with(workspace, server) is None
    assert [each for each, _ in server.asked].count(path) == 3
    assert workspace.cached_name is None
    assert caplog.messages == []
    # At once: what went without a workspace now would land in another one.
    server.answers = {INFO: info(True), VERSION: TOLD}
    assert sent_with(workspace, server) == workspace.cached_name == "team-a"
