"""Checks the connection to a server with one request: proxy, host name, TCP connection, TLS."""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus, create_failure
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS
from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.config.models import ServerSettings, SettingSource
from mlflow_otlp_exporter._internal.transport.client import DEFAULT_CA_FILE, HttpClient
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, TransportError

_TIMEOUT_SECONDS = 4.0
_DAY_SECONDS = 86_400
_MIN_VALID_DAYS = 14
# Steps that an error of the HTTP client concerns.
_STEP_BY_CODE = {
    MessageCode.PROXY: "proxy",
    MessageCode.PROXY_UNAUTHENTICATED: "proxy",
    MessageCode.NAME_NOT_RESOLVED: "name",
    MessageCode.CONNECTION_REFUSED: "connection",
    MessageCode.CONNECT_TIMEOUT: "connection",
    MessageCode.CERTIFICATE_UNTRUSTED: "tls",
    MessageCode.CERTIFICATE_EXPIRED: "tls",
    MessageCode.CERTIFICATE_HOST_MISMATCH: "tls",
    MessageCode.NOT_TLS: "tls",
    MessageCode.CERTIFICATE_FILE: "tls",
    MessageCode.TLS_REJECTED: "tls",
    MessageCode.SOCKS_UNAVAILABLE: "proxy",
    MessageCode.NOT_HTTP: "connection",
    MessageCode.HTTP2_ONLY: "connection",
}


def check_connection(
    client: HttpClient, server: ServerSettings, environment: Mapping[str, str]
) -> Iterator[CheckResult]:
    """Send one request and report each step of the connection; if a step fails, its result is the last one."""
    parts = urlsplit(server.url)
    proxy = client.find_proxy()
    description = describe_proxy(proxy, server.url, environment)
    response = client.send(HttpRequest("GET", "/version", timeout_seconds=_TIMEOUT_SECONDS))
    if isinstance(response, TransportError) and response.is_credential_error:  # reported by the check of the server
        return
    failed_step = _STEP_BY_CODE.get(response.code) if isinstance(response, TransportError) else None
    details = {"proxy": description}
    if not proxy:
        details |= {"name": f"{parts.hostname} resolves", "connection": f"{parts.netloc} accepts connections"}
    if parts.scheme == "https":
        details["tls"] = ""
    for step, detail in details.items():
        if step == failed_step and isinstance(response, TransportError):
            detail = f"{description}: {response.message}" if step == "proxy" else response.message  # noqa: PLW2901
            if step == "tls":
                detail += f" (checked against {' from '.join(_find_ca(server, environment))})"  # noqa: PLW2901
            yield create_failure(step, response.code, detail)
            return
        yield (
            _check_tls(server, environment, bool(proxy)) if step == "tls" else CheckResult(step, CheckStatus.OK, detail)
        )


def describe_proxy(proxy: str, url: str, environment: Mapping[str, str]) -> str:
    """Describe the proxy that the HTTP client uses, or why it uses none, with the environment variable."""
    scheme = urlsplit(url).scheme
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    name = next((name for name in names if environment.get(name, "").strip()), "")
    if proxy:
        return f"{proxy} (environment variable {name})" if name else proxy
    exclusion = next((name for name in ("no_proxy", "NO_PROXY") if environment.get(name)), "")
    return f"none for this host (environment variable {exclusion})" if name and exclusion else "none"


def _find_ca(server: ServerSettings, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the CA file or folder that `HttpClient` uses, and its source."""
    if server.certificate_file:
        return server.certificate_file, str(server.sources.get("certificate_file", SettingSource("default")))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if environment.get(name):
            return environment[name], f"environment variable {name}"
    return DEFAULT_CA_FILE, "default"


def _check_tls(server: ServerSettings, environment: Mapping[str, str], has_proxy: bool) -> CheckResult:
    """Report the TLS connection, which has succeeded, and a certificate that expires soon."""
    code = MessageCode.CERTIFICATE_EXPIRED
    if server.insecure_tls:
        code, cause = MessageCode.CERTIFICATE_UNTRUSTED, "An attacker on the network could read credentials."
        fix = "Unset `MLFLOW_TRACKING_INSECURE_TLS`, and set `MLFLOW_TRACKING_SERVER_CERT_PATH` to the CA file."
        detail = f"certificate verification is disabled ({server.sources['insecure_tls']})"
        return CheckResult("tls", CheckStatus.WARNING, detail, "", cause, fix, code)
    ca_path, source = _find_ca(server, environment)
    detail = f"the certificate is trusted ({ca_path}, {source})"
    days = None if has_proxy else _read_valid_days(server, ca_path)
    if days is not None:
        detail += f" and valid for {pluralize(round(days), 'more day')}"
    if days is not None and days < _MIN_VALID_DAYS:
        return CheckResult(
            "tls", CheckStatus.WARNING, detail, "", "The certificate expires soon.", HINTS[code].fix, code
        )
    return CheckResult("tls", CheckStatus.OK, detail)


def _read_valid_days(server: ServerSettings, ca_path: str) -> float | None:
    parts = urlsplit(server.url)
    with suppress(OSError, ValueError, KeyError):
        folder, file = (ca_path, None) if Path(ca_path).is_dir() else (None, ca_path)
        context = ssl.create_default_context(cafile=file, capath=folder)
        if server.client_certificate_file:
            context.load_cert_chain(server.client_certificate_file, server.client_key_file)
        with (
            socket.create_connection((parts.hostname, parts.port or 443), timeout=_TIMEOUT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=parts.hostname) as secure,
        ):
            not_after = str((secure.getpeercert() or {})["notAfter"])
            return (ssl.cert_time_to_seconds(not_after) - time.time()) / _DAY_SECONDS
    return None
