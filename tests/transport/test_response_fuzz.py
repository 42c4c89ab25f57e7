"""Answers mutated from all known ones: nothing that reads them raises, is slow, or writes a long or unclean line."""

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from mlflow_otlp_exporter._internal.cli.doctor.checks import CheckResult
from mlflow_otlp_exporter._internal.cli.doctor.local_checks import RecordingLog
from mlflow_otlp_exporter._internal.cli.doctor.server_checks import ServerChecks
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.delivery.clients import Clients, build_clients
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, parse_version
from mlflow_otlp_exporter._internal.mlflow_api.static_prefix import PrefixedRestTransport
from mlflow_otlp_exporter._internal.mlflow_api.trace_metadata import TraceMetadata, diff_metadata
from mlflow_otlp_exporter._internal.mlflow_api.workspace import NamespaceWorkspace
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError
from mlflow_otlp_exporter._internal.transport.response import classify_response, parse_retry_after, server_message

JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}
HTML = {"content-type": "text/html; charset=utf-8"}
PROTOBUF = {"content-type": "application/x-protobuf"}
MAX_SECONDS, MAX_BYTES, MAX_LINE_LENGTH = 0.05, 4_000_000, 1000


def mlflow_json(status: int, content: Any) -> HttpResponse:
    return HttpResponse(status, JSON, json.dumps(content).encode())


def partial_success(rejected: int, message: str) -> HttpResponse:
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    return HttpResponse(200, PROTOBUF, body)


SPAN = {"trace_id": "AAAAAAAAAAAAAAAAAAAAAQ==", "span_id": "AAAAAAAAAAE=", "name": "mlflow-otlp doctor"}
TRACE = {
    "trace_info": {"trace_location": {"mlflow_experiment": {"experiment_id": "7"}}, "state": "OK"},
    "spans": [SPAN],
}
RECORD = {
    "trace_id": "tr-00000000000000000000000000000001",
    "request_time": "2026-11-28T18:00:00.123Z",
    "execution_duration": "1.5s",
    "state": "OK",
    "tags": {"mlflow.traceName": "root"},
    "trace_metadata": {"mlflow.trace.session": '"s-1"'},
}
EXPERIMENT = {
    "experiment_id": "7",
    "name": "bot",
    "lifecycle_stage": "active",
    "artifact_location": "mlflow-artifacts:/7",
}
KNOWN_ANSWERS = [
    HttpResponse(200, PROTOBUF),
    partial_success(1, "span 3 has no name"),
    mlflow_json(200, {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "attribute `x` is too long"}}),
    HttpResponse(200, TEXT, b"3.17.2"),
    mlflow_json(200, {"store_type": "SqlStore", "workspaces_enabled": True}),
    mlflow_json(200, {"experiment": EXPERIMENT}),
    mlflow_json(200, {"experiment": {**EXPERIMENT, "lifecycle_stage": "deleted"}}),
    mlflow_json(200, {"experiment_id": "7"}),
    mlflow_json(200, {"traces": [TRACE]}),
    mlflow_json(200, {"trace": TRACE}),
    mlflow_json(200, {"traces": [RECORD], "next_page_token": ""}),
    mlflow_json(200, {}),
    mlflow_json(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid value 'x' for parameter 'y'"}),
    mlflow_json(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "Experiment(name=bot) already exists."}),
    mlflow_json(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment with id=7 exists"}),
    mlflow_json(403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied for workspace 'team-a'."}),
    mlflow_json(422, {"detail": [{"type": "missing", "loc": ["header", "x-mlflow-experiment-id"], "msg": "Required"}]}),
    mlflow_json(400, {"detail": "Workspace context is required"}),
    mlflow_json(500, {"error": {"code": "INTERNAL_ERROR", "message": "(psycopg2.Error) [SQL: INSERT INTO spans ...]"}}),
    mlflow_json(
        503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "(sqlite3.Error) DETAIL: Key (a)=(b) LINE 1: x"}
    ),
    HttpResponse(500, TEXT, b"upstream connect error or disconnect/reset before headers. reset reason: overflow"),
    HttpResponse(401, HTML, b"You are not authenticated. Please see https://mlflow.org/docs"),
    HttpResponse(403, TEXT, b"Invalid Host header - possible DNS rebinding attack detected"),
    HttpResponse(413, HTML, b"<html><head><title>413 Request Entity Too Large</title></head></html>"),
    HttpResponse(200, HTML, b"<!DOCTYPE html><html><head><title>Sign in</title></head><body></body></html>"),
    HttpResponse(302, {"location": "https://login.example/oauth?client=1"}),
    HttpResponse(429, {**TEXT, "retry-after": "7", "date": "Sat, 28 Nov 2026 18:00:00 GMT", "server": "envoy"}),
    HttpResponse(503, {**TEXT, "retry-after": "Sat, 28 Nov 2026 18:00:00 GMT"}, b"no healthy upstream"),
    HttpResponse(207, {"content-encoding": "gzip", **JSON}, b"\x1f\x8b"),
]
STATUSES = [*range(100, 104), 200, 200, 200, 200, 202, 204, 207, 300, 301, 302, 304, 400, 400, 401, 402, 403, 404, 404]
STATUSES += [
    405,
    407,
    408,
    409,
    413,
    415,
    421,
    422,
    425,
    429,
    431,
    451,
    499,
    *range(500, 509),
    511,
    520,
    525,
    530,
    599,
    999,
]
HOSTILE_TEXTS = [
    "",
    " " * 5000,
    "\x1b[2J\x00\r\n2026 ERROR forged",
    "\ud800",
    "\u2028\u202e",
    "'\"`" * 3000,
    "x" * 50_000,
]
HOSTILE_TEXTS += [
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "0" * 400,
    "[SQL: " * 500,
    "LINE 1" * 500,
    "<title" * 500,
    "é" * 400,
]
HOSTILE_TEXTS += [
    "9999-99-99T99:99:99.9Z",
    "0001-01-01T00:00:00Z",
    "1e99999s",
    "file:///etc/passwd",
    "../../x",
    "%0a" * 200,
]
HOSTILE_VALUES: list[Any] = [None, True, [], {}, [[]], [None], {"": None}, 0, -1, 1e308, 10**400, 5, [5], {"a": 5}]
HOSTILE_BODIES = [
    b"",
    b"[" * 60_000,
    b'{"a":' * 30_000,
    b"\xff\xfe",
    b"{}",
    b"null",
    b"3." + b"1" * 60_000,
    b"1.2.3\n\x1b[0m",
]
HOSTILE_BODIES += [b"\x0a\xff\xff\xff\xff\x0f", b" " * 60_000, b"<html" + b" " * 60_000, b"9" * 60_000, b"'" * 60_000]


def mutate_value(value: Any, source: random.Random) -> Any:
    """Replace a random part of a JSON value."""
    if isinstance(value, dict) and value and source.random() < 0.8:
        key = source.choice(list(value))
        return {**value, key: mutate_value(value[key], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        index = source.randrange(len(value))
        return [*value[:index], mutate_value(value[index], source), *value[index + 1 :]]
    if isinstance(value, str) and source.random() < 0.3:
        return value + source.choice(HOSTILE_TEXTS)
    return source.choice(HOSTILE_TEXTS) if source.random() < 0.5 else source.choice(HOSTILE_VALUES)


def mutate_body(body: bytes, source: random.Random) -> bytes:
    kind = source.randrange(8)
    if kind == 0:
        return source.choice(HOSTILE_BODIES)
    if kind == 1 and body:
        position = source.randrange(len(body))
        return body[:position] + source.randbytes(source.randrange(4)) + body[position + source.randrange(4) :]
    if kind == 2:
        return body[: source.randrange(len(body) + 1)]
    if kind == 3 and source.random() < 0.02:
        return (body or b"x") * (MAX_BYTES // max(1, len(body)))
    if kind >= 4 and body[:1] == b"{":
        content = json.loads(body)
        for _ in range(source.randrange(1, 4)):
            content = mutate_value(content, source)
        return json.dumps(content).encode()
    return body


def mutate(source: random.Random, response: HttpResponse | None = None) -> HttpResponse:
    response = response or source.choice(KNOWN_ANSWERS)
    headers = dict(response.headers)
    if source.random() < 0.3:
        names = ["content-type", "location", "retry-after", "date", "server", "content-encoding"]
        texts = [*HOSTILE_TEXTS, "application/json", "text/html", "text/plain", "application/x-protobuf"]
        headers[source.choice(names)] = source.choice(texts)
    status = source.choice(STATUSES) if source.random() < 0.4 else response.status
    return HttpResponse(status, headers, mutate_body(response.body, source), is_complete=source.random() < 0.95)


# What MLflow answers to each path.
CORRECT = {
    "/version": KNOWN_ANSWERS[3],
    "/api/3.0/mlflow/server-info": KNOWN_ANSWERS[4],
    "/api/2.0/mlflow/experiments/get-by-name": KNOWN_ANSWERS[5],
    "/api/2.0/mlflow/experiments/get": KNOWN_ANSWERS[5],
    "/api/3.0/mlflow/traces/batchGet": KNOWN_ANSWERS[8],
    "/api/3.0/mlflow/traces/get": KNOWN_ANSWERS[9],
    "/api/3.0/mlflow/traces/delete-traces": KNOWN_ANSWERS[11],
    "": KNOWN_ANSWERS[0],
}


class FuzzTransport:
    """Gives one answer to the first request, and answers of any kind to the others; or one wrong answer to one of them.

    Attributes:
        url: The address of the server.
    """

    url = "http://mlflow:5000"

    def __init__(self, source: random.Random, response: HttpResponse) -> None:
        self._source, self._response = source, response
        self._wrong_answer = source.choice([None, *range(8)])

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        if self._wrong_answer is not None:
            correct = CORRECT.get(request.path.partition("?")[0], KNOWN_ANSWERS[0])
            self._wrong_answer -= 1
            return mutate(self._source, correct) if self._wrong_answer == -1 else correct
        response = self._response
        self._response = self._source.choice(KNOWN_ANSWERS) if self._source.random() < 0.7 else mutate(self._source)
        return response


DESTINATION = Destination("team-a", "bot")
METADATA = TraceMetadata(1, {"team": "a"}, {"mlflow.trace.session": "s-1"}, (("prompt", "1"),))
Read = Callable[[random.Random, HttpResponse], list[str]]


def read_outcome(source: random.Random, response: HttpResponse) -> list[str]:
    outcome = classify_response(response)
    parse_retry_after(response.headers)
    return [outcome.message, server_message(response)]


def read_server(source: random.Random, response: HttpResponse) -> list[str]:
    parse_version(response)
    info = ServerInfo(FuzzTransport(source, response), ProblemLog(), certain=source.random() < 0.5)
    outcomes = []
    for ask in (lambda: info.version(1), lambda: info.stored_spans([1], "team-a", 1)):
        try:
            ask()
        except ServerUnavailableError as error:
            outcomes.append(error.outcome)
    # An outcome of a question says nothing about the spans.
    assert all(outcome.disposition is not Disposition.SUCCESS for outcome in outcomes)
    return [outcome.message for outcome in outcomes]


def read_experiment(source: random.Random, response: HttpResponse) -> list[str]:
    transport = FuzzTransport(source, response)
    api = PrefixedRestTransport(transport) if source.random() < 0.3 else transport
    certain, create = source.random() < 0.5, source.random() < 0.5
    experiments = ExperimentResolver(api, certain=certain, create=create, problem_log=ProblemLog())
    result = experiments.resolve(DESTINATION, 1)
    if isinstance(result, ExportOutcome):
        assert result.disposition is Disposition.RETRYABLE
        assert result.cause is not FailureKind.CONTENT
        return [result.message]
    return [result or ""]


def read_workspace(source: random.Random, response: HttpResponse) -> list[str]:
    workspace = NamespaceWorkspace(FuzzTransport(source, response), "team-a", ProblemLog()).resolve(1)
    return [workspace.message] if isinstance(workspace, TransportError) else []


def read_record(source: random.Random, response: HttpResponse) -> list[str]:
    try:
        content = json.loads(response.body)
    except (ValueError, RecursionError):
        return []
    records = content.get("traces") if isinstance(content, dict) else None
    for record in [content, *(records if isinstance(records, list) else [])]:
        if isinstance(record, dict):
            diff_metadata(METADATA, record, source.choice([None, (3, 6), (3, 13), (3, 17)]))
    return []


def read_doctor(source: random.Random, response: HttpResponse) -> list[str]:
    settings = resolve({"tracking_uri": FuzzTransport.url, "experiment_id": source.choice([None, 7])}, environment={})
    log = RecordingLog()
    clients: Clients = build_clients(settings, log)
    transport = FuzzTransport(source, response)
    experiments = ExperimentResolver(transport, certain=True, create=False, problem_log=log)
    otlp = OTLPClient(transport, experiments, compression="gzip", problem_log=log)
    fuzzed = Clients(clients.server, None, transport, transport, True, experiments, otlp, clients.destination, None)
    results: list[CheckResult] = list(ServerChecks(settings, fuzzed, log).run())
    clients.close()
    return [line for result in results for line in result.lines()]


READS: dict[str, Read] = {
    "outcome": read_outcome,
    "server": read_server,
    "experiment": read_experiment,
    "workspace": read_workspace,
    "record": read_record,
    "doctor": read_doctor,
}


def run_examples(name: str, numbers: range, caplog: pytest.LogCaptureFixture) -> None:
    for number in numbers:
        source = random.Random(f"{name} {number}")
        response = mutate(source)
        caplog.clear()
        start = time.thread_time()
        lines = READS[name](source, response)
        seconds = time.thread_time() - start
        for line in [*lines, *caplog.messages]:
            assert len(line) < MAX_LINE_LENGTH, (number, line[:300])
            assert line.isprintable(), (number, line)
        assert seconds < MAX_SECONDS or is_quick(name, number), (number, response.status, response.body[:100])


def is_quick(name: str, number: int) -> bool:
    """Whether the second try is quick: the first one may have paid for the garbage of others."""
    source = random.Random(f"{name} {number}")
    response = mutate(source)
    start = time.thread_time()
    READS[name](source, response)
    return time.thread_time() - start < MAX_SECONDS


@pytest.fixture(autouse=True)
def _no_wait_for_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.cli.doctor.server_checks._COLLECTOR_WAIT_SECONDS", 0.0)


@pytest.mark.parametrize("name", READS)
def test_read_mutated_response_is_quick_and_lines_are_clean(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_otlp_exporter")
    run_examples(name, range(500 if name == "doctor" else 2000), caplog)


@pytest.mark.matrix
@pytest.mark.parametrize("name", READS)
def test_read_many_mutated_responses_is_quick_and_lines_are_clean(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_otlp_exporter")
    run_examples(name, range(2000, 10_000 if name == "doctor" else 52_000), caplog)


class RawServer:
    """Sends bytes to each connection, as soon as a request has come, and closes it."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65_536)
                connection.sendall(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def raw_server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def to_bytes(response: HttpResponse, source: random.Random) -> bytes:
    headers = dict(response.headers)
    framing = source.randrange(4)
    body = response.body
    if framing == 0:
        headers["transfer-encoding"] = "chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    elif framing == 1:
        headers["content-length"] = source.choice(["-1", "x", "9" * 30, str(len(body) + 5), "0"])
    elif framing == 2:
        headers["content-length"] = str(len(body))
    lines = [f"HTTP/1.1 {response.status} {source.choice(['OK', '', 'x' * 300])}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode(errors="surrogatepass") + b"\r\n\r\n"
    return mutate_body(head, source) + body if source.random() < 0.2 else head + body


def send_examples(server: RawServer, numbers: range) -> None:
    client = HttpClient(resolve({"endpoint": server.url}).traces)
    for number in numbers:
        source = random.Random(number)
        server.answer = to_bytes(mutate(source), source)
        result = client.send(HttpRequest("POST", "", body=b"x", timeout_seconds=20))
        if isinstance(result, TransportError):
            assert result.may_have_arrived, (number, result.message)
            assert result.message.isprintable(), number
            assert len(result.message) < MAX_LINE_LENGTH, number
        else:
            assert len(result.body) <= 65_536, number
            assert classify_response(result).message.isprintable(), number
    client.close()


def test_send_with_mutated_answer_never_raises(raw_server: RawServer) -> None:
    send_examples(raw_server, range(1000))


@pytest.mark.matrix
def test_send_with_many_mutated_answers_never_raises(raw_server: RawServer) -> None:
    send_examples(raw_server, range(1000, 51_000))
