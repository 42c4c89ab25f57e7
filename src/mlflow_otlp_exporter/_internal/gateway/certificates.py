"""The certificate of the gateway, from files that are read again when they change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.gateway.watched_files import WatchedFiles


class CertificateFiles:
    """Certificate, key and CA of clients; new connections get those that are in the files."""

    def __init__(self, certificate: str, key: str | None, client_ca: str | None) -> None:
        # Without a file of its own, the key stands in that of the certificate.
        self._certificate, self._key, self._client_ca = certificate, key or certificate, client_ca
        self._context: ssl.SSLContext
        self._grpc_configuration: Any
        paths = dict.fromkeys(Path(name) for name in (certificate, self._key, client_ca) if name is not None)
        self._files = WatchedFiles("certificates", list(paths), self._load)

    @classmethod
    def open(cls, gateway: GatewaySettings) -> CertificateFiles | None:
        certificate, key, client_ca = (
            gateway.gateway_certificate_file,
            gateway.gateway_key_file,
            gateway.gateway_client_ca_file,
        )
        if certificate is not None:
            return cls(certificate, key, client_ca)
        if client_ca or key:
            raise ConfigurationError("the gateway's TLS settings need gateway_certificate_file")
        return None

    def make_http_context(self) -> ssl.SSLContext:
        """Make a context that hands each connection over to that of the current files, also without a server name."""
        context = self._context

        def select(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            self._files.refresh()
            connection.context = self._context

        context.sni_callback = select
        return context

    def make_grpc_credentials(self) -> grpc.ServerCredentials:
        def fetch() -> Any:
            self._files.refresh()
            return self._grpc_configuration

        return grpc.dynamic_ssl_server_credentials(self._grpc_configuration, fetch, self._client_ca is not None)

    def _load(self) -> None:
        key, certificate = Path(self._key).read_bytes(), Path(self._certificate).read_bytes()
        if b"PRIVATE KEY-----" not in key:
            setting = "set gateway_key_file" if self._key == self._certificate else f"{self._key} has none"
            raise ValueError(f"its private key is missing: {setting}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        roots = None
        if self._client_ca is not None:
            # Health checks and Prometheus have no certificate: HttpReceiver requires one for spans.
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self._client_ca)
            roots = Path(self._client_ca).read_bytes()
        self._context = context
        self._grpc_configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], roots)
