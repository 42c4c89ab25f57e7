"""The harness itself: what tests rest on must not be what makes them pass."""

import base64
import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import opentelemetry.trace
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider

from support.environments import ROOT, environment
from support.mlflow_server import MLflowServer, RestError
from support.needs import NEEDS, executable
from support.scripted_server import STOP_SECONDS, Answer, RecordedRequest, ScriptedServer

TRACE_ID = bytes(range(16))


def export(name: str = "root", trace_id: bytes = TRACE_ID) -> bytes:
    """An OTLP request with one root span."""
    now = time.time_ns()
    span = Span(
        name=name,
        trace_id=trace_id,
        span_id=b"\1" * 8,
        start_time_unix_nano=now,
        end_time_unix_nano=now + 1_000_000,
    )
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.append(span)
    return request.SerializeToString()


def connect(server: ScriptedServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)


def post_on(
    connection: http.client.HTTPConnection, body: bytes = b"x", path: str = "/v1/traces", **headers: str
) -> tuple[int, bytes]:
    """One request on an open connection."""
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def post(server: ScriptedServer, body: bytes = b"x", path: str = "/v1/traces", **headers: str) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    with closing(connect(server)) as connection:
        return post_on(connection, body, path, **headers)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


# The scripted server: what it answers


def test_scripted_server_without_script_answers_like_mlflow(scripted_server: ScriptedServer) -> None:
    with closing(connect(scripted_server)) as connection:
        connection.request("POST", "/v1/traces", b"abc")
        answer = connection.getresponse()
        assert (answer.status, answer.reason, answer.read()) == (200, "OK", b"")
        assert answer.headers["Content-Type"] == "application/x-protobuf"
        assert answer.headers["Content-Length"] == "0"


def test_scripted_server_with_unknown_path_answers_404(scripted_server: ScriptedServer) -> None:
    assert post(scripted_server, path="/elsewhere") == (404, b'{"detail":"Not Found"}')


def test_scripted_server_sends_status_reason_headers_and_body(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503, "Out To Lunch", {"Retry-After": "3"}, b"later"))
    with closing(connect(scripted_server)) as connection:
        connection.request("POST", "/v1/traces", b"")
        answer = connection.getresponse()
        assert (answer.status, answer.reason, answer.read()) == (503, "Out To Lunch", b"later")
        assert answer.headers["Retry-After"] == "3"


def test_scripted_server_repeats_the_last_answer(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503), Answer(429))
    assert [post(scripted_server)[0] for _ in range(4)] == [503, 429, 429, 429]


def test_answer_with_then_uses_it_after_the_queue(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503), then=Answer(202))
    assert [post(scripted_server)[0] for _ in range(3)] == [503, 202, 202]


def test_answer_called_twice_appends_to_the_queue(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(501), Answer(502))
    scripted_server.answer(Answer(503))
    assert [post(scripted_server)[0] for _ in range(4)] == [501, 502, 503, 503]


def test_answer_with_path_applies_to_that_path_only(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(body=b"3.17.2"), path="/version")
    assert post(scripted_server, path="/version?x=1") == (200, b"3.17.2")
    assert post(scripted_server) == (200, b"")
    assert [request.query for request in scripted_server.to("/version")] == ["x=1"]


def test_answer_with_function_returns_its_answers(scripted_server: ScriptedServer) -> None:
    def echo(request: RecordedRequest) -> Answer:
        return Answer(201, body=request.body[::-1])

    scripted_server.answer_with("/v1/traces", echo)
    assert post(scripted_server, b"abc") == (201, b"cba")


def test_answer_with_failing_function_raises_at_close() -> None:
    def fail(_request: RecordedRequest) -> Answer:
        raise LookupError("planted")

    server = ScriptedServer()
    server.answer_with("/v1/traces", fail)
    with pytest.raises(ConnectionError):
        post(server)
    with pytest.raises(LookupError, match="planted"):
        server.close()


def test_answer_without_answers_raises(scripted_server: ScriptedServer) -> None:
    with pytest.raises(ValueError, match="nothing"):
        scripted_server.answer()


# The scripted server: what it records


def test_scripted_server_records_the_request(scripted_server: ScriptedServer) -> None:
    earlier = time.monotonic()
    post(scripted_server, b"abc", "/v1/traces?a=b", **{"X-MLflow-Experiment-Id": "7"})
    (request,) = scripted_server.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/traces", "a=b")
    assert request.headers["x-mlflow-experiment-id"] == "7"
    assert (request.body, request.content, request.connection) == (b"abc", b"abc", 1)
    assert earlier <= request.at <= time.monotonic()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress)],
)
def test_recorded_request_with_any_encoding_parses_spans(
    scripted_server: ScriptedServer, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = encode(export("agent"))
    post(scripted_server, body, **{"Content-Encoding": encoding})
    (request,) = scripted_server.requests
    assert request.body == body
    assert [span.name for span in request.spans()] == ["agent"]


def test_scripted_server_reads_chunked_requests(scripted_server: ScriptedServer) -> None:
    with closing(connect(scripted_server)) as connection:
        for _ in range(2):
            connection.request("POST", "/v1/traces", iter([b"ab", b"c" * 70_000]), encode_chunked=True)
            assert connection.getresponse().read() == b""
    first, second = scripted_server.requests
    assert first.body == second.body == b"ab" + b"c" * 70_000


def test_scripted_server_transfers_large_bodies(scripted_server: ScriptedServer) -> None:
    large = os.urandom(5_000_000)
    scripted_server.answer_with("/v1/traces", lambda request: Answer(body=request.body))
    assert post(scripted_server, large) == (200, large)


def test_scripted_server_answers_expect_continue(scripted_server: ScriptedServer) -> None:
    address = scripted_server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as sock:
        sock.sendall(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_scripted_server_with_invalid_http_answers_400(scripted_server: ScriptedServer) -> None:
    address = scripted_server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as sock:
        sock.sendall(b"\x16\x03\x01 hello\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert scripted_server.requests == []


def test_wait_for_returns_the_requests(scripted_server: ScriptedServer) -> None:
    threads = [threading.Thread(target=post, args=(scripted_server,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert len(scripted_server.wait_for(3)) == 3
    for thread in threads:
        thread.join()


def test_wait_for_after_timeout_names_the_requests(scripted_server: ScriptedServer) -> None:
    post(scripted_server, path="/elsewhere?x=1")
    with pytest.raises(AssertionError, match=r"no 1 requests to /v1/traces .* \['POST /elsewhere\?x=1'\]"):
        scripted_server.wait_for(1, timeout=0.01)


# The scripted server: connections


def test_scripted_server_keeps_connections_alive(scripted_server: ScriptedServer) -> None:
    with closing(connect(scripted_server)) as connection:
        for _ in range(3):
            post_on(connection)
    assert scripted_server.connections == 1
    assert [request.connection for request in scripted_server.requests] == [1, 1, 1]


def test_answer_without_keep_alive_closes_the_connection(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(keep_alive=False))
    with closing(connect(scripted_server)) as connection:
        connection.request("POST", "/v1/traces", b"x")
        answer = connection.getresponse()
        assert answer.headers["Connection"] == "close"
        assert answer.read() == b""


def test_scripted_server_serves_connections_in_parallel(scripted_server: ScriptedServer) -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(_request: RecordedRequest) -> Answer:
        both.wait()
        return Answer()

    scripted_server.answer_with("/v1/traces", meet)
    thread = threading.Thread(target=post, args=(scripted_server,))
    thread.start()
    assert post(scripted_server) == (200, b"")
    thread.join()
    assert scripted_server.connections == 2


def test_close_idle_connections_closes_them(scripted_server: ScriptedServer) -> None:
    for _ in range(50):  # closed right after its answer, a connection is idle already
        with closing(connect(scripted_server)) as connection:
            connection.request("POST", "/v1/traces", b"x")
            connection.getresponse().read()
            scripted_server.close_idle_connections()
            assert connection.sock.recv(1) == b""


def test_close_idle_connections_keeps_busy_ones(scripted_server: ScriptedServer) -> None:
    reached, released = threading.Event(), threading.Event()

    def hold(_request: RecordedRequest) -> Answer:
        reached.set()
        released.wait(30)
        return Answer(body=b"held")

    scripted_server.answer_with("/v1/traces", hold)
    with closing(connect(scripted_server)) as connection:
        connection.request("POST", "/v1/traces", b"x")
        assert reached.wait(30)
        scripted_server.close_idle_connections()
        released.set()
        assert connection.getresponse().read() == b"held"


# The scripted server: faults

DROPS = ["before-request", "after-headers-read", "after-request"]


@pytest.mark.parametrize("close", DROPS)
@pytest.mark.parametrize("size", [1, 500_000])
def test_answer_with_close_ends_with_fin(scripted_server: ScriptedServer, close: str, size: int) -> None:
    scripted_server.answer(Answer(close=close), then=Answer())  # type: ignore[arg-type]
    with pytest.raises(http.client.RemoteDisconnected):
        post(scripted_server, b"x" * size)
    assert post(scripted_server) == (200, b"")
    recorded = {"before-request": [], "after-headers-read": [0], "after-request": [size]}[close]
    assert [len(request.body) for request in scripted_server.requests] == [*recorded, 1]


@pytest.mark.parametrize("close", DROPS)
def test_answer_with_reset_ends_with_rst(scripted_server: ScriptedServer, close: str) -> None:
    scripted_server.answer(Answer(close=close, reset=True), then=Answer())  # type: ignore[arg-type]
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        post(scripted_server)
    assert post(scripted_server) == (200, b"")


def test_answer_with_close_drops_a_reused_connection(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(), Answer(close="before-request", reset=True), Answer())
    with closing(connect(scripted_server)) as connection:
        assert post_on(connection) == (200, b"")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            post_on(connection)
    assert post(scripted_server) == (200, b"")
    assert [request.connection for request in scripted_server.requests] == [1, 2]


def test_client_that_closes_an_idle_connection_takes_no_answer(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(), Answer(close="before-request"), Answer(202))
    post(scripted_server)
    wait_until(lambda: not scripted_server.open_connections)
    with pytest.raises(http.client.RemoteDisconnected):
        post(scripted_server)
    assert post(scripted_server)[0] == 202


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"12345678", close="mid-body"),
        Answer(body=b"12345678", truncate=True),
    ],
)
def test_truncated_answer_sends_half_of_the_body(scripted_server: ScriptedServer, answer: Answer) -> None:
    scripted_server.answer(answer)
    with pytest.raises(http.client.IncompleteRead) as caught:
        post(scripted_server)
    assert (caught.value.partial, caught.value.expected) == (b"1234", 4)


def test_truncated_answer_with_reset_ends_with_rst(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(body=b"12345678", close="mid-body", reset=True))
    with pytest.raises(ConnectionResetError):
        post(scripted_server)


def test_answer_with_delay_waits(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(delay=0.2))
    start = time.monotonic()
    post(scripted_server)
    assert time.monotonic() - start >= 0.2


def test_answer_with_drip_sends_single_bytes(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(body=b"abcde", drip=0.05))
    start = time.monotonic()
    assert post(scripted_server) == (200, b"abcde")
    assert time.monotonic() - start >= 0.25


def test_answer_with_raw_bytes_sends_them(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(raw=b"220 smtp ready\r\n"))
    with pytest.raises(http.client.BadStatusLine, match="220 smtp"):
        post(scripted_server)


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_body_sends_none(scripted_server: ScriptedServer, status: int) -> None:
    scripted_server.answer(Answer(status, body=b"never sent"))
    assert post(scripted_server) == (status, b"")


def test_contradictory_answer_raises() -> None:
    with pytest.raises(ValueError, match="half of an empty body"):
        Answer(truncate=True)
    with pytest.raises(ValueError, match="nothing here ends it"):
        Answer(reset=True)


def test_answer_with_hold_waits_for_the_event(scripted_server: ScriptedServer) -> None:
    go = threading.Event()
    scripted_server.answer(Answer(hold=go))
    timer = threading.Timer(0.2, go.set)
    start = time.monotonic()
    timer.start()
    post(scripted_server)
    timer.join()
    assert time.monotonic() - start >= 0.2


def test_scripted_server_without_listening_refuses_connections() -> None:
    with ScriptedServer(listening=False) as server:
        with pytest.raises(OSError, match="refused"):
            post(server)
        server.listen()
        assert post(server) == (200, b"")
    ScriptedServer(listening=False).close()


@pytest.mark.parametrize(
    "answer",
    [Answer(delay=60), Answer(hold=threading.Event()), Answer(body=b"ab", drip=60)],
    ids=["delay", "hold", "drip"],
)
def test_close_interrupts_slow_answers(answer: Answer) -> None:
    with ScriptedServer() as server, closing(connect(server)) as connection:
        server.answer(answer)
        connection.request("POST", "/v1/traces", b"x")
        server.wait_for(1)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < STOP_SECONDS
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse().read()


def test_close_ends_idle_and_half_sent_connections() -> None:
    threads = set(threading.enumerate())
    with ScriptedServer() as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        idle = socket.create_connection(address, timeout=30)
        half = socket.create_connection(address, timeout=30)
        half.sendall(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        wait_until(lambda: server.connections == 2)
    with idle, half:
        assert idle.recv(1) == b""
        assert half.recv(1) == b""
    assert set(threading.enumerate()) <= threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=30)


# The guards, the needs and the matrix: each in a pytest of its own


def run_pytest(folder: Path, tests: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run tests with this conftest."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_inner.py").write_text(tests)
    (folder / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {ROOT / 'tests'}\nfilterwarnings = error\naddopts = --strict-markers\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--tb=short", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_guard_with_leaked_threads_and_variables_fails_the_test(tmp_path: Path) -> None:
    tests = """
import os, threading
import opentelemetry.trace as api
from opentelemetry.sdk.trace import TracerProvider

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(60,), name="left-alone", daemon=True).start()

def test_slow_thread():
    threading.Thread(target=threading.Event().wait, args=(0.3,)).start()

def test_variable():
    os.environ["PLANTED"] = "secret"
    del os.environ["XDG_STATE_HOME"]

def test_monkeypatched(monkeypatch):
    assert "PLANTED" not in os.environ
    assert "XDG_STATE_HOME" in os.environ
    monkeypatch.setenv("PLANTED", "secret")
    monkeypatch.delenv("HOME")

def test_provider():
    api.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
"""
    output = run_pytest(tmp_path, tests).stdout
    assert "the test left behind threads still alive: left-alone\n" in output
    assert "the test left behind environment variables changed: PLANTED, XDG_STATE_HOME\n" in output
    assert "secret" not in output.partition("short test summary")[2]
    assert "5 passed, 2 errors" in output
    assert "ERROR test_inner.py::test_thread" in output
    assert "ERROR test_inner.py::test_variable" in output


def test_guard_with_prompt_or_credential_in_a_log_fails_the_test(tmp_path: Path) -> None:
    tests = """
import base64, logging, threading
from support.children import run_in_fork
from support.markers import PROMPT, SECRET

ours = logging.getLogger("mlflow_otlp_exporter._internal.delivery.retry_sender")
urllib3 = logging.getLogger("urllib3.connectionpool")

def test_harmless():
    ours.error("%s spans wait", 5)
    urllib3.debug("POST /v1/traces")

def test_message():
    ours.error("refused: " + PROMPT)

def test_argument():
    ours.debug("sent with %s", {"authorization": f"Bearer {SECRET}"})

def test_hidden_argument():
    ours.info("%.7s", "refused" + PROMPT)

def test_exception():
    try:
        raise ValueError(SECRET) from RuntimeError("other")
    except ValueError:
        ours.exception("a mistake")

def test_exception_inside():
    try:
        raise ValueError("other") from RuntimeError(SECRET)
    except ValueError:
        ours.exception("a mistake")

def test_extra():
    ours.error("a mistake", extra={"body": PROMPT})

def test_password():
    for user in ("a", "ab", "abc"):
        urllib3.debug("Basic " + base64.b64encode(f"{user}:{SECRET}".encode()).decode())

def test_address():
    urllib3.debug("http://user:pl%40nted@host")

def test_thread():
    thread = threading.Thread(target=ours.error, args=(SECRET,))
    thread.start()
    thread.join()

def test_child():
    assert not run_in_fork(lambda: ours.error(SECRET) or True)
"""
    output = run_pytest(tmp_path, tests).stdout
    assert "11 passed, 9 errors" in output
    before_summary = output.partition("short test summary info")[0]  # which repeats it where CI is set
    assert before_summary.count("planted prompts or credentials are in the log: ") == 9
    assert output.count("DEBUG of urllib3.connectionpool: Basic ") >= 3
    for harmless in ("test_harmless", "test_child"):
        assert f"ERROR test_inner.py::{harmless}" not in output


SETTINGS = ("MLFLOW_TRACKING_URI", "OTEL_SDK_DISABLED", "https_proxy", "NO_PROXY", "REQUESTS_CA_BUNDLE")


def test_guard_removes_the_developers_settings(tmp_path: Path) -> None:
    tests = f"""
import os
from pathlib import Path

def test_settings(tmp_path_factory):
    assert not {set(SETTINGS)!r} & os.environ.keys()
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        assert Path(os.environ[name]).is_relative_to(tmp_path_factory.getbasetemp())
"""
    assert "1 passed" in run_pytest(tmp_path, tests, **dict.fromkeys(SETTINGS, "planted")).stdout


@pytest.mark.parametrize("run", [1, 2])
def test_tracer_provider_can_be_set_in_each_test(run: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    opentelemetry.trace.set_tracer_provider(provider)
    assert opentelemetry.trace.get_tracer_provider() is provider, run


NEEDY = """
import pytest

@pytest.mark.needs("nginx", "node")
def test_needy():
    pass

@pytest.mark.needs("node")
def test_needy_too():
    pass

def test_content():
    pass
"""


@pytest.fixture
def no_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tests find a node, and no nginx wherever it may be installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    node = programs / "node"
    node.write_text("#!/bin/sh\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    (tmp_path / "nowhere.py").write_text(
        "import dataclasses\n"
        "from support import needs\n"
        "needs.NEEDS['nginx'] = dataclasses.replace(needs.NEEDS['nginx'], folders=())\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'tests'}")
    return tmp_path


def test_missing_need_skips_the_test_and_is_listed(no_nginx: Path) -> None:
    done = run_pytest(no_nginx, NEEDY, "-p", "nowhere", REQUIRE_ALL="")
    assert done.returncode == 0
    assert "2 passed, 1 skipped" in done.stdout
    assert "needs nginx (Debian: apt-get install nginx-light)" in done.stdout
    assert "nginx: 1 test. Debian: apt-get install nginx-light\n" in done.stdout


def test_missing_need_with_require_all_fails_the_test(no_nginx: Path) -> None:
    done = run_pytest(no_nginx, NEEDY, "-p", "nowhere", REQUIRE_ALL="1")
    assert done.returncode == 1
    assert "2 passed, 1 error" in done.stdout
    assert "REQUIRE_ALL=1, and this test needs nginx (Debian" in done.stdout
    assert "nginx: 1 test. Debian: apt-get install nginx-light\n" in done.stdout


def test_unknown_need_is_an_error(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, NEEDY.replace("nginx", "ngnix"))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs ['ngnix'], which tests/support/needs.py lacks" in done.stderr


def test_executable_returns_the_path_of_a_need(no_nginx: Path) -> None:
    assert executable("node") == no_nginx / "programs" / "node"
    assert NEEDS["chromium"].find() is None
    with pytest.raises(AssertionError, match="chromium is missing"):
        executable("chromium")


def test_matrix_tests_run_only_with_option(tmp_path: Path) -> None:
    tests = "import pytest\n\n@pytest.mark.matrix\ndef test_all(): pass\n\ndef test_one(): pass\n"
    assert "1 passed, 1 deselected" in run_pytest(tmp_path, tests).stdout
    assert "2 passed" in run_pytest(tmp_path, tests, "--matrix").stdout


# Environments


def test_environment_is_reused_until_its_contents_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.environments.FOLDER", tmp_path)
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        commands.append(command)
        (tmp_path / "some" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "some" / "bin" / "python").touch()

    monkeypatch.setattr("support.environments._run", run)
    python = environment("some", ["a==1"])
    assert python == tmp_path / "some" / "bin" / "python"
    assert environment("some", ["a==1"]) == python
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert commands[1][-1] == "a==1"
    environment("some", ["a==2"])
    environment("some", ["a==2"], editable=tmp_path)
    assert len(commands) == 6
    assert commands[-1][-3:] == ("a==2", "--editable", str(tmp_path))


def test_environment_after_failed_install_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.environments.FOLDER", tmp_path)
    attempts: list[str] = []

    def run(*command: str) -> None:
        (tmp_path / "some" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "some" / "bin" / "python").touch()
        attempts.append(command[2])
        if attempts == ["venv", "pip"]:
            raise RuntimeError("planted")

    monkeypatch.setattr("support.environments._run", run)
    with pytest.raises(RuntimeError, match="planted"):
        environment("some", [])
    environment("some", [])
    assert attempts == ["venv", "pip", "venv", "pip"]


# The real server


def send(server: MLflowServer, body: bytes, **headers: str) -> int:
    """POST an OTLP request and return the status."""
    request = urllib.request.Request(
        f"{server.uri}/v1/traces", body, {"Content-Type": "application/x-protobuf", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_mlflow_server_stores_traces(mlflow_server: MLflowServer) -> None:
    experiment_id = mlflow_server.create_experiment("harness")
    stored = mlflow_server.experiment("harness")
    assert stored is not None
    assert stored["experiment_id"] == experiment_id
    assert mlflow_server.experiment("no such") is None
    trace_id = os.urandom(16)
    assert mlflow_server.trace(trace_id.hex()) is None
    before = mlflow_server.count_requests()

    assert send(mlflow_server, export("agent", trace_id), **{"x-mlflow-experiment-id": experiment_id}) == 200

    assert mlflow_server.count_requests() - before == 1
    trace = mlflow_server.wait_for_trace(trace_id.hex(), until=lambda trace: trace["spans"])
    assert trace["trace_info"]["state"] == "OK"
    assert [span["name"] for span in trace["spans"]] == ["agent"]
    assert base64.b64decode(trace["spans"][0]["trace_id"]) == trace_id
    (info,) = mlflow_server.search_traces(experiment_id)
    assert info["trace_id"] == f"tr-{trace_id.hex()}"
    assert send(mlflow_server, b"garbage", **{"x-mlflow-experiment-id": experiment_id}) == 400
    assert mlflow_server.statuses()[-2:] == [200, 400]
    mlflow_server.delete_experiment(experiment_id)
    deleted = mlflow_server.experiment("harness")
    assert deleted is not None
    assert deleted["lifecycle_stage"] == "deleted"


def test_mlflow_server_with_workspaces_separates_them(workspace_server: MLflowServer) -> None:
    experiment = workspace_server.create_experiment("harness", "team-a")
    headers = {"x-mlflow-experiment-id": experiment}
    trace_id = os.urandom(16)
    body = export("agent", trace_id)
    before = workspace_server.count_requests()

    assert send(workspace_server, body, **headers, **{"x-mlflow-workspace": "team-a"}) == 200
    assert send(workspace_server, body, **headers, **{"x-mlflow-workspace": "team-b"}) == 404

    assert workspace_server.count_requests() - before == 2
    trace = workspace_server.wait_for_trace(trace_id.hex(), "team-a")
    assert [span["name"] for span in trace["spans"]] == ["agent"]
    assert workspace_server.trace(trace_id.hex(), "team-b") is None
    assert workspace_server.experiment("harness") is None
    with pytest.raises(RestError, match="not found") as caught:
        workspace_server.search_traces(experiment, "no-such")
    assert caught.value.status == 404
    assert json.loads(caught.value.text)["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_mlflow_server_after_kill_restarts_with_its_data(tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path / "server")
    try:
        trace_id = os.urandom(16)
        assert send(server, export("before", trace_id), **{"x-mlflow-experiment-id": "0"}) == 200
        server.kill()
        with pytest.raises(urllib.error.URLError, match="refused"):
            send(server, b"")
        server.restart()
        trace = server.wait_for_trace(trace_id.hex())
        assert [span["name"] for span in trace["spans"]] == ["before"]
        assert server.count_requests() == 1
    finally:
        server.stop()


def test_mlflow_server_that_does_not_start_raises_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-option"):
        MLflowServer.start(tmp_path, extra=["--no-such-option"])
