"""What a user reads when the server cannot be reached: the exporter's log line and the doctor name the same cause.

Each row is a real server on the loopback, or a real file or variable, that is wrong in one way.
"""

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.cli import main as main_module
from mlflow_otlp_exporter._internal.cli.doctor import server_checks
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import hint_for
from support.certificates import Authority, Certificate
from support.markers import SECRET, has_marker
from support.nginx import Nginx
from support.spans import make_spans

# The beginning of a gRPC server: a SETTINGS frame of HTTP/2.
SETTINGS_FRAME = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00"


def response(status: bytes, body: bytes = b"", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, headers, len(body), body)


@contextmanager
def serve(content: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer each connection with these bytes, after it has sent something, and close it."""

    def answer(connection: socket.socket) -> None:
        connection.settimeout(5)
        with suppress(OSError), connection:
            stream = context.wrap_socket(connection, server_side=True) if context else connection
            with stream:
                stream.recv(65_536)
                stream.sendall(content)
                with suppress(TimeoutError):
                    stream.shutdown(socket.SHUT_WR)
                    while stream.recv(65_536):
                        pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True)
                threads.append(thread)
                thread.start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, daemon=True))
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


class World:
    """Servers and variables of a row."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
        self.patch, self.folder, self.stack = patch, folder, stack

    def serve(self, content: bytes, context: ssl.SSLContext | None = None) -> int:
        return self.stack.enter_context(serve(content, context))

    def certificate(self) -> tuple[Path, Certificate]:
        """Make a certificate for 127.0.0.1, and the file of the authority that signed it."""
        authority = Authority(self.folder / "ca")
        return authority.file, authority.certificate("server")

    def tls_context(self, *, trusted: bool = True) -> ssl.SSLContext:
        """Make the context of a TLS server, which the client trusts."""
        file, certificate = self.certificate()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if trusted:
            self.patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(file))
        return context

    def to(self, port: int, scheme: str = "http") -> None:
        self.patch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{port}")

    def closed_port(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
            return port


@dataclass(frozen=True)
class Row:
    """A wrong set-up, and what the log line and the doctor's failed step must contain."""

    name: str
    prepare: Callable[[World], None]
    code: MessageCode
    fix: str
    message: str = ""
    needs: tuple[str, ...] = field(default=())


def answering(content: bytes, scheme: str = "http") -> Callable[[World], None]:
    return lambda world: world.to(world.serve(content), scheme)


def proxy(address: str, scheme: str = "https") -> Callable[[World], None]:
    def prepare(world: World) -> None:
        world.patch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://mlflow.test:5000")
        world.patch.setenv(f"{scheme}_proxy", address)

    return prepare


def proxy_answering(content: bytes, scheme: str = "https") -> Callable[[World], None]:
    return lambda world: proxy(f"http://ada:{SECRET}@127.0.0.1:{world.serve(content)}", scheme)(world)


def proxy_with_tls_only_in_its_address(world: World) -> None:
    proxy(f"https://127.0.0.1:{world.serve(response(b'400 Bad Request'))}")(world)


def proxy_refuses(world: World) -> None:
    proxy(f"http://ada:{SECRET}@127.0.0.1:{world.closed_port()}", "http")(world)


def no_proxy_is_missing_for_a_server_nearby(world: World) -> None:
    world.to(world.serve(response(b"200 OK", b"3.17.2")))
    world.patch.setenv(
        "http_proxy", f"http://127.0.0.1:{world.serve(response(b'503 Service Unavailable', b'no host'))}"
    )


def bundle(content: bytes | None, variable: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        context = world.tls_context(trusted=False)
        file = world.folder / "bundle.pem"
        file.write_bytes(content or b"")
        world.patch.setenv(variable, str(file) if content is not None else str(world.folder / "missing.pem"))
        world.to(world.serve(response(b"200 OK"), context), "https")

    return prepare


def bundle_of_openssl(world: World) -> None:
    context = world.tls_context(trusted=False)
    world.patch.setenv("SSL_CERT_FILE", str(world.folder / "ca" / "authority.pem"))
    world.to(world.serve(response(b"200 OK"), context), "https")


def client_certificate_required(version: ssl.TLSVersion) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        context = world.tls_context()
        context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(world.folder / "ca" / "authority.pem")
        world.to(world.serve(b"", context), "https")

    return prepare


def nginx(directives: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        file, certificate = world.certificate()
        port = world.closed_port()
        names = {"port": port, "file": certificate.file, "key": certificate.key, "ca": file}
        server = "return 404; } server { " + directives % names  # a server block of its own
        world.stack.enter_context(Nginx(world.folder / "nginx", server, ""))
        world.patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(file))
        world.to(port, "https" if "ssl_verify_client" in directives else "http")

    return prepare


def http2_over_tls(world: World) -> None:
    context = world.tls_context()
    context.set_alpn_protocols(["h2"])
    world.to(world.serve(SETTINGS_FRAME, context), "https")


def grpc_port(world: World) -> None:
    """On port 4317, a connection that is closed is enough of a sign."""
    try:
        world.stack.enter_context(listening_on_4317())
    except OSError:
        pytest.skip("port 4317 is in use")
    world.to(4317)


@contextmanager
def listening_on_4317() -> Iterator[None]:
    def close_all() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 4317)) as listener:
        thread = threading.Thread(target=close_all, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def name_of_another_network(world: World) -> None:
    world.patch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")


def endpoint_without_traces_path(world: World) -> None:
    port = world.serve(response(b"404 Not Found", b"404 page not found\n"))
    world.patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{port}")


TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
GO = b"Client sent an HTTP request to an HTTPS server.\n"
APACHE = b"<html><head><title>400 Bad Request</title></head><body>Reason: You're speaking plain HTTP to an SSL-enabled "
APACHE += b"server port.<br />Instead use the HTTPS scheme</body></html>"
TOMCAT = b"Bad Request\r\nThis combination of host and port requires TLS.\r\n"
SQUID = b"<!DOCTYPE html><html><head><title>ERROR: The requested URL could not be retrieved</title></head></html>"
HTML = b"Content-Type: text/html\r\n"
CERTIFICATE_REQUIRED = "listen 127.0.0.1:%(port)s ssl; ssl_certificate %(file)s; ssl_certificate_key %(key)s; "
CERTIFICATE_REQUIRED += "ssl_client_certificate %(ca)s; ssl_verify_client on; return 200;"
PLAIN_AT_TLS = "listen 127.0.0.1:%(port)s ssl; ssl_certificate %(file)s; ssl_certificate_key %(key)s; return 200;"
Code = MessageCode
ROWS = [
    Row("SSH", answering(b"SSH-2.0-OpenSSH_9.6\r\n"), Code.NOT_HTTP, "Correct the port", "does not speak HTTP"),
    Row("Redis", answering(b"-ERR unknown command\r\n"), Code.NOT_HTTP, "Correct the port"),
    Row("MySQL", answering(b"J\x00\x00\x00\n8.0.36\x00\x08\x00\x00\x00"), Code.NOT_HTTP, "Correct the port"),
    Row("PostgreSQL", answering(b""), Code.CONNECTION_CLOSED, "Check the port"),
    Row("gRPC", answering(SETTINGS_FRAME), Code.HTTP2_ONLY, "4318", "gRPC or HTTP/2"),
    Row("port 4317", grpc_port, Code.HTTP2_ONLY, "4318", "127.0.0.1:4317"),
    Row(
        "gRPC in Go",
        answering(response(b"415 Unsupported", b'invalid gRPC request content-type ""')),
        Code.HTTP2_ONLY,
        "",
    ),
    Row("HTTP/2 only", answering(response(b"505 HTTP Version Not Supported")), Code.HTTP2_ONLY, "HTTP/1.1", "505"),
    Row("HTTP/2 only: 426", answering(response(b"426 Upgrade Required")), Code.HTTP2_ONLY, "HTTP/1.1", "426"),
    Row("HTTP/2 over TLS", http2_over_tls, Code.HTTP2_ONLY, "HTTP/1.1", needs=("openssl",)),
    Row(
        "https to HTTP",
        answering(response(b"400 Bad Request"), "https"),
        Code.NOT_TLS,
        "MLFLOW_TRACKING_URI=http://127.0.0.1:",
    ),
    Row("https to SSH", answering(b"SSH-2.0-OpenSSH_9.6\r\n", "https"), Code.NOT_TLS, "TLS port"),
    Row(
        "http to TLS: alert",
        answering(TLS_ALERT),
        Code.TLS_REQUIRED,
        "MLFLOW_TRACKING_URI=https://127.0.0.1:",
        "speaks TLS",
    ),
    Row(
        "http to TLS: Go",
        answering(response(b"400 Bad Request", GO)),
        Code.TLS_REQUIRED,
        "MLFLOW_TRACKING_URI=https://127.0.0.1:",
    ),
    Row(
        "http to TLS: Apache",
        answering(response(b"400 Bad", APACHE, HTML)),
        Code.TLS_REQUIRED,
        "MLFLOW_TRACKING_URI=https://127.0.0.1:",
    ),
    Row(
        "http to TLS: Tomcat",
        answering(response(b"400 ", TOMCAT)),
        Code.TLS_REQUIRED,
        "MLFLOW_TRACKING_URI=https://127.0.0.1:",
    ),
    Row(
        "http to TLS: nginx",
        nginx(PLAIN_AT_TLS),
        Code.TLS_REQUIRED,
        "MLFLOW_TRACKING_URI=https://127.0.0.1:",
        needs=("nginx", "openssl"),
    ),
    Row("mTLS: nginx", nginx(CERTIFICATE_REQUIRED), Code.TLS_REJECTED, "CLIENT_CERT", needs=("nginx", "openssl")),
    Row(
        "mTLS: TLS 1.2",
        client_certificate_required(ssl.TLSVersion.TLSv1_2),
        Code.TLS_REJECTED,
        "CLIENT_CERT",
        "the server rejects it",
        ("openssl",),
    ),
    Row("refused", lambda world: world.to(world.closed_port()), Code.CONNECTION_REFUSED, "mlflow server --port"),
    Row("DNS", name_of_another_network, Code.NAME_NOT_RESOLVED, "a name that resolves"),
    Row("404", endpoint_without_traces_path, Code.NO_OTLP_ENDPOINT, "", "404"),
    Row("SOCKS", proxy(f"socks5://ada:{SECRET}@127.0.0.1:1080"), Code.SOCKS_UNAVAILABLE, "pip install PySocks"),
    Row("SOCKS, http", proxy("socks5h://127.0.0.1:1080", "http"), Code.SOCKS_UNAVAILABLE, "NO_PROXY"),
    Row("proxy's address", proxy(f"http://ada:{SECRET}@127.0.0.1:99999"), Code.PROXY, "`HTTPS_PROXY`"),
    Row("proxy's empty address", proxy("http://"), Code.PROXY, "`HTTPS_PROXY`"),
    Row("proxy's scheme", proxy(f"ftp://ada:{SECRET}@127.0.0.1:1"), Code.PROXY, "`HTTPS_PROXY`"),
    Row("proxy's name", proxy(f"http://ada:{SECRET}@proxy.invalid:3128"), Code.PROXY, "NO_PROXY", "proxy.invalid:3128"),
    Row("proxy refuses", proxy_refuses, Code.PROXY, "NO_PROXY", "ConnectionRefusedError"),
    Row("https proxy without TLS", proxy_with_tls_only_in_its_address, Code.PROXY, "HTTPS_PROXY"),
    Row("proxy answers 502", proxy_answering(response(b"502 Bad Gateway")), Code.PROXY, "NO_PROXY", "502 Bad Gateway"),
    Row("proxy answers 403", proxy_answering(response(b"403 Forbidden")), Code.PROXY, "NO_PROXY", "403 Forbidden"),
    Row("proxy answers 407", proxy_answering(response(b"407 Wanted")), Code.PROXY_UNAUTHENTICATED, "USER:PASSWORD"),
    Row("proxy closes", proxy_answering(b""), Code.PROXY, "NO_PROXY"),
    Row("proxy is SSH", proxy_answering(b"SSH-2.0-OpenSSH_9.6\r\n"), Code.PROXY, "NO_PROXY", "BadStatusLine"),
    Row("proxy is SSH, http", proxy_answering(b"SSH-2.0-x\r\n", "http"), Code.PROXY, "NO_PROXY", "BadStatusLine"),
    Row(
        "proxy answers 502, http",
        proxy_answering(response(b"502 Bad", SQUID, HTML), "http"),
        Code.PROXY,
        "NO_PROXY",
        "502",
    ),
    Row(
        "proxy answers 403, http",
        proxy_answering(response(b"403 No", SQUID, HTML), "http"),
        Code.PROXY,
        "NO_PROXY",
        "403",
    ),
    Row(
        "proxy answers 407, http", proxy_answering(response(b"407 No"), "http"), Code.PROXY_UNAUTHENTICATED, "NO_PROXY"
    ),
    Row("no NO_PROXY", no_proxy_is_missing_for_a_server_nearby, Code.PROXY, "NO_PROXY", "503"),
]
FILES = {
    "missing": None,
    "empty": b"",
    "no PEM": b"no certificate",
    "broken": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
}
ROWS += [
    Row(
        f"{variable}: {name}",
        bundle(content, variable),
        Code.CERTIFICATE_FILE,
        "Correct",
        needs=("openssl",),
    )
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    for name, content in FILES.items()
]
ROWS += [
    Row(
        f"MLFLOW_TRACKING_SERVER_CERT_PATH: {name}",
        bundle(content, "MLFLOW_TRACKING_SERVER_CERT_PATH"),
        Code.CERTIFICATE_FILE,
        "Correct",
        needs=("openssl",),
    )
    for name, content in FILES.items()
    if content is not None
]
ROWS += [Row("SSL_CERT_FILE", bundle_of_openssl, Code.CERTIFICATE_UNTRUSTED, "CERT_PATH", needs=("openssl",))]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    monkeypatch.setattr(server_checks, "run_local_checks", lambda _: ())  # packages and disk, which take a second
    with ExitStack() as stack:
        yield World(monkeypatch, tmp_path, stack)


def failed_steps(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    main_module.main(["doctor", "--json"])
    output = capsys.readouterr().out
    assert not has_marker(output)
    return [step for step in json.loads(output)["steps"] if step["state"] == "failed"]


def test_fix_for_a_refused_otlp_endpoint_names_a_collector() -> None:
    url, variable = "http://localhost:4318/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    fix = hint_for(Code.CONNECTION_REFUSED, url, variable, has_credential=False).fix
    assert fix.startswith(f"Start the Collector or server, or set `{variable}` to its address.")


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.needs(name) for name in row.needs]) for row in ROWS]
)
def test_log_line_and_doctor_name_the_same_cause_and_fix(
    row: Row, world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    row.prepare(world)
    exporter = MLflowSpanExporter(timeout=0.4)
    exporter.export(make_spans("a"))
    exporter.shutdown(100)
    line = caplog.records[0].getMessage()
    assert f"[{row.code}]" in line
    url = "http" + line.partition(": http")[2].partition("/v1/traces")[0]
    fix = hint_for(row.code, url, "MLFLOW_TRACKING_URI", has_credential=True).fix
    assert fix in line
    assert row.fix in fix
    assert row.message in line
    assert not has_marker(caplog.text)
    steps = failed_steps(capsys)
    assert [step["code"] for step in steps] == [str(row.code)]
    assert steps[0]["cause"]
    assert row.fix in steps[0]["fix"]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"])
def test_certificate_of_an_endpoint_that_is_missing_is_named(
    variable: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:4318")
    world.patch.setenv(variable, "/nowhere/ca.pem")
    (step,) = failed_steps(capsys)
    assert step["step"] == "settings"
    assert f"{variable} is '/nowhere/ca.pem': expected a file that can be read" in step["found"]


def test_row_names_are_different() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert not any(os.environ.get(name) for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"))
