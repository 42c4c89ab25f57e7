"""Checks the connection to a server step by step: proxy, host name, TCP connection, TLS."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus, create_failure
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS
from mlflow_otlp_exporter._internal.config.models import ServerSettings, SettingSource
from mlflow_otlp_exporter._internal.transport.client import default_ca_file, is_proxy_bypassed, tls_code

_TIMEOUT_SECONDS = 4.0
_DAY_SECONDS = 86_400
_MIN_VALID_DAYS = 14
_MAX_RESPONSE_BYTES = 65_536


@dataclass(frozen=True)
class Proxy:
    """The proxy for a server, and the environment variable that names it."""

    host: str
    port: int
    authorization: str  # value of Proxy-Authorization; empty without a user
    variable: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} (environment variable {self.variable})"


def check_connection(server: ServerSettings, environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check the connection to a server, step by step; if a step fails, its result is the last one."""
    parts = urlsplit(server.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = find_proxy(server.url, environment)
    if proxy is None:
        yield CheckResult("proxy", CheckStatus.OK, _describe_bypass(server.url, environment) or "none")
        addresses = _resolve(host, port)
        if isinstance(addresses, CheckResult):
            yield addresses
            return
        yield CheckResult("name", CheckStatus.OK, f"{host} resolves to {', '.join(addresses[:4])}")
        connected = _connect(host, port)
    else:
        connected = _connect_to_proxy(proxy)
    if isinstance(connected, CheckResult):
        yield connected
        return
    with contextlib.closing(connected) as connection:
        if proxy is None:
            yield CheckResult("connection", CheckStatus.OK, f"{host}:{port} accepts connections")
        else:
            if parts.scheme == "https" and (problem := _open_tunnel(connection, proxy, host, port)):
                yield problem
                return
            yield CheckResult("proxy", CheckStatus.OK, str(proxy))
        if parts.scheme == "https":
            yield _check_tls(connection, server, host, environment)


def _connect_to_proxy(proxy: Proxy) -> socket.socket | CheckResult:
    addresses = _resolve(proxy.host, proxy.port)
    connection = addresses if isinstance(addresses, CheckResult) else _connect(proxy.host, proxy.port)
    if isinstance(connection, CheckResult):
        return create_failure("proxy", MessageCode.PROXY, f"{proxy}: {connection.detail}")
    return connection


def find_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that `requests` would use, if any."""
    if _describe_bypass(url, environment):
        return None
    scheme = urlsplit(url).scheme
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        value = environment.get(name, "").strip()
        if not value:
            continue
        parts = urlsplit(value if "://" in value else f"http://{value}")
        with contextlib.suppress(ValueError):
            user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}" if parts.username else ""
            return Proxy(parts.hostname or "", parts.port or 80, authorization, name)
    return None


def _describe_bypass(url: str, environment: Mapping[str, str]) -> str:
    """Return which variable excludes the host from the proxy; empty if none does."""
    names = [name for name in ("no_proxy", "NO_PROXY") if environment.get(name)]
    if names and is_proxy_bypassed(url, environment[names[0]]):
        return f"none for this host (environment variable {names[0]})"
    return ""


def _resolve(host: str, port: int) -> list[str] | CheckResult:
    addresses: list[str] = []
    errors: list[str] = []

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses.extend(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:
            errors.append(getattr(error, "strerror", "") or type(error).__name__)

    # In a thread, because a resolver without a response blocks for an unlimited time.
    thread = threading.Thread(target=look_up, name="mlflow-otlp-doctor-name", daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS)
    if addresses:
        return addresses
    reason = errors[0] if errors else f"no answer within {_TIMEOUT_SECONDS:g} s"
    return create_failure("name", MessageCode.NAME_NOT_RESOLVED, f"{host} cannot be resolved: {reason}")


def _connect(host: str, port: int) -> socket.socket | CheckResult:
    where = f"{host}:{port}"
    try:
        return socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS)
    except ConnectionRefusedError:
        return create_failure("connection", MessageCode.CONNECTION_REFUSED, f"{where} refuses connections")
    except TimeoutError:
        return create_failure(
            "connection",
            MessageCode.CONNECT_TIMEOUT,
            f"{where} does not accept a connection within {_TIMEOUT_SECONDS:g} s",
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return create_failure("connection", MessageCode.CONNECT_TIMEOUT, f"{where} cannot be reached: {reason}")


def _open_tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> CheckResult | None:
    """Open a tunnel through a proxy; return the problem, if any."""
    authorization = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    response = b""
    try:
        connection.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{authorization}\r\n".encode())
        while b"\r\n\r\n" not in response and len(response) < _MAX_RESPONSE_BYTES:
            byte = connection.recv(1)  # one at a time, because the bytes after the response belong to the server
            if not byte:
                break
            response += byte
    except OSError as error:
        response = type(error).__name__.encode()
    line = response.partition(b"\r\n")[0].decode("latin-1")
    status = line.split(" ")[1:2]
    if line.startswith("HTTP/") and status[:1] == ["200"]:
        return None
    code = MessageCode.PROXY_UNAUTHENTICATED if status[:1] == ["407"] else MessageCode.PROXY
    message = line if line.startswith("HTTP/") else ""
    return create_failure("proxy", code, f"{proxy} opens no tunnel to {where}", message)


def _find_ca(server: ServerSettings, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the CA file or folder that `HttpClient` would use, and its source."""
    if server.certificate_file:
        return server.certificate_file, str(server.sources.get("certificate_file", SettingSource("default")))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if environment.get(name):
            return environment[name], f"environment variable {name}"
    return default_ca_file(), "default"


def _check_tls(
    connection: socket.socket, server: ServerSettings, host: str, environment: Mapping[str, str]
) -> CheckResult:
    ca_path, source = _find_ca(server, environment)
    insecure = server.insecure_tls
    try:
        is_folder = Path(ca_path).is_dir()
        context = ssl.create_default_context(
            capath=ca_path if is_folder else None, cafile=None if is_folder else ca_path
        )
        if insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if server.client_certificate_file:
            context.load_cert_chain(server.client_certificate_file, server.client_key_file)
    except (OSError, ssl.SSLError) as error:
        return create_failure(
            "tls",
            MessageCode.CERTIFICATE_UNTRUSTED,
            f"{ca_path} ({source}) contains no usable certificates: {type(error).__name__}",
        )
    connection.settimeout(_TIMEOUT_SECONDS)
    try:
        with context.wrap_socket(connection, server_hostname=host) as secure:
            certificate, version = secure.getpeercert() or {}, secure.version() or "TLS"
    except ssl.SSLCertVerificationError as error:
        return create_failure("tls", tls_code(error), f"{error.verify_message} (checked against {ca_path}, {source})")
    except (OSError, ValueError) as error:
        code = MessageCode.RESPONSE_TIMEOUT if isinstance(error, TimeoutError) else MessageCode.NOT_TLS
        return create_failure(
            "tls", code, f"no TLS at this port ({getattr(error, 'reason', None) or type(error).__name__})"
        )
    if insecure:
        cause = "The certificate is not verified: an attacker on the network could read credentials."
        fix = "Unset `MLFLOW_TRACKING_INSECURE_TLS`, and set `MLFLOW_TRACKING_SERVER_CERT_PATH` to the CA file."
        detail = f"{version}; certificate verification is disabled ({server.sources['insecure_tls']})"
        return CheckResult(
            "tls", CheckStatus.WARNING, detail, cause=cause, fix=fix, code=MessageCode.CERTIFICATE_UNTRUSTED
        )
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / _DAY_SECONDS
    detail = f"{version}, the certificate is trusted ({ca_path}, {source}) and valid for {days:.0f} more days"
    if days < _MIN_VALID_DAYS:
        code, cause = MessageCode.CERTIFICATE_EXPIRED, "The certificate expires soon."
        return CheckResult("tls", CheckStatus.WARNING, detail, "", cause, HINTS[code].fix, code)
    return CheckResult("tls", CheckStatus.OK, detail)
