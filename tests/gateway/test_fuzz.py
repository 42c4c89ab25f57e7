"""Mutated requests to both receivers: no crash, bounded memory, and an error of the client for what is malformed."""

import gzip
import http.client
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from mlflow_otlp_exporter._internal.encoding.span_decoder import parse_json, parse_protobuf
from support.gateway import JSON, PROTOBUF, GatewayProcess, open_grpc_channel
from support.otlp_bodies import to_json
from support.recordings import cases
from support.scripted_server import ScriptedServer

MAX_BODY_BYTES, MAX_MEMORY_KILOBYTES = 20_000, 400_000


def small_bodies() -> list[bytes]:
    bodies = [path.read_bytes() for path in cases().values()]
    return [body for body in bodies if len(body) <= MAX_BODY_BYTES]


def mutate(source: random.Random, body: bytes) -> bytes:
    """Change bytes, cut, repeat, remove or insert pieces, a few times."""
    content = bytearray(body)
    for _ in range(source.choice([1, 1, 2, 5, 20])):
        position, length = source.randrange(len(content) + 1), source.choice([1, 1, 2, 8, 100])
        match source.randrange(6):
            case 0:
                content[position : position + length] = source.randbytes(length)
            case 1:
                content = content[:position]
            case 2:
                content[position:position] = content[position : position + length] * source.choice([1, 3, 50])
            case 3:
                del content[position : position + length]
            case 4:
                content[position : position + 1] = source.choice(
                    [b"\x00", b"\xff", b"\x80\x80\x80\x80\x80", b'"', b"["]
                )
            case _:
                content[position : position + 1] = bytes(
                    byte ^ 1 << source.randrange(8) for byte in content[position : position + 1]
                )
    return bytes(content)


class HttpClient:
    def __init__(self, port: int) -> None:
        self._port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        for _ in range(2):
            with suppress(http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.connection.request("POST", "/v1/traces", body, headers)
                answer = self.connection.getresponse()
                answer.read()
                return answer.status
            self.connection.close()  # the gateway closes connections whose requests it does not read to the end
            self.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        raise AssertionError("no answer")


@pytest.fixture
def gateway(scripted_server: ScriptedServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    environment = {"MLFLOW_OTLP_LINGER": "0.1", "MLFLOW_OTLP_HOLD": "2"}
    with GatewayProcess(tmp_path, scripted_server.url, ["--experiment-id", "1"], environment) as process:
        yield process


def is_malformed(body: bytes, *, is_json: bool) -> bool:
    try:
        (parse_json if is_json else parse_protobuf)(body)
    except ValueError:
        return True
    return False


def fuzz(gateway: GatewayProcess, count: int) -> Counter[str]:
    """Send mutated requests of all kinds; return how many had which answer."""
    source, bodies, answers = random.Random(count), small_bodies(), Counter[str]()
    client = HttpClient(gateway.port)
    with open_grpc_channel(gateway) as export:
        for number in range(count):
            kind = ("protobuf", "json", "gzip", "grpc")[number % 4]
            body = source.choice(bodies)
            mutated = mutate(source, to_json(body) if kind == "json" else body)
            malformed = is_malformed(mutated, is_json=kind == "json")
            if kind == "grpc":
                code = grpc.StatusCode.OK
                try:
                    export(mutated, timeout=60)
                except grpc.RpcError as error:
                    code = error.code()
                assert code in ((grpc.StatusCode.INVALID_ARGUMENT,) if malformed else (grpc.StatusCode.OK,)), mutated
                answers[f"grpc {code.name}"] += 1
                continue
            headers = {"content-type": JSON if kind == "json" else PROTOBUF}
            if kind == "gzip":
                mutated, headers["content-encoding"] = mutate(source, gzip.compress(mutated, 1)), "gzip"
                malformed = True
            status = client.post(mutated, headers)
            expected = (200, 400, 413) if kind == "gzip" else (400,) if malformed else (200,)
            assert status in expected, (kind, status, mutated)
            answers[f"{kind} {status}"] += 1
    client.connection.close()
    return answers


def check_gateway(gateway: GatewayProcess) -> None:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    peak_kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak_kilobytes < MAX_MEMORY_KILOBYTES
    assert gateway.stop() == 0
    assert not [line for line in gateway.log if "exception" in line or "Internal error" in line["message"]]


def test_fuzzed_requests_get_an_answer_of_their_kind(gateway: GatewayProcess) -> None:
    answers = fuzz(gateway, 2_000)
    for kind, accepted, malformed in (("protobuf", 200, 400), ("json", 200, 400), ("grpc", "OK", "INVALID_ARGUMENT")):
        assert min(answers[f"{kind} {accepted}"], answers[f"{kind} {malformed}"]) > 50
    check_gateway(gateway)


@pytest.mark.matrix
def test_many_fuzzed_requests_get_an_answer_of_their_kind(gateway: GatewayProcess) -> None:
    assert fuzz(gateway, 50_000).total() == 50_000
    check_gateway(gateway)
