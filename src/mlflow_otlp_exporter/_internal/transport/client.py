"""HTTP client of one server: a thin shell over a `requests.Session` that returns plain values.

It switches off what `requests` does on its own: redirects (credentials would be sent along), `~/.netrc` (would replace
the configured credentials) and cookies (of login pages). `REQUESTS_CA_BUNDLE` applies only if no certificate is
configured.
"""

import http.client
import http.cookiejar
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.utils
import urllib3
from opentelemetry.exporter.otlp.proto.http.version import __version__ as _upstream_version
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.poolmanager import pool_classes_by_scheme
from urllib3.util.ssl_ import resolve_cert_reqs

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.suppression import hide_logged_queries
from mlflow_otlp_exporter._internal.config.credentials import (
    CredentialSource,
    CredentialsUnavailableError,
    StaticAuth,
    make_credential_source,
)
from mlflow_otlp_exporter._internal.config.models import ServerSettings
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError
from mlflow_otlp_exporter._internal.transport.response import sanitize_server_text
from mlflow_otlp_exporter._internal.version import __version__

# Upstream's own first, because rules of proxies and servers for upstream should apply.
USER_AGENT = f"OTel-OTLP-Exporter-Python/{_upstream_version} mlflow-otlp-exporter/{__version__}"
_CONNECT_TIMEOUT_SECONDS, _TLS_PROBE_SECONDS = 5.0, 1.0
# uvicorn closes an idle connection after 5.00 s, which is exactly the delay of the batch processor: a request on a
# connection that is being closed fails with a reset, and it is unknown whether the request arrived.
_MAX_IDLE_SECONDS, _ENVIRONMENT_SECONDS = 4.0, 5.0
_READ_BYTES = 65_536
# `sendall` of a TLS socket waits with the whole timeout for each record, that of eventlet for each piece.
_TLS_RECORD_BYTES = 16_384
# Not a `threading.local`: where gevent or eventlet patches threads after this import, all greenlets would share it.
_deadline: ContextVar["Deadline | None"] = ContextVar("mlflow_otlp_deadline", default=None)
# OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH.
_CODE_BY_VERIFY_ERROR = {
    10: MessageCode.CERTIFICATE_EXPIRED,
    62: MessageCode.CERTIFICATE_HOST_MISMATCH,
    64: MessageCode.CERTIFICATE_HOST_MISMATCH,
}
# A frame of HTTP/2, as the first bytes of a server: length, type SETTINGS, flags, stream 0.
_HTTP2_FRAME = r"\x00[\s\S]{2}\x04[\x00\x01]\x00{4}"
_TLS_ALERT = r"\[SSL[^\]]{0,80}\] ([\w/ ]{0,20}(?:alert|unrecognized)[\w ]{0,60})"
_NEVER_ARRIVED = frozenset(
    {MessageCode.CONNECTION_REFUSED, MessageCode.NAME_NOT_RESOLVED, MessageCode.CONNECT_TIMEOUT, MessageCode.HTTP2_ONLY}
    | {MessageCode.CERTIFICATE_UNTRUSTED, MessageCode.CERTIFICATE_FILE, MessageCode.SOCKS_UNAVAILABLE}
    | {MessageCode.TLS_REQUIRED, MessageCode.PROXY_UNAUTHENTICATED, *_CODE_BY_VERIFY_ERROR.values()}
)

# For other packages, of which none imports requests: for sessions that they pass on, and for the doctor.
Session = requests.Session
DEFAULT_CA_FILE = requests.utils.DEFAULT_CA_BUNDLE_PATH
# Freeing a session of the parent process would drain urllib3's pool and wait for ever for its lock, which a thread of
# the parent may have held at the fork.
_sessions_of_parent: list[requests.Session] = []


class Deadline:
    """Limits the request that its thread makes within the `with` block to a time of `time.monotonic`.

    A timeout of `requests` restarts with every byte that arrives, and with every part of a body that is sent over TLS.
    Therefore each operation on the socket of a request waits for at most the time that is left: a server that drips a
    handshake, a status line or headers is cut off.
    """

    def __init__(self, at: float) -> None:
        self.at = at
        self.is_connecting = False  # still true if no connection was established
        self.has_socket = False
        self._outer = _deadline.get()  # a signal handler may interrupt a request

    def __enter__(self) -> "Deadline":
        _deadline.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _deadline.set(self._outer)


def _limit_wait(sock: Any) -> None:
    """Limit the next operation on a socket; raises TimeoutError if no time is left."""
    deadline = _deadline.get()
    if deadline is not None:
        deadline.has_socket = True
        if (seconds := deadline.at - time.monotonic()) <= 0:
            raise TimeoutError
        sock.settimeout(seconds)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: Any) -> None:
        self._raw, self._sock = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _limit_wait(self._sock)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if isinstance(self.fp, io.BufferedReader):  # the sockets of some mocks return another file
            self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock))


class _DeadlineConnection(HTTPConnection):
    response_class = _DeadlineResponse
    debuglevel = 0  # where the application debugs its own requests, http.client prints the credentials of all

    def connect(self) -> None:
        deadline = _deadline.get() or Deadline(0)
        deadline.is_connecting = True
        super().connect()
        deadline.is_connecting = False

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _limit_wait(sock)  # for the TLS handshake, and the first part of a request
        return sock

    def send(self, data: Any) -> None:
        pieces = [data]  # a file or an iterator, in another request of the user's session
        if isinstance(data, bytes) and type(self.sock).__module__ != "socket":
            pieces = [data[start : start + _TLS_RECORD_BYTES] for start in range(0, len(data), _TLS_RECORD_BYTES)]
        for piece in pieces:
            if self.sock is not None:
                _limit_wait(self.sock)
            super().send(piece)


class _DeadlineTLSConnection(_DeadlineConnection, HTTPSConnection):
    def connect(self) -> None:
        if self.ssl_context is None and ssl.SSLContext is not urllib3.util.ssl_.SSLContext:
            # gevent or eventlet has replaced the class since urllib3 imported it. Properties of the former one recurse.
            self.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.ssl_context.check_hostname = resolve_cert_reqs(self.cert_reqs) != ssl.CERT_NONE
        super().connect()


def _pool_class(pool_class: Any, standard: type, limited: type) -> Any:
    class Pool(pool_class):  # type: ignore[misc]
        @property
        def ConnectionCls(self) -> Any:  # noqa: N802 - a class attribute of urllib3
            # Read for each connection, because vcrpy replaces urllib3's class within a `with` block.
            current = pool_class.ConnectionCls
            return limited if current is standard else current

    return Pool


_POOL_CLASSES = {
    "http": _pool_class(urllib3.HTTPConnectionPool, HTTPConnection, _DeadlineConnection),
    "https": _pool_class(urllib3.HTTPSConnectionPool, HTTPSConnection, _DeadlineTLSConnection),
}


def _limit_connections(manager: Any) -> None:
    """Replace the connection classes of a pool manager, unless the user has replaced them already."""
    if getattr(manager, "pool_classes_by_scheme", None) is pool_classes_by_scheme:
        manager.pool_classes_by_scheme = _POOL_CLASSES


class DeadlineAdapter(HTTPAdapter):
    """Adapter whose requests keep a `Deadline`, also through a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _limit_connections(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        _limit_connections(manager)
        return manager


def limit_adapters(adapters: Iterable[Any]) -> None:
    """Make the requests of a user's session keep a `Deadline`, if its adapters are standard ones."""
    for adapter in adapters:
        _limit_connections(getattr(adapter, "poolmanager", None))


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep `requests` from reading `~/.netrc`, whose entry would replace the Authorization header."""
    return request


class _Session(requests.Session):
    _environment: tuple[float, str, Any] = (0.0, "", None)

    def merge_environment_settings(self, *arguments: Any) -> Any:
        """Read proxies and certificates of the environment, which takes a fifth of a request's time, every 5 s only."""
        expires_at, key, settings = self._environment
        if time.monotonic() > expires_at or key != repr(arguments):
            key, settings = repr(arguments), super().merge_environment_settings(*arguments)
            self._environment = (time.monotonic() + _ENVIRONMENT_SECONDS, key, settings)
        return settings

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow no redirect: even without `allow_redirects`, `requests` decodes the URL and reads the whole body."""


def _new_session() -> requests.Session:
    session = _Session()
    session.auth = _no_auth
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, DeadlineAdapter(pool_maxsize=32))
    return session


class HttpClient:
    """Client of one server; a session of the user is used as it is, with its adapters and its `auth`."""

    def __init__(self, server: ServerSettings, session: requests.Session | None = None) -> None:
        self.url, self.address = server.url, server.address
        self.credentials: CredentialSource = make_credential_source(server)
        self.unused_variables = server.ignored_variables
        self._headers = {"user-agent": USER_AGENT, **server.headers}
        self.header_names = frozenset(self._headers)  # that the user configured
        self._has_static_credential = isinstance(self.credentials, StaticAuth)
        if self._has_static_credential and (value := self.credentials.header_value()) is not None:
            self._headers["authorization"] = value
        self._session = session or _new_session()
        self._owns_session = session is None
        if session is not None:
            limit_adapters(session.adapters.values())
        self._verify: bool | str = False if server.insecure_tls else server.certificate_file or True
        self._certificate: Any = server.client_certificate_file
        if server.client_certificate_file and server.client_key_file:
            self._certificate = (server.client_certificate_file, server.client_key_file)
        if "?" in self.url:
            hide_logged_queries()
        self._lock = threading.RLock()
        self._last_used = time.monotonic()
        self._rejected_credential: str | None = None
        register_fork_reset(self._reset_after_fork)

    def __repr__(self) -> str:
        return f"HttpClient({self.address!r})"

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        """Send one request and read the response; never raises, never follows a redirect."""
        timeout = request.timeout_seconds
        deadline = Deadline(time.monotonic() + timeout)
        try:
            authorization = None if self._has_static_credential else self.credentials.header_value()
        except CredentialsUnavailableError as error:
            return TransportError(str(error), is_credential_error=True)
        headers: dict[str, str | bytes] = {**request.headers, **self._headers}
        if experiment_id := request.headers.get(EXPERIMENT_HEADER):
            headers[EXPERIMENT_HEADER] = experiment_id  # of a trace that is stored in another experiment
        if authorization is not None:
            headers["authorization"] = authorization
        try:
            with (
                deadline,
                self._current_session().request(
                    request.method,
                    (request.base_url or self.url) + request.path,
                    data=request.body if self._owns_session else bytes(request.body),
                    headers=headers,
                    timeout=(min(timeout, _CONNECT_TIMEOUT_SECONDS), timeout),
                    allow_redirects=False,
                    verify=self._verify,
                    cert=self._certificate,
                    stream=True,
                ) as response,
            ):
                body, is_complete = _read_body(response, deadline.at, request.max_response_bytes)
                self._rejected_credential = authorization if response.status_code == 401 else None
                if response.status_code < 200:
                    # An informational response, such as 103: the actual response is still in the connection.
                    self._session.close()
                response_headers = {name.lower(): value for name, value in response.headers.items()}
                # Of an error over TLS, the proxy is not the author.
                proxy = self.find_proxy() if response.status_code >= 400 and self.url.startswith("http:") else ""
                return HttpResponse(response.status_code, response_headers, body, is_complete, proxy)
        except Exception as error:  # what a session of the user or another urllib3 may raise
            if must_propagate(error):
                raise
            return _classify_exception(error, self.url, deadline, self.find_proxy())

    def find_proxy(self) -> str:
        """Return the address of the proxy, without its user; empty without a proxy."""
        try:
            proxies = self._session.merge_environment_settings(self.url, {}, None, None, None)["proxies"]
            proxy = requests.utils.select_proxy(self.url, proxies) or ""
            return proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/")
        except Exception:  # noqa: BLE001 - a session of the user
            return ""

    def has_new_credential(self) -> bool:
        """Whether the credential differs from the one that the server rejected with 401."""
        rejected = self._rejected_credential
        try:
            return rejected is not None and self.credentials.header_value() != rejected
        except CredentialsUnavailableError:
            return False

    def _current_session(self) -> requests.Session:
        """The session, without connections that were idle for so long that the server may be closing them."""
        with self._lock:
            now = time.monotonic()
            if self._owns_session and now - self._last_used > _MAX_IDLE_SECONDS:
                self._session.close()
            self._last_used = now
            return self._session

    def _reset_after_fork(self) -> None:
        # A new session, because parent and child must not write to the same socket.
        self._lock = threading.RLock()
        if self._owns_session:
            _sessions_of_parent.append(self._session)
            self._session = _new_session()

    def close(self) -> None:
        """Close the connections; also a session of the user, as upstream's exporter does at shutdown."""
        self._session.close()


def _read_body(response: requests.Response, deadline: float, max_bytes: int) -> tuple[bytes, bool]:
    """The body as far as it can be read, because a broken body does not change the status; and whether it is whole."""
    body = bytearray()
    try:
        for chunk in _iter_body(response):
            body += chunk
            if len(body) > max_bytes or time.monotonic() > deadline:
                return bytes(body[:max_bytes]), False
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        return bytes(body), False
    return bytes(body), True


def _iter_body(response: requests.Response) -> Iterator[bytes]:
    """Yield what each read from the socket returns, so that as much as possible of a broken body is kept."""
    raw = response.raw
    if isinstance(raw, urllib3.HTTPResponse):
        raw.enforce_content_length = True  # False in urllib3 1.26
    if isinstance(raw, urllib3.HTTPResponse) and hasattr(raw, "read1"):
        while chunk := raw.read1(_READ_BYTES, decode_content=True):
            yield chunk
    else:  # urllib3 1.26, or a response that an adapter of the user has made
        yield from response.iter_content(_READ_BYTES)


def _exception_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those inside it: `requests` wraps urllib3's, which wrap the operating system's."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        candidate = pending.pop(0)
        if isinstance(candidate, BaseException) and id(candidate) not in seen:
            seen.add(id(candidate))
            yield candidate
            reason = getattr(candidate, "reason", None)
            pending += [*candidate.args[:2], reason, candidate.__cause__, candidate.__context__]


def _classify_exception(error: Exception, url: str, deadline: Deadline, proxy: str) -> TransportError:
    parts, chain = urlsplit(url), list(_exception_chain(error))
    is_tls = parts.scheme == "https"
    code, message = _describe_exception(parts.netloc, chain, proxy, is_connecting=deadline.is_connecting, is_tls=is_tls)
    if code is MessageCode.CONNECT_TIMEOUT and is_tls and deadline.has_socket and not proxy:
        code, message = MessageCode.NOT_TLS, f"no TLS connection to {parts.netloc}: no handshake; does it speak https?"
    is_plain = deadline.has_socket and not (is_tls or proxy)  # without a socket, the user's session or a mock sent it
    if code is MessageCode.CONNECTION_CLOSED and is_plain and _speaks_tls(parts.hostname, parts.port):
        code, message = MessageCode.TLS_REQUIRED, f"{parts.netloc} speaks TLS"
    may_have_arrived = not deadline.is_connecting and code not in _NEVER_ARRIVED
    if code is MessageCode.INVALID_REQUEST and isinstance(error, requests.RequestException | OSError | ValueError):
        may_have_arrived = may_have_arrived and deadline.has_socket
    return TransportError(message, may_have_arrived=may_have_arrived, code=code)


def _speaks_tls(host: str | None, port: int | None) -> bool:
    """Whether a server that closed the connection of an `http://` request without an answer expects TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        with socket.create_connection((host or "", port or 80), timeout=_TLS_PROBE_SECONDS) as connection:
            context.wrap_socket(connection, server_hostname=host).close()
    except (OSError, ValueError):
        return False
    return True


def _describe_exception(
    host: str, chain: list[BaseException], proxy: str, *, is_connecting: bool, is_tls: bool
) -> tuple[MessageCode, str]:
    """Describe an exception of `requests`, whose own text holds little but addresses of objects."""
    is_unconnected = _contains(chain, NewConnectionError, ConnectTimeoutError)
    is_timeout = _contains(chain, requests.exceptions.Timeout, TimeoutError)
    description = None if is_unconnected else _describe_tls_error(host, chain, is_connecting=is_connecting)
    is_at_proxy = bool(proxy) and (is_connecting or not is_tls) and not is_timeout
    description = description or _describe_proxy_error(host, chain, proxy, is_at_proxy=is_at_proxy)
    if description is not None:
        return description
    if _contains(chain, ConnectionRefusedError):
        return MessageCode.CONNECTION_REFUSED, f"{host} refuses connections: is the server running?"
    if _contains(chain, socket.gaierror):
        return MessageCode.NAME_NOT_RESOLVED, f"the name of {host} cannot be resolved"
    if is_unconnected or (is_timeout and is_connecting):
        reason = next((item.strerror for item in chain if isinstance(item, OSError) and item.strerror), "")
        message = f"{host} cannot be reached: {reason}" if reason else f"{host} did not accept a connection in time"
        return MessageCode.CONNECT_TIMEOUT, message
    if is_timeout:
        return MessageCode.RESPONSE_TIMEOUT, f"{host} did not answer in time"
    if not isinstance(chain[0], requests.ConnectionError):
        return MessageCode.INVALID_REQUEST, f"the request to {host} could not be made ({type(chain[0]).__name__})"
    return _describe_broken_response(host, chain)


def _describe_broken_response(host: str, chain: list[BaseException]) -> tuple[MessageCode, str]:
    line = next((str(item) for item in chain if type(item) is http.client.BadStatusLine), "")
    if host.endswith(":4317") or re.match(_HTTP2_FRAME, line):
        return MessageCode.HTTP2_ONLY, f"{host} does not speak HTTP/1.1: gRPC or HTTP/2"
    if line.startswith("\x15\x03"):  # a TLS alert
        return MessageCode.TLS_REQUIRED, f"{host} speaks TLS"
    if line:
        return MessageCode.NOT_HTTP, f"{host} does not speak HTTP"
    return MessageCode.CONNECTION_CLOSED, f"{host} closed the connection without an answer ({type(chain[-1]).__name__})"


def _describe_proxy_error(
    host: str, chain: list[BaseException], proxy: str, *, is_at_proxy: bool
) -> tuple[MessageCode, str] | None:
    if isinstance(chain[0], requests.exceptions.InvalidSchema):
        return MessageCode.SOCKS_UNAVAILABLE, f"no connection to {host}: SOCKS proxies need the package PySocks"
    if isinstance(chain[0], requests.exceptions.InvalidURL):  # the server's own URL is checked before
        proxy, is_at_proxy = "of the environment", True  # malformed: a password may be anywhere in it
    if not (is_at_proxy or isinstance(chain[0], requests.exceptions.ProxyError)):
        return None
    refusal = next((text for item in chain if (text := str(item)).startswith("Tunnel connection failed: ")), "")
    reason = sanitize_server_text(refusal.partition(": ")[2]) or type(chain[-1]).__name__
    if reason.startswith("407"):
        return MessageCode.PROXY_UNAUTHENTICATED, f"the proxy requires credentials for {host}"
    return MessageCode.PROXY, f"no connection to {host} through the proxy {proxy} ({reason})"


def _contains(chain: list[BaseException], *types: type[BaseException]) -> bool:
    return any(isinstance(exception, types) for exception in chain)


def _describe_tls_error(
    host: str, chain: list[BaseException], *, is_connecting: bool
) -> tuple[MessageCode, str] | None:
    code, reason = MessageCode.NOT_TLS, "the answer is not TLS; does it speak https?"
    verification = next((item for item in chain if isinstance(item, ssl.SSLCertVerificationError)), None)
    alert = next((match[1].strip() for item in chain if (match := re.search(_TLS_ALERT, str(item)))), "")
    if file_error := next(filter(_is_file_error, chain), None):
        code, reason = MessageCode.CERTIFICATE_FILE, f"a file of certificates or keys cannot be used: {file_error}"
    elif verification is not None:
        code = _CODE_BY_VERIFY_ERROR.get(verification.verify_code, MessageCode.CERTIFICATE_UNTRUSTED)
        reason = verification.verify_message
    elif alert:
        code = MessageCode.HTTP2_ONLY if "application protocol" in alert else MessageCode.TLS_REJECTED
        reason = f"the server rejects it ({alert})"
    elif not (is_connecting and isinstance(chain[0], requests.exceptions.SSLError)):
        return None
    return code, f"no TLS connection to {host}: {reason}"


def _is_file_error(error: BaseException) -> bool:
    """Whether a file of certificates or a key is missing (an OSError of `requests`), not readable, or not PEM."""
    if isinstance(error, ssl.SSLError):
        # Without `library` if it was raised by Python code, such as pyOpenSSL's.
        return getattr(error, "library", "") in ("X509", "PEM") or " lib (" in str(error)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return True
    return type(error) is OSError and str(error).startswith("Could not find ")
