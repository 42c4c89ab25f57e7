"""Classification of responses: the table of docs/answers.md, row by row."""

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import HttpResponse, TransportError
from mlflow_otlp_exporter._internal.transport.response import (
    classify_error,
    classify_response,
    error_code,
    parse_retry_after,
    sanitize_server_text,
    server_message,
)

PROTOBUF = {"content-type": "application/x-protobuf"}
ELSEWHERE = f"Trace with ID 'tr-{0xAB:032x}' already exists in another experiment."
JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html; charset=utf-8"}
AUTHORIZATION = MessageCode.AUTHORIZATION_CHECK_FAILED
DELIVERED, PARTLY, RETRY, SPLIT, REFUSED = Disposition
CONTENT, SIZE, DESTINATION, CREDENTIALS, NOT_MLFLOW, SERVER = FailureKind


def partial(rejected: int, message: str) -> bytes:
    success = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return ExportTraceServiceResponse(partial_success=success).SerializeToString()


def body(content: Any) -> bytes:
    return json.dumps(content).encode()


def mlflow_error(code: str, message: str) -> bytes:
    return body({"error_code": code, "message": message})


TABLE: list[tuple[int, dict[str, str], bytes, Disposition, FailureKind | None]] = [
    # Accepted, in every format that servers use.
    (200, PROTOBUF, b"", DELIVERED, None),
    (200, PROTOBUF, b'{"partialSuccess":null}', DELIVERED, None),  # MLflow 3.4 to 3.6 label JSON as protobuf
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
    # Partial success.
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
    # Another protocol: the spans are right.
    (400, {}, b"Client sent an HTTP request to an HTTPS server.\n", RETRY, NOT_MLFLOW),
    (400, HTML, b"<html><title>400 No required SSL certificate was sent</title></html>", RETRY, NOT_MLFLOW),
    (415, {}, b"invalid gRPC request content-type", RETRY, NOT_MLFLOW),
    (426, {}, b"", RETRY, NOT_MLFLOW),
    (505, {}, b"", RETRY, NOT_MLFLOW),
    (418, {}, b"", REFUSED, CONTENT),
]


@pytest.mark.parametrize(("status", "headers", "content", "verdict", "cause"), TABLE)
def test_classify_response_with_table_row_returns_disposition_and_cause(
    status: int, headers: dict[str, str], content: bytes, verdict: Disposition, cause: FailureKind | None
) -> None:
    outcome = classify_response(HttpResponse(status, headers, content))
    assert (outcome.disposition, outcome.cause) == (verdict, cause)
    assert outcome.message or verdict is DELIVERED
    assert outcome.rejected_count == (2 if verdict is PARTLY else 0)


def test_classify_response_with_unreadable_success_body_is_delivered() -> None:
    assert classify_response(HttpResponse(200, PROTOBUF, b"\x0a", is_complete=False)).disposition is DELIVERED


ENVOY = b"upstream connect error or disconnect/reset before headers. reset reason: connection termination"


@pytest.mark.parametrize(
    ("answer", "ambiguous"),
    [
        (HttpResponse(500), True),
        (HttpResponse(502), True),
        (HttpResponse(504), True),
        (
            HttpResponse(
                503, JSON, mlflow_error("TEMPORARILY_UNAVAILABLE", "server closed the connection unexpectedly")
            ),
            True,
        ),
        (HttpResponse(503, {"content-type": "text/plain"}, ENVOY), True),
        (HttpResponse(400, JSON, mlflow_error("BAD_REQUEST", "database disk image is malformed")), True),
        (HttpResponse(503), False),
        (HttpResponse(503, HTML, b"<html>down for maintenance"), False),
        (HttpResponse(429), False),
    ],
)
def test_classify_response_with_server_error_tells_whether_spans_may_be_stored(
    answer: HttpResponse, ambiguous: bool
) -> None:
    assert classify_response(answer).may_have_arrived is ambiguous


def test_classify_error_with_kinds_of_failure_returns_cause_and_ambiguity() -> None:
    assert classify_error(TransportError("refused")).cause is SERVER
    assert not classify_error(TransportError("refused")).may_have_arrived
    assert classify_error(TransportError("closed", may_have_arrived=True)).may_have_arrived
    assert classify_error(TransportError("no token file", is_credential_error=True)).cause is CREDENTIALS


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        (HttpResponse(422, JSON, body({"detail": "text"})), "text", ""),
        (HttpResponse(422, JSON, body({"detail": [{"loc": ["a", "b"], "msg": "required"}]})), "a.b: required", ""),
        (HttpResponse(400, JSON, mlflow_error("CODE", "words")), "words", "CODE"),
        (HttpResponse(403, JSON, body({"error": {"code": "DENIED", "message": "words"}})), "words", "DENIED"),
        (
            HttpResponse(401, {"content-type": "text/plain"}, b"You are\nnot authenticated."),
            "You are not authenticated.",
            "",
        ),
        (HttpResponse(404, HTML, b"<title>404 Not\nFound</title>"), "an HTML page (404 Not Found)", ""),
        # MLflow's basic auth labels plain sentences as HTML.
        (HttpResponse(401, HTML, b"You are not authenticated."), "You are not authenticated.", ""),
        (HttpResponse(403, HTML, b"Permission denied"), "Permission denied", ""),
        (HttpResponse(403, HTML, b""), "an HTML page", ""),
        (HttpResponse(500, {}, b""), "", ""),
        (HttpResponse(500, {}, b"\xff\x00"), "", ""),
        (HttpResponse(500, JSON, b"[1]"), "[1]", ""),
        # A gateway's or a Collector's `google.rpc.Status`: code 7, a message.
        (HttpResponse(403, {"content-type": "application/x-protobuf"}, b"\x08\x07\x12\x05words"), "words", ""),
        (HttpResponse(403, {"content-type": "application/x-protobuf"}, b"\xff\xff"), "", ""),
    ],
)
def test_server_message_with_every_error_format_returns_text_and_code(
    answer: HttpResponse, message: str, code: str
) -> None:
    assert (server_message(answer), error_code(answer)) == (message, code)


def test_sanitize_server_text_with_private_parts_removes_them_and_cuts() -> None:
    text = "(psycopg2.DataError) out of range\n[SQL: INSERT INTO spans VALUES (%s)]\n[parameters: {'a': 'planted'}]"
    assert sanitize_server_text(text) == "(psycopg2.DataError) out of range"
    row = "null value\nDETAIL:  Failing row contains (1, planted).\nCONTEXT: COPY spans\n"
    assert sanitize_server_text(row) == "null value"
    assert sanitize_server_text("syntax error\nLINE 1: INSERT INTO spans VALUES ('planted')") == "syntax error"
    value = "planted " * 20
    for quote in "'\"`":
        text = f"Value {quote}{value}{quote} of tag 'first' is too long"
        assert sanitize_server_text(text) == f"Value {quote}...{quote} of tag 'first' is too long"
        assert sanitize_server_text(f"Value {quote}{value}") == f"Value {quote}...{quote}"
    assert sanitize_server_text("'a short name' is missing, and it's 'another' that is here") == (
        "'a short name' is missing, and it's 'another' that is here"
    )
    assert len(sanitize_server_text("x" * 5000)) < 400
    assert sanitize_server_text("a\x1b[31mb") == "a?[31mb"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:27:50 GMT", 0.0),
        # Delays beyond an hour are cut.
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
def test_parse_retry_after_with_header_returns_seconds(value: str, seconds: float | None) -> None:
    assert parse_retry_after({"retry-after": value}, now=1445412480.0) == seconds


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (HttpResponse(200, HTML, b"<html>"), MessageCode.HTML_PAGE),
        (HttpResponse(302, {"location": "https://login"}), MessageCode.REDIRECTED),
        (HttpResponse(401), MessageCode.UNAUTHENTICATED),
        (HttpResponse(407), MessageCode.PROXY_UNAUTHENTICATED),
        (HttpResponse(413), MessageCode.REQUEST_TOO_LARGE),
        (HttpResponse(404, HTML, b"<html>"), MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(404, JSON, body({"detail": "Not Found"})), MessageCode.NO_OTLP_ENDPOINT),
        (HttpResponse(405, JSON), MessageCode.NO_OTLP_ENDPOINT),
        (
            HttpResponse(501, JSON, body({"detail": "REST OTLP span logging is not supported by FileStore"})),
            MessageCode.FILE_STORE,
        ),
        (HttpResponse(501), MessageCode.NO_OTLP_ENDPOINT),
        (
            HttpResponse(400, HTML, b"<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            MessageCode.TLS_REQUIRED,
        ),
        (
            HttpResponse(403, {}, b"Invalid Host header - possible DNS rebinding attack detected"),
            MessageCode.HOST_NOT_ALLOWED,
        ),
        (HttpResponse(403, {}, b"Permission denied"), MessageCode.PERMISSION_DENIED),
        # A gateway, also behind a Collector, which passes its message on.
        (
            HttpResponse(
                403,
                JSON,
                body(
                    {
                        "code": 7,
                        "message": "1 span dropped: the tokens file of the mlflow-otlp gateway does not allow a/b",
                    }
                ),
            ),
            MessageCode.GATEWAY_DENIED,
        ),
        (
            HttpResponse(
                401,
                JSON,
                body({"message": "rpc error: the tokens file of the mlflow-otlp gateway does not have this token"}),
            ),
            MessageCode.GATEWAY_UNAUTHENTICATED,
        ),
        (
            HttpResponse(403, JSON, body({"message": "expected an SSL certificate of the client"})),
            MessageCode.TLS_REJECTED,
        ),
        (
            HttpResponse(403, JSON, body({"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}})),
            MessageCode.PERMISSION_DENIED,
        ),
        (
            HttpResponse(500, JSON, mlflow_error("FEATURE_DISABLED", "workspaces are not enabled")),
            MessageCode.WORKSPACES_DISABLED,
        ),
        (
            HttpResponse(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "Workspace 'x' not found")),
            MessageCode.WORKSPACE_NOT_FOUND,
        ),
        (
            HttpResponse(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", "Workspace name 'X'")),
            MessageCode.WORKSPACE_NOT_FOUND,
        ),
        (
            HttpResponse(400, JSON, body({"error": {"message": "Workspace context is required"}})),
            MessageCode.WORKSPACE_REQUIRED,
        ),
        (
            HttpResponse(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "No Experiment with id=9")),
            MessageCode.EXPERIMENT_NOT_FOUND,
        ),
        (HttpResponse(422, JSON, body({"detail": "No Experiment with id=9 exists"})), MessageCode.EXPERIMENT_NOT_FOUND),
        (
            HttpResponse(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", "Invalid experiment ID")),
            MessageCode.EXPERIMENT_NOT_FOUND,
        ),
        (
            HttpResponse(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", ELSEWHERE)),
            MessageCode.TRACE_IN_OTHER_EXPERIMENT,
        ),
        (
            HttpResponse(422, JSON, body({"detail": [{"loc": ["x-mlflow-experiment-id"]}]})),
            MessageCode.EXPERIMENT_REQUIRED,
        ),
        (HttpResponse(400, {}, b"Missing required header: X-Mlflow-Experiment-Id"), MessageCode.EXPERIMENT_REQUIRED),
        (
            HttpResponse(404, JSON, mlflow_error("RESOURCE_DOES_NOT_EXIST", "something else")),
            MessageCode.DESTINATION_REJECTED,
        ),
        (HttpResponse(503), MessageCode.SERVER_UNAVAILABLE),
        (
            HttpResponse(503, JSON, mlflow_error("TEMPORARILY_UNAVAILABLE", "database is locked")),
            MessageCode.DATABASE_UNAVAILABLE,
        ),
        (HttpResponse(400, JSON, mlflow_error("BAD_REQUEST", "file is not a database")), MessageCode.DATABASE_DAMAGED),
        (HttpResponse(429), MessageCode.RATE_LIMITED),
        (HttpResponse(500), MessageCode.SERVER_ERROR),
        (
            HttpResponse(500, JSON, body({"error": {"message": "Failed to perform Kubernetes authorization check"}})),
            AUTHORIZATION,
        ),
        (HttpResponse(400, JSON, body({"detail": "bad"})), MessageCode.SPAN_REJECTED),
        (HttpResponse(200, PROTOBUF, partial(2, "too old")), MessageCode.PARTIAL_SUCCESS),
        (HttpResponse(200, PROTOBUF, partial(0, "be brief")), MessageCode.SERVER_MESSAGE),
    ],
)
def test_classify_response_with_known_cause_returns_its_code(answer: HttpResponse, code: MessageCode) -> None:
    assert classify_response(answer).code is code


@pytest.mark.parametrize("status", [403, 502, 503, 504])
def test_classify_response_of_a_proxy_names_it_and_keeps_what_follows_for_the_spans(status: int) -> None:
    response = HttpResponse(status, {"retry-after": "3"}, b"no route")
    direct, through_proxy = classify_response(response), classify_response(response._replace(proxy="proxy:3128"))
    assert through_proxy.code is MessageCode.PROXY
    assert through_proxy.message == f"{status}: no route, through the proxy proxy:3128"
    assert through_proxy._replace(code=direct.code, message=direct.message) == direct
    of_mlflow = HttpResponse(status, JSON, mlflow_error("PERMISSION_DENIED", "no"), proxy="proxy:3128")
    assert classify_response(of_mlflow) == classify_response(of_mlflow._replace(proxy=""))


def test_classify_response_with_trace_in_other_experiment_names_the_trace() -> None:
    outcome = classify_response(HttpResponse(400, JSON, mlflow_error("INVALID_PARAMETER_VALUE", ELSEWHERE)))
    assert (outcome.disposition, outcome.cause) == (Disposition.PERMANENT, FailureKind.CONTENT)
    assert outcome.trace_id == 0xAB


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, ELSEWHERE), (400, ELSEWHERE.replace("000ab", "000aB")), (400, f"Echo of the prompt: {ELSEWHERE}")],
)
def test_classify_response_with_similar_message_names_no_trace(status: int, message: str) -> None:
    assert classify_response(HttpResponse(status, JSON, mlflow_error("X", message))).trace_id is None


def test_classify_error_with_kinds_of_failure_returns_code() -> None:
    assert (
        classify_error(TransportError("no token file", is_credential_error=True)).code
        is MessageCode.CREDENTIAL_UNAVAILABLE
    )
    assert (
        classify_error(TransportError("late", code=MessageCode.RESPONSE_TIMEOUT)).code is MessageCode.RESPONSE_TIMEOUT
    )


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"www-authenticate": 'Bearer error="x", error_description="The access token expired"'}, b"", "expired"),
        ({"content-type": "application/json"}, b'{"error": "invalid_token"}', "401: invalid_token"),
        ({"www-authenticate": 'Bearer error_description="a\x1b[31m' + "b" * 5000 + '"'}, b"", "401: a?[31mb"),
    ],
)
def test_classify_response_with_reason_of_a_401_quotes_it(headers: dict[str, str], body: bytes, expected: str) -> None:
    outcome = classify_response(HttpResponse(401, headers, body))
    assert expected in outcome.message
    assert len(outcome.message) < 1000
    assert outcome.code is MessageCode.UNAUTHENTICATED


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>portal</html>"), (404, b"not here")])
def test_classify_response_of_another_service_behind_a_proxy_names_the_proxy(status: int, body: bytes) -> None:
    response = HttpResponse(status, {"content-type": "text/html"}, body, proxy="http://127.0.0.1:3128")
    outcome = classify_response(response)
    assert outcome.message.endswith(", through the proxy http://127.0.0.1:3128")
    assert outcome.code is not MessageCode.PROXY


def test_classify_response_of_a_success_through_a_proxy_has_no_message() -> None:
    response = HttpResponse(200, {"content-type": "text/plain"}, b"", proxy="http://127.0.0.1:3128")
    assert classify_response(response).message == ""
