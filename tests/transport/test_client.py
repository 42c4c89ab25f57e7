"""Requests and responses of the HTTP client over real sockets."""

import gzip
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, TransportError
from support.children import run_in_fork
from support.markers import SECRET
from support.scripted_server import ACCEPTED, ScriptedServer
from support.scripted_server import Answer as Scripted


def make_client(server: ScriptedServer, session: requests.Session | None = None, **arguments: Any) -> HttpClient:
    return HttpClient(resolve({"endpoint": server.traces_url, **arguments}).traces, session)


def post_request(
    body: bytes = b"x", timeout_seconds: float = 20.0, headers: Mapping[str, str] | None = None
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
    assert headers["user-agent"].startswith("mlflow-otlp-exporter/")


def test_send_with_redirect_does_not_follow_it(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(302, headers={"Location": scripted_server.url + "/elsewhere"}))
    response = post(make_client(scripted_server, credentials=SECRET))
    assert isinstance(response, HttpResponse)
    assert (response.status, len(scripted_server.requests)) == (302, 1)


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


def test_send_after_idle_time_opens_new_connection(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.transport.client._MAX_IDLE_SECONDS", 0.0)
    client = make_client(scripted_server)
    for _ in range(2):
        client.send(post_request())
    client.close()
    assert scripted_server.connections == 2


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
        (Scripted(raw=b"SSH-2.0-x\r\n"), "closed the connection", 20.0),
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


def test_send_after_request_in_time_is_not_cut_off(scripted_server: ScriptedServer) -> None:
    """The deadline of a request does not affect the next request on the same socket."""
    client = make_client(scripted_server)
    assert isinstance(timed_post(client, 2.0)[0], HttpResponse)
    scripted_server.answer(Scripted(200, delay=2.2))
    result, _ = timed_post(client, 20.0)
    client.close()
    assert isinstance(result, HttpResponse)
    assert scripted_server.connections == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    names = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


@pytest.mark.needs("openssl")
def test_send_with_dripping_headers_over_tls_ends_at_deadline(certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    is_over = threading.Event()

    def serve() -> None:
        with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 2000:
                sock.sendall(bytes([byte]))
                if is_over.wait(0.01):
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
        client = HttpClient(resolve({"endpoint": url, "certificate_file": certificate[0]}).traces)
        result, seconds = timed_post(client, 2.0)  # the handshake is done by then
        is_over.set()
        thread.join()
        client.close()
    assert isinstance(result, TransportError)
    assert result.message == f"{urlsplit(url).netloc} did not answer in time"
    assert result.may_have_arrived
    assert seconds < DRIP_SECONDS


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


def test_send_with_user_session_uses_its_headers_and_auth(scripted_server: ScriptedServer) -> None:
    session = requests.Session()
    session.headers["x-session"] = "theirs"
    session.auth = ("ada", "p")
    post(make_client(scripted_server, session))
    headers = scripted_server.requests[0].headers
    assert headers["x-session"] == "theirs"
    assert headers["authorization"].startswith("Basic ")


class RaisingSession(requests.Session):
    """A session that raises an exception which `requests` never raises."""

    def request(self, *_: Any, **__: Any) -> requests.Response:
        raise AttributeError


def test_send_with_unexpected_exception_reports_that_request_may_have_arrived(
    scripted_server: ScriptedServer,
) -> None:
    result = post(make_client(scripted_server, RaisingSession()))
    assert isinstance(result, TransportError)
    assert result.may_have_arrived
    assert "could not be made (AttributeError)" in result.message


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
