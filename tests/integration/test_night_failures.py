"""Failures of a night, as a new user meets them: the first log line names the fix, and so does the doctor.

The remaining failures cause no log line: an exit right after a span loses nothing, and a killed process cannot log. The
troubleshooting page names that symptom; `matrix.test_process_ends` kills workers of gunicorn.
"""

import base64
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from support.certificates import TlsServer, self_signed
from support.environments import ROOT
from support.markers import SECRET
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, ScriptedServer

APP = """
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from opentelemetry import trace
from mlflow_otlp_exporter import configure
telemetry = configure()
trace.get_tracer("app").start_span("answer").end()
telemetry.flush(8)
"""
NEXT_APP = """
from mlflow_otlp_exporter import configure
from support.traces import wait_until
telemetry = configure()
wait_until(lambda: telemetry.stats().delivered == 1, 60)
"""
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
JSON = {"Content-Type": "application/json"}
PATHS = ("/v1/traces", "/version", "/api/3.0/mlflow/server-info", "/api/2.0/mlflow/experiments/get-by-name")


class Failure(NamedTuple):
    """A broken set-up, the code, and what the log line and the doctor's fix must contain."""

    name: str
    prepare: Callable[["Night"], dict[str, str]]
    code: str
    fix: str
    state: str = "failed"


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

    def start(self, *options: str, **variables: str) -> MLflowServer:
        server = MLflowServer.start(self.folder / "server", extra=options, environment=variables)
        self._stack.callback(server.stop)
        return server

    def older_mlflow(self) -> dict[str, str]:
        """MLflow 2.22.1 has a version and experiments, and Flask's answer to unknown paths."""
        html = {"Content-Type": "text/html; charset=utf-8"}
        server = self._stack.enter_context(ScriptedServer())
        for path in PATHS:
            server.answer(then=Answer(404, headers=html, body=FLASK_404), path=path)
        server.answer(then=Answer(headers=html, body=b"2.22.1"), path="/version")
        experiment = b'{"experiment": {"experiment_id": "1", "name": "night", "lifecycle_stage": "active"}}'
        server.answer(then=Answer(headers=JSON, body=experiment), path="/api/2.0/mlflow/experiments/get-by-name")
        return {"MLFLOW_TRACKING_URI": server.url}

    def file_store(self) -> dict[str, str]:
        server = self.start("--backend-store-uri", str(self.folder / "mlruns"), MLFLOW_ALLOW_FILE_STORE="true")
        server.create_experiment("night")
        return {"MLFLOW_TRACKING_URI": server.uri}

    def reader(self) -> dict[str, str]:
        """A user of MLflow's basic-auth who may only read."""
        server = self.start(
            *("--app-name", "basic-auth"),
            MLFLOW_FLASK_SERVER_SECRET_KEY=SECRET,
            MLFLOW_AUTH_ADMIN_USERNAME="admin",
            MLFLOW_AUTH_ADMIN_PASSWORD=f"{SECRET}-admin",
        )
        server.headers["Authorization"] = f"Basic {base64.b64encode(f'admin:{SECRET}-admin'.encode()).decode()}"
        server.create_experiment("night")
        body = {"username": "ada", "password": f"{SECRET}-of-ada"}
        server.call_rest("POST", "/api/2.0/mlflow/users/create", body)
        credentials = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-of-ada"}
        return {"MLFLOW_TRACKING_URI": server.uri, **credentials}

    def without_instrumentations(self) -> dict[str, str]:
        """All packages of this environment except instrumentations."""
        packages = self.folder / "packages"
        packages.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if "instrumentation" not in path.name:
                (packages / path.name).symlink_to(path)
        return {
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "MLFLOW_OTLP_AUTO_INSTRUMENT": "true",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(packages)]),
        }

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
FLASK_404 = b"""<!doctype html>
<html lang=en>
<title>404 Not Found</title>
<h1>Not Found</h1>
<p>The requested URL was not found on the server. If you entered the URL manually please check your spelling and try \
again.</p>
"""
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
    Failure("MLflow without OTLP", Night.older_mlflow, "MLO-420", "pip install --upgrade mlflow"),
    Failure("file store", Night.file_store, "MLO-404", "--backend-store-uri sqlite:///mlflow.db"),
    Failure("permission missing", Night.reader, "MLO-412", "`EDIT` on the experiment"),
    Failure(
        "no instrumentation", Night.without_instrumentations, "MLO-705", "pip install 'mlflow-otlp-exporter[", "warning"
    ),
]


@pytest.fixture
def night(mlflow_server: MLflowServer, tmp_path: Path) -> Iterator[Night]:
    with ExitStack() as stack:
        yield Night(mlflow_server, tmp_path, stack)


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # -S: none but the packages of without_instrumentations().
    options = ["-S"] if environment.get("PYTHONPATH", "").endswith("/packages") else []
    command = [sys.executable, "-W", "ignore", *options, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def run_app(code: str, environment: dict[str, str]) -> list[str]:
    """Run an application and return the lines of its log."""
    return [line for line in run(["-c", code], environment).stderr.splitlines() if line]


def run_doctor(environment: dict[str, str]) -> list[dict[str, str]]:
    steps = json.loads(run(["-m", "mlflow_otlp_exporter", "doctor", "--json"], environment).stdout)["steps"]
    return [step for step in steps if step["state"] in ("failed", "warning")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_first_log_line_and_doctor_name_the_fix(failure: Failure, night: Night) -> None:
    variables = failure.prepare(night)
    if "MLFLOW_EXPERIMENT_ID" not in variables:
        variables["MLFLOW_EXPERIMENT_NAME"] = "night"
    environment = {**os.environ, "MLFLOW_OTLP_AUTO_INSTRUMENT": "false", **variables}
    lines = run_app(APP, environment)
    assert lines[0].endswith(f"[{failure.code}]"), lines
    assert failure.fix in lines[0]
    if failure.name == "expired token":
        assert "expired 60 min ago" in lines[0]
    [step] = run_doctor(environment)
    assert (step["code"], step["state"]) == (failure.code, failure.state)
    assert failure.fix in step["fix"]


@pytest.mark.parametrize("command", ["application", "doctor"])
def test_mistyped_experiment_name_is_reported_with_the_closest(mlflow_server: MLflowServer, command: str) -> None:
    mlflow_server.create_experiment(f"nightly-{command}")
    environment = {
        **os.environ,
        "MLFLOW_OTLP_AUTO_INSTRUMENT": "false",
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "MLFLOW_EXPERIMENT_NAME": f"nigthly-{command}",
    }
    hint = f"Did you mean 'nightly-{command}'?"
    if command == "application":
        [line] = run_app(APP, environment)
        assert line.endswith(f"because there was none of this name. {hint} [MLO-803]")
    else:
        [step] = run_doctor(environment)
        assert (step["step"], step["state"], step["code"]) == ("experiment", "failed", "MLO-409")
        assert hint in step["server_says"]
        assert "start the application, which creates it" in step["fix"]
        assert mlflow_server.experiment(f"nigthly-{command}") is None


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "1 / 0", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_spans_of_a_process_that_ends_at_once_are_stored(mlflow_server: MLflowServer, end: str) -> None:
    """With every-span also after ends that run no more code: the next process sends them."""
    number = mlflow_server.create_experiment(f"ends with {end}")
    environment = {
        **os.environ,
        "MLFLOW_OTLP_AUTO_INSTRUMENT": "false",
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "MLFLOW_EXPERIMENT_ID": number,
    }
    code = APP.partition("telemetry.flush")[0] + f"import os\n{end}\n"
    if is_killed := "os." in end:
        environment |= {"MLFLOW_OTLP_DURABILITY": "every-span", "MLFLOW_OTLP_LINGER": "600", "MLFLOW_OTLP_HOLD": "600"}
    lines = run_app(code, environment)
    assert [line for line in lines if "MLO-" in line] == []
    if is_killed:
        assert mlflow_server.search_traces(number) == []
        assert run_app(NEXT_APP, {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}) == []
        [symptom] = [section for section in TROUBLESHOOTING.split("\n### ") if "os._exit()" in section]
        assert 'durability="every-span"' in symptom
    assert len(mlflow_server.search_traces(number)) == 1
