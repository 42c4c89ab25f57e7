"""`mlflow-otlp gateway` in its own process, and requests to it."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

PROTOBUF, JSON = "application/x-protobuf", "application/json"
_START_SECONDS, _STOP_SECONDS, _REQUEST_SECONDS, _POLL_SECONDS = 60.0, 40.0, 30.0, 0.05
_LISTENS = re.compile(r"receives traces (?:at https?://[\d.]+:|over gRPC at port )(\d+)")


@dataclass
class Reply:
    """An HTTP answer of the gateway."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class GatewayProcess:
    """A gateway in front of `tracking_uri`, which listens at ports of its own after each start."""

    folder: Path
    tracking_uri: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    grpc_port: int = 0
    tls: ssl.SSLContext | None = None

    def start(self) -> "GatewayProcess":
        self.folder.mkdir(parents=True, exist_ok=True)
        variables = {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_OTLP_SPOOL_DIR": str(self.folder / "spool"),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }
        command = [sys.executable, "-m", "mlflow_otlp_exporter", "gateway", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--grpc-listen", f"127.0.0.1:{self.grpc_port}"]
        with self.log_path.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen([*command, *self.arguments], env=variables, stdout=log, stderr=log)
        end, pause = time.monotonic() + _START_SECONDS, threading.Event()
        port_count = 1 if "none" in self.arguments else 2
        while len(ports := _LISTENS.findall(self.log_path.read_text()[start:])) < port_count:
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < end, self.log_path.read_text()
            pause.wait(_POLL_SECONDS)
        self.port, self.grpc_port = int(ports[0]), int(ports[1]) if port_count == 2 else 0
        return self

    def __enter__(self) -> "GatewayProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log_path(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log, each of which is a JSON object."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def metrics(self) -> dict[str, float]:
        """Return the values of /metrics by name with labels, without those that name the exporter."""
        content = self.request("GET", "/metrics").body.decode()
        lines = re.sub(r"\b(otel_component|server)_\w+=\"[^\"]*\",?", "", content).replace("{}", "").splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def stop(self) -> int:
        """End it by SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_SECONDS)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)
        if self.tls is not None:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS, context=self.tls)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, body: bytes, content_type: str = PROTOBUF, **headers: str) -> Reply:
        """Post a body to /v1/traces; underscores in names of headers stand for hyphens."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", "/v1/traces", body, {"content-type": content_type, **names})


@contextmanager
def open_grpc_channel(gateway: GatewayProcess, credentials: Any = None) -> Iterator[Callable[..., Any]]:
    """Open a channel; yield the method that exports the bytes of a request."""
    address = f"127.0.0.1:{gateway.grpc_port}"
    options = [("grpc.enable_http_proxy", 0)]
    channel = (
        grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    )
    with channel:
        yield channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            response_deserializer=ExportTraceServiceResponse.FromString,
        )


def export_over_grpc(
    gateway: GatewayProcess,
    body: bytes,
    metadata: Sequence[tuple[str, str]] = (),
    compression: Any = None,
) -> ExportTraceServiceResponse:
    """Export the bytes of a request over a connection of its own; raises grpc.RpcError."""
    with open_grpc_channel(gateway) as export:
        response: ExportTraceServiceResponse = export(
            body, metadata=metadata, compression=compression, timeout=_REQUEST_SECONDS
        )
        return response
