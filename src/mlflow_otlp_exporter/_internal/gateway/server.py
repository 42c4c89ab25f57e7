"""The process of `mlflow-otlp gateway`: sockets, logging, signals and shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.instruments import create_metrics
from mlflow_otlp_exporter._internal.common.problem_log import logger, pluralize
from mlflow_otlp_exporter._internal.config.models import GatewaySettings, SettingGroup, Settings
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.gateway.certificates import CertificateFiles
from mlflow_otlp_exporter._internal.gateway.forwarding import ForwardingIntake
from mlflow_otlp_exporter._internal.gateway.grpc_receiver import GrpcReceiver
from mlflow_otlp_exporter._internal.gateway.http_receiver import HttpProtocol, HttpReceiver
from mlflow_otlp_exporter._internal.gateway.intake import Intake
from mlflow_otlp_exporter._internal.gateway.metrics import GatewayMetrics
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile
from mlflow_otlp_exporter._internal.model.destination import ROUTE_ATTRIBUTES
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter
from mlflow_otlp_exporter._internal.version import __version__

# What `mlflow-otlp gateway` sets other than the table of settings. `linger` is the decision wait after a trace's root.
DEFAULTS: Mapping[str, Any] = {
    "create_experiment": True,
    "compact": True,
    "spool": True,
    "durability": "every-span",
    "linger": 2.0,
    "buffer_bytes": 256 * 1024 * 1024,
}
_SWITCH_SECONDS, _BACKLOG = 0.0005, 1024
# New objects before a collection, and collections of one generation before one of the next.
_GC_THRESHOLDS = (20_000, 20, 20)
SERVER_NAME = "mlflow-otlp-gateway"
# Kubernetes kills a pod after 30 s: requests that are being received, and spans in memory, until then.
_GRACEFUL_SECONDS, _CLOSE_SECONDS = 5, 10.0
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _JsonFormatter(logging.Formatter):
    """One line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `_serve`: uvicorn raises them again, so that nothing would run after it."""
        yield


def run_gateway(settings: Settings, gateway: GatewaySettings) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    _configure_logging()
    # Until `_serve` handles them: their default action would end the process without closing the receivers.
    for number in _END_SIGNALS:
        signal.signal(number, _end_process)
    # Threads that decode requests and the one that enriches spans share the interpreter: with Python's 5 ms, the
    # slowest answers took three times as long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # With Python's thresholds, a full collection held up all answers for 50 to 70 ms every few seconds: spans of two
    # seconds and all modules are many objects, but cycles are few.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    listener = _open_socket(gateway.gateway_listen)
    metrics = GatewayMetrics()
    exporter_metrics = create_metrics(metrics.provider, settings.traces.url)
    exporter_metrics.name_destination = metrics.name_destination
    pipeline = Pipeline(_hide_routes(settings), None, exporter_metrics)
    pipeline.set_trace_filter(settings.app.noise)
    tokens = TokenFile(Path(gateway.gateway_tokens_file)) if gateway.gateway_tokens_file else None
    if gateway.gateway_forward_authorization:
        if tokens is not None:
            raise ConfigurationError("gateway_tokens_file and gateway_forward_authorization exclude each other")
        intake: Intake = ForwardingIntake(pipeline, gateway.gateway_max_destinations)
    else:
        intake = Intake(pipeline, make_trace_filter(settings.app.noise), gateway.gateway_max_destinations)
    metrics.observe(intake)
    receiver = HttpReceiver(intake, tokens, gateway.gateway_max_request_size, metrics)
    config = uvicorn.Config(
        receiver.app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        headers=[("server", f"{SERVER_NAME}/{__version__}")],
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    certificates = CertificateFiles.open(gateway)
    if certificates is not None:
        config.load()
        config.ssl = certificates.make_http_context()
    scheme = "http" if certificates is None else "https"
    host, port = listener.getsockname()[:2]
    logger.info(
        "Gateway receives traces at %s://%s:%d/v1/traces and sends them to %s [%s]",
        scheme,
        host,
        port,
        settings.traces.address,
        MessageCode.EXPORT_CONFIGURED,
    )
    is_open = tokens is None and not gateway.gateway_forward_authorization
    if is_open and not host.startswith(("127.", "::1")):
        logger.warning(
            "Every client that reaches %s:%d may write to every destination: set MLFLOW_OTLP_GATEWAY_TOKENS_FILE [%s]",
            host,
            port,
            MessageCode.INVALID_SETTING,
        )
    grpc_receiver = (
        GrpcReceiver(intake, tokens, certificates, gateway, metrics) if gateway.gateway_grpc_listen else None
    )
    try:
        if grpc_receiver is not None:
            grpc_receiver.start()
            logger.info(
                "Gateway receives traces over gRPC at port %d [%s]", grpc_receiver.port, MessageCode.EXPORT_CONFIGURED
            )
        asyncio.run(_serve(_Server(config), listener))
    finally:
        for number in _END_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # another one must not interrupt `Intake.close`
        if grpc_receiver is not None:
            grpc_receiver.stop(_GRACEFUL_SECONDS)
        intake.close(_CLOSE_SECONDS)
        stats = pipeline.stats()
        logger.info(
            "Gateway ended: %s delivered, %d spooled, %d dropped [%s]",
            pluralize(stats.delivered, "span"),
            stats.spooled,
            stats.dropped,
            MessageCode.EXPORT_CONFIGURED,
        )
    return 0


def _end_process(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def _hide_routes(settings: Settings) -> Settings:
    """Drop the attributes that name the destination of a resource: MLflow would store each as a tag."""
    if settings.traces.group is not SettingGroup.MLFLOW:
        return settings  # a Collector may route by them
    names = (*settings.privacy.drop_resource, *sorted(ROUTE_ATTRIBUTES))
    return settings._replace(privacy=settings.privacy._replace(drop_resource=names))


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    def end_serving(_number: int, _frame: object) -> None:
        server.should_exit = True  # uvicorn reads it every 0.1 s

    # Unlike those of the event loop, these handlers stay until `run_gateway` ignores the signals.
    for number in _END_SIGNALS:
        signal.signal(number, end_serving)
    await server.serve(sockets=[listener])


def _configure_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    # Else one line for each malformed request, as of a port scanner.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logger.setLevel(logging.INFO)


def _open_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
        # Connections inherit it. asyncio sets it only on sockets that name their protocol, unlike this one; without it,
        # an answer with a body takes 44 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise ConfigurationError(f"cannot listen at {address}: {error.strerror or error}") from None
    return listener
