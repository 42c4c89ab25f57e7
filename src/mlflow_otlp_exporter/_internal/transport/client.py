"""One server, as this library talks to it: a thin shell over a `requests.Session` that returns plain values.

What is guarded here, because `requests` would do it on its own: no redirect is followed (credentials would go with
it), `~/.netrc` does not replace the credentials that were configured, no cookie of a login page is kept, and
`REQUESTS_CA_BUNDLE` counts only where no certificate was configured.
"""

from __future__ import annotations

import http.cookiejar
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.config.server_settings import ServerSettings
from mlflow_otlp_exporter._internal.transport.authorization import (
    Authorization,
    CredentialsUnavailable,
    make_authorization,
)
from mlflow_otlp_exporter._internal.transport.deadline import Deadline, WatchedAdapter, watch_adapters
from mlflow_otlp_exporter._internal.transport.messages import LONGEST_ANSWER, HttpResponse, TransportError
from mlflow_otlp_exporter._internal.version import __version__

USER_AGENT = f"mlflow-otlp-exporter/{__version__}"
_CONNECT_SECONDS = 5.0
# uvicorn closes an idle connection after 5.00 s, which is just the batch processor's delay: a request on a connection
# that is being closed fails with a reset, and nobody knows whether it arrived.
_IDLE_SECONDS = 4.0


_of_the_parent: list[requests.Session] = []


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps `requests` from looking into `~/.netrc`, whose entry would replace the Authorization header."""
    return request


def _new_session() -> requests.Session:
    session = requests.Session()
    session.auth = _no_auth
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, WatchedAdapter(pool_maxsize=16))
    return session


class HttpClient:
    """Requests to one server.

    Args:
        server: Address, headers, credentials, TLS.
        session: A session of the user's, used as it is (its adapters, its `auth`); None for one of our own.

    Raises:
        ConfigurationError: The credentials cannot be used.
    """

    def __init__(self, server: ServerSettings, session: requests.Session | None = None) -> None:
        self.url, self.address = server.url, server.address
        self.credentials: Authorization = make_authorization(server)
        self.unused_variables = server.unused
        self._headers = {"user-agent": USER_AGENT, **server.headers}
        self._session = session or _new_session()
        self._owns_session = session is None
        if session is not None:
            watch_adapters(session.adapters.values())
        self._verify: bool | str = False if server.insecure_tls else server.certificate_file or True
        self._certificate: Any = server.client_certificate_file
        if server.client_certificate_file and server.client_key_file:
            self._certificate = (server.client_certificate_file, server.client_key_file)
        self._lock = threading.Lock()
        self._used = time.monotonic()
        self._rejected: str | None = None
        register_fork_reset(self._reset_after_fork)

    def __repr__(self) -> str:
        return f"HttpClient({self.address!r})"

    @property
    def header_names(self) -> frozenset[str]:
        """Names of the headers that the user configured, which always win."""
        return frozenset(self._headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        longest: int = LONGEST_ANSWER,
        base: str | None = None,
    ) -> HttpResponse | TransportError:
        """Sends one request and reads the answer; follows nothing, raises nothing.

        Args:
            method: The HTTP method.
            path: What follows the server's address; empty for the address itself.
            headers: Headers of this request; those that the user configured win.
            body: The body.
            seconds: For all of it: an answer that comes in drops is cut off then.
            longest: Bytes of the answer's body to read at most.
            base: Another address of the same server.
        """
        deadline = time.monotonic() + seconds
        try:
            authorization = self.credentials.authorization()
        except CredentialsUnavailable as error:
            return TransportError(str(error), credentials=True)
        merged: dict[str, str | bytes] = {**headers, **self._headers}
        if authorization is not None:
            merged["authorization"] = authorization
        with Deadline(seconds) as limit:
            try:
                with self._current_session().request(
                    method,
                    (base or self.url) + path,
                    data=body,
                    headers=merged,
                    timeout=(min(seconds, _CONNECT_SECONDS), seconds),
                    allow_redirects=False,
                    verify=self._verify,
                    cert=self._certificate,
                    stream=True,
                ) as response:
                    if limit.cut:  # in the middle of the headers, which then seem to have ended
                        return _late(self.url)
                    content, complete = _content(response, deadline, longest)
                    found = {name.lower(): value for name, value in response.headers.items()}
                    self._rejected = authorization if response.status_code == 401 else None
                    return HttpResponse(response.status_code, found, content, complete)
            except (requests.RequestException, OSError, ValueError) as error:
                return _late(self.url) if limit.cut else _failure(error, self.url)
            except Exception as error:  # noqa: BLE001 - what a session of the user's or another urllib3 may raise
                return _late(self.url) if limit.cut else replace(_failure(error, self.url), arrived=True)

    def has_new_credential(self) -> bool:
        """Whether the credential is another one than that which the server answered 401 to."""
        try:
            return self._rejected is not None and self.credentials.authorization() != self._rejected
        except CredentialsUnavailable:
            return False

    def _current_session(self) -> requests.Session:
        """The session, its connections dropped if they were idle for so long that the server may be closing them."""
        with self._lock:
            now = time.monotonic()
            if self._owns_session and now - self._used > _IDLE_SECONDS:
                self._session.close()
            self._used = now
            return self._session

    def _reset_after_fork(self) -> None:
        """In a forked child: a new session, as parent and child must not write to the same socket."""
        self._lock = threading.Lock()
        if self._owns_session:
            # The parent's is kept, unused: freeing it would drain urllib3's pool, whose lock a thread of the parent may
            # have held at the fork, and wait for it for ever.
            _of_the_parent.append(self._session)
            self._session = _new_session()

    def close(self) -> None:
        """Closes the connections, and a user's session too, as upstream does at shutdown."""
        self._session.close()


def _content(response: requests.Response, deadline: float, longest: int) -> tuple[bytes, bool]:
    """The body as far as it can be read: a status that has been received is not undone by a broken body."""
    pieces: list[bytes] = []
    length = 0
    try:
        for piece in _pieces(response):
            pieces.append(piece)
            length += len(piece)
            if length > longest or time.monotonic() > deadline:
                return b"".join(pieces)[:longest], False
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        return b"".join(pieces), False
    return b"".join(pieces), True


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """What each read from the socket brings: a time-out of `requests` begins anew with every byte."""
    read = getattr(response.raw, "read1", None)
    if read is None:  # urllib3 1.26
        yield from response.iter_content(1)
    else:
        while piece := read(65_536, decode_content=True):
            yield piece


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those inside it: `requests` wraps urllib3's, which wrap the operating system's."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [*found.args[:2], getattr(found, "reason", None), found.__cause__, found.__context__]


def _late(url: str) -> TransportError:
    return TransportError(
        f"{urlsplit(url).netloc} did not answer in time", arrived=True, code=MessageCode.RESPONSE_TIMEOUT
    )


def _failure(error: Exception, url: str) -> TransportError:
    """Tells in words what `requests` raised; its own text holds addresses of objects and little else."""
    host = urlsplit(url).netloc
    chain = list(_chain(error))
    names = [type(found).__name__ for found in chain]
    if isinstance(error, requests.exceptions.SSLError):
        verification = next((found for found in chain if isinstance(found, ssl.SSLCertVerificationError)), None)
        reason = verification.verify_message if verification else f"{names[-1]}; does it speak https?"
        return TransportError(f"no TLS connection to {host}: {reason}", code=tls_code(verification))
    if isinstance(error, requests.exceptions.ProxyError):
        return TransportError(f"no connection to {host} through the proxy ({names[-1]})", code=MessageCode.PROXY)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TransportError(f"{host} did not accept a connection in time", code=MessageCode.CONNECT_TIMEOUT)
    if isinstance(error, requests.exceptions.Timeout):
        return _late(url)
    if "ConnectionRefusedError" in names:
        return TransportError(
            f"{host} refuses connections: is the server running?", code=MessageCode.CONNECTION_REFUSED
        )
    if "gaierror" in names or "NameResolutionError" in names:
        return TransportError(f"the name of {host} cannot be resolved", code=MessageCode.NAME_NOT_RESOLVED)
    if isinstance(error, requests.ConnectionError):
        said = f"{host} closed the connection without an answer ({names[-1]})"
        return TransportError(said, arrived=True, code=MessageCode.CONNECTION_CLOSED)
    return TransportError(f"the request to {host} could not be made ({names[0]})")


def tls_code(error: ssl.SSLCertVerificationError | None) -> MessageCode:
    """The code of a TLS connection that could not be made.

    Args:
        error: What is wrong with the certificate; None if it is not the certificate.
    """
    if error is None:
        return MessageCode.NOT_TLS
    # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, and those of a host name and of an address that do not match.
    return {
        10: MessageCode.CERTIFICATE_EXPIRED,
        62: MessageCode.CERTIFICATE_HOST_MISMATCH,
        64: MessageCode.CERTIFICATE_HOST_MISMATCH,
    }.get(error.verify_code, MessageCode.CERTIFICATE_UNTRUSTED)
