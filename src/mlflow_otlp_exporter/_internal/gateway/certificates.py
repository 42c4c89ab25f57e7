"""The certificate of the gateway, from files that are read again when they change."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path
from typing import Any

import grpc

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import GatewaySettings

_CHECK_SECONDS = 1.0


class CertificateFiles:
    """Certificate, key and CA of clients; new connections get those that are in the files.

    Raises ConfigurationError if they are unusable at the start. Later, the last usable ones stay valid, with a log
    line: certificate and key are rarely replaced in one step.
    """

    def __init__(self, certificate: str, key: str | None, client_ca: str | None, problem_log: ProblemLog) -> None:
        # Without a file of its own, the key stands in that of the certificate.
        self._certificate, self._key, self._client_ca = certificate, key or certificate, client_ca
        self._problem_log = problem_log
        self._checked_at = time.monotonic()
        try:
            self._state = self._read_state()
            self._context, self._grpc_configuration = self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigurationError(f"{certificate} is not usable: {error}", MessageCode.INVALID_CREDENTIAL) from None

    @classmethod
    def open(cls, gateway: GatewaySettings, problem_log: ProblemLog) -> CertificateFiles | None:
        certificate, key, client_ca = (
            gateway.gateway_certificate_file,
            gateway.gateway_key_file,
            gateway.gateway_client_ca_file,
        )
        if certificate is not None:
            return cls(certificate, key, client_ca, problem_log)
        if client_ca or key:
            raise ConfigurationError("the gateway's TLS settings need gateway_certificate_file")
        return None

    def make_http_context(self) -> ssl.SSLContext:
        """Make a context that hands each connection over to that of the current files, also without a server name."""
        context = self._context

        def select(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            self._refresh()
            connection.context = self._context

        context.sni_callback = select
        return context

    def make_grpc_credentials(self) -> grpc.ServerCredentials:
        def fetch() -> Any:
            self._refresh()
            return self._grpc_configuration

        return grpc.dynamic_ssl_server_credentials(self._grpc_configuration, fetch, self._client_ca is not None)

    def _read_state(self) -> list[tuple[int, int, int]]:
        # A mounted secret is a symbolic link, which is replaced.
        paths = [path for path in (self._certificate, self._key, self._client_ca) if path is not None]
        return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in map(Path.stat, map(Path, paths))]

    def _load(self) -> tuple[ssl.SSLContext, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        pair = Path(self._key).read_bytes(), Path(self._certificate).read_bytes()
        roots = Path(self._client_ca).read_bytes() if self._client_ca is not None else None
        return context, grpc.ssl_server_certificate_configuration([pair], roots)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            state = self._read_state()
            if state != self._state:
                self._context, self._grpc_configuration = self._load()
                self._state = state
            self._problem_log.resolve(self._certificate, add_code(MessageCode.RECOVERED, "Certificate is read again"))
        except (OSError, ValueError) as error:
            message = f"{self._certificate} is not usable: {error}. The previous certificate stays in use."
            self._problem_log.report(
                self._certificate, add_code(MessageCode.INVALID_CREDENTIAL, message), 0, logging.WARNING
            )
