"""What an answer means: the table of docs/answers.md, row by row."""

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from mlflow_otlp_exporter._internal.common.codes import Code
from mlflow_otlp_exporter._internal.transport.messages import Answer, Failure
from mlflow_otlp_exporter._internal.transport.response import (
    Cause,
    Verdict,
    cleaned,
    error_code,
    read_answer,
    read_failure,
    retry_after,
    server_message,
)

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html; charset=utf-8"}
AUTHORIZATION = Code.AUTHORIZATION_CHECK
DELIVERED, PARTLY, RETRY, SPLIT, REFUSED = Verdict
CONTENT, SIZE, DESTINATION, CREDENTIALS, NOT_MLFLOW, SERVER = Cause


def partial(rejected: int, message: str) -> bytes:
    success = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return ExportTraceServiceResponse(partial_success=success).SerializeToString()


def body(found: Any) -> bytes:
    return json.dumps(found).encode()


def mlflow_error(code: str, message: str) -> bytes:
    return body({"error_code": code, "message": message})


TABLE: list[tuple[int, dict[str, str], bytes, Verdict, Cause | None]] = [
    # Accepted, in all the forms that servers have for it.
    (200, PROTOBUF, b"", DELIVERED, None),
    (200, PROTOBUF, b'{"partialSuccess":null}', DELIVERED, None),  # MLflow 3.4 to 3.6: the label lies
    (200, JSON, b'{"partialSuccess":null}', DELIVERED, None),
    (200, JSON, b"{}", DELIVERED, None),
    (200, JSON, b"[]", DELIVERED, None),
    (200, JSON, b"", DELIVERED, None),
    (200, {}, b"", DELIVERED, None),
    (200, {"content-type": "text/plain"}, b"OK", DELIVERED, None),
    (202, {}, b"", DELIVERED, None),
    (204, {}, b"", DELIVERED, None),
    (200, PROTOBUF, partial(0, ""), DELIVERED, None),
    (200, PROTOBUF, partial(0, "a warning"), DELIVERED, None),
    (200, PROTOBUF, b"\xff\xff\xff", DELIVERED, None),
    (200, JSON, b'{"partialSuccess":', DELIVERED, None),
    # Accepted in part.
    (200, PROTOBUF, partial(2, "too old"), PARTLY, CONTENT),
    (200, PROTOBUF, partial(2, "x" * 87), PARTLY, CONTENT),  # its second byte is a bracket
    (200, PROTOBUF, partial(2, "x" * 119), PARTLY, CONTENT),  # its second byte is a brace
    (200, PROTOBUF, partial(-3, "fewer than none"), DELIVERED, None),
    (200, JSON, partial(2, "mislabelled"), PARTLY, CONTENT),
    (200, JSON, b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}', PARTLY, CONTENT),
    (200, PROTOBUF, b'{"partialSuccess":{"rejectedSpans":2}}', PARTLY, CONTENT),
    (200, JSON, b'{"partial_success":{"rejected_spans":2}}', PARTLY, CONTENT),
    # Not MLflow.
    (200, HTML, b"<html><title>Log in</title></html>", RETRY, NOT_MLFLOW),
    (200, {}, b"  <!DOCTYPE html><html>", RETRY, NOT_MLFLOW),
    (200, HTML, b"", RETRY, NOT_MLFLOW),
    (301, {"location": "https://sso/login?x=1"}, b"", RETRY, NOT_MLFLOW),
    (302, {"location": "/login"}, b"", RETRY, NOT_MLFLOW),
    (303, {}, b"", RETRY, NOT_MLFLOW),
    (304, {}, b"", RETRY, NOT_MLFLOW),
    (307, {}, b"", RETRY, NOT_MLFLOW),
    (308, {}, b"", RETRY, NOT_MLFLOW),
    (404, HTML, b"<!doctype html><title>404 Not Found</title>", RETRY, NOT_MLFLOW),
    (405, JSON, b'{"detail":"Method Not Allowed"}', RETRY, NOT_MLFLOW),
    (501, JSON, b'{"detail":"REST OTLP span logging is not supported by FileStore"}', RETRY, NOT_MLFLOW),
    (403, HTML, b"<html>Forbidden by gateway", RETRY, NOT_MLFLOW),
    # Credentials.
    (401, {}, b"You are not authenticated.", RETRY, CREDENTIALS),
    (401, HTML, b"<html>", RETRY, CREDENTIALS),
    (407, {}, b"", RETRY, CREDENTIALS),
    # The destination.
    (404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=999 exists"), RETRY, DESTINATION),
    (404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "Workspace 'nope' not found"), RETRY, DESTINATION),
    (403, {}, b"Permission denied", RETRY, DESTINATION),
    (403, JSON, body({"error": {"code": "PERMISSION_DENIED", "message": "denied"}}), RETRY, DESTINATION),
    (422, JSON, body({"detail": "Failed to log: No Experiment with id=999 exists"}), RETRY, DESTINATION),
    (
        422,
        JSON,
        body({"detail": [{"loc": ["header", "x-mlflow-experiment-id"], "msg": "Field required"}]}),
        RETRY,
        DESTINATION,
    ),
    (400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", "Invalid experiment ID 'abc'."), RETRY, DESTINATION),
    (400, JSON, body({"error": {"message": "Workspace context is required for this request."}}), RETRY, DESTINATION),
    (500, JSON, mlflow_error("FEATURE_DISABLED", "Workspace APIs are not available"), RETRY, DESTINATION),
    # The server.
    (408, {}, b"", RETRY, SERVER),
    (425, {}, b"", RETRY, SERVER),
    (429, {"retry-after": "3"}, b"", RETRY, SERVER),
    (500, {"content-type": "text/plain"}, b"Internal Server Error", RETRY, SERVER),
    (500, JSON, body({"error": {"code": "INTERNAL_ERROR", "message": "Kubernetes (503)"}}), RETRY, SERVER),
    (502, {}, b"", RETRY, SERVER),
    (503, JSON, mlflow_error("TEMPORARILY_UNAVAILABLE", "database is locked"), RETRY, SERVER),
    (504, {}, b"", RETRY, SERVER),
    (502, HTML, b"<html>502 Bad Gateway", RETRY, SERVER),
    (503, HTML, b"<html>down for maintenance", RETRY, SERVER),
    (504, HTML, b"<html>504 Gateway Time-out", RETRY, SERVER),
    (507, {}, b"", RETRY, SERVER),
    (400, JSON, mlflow_error("BAD_REQUEST", "(sqlite3.DatabaseError) file is not a database"), RETRY, SERVER),
    # Size and content.
    (413, HTML, b"<html>Request Entity Too Large", SPLIT, SIZE),
    (400, JSON, body({"detail": "Invalid OpenTelemetry protobuf format"}), REFUSED, CONTENT),
    (422, JSON, body({"detail": "bad span"}), REFUSED, CONTENT),
    (415, {}, b"", REFUSED, CONTENT),
    (418, {}, b"", REFUSED, CONTENT),
]


@pytest.mark.parametrize(("status", "headers", "content", "verdict", "cause"), TABLE)
def test_answer(status: int, headers: dict[str, str], content: bytes, verdict: Verdict, cause: Cause | None) -> None:
    outcome = read_answer(Answer(status, headers, content))
    assert (outcome.verdict, outcome.cause) == (verdict, cause)
    assert outcome.message or verdict is DELIVERED
    assert outcome.rejected == (2 if verdict is PARTLY else 0)


def test_success_whose_body_could_not_be_read_is_one() -> None:
    assert read_answer(Answer(200, PROTOBUF, b"\x0a", complete=False)).verdict is DELIVERED


ENVOY = b"upstream connect error or disconnect/reset before headers. reset reason: connection termination"


@pytest.mark.parametrize(
    ("answer", "ambiguous"),
    [
        (Answer(500), True),
        (Answer(502), True),
        (Answer(504), True),
        (Answer(503, JSON, mlflow_error("TEMPORARILY_UNAVAILABLE", "server closed the connection unexpectedly")), True),
        (Answer(503, {"content-type": "text/plain"}, ENVOY), True),
        (Answer(400, JSON, mlflow_error("BAD_REQUEST", "database disk image is malformed")), True),
        (Answer(503), False),
        (Answer(503, HTML, b"<html>down for maintenance"), False),
        (Answer(429), False),
    ],
)
def test_what_may_have_been_stored_all_the_same(answer: Answer, ambiguous: bool) -> None:
    assert read_answer(answer).ambiguous is ambiguous


def test_no_answer() -> None:
    assert read_failure(Failure("refused")).cause is SERVER
    assert not read_failure(Failure("refused")).ambiguous
    assert read_failure(Failure("closed", arrived=True)).ambiguous
    assert read_failure(Failure("no token file", credentials=True)).cause is CREDENTIALS


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        (Answer(422, JSON, body({"detail": "text"})), "text", ""),
        (Answer(422, JSON, body({"detail": [{"loc": ["a", "b"], "msg": "required"}]})), "a.b: required", ""),
        (Answer(400, JSON, mlflow_error("CODE", "words")), "words", "CODE"),
        (Answer(403, JSON, body({"error": {"code": "DENIED", "message": "words"}})), "words", "DENIED"),
        (Answer(401, {"content-type": "text/plain"}, b"You are\nnot authenticated."), "You are not authenticated.", ""),
        (Answer(404, HTML, b"<title>404 Not\nFound</title>"), "an HTML page (404 Not Found)", ""),
        # As MLflow's basic auth labels its sentences.
        (Answer(401, HTML, b"You are not authenticated."), "You are not authenticated.", ""),
        (Answer(403, HTML, b"Permission denied"), "Permission denied", ""),
        (Answer(403, HTML, b""), "an HTML page", ""),
        (Answer(500, {}, b""), "", ""),
        (Answer(500, {}, b"\xff\x00"), "", ""),
        (Answer(500, JSON, b"[1]"), "[1]", ""),
    ],
)
def test_server_message_from_every_shape(answer: Answer, message: str, code: str) -> None:
    assert (server_message(answer), error_code(answer)) == (message, code)


def test_logged_text_has_no_sql_parameters_and_is_cut() -> None:
    said = "(psycopg2.DataError) out of range\n[SQL: INSERT INTO spans VALUES (%s)]\n[parameters: {'a': 'planted'}]"
    assert cleaned(said) == "(psycopg2.DataError) out of range"
    row = "null value\nDETAIL:  Failing row contains (1, planted).\nCONTEXT: COPY spans\n"
    assert cleaned(row) == "null value"
    assert cleaned("syntax error\nLINE 1: INSERT INTO spans VALUES ('planted')") == "syntax error"
    value = "planted " * 20
    for quote in "'\"`":
        said = f"Value {quote}{value}{quote} of tag 'first' is too long"
        assert cleaned(said) == f"Value {quote}...{quote} of tag 'first' is too long"
        assert cleaned(f"Value {quote}{value}") == f"Value {quote}...{quote}"
    assert cleaned("'a short name' is missing, and it's 'another' that is here") == (
        "'a short name' is missing, and it's 'another' that is here"
    )
    assert len(cleaned("x" * 5000)) < 400
    assert cleaned("a\x1b[31mb") == "a?[31mb"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:27:50 GMT", 0.0),
        # A wait without end is none that anybody meant.
        ("86400", 3600.0),
        ("9" * 400, 3600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("soon", None),
        ("-1", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}, now=1445412480.0) == seconds


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(200, HTML, b"<html>"), Code.PAGE),
        (Answer(302, {"location": "https://login"}), Code.REDIRECTED),
        (Answer(401), Code.UNAUTHENTICATED),
        (Answer(407), Code.PROXY_CREDENTIAL),
        (Answer(413), Code.TOO_LARGE),
        (Answer(404, HTML, b"<html>"), Code.NO_TRACES_HERE),
        (Answer(404, JSON, body({"detail": "Not Found"})), Code.NO_TRACES_HERE),
        (Answer(405, JSON), Code.NO_TRACES_HERE),
        (Answer(501, JSON, body({"detail": "REST OTLP span logging is not supported by FileStore"})), Code.FILE_STORE),
        (Answer(501), Code.NO_TRACES_HERE),
        (Answer(400, HTML, b"<title>400 The plain HTTP request was sent to HTTPS port</title>"), Code.TLS_WANTED),
        (Answer(403, {}, b"Invalid Host header - possible DNS rebinding attack detected"), Code.HOST_NOT_ALLOWED),
        (Answer(403, {}, b"Permission denied"), Code.DENIED),
        (
            Answer(403, JSON, body({"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}})),
            Code.DENIED,
        ),
        (Answer(500, JSON, mlflow_error("FEATURE_DISABLED", "workspaces are not enabled")), Code.WORKSPACES_OFF),
        (Answer(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "Workspace 'x' not found")), Code.WORKSPACE_UNKNOWN),
        (Answer(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", "Workspace name 'X'")), Code.WORKSPACE_UNKNOWN),
        (Answer(400, JSON, body({"error": {"message": "Workspace context is required"}})), Code.WORKSPACE_MISSING),
        (
            Answer(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=9")),
            Code.EXPERIMENT_UNKNOWN,
        ),
        (Answer(422, JSON, body({"detail": "No Experiment with id=9 exists"})), Code.EXPERIMENT_UNKNOWN),
        (Answer(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", "Invalid experiment ID")), Code.EXPERIMENT_UNKNOWN),
        (Answer(422, JSON, body({"detail": [{"loc": ["x-mlflow-experiment-id"]}]})), Code.EXPERIMENT_MISSING),
        (Answer(400, {}, b"Missing required header: X-Mlflow-Experiment-Id"), Code.EXPERIMENT_MISSING),
        (Answer(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "something else")), Code.DESTINATION),
        (Answer(503), Code.AWAY),
        (Answer(503, JSON, mlflow_error("TEMPORARILY_UNAVAILABLE", "database is locked")), Code.DATABASE),
        (Answer(400, JSON, mlflow_error("BAD_REQUEST", "file is not a database")), Code.DATABASE_DAMAGED),
        (Answer(429), Code.THROTTLED),
        (Answer(500), Code.SERVER_ERROR),
        (
            Answer(500, JSON, body({"error": {"message": "Failed to perform Kubernetes authorization check"}})),
            AUTHORIZATION,
        ),
        (Answer(400, JSON, body({"detail": "bad"})), Code.CONTENT),
        (Answer(200, PROTOBUF, partial(2, "too old")), Code.REJECTED),
        (Answer(200, PROTOBUF, partial(0, "be brief")), Code.SAID),
    ],
)
def test_code_that_explains(answer: Answer, code: Code) -> None:
    assert read_answer(answer).code is code


def test_code_of_no_answer() -> None:
    assert read_failure(Failure("no token file", credentials=True)).code is Code.NO_CREDENTIAL
    assert read_failure(Failure("late", code=Code.NO_ANSWER)).code is Code.NO_ANSWER
