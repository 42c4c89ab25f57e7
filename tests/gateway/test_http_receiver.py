"""OTLP/HTTP of a real gateway process: bodies, answers, limits."""

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest
import uvicorn
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.applications import Starlette

from mlflow_otlp_exporter._internal.gateway import http_receiver
from support.gateway import JSON, PROTOBUF, GatewayProcess
from support.otlp_bodies import encode_spans, to_json
from support.scripted_server import RecordedRequest, ScriptedServer
from support.spans import make_spans

MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose MLflow is away."""
    arguments = ["--max-request-size", str(MAX_BYTES), "--experiment-id", "1", "--max-destinations", "4"]
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), "http://127.0.0.1:1", arguments) as process:
        yield process


@pytest.fixture
def sending_gateway(scripted_server: ScriptedServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    environment = {"MLFLOW_OTLP_LINGER": "0.1"}
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"], environment) as process:
        yield process


def wait_for_spans(server: ScriptedServer, names: Collection[str]) -> dict[str, list[RecordedRequest]]:
    """Wait until spans of all these names have arrived; return the requests with each."""
    count = 1
    while True:
        requests = server.wait_for(count)
        requests_of: dict[str, list[RecordedRequest]] = {}
        for request in requests:
            for span in request.spans():
                requests_of.setdefault(span.name, []).append(request)
        if requests_of.keys() >= set(names):
            return requests_of
        count = len(requests) + 1


COMPRESSIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


def test_export_is_answered_in_encoding_of_request(
    sending_gateway: GatewayProcess, scripted_server: ScriptedServer
) -> None:
    names = []
    for content_type in (PROTOBUF, JSON, f"{JSON}; charset=utf-8", "Application/JSON"):
        for encoding, compress in COMPRESSIONS.items():
            names.append(f"{content_type} {encoding}")
            is_json = content_type != PROTOBUF
            body = encode_spans(make_spans(names[-1]))
            headers = {"content_encoding": encoding} if encoding else {}
            reply = sending_gateway.post(compress(to_json(body) if is_json else body), content_type, **headers)
            assert (reply.status, reply.headers["content-type"]) == (200, JSON if is_json else PROTOBUF)
            assert reply.json == {} if is_json else not ExportTraceServiceResponse.FromString(reply.body).ByteSize()
    requests = wait_for_spans(scripted_server, names)
    assert all(request.headers["x-mlflow-experiment-id"] == "1" for request, *_ in requests.values())


def test_export_without_spans_is_accepted(gateway: GatewayProcess) -> None:
    assert gateway.post(b"").status == 200
    assert gateway.post(b"{}", JSON).json == {}


BOMB = gzip.compress(bytes(50_000_000), mtime=0)


@pytest.mark.parametrize(
    ("status", "body", "headers", "message"),
    [
        (400, b"\xff\xff", {}, "not an export request in protobuf"),
        (400, b"{", {"content_type": JSON}, "not an export request in JSON"),
        (400, b"plain", {"content_encoding": "gzip"}, "not compressed as content-encoding says"),
        (400, gzip.compress(b"\x0a\x00", mtime=0)[:-4], {"content_encoding": "gzip"}, "incomplete"),
        (400, gzip.compress(b"\x0a\x00", mtime=0) + b"more", {"content_encoding": "gzip"}, "follows"),
        (400, b"", {"x_mlflow_workspace": "Not A Workspace"}, "header x-mlflow-workspace: expected 2 to 63"),
        (400, b"", {"x_mlflow_experiment_id": "name"}, "header x-mlflow-experiment-id: expected the number"),
        (413, bytes(MAX_BYTES + 1), {}, "expected at most 100000 bytes"),
        (413, BOMB, {"content_encoding": "gzip"}, "expected at most 100000 bytes"),
        (413, zlib.compress(bytes(MAX_BYTES + 1)), {"content_encoding": "deflate"}, "expected at most 100000 bytes"),
        (415, b"", {"content_type": "text/plain"}, "expected content-type"),
        (415, b"", {"content_type": ""}, "expected content-type"),
        (415, b"", {"content_encoding": "zstd"}, "expected content-encoding gzip, deflate or identity"),
    ],
)
def test_export_of_bad_input_is_answered_with_status(
    gateway: GatewayProcess, status: int, body: bytes, headers: dict[str, str], message: str
) -> None:
    headers = {"content_type": PROTOBUF, **headers}
    reply = gateway.post(body, **headers)
    assert reply.status == status
    if reply.headers["content-type"] == JSON:
        assert message in reply.json["message"]
    else:
        assert message in Status.FromString(reply.body).message
    assert gateway.post(b"").status == 200


def test_export_of_endless_chunked_body_stops_at_limit(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
        for _ in range(MAX_BYTES // 0x1000 + 1):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]


def test_export_of_span_without_ids_is_partial_success(
    sending_gateway: GatewayProcess, scripted_server: ScriptedServer
) -> None:
    message = json.loads(to_json(encode_spans(make_spans("good", "bad"))))
    (scope_spans,) = message["resourceSpans"][0]["scopeSpans"]
    scope_spans["spans"][1]["spanId"] = ""
    reply = sending_gateway.post(json.dumps(message).encode(), JSON)
    error = "1 span dropped: a span without ids, or with malformed ones"
    assert (reply.status, reply.json) == (200, {"partialSuccess": {"rejectedSpans": "1", "errorMessage": error}})
    wait_for_spans(scripted_server, ["good"])


def test_export_goes_to_destination_of_headers_before_resource(
    sending_gateway: GatewayProcess, scripted_server: ScriptedServer
) -> None:
    body = to_json(encode_spans(make_spans("headers", "resource")))
    message = json.loads(body)
    message["resourceSpans"][0]["resource"]["attributes"] += [
        {"key": "mlflow.experiment_id", "value": {"stringValue": "8"}},
        {"key": "mlflow.workspace", "value": {"stringValue": "team-b"}},
    ]
    spans = message["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for number, headers in enumerate([{"x_mlflow_experiment_id": "7", "x_mlflow_workspace": "team-a"}, {}]):
        # An attribute of a span must not lead it elsewhere.
        spans[number]["attributes"].append({"key": "mlflow.experiment_id", "value": {"stringValue": "9"}})
        message["resourceSpans"][0]["scopeSpans"][0]["spans"] = [spans[number]]
        assert sending_gateway.post(json.dumps(message).encode(), JSON, **headers).status == 200
    requests = wait_for_spans(scripted_server, ["headers", "resource"])
    names = ("x-mlflow-experiment-id", "x-mlflow-workspace")
    destinations = {name: [request.headers[header] for header in names] for name, (request, *_) in requests.items()}
    assert destinations == {"headers": ["7", "team-a"], "resource": ["8", "team-b"]}
    for request in scripted_server.to("/v1/traces"):  # MLflow would store a tag of each attribute
        assert b"mlflow.workspace" not in request.content
        assert b"mlflow.experiment_id" not in request.content


def test_export_beyond_number_of_destinations_is_rejected(gateway: GatewayProcess) -> None:
    replies = [
        gateway.post(to_json(encode_spans(make_spans("many"))), JSON, x_mlflow_experiment_id=str(number))
        for number in range(20, 26)
    ]
    assert "more than 4 destinations" in replies[-1].json["partialSuccess"]["errorMessage"]
    assert replies[-1].json["partialSuccess"]["rejectedSpans"] == "1"


def test_export_sent_again_is_accepted_and_not_sent_again(
    sending_gateway: GatewayProcess, scripted_server: ScriptedServer
) -> None:
    body = encode_spans(make_spans("twice"))
    assert [sending_gateway.post(body).status for _ in range(3)] == [200, 200, 200]
    sending_gateway.post(encode_spans(make_spans("after")))
    assert len(wait_for_spans(scripted_server, ["twice", "after"])["twice"]) == 1


def test_other_paths_and_methods_are_not_served(gateway: GatewayProcess) -> None:
    assert gateway.request("POST", "/v1/metrics", b"").status == 404
    assert gateway.request("GET", "/v1/traces").status == 405
    assert gateway.request("GET", "/healthz").status == 200
    assert gateway.request("GET", "/readyz").status == 200
    assert gateway.request("GET", "/healthz").headers["server"].startswith("mlflow-otlp-gateway/")


def test_destination_in_utf8_is_read(gateway: GatewayProcess) -> None:
    lines = ["POST /v1/traces HTTP/1.1", "host: x", f"content-type: {JSON}", "content-length: 2"]
    head = "\r\n".join([*lines, "x-mlflow-experiment: Übung", "connection: close", "", "{}"])
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_other_path_is_not_found_instead_of_redirected(gateway: GatewayProcess) -> None:
    assert gateway.request("POST", "/v1/traces/", b"{}", {"content-type": JSON}).status == 404


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET"]
)
def test_connection_that_sends_no_whole_head_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_receiver, "_HEAD_SECONDS", 0.05)

    async def read_until_closed() -> bytes:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(sent)
        content = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return content

    async def run() -> bytes:
        config = uvicorn.Config(Starlette(), http=http_receiver.HttpProtocol, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        content = await read_until_closed()
        server.should_exit = True
        await serving
        return content

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(run()).count(b"HTTP/1.1 404") == sent.count(b"\r\n\r\n")
