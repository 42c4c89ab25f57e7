"""Requests and responses of the HTTP client over real sockets."""

import errno
import gzip
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.model.spans import LARGE_TEXT_BYTES, Body, LargeBody
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError
from support.certificates import Certificate, TlsServer, self_signed
from support.children import run_in_fork
from support.interruptions import TimeLimit, handle_signal, raise_error
from support.markers import SECRET
from support.scripted_server import ACCEPTED, ScriptedServer
from support.scripted_server import Answer as Scripted


def make_client(server: ScriptedServer, session: requests.Session | None = None, **arguments: Any) -> HttpClient:
    return HttpClient(resolve({"endpoint": server.traces_url, **arguments}).traces, session)


def post_request(
    body: Body = b"x", timeout_seconds: float = 20.0, headers: Mapping[str, str] | None = None
) -> HttpRequest:
    return HttpRequest("POST", "", headers=headers or {}, body=body, timeout_seconds=timeout_seconds)


def post(
    client: HttpClient, timeout_seconds: float = 20.0, headers: Mapping[str, str] | None = None
) -> HttpResponse | TransportError:
    try:
        return client.send(post_request(timeout_seconds=timeout_seconds, headers=headers))
    finally:
        client.close()


def test_send_with_user_headers_prefers_them_and_adds_credential(scripted_server: ScriptedServer) -> None:
    post(
        make_client(scripted_server, headers={"X-A": "mine"}, credentials=SECRET),
        headers={"x-a": "ours", "x-b": "ours"},
    )
    headers = scripted_server.requests[0].headers
    assert (headers["x-a"], headers["x-b"], headers["authorization"]) == ("mine", "ours", f"Bearer {SECRET}")
    assert re.fullmatch(r"OTel-OTLP-Exporter-Python/\S+ mlflow-otlp-exporter/\S+", headers["user-agent"])


def test_send_with_redirect_does_not_follow_it(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(302, headers={"Location": scripted_server.url + "/elsewhere"}))
    response = post(make_client(scripted_server, credentials=SECRET))
    assert isinstance(response, HttpResponse)
    assert (response.status, len(scripted_server.requests)) == (302, 1)


def test_send_with_redirect_to_undecodable_url_returns_status(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(302, headers={"Location": "http://\xc9"}, body=b"x" * 200_000))
    response = post(make_client(scripted_server))
    assert isinstance(response, HttpResponse)
    assert (response.status, len(response.body), response.is_complete) == (302, 65_536, False)


def test_send_with_user_session_and_undecodable_redirect_may_have_arrived(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(302, headers={"Location": "http://\xc9"}))
    error = post(make_client(scripted_server, requests.Session()))
    assert isinstance(error, TransportError)
    assert error.may_have_arrived


def test_send_with_invalid_header_has_not_arrived(scripted_server: ScriptedServer) -> None:
    error = post(make_client(scripted_server), headers={"x": "a\nb"})
    assert isinstance(error, TransportError)
    assert not error.may_have_arrived


def test_send_with_netrc_neither_replaces_nor_adds_credential(scripted_server: ScriptedServer) -> None:
    Path(os.environ["HOME"], ".netrc").write_text("machine 127.0.0.1 login netrc password planted-netrc\n")
    post(make_client(scripted_server, credentials=SECRET))
    post(make_client(scripted_server))
    with_credential, without = scripted_server.requests
    assert with_credential.headers["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in without.headers


def test_send_after_login_page_sends_no_cookie(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(200, headers={"Set-Cookie": "session=1; Path=/"}))
    client = make_client(scripted_server)
    for _ in range(2):
        client.send(post_request())
    client.close()
    assert "cookie" not in scripted_server.requests[1].headers


def test_send_twice_reuses_connection(scripted_server: ScriptedServer) -> None:
    client = make_client(scripted_server)
    for _ in range(3):
        client.send(post_request())
    client.close()
    assert scripted_server.connections == 1


def test_send_of_large_body_sends_pieces_with_their_length(scripted_server: ScriptedServer) -> None:
    pieces = [b"head", b"t" * LARGE_TEXT_BYTES, b"tail"]
    client = make_client(scripted_server)
    for _ in range(2):  # a body can be sent again
        assert isinstance(client.send(post_request(LargeBody(pieces))), HttpResponse)
    client.close()
    for request in scripted_server.requests:
        assert request.body == b"".join(pieces)
        assert request.headers["content-length"] == str(LARGE_TEXT_BYTES + 8)
        assert "transfer-encoding" not in request.headers


def test_send_of_large_body_with_user_session_sends_bytes(scripted_server: ScriptedServer) -> None:
    session, bodies = requests.Session(), []

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        bodies.append(request.body)
        return request

    session.auth = sign
    client = make_client(scripted_server, session)
    client.send(post_request(LargeBody([b"head", b"t" * LARGE_TEXT_BYTES])))
    client.close()
    assert bodies == [b"head" + b"t" * LARGE_TEXT_BYTES]


def test_send_after_idle_time_opens_new_connection(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.transport.client._MAX_IDLE_SECONDS", 0.0)
    client = make_client(scripted_server)
    for _ in range(2):
        client.send(post_request())
    client.close()
    assert scripted_server.connections == 2


def test_send_in_a_signal_handler_while_idle_connections_are_closed_never_hangs(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.transport.client._MAX_IDLE_SECONDS", 0.0)
    client, requests_of_handler, results = make_client(scripted_server), [post_request()], []
    close = requests.Session.close

    def close_and_interrupt(session: requests.Session) -> None:
        close(session)
        while requests_of_handler:
            results.append(client.send(requests_of_handler.pop()))

    monkeypatch.setattr(requests.Session, "close", close_and_interrupt)
    thread = threading.Thread(target=lambda: results.append(post(client)), daemon=True)
    thread.start()
    thread.join(20)
    assert [type(result) for result in results] == [HttpResponse, HttpResponse]


def test_send_with_compressed_response_decompresses_body(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(400, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"text")))
    assert post(make_client(scripted_server)) == HttpResponse(
        400, {"content-encoding": "gzip", "content-length": "24"}, b"text"
    )


@pytest.mark.parametrize(
    "scripted",
    [
        Scripted(200, body=b"12345678", truncate=True),
        Scripted(200, headers={"Content-Encoding": "gzip"}, body=b"not gzip"),
        Scripted(200, body=b"x" * 200_000),
    ],
)
def test_send_with_unreadable_body_returns_status(scripted_server: ScriptedServer, scripted: Scripted) -> None:
    scripted_server.answer(scripted)
    response = post(make_client(scripted_server))
    assert isinstance(response, HttpResponse)
    assert (response.status, response.is_complete) == (200, False)
    assert len(response.body) <= 65_536


@pytest.mark.parametrize(
    ("scripted", "message", "timeout_seconds"),
    [
        (Scripted(close="after-request"), "closed the connection", 20.0),
        (Scripted(close="after-request", reset=True), "closed the connection", 20.0),
        (Scripted(delay=30), "did not answer in time", 0.3),
        (Scripted(raw=b"SSH-2.0-x\r\n"), "does not speak HTTP", 20.0),
    ],
)
def test_send_without_response_describes_failure(
    scripted_server: ScriptedServer, scripted: Scripted, message: str, timeout_seconds: float
) -> None:
    scripted_server.answer(scripted)
    failure = post(make_client(scripted_server), timeout_seconds)
    assert isinstance(failure, TransportError)
    assert message in failure.message
    assert failure.may_have_arrived


# A response drips for longer than this if nothing cuts it off.
DRIP_SECONDS = 10.0


def timed_post(client: HttpClient, timeout_seconds: float) -> tuple[HttpResponse | TransportError, float]:
    start = time.monotonic()
    return client.send(post_request(timeout_seconds=timeout_seconds)), time.monotonic() - start


# The 0.3 s end within the status line, or within the headers after a complete status line.
@pytest.mark.parametrize("drip", [0.05, 0.01])
@pytest.mark.parametrize("make", [lambda: None, requests.Session])
def test_send_with_dripping_headers_ends_at_deadline(
    scripted_server: ScriptedServer, make: Callable[[], requests.Session | None], drip: float
) -> None:
    scripted_server.answer(Scripted(200, headers={"X-Padding": "x" * 2000}, drip_head=drip))
    client = make_client(scripted_server, make())
    result, seconds = timed_post(client, 0.3)
    assert isinstance(result, TransportError)
    assert "did not answer in time" in result.message
    assert result.may_have_arrived
    assert 0.25 < seconds < DRIP_SECONDS
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)
    assert timed_post(client, 20.0)[0] == HttpResponse(
        200, {"content-type": "application/x-protobuf", "content-length": "0"}
    )
    client.close()


def test_send_with_dripping_headers_through_proxy_ends_at_deadline(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", scripted_server.url)
    scripted_server.answer(Scripted(200, headers={"X-Padding": "x" * 300}, drip_head=0.05))
    client = HttpClient(resolve({"endpoint": "http://nowhere.invalid/v1/traces"}).traces)
    result, seconds = timed_post(client, 0.3)
    assert isinstance(result, TransportError)
    assert result.may_have_arrived
    assert seconds < DRIP_SECONDS
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)
    assert isinstance(post(client), HttpResponse)
    assert scripted_server.requests[0].target == "http://nowhere.invalid/v1/traces"


def test_send_reads_the_environment_again_after_five_seconds(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = HttpClient(resolve({"endpoint": "http://nowhere.invalid/v1/traces"}).traces)
    assert client.find_proxy() == ""
    monkeypatch.setenv("http_proxy", scripted_server.url)
    assert client.find_proxy() == ""
    later = time.monotonic() + 5.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert client.find_proxy() == scripted_server.url.removeprefix("http://")


def test_send_after_request_in_time_is_not_cut_off(scripted_server: ScriptedServer) -> None:
    """The deadline of a request does not affect the next request on the same socket."""
    client = make_client(scripted_server)
    assert isinstance(timed_post(client, 2.0)[0], HttpResponse)
    scripted_server.answer(Scripted(200, delay=2.2))
    result, _ = timed_post(client, 20.0)
    client.close()
    assert isinstance(result, HttpResponse)
    assert scripted_server.connections == 1


def test_send_starts_no_thread(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(scripted_server)
    client.send(post_request())  # the server's thread of the connection has started
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    assert isinstance(client.send(post_request()), HttpResponse)
    client.close()
    assert started == []


class SignedSession(requests.Session):
    """A session whose `auth` sends another request within a request, as a signal handler may."""

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__()
        self.other = make_client(server)
        self.auth = self.sign

    def sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        assert isinstance(self.other.send(post_request(timeout_seconds=20)), HttpResponse)
        return request


def test_send_after_nested_request_keeps_its_deadline(scripted_server: ScriptedServer) -> None:
    session = SignedSession(scripted_server)
    scripted_server.answer(ACCEPTED, Scripted(200, headers={"X-Padding": "x" * 2000}, drip_head=0.01))
    client = make_client(scripted_server, session)
    result, seconds = timed_post(client, 0.5)
    session.other.close()
    client.close()
    assert isinstance(result, TransportError)
    assert seconds < DRIP_SECONDS


@contextmanager
def serve_connection(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """Call a function with the first connection to a free port, and with an event that is set when the test is over."""
    is_over = threading.Event()

    def accept() -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            serve(connection, is_over)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        is_over.set()
        thread.join()


def drip(sock: socket.socket, content: bytes, is_over: threading.Event) -> None:
    for byte in content:
        sock.sendall(bytes([byte]))
        if is_over.wait(0.01):
            break


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return self_signed(tmp_path, "certificate")


def accept_tls(certificate: Certificate, connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context.wrap_socket(connection, server_side=True)


@pytest.mark.needs("openssl")
def test_send_with_dripping_headers_over_tls_ends_at_deadline(certificate: Certificate) -> None:
    def serve(connection: socket.socket, is_over: threading.Event) -> None:
        with accept_tls(certificate, connection) as sock:
            sock.recv(65536)
            drip(sock, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 2000, is_over)

    with serve_connection(serve) as port:
        client = make_tls_client(port, certificate.file)
        result, seconds = timed_post(client, 2.0)  # the handshake is done by then
        client.close()
    assert isinstance(result, TransportError)
    assert result.message == f"127.0.0.1:{port} did not answer in time"
    assert result.may_have_arrived
    assert seconds < DRIP_SECONDS


@pytest.mark.needs("openssl")
def test_send_of_body_that_is_read_slowly_over_tls_ends_at_deadline(certificate: Certificate) -> None:
    def serve(connection: socket.socket, is_over: threading.Event) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with accept_tls(certificate, connection) as sock:
            while not is_over.wait(0.05) and sock.recv(8192):
                pass

    with serve_connection(serve) as port:
        client = make_tls_client(port, certificate.file)
        start = time.monotonic()
        result = client.send(post_request(bytes(20_000_000), timeout_seconds=2.0))
        client.close()
        seconds = time.monotonic() - start
    assert isinstance(result, TransportError)
    assert result.message == f"127.0.0.1:{port} did not answer in time"
    assert result.may_have_arrived
    assert seconds < DRIP_SECONDS


def test_send_with_dripping_tls_handshake_ends_at_deadline() -> None:
    # The header of a TLS record with 4,096 bytes of a handshake.
    with serve_connection(lambda sock, is_over: drip(sock, b"\x16\x03\x03\x10\x00" + bytes(4096), is_over)) as port:
        result, seconds = timed_post(
            HttpClient(resolve({"endpoint": f"https://127.0.0.1:{port}/v1/traces"}).traces), 0.5
        )
    assert isinstance(result, TransportError)
    assert (result.code, result.may_have_arrived) == (MessageCode.NOT_TLS, False)
    assert seconds < DRIP_SECONDS


def test_send_with_dripping_proxy_tunnel_ends_at_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(connection: socket.socket, is_over: threading.Event) -> None:
        connection.recv(65536)
        drip(connection, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 2000, is_over)

    with serve_connection(serve) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        client = HttpClient(resolve({"endpoint": "https://nowhere.invalid/v1/traces"}).traces)
        result, seconds = timed_post(client, 0.5)
        client.close()
    assert isinstance(result, TransportError)
    assert result.code in (MessageCode.CONNECT_TIMEOUT, MessageCode.PROXY)  # urllib3 1.26: the latter
    assert not result.may_have_arrived
    assert seconds < DRIP_SECONDS


def make_tls_client(port: int, certificate_file: Path) -> HttpClient:
    endpoint = f"https://127.0.0.1:{port}/v1/traces"
    return HttpClient(resolve({"endpoint": endpoint, "certificate_file": certificate_file}).traces)


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    "content", [None, b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("setting", ["certificate_file", "client_certificate_file"])
def test_send_with_unusable_certificate_file_names_the_cause(
    scripted_server: ScriptedServer, certificate: Certificate, tmp_path: Path, setting: str, content: bytes | None
) -> None:
    file = tmp_path / "unusable.pem"
    file.write_bytes(content or b"")
    with TlsServer(certificate, scripted_server.url) as server:
        arguments = {"certificate_file": certificate.file, setting: file}
        client = HttpClient(resolve({"endpoint": server.url + "/v1/traces", **arguments}).traces)
        if content is None:
            file.unlink()
        error = post(client)
    assert isinstance(error, TransportError)
    assert "a file of certificates or keys cannot be used" in error.message
    assert error.code is MessageCode.CERTIFICATE_FILE
    assert not error.may_have_arrived
    assert error.message.isprintable()


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM, errno.ETIMEDOUT])
def test_send_to_unreachable_host_reports_that_nothing_arrived(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("urllib3.util.connection.create_connection", fail)
    error = post(make_client(scripted_server))
    assert isinstance(error, TransportError)
    assert f"cannot be reached: {os.strerror(number)}" in error.message
    assert error.code is MessageCode.CONNECT_TIMEOUT
    assert not error.may_have_arrived


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"407 Proxy Authentication Required", MessageCode.PROXY_UNAUTHENTICATED), (b"503 No", MessageCode.PROXY)],
)
def test_send_with_proxy_that_refuses_tunnel_names_it(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, code: MessageCode
) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 " + answer + b"\r\n\r\n")

    with serve_connection(serve) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        error = post(HttpClient(resolve({"endpoint": "https://nowhere.invalid:4070/v1/traces"}).traces))
    assert isinstance(error, TransportError)
    assert (error.code, error.may_have_arrived) == (code, False)


def test_send_without_connection_reports_that_nothing_arrived(scripted_server: ScriptedServer) -> None:
    port = scripted_server.url.rpartition(":")[2]
    refused_error = post(HttpClient(resolve({"endpoint": "http://127.0.0.1:9/v1/traces"}).traces))
    unknown_host_error = post(HttpClient(resolve({"endpoint": "http://nowhere.invalid/v1/traces"}).traces))
    scripted_server.answer(Scripted(close="before-request"))
    no_tls_error = post(HttpClient(resolve({"endpoint": f"https://127.0.0.1:{port}/v1/traces"}).traces))
    no_file_error = post(make_client(scripted_server, token_file="/nowhere/token"))
    expected = ["refuses connections", "cannot be resolved", "no TLS connection", "/nowhere/token"]
    for failure, words in zip((refused_error, unknown_host_error, no_tls_error, no_file_error), expected, strict=True):
        assert isinstance(failure, TransportError)
        assert words in failure.message
        assert not failure.may_have_arrived
    assert isinstance(no_file_error, TransportError)
    assert no_file_error.is_credential_error
    codes = [
        failure.code
        for failure in (refused_error, unknown_host_error, no_tls_error)
        if isinstance(failure, TransportError)
    ]
    assert codes == [MessageCode.CONNECTION_REFUSED, MessageCode.NAME_NOT_RESOLVED, MessageCode.NOT_TLS]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure (_ssl.c:1006)",
            "sslv3 alert handshake failure",
        ),
        (
            "[SSL: SSL/TLS_ALERT_BAD] ssl/tls alert bad certificate (_ssl.c:1032)",
            "ssl/tls alert bad certificate",
        ),  # 3.2
        (
            "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required",
            "tlsv13 alert certificate required",
        ),
        ("[SSL: TLSV1_UNRECOGNIZED_NAME] tlsv1 unrecognized name (_ssl.c:1006)", "tlsv1 unrecognized name"),
    ],
)
def test_send_with_alert_of_any_openssl_names_it(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise requests.exceptions.SSLError(ssl.SSLError(1, text))

    monkeypatch.setattr(requests.Session, "request", fail)
    error = post(make_client(scripted_server))
    assert isinstance(error, TransportError)
    assert error.code is MessageCode.TLS_REJECTED
    assert error.message.endswith(f"the server rejects it ({reason})")


def test_send_with_user_session_uses_its_headers_and_auth(scripted_server: ScriptedServer) -> None:
    session = requests.Session()
    session.headers["x-session"] = "theirs"
    session.auth = ("ada", "p")
    post(make_client(scripted_server, session))
    headers = scripted_server.requests[0].headers
    assert headers["x-session"] == "theirs"
    assert headers["authorization"].startswith("Basic ")


class RaisingSession(requests.Session):
    """A session whose requests raise exceptions that `requests` never raises."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__()
        self._interrupt = interrupt

    def request(self, *_: Any, **__: Any) -> requests.Response:
        self._interrupt()
        raise AssertionError


def test_send_with_unexpected_exception_reports_that_request_may_have_arrived(
    scripted_server: ScriptedServer,
) -> None:
    result = post(make_client(scripted_server, RaisingSession(raise_error(AttributeError()))))
    assert isinstance(result, TransportError)
    assert result.may_have_arrived
    assert "could not be made (AttributeError)" in result.message


def test_send_interrupted_by_a_time_limit_raises_it(scripted_server: ScriptedServer) -> None:
    with handle_signal(TimeLimit()) as interrupt, pytest.raises(TimeLimit):
        post(make_client(scripted_server, RaisingSession(interrupt)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_send_in_forked_child_uses_own_connection(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlflow_otlp_exporter._internal.transport.client._MAX_IDLE_SECONDS", 60.0
    )  # however slow the child is
    client = make_client(scripted_server)
    client.send(post_request(b"parent"))
    assert run_in_fork(lambda: isinstance(client.send(post_request(b"child")), HttpResponse))
    client.send(post_request(b"parent"))
    client.close()
    used = {request.body: request.connection for request in scripted_server.requests}
    assert used[b"parent"] != used[b"child"]
    assert scripted_server.connections == 2


def test_repr_contains_no_secret(scripted_server: ScriptedServer) -> None:
    client = make_client(scripted_server, credentials="planted", headers={"x": "planted"})
    client.close()
    assert "planted" not in repr(client)
