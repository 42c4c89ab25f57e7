"""OTLP/gRPC of a real gateway process: answers, limits, destinations, tokens."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from support.certificates import Authority
from support.gateway import GatewayProcess, export_over_grpc, open_grpc_channel
from support.otlp_bodies import encode_spans
from support.scripted_server import ScriptedServer
from support.spans import make_spans

AWAY = "http://127.0.0.1:1"
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose MLflow is away."""
    arguments = ["--max-request-size", str(MAX_BYTES), "--experiment-id", "1"]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), AWAY, arguments) as process:
        yield process


def test_export_sends_spans_to_destination_of_metadata(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, scripted_server.url, environment={"MLFLOW_OTLP_LINGER": "0.1"}) as gateway:
        metadata = [("x-mlflow-experiment-id", "7"), ("x-mlflow-workspace", "team-a")]
        response = export_over_grpc(gateway, encode_spans(make_spans("span")), metadata, grpc.Compression.Gzip)
        assert response == ExportTraceServiceResponse()
        (request,) = scripted_server.wait_for(1)
        assert [span.name for span in request.spans()] == ["span"]
        assert (request.headers["x-mlflow-experiment-id"], request.headers["x-mlflow-workspace"]) == ("7", "team-a")
        assert gateway.metrics()['mlflow_otlp_gateway_request_answered_total{protocol="grpc",status="OK"}'] == 1
        assert gateway.stop() == 0


@pytest.mark.parametrize(
    ("code", "body", "metadata", "message"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, b"\xff\xff", [], "not an export request in protobuf"),
        (grpc.StatusCode.INVALID_ARGUMENT, b"", [("x-mlflow-experiment-id", "name")], "header x-mlflow-experiment-id"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, bytes(MAX_BYTES + 1), [], "larger"),
    ],
)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_export_of_bad_input_is_answered_with_status(
    gateway: GatewayProcess,
    code: grpc.StatusCode,
    body: bytes,
    metadata: Sequence[tuple[str, str]],
    message: str,
    compression: grpc.Compression,
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        export_over_grpc(gateway, body, metadata, compression)
    assert raised.value.code() is code
    assert message in raised.value.details()
    assert export_over_grpc(gateway, b"") == ExportTraceServiceResponse()


def test_export_of_decompression_bomb_stops_at_limit(gateway: GatewayProcess) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        export_over_grpc(gateway, bytes(200_000_000), compression=grpc.Compression.Gzip)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    peak_kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak_kilobytes < 200_000
    assert export_over_grpc(gateway, b"") == ExportTraceServiceResponse()


def test_export_with_full_buffer_is_unavailable_with_retry_info(tmp_path: Path) -> None:
    environment = {"MLFLOW_OTLP_BUFFER_SPANS": "1", "MLFLOW_OTLP_SPOOL": "false", "MLFLOW_OTLP_DURABILITY": "request"}
    with GatewayProcess(tmp_path, AWAY, ["--experiment-id", "1"], environment) as gateway:
        export_over_grpc(gateway, encode_spans(make_spans("span")))
        with pytest.raises(grpc.RpcError) as raised:
            export_over_grpc(gateway, encode_spans(make_spans("span")))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    status, retry_info = Status(), RetryInfo()
    status.ParseFromString(dict(raised.value.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (grpc.StatusCode.UNAVAILABLE.value[0], "the buffer is full")
    assert status.details[0].Unpack(retry_info)
    assert retry_info.retry_delay.seconds == 5


def test_export_with_tokens_needs_one_that_allows_the_destination(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"secret": ["team-a/*"]}))
    with GatewayProcess(tmp_path, AWAY, ["--tokens-file", str(file)]) as gateway:
        for code, metadata in (
            (grpc.StatusCode.UNAUTHENTICATED, []),
            (grpc.StatusCode.PERMISSION_DENIED, [("authorization", "Bearer secret")]),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                export_over_grpc(gateway, encode_spans(make_spans("span")), metadata)
            assert raised.value.code() is code
        metadata = [("authorization", "Bearer secret"), ("x-mlflow-workspace", "team-a")]
        assert export_over_grpc(gateway, encode_spans(make_spans("span")), metadata) == ExportTraceServiceResponse()


@pytest.mark.needs("openssl")
def test_export_over_tls_needs_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server, client = authority.certificate("server"), authority.certificate("client")
    arguments = ["--experiment-id", "1", "--certificate-file", str(server.file), "--key-file", str(server.key)]
    arguments += ["--client-ca-file", str(authority.file)]
    root = authority.file.read_bytes()
    with GatewayProcess(tmp_path, AWAY, arguments) as gateway:
        credentials = grpc.ssl_channel_credentials(root, client.key.read_bytes(), client.file.read_bytes())
        with open_grpc_channel(gateway, credentials) as export:
            assert export(b"", timeout=20) == ExportTraceServiceResponse()
        no_certificate = grpc.ssl_channel_credentials(root)
        with open_grpc_channel(gateway, no_certificate) as export, pytest.raises(grpc.RpcError) as raised:
            export(b"", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_gateway_without_grpc_listens_at_http_only(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, AWAY, ["--grpc-listen", "none"]) as gateway:
        assert gateway.grpc_port == 0
        assert gateway.request("GET", "/healthz").status == 200
