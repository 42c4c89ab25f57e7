"""Failures of a night, as a new user meets them: the first log line names the fix, and so does the doctor."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from support.certificates import TlsServer, self_signed
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, ScriptedServer

APP = """
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from opentelemetry import trace
from mlflow_otlp_exporter import configure
telemetry = configure(auto_instrument=False)
trace.get_tracer("app").start_span("answer").end()
telemetry.flush(8)
"""
JSON = {"Content-Type": "application/json"}
PATHS = ("/v1/traces", "/version", "/api/3.0/mlflow/server-info", "/api/2.0/mlflow/experiments/get-by-name")


class Failure(NamedTuple):
    """A broken set-up, the code, and what the log line and the doctor's fix must contain."""

    name: str
    prepare: Callable[["Night"], dict[str, str]]
    code: str
    fix: str


class Night:
    def __init__(self, mlflow: MLflowServer, folder: Path, stack: ExitStack) -> None:
        self.mlflow, self.folder, self._stack = mlflow, folder, stack

    def answering(self, answer: Answer) -> str:
        server = self._stack.enter_context(ScriptedServer())
        for path in PATHS:
            server.answer(then=answer, path=path)
        return server.url

    def tls(self) -> TlsServer:
        certificate = self_signed(self.folder, "own")
        return self._stack.enter_context(TlsServer(certificate, self.mlflow.uri))

    def denying(self, **variables: str) -> dict[str, str]:
        body = b"You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html"
        return {
            "MLFLOW_TRACKING_URI": self.answering(Answer(401, headers={"Content-Type": "text/html"}, body=body)),
            **variables,
        }


def _expired_token() -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": time.time() - 3600}).encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


LOGIN = Answer(headers={"Content-Type": "text/html"}, body=b"<html><title>Sign in</title></html>")
OTHER = Answer(headers=JSON, body=b'{"status":"up"}')
FILES = Answer(501, headers=JSON, body=b'{"detail":"REST OTLP span logging is not supported by FileStore"}')
FAILURES = [
    Failure("down", lambda _: {"MLFLOW_TRACKING_URI": "http://localhost:5999"}, "MLO-202", "mlflow server --port 5999"),
    Failure(
        "another service", lambda night: {"MLFLOW_TRACKING_URI": night.answering(OTHER)}, "MLO-419", "Correct host and"
    ),
    Failure("login page", lambda night: {"MLFLOW_TRACKING_URI": night.answering(LOGIN)}, "MLO-402", "Set a token"),
    Failure(
        "https to http",
        lambda night: {"MLFLOW_TRACKING_URI": night.mlflow.uri.replace("http:", "https:")},
        "MLO-207",
        "MLFLOW_TRACKING_URI=http://127.0.0.1:",
    ),
    Failure(
        "http to https",
        lambda night: {"MLFLOW_TRACKING_URI": night.tls().url.replace("https:", "http:")},
        "MLO-212",
        "MLFLOW_TRACKING_URI=https://",
    ),
    Failure(
        "self-signed",
        lambda night: {"MLFLOW_TRACKING_URI": night.tls().url},
        "MLO-204",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
    Failure(
        "unknown id",
        lambda night: {"MLFLOW_TRACKING_URI": night.mlflow.uri, "MLFLOW_EXPERIMENT_ID": "4711"},
        "MLO-409",
        "MLFLOW_EXPERIMENT_NAME",
    ),
    Failure("no credential", lambda night: night.denying(), "MLO-301", "Set `MLFLOW_TRACKING_TOKEN_FILE`"),
    Failure(
        "wrong password",
        lambda night: night.denying(MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="wrong"),
        "MLO-301",
        "Replace the credential that the message names",
    ),
    Failure(
        "expired token",
        lambda night: night.denying(MLFLOW_TRACKING_TOKEN=_expired_token()),
        "MLO-301",
        "Replace the credential that the message names",
    ),
    Failure(
        "workspace missing",
        lambda night: {"MLFLOW_TRACKING_URI": night.mlflow.uri, "MLFLOW_WORKSPACE": "team-z"},
        "MLO-406",
        "--enable-workspaces",
    ),
]


@pytest.fixture
def night(mlflow_server: MLflowServer, tmp_path: Path) -> Iterator[Night]:
    with ExitStack() as stack:
        yield Night(mlflow_server, tmp_path, stack)


def run(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    return done.stderr + done.stdout


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_first_log_line_and_doctor_name_the_fix(failure: Failure, night: Night) -> None:
    variables = failure.prepare(night)
    if "MLFLOW_EXPERIMENT_ID" not in variables:
        variables["MLFLOW_EXPERIMENT_NAME"] = "night"
    environment = {**os.environ, "MLFLOW_OTLP_AUTO_INSTRUMENT": "false", **variables}
    lines = [line for line in run(["-c", APP], environment).splitlines() if line]
    assert lines[0].endswith(f"[{failure.code}]"), lines
    assert failure.fix in lines[0]
    if failure.name == "expired token":
        assert "expired 60 min ago" in lines[0]
    steps = json.loads(run(["-m", "mlflow_otlp_exporter", "doctor", "--json"], environment))["steps"]
    [failed] = [step for step in steps if step["state"] == "failed"]
    assert failed["code"] == failure.code
    assert failure.fix in failed["fix"]
