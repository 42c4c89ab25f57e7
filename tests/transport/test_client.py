"""Requests as they go out, and what comes back, over real sockets."""

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
from mlflow_otlp_exporter._internal.config.models import resolve
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.messages import HttpResponse, TransportError
from support.children import in_child
from support.markers import SECRET
from support.scripted_server import ACCEPTED, ScriptedServer
from support.scripted_server import Answer as Scripted


def connection(server: ScriptedServer, session: requests.Session | None = None, **arguments: Any) -> HttpClient:
    return HttpClient(resolve({"endpoint": server.traces_url, **arguments}).traces, session)


def post(
    to: HttpClient, seconds: float = 20.0, headers: Mapping[str, str] | None = None
) -> HttpResponse | TransportError:
    try:
        return to.request("POST", "", headers=headers or {}, body=b"x", seconds=seconds)
    finally:
        to.close()


def test_headers_of_the_user_win_and_the_credential_is_added(scripted_server: ScriptedServer) -> None:
    post(
        connection(scripted_server, headers={"X-A": "mine"}, credentials=SECRET), headers={"x-a": "ours", "x-b": "ours"}
    )
    headers = scripted_server.requests[0].headers
    assert (headers["x-a"], headers["x-b"], headers["authorization"]) == ("mine", "ours", f"Bearer {SECRET}")
    assert headers["user-agent"].startswith("mlflow-otlp-exporter/")


def test_no_redirect_is_followed(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(302, headers={"Location": scripted_server.url + "/elsewhere"}))
    answer = post(connection(scripted_server, credentials=SECRET))
    assert isinstance(answer, HttpResponse)
    assert (answer.status, len(scripted_server.requests)) == (302, 1)


def test_netrc_does_not_replace_the_credential_nor_add_one(scripted_server: ScriptedServer) -> None:
    Path(os.environ["HOME"], ".netrc").write_text("machine 127.0.0.1 login netrc password planted-netrc\n")
    post(connection(scripted_server, credentials=SECRET))
    post(connection(scripted_server))
    with_credential, without = scripted_server.requests
    assert with_credential.headers["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in without.headers


def test_cookies_of_a_login_page_are_not_kept(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(200, headers={"Set-Cookie": "session=1; Path=/"}))
    to = connection(scripted_server)
    for _ in range(2):
        to.request("POST", "", headers={}, body=b"x", seconds=20)
    to.close()
    assert "cookie" not in scripted_server.requests[1].headers


def test_connection_is_used_again(scripted_server: ScriptedServer) -> None:
    to = connection(scripted_server)
    for _ in range(3):
        to.request("POST", "", headers={}, body=b"x", seconds=20)
    to.close()
    assert scripted_server.connections == 1


def test_idle_connection_is_not_used_again(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.transport.client._IDLE_SECONDS", 0.0)
    to = connection(scripted_server)
    for _ in range(2):
        to.request("POST", "", headers={}, body=b"x", seconds=20)
    to.close()
    assert scripted_server.connections == 2


def test_body_is_read_uncompressed(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Scripted(400, headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"said")))
    assert post(connection(scripted_server)) == HttpResponse(
        400, {"content-encoding": "gzip", "content-length": "24"}, b"said"
    )


@pytest.mark.parametrize(
    "scripted",
    [
        Scripted(200, body=b"12345678", truncate=True),
        Scripted(200, headers={"Content-Encoding": "gzip"}, body=b"not gzip"),
        Scripted(200, body=b"x" * 200_000),
    ],
)
def test_status_stands_though_the_body_cannot_be_read(scripted_server: ScriptedServer, scripted: Scripted) -> None:
    scripted_server.answer(scripted)
    answer = post(connection(scripted_server))
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.complete) == (200, False)
    assert len(answer.body) <= 65_536


@pytest.mark.parametrize(
    ("scripted", "message", "seconds"),
    [
        (Scripted(close="after-request"), "closed the connection", 20.0),
        (Scripted(close="after-request", reset=True), "closed the connection", 20.0),
        (Scripted(delay=30), "did not answer in time", 0.3),
        (Scripted(raw=b"SSH-2.0-x\r\n"), "closed the connection", 20.0),
    ],
)
def test_failure_in_words(scripted_server: ScriptedServer, scripted: Scripted, message: str, seconds: float) -> None:
    scripted_server.answer(scripted)
    failure = post(connection(scripted_server), seconds=seconds)
    assert isinstance(failure, TransportError)
    assert message in failure.message
    assert failure.arrived


# What drips for longer than this, if nothing cuts it off.
DRIPS_SECONDS = 10.0


def took(to: HttpClient, seconds: float) -> tuple[HttpResponse | TransportError, float]:
    began = time.monotonic()
    return to.request("POST", "", headers={}, body=b"x", seconds=seconds), time.monotonic() - began


# 0.3 s are over in the middle of the status line, or of the headers after a whole status line.
@pytest.mark.parametrize("drip", [0.05, 0.01])
@pytest.mark.parametrize("make", [lambda: None, requests.Session])
def test_status_line_and_headers_that_drip_are_cut_off(
    scripted_server: ScriptedServer, make: Callable[[], requests.Session | None], drip: float
) -> None:
    scripted_server.answer(Scripted(200, headers={"X-Padding": "x" * 2000}, drip_head=drip))
    to = connection(scripted_server, make())
    found, seconds = took(to, 0.3)
    assert isinstance(found, TransportError)
    assert "did not answer in time" in found.message
    assert found.arrived
    assert 0.25 < seconds < DRIPS_SECONDS
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)  # also where the first one is read only now
    assert took(to, 20.0)[0] == HttpResponse(200, {"content-type": "application/x-protobuf", "content-length": "0"})
    to.close()


def test_headers_that_drip_through_a_proxy_are_cut_off(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", scripted_server.url)
    scripted_server.answer(Scripted(200, headers={"X-Padding": "x" * 300}, drip_head=0.05))
    to = HttpClient(resolve({"endpoint": "http://nowhere.invalid/v1/traces"}).traces)
    found, seconds = took(to, 0.3)
    assert isinstance(found, TransportError)
    assert found.arrived
    assert seconds < DRIPS_SECONDS
    scripted_server.answer_with("/v1/traces", lambda _: ACCEPTED)
    assert isinstance(post(to), HttpResponse)
    assert scripted_server.requests[0].target == "http://nowhere.invalid/v1/traces"


def test_request_in_time_is_left_alone(scripted_server: ScriptedServer) -> None:
    """The deadline of one request does not reach the next one on the same socket."""
    to = connection(scripted_server)
    assert isinstance(took(to, 2.0)[0], HttpResponse)
    scripted_server.answer(Scripted(200, delay=2.2))
    found, _ = took(to, 20.0)
    to.close()
    assert isinstance(found, HttpResponse)
    assert scripted_server.connections == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    names = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


@pytest.mark.needs("openssl")
def test_headers_that_drip_over_tls_are_cut_off(certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 2000:
                sock.sendall(bytes([byte]))
                if over.wait(0.01):
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1/traces"
        to = HttpClient(resolve({"endpoint": url, "certificate_file": certificate[0]}).traces)
        found, seconds = took(to, 2.0)  # the handshake is done by then
        over.set()
        thread.join()
        to.close()
    assert isinstance(found, TransportError)
    assert found.message == f"{urlsplit(url).netloc} did not answer in time"
    assert found.arrived
    assert seconds < DRIPS_SECONDS


def test_failure_before_anything_was_sent(scripted_server: ScriptedServer) -> None:
    port = scripted_server.url.rpartition(":")[2]
    refused = post(HttpClient(resolve({"endpoint": "http://127.0.0.1:9/v1/traces"}).traces))
    unknown = post(HttpClient(resolve({"endpoint": "http://nowhere.invalid/v1/traces"}).traces))
    scripted_server.answer(Scripted(close="before-request"))
    no_tls = post(HttpClient(resolve({"endpoint": f"https://127.0.0.1:{port}/v1/traces"}).traces))
    no_file = post(connection(scripted_server, token_file="/nowhere/token"))
    expected = ["refuses connections", "cannot be resolved", "no TLS connection", "/nowhere/token"]
    for failure, words in zip((refused, unknown, no_tls, no_file), expected, strict=True):
        assert isinstance(failure, TransportError)
        assert words in failure.message
        assert not failure.arrived
    assert isinstance(no_file, TransportError)
    assert no_file.credentials
    codes = [failure.code for failure in (refused, unknown, no_tls) if isinstance(failure, TransportError)]
    assert codes == [MessageCode.CONNECTION_REFUSED, MessageCode.NAME_NOT_RESOLVED, MessageCode.NOT_TLS]


def test_session_of_the_user_is_used_as_it_is(scripted_server: ScriptedServer) -> None:
    session = requests.Session()
    session.headers["x-session"] = "theirs"
    session.auth = ("ada", "p")
    post(connection(scripted_server, session))
    headers = scripted_server.requests[0].headers
    assert headers["x-session"] == "theirs"
    assert headers["authorization"].startswith("Basic ")


class Odd(requests.Session):
    """Raises what `requests` does not."""

    def request(self, *_: Any, **__: Any) -> requests.Response:
        raise AttributeError


def test_whatever_a_session_raises_is_a_failure_after_which_the_request_may_have_arrived(
    scripted_server: ScriptedServer,
) -> None:
    found = post(connection(scripted_server, Odd()))
    assert isinstance(found, TransportError)
    assert found.arrived
    assert "could not be made (AttributeError)" in found.message


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_fork_gets_connections_of_its_own(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mlflow_otlp_exporter._internal.transport.client._IDLE_SECONDS", 60.0
    )  # however long the child takes
    to = connection(scripted_server)
    to.request("POST", "", headers={}, body=b"parent", seconds=20)
    answered = in_child(lambda: isinstance(to.request("POST", "", headers={}, body=b"child", seconds=20), HttpResponse))
    assert answered
    to.request("POST", "", headers={}, body=b"parent", seconds=20)
    to.close()
    used = {request.body: request.connection for request in scripted_server.requests}
    assert used[b"parent"] != used[b"child"]
    assert scripted_server.connections == 2


def test_repr_has_no_secret(scripted_server: ScriptedServer) -> None:
    to = connection(scripted_server, credentials="planted", headers={"x": "planted"})
    to.close()
    assert "planted" not in repr(to)
