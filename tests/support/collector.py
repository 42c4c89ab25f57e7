"""Collectors in front of MLflow: rotel from PyPI, and otelcol if it is on PATH."""

import http.client
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import yaml

from mlflow_otlp_exporter._internal.cli.main import read_collector_config
from support.environments import environment, read_lock
from support.nginx import _free_ports

START_SECONDS = 60.0
POLL_SECONDS = 0.05
REFERENCE = re.compile(r"\$\{env:(?P<name>\w+)(?P<default>:-[^}]*)?\}")


def collector_python() -> Path:
    """A Python with rotel and OpenTelemetry's gRPC exporter."""
    return environment("collector", read_lock("collector"))


def otelcol() -> Path | None:
    """The path of OpenTelemetry's Collector, or None if it is not installed."""
    path = shutil.which("otelcol-contrib") or shutil.which("otelcol")
    return Path(path) if path else None


def expand_variables(text: str, variables: Mapping[str, str]) -> str:
    """A configuration as the Collector reads it: a default replaces an unset variable, but not an empty one."""

    def value_of(reference: re.Match[str]) -> str:
        return variables.get(reference["name"], (reference["default"] or "").removeprefix(":-"))

    return REFERENCE.sub(value_of, text)


class Collector:
    """A Collector on 127.0.0.1 that forwards spans to MLflow.

    Attributes:
        http: Its address for OTLP over HTTP.
        grpc: Its address for OTLP over gRPC.
    """

    def __init__(
        self, folder: Path, command: Sequence[str], environ: Mapping[str, str], ports: tuple[int, int]
    ) -> None:
        self.http, self.grpc = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        self._port = ports[0]
        self._log = folder / "collector.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(environ), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @classmethod
    def of_pypi(cls, folder: Path, variables: Mapping[str, str]) -> "Collector":
        """Rotel with the values of the configuration `fixed-no-auth`; rotel has no counterpart of `per-tenant`.

        Args:
            folder: The folder for its files.
            variables: The environment variables that the configuration refers to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        exporter = yaml.safe_load(expand_variables(read_collector_config("fixed-no-auth"), variables))["exporters"]
        exporter = exporter["otlphttp/mlflow"]
        web, grpc = _free_ports(2)
        (program,) = collector_python().parents[1].glob("lib/python*/site-packages/rotel/rotel-agent")
        options = {
            "pid-file": str(folder / "pid"),
            "otlp-http-endpoint": f"127.0.0.1:{web}",
            "otlp-grpc-endpoint": f"127.0.0.1:{grpc}",
            "exporter": "otlp",
            "otlp-exporter-protocol": "http",
            "otlp-exporter-endpoint": exporter["endpoint"],
            "otlp-exporter-compression": exporter["compression"],
            "otlp-exporter-custom-headers": ",".join(f"{name}={value}" for name, value in exporter["headers"].items()),
            "otlp-exporter-retry-initial-backoff": "200ms",
            "otlp-exporter-retry-max-backoff": "500ms",
        }
        command = [str(program), "start", *(word for name, value in options.items() for word in (f"--{name}", value))]
        return cls(folder, command, {"PATH": "/usr/bin:/bin"}, (web, grpc))

    @classmethod
    def of_opentelemetry(cls, folder: Path, variables: Mapping[str, str], name: str = "fixed-no-auth") -> "Collector":
        """Otelcol with a shipped configuration; only its ports and its folder are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        program = otelcol()
        assert program is not None
        web, grpc, health = _free_ports(3)
        text = read_collector_config(name)
        for old, new in (
            ("0.0.0.0:4318", f"127.0.0.1:{web}"),
            ("0.0.0.0:4317", f"127.0.0.1:{grpc}"),
            ("0.0.0.0:13133", f"127.0.0.1:{health}"),
            ("/var/lib/otelcol/mlflow", str(folder / "queue")),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "collector.yaml").write_text(text)
        command = [str(program), "--config", str(folder / "collector.yaml")]
        return cls(folder, command, {"PATH": "/usr/bin:/bin", **variables}, (web, grpc))

    def __enter__(self) -> "Collector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        end, pause = time.monotonic() + START_SECONDS, threading.Event()
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
                try:
                    connection.request("POST", "/v1/traces", b"", {"Content-Type": "application/x-protobuf"})
                    connection.getresponse()
                finally:
                    connection.close()
                return
            pause.wait(POLL_SECONDS)
        raise RuntimeError(f"the Collector did not start:\n{self._log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
