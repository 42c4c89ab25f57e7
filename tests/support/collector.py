"""OpenTelemetry Collectors in front of MLflow: one that PyPI ships, and otelcol where it is on PATH."""

import http.client
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mlflow_otlp_exporter._internal.cli.collector_config import CollectorConfig, as_yaml
from support.environments import environment, read_lock
from support.nginx import _free_ports

START_SECONDS = 60.0
POLL_SECONDS = 0.05


def collector_python() -> Path:
    """A Python with the Collector and with OpenTelemetry's exporter by gRPC."""
    return environment("collector", read_lock("collector"))


def otelcol() -> Path | None:
    """The Collector of OpenTelemetry, where it is on this machine."""
    found = shutil.which("otelcol-contrib") or shutil.which("otelcol")
    return Path(found) if found else None


class Collector:
    """A Collector on 127.0.0.1 that sends what it takes to MLflow.

    Attributes:
        http: Where it takes OTLP by HTTP.
        grpc: Where it takes OTLP by gRPC.
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
    def of_pypi(cls, folder: Path, config: CollectorConfig) -> "Collector":
        """Rotel, which knows fixed destinations alone."""
        folder.mkdir(parents=True, exist_ok=True)
        assert not config.per_tenant
        web, grpc = _free_ports(2)
        headers = {"x-mlflow-experiment-id": config.experiment_id, "x-mlflow-workspace": config.workspace}
        (program,) = collector_python().parents[1].glob("lib/python*/site-packages/rotel/rotel-agent")
        options = {
            "pid-file": str(folder / "pid"),
            "otlp-http-endpoint": f"127.0.0.1:{web}",
            "otlp-grpc-endpoint": f"127.0.0.1:{grpc}",
            "exporter": "otlp",
            "otlp-exporter-protocol": "http",
            # It wants one for metrics and logs, too, which nobody sends it here.
            "otlp-exporter-endpoint": config.traces_url.removesuffix("/v1/traces"),
            "otlp-exporter-compression": config.compression,
            "otlp-exporter-custom-headers": ",".join(f"{name}={value}" for name, value in headers.items() if value),
            "otlp-exporter-retry-initial-backoff": "200ms",
            "otlp-exporter-retry-max-backoff": "500ms",
        }
        command = [str(program), "start", *(word for name, value in options.items() for word in (f"--{name}", value))]
        return cls(folder, command, {"PATH": "/usr/bin:/bin"}, (web, grpc))

    @classmethod
    def of_opentelemetry(cls, folder: Path, config: CollectorConfig) -> "Collector":
        """Otelcol, with the configuration that we print; only ports and folder are others."""
        folder.mkdir(parents=True, exist_ok=True)
        program = otelcol()
        assert program is not None
        web, grpc, health = _free_ports(3)
        text = as_yaml(config)
        for old, new in (
            ("0.0.0.0:4318", f"127.0.0.1:{web}"),
            ("0.0.0.0:4317", f"127.0.0.1:{grpc}"),
            ("0.0.0.0:13133", f"127.0.0.1:{health}"),
            ("/var/lib/otelcol/mlflow", str(folder / "queue")),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "collector.yaml").write_text(text)
        return cls(
            folder, [str(program), "--config", str(folder / "collector.yaml")], {"PATH": "/usr/bin:/bin"}, (web, grpc)
        )

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
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
