"""`mlflow-otlp doctor` with working and broken set-ups.

Each row of the table breaks one thing; the doctor must name the failed step and the fix.
"""

import base64
import email.utils
import errno
import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli.doctor import connection_checks, local_checks, server_checks
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS
from mlflow_otlp_exporter._internal.config.credentials import read_token_expiry
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from support.certificates import Authority, TlsServer, self_signed
from support.environments import MLFLOW_VERSIONS, ROOT, mlflow_python
from support.markers import SECRET, has_marker
from support.mlflow_server import MLflowServer
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans

MAX_SECONDS = 15.0
FILES = ("--backend-store-uri", "FOLDER/mlruns")
TOKEN = "MLFLOW_TRACKING_TOKEN"
URI = "MLFLOW_TRACKING_URI"
JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html; charset=utf-8"}
TEXT = {"Content-Type": "text/plain"}
LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Log in with OpenShift</body></html>"
BY_NAME, BY_ID = "/api/2.0/mlflow/experiments/get-by-name", "/api/2.0/mlflow/experiments/get"
READ, DELETE = "/api/3.0/mlflow/traces/get", "/api/3.0/mlflow/traces/delete-traces"
REST_PATHS = (BY_NAME, BY_ID, READ, DELETE, "/api/2.0/mlflow/experiments/create")


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def error(status: int, code: str, message: str) -> Answer:
    return Answer(status, headers=JSON, body=body({"error_code": code, "message": message}))


def plugin_error(status: int, code: str, message: str) -> Answer:
    """An error of mlflow-kubernetes-plugins."""
    return Answer(status, headers=JSON, body=body({"error": {"code": code, "message": message}}))


FIELD_REQUIRED = Answer(
    422, headers=JSON, body=body({"detail": [{"loc": ["header", "x-mlflow-experiment-id"], "msg": "Field required"}]})
)
DENIED = plugin_error(403, "PERMISSION_DENIED", "Permission denied for requested operation.")
UNAUTHENTICATED = plugin_error(
    401,
    "UNAUTHENTICATED",
    "Authentication with the Kubernetes API failed. The provided token may be invalid or expired.",
)
MISSING_TOKEN = plugin_error(401, "UNAUTHENTICATED", "Missing Authorization header or X-Forwarded-Access-Token header.")


class World:
    """Servers and environment of a row."""

    def __init__(
        self, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack
    ) -> None:
        self._request, self.patch, self.folder, self._stack = request, patch, folder, stack

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.patch.setenv(name, value)

    @property
    def mlflow(self) -> MLflowServer:
        server: MLflowServer = self._request.getfixturevalue("mlflow_server")
        return server

    @property
    def with_workspaces(self) -> MLflowServer:
        server: MLflowServer = self._request.getfixturevalue("workspace_server")
        return server

    def start_scripted(self, *, listening: bool = True) -> ScriptedServer:
        return self._stack.enter_context(ScriptedServer(listening=listening))

    def tls(self, certificate: Any, upstream: str = "") -> TlsServer:
        return self._stack.enter_context(TlsServer(certificate, upstream or self.start_scripted().url))

    def collector(self) -> str:
        """Start a server that accepts all spans and forwards none."""
        server = self.start_scripted()
        server.answer(then=ACCEPTED)
        return server.url

    def like_mlflow(self, **answers: Answer) -> ScriptedServer:
        """Start a server like MLflow 3.17; `version`, `info`, `traces`, `with_id` and `api` replace responses."""
        server = self.start_scripted()
        server.answer(path="/version", then=answers.get("version", Answer(headers=HTML, body=b"3.17.2")))
        info = body({"store_type": "SqlStore", "workspaces_enabled": True})
        server.answer(path="/api/3.0/mlflow/server-info", then=answers.get("info", Answer(headers=JSON, body=info)))

        def traces(request: RecordedRequest) -> Answer:
            has_id = "x-mlflow-experiment-id" in request.headers
            return answers.get("traces", answers.get("with_id", ACCEPTED) if has_id else FIELD_REQUIRED)

        server.answer_with(TRACES_PATH, traces)
        for path in REST_PATHS:
            server.answer(path=path, then=answers.get("api", DENIED))
        self.set(MLFLOW_TRACKING_URI=server.url, MLFLOW_EXPERIMENT_ID="1", MLFLOW_TRACKING_TOKEN=SECRET)
        return server


@dataclass(frozen=True)
class Row:
    """A broken set-up, and the expected result."""

    name: str
    prepare: Callable[[World], None]
    step: str
    code: MessageCode
    fix: str  # a part of it
    state: str = "failed"
    others: dict[str, str] = field(default_factory=dict)  # states of other steps


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wrong_port(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{_closed_port()}")


def tls_to_a_plain_port(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri.replace("http:", "https:"))


def plain_to_a_tls_port(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{world.tls(self_signed(world.folder, 'own')).port}")


def self_signed_certificate(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.tls(self_signed(world.folder, "own")).url)


def authority_unknown(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.tls(Authority(world.folder).certificate("good")).url)


def certificate_expired(world: World) -> None:
    authority = Authority(world.folder)
    world.set(MLFLOW_TRACKING_URI=world.tls(authority.certificate("old", expired=True)).url)
    world.set(MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority.file))


def certificate_for_another_host(world: World) -> None:
    authority = Authority(world.folder)
    world.set(MLFLOW_TRACKING_URI=world.tls(authority.certificate("other", "DNS:other.test")).url)
    world.set(MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority.file))


def host_not_allowed(world: World) -> None:
    real = socket.getaddrinfo

    def local(host: Any, *words: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "mlflow.test" else host, *words, **more)

    world.patch.setattr(socket, "getaddrinfo", local)
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri.replace("127.0.0.1", "mlflow.test"))


def name_unknown(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI="http://mlflow.invalid:5000")


def server_hangs(world: World) -> None:
    world.patch.setattr(server_checks, "TIMEOUT_SECONDS", 2.0)
    server = world.start_scripted()
    server.answer(path="/version", then=Answer(delay=30.0))
    world.set(MLFLOW_TRACKING_URI=server.url)


def login_redirect(world: World) -> None:
    away = Answer(302, headers={"Location": "https://login.invalid/oauth/start"})
    world.like_mlflow(version=away, info=away, traces=away, api=away)


def login_page(world: World) -> None:
    page = Answer(headers=HTML, body=LOGIN)
    world.like_mlflow(version=page, info=page, traces=page, api=page)


def login_page_for_traces_only(world: World) -> None:
    world.like_mlflow(traces=Answer(headers=HTML, body=LOGIN))


def wrong_prefix(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=f"{world.mlflow.uri}/mlflow")


def no_path_for_traces(world: World) -> None:
    world.set(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=world.mlflow.uri, MLFLOW_EXPERIMENT_ID="0")


def file_store(world: World) -> None:
    world.like_mlflow(info=Answer(headers=JSON, body=body({"store_type": "FileStore", "workspaces_enabled": False})))


def file_store_that_does_not_tell(world: World) -> None:
    detail = body({"detail": "REST OTLP span logging is not supported by FileStore"})
    stored = Answer(501, headers=JSON, body=detail)
    world.like_mlflow(version=Answer(headers=HTML, body=b"3.6.0"), info=Answer(404), with_id=stored)


def old_mlflow(world: World) -> None:
    world.like_mlflow(version=Answer(headers=HTML, body=b"2.19.0"))


def workspaces_off(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_WORKSPACE="team-a")


def workspace_unknown(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.with_workspaces.uri, MLFLOW_WORKSPACE="team-z")


def workspace_missing(world: World) -> None:
    world.like_mlflow(
        traces=plugin_error(400, "INVALID_PARAMETER_VALUE", "Workspace context is required for this request.")
    )


def permission_denied(world: World) -> None:
    world.like_mlflow(traces=DENIED)
    world.set(MLFLOW_WORKSPACE="team-a")


def token_missing(world: World) -> None:
    world.like_mlflow(traces=MISSING_TOKEN)
    world.patch.delenv(TOKEN)


def token_wrong(world: World) -> None:
    refused = Answer(401, headers=TEXT, body=b"You are not authenticated. Please see https://mlflow.invalid")
    world.like_mlflow(version=refused, traces=refused, api=refused)


def token_expired(world: World) -> None:
    world.like_mlflow(traces=UNAUTHENTICATED)
    payload = base64.urlsafe_b64encode(body({"exp": time.time() - 3600, "sub": SECRET})).decode().rstrip("=")
    world.set(MLFLOW_TRACKING_TOKEN=f"e30.{payload}.{SECRET}")


def token_file_missing(world: World) -> None:
    world.like_mlflow()
    world.patch.delenv(TOKEN)
    world.set(MLFLOW_TRACKING_TOKEN_FILE=str(world.folder / "token"))


def token_not_for_this_server(world: World) -> None:
    server = world.like_mlflow(traces=MISSING_TOKEN)
    world.patch.delenv(URI)
    world.set(OTEL_EXPORTER_OTLP_ENDPOINT=server.url)


def permissions_cannot_be_checked(world: World) -> None:
    message = "Failed to perform Kubernetes authorization check: (503) Reason: Service Unavailable"
    world.like_mlflow(traces=plugin_error(500, "INTERNAL_ERROR", message))


def experiment_deleted_by_name(world: World) -> None:
    number = world.mlflow.create_experiment("deleted, and looked up by name")
    world.mlflow.delete_experiment(number)
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_NAME="deleted, and looked up by name")


def experiment_deleted_by_id(world: World) -> None:
    number = world.mlflow.create_experiment("deleted, and looked up by id")
    world.mlflow.delete_experiment(number)
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_ID=number)


def experiment_unknown(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_NAME="never made")
    world.set(MLFLOW_OTLP_CREATE_EXPERIMENT="false")


def experiment_id_unknown(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_ID="99999")


def experiment_of_another_workspace(world: World) -> None:
    number = world.with_workspaces.create_experiment("of team-b", "team-b")
    world.set(MLFLOW_TRACKING_URI=world.with_workspaces.uri, MLFLOW_WORKSPACE="team-a", MLFLOW_EXPERIMENT_ID=number)


def experiment_may_not_be_looked_up(world: World) -> None:
    world.like_mlflow()
    world.patch.delenv("MLFLOW_EXPERIMENT_ID")
    world.set(MLFLOW_EXPERIMENT_NAME="agents")


def update_only(world: World) -> None:
    world.like_mlflow()


def database_down(world: World) -> None:
    world.like_mlflow(api=error(503, "TEMPORARILY_UNAVAILABLE", "the database system is shutting down"))


def database_locked_for_writing(world: World) -> None:
    experiment = {"experiment_id": "1", "name": "agents", "lifecycle_stage": "active"}
    response = Answer(headers=JSON, body=body({"experiment": experiment}))
    world.like_mlflow(api=response, with_id=error(503, "TEMPORARILY_UNAVAILABLE", "database is locked"))


def body_limit(world: World) -> None:
    world.like_mlflow(
        with_id=Answer(413, headers=HTML, body=b"<html><title>413 Request Entity Too Large</title></html>")
    )


def rate_limit(world: World) -> None:
    world.like_mlflow(with_id=Answer(429, headers={"Retry-After": "1"}))


def disk_full(world: World) -> None:
    path = world.folder / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k,mode=0700", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        # Without the right to mount, simulate the error.
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        world.patch.setattr(os, "fsync", full)
    else:
        world._stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_OTLP_SPOOL_DIR=str(path))


def spool_in_no_folder(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_OTLP_SPOOL_DIR="/proc/nowhere")


def clock_is_wrong(world: World) -> None:
    an_hour_ago = email.utils.formatdate(time.time() - 3600, usegmt=True)
    world.like_mlflow(version=Answer(headers={**HTML, "Date": an_hour_ago}, body=b"3.17.2"))


def proxy_down(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI="http://mlflow.test:5000", HTTP_PROXY=f"http://127.0.0.1:{_closed_port()}")


def proxy_wants_a_user(world: World) -> None:
    server = world.start_scripted()
    # The scripted server's path of `CONNECT mlflow.test:443`.
    server.answer(path="443", then=Answer(407, raw=b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"))
    world.set(MLFLOW_TRACKING_URI="https://mlflow.test", HTTPS_PROXY=f"http://ada:{SECRET}@{server.url[7:]}")


def collector_without_mlflow_behind(world: World) -> None:
    world.patch.setattr(server_checks, "_COLLECTOR_WAIT_SECONDS", 0.5)
    # Only the endpoint for traces has priority over MLFLOW_TRACKING_URI.
    world.set(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=world.collector() + TRACES_PATH, MLFLOW_TRACKING_URI=world.mlflow.uri)


def collector_without_tracking_uri(world: World) -> None:
    world.set(OTEL_EXPORTER_OTLP_ENDPOINT=world.collector())


def instrumentation_missing(world: World) -> None:
    world.patch.setattr(local_checks, "find_instrumentations", list)
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_ID="0", MLFLOW_OTLP_AUTO_INSTRUMENT="true")


def tracking_uri(value: str) -> Callable[[World], None]:
    return lambda world: world.set(MLFLOW_TRACKING_URI=value)


def sdk_plugin(world: World) -> None:
    world.set(MLFLOW_TRACKING_URI="http://127.0.0.1:5000", MLFLOW_TRACKING_AUTH="kubernetes-namespaced")


ROWS = [
    Row("wrong port", wrong_port, "connection", MessageCode.CONNECTION_REFUSED, "MLFLOW_TRACKING_URI"),
    Row("TLS to a plain port", tls_to_a_plain_port, "tls", MessageCode.NOT_TLS, "http://"),
    Row("no TLS to a TLS port", plain_to_a_tls_port, "server", MessageCode.TLS_REQUIRED, "https://127.0.0.1:"),
    Row(
        "self-signed",
        self_signed_certificate,
        "tls",
        MessageCode.CERTIFICATE_UNTRUSTED,
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    Row("unknown CA", authority_unknown, "tls", MessageCode.CERTIFICATE_UNTRUSTED, "service-ca.crt"),
    Row("expired", certificate_expired, "tls", MessageCode.CERTIFICATE_EXPIRED, "Renew"),
    Row(
        "wrong host name",
        certificate_for_another_host,
        "tls",
        MessageCode.CERTIFICATE_HOST_MISMATCH,
        "a name of the certificate",
    ),
    Row("name not resolvable", name_unknown, "name", MessageCode.NAME_NOT_RESOLVED, "MLFLOW_TRACKING_URI"),
    Row("Host not allowed", host_not_allowed, "endpoint", MessageCode.HOST_NOT_ALLOWED, "--allowed-hosts"),
    Row("hangs", server_hangs, "server", MessageCode.RESPONSE_TIMEOUT, "log"),
    Row("login redirect", login_redirect, "server", MessageCode.REDIRECTED, "MLFLOW_TRACKING_TOKEN_FILE"),
    Row("HTML", login_page, "server", MessageCode.HTML_PAGE, "service inside the cluster"),
    Row(
        "HTML for traces only",
        login_page_for_traces_only,
        "endpoint",
        MessageCode.HTML_PAGE,
        "service inside the cluster",
    ),
    Row("404: prefix", wrong_prefix, "endpoint", MessageCode.NO_OTLP_ENDPOINT, "Correct the path of the address"),
    Row(
        "no /v1/traces",
        no_path_for_traces,
        "endpoint",
        MessageCode.NO_OTLP_ENDPOINT,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http",
    ),
    Row("FileStore", file_store, "server", MessageCode.FILE_STORE, "--backend-store-uri sqlite"),
    Row("FileStore, 3.6", file_store_that_does_not_tell, "write", MessageCode.FILE_STORE, "--backend-store-uri sqlite"),
    Row("MLflow too old", old_mlflow, "server", MessageCode.OTLP_UNSUPPORTED, "3.6 or newer"),
    Row("workspaces off", workspaces_off, "workspace", MessageCode.WORKSPACES_DISABLED, "--enable-workspaces"),
    Row("workspace unknown", workspace_unknown, "workspace", MessageCode.WORKSPACE_NOT_FOUND, "MLFLOW_WORKSPACE"),
    Row("workspace missing", workspace_missing, "workspace", MessageCode.WORKSPACE_REQUIRED, "MLFLOW_WORKSPACE"),
    Row(
        "denied",
        permission_denied,
        "write",
        MessageCode.PERMISSION_DENIED,
        "rolebinding",
        others={"credentials": "ok", "workspace": "ok"},
    ),
    Row("token missing", token_missing, "credentials", MessageCode.UNAUTHENTICATED, "MLFLOW_TRACKING_TOKEN_FILE"),
    Row("token wrong", token_wrong, "credentials", MessageCode.UNAUTHENTICATED, "Replace the credential"),
    Row("token expired", token_expired, "credentials", MessageCode.UNAUTHENTICATED, "MLFLOW_TRACKING_TOKEN_FILE"),
    Row(
        "token file missing",
        token_file_missing,
        "credentials",
        MessageCode.CREDENTIAL_UNAVAILABLE,
        "MLFLOW_TRACKING_TOKEN_FILE",
    ),
    Row(
        "token of the other group",
        token_not_for_this_server,
        "credentials",
        MessageCode.UNAUTHENTICATED,
        "MLFLOW_TRACKING",
    ),
    Row(
        "API server down",
        permissions_cannot_be_checked,
        "credentials",
        MessageCode.AUTHORIZATION_CHECK_FAILED,
        "API server",
    ),
    Row("experiment deleted", experiment_deleted_by_name, "experiment", MessageCode.EXPERIMENT_DELETED, "restore"),
    Row("experiment deleted, id", experiment_deleted_by_id, "experiment", MessageCode.EXPERIMENT_DELETED, "restore"),
    Row(
        "experiment unknown",
        experiment_unknown,
        "experiment",
        MessageCode.EXPERIMENT_NOT_FOUND,
        "CREATE_EXPERIMENT=true",
    ),
    Row(
        "experiment id unknown",
        experiment_id_unknown,
        "experiment",
        MessageCode.EXPERIMENT_NOT_FOUND,
        "MLFLOW_EXPERIMENT_NAME",
    ),
    Row(
        "of another workspace",
        experiment_of_another_workspace,
        "experiment",
        MessageCode.EXPERIMENT_NOT_FOUND,
        "EXPERIMENT_NAME",
    ),
    Row(
        "look-up denied",
        experiment_may_not_be_looked_up,
        "experiment",
        MessageCode.LOOKUP_DENIED,
        "MLFLOW_EXPERIMENT_ID",
    ),
    Row("database down", database_down, "experiment", MessageCode.DATABASE_UNAVAILABLE, "Start the database"),
    Row(
        "database locked", database_locked_for_writing, "write", MessageCode.DATABASE_UNAVAILABLE, "Start the database"
    ),
    Row("413", body_limit, "write", MessageCode.REQUEST_TOO_LARGE, "client_max_body_size"),
    Row("429", rate_limit, "write", MessageCode.RATE_LIMITED, "limit"),
    Row(
        "disk full",
        disk_full,
        "spool",
        MessageCode.SPOOL_UNAVAILABLE,
        "MLFLOW_OTLP_SPOOL_DIR",
        others={"read back": "ok", "delete": "ok"},
    ),
    Row(
        "spool's folder",
        spool_in_no_folder,
        "spool",
        MessageCode.SPOOL_UNAVAILABLE,
        "MLFLOW_OTLP_SPOOL_DIR",
        others={"write": "ok"},
    ),
    Row("proxy down", proxy_down, "proxy", MessageCode.PROXY, "NO_PROXY"),
    Row("proxy wants a user", proxy_wants_a_user, "proxy", MessageCode.PROXY_UNAUTHENTICATED, "USER:PASSWORD"),
    Row(
        "Collector without MLflow",
        collector_without_mlflow_behind,
        "read back",
        MessageCode.NOT_DELIVERED,
        "collector-config",
    ),
    Row("database as URI", tracking_uri("sqlite:///mlflow.db"), "settings", MessageCode.NOT_A_SERVER, "mlflow server"),
    Row(
        "Databricks", tracking_uri("https://adb-1.azuredatabricks.net"), "settings", MessageCode.DATABRICKS, "ENDPOINT"
    ),
    Row(
        "REST path",
        tracking_uri("http://m:5000/api/2.0/mlflow"),
        "settings",
        MessageCode.REST_PATH,
        "MLFLOW_TRACKING_URI",
    ),
    Row("no scheme", tracking_uri("m:5000"), "settings", MessageCode.SCHEME_MISSING, "http://HOST:PORT"),
    Row("SDK's plugin", sdk_plugin, "settings", MessageCode.SDK_PLUGIN, "MLFLOW_TRACKING_TOKEN_FILE"),
    # Warnings.
    Row("clock skew", clock_is_wrong, "clock", MessageCode.CLOCK_SKEW, "timedatectl", "warning", {"write": "ok"}),
    Row(
        "instrumentor missing",
        instrumentation_missing,
        "instrumentations",
        MessageCode.INSTRUMENTATION_MISSING,
        "pip install",
        "warning",
    ),
    Row(
        "no tracking URI",
        collector_without_tracking_uri,
        "read back",
        MessageCode.NO_MLFLOW_SERVER,
        URI,
        "warning",
        {"write": "ok"},
    ),
]


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(request, monkeypatch, tmp_path, stack)


def run_doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit status and the result of each step."""
    status = main_module.main(["doctor", "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["works"] is (status == 0)
    steps = {step["step"]: step for step in output["steps"]}
    assert len(steps) == len(output["steps"])
    return status, steps


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_doctor_names_step_and_fix_of_a_broken_set_up(
    row: Row, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    row.prepare(world)
    start = time.monotonic()
    status, steps = run_doctor(capsys)
    assert time.monotonic() - start < MAX_SECONDS
    problems = [step for step in steps.values() if step["state"] in ("failed", "warning")]
    assert [(step["step"], step["state"], step["code"]) for step in problems] == [(row.step, row.state, str(row.code))]
    assert row.fix in problems[0].get("fix", "")
    assert problems[0]["cause"]
    assert status == (1 if row.state == "failed" else 0)
    assert {name: steps[name]["state"] for name in row.others} == row.others
    assert not has_marker(json.dumps(steps))


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("OTEL_SDK_DISABLED", "true", "failed"),
        ("MLFLOW_OTLP_ENABLED", "false", "failed"),
        ("OTEL_TRACES_SAMPLER", "always_off", "failed"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off", "failed"),
        ("MLFLOW_TRACE_SAMPLING_RATIO", "0", "failed"),
        ("MLFLOW_OTLP_NOISE", "*", "failed"),
        ("MLFLOW_TRACE_SAMPLING_RATIO", "0.5", "warning"),
        ("OTEL_TRACES_EXPORTER", "mlfow", "warning"),
    ],
)
def test_doctor_with_setting_that_leaves_no_span_names_its_variable(
    variable: str, value: str, state: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.like_mlflow()
    world.set(**{variable: value})
    status, steps = run_doctor(capsys)
    tracing = steps.pop("tracing")
    assert (tracing["state"], tracing["code"], status) == (state, "MLO-702", 1 if state == "failed" else 0)
    assert f"environment variable {variable}" in tracing["found"]
    assert f"`{variable}`" in tracing["fix"]
    assert steps["write"]["state"] == "ok"
    assert "failed" not in {step["state"] for step in steps.values()}


def test_doctor_with_collector_does_not_claim_that_mlflow_accepts_the_credential(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    collector_without_tracking_uri(world)
    world.set(OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRET}")
    _, steps = run_doctor(capsys)
    limit = "; accepted for a request without spans, which a Collector does not forward"
    assert steps["credentials"]["found"].endswith(limit)


def test_doctor_with_sampler_by_ratio_warns(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.like_mlflow()
    world.set(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.01")
    status, steps = run_doctor(capsys)
    assert (steps["tracing"]["state"], status) == ("warning", 0)
    assert "OTEL_TRACES_SAMPLER" in steps["tracing"]["found"]


def test_doctor_that_fails_itself_prints_json_and_ends_with_2(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> None:
        raise IndexError(SECRET)

    world.like_mlflow()
    world.patch.setattr(server_checks, "check_connection", fail)
    assert main_module.main(["doctor", "--json"]) == 2
    output = json.loads(capsys.readouterr().out)
    assert output["works"] is False
    assert output["steps"][-1]["step"] == "doctor"
    assert (output["steps"][-1]["state"], output["steps"][-1]["code"]) == ("failed", "MLO-901")
    assert "IndexError" in output["steps"][-1]["found"]
    assert not has_marker(json.dumps(output))


def test_rows_have_different_names() -> None:
    assert len(ROWS) >= 25
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_code_of_the_rows_has_cause_and_fix() -> None:
    for row in ROWS:
        assert HINTS[row.code].cause
        assert HINTS[row.code].fix


@pytest.mark.needs("openssl")
def test_doctor_with_working_tls_server_reports_ok(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(world.folder)
    server = world.tls(authority.certificate("good"), world.mlflow.uri)
    world.set(MLFLOW_TRACKING_URI=server.url, MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority.file))
    world.set(MLFLOW_EXPERIMENT_NAME="examined")
    status, steps = run_doctor(capsys)
    assert {step["state"] for step in steps.values()} == {"ok"}
    assert status == 0
    assert [*steps] == list(server_checks.STEPS)
    assert "valid for 29 more days" in steps["tls"]["found"] or "valid for 30 more days" in steps["tls"]["found"]
    assert str(authority.file) in steps["tls"]["found"]
    assert steps["server"]["found"].startswith("MLflow 3.17.2")
    number = world.mlflow.experiment("examined")
    assert number is not None
    assert world.mlflow.search_traces(number["experiment_id"]) == []  # deleted


def test_doctor_with_write_only_token_reports_not_permitted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    update_only(world)
    status, steps = run_doctor(capsys)
    assert status == 0
    states = {name: step["state"] for name, step in steps.items() if step["state"] not in ("ok", "skipped")}
    assert states == {"experiment": "not permitted", "read back": "not permitted", "delete": "not permitted"}
    assert "remains in MLflow" in steps["delete"]["found"]


def test_doctor_prints_server_message_cause_and_fix(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(MLFLOW_TRACKING_URI=world.mlflow.uri, MLFLOW_EXPERIMENT_ID="99999")
    assert main_module.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(None, 2)[:2] == ["ok", "settings"]
    failed = next(number for number, line in enumerate(lines) if line.startswith("FAILED"))
    assert lines[failed].endswith("[MLO-409]")
    assert [line.split(":")[0].strip() for line in lines[failed + 1 : failed + 4]] == ["server says", "cause", "fix"]
    (site,) = re.findall(r'^Documentation = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert lines[-1] == f"It does not work: experiment. For the codes, see {site}troubleshooting/"


def test_doctor_arguments_override_the_environment(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(MLFLOW_TRACKING_URI="http://127.0.0.1:1", MLFLOW_EXPERIMENT_NAME="another")
    assert main_module.main(["doctor", "--tracking-uri", f"{world.mlflow.uri}/#/experiments/0/traces"]) == 0
    assert "experiment_id 0 (argument tracking_uri=)" in capsys.readouterr().out


def test_doctor_towards_otlp_endpoint_names_the_destination_in_the_test_trace(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    server = world.start_scripted()
    server.answer(then=ACCEPTED)
    world.set(OTEL_EXPORTER_OTLP_ENDPOINT=server.url, MLFLOW_EXPERIMENT_NAME="agents", MLFLOW_WORKSPACE="team-a")
    _, steps = run_doctor(capsys)
    assert steps["write"]["state"] == "ok"
    resource = server.to(TRACES_PATH)[-1].export_request().resource_spans[0].resource
    attributes = {item.key: item.value.string_value for item in resource.attributes}
    assert (attributes["mlflow.experiment"], attributes["mlflow.workspace"]) == ("agents", "team-a")


def test_doctor_reports_queued_requests_and_keeps_them(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{_closed_port()}", MLFLOW_OTLP_SPOOL="true")
    exporter = MLflowSpanExporter(timeout=0.3)
    exporter.export(make_spans("first", "second"))
    exporter.shutdown(1000)
    for _ in range(2):
        status, steps = run_doctor(capsys)
        assert status == 1
        assert "2 spans queued in 1 request;" in steps["spool"]["found"]


def test_recording_log_collects_messages_from_info_on(caplog: pytest.LogCaptureFixture) -> None:
    log = local_checks.RecordingLog()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        log.log_once(level, logging.getLevelName(level))
    assert log.messages == ["INFO", "WARNING"]
    assert caplog.text == ""


def test_describe_proxy_respects_no_proxy(world: World) -> None:
    world.set(HTTPS_PROXY="http://ada:x@proxy.test:3128", NO_PROXY=".svc,127.0.0.1")
    environment = dict(os.environ)
    for host, proxy, description in (
        ("mlflow.team.svc:8443", "", "none for this host (environment variable NO_PROXY)"),
        ("mlflow.example.test", "proxy.test:3128", "proxy.test:3128 (environment variable HTTPS_PROXY)"),
    ):
        url = f"https://{host}/v1/traces"
        assert HttpClient(resolve({"endpoint": url}).traces).find_proxy() == proxy
        assert connection_checks.describe_proxy(proxy, url, environment) == description
    assert connection_checks.describe_proxy("", "http://mlflow.test", environment) == "none"


def jwt(payload: str) -> str:
    return f"Bearer e30.{base64.urlsafe_b64encode(payload.encode()).decode().rstrip('=')}.signature"


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (jwt('{"exp": 1500000000, "sub": "system:serviceaccount:a:b"}'), 1.5e9),
        (jwt('{"exp":1500000000.5}'), 1500000000.5),
        (jwt('{"sub": "x"}'), None),
        (jwt("[]"), None),
        (jwt('{"exp": "soon"}'), None),
        (jwt('{"exp": 1e999}'), None),
        (jwt('{"exp": NaN}'), None),
        (jwt(f'{{"exp": 1{"0" * 400}}}'), None),
        (jwt(f'{{"exp": {"9" * 5000}}}'), None),
        (jwt("[" * 40_000), None),
        (jwt(" " * 100_000 + '{"exp": 1}'), None),
        ("Bearer a.\ud800.c", None),
        ("Bearer planted", None),
        ("Bearer a.b.c", None),
        ("Basic YTpi", None),
        (None, None),
    ],
)
def test_read_token_expiry_with_header_value_returns_expiry(authorization: str | None, expected: float | None) -> None:
    assert read_token_expiry(authorization) == expected


PREFIX, USERS = ("--static-prefix", "/mlf"), ("--app-name", "basic-auth")
# The environments of other versions lack the packages for basic-auth.
REAL = [(release, options) for release in MLFLOW_VERSIONS for options in ((), PREFIX, FILES)] + [("3.17.2", USERS)]
# Versions without server-info, or without the store in it.
WITHOUT_STORE_TYPE = ("3.6.0", "3.8.1")


@pytest.mark.matrix
@pytest.mark.parametrize(("release", "options"), REAL, ids=str)
def test_doctor_with_real_servers(
    release: str, options: Sequence[str], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET, "MLFLOW_ALLOW_FILE_STORE": "true"}
    if options == USERS:
        configuration = world.folder / "auth.ini"
        users = f"database_uri = sqlite:///{world.folder / 'auth.db'}\nadmin_username = ada\n"
        function = "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        password = f"admin_password = {SECRET}-1234\n"
        configuration.write_text(f"[mlflow]\ndefault_permission = READ\n{users}{password}{function}")
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(configuration)
        world.set(MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD=f"{SECRET}-1234")
    extra = [word.replace("FOLDER", str(world.folder)) for word in options]
    python, folder = mlflow_python(release), world.folder / "server"
    server = MLflowServer.start(folder, python=python, extra=extra, environment=environment)
    prefix = "/mlf" if options == PREFIX else ""
    world.set(MLFLOW_TRACKING_URI=server.uri + prefix, MLFLOW_EXPERIMENT_NAME="examined")
    try:
        status, steps = run_doctor(capsys)
    finally:
        server.stop()
    bad = [(name, step.get("code")) for name, step in steps.items() if step["state"] in ("failed", "warning")]
    if options == FILES:
        assert bad == [("write" if release in WITHOUT_STORE_TYPE else "server", "MLO-404")]
        assert status == 1
    else:
        assert bad == []
        assert steps["delete"]["state"] == "ok"
        assert status == 0
    assert not has_marker(json.dumps(steps))
