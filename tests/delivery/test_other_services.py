"""Another service at the address of a tracking URI is recognised; an OTLP endpoint need not be MLflow."""

import logging
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.mlflow_api.server import identify_server
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse
from mlflow_otlp_exporter._internal.transport.response import classify_response
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans

JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}
HTML = {"Content-Type": "text/html"}
PATHS = (TRACES_PATH, "/version", "/api/2.0/mlflow/experiments/get-by-name", "/api/2.0/mlflow/experiments/create")
OTHERS = {
    "200, text": Answer(headers=TEXT, body=b"OK\n"),
    "200, nothing": Answer(headers=TEXT),
    "200, JSON": Answer(headers=JSON, body=b'{"status":"up"}'),
    "404, JSON": Answer(404, headers=JSON, body=b'{"error":"no route"}'),
    "404, nothing": Answer(404),
    "405": Answer(405),
    "501, page": Answer(501, headers=HTML, body=b"<html><title>Error response</title></html>"),
    "400, text": Answer(400, headers=TEXT, body=b"bad request"),
    "403, AirPlay": Answer(403, headers={"Server": "AirTunes/670.6.2"}),
}


def export(server: ScriptedServer, caplog: pytest.LogCaptureFixture, **arguments: Any) -> tuple[int, str]:
    caplog.clear()
    exporter = MLflowSpanExporter(timeout=5, spool=False, **{"tracking_uri": server.url, **arguments})
    exporter.export(make_spans("a"))
    delivered, messages = exporter.stats().delivered, list(caplog.messages)
    exporter.shutdown(0)
    return delivered, "\n".join(messages)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", [{"experiment_id": "1"}, {"experiment": "agents"}], ids=["id", "name"])
def test_other_service_is_named_and_gets_no_spans(
    name: str, target: dict[str, str], scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    answer = OTHERS[name]
    for path in PATHS:
        scripted_server.answer(then=answer if path == TRACES_PATH or answer.status != 501 else Answer(404), path=path)
    delivered, messages = export(scripted_server, caplog, **target)
    host = scripted_server.url.removeprefix("http://")
    assert delivered == 0
    assert "another service than MLflow answers" in messages
    assert f"Correct host and port of `MLFLOW_TRACKING_URI` ({host})" in messages
    assert messages.endswith("[MLO-419]")


def test_other_service_product_is_named(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    for path in PATHS:
        scripted_server.answer(then=OTHERS["403, AirPlay"], path=path)
    assert "(403; server: AirTunes/670.6.2)" in export(scripted_server, caplog, experiment_id="1")[1]


@pytest.mark.parametrize("body", [b"OK\n", b'{"status":"up"}'])
def test_otlp_endpoint_need_not_be_mlflow(
    body: bytes, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(then=Answer(headers=JSON if body[:1] == b"{" else TEXT, body=body))
    arguments = {"tracking_uri": None, "endpoint": scripted_server.traces_url, "experiment_id": "1"}
    assert export(scripted_server, caplog, **arguments) == (1, "")


@pytest.mark.parametrize(
    "answer", [ACCEPTED, Answer(headers=JSON, body=b'{"partialSuccess":{}}'), Answer(), Answer(202)]
)
def test_collector_at_the_tracking_uri_gets_spans(
    answer: Answer, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(then=answer)
    assert export(scripted_server, caplog, experiment_id="1") == (1, "")
    assert not scripted_server.to("/version")


def test_mlflow_behind_a_proxy_that_changes_bodies_is_mlflow(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(then=Answer(headers=TEXT, body=b"ok"))
    scripted_server.answer(then=Answer(headers=HTML, body=b"3.17.2"), path="/version")
    assert export(scripted_server, caplog, experiment_id="1") == (1, "")


class OneAnswer:
    def __init__(self, answer: HttpResponse) -> None:
        self.answer = answer

    def send(self, request: HttpRequest) -> HttpResponse:
        assert (request.method, request.path) == ("GET", "/version")
        return self.answer


PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<html><title>Sign in</title></html>")
DENIED = HttpResponse(401, {"content-type": "text/plain"}, b"no")


@pytest.mark.parametrize(
    ("response", "version", "code"),
    [
        (HttpResponse(404, {}, b""), HttpResponse(200, {}, b"2.22.1"), MessageCode.OTLP_UNSUPPORTED),
        (HttpResponse(404, {}, b""), HttpResponse(200, {}, b"3.17.2"), MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(404, {}, b""), HttpResponse(404, {}, b""), MessageCode.NOT_MLFLOW),
        (HttpResponse(404, {}, b""), HttpResponse(503, {}, b""), MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(404, {}, b""), PAGE, MessageCode.NOT_MLFLOW),
        (PAGE, PAGE, MessageCode.HTML_PAGE),
        (HttpResponse(404, {}, b""), DENIED, MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(404, {}, b""), HttpResponse(302), MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(403, {}, b"RBAC: access denied"), HttpResponse(403, {}, b"RBAC"), MessageCode.PERMISSION_DENIED),
    ],
)
def test_identify_server_decides_by_the_version(
    response: HttpResponse, version: HttpResponse, code: MessageCode
) -> None:
    outcome = classify_response(response)
    assert outcome.is_foreign
    identified = identify_server(OneAnswer(version), outcome, 1.0)
    assert (identified.code, identified.disposition) == (code, Disposition.RETRYABLE)


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(404, {}, b'{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"No Experiment"}'),
        HttpResponse(422, {}, b'{"detail":[{"loc":["header","x-mlflow-experiment-id"],"msg":"Field required"}]}'),
        HttpResponse(400, {}, b'{"detail":"Invalid OpenTelemetry protobuf format"}'),
        HttpResponse(401, {"content-type": "text/html"}, b"You are not authenticated. Please see"),
        HttpResponse(403, {}, b"Permission denied"),
        HttpResponse(403, {}, b"Invalid Host header - possible DNS rebinding attack detected"),
        HttpResponse(501, {}, b'{"detail":"REST OTLP span logging is not supported by FileStore"}'),
        HttpResponse(500, {}, b"Internal Server Error"),
        HttpResponse(302, {"location": "https://login.invalid"}),
        HttpResponse(400, {}, b"The plain HTTP request was sent to HTTPS port"),
        DENIED,
        HttpResponse(503, {}, b"upstream connect error"),
        HttpResponse(200, {"content-type": "application/x-protobuf"}),
        HttpResponse(200, {"content-type": "application/x-protobuf"}, b'{"partialSuccess":null}'),
        HttpResponse(200, {}, b"{}"),
    ],
)
def test_response_of_mlflow_is_not_foreign(response: HttpResponse) -> None:
    outcome: ExportOutcome = classify_response(response)
    assert not outcome.is_foreign
