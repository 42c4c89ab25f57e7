"""The process of the gateway: tokens, TLS, metrics, full buffers, ends."""

import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from mlflow_otlp_exporter._internal.gateway.intake import Intake
from mlflow_otlp_exporter._internal.gateway.metrics import GatewayMetrics
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool import storage
from support.certificates import Authority, Certificate
from support.gateway import JSON, GatewayProcess, open_grpc_channel
from support.otlp_bodies import encode_spans, to_json
from support.scripted_server import TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

AWAY = "http://127.0.0.1:1"


def post_span(gateway: GatewayProcess, name: str = "span", **headers: str) -> int:
    return gateway.post(encode_spans(make_spans(name)), **headers).status


def run_gateway(*arguments: str) -> str:
    """Run a gateway that cannot start; return its output."""
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "gateway", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_gateway_with_tokens_takes_what_each_may_write(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"secret-a": ["team-a/*"], "secret-b": ["team-b/*", "/1"]}))
    arguments = ["--tokens-file", str(file), "--experiment-id", "1"]
    with GatewayProcess(tmp_path, scripted_server.url, arguments) as gateway:
        team_a = {"authorization": "Bearer secret-a", "x_mlflow_workspace": "team-a", "x_mlflow_experiment_id": "3"}
        assert post_span(gateway, "a", **team_a) == 200
        assert post_span(gateway, "b", authorization="Bearer secret-b") == 200
        denied = gateway.post(to_json(encode_spans(make_spans("denied"))), JSON, authorization="Bearer secret-a")
        assert (denied.status, denied.json["code"]) == (403, 7)
        reason = "the tokens file of the mlflow-otlp gateway does not allow /1 for this token"
        assert denied.json["message"] == f"1 span dropped: {reason}"
        for headers in ({}, {"authorization": "Bearer wrong-secret"}):
            unknown = gateway.post(b"", **headers)
            assert (unknown.status, unknown.headers["www-authenticate"]) == (401, "Bearer")
        assert gateway.request("GET", "/healthz").status == 200
        assert gateway.metrics()['mlflow_otlp_gateway_span_rejected_total{reason="denied"}'] == 1
        assert gateway.stop() == 0
        assert "secret" not in gateway.log_path.read_text()
        missing = "expected the header `authorization: Bearer <token>` with a token of the mlflow-otlp gateway"
        rejected = [line["message"] for line in gateway.log if line["message"].startswith("Rejected ")]
        assert rejected == [  # one line a minute for each kind
            f"Rejected 1 request with {status} over http, the last one from 127.0.0.1: {message}"
            for status, message in ((403, f"1 span dropped: {reason} [MLO-421]"), (401, f"{missing} [MLO-304]"))
        ]
    requests = scripted_server.to(TRACES_PATH)
    assert sorted(span.name for request in requests for span in request.spans()) == ["a", "b"]
    # A client's credential goes no further.
    assert not [request for request in requests if "authorization" in request.headers]


def test_gateway_logs_that_it_denied_a_part_of_a_request(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"secret-a": ["team-a/*"]}))
    message = json.loads(to_json(encode_spans(make_spans("a"))))
    other = json.loads(to_json(encode_spans(make_spans("b"))))
    message["resourceSpans"] += other["resourceSpans"]
    for resource_spans, workspace in zip(message["resourceSpans"], ("team-a", "team-b"), strict=True):
        attribute = {"key": "mlflow.workspace", "value": {"stringValue": workspace}}
        resource_spans["resource"]["attributes"].append(attribute)
    arguments = ["--tokens-file", str(file), "--experiment", "agents"]
    with GatewayProcess(tmp_path, scripted_server.url, arguments) as gateway:
        replies = [gateway.post(json.dumps(message).encode(), JSON, authorization="Bearer secret-a") for _ in range(2)]
        reason = "the tokens file of the mlflow-otlp gateway does not allow team-b/agents for this token"
        assert [reply.status for reply in replies] == [200, 200]
        assert replies[0].json["partialSuccess"]["errorMessage"] == f"1 span dropped: {reason}"
        assert gateway.metrics()['mlflow_otlp_gateway_span_rejected_total{reason="denied"}'] == 2
        gateway.stop()
        logged = [line["message"] for line in gateway.log if line["message"].endswith("[MLO-421]")]
    start = "Dropped spans of 1 request over http, the last one from 127.0.0.1:"
    assert logged == [f"{start} 1 span dropped: {reason} [MLO-421]"]  # one line a minute


def test_gateway_with_denied_tenant_sends_spans_of_others(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    scripted_server.answer_with(
        TRACES_PATH, lambda request: Answer(403 if request.headers["x-mlflow-experiment-id"] == "1" else 200)
    )
    with GatewayProcess(tmp_path, scripted_server.url, environment={"MLFLOW_OTLP_LINGER": "0.1"}) as gateway:
        for number in range(5):
            assert post_span(gateway, "denied", x_mlflow_experiment_id="1") == 200
            assert post_span(gateway, f"other {number}", x_mlflow_experiment_id="2") == 200
            while True:
                requests = scripted_server.wait_for(1)
                names = [span.name for request in requests for span in request.spans()]
                if f"other {number}" in names:
                    break
                scripted_server.wait_for(len(requests) + 1)
        assert gateway.stop() == 0
        assert "5 spooled, 0 dropped" in gateway.log[-1]["message"]


def has_queued_spans(gateway: GatewayProcess, count: int) -> bool:
    return gateway.metrics()["mlflow_otlp_queue_spans"] == count


def test_gateway_with_full_buffer_answers_unavailable_until_spans_are_sent(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    scripted_server.answer(then=Answer(503))
    environment = {"MLFLOW_OTLP_BUFFER_SPANS": "10", "MLFLOW_OTLP_SPOOL": "false", "MLFLOW_OTLP_DURABILITY": "request"}
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"], environment) as gateway:
        for number in range(10):
            assert post_span(gateway, f"span {number}") == 200
            # While spans are handed over to the exporter, the two counts are not read at the same instant.
            wait_until(partial(has_queued_spans, gateway, number + 1))
        assert [post_span(gateway, "one more") for _ in range(2)] == [503, 503]
        full = gateway.post(to_json(encode_spans(make_spans("full"))), JSON)
        assert (full.status, full.headers["retry-after"], full.json["code"]) == (503, "5", 14)
        assert full.json["message"] == "the buffer is full"
        ready = gateway.request("GET", "/readyz")
        assert (ready.status, ready.body) == (503, b"the buffer is full")
        assert gateway.request("GET", "/healthz").status == 200
        wait_until(partial(has_queued_spans, gateway, 10))
        scripted_server.answer(then=Answer(200))
        while gateway.request("GET", "/readyz").status != 200:
            pass
        assert post_span(gateway, "again") == 200
        rejected = [line["message"] for line in gateway.log if line["message"].startswith("Rejected ")]
        rejected_first = (
            "Rejected 1 request with 503 over http, the last one from 127.0.0.1: the buffer is full [MLO-607]"
        )
        assert rejected == [rejected_first]  # the others are within a minute


def test_gateway_with_full_spool_answers_unavailable(tmp_path: Path) -> None:
    environment = {"MLFLOW_OTLP_SPOOL_MAX_BYTES": "100000", "MLFLOW_OTLP_LINGER": "0.1"}
    with GatewayProcess(tmp_path, AWAY, ["--experiment-id", "1"], environment) as gateway:
        statuses, metrics = set[int](), gateway.metrics()
        # Spans in memory count until they are on the disk, where they take less.
        while metrics["mlflow_otlp_spool_size_bytes"] < 50_000:
            answer = gateway.post(to_json(encode_spans(make_spans("x" * 500))), JSON)
            statuses.add(answer.status)
            if answer.status == 503:
                assert answer.json["message"] == "the spool is full"
                metrics = gateway.metrics()
        assert statuses == {200, 503}
        metrics = gateway.metrics()
        assert not [name for name in metrics if name.startswith("mlflow_otlp_span_dropped_total")]
        assert gateway.stop() == 0
        assert " 0 dropped" in gateway.log[-1]["message"]


def test_intake_with_nearly_all_files_of_the_spool_takes_no_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small traces reach the limit of files before that of bytes."""
    monkeypatch.setattr(storage, "MAX_FILES", 3)
    exporter = MLflowSpanExporter(AWAY, experiment_id=1, spool=True, spool_dir=tmp_path, timeout=1)
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    intake = Intake(pipeline, None, 10)
    reasons = []
    for number in range(3):
        exporter.export(make_spans(f"span {number}"))
        assert exporter.force_flush(10_000)
        reasons.append(intake.unavailable_reason)
    assert reasons == ["", "", "the spool is full"]
    assert exporter.stats().dropped == 0
    intake.close(1)


def test_gateway_whose_journal_cannot_be_written_answers_unavailable(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, AWAY, ["--experiment-id", "1"]) as gateway:
        (tmp_path / "spool").mkdir(exist_ok=True)
        (tmp_path / "spool").chmod(0o500)
        for path in (tmp_path / "spool").iterdir():
            path.chmod(0o500)
        (tmp_path / "spool").rename(tmp_path / "moved")
        (tmp_path / "spool").write_text("a file")
        answer = gateway.post(to_json(encode_spans(make_spans("span"))), JSON)
        assert (answer.status, answer.json["message"]) == (503, "the journal cannot be written")


def test_metrics_count_requests_spans_and_durations(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    environment = {"MLFLOW_OTLP_LINGER": "0.1"}
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment", "bots"], environment) as gateway:
        body = encode_spans(make_spans("one", "two"))
        assert [gateway.post(body).status, gateway.post(body).status, gateway.post(b"\xff").status] == [200, 200, 400]
        assert post_span(gateway, x_mlflow_experiment_id="7") == 200
        metrics = gateway.metrics()
        while metrics["mlflow_otlp_span_delivered_total"] < 1:
            metrics = gateway.metrics()
        expected = {
            'request_answered_total{protocol="http",status="200"}': 3,
            'request_answered_total{protocol="http",status="400"}': 1,
            'span_received_total{destination="/bots"}': 2,
            'span_received_total{destination="/7"}': 1,
            "span_duplicate_total": 2,
            "ready": 1,
        }
        assert {name: metrics[f"mlflow_otlp_gateway_{name}"] for name in expected} == expected
        durations = [name for name in metrics if name.startswith("otel_sdk_exporter_operation_duration_seconds_count")]
        assert any('destination="/7"' in name for name in durations)


def test_request_durations_have_a_bounded_number_of_destinations() -> None:
    metrics = GatewayMetrics()
    names = [metrics.name_destination(Destination(experiment_id=str(number))) for number in range(1000)]
    assert names == [*(f"/{number}" for number in range(100)), *["other"] * 900]
    assert metrics.name_destination(Destination(experiment_id="7")) == "/7"


def make_context(authority: Authority, *arguments: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if arguments:
        context.load_cert_chain(*map(str, arguments))
    return context


@pytest.mark.needs("openssl")
def test_gateway_with_tls_and_client_ca_takes_clients_with_certificate_only(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server, client = authority.certificate("server"), authority.certificate("client")
    arguments = ["--experiment-id", "1", "--certificate-file", str(server.file), "--key-file", str(server.key)]
    arguments += ["--client-ca-file", str(authority.file)]
    gateway = GatewayProcess(tmp_path, AWAY, arguments, tls=make_context(authority, client.file, client.key))
    with gateway:
        assert post_span(gateway) == 200
        # Probes of Kubernetes and Prometheus have no certificate.
        gateway.tls = make_context(authority)
        assert [gateway.request("GET", path).status for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        denied = gateway.post(to_json(encode_spans(make_spans("span"))), JSON)
        assert (denied.status, denied.json["message"]) == (403, "expected an SSL certificate of the client")
        other = Authority(tmp_path / "other").certificate("client")
        gateway.tls = make_context(authority, other.file, other.key)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            gateway.request("GET", "/healthz")
        assert gateway.stop() == 0
        assert [line["logger"] for line in gateway.log if "Rejected" in line["message"]] == ["mlflow_otlp_exporter"]


@pytest.mark.needs("openssl")
def test_log_has_lines_of_json_only_also_for_clients_that_speak_no_tls(tmp_path: Path) -> None:
    """gRPC wrote lines of its own about failed handshakes, which no JSON parser reads."""
    server = Authority(tmp_path / "ca").certificate("server")
    arguments = ["--experiment-id", "1", "--certificate-file", str(server.file), "--key-file", str(server.key)]
    with GatewayProcess(tmp_path, AWAY, arguments) as gateway:
        for port in (gateway.port, gateway.grpc_port):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                with suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
        assert gateway.stop() == 0
        assert {line["logger"] for line in gateway.log} == {"mlflow_otlp_exporter"}


def read_certificate(gateway: GatewayProcess, authority: Authority) -> bytes:
    """Return the certificate of a new connection."""
    return ssl.PEM_cert_to_DER_cert(
        ssl.get_server_certificate(("127.0.0.1", gateway.port), ca_certs=str(authority.file), timeout=10)
    )


@pytest.mark.needs("openssl")
def test_certificate_that_is_replaced_is_used_without_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    first, second = authority.certificate("first"), authority.certificate("second")
    file, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    file.write_bytes(first.file.read_bytes())
    key.write_bytes(first.key.read_bytes())
    arguments = ["--experiment-id", "1", "--certificate-file", str(file), "--key-file", str(key)]
    root = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with GatewayProcess(tmp_path, AWAY, arguments, tls=make_context(authority)) as gateway:
        assert read_certificate(gateway, authority) == ssl.PEM_cert_to_DER_cert(first.file.read_text())
        file.write_bytes(second.file.read_bytes())  # the key is still that of the first one
        wait_until(lambda: post_span(gateway) == 200 and "stay valid" in gateway.log_path.read_text())
        assert read_certificate(gateway, authority) == ssl.PEM_cert_to_DER_cert(first.file.read_text())
        key.write_bytes(second.key.read_bytes())
        expected = ssl.PEM_cert_to_DER_cert(second.file.read_text())
        wait_until(lambda: read_certificate(gateway, authority) == expected)
        assert post_span(gateway) == 200
        with open_grpc_channel(gateway, root) as export:
            assert not export(b"", timeout=20).ByteSize()
        assert gateway.stop() == 0
        assert gateway.log_path.read_text().count("stay valid") == 1
        assert "Certificates in " in gateway.log_path.read_text()


@pytest.mark.needs("openssl")
def test_client_ca_that_is_replaced_applies_to_new_connections(tmp_path: Path) -> None:
    """Over both protocols: a client of the previous CA is rejected."""
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    server, client, next_client = authority.certificate("server"), authority.certificate("a"), other.certificate("b")
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(authority.file.read_bytes())
    arguments = ["--experiment-id", "1", "--certificate-file", str(server.file), "--key-file", str(server.key)]
    arguments += ["--client-ca-file", str(client_ca)]

    def is_accepted(certificate: Certificate) -> bool:
        gateway.tls = make_context(authority, certificate.file, certificate.key)
        credentials = grpc.ssl_channel_credentials(
            authority.file.read_bytes(), certificate.key.read_bytes(), certificate.file.read_bytes()
        )
        try:
            over_http = post_span(gateway) == 200
        except (ssl.SSLError, ConnectionError):
            over_http = False
        try:
            with open_grpc_channel(gateway, credentials) as export:
                export(b"", timeout=20)
        except grpc.RpcError:
            return False
        return over_http

    with GatewayProcess(tmp_path, AWAY, arguments) as gateway:
        assert is_accepted(client)
        assert not is_accepted(next_client)
        client_ca.write_bytes(other.file.read_bytes())
        wait_until(lambda: is_accepted(next_client))
        assert not is_accepted(client)


@pytest.mark.needs("openssl")
def test_gateway_with_certificate_of_another_key_ends_with_2(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server, other = authority.certificate("server"), authority.certificate("other")
    arguments: tuple[str, ...] = (
        "--listen",
        "127.0.0.1:0",
        "--certificate-file",
        str(server.file),
        "--key-file",
        str(other.key),
    )
    assert f"{server.file} is not usable: the key is not that of the certificate" in run_gateway(*arguments)
    arguments = ("--listen", "127.0.0.1:0", "--certificate-file", str(server.file))
    assert f"{server.file} is not usable: its private key is missing: set gateway_key_file" in run_gateway(*arguments)
    (tmp_path / "text.pem").write_text("-----BEGIN PRIVATE KEY-----")
    arguments = ("--listen", "127.0.0.1:0", "--certificate-file", str(tmp_path / "text.pem"))
    assert "not in PEM format, or damaged" in run_gateway(*arguments)


def test_gateway_at_sigterm_finishes_requests_and_ends_with_0(tmp_path: Path) -> None:
    """A request whose body is on its way is answered; a client that sends nothing holds the end up for 5 s only."""
    with GatewayProcess(tmp_path, AWAY, ["--experiment-id", "1"]) as gateway:
        body = to_json(encode_spans(make_spans("span")))
        lines = ["POST /v1/traces HTTP/1.1", "Host: x", f"Content-Type: {JSON}", f"Content-Length: {len(body)}", "", ""]
        with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
            connection.sendall("\r\n".join(lines).encode())
            assert gateway.request("GET", "/healthz").status == 200  # the head has been read
            gateway.process.terminate()
            connection.sendall(body)
            assert b" 200 " in connection.recv(4096).partition(b"\r\n")[0]
        assert gateway.process.wait(30) == 0
        assert "0 spans delivered, 1 spooled, 0 dropped" in gateway.log[-1]["message"]


def test_gateway_with_repeated_signals_keeps_spans(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    release = threading.Event()
    scripted_server.answer(Answer(hold=release))
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"]) as gateway:
        try:
            assert post_span(gateway) == 200
            scripted_server.wait_for(1)
            signals = itertools.cycle([signal.SIGTERM, signal.SIGINT])
            while gateway.process.poll() is None:
                gateway.process.send_signal(next(signals))
                with suppress(subprocess.TimeoutExpired):
                    gateway.process.wait(0.2)
        finally:
            release.set()
        assert gateway.process.returncode == 0, gateway.log_path.read_text()
        assert "0 spans delivered, 1 spooled, 0 dropped" in gateway.log[-1]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "4318"], "argument gateway_listen= is '4318': expected host:port"),
        (["--listen", "127.0.0.1:99999"], "expected host:port"),
        (["--tokens-file", "/nowhere/tokens.json"], "/nowhere/tokens.json is not usable: No such file"),
        (["--key-file", __file__], "TLS settings need gateway_certificate_file"),
        (["--max-request-size", "0"], "expected a whole number above 0"),
        (["--forward-authorization", "maybe"], "argument gateway_forward_authorization= is 'maybe'"),
    ],
)
def test_gateway_with_wrong_setting_ends_with_2(arguments: Sequence[str], message: str) -> None:
    assert message in run_gateway("--listen", "127.0.0.1:0", *arguments)


def test_gateway_that_forwards_credentials_takes_no_tokens_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text('{"secret": ["/*"]}')
    arguments = ("--listen", "127.0.0.1:0", "--tokens-file", str(file), "--forward-authorization")
    assert "exclude each other" in run_gateway(*arguments)


def test_gateway_at_used_address_ends_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}: " in run_gateway("--listen", f"127.0.0.1:{port}")


def test_gateway_without_extra_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['starlette'] = None\n"
        "from mlflow_otlp_exporter._internal.cli.main import main; sys.exit(main(['gateway']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "install mlflow-otlp-exporter[gateway]" in done.stderr


def test_package_without_gateway_imports_nothing_of_it() -> None:
    code = (
        "import sys; import mlflow_otlp_exporter, mlflow_otlp_exporter.testing\n"
        "from mlflow_otlp_exporter._internal.cli import main\n"
        "names = ('starlette', 'uvicorn', 'grpc', 'prometheus_client', 'anyio')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_recognises_gateway(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"]) as gateway:
        endpoint = f"http://127.0.0.1:{gateway.port}/v1/traces"
        command = [sys.executable, "-m", "mlflow_otlp_exporter", "doctor", "--endpoint", endpoint]
        variables = {**os.environ, "MLFLOW_EXPERIMENT_NAME": "support"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert ", a gateway" in done.stdout
    assert "'support' (environment variable MLFLOW_EXPERIMENT_NAME), looked up by the receiver" in done.stdout
    assert "cannot be looked up" not in done.stdout
    assert "requires no experiment" in done.stdout
    assert "was accepted" in done.stdout
    # The trace may be on the gateway's disk only.
    assert "It works" not in done.stdout
    assert "Whether they reach MLflow is unknown: see `read back` above." in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gateway_signal_before_serving_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    # Both ports are open and logged at this moment, but asyncio does not handle signals yet.
    code = (
        "import asyncio, os, sys\n"
        f"asyncio.run = lambda serving: (serving.close(), os.kill(os.getpid(), {int(number)}))\n"
        "from mlflow_otlp_exporter._internal.cli.main import main\n"
        "sys.exit(main(['gateway', '--listen', '127.0.0.1:0', '--grpc-listen', '127.0.0.1:0']))"
    )
    variables = {**os.environ, "MLFLOW_TRACKING_URI": AWAY, "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Gateway ended: 0 spans delivered" in done.stderr


def test_gateway_open_to_all_without_tokens_warns(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, AWAY, ["--listen", "0.0.0.0:0"]) as gateway:
        assert any("may write to every destination" in line["message"] for line in gateway.log)
        assert gateway.stop() == 0
