"""The way to a server, tried piece by piece: proxy, name, connection, TLS. For `mlflow-otlp doctor`."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import requests
import requests.utils

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult, CheckStatus
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS
from mlflow_otlp_exporter._internal.config.models import ServerSettings, SettingSource
from mlflow_otlp_exporter._internal.transport.client import tls_code

SECONDS = 4.0
_DAY = 86_400
_SOON_DAYS = 14


@dataclass(frozen=True)
class Proxy:
    """A proxy on the way.

    Attributes:
        host, port: Where it is.
        authorization: What it is told of the user; empty for nothing.
        variable: The environment variable that names it.
    """

    host: str
    port: int
    authorization: str
    variable: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} (environment variable {self.variable})"


def failed(step: str, code: MessageCode, found: str, said: str = "") -> CheckResult:
    """A step that failed, with what is known of such failures."""
    return CheckResult(step, CheckStatus.FAILED, found, said, *HINTS[code], code)


def probe(server: ServerSettings, environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """Goes the way to a server; the last finding is a failed one if it does not lead there.

    Args:
        server: Where to.
        environment: Environment variables.
    """
    parts = urlsplit(server.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = proxy_for(server.url, environment)
    if proxy is None:
        yield CheckResult("proxy", CheckStatus.OK, _bypassed(server.url, environment) or "none")
        addresses = _addresses(host, port)
        if isinstance(addresses, CheckResult):
            yield addresses
            return
        yield CheckResult("name", CheckStatus.OK, f"{host} is {', '.join(addresses[:4])}")
        found = _connected(host, port)
    else:
        found = _connected_to_proxy(proxy)
    if isinstance(found, CheckResult):
        yield found
        return
    with contextlib.closing(found) as connection:
        if proxy is None:
            yield CheckResult("connection", CheckStatus.OK, f"{host}:{port} accepts connections")
        else:
            if parts.scheme == "https" and (problem := _tunnel(connection, proxy, host, port)):
                yield problem
                return
            yield CheckResult("proxy", CheckStatus.OK, str(proxy))
        if parts.scheme == "https":
            yield _tls(connection, server, host, environment)


def _connected_to_proxy(proxy: Proxy) -> socket.socket | CheckResult:
    found = _addresses(proxy.host, proxy.port)
    connection = found if isinstance(found, CheckResult) else _connected(proxy.host, proxy.port)
    if isinstance(connection, CheckResult):
        return failed("proxy", MessageCode.PROXY, f"{proxy}: {connection.found}")
    return connection


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that `requests` would take; None for none."""
    if _bypassed(url, environment):
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


def _bypassed(url: str, environment: Mapping[str, str]) -> str:
    """Why no proxy is used although one may be set; empty if none of that is so."""
    names = [name for name in ("no_proxy", "NO_PROXY") if environment.get(name)]
    if names and requests.utils.should_bypass_proxies(url, no_proxy=environment[names[0]]):
        return f"none for this host (environment variable {names[0]})"
    return ""


def _addresses(host: str, port: int) -> list[str] | CheckResult:
    found: list[str] = []
    errors: list[str] = []

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:
            errors.append(getattr(error, "strerror", "") or type(error).__name__)

    # In a thread, as a resolver that does not answer holds its caller for as long as it likes.
    thread = threading.Thread(target=look_up, name="mlflow-otlp-doctor-name", daemon=True)
    thread.start()
    thread.join(SECONDS)
    if found:
        return found
    reason = errors[0] if errors else f"no answer within {SECONDS:g} s"
    return failed("name", MessageCode.NAME_NOT_RESOLVED, f"{host} cannot be resolved: {reason}")


def _connected(host: str, port: int) -> socket.socket | CheckResult:
    where = f"{host}:{port}"
    try:
        return socket.create_connection((host, port), timeout=SECONDS)
    except ConnectionRefusedError:
        return failed("connection", MessageCode.CONNECTION_REFUSED, f"{where} refuses connections")
    except TimeoutError:
        return failed(
            "connection", MessageCode.CONNECT_TIMEOUT, f"{where} does not accept a connection within {SECONDS:g} s"
        )
    except OSError as error:
        said = error.strerror or type(error).__name__
        return failed("connection", MessageCode.CONNECT_TIMEOUT, f"{where} cannot be reached: {said}")


def _tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> CheckResult | None:
    """Asks a proxy for a way to the server; what went wrong, or nothing."""
    authorization = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    answer = b""
    try:
        connection.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{authorization}\r\n".encode())
        while b"\r\n\r\n" not in answer and len(answer) < 65_536:
            piece = connection.recv(1)  # not a byte more: what follows is the server's
            if not piece:
                break
            answer += piece
    except OSError as error:
        answer = (type(error).__name__).encode()
    line = answer.partition(b"\r\n")[0].decode("latin-1")
    status = line.split(" ")[1:2]
    if line.startswith("HTTP/") and status[:1] == ["200"]:
        return None
    code = MessageCode.PROXY_UNAUTHENTICATED if status[:1] == ["407"] else MessageCode.PROXY
    said = line if line.startswith("HTTP/") else ""
    return failed("proxy", code, f"{proxy} gives no way to {where}", said)


def _trusted(server: ServerSettings, environment: Mapping[str, str]) -> tuple[str, str]:
    """The certificates that the server's is checked against, as `_connection` has them, and where that was said."""
    if server.certificate_file:
        return server.certificate_file, str(server.sources.get("certificate_file", SettingSource("default")))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if environment.get(name):
            return environment[name], f"environment variable {name}"
    return requests.utils.DEFAULT_CA_BUNDLE_PATH, "default"


def _tls(connection: socket.socket, server: ServerSettings, host: str, environment: Mapping[str, str]) -> CheckResult:
    trusted, source = _trusted(server, environment)
    insecure = server.insecure_tls
    try:
        folder = os.path.isdir(trusted)  # noqa: PTH112
        context = ssl.create_default_context(capath=trusted if folder else None, cafile=None if folder else trusted)
        if insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if server.client_certificate_file:
            context.load_cert_chain(server.client_certificate_file, server.client_key_file)
    except (OSError, ssl.SSLError) as error:
        return failed(
            "tls",
            MessageCode.CERTIFICATE_UNTRUSTED,
            f"{trusted} ({source}) has no usable certificates: {type(error).__name__}",
        )
    connection.settimeout(SECONDS)
    try:
        with context.wrap_socket(connection, server_hostname=host) as secure:
            certificate, version = secure.getpeercert() or {}, secure.version() or "TLS"
    except ssl.SSLCertVerificationError as error:
        return failed("tls", tls_code(error), f"{error.verify_message} (checked against {trusted}, {source})")
    except (OSError, ValueError) as error:
        late = isinstance(error, TimeoutError)
        code = MessageCode.RESPONSE_TIMEOUT if late else MessageCode.NOT_TLS
        return failed("tls", code, f"no TLS at this port ({getattr(error, 'reason', None) or type(error).__name__})")
    if insecure:
        cause = "The certificate is not verified: an attacker on the network could read credentials."
        fix = "Unset `MLFLOW_TRACKING_INSECURE_TLS`, and set `MLFLOW_TRACKING_SERVER_CERT_PATH` to the CA file."
        found = f"{version}; the certificate is not checked ({server.sources['insecure_tls']})"
        return CheckResult(
            "tls", CheckStatus.WARNING, found, cause=cause, fix=fix, code=MessageCode.CERTIFICATE_UNTRUSTED
        )
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / _DAY
    found = f"{version}, the certificate is trusted ({trusted}, {source}) and valid for {days:.0f} more days"
    if days < _SOON_DAYS:
        code, cause = MessageCode.CERTIFICATE_EXPIRED, "The certificate expires soon."
        return CheckResult("tls", CheckStatus.WARNING, found, "", cause, HINTS[code].fix, code)
    return CheckResult("tls", CheckStatus.OK, found)
