"""A gateway behind OpenTelemetry's Collector, with its shipped configuration: tokens, TLS, and while it is away."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from support.certificates import Authority
from support.collector import Collector
from support.gateway import PROTOBUF, GatewayProcess
from support.otlp_bodies import encode_spans
from support.scripted_server import ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

pytestmark = [pytest.mark.needs("go"), pytest.mark.needs("openssl")]
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TEAM_A, TEAM_B = "Bearer secret-of-team-a", "Bearer secret-of-team-b"
GRANTS = {"secret-of-team-a": ["team-a/*"], "secret-of-team-b": ["team-b/*"]}
# More than the 60 s for which the Collector tries.
PATIENT_SECONDS = 100


@contextmanager
def collector_before(
    gateway: GatewayProcess, folder: Path, changes: Mapping[str, Any], **variables: str
) -> Iterator[Collector]:
    # Both would have the same address behind a name.
    resolver = {"dns": None, "static": {"hostnames": [f"127.0.0.1:{gateway.grpc_port}"]}}
    exporters = {"exporters": {"load_balancing/mlflow": {"resolver": resolver}}}
    with Collector(
        folder, "gateway", {"GATEWAY_HOST": "localhost", **variables}, {**exporters, **changes}
    ) as collector:
        yield collector


def start_gateway(folder: Path, url: str, grants: Mapping[str, Any] = GRANTS, *arguments: str) -> GatewayProcess:
    folder.mkdir(exist_ok=True)
    (folder / "tokens.json").write_text(json.dumps(grants))
    options = ["--tokens-file", str(folder / "tokens.json"), *arguments]
    return GatewayProcess(folder, url, options, {"MLFLOW_OTLP_LINGER": "0.1"})


def post(collector: Collector, authorization: str, workspace: str, name: str = "span") -> requests.Response:
    headers = {"content-type": PROTOBUF, "x-mlflow-workspace": workspace, "x-mlflow-experiment-id": "1"}
    if authorization:
        headers["authorization"] = authorization
    body = encode_spans(make_spans(name))
    return requests.post(f"{collector.http}/v1/traces", body, headers=headers, timeout=PATIENT_SECONDS)


def export(collector: Collector, authorization: str, workspace: str, name: str) -> grpc.StatusCode:
    metadata = [("authorization", authorization), ("x-mlflow-workspace", workspace), ("x-mlflow-experiment-id", "1")]
    with grpc.insecure_channel(collector.grpc.removeprefix("http://"), [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(EXPORT)(encode_spans(make_spans(name)), metadata=metadata, timeout=PATIENT_SECONDS)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_token_of_each_client_counts_behind_a_collector_over_tls(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    """The certificate has the name of the gateways, to whose addresses the Collector connects."""
    certificate = (authority := Authority(tmp_path / "ca")).certificate("server", "DNS:localhost")
    tls = ["--certificate-file", str(certificate.file), "--key-file", str(certificate.key)]
    with (
        start_gateway(tmp_path / "gateway", scripted_server.url, GRANTS, *tls) as gateway,
        collector_before(gateway, tmp_path / "collector", {}, GATEWAY_CA_FILE=str(authority.file)) as collector,
    ):
        denied = post(collector, TEAM_B, "team-a", "denied")
        assert denied.status_code == 403
        # By these words, this library recognises the answer of a gateway.
        assert b"the tokens file of the mlflow-otlp gateway does not allow team-a/1 for this token" in denied.content
        assert [post(collector, token, "team-b").status_code for token in (TEAM_B, "", "Bearer x")] == [200, 401, 401]
        assert export(collector, TEAM_B, "team-a", "denied") is grpc.StatusCode.PERMISSION_DENIED
        assert export(collector, TEAM_A, "team-a", "span") is grpc.StatusCode.OK
        spans = [(request.headers["x-mlflow-workspace"], request.spans()) for request in scripted_server.wait_for(2)]
        assert sorted((workspace, span.name) for workspace, group in spans for span in group) == [
            ("team-a", "span"),
            ("team-b", "span"),
        ]
        files = [path.read_bytes() for path in (tmp_path / "collector").rglob("*") if path.is_file()]
        assert not [content for content in files if b"secret" in content]


def test_token_of_the_collector_from_a_file_is_replaced_without_restart(
    scripted_server: ScriptedServer, tmp_path: Path
) -> None:
    """The rotation of docs/gateway.md: the new token is added, the Collector changes to it, the old one is removed."""
    file = tmp_path / "authorization"
    file.write_text("Bearer old")
    headers = [{"action": "upsert", "key": "authorization", "value_file": str(file)}]
    headers += [
        {"action": "upsert", "key": name, "from_context": name}
        for name in ("x-mlflow-workspace", "x-mlflow-experiment-id")
    ]
    changes = {"extensions": {"headers_setter/mlflow": {"headers": headers}}}
    tokens = tmp_path / "gateway" / "tokens.json"
    with (
        start_gateway(tmp_path / "gateway", scripted_server.url, {"old": ["*"]}) as gateway,
        collector_before(gateway, tmp_path / "collector", changes, GATEWAY_INSECURE="true") as collector,
    ):
        assert post(collector, "", "team-a").status_code == 200
        tokens.write_text(json.dumps({"old": ["*"], "new": ["*"]}))
        wait_until(lambda: gateway.post(b"", authorization="Bearer new").status == 200)
        file.write_text("Bearer new")
        tokens.write_text(json.dumps({"new": ["*"]}))
        wait_until(lambda: gateway.post(b"", authorization="Bearer old").status == 401)
        wait_until(lambda: post(collector, "", "team-a").status_code == 200)


@pytest.mark.matrix
def test_collector_retries_while_a_gateway_is_away_for_20_s(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    with (
        start_gateway(tmp_path / "gateway", scripted_server.url) as gateway,
        collector_before(gateway, tmp_path / "collector", {}, GATEWAY_INSECURE="true") as collector,
    ):
        assert post(collector, TEAM_A, "team-a", "before").status_code == 200
        gateway.kill()
        restart = threading.Timer(20, gateway.start)  # at the same port
        restart.start()
        answer = post(collector, TEAM_A, "team-a", "during")
        assert (answer.status_code, restart.finished.is_set()) == (200, True)
        restart.join()
        requests_with_spans = scripted_server.wait_for(2)
        assert sorted(span.name for request in requests_with_spans for span in request.spans()) == ["before", "during"]
