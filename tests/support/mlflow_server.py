"""A real `mlflow server` in its own process."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

START_SECONDS = 120.0
STOP_SECONDS = 10.0
REQUEST_SECONDS = 60.0
POLL_SECONDS = 0.05

_ACCESS = re.compile(r'"(?P<method>[A-Z]+) (?P<path>[^ ?"]*)[^"]* HTTP/[0-9.]+" (?P<status>\d{3})')


class RestError(Exception):
    """The server answered a REST call with a status other than 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class MLflowServer:
    """A running `mlflow server` on 127.0.0.1, with one worker, SQLite and no job runners.

    Attributes:
        uri: The tracking URI, without any `--static-prefix`.
        log: The log file of all starts.
        process: The `mlflow server` process, the leader of its group.
        headers: Sent with every `call_rest()`, for servers that require credentials.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self.log = log
        self.process: subprocess.Popen[bytes]
        self.headers: dict[str, str] = {}
        self._port = port
        self._command = list(command)
        self._environment = dict(environment)
        self._prefix = _option(command, "--static-prefix").rstrip("/")
        self._api_prefix: str | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        python: Path = Path(sys.executable),
        workspaces: bool = False,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> "MLflowServer":
        """Start a server and wait until it answers.

        Args:
            folder: The folder of its database, artifacts and log.
            python: A Python that has MLflow installed.
            workspaces: Whether workspaces are enabled (3.10.0 and later).
            extra: More arguments of `mlflow server`; a `--backend-store-uri` here replaces the SQLite file.
            environment: Variables to add to its environment, or to replace there.

        Raises:
            RuntimeError: It ended or did not answer in time; the message has the end of the log.
        """
        folder.mkdir(parents=True, exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
        variables |= {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            # Seven processes that make the start slower and that no test needs.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # 3.17 looks up the prices of a model on the internet, inside of the request with its first span: without a
            # connection, that takes 8 s and more.
            "MLFLOW_MODEL_CATALOG_URI": "",
            "PYTHONUNBUFFERED": "1",
            # Another version's server must not see the packages of the running one.
            "PYTHONPATH": "",
            **(environment or {}),
        }
        port = _free_port()
        command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
        if not _option(extra, "--backend-store-uri"):
            command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        if workspaces:
            command.append("--enable-workspaces")
        server = cls([*command, *extra], port, folder / "server.log", variables)
        server._launch()
        return server

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, so that all its children can be ended
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        # Up to 3.6.0 /health is at the root whatever the prefix, from 3.8.1 on below it.
        paths = dict.fromkeys([f"{self._prefix}/health", "/health"])
        end = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"`mlflow server` ended with {self.process.returncode}:\n{self.log_tail()}")
            for path in paths:
                with suppress(OSError, http.client.HTTPException):
                    if self._request("GET", path, None, {})[0] == 200:
                        return
            pause.wait(POLL_SECONDS)
        raise RuntimeError(f"`mlflow server` did not answer within {START_SECONDS} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # Life cycle

    def stop(self) -> None:
        """Stop it with SIGTERM, and kill the remaining processes of its group."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        # The leader may have ended before uvicorn has ended its last requests.
        self._wait_until_closed()
        self.kill()

    def kill(self) -> None:
        """Kill it and its children, like a crash."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._wait_until_closed()

    def restart(self) -> None:
        """Start it again on the same port and data, stopping it first if it runs."""
        if self.process.poll() is None:
            self.stop()
        self._launch()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait_until_closed(self) -> None:
        end = time.monotonic() + STOP_SECONDS
        pause = threading.Event()
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
            except ConnectionRefusedError:
                return
            except OSError:
                pass
            pause.wait(POLL_SECONDS)

    # Requests

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, str, str]:
        """Return status, content type and text; http.client knows no proxies and follows no redirects."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, answer.headers.get_content_type(), text
        finally:
            connection.close()

    def call_rest(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        workspace: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """Make a call and return its JSON, or its text if it is not JSON.

        Args:
            method: The HTTP method.
            path: The path below `uri`, such as "/api/2.0/mlflow/experiments/create".
            body: Sent as JSON.
            workspace: The workspace; None sends no header.
            query: The query parameters.

        Raises:
            RestError: The status is not 2xx.
        """
        headers = dict(self.headers)
        if workspace is not None:
            headers["x-mlflow-workspace"] = workspace
        if body is not None:
            headers["Content-Type"] = "application/json"
        target = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        status, content_type, text = self._request(method, target, data, headers)
        if not 200 <= status < 300:
            raise RestError(status, text)
        return json.loads(text) if content_type == "application/json" else text

    def _api(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if self._api_prefix is None:
            self._api_prefix = self._find_api_prefix()
        return self.call_rest(method, self._api_prefix + path, body, **options)

    def _find_api_prefix(self) -> str:
        """Before 3.13 the REST calls stay at the root whatever the prefix."""
        if not self._prefix:
            return ""
        probe = f"{self._prefix}/api/2.0/mlflow/experiments/get?experiment_id=0"
        return "" if self._request("GET", probe, None, self.headers)[0] == 404 else self._prefix

    def create_workspace(self, name: str) -> None:
        """Create a workspace."""
        self._api("POST", "/api/3.0/mlflow/workspaces", {"name": name})

    def create_experiment(self, name: str, workspace: str | None = None) -> str:
        """Create an experiment and return its id."""
        answer = self._api("POST", "/api/2.0/mlflow/experiments/create", {"name": name}, workspace=workspace)
        return str(answer["experiment_id"])

    def delete_experiment(self, experiment_id: str, workspace: str | None = None) -> None:
        """Delete an experiment; MLflow keeps it and still returns it by its name."""
        body = {"experiment_id": experiment_id}
        self._api("POST", "/api/2.0/mlflow/experiments/delete", body, workspace=workspace)

    def experiment(self, name: str, workspace: str | None = None) -> dict[str, Any] | None:
        """Return an experiment by its name, or None; deleted ones too, see its lifecycle_stage."""
        path = "/api/2.0/mlflow/experiments/get-by-name"
        answer = self._get_or_none("GET", path, workspace=workspace, query={"experiment_name": name})
        return None if answer is None else dict(answer["experiment"])

    def search_traces(self, experiment_id: str, workspace: str | None = None) -> list[dict[str, Any]]:
        """Return the trace_info of every trace of an experiment, without spans."""
        location = {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": experiment_id},
        }
        body: dict[str, Any] = {"locations": [location], "max_results": 100}
        traces: list[dict[str, Any]] = []
        while True:
            answer = self._api("POST", "/api/3.0/mlflow/traces/search", body, workspace=workspace)
            traces += answer.get("traces", [])
            if not answer.get("next_page_token"):
                return traces
            body["page_token"] = answer["next_page_token"]

    def trace(self, trace_id_hex: str, workspace: str | None = None) -> dict[str, Any] | None:
        """Return a trace by its OpenTelemetry id in hex, or None.

        It has "trace_info" and "spans" (OTLP JSON with ids in base64). Servers before 3.8.1 give no spans, and
        "spans" is missing.
        """
        trace_id = f"tr-{trace_id_hex.removeprefix('tr-')}"
        # A trace without its root is partial, and asking for a whole one would wait for it.
        query = {"trace_id": trace_id, "allow_partial": "true"}
        answer = self._get_or_none("GET", "/api/3.0/mlflow/traces/get", workspace=workspace, query=query)
        if answer is None:
            answer = self._get_or_none("GET", f"/api/3.0/mlflow/traces/{quote(trace_id)}", workspace=workspace)
        return None if answer is None else dict(answer["trace"])

    def wait_for_trace(
        self,
        trace_id_hex: str,
        workspace: str | None = None,
        *,
        until: Callable[[dict[str, Any]], object] = bool,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Wait until a trace exists and satisfies `until`.

        Raises:
            AssertionError: It did not in time; the message has the last state.
        """
        end = time.monotonic() + timeout
        pause = threading.Event()
        while True:
            trace = self.trace(trace_id_hex, workspace)
            if trace is not None and until(trace):
                return trace
            if time.monotonic() > end:
                raise AssertionError(f"trace {trace_id_hex} was not complete within {timeout} s: {trace}")
            pause.wait(POLL_SECONDS)

    def _get_or_none(self, method: str, path: str, **options: Any) -> Any:
        try:
            return self._api(method, path, **options)
        except RestError as error:
            if error.status == 404:
                return None
            raise

    def statuses(self, method: str = "POST", path: str = "/v1/traces") -> list[int]:
        """Return the status of every request to a path in all starts, from the server's access log.

        The server logs a request before its response, so a client that has the response finds the line.
        """
        return [
            int(match["status"])
            for match in _ACCESS.finditer(self.log.read_text(errors="replace"))
            if (match["method"], match["path"]) == (method, path)
        ]

    def count_requests(self, method: str = "POST", path: str = "/v1/traces") -> int:
        """Return the number of requests to a path that the server has answered so far.

        Tests share a server: compare the counts before and after.
        """
        return len(self.statuses(method, path))


def _option(arguments: Sequence[str], name: str) -> str:
    """Return the value of an option, given as two arguments or with "=", or ""."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
