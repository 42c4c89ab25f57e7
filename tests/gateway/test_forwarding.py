"""Clients whose own credential is sent to MLflow, and what is never stored of it."""

from pathlib import Path

import grpc
import pytest

from support.gateway import JSON, GatewayProcess, export_over_grpc
from support.otlp_bodies import encode_spans, to_json
from support.scripted_server import TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans

FORWARD = ["--experiment-id", "1", "--forward-authorization"]
FAST = {"MLFLOW_OTLP_LINGER": "0.1", "MLFLOW_TRACKING_TOKEN": "secret-of-the-gateway"}


def post(gateway: GatewayProcess, name: str, authorization: str) -> int:
    return gateway.post(encode_spans(make_spans(name)), authorization=authorization).status


def read_all(folder: Path) -> bytes:
    """Return the content of all files below a folder, and their names."""
    return b"".join(str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_spans_are_sent_with_the_credential_of_their_client(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    with GatewayProcess(tmp_path, scripted_server.url, FORWARD, FAST) as gateway:
        assert post(gateway, "a", "Bearer secret-a") == 200
        assert post(gateway, "b", "Basic secret-b") == 200
        metadata = [("authorization", "Bearer secret-c")]
        assert not export_over_grpc(gateway, encode_spans(make_spans("c")), metadata).ByteSize()
        while gateway.metrics()["mlflow_otlp_span_delivered_total"] < 3:
            pass
        assert gateway.metrics()['mlflow_otlp_gateway_span_received_total{destination="/1"}'] == 3
        assert gateway.stop() == 0
        assert "3 spans delivered, 0 spooled, 0 dropped" in gateway.log[-1]["message"]
    credentials = {
        span.name: request.headers["authorization"]
        for request in scripted_server.to(TRACES_PATH)
        for span in request.spans()
    }
    assert credentials == {"a": "Bearer secret-a", "b": "Basic secret-b", "c": "Bearer secret-c"}
    assert not [request for request in scripted_server.requests if "secret-of" in str(request.headers)]


def test_request_without_credential_is_unauthenticated(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    """The gateway's own credential must not serve clients that have none."""
    with GatewayProcess(tmp_path, scripted_server.url, FORWARD, FAST) as gateway:
        reply = gateway.post(to_json(encode_spans(make_spans("span"))), JSON)
        expected = "the mlflow-otlp gateway forwards `authorization`, which is missing"
        assert (reply.status, reply.json["message"]) == (401, expected)
        with pytest.raises(grpc.RpcError) as raised:
            export_over_grpc(gateway, encode_spans(make_spans("span")))
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert gateway.stop() == 0
    assert not scripted_server.to(TRACES_PATH)


def test_credential_and_spans_of_clients_are_never_on_disk(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    """Spans that MLflow does not accept until the end are dropped, with a count and a log line."""
    scripted_server.answer(then=Answer(401, "invalid token"))
    with GatewayProcess(tmp_path, scripted_server.url, FORWARD, FAST) as gateway:
        assert post(gateway, "a-private-span", "Bearer secret-a") == 200
        scripted_server.wait_for(1)
        assert gateway.stop() == 0
        assert "0 spans delivered, 0 spooled, 1 dropped" in gateway.log[-1]["message"]
        content = read_all(tmp_path)
    assert b"secret" not in content
    assert b"a-private-span" not in content


def test_clients_with_more_credentials_than_fit_are_unavailable(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    scripted_server.answer(then=Answer(401))
    with GatewayProcess(tmp_path, scripted_server.url, FORWARD, FAST) as gateway:
        statuses = [post(gateway, "span", f"Bearer {number}") for number in range(33)]
        assert statuses == [200] * 32 + [503]
        assert post(gateway, "span", "Bearer 31") == 200
