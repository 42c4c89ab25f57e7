"""OpenTelemetry's Collector, built from the official modules that tests/collector names."""

import hashlib
import http.client
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from mlflow_otlp_exporter._internal.cli.main import read_collector_config
from support.environments import ROOT, lock_file
from support.needs import executable
from support.nginx import _free_ports

SOURCES = ROOT / "tests" / "collector"
VERSION = re.findall(r"^const release = \"(.*)\"$", (SOURCES / "main.go").read_text(), re.MULTILINE)[0]
START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
REFERENCE = re.compile(r"\$\{env:(?P<name>\w+)(?P<default>:-[^}]*)?\}")

# Copied when this module is loaded, because tests replace HOME, where Go keeps its settings, modules and build cache.
_ENVIRONMENT = {**os.environ, "CGO_ENABLED": "0"}
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-otlp-exporter"


def build_collector() -> Path:
    """Return the Collector's executable; build it if the user's cache folder has none of these sources and this Go."""
    go = str(executable("go"))
    digest = hashlib.sha256(_run_go(go, "env", "GOVERSION").encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    program = _CACHE / f"collector-{VERSION}-{digest.hexdigest()[:16]}"
    with lock_file(_CACHE / "collector.lock"):
        if not program.exists():
            unfinished = program.with_suffix(".unfinished")
            _run_go(go, "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(unfinished), ".")
            unfinished.replace(program)
    return program


def _run_go(*command: str) -> str:
    completed = subprocess.run(
        command, cwd=SOURCES, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {completed.returncode}:\n{completed.stderr[-3000:]}")
    return completed.stdout


def expand_variables(text: str, variables: Mapping[str, str]) -> str:
    """A configuration as the Collector reads it: a default replaces an unset variable, but not an empty one."""

    def value_of(reference: re.Match[str]) -> str:
        return variables.get(reference["name"], (reference["default"] or "").removeprefix(":-"))

    return REFERENCE.sub(value_of, text)


class Collector:
    """A Collector on 127.0.0.1 that runs a shipped configuration as it is.

    Its ports and the folder of its queue are in a second file, which the Collector merges into the first one.

    Attributes:
        http: Its address for OTLP over HTTP.
        grpc: Its address for OTLP over gRPC.
        log: The file with the output of all starts.
        process: The running process.
    """

    def __init__(
        self, folder: Path, name: str, variables: Mapping[str, str], changes: Mapping[str, Any] | None = None
    ) -> None:
        """Start a Collector and wait until it is healthy.

        Args:
            folder: The folder for its files.
            name: The shipped configuration, an argument of `mlflow-otlp collector-config`.
            variables: The environment variables that the configuration refers to.
            changes: A third configuration to merge.
        """
        folder.mkdir(parents=True, exist_ok=True)
        http, grpc, self._health, self._metrics = _free_ports(4)
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}"
        self.log = folder / "collector.log"
        self.process: subprocess.Popen[bytes]
        shipped = read_collector_config(name)
        if name == "operator":
            # The operator merges no other values into the configuration.
            shipped = yaml.safe_dump(yaml.safe_load(shipped)["spec"]["config"])
        reader = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": self._metrics}}}}
        extensions = {"health_check": {"endpoint": f"127.0.0.1:{self._health}"}}
        if "file_storage/mlflow:" in shipped:
            extensions["file_storage/mlflow"] = {"directory": str(folder / "queue")}
        places = {
            "extensions": extensions,
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                        "http": {"endpoint": f"127.0.0.1:{http}"},
                    }
                }
            },
            "service": {"telemetry": {"metrics": {"readers": [reader]}}},
        }
        self._command = [str(build_collector())]
        for file, text in (
            ("shipped.yaml", shipped),
            ("places.yaml", yaml.safe_dump(places)),
            ("changes.yaml", yaml.safe_dump(dict(changes or {}))),
        ):
            (folder / file).write_text(text)
            self._command += ["--config", str(folder / file)]
        self._environment = {"PATH": "/usr/bin:/bin", **variables}
        self.start()

    def __enter__(self) -> "Collector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, also after an end, with the same ports and the same queue.

        Raises:
            RuntimeError: It ended or was not healthy in time; the message has the end of its log.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.kill()
            raise

    def _wait_until_healthy(self) -> None:
        end, pause = time.monotonic() + START_SECONDS, threading.Event()
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if self._get(self._health, "/")[0] == 200:
                    return
            pause.wait(POLL_SECONDS)
        raise RuntimeError(f"the Collector did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def _get(self, port: int, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Return one of the Collector's own metrics, such as otelcol_exporter_sent_spans, over all attributes."""
        _, text = self._get(self._metrics, "/metrics")
        values = re.findall(rf"^{name}(?:__spans_|_total)*(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in values)

    def stop(self) -> None:
        """End it with SIGTERM: it stops receiving, and keeps its queue."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it, like a crash."""
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    print(build_collector())
