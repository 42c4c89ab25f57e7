"""What servers answer, end to end: outcome, requests and log lines of the real exporter over real sockets.

Every row of what MLflow 3.4 to 3.17, proxies and login pages were seen to answer, and of what is done to connections.
On the oldest and the newest OpenTelemetry, see test_matrix.py. The decisions alone: test_response.py.
"""

import base64
import email.utils
import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export import SpanExportResult

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import CREDENTIAL_REJECTED, FIXES_WITH_ADDRESS, HINTS
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from support.fast_retries import skip_retry_delays
from support.markers import PROMPT, SECRET
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

SUCCESS, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
SPANS = 2
VERSION, BATCH_GET = "/version", "/api/3.0/mlflow/traces/batchGet"
OURS = "mlflow_otlp_exporter"
JSON = {"Content-Type": "application/json"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}
HTML = {"Content-Type": "text/html; charset=utf-8"}

Line = tuple[int, str]
"""A log line: its level, and a pattern that it matches as a whole."""
Counts = tuple[int, int, int]
"""Spans that are delivered, refused, pending."""

CODE = r" \[MLO-\d{3}\]"
"""Each line ends with one."""


def advice_of(*codes: MessageCode) -> str:
    """A pattern of the fix of one of the codes, with host and port of the server; a credential is always sent."""
    return f"(?:{'|'.join(map(advice_pattern, codes))})"


def advice_pattern(code: MessageCode) -> str:
    pattern = re.escape(CREDENTIAL_REJECTED.fix if code is MessageCode.UNAUTHENTICATED else HINTS[code].fix)
    if code not in FIXES_WITH_ADDRESS:
        return pattern
    return re.sub(r"\bPORT\b", r"\\d+", re.sub(r"\bHOST\b", r"127\\.0\\.0\\.1", pattern))


SERVER_ADVICE = advice_of(
    MessageCode.CONNECTION_CLOSED,
    MessageCode.RESPONSE_TIMEOUT,
    MessageCode.INVALID_REQUEST,
    MessageCode.SERVER_UNAVAILABLE,
    MessageCode.DATABASE_UNAVAILABLE,
    MessageCode.DATABASE_DAMAGED,
    MessageCode.RATE_LIMITED,
    MessageCode.AUTHORIZATION_CHECK_FAILED,
    MessageCode.SERVER_ERROR,
)
NOT_MLFLOW_ADVICE = advice_of(MessageCode.NO_OTLP_ENDPOINT)
LOGIN_ADVICE = advice_of(MessageCode.REDIRECTED, MessageCode.HTML_PAGE)
DESTINATION_ADVICE = advice_of(
    MessageCode.NO_OTLP_ENDPOINT,
    MessageCode.WORKSPACE_NOT_FOUND,
    MessageCode.WORKSPACE_REQUIRED,
    MessageCode.EXPERIMENT_NOT_FOUND,
    MessageCode.EXPERIMENT_REQUIRED,
    MessageCode.PERMISSION_DENIED,
    MessageCode.DESTINATION_REJECTED,
)
CREDENTIALS_ADVICE = advice_of(MessageCode.UNAUTHENTICATED, MessageCode.PROXY_UNAUTHENTICATED)
CONTENT_ADVICE = advice_of(MessageCode.SPAN_REJECTED, MessageCode.PARTIAL_SUCCESS, MessageCode.SERVER_ERROR)
SIZE_ADVICE = advice_of(MessageCode.REQUEST_TOO_LARGE)
ADDRESS = r"http://127\.0\.0\.1:\d+"


def export_failing(message: str, advice: str) -> Line:
    return (
        logging.ERROR,
        (
            rf"Export failing, spans are queued in memory for \w+ \S+: {ADDRESS}/v1/traces: {message}\.? {advice}"
            r" \[2 spans\]"
        ),
    )


def dropped_span(name: str, message: str, advice: str = CONTENT_ADVICE) -> Line:
    where = rf"{ADDRESS}/v1/traces"
    return (
        logging.ERROR,
        rf"Dropped span '{name}' of trace tr-[0-9a-f]{{32}}: {where}: {message}\.? {advice} \[1 span\]",
    )


def both_spans_dropped(message: str, advice: str = CONTENT_ADVICE) -> list[Line]:
    return [dropped_span("first", message, advice), dropped_span("second", message, advice)]


RECOVERED: Line = (logging.WARNING, r"Export recovered for experiment \S+, after \d+ s of trouble")
SENT_AGAIN = r"spans that may have arrived are sent again without checking whether they are stored \(404: Not Found\)"
SENT_WITHOUT_LOOKUP: Line = (logging.WARNING, f"{SENT_AGAIN}: MLflow before 3.17 may count their tokens twice")


@dataclass(frozen=True)
class Row:
    """One kind of response and its outcome.

    Attributes:
        answers: The first responses. While the request after them is held, the counts of spans must be `between`.
        then: The response to all later requests.
        end: The counts of spans at the end.
        requests: Number of requests with spans.
        log_lines: All expected log lines.
        result: The result of `export`. None if it depends on timing: export and request have the same timeout.
        rest_paths: Paths of the requests to MLflow's REST API.
        rest_responses: Responses of MLflow's REST API by path; 404 to other paths.
    """

    name: str
    answers: tuple[Answer, ...] = ()
    then: Answer = ACCEPTED
    between: Counts = (0, 0, SPANS)
    end: Counts = (SPANS, 0, 0)
    requests: int = 1
    log_lines: Sequence[Line] = ()
    result: SpanExportResult | None = SUCCESS
    timeout: float = 10.0
    rest_paths: tuple[str, ...] = ()
    rest_responses: dict[str, Answer] = field(default_factory=dict)


# Kinds of rows


def row_delivered(name: str, answer: Answer, *log_lines: Line, **more: Any) -> Row:
    return Row(name, then=answer, log_lines=log_lines, **more)


def row_partial(name: str, answer: Answer, message: str, rejected: int = 1) -> Row:
    count = "1 span" if rejected == 1 else f"{rejected} spans"
    line = rf"Spans rejected: {ADDRESS}/v1/traces: {count} rejected: {message}\.? {CONTENT_ADVICE} "
    log_lines = [(logging.ERROR, rf"{line}\[{min(rejected, SPANS)} spans?\]")]
    end = (SPANS - min(rejected, SPANS), min(rejected, SPANS), 0)
    return Row(name, then=answer, end=end, log_lines=log_lines, result=FAILURE)


def row_retried(
    name: str,
    answer: Answer,
    message: str,
    advice: str = SERVER_ADVICE,
    *,
    may_have_arrived: bool = False,
    times: int = 2,
    **more: Any,
) -> Row:
    """The spans are kept and retried until they are accepted; failure and recovery are logged once.

    After a request that may have arrived, stored spans are looked up each time; here the lookup is not available.
    """
    result = SUCCESS if advice == SERVER_ADVICE else FAILURE
    rest_paths = (VERSION, *[BATCH_GET] * times) if may_have_arrived else ()
    log_lines = [export_failing(message, advice), *([SENT_WITHOUT_LOOKUP] if may_have_arrived else []), RECOVERED]
    defaults: dict[str, Any] = {"result": result, "rest_paths": rest_paths, "log_lines": log_lines, **more}
    return Row(name, (answer,) * times, **{"requests": times + 1, **defaults})


def row_not_mlflow(name: str, answer: Answer, message: str, advice: str = NOT_MLFLOW_ADVICE, **more: Any) -> Row:
    return row_retried(name, answer, message, advice, **more)


def row_login(name: str, answer: Answer, message: str) -> Row:
    return row_not_mlflow(name, answer, message, LOGIN_ADVICE)


def row_destination(name: str, answer: Answer, message: str, advice: str = DESTINATION_ADVICE, **more: Any) -> Row:
    return row_retried(name, answer, message, advice, **more)


def row_credentials(name: str, answer: Answer, message: str, **more: Any) -> Row:
    return row_retried(name, answer, f"{message}; credentials: argument credentials=", CREDENTIALS_ADVICE, **more)


def row_rejected(name: str, answer: Answer, message: str) -> Row:
    """Both spans are bad: one request with both, and two with each, because a rejection is confirmed.

    Before a part is sent again, the server's version is requested, because versions before 3.12 may have stored the
    other part; without a version, the stored spans are looked up, too.
    """
    rest_paths = (VERSION, BATCH_GET, BATCH_GET)
    log_lines = [SENT_WITHOUT_LOOKUP, *both_spans_dropped(message)]
    return Row(
        name, then=answer, end=(0, SPANS, 0), requests=5, log_lines=log_lines, result=FAILURE, rest_paths=rest_paths
    )


# Bodies


def partial(rejected: int, message: str) -> bytes:
    success = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return ExportTraceServiceResponse(partial_success=success).SerializeToString()


def detail(text: Any, status: int = 422) -> Answer:
    return Answer(status, headers=JSON, body=json.dumps({"detail": text}).encode())


def error(status: int, code: str, message: str, **more: str) -> Answer:
    return Answer(status, headers=JSON, body=json.dumps({"error_code": code, "message": message, **more}).encode())


def kubernetes(status: int, code: str, message: str) -> Answer:
    return Answer(status, headers=JSON, body=json.dumps({"error": {"code": code, "message": message}}).encode())


def text(status: int, message: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, headers={**TEXT, **named}, body=message.encode())


def page(status: int, title: str) -> Answer:
    body = f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{title}</body></html>"
    return Answer(status, headers=HTML, body=body.encode())


def redirect(status: int, location: str) -> Answer:
    return Answer(status, headers={"Location": location})


NO_NEWS = {"sqlstate": "KAM00", "error_class": "RESOURCE_NOT_FOUND"}
NO_EXPERIMENT = "No Experiment with id=999 exists"
SQL = f"\n[SQL: INSERT INTO spans VALUES (%(a)s)]\n[parameters: {{'a': '{PROMPT}'}}]\n(Background on this error at: x)"
PLAIN_404 = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"
LOGIN = f"https://sso.invalid/oauth/start?rd=%2Fv1%2Ftraces&key={SECRET}"
SAID_LOGIN = "the server redirects to https://sso.invalid/oauth/start, which is not followed with credentials"
CLOSED = r"127\.0\.0\.1:\d+ closed the connection without an answer \(\w+\)"
LATE = r"127\.0\.0\.1:\d+ did not answer in time"
SHORT = 3.0
"""Seconds for a request that takes longer; others must be answered within it on a machine that is busy, too."""

ROWS = [
    # Accepted, in all the forms that servers have for it.
    row_delivered("200, empty protobuf: MLflow 3.7 and later", Answer(headers=PROTOBUF)),
    row_delivered(
        "200, JSON labelled protobuf: MLflow 3.4 to 3.6", Answer(headers=PROTOBUF, body=b'{"partialSuccess":null}')
    ),
    row_delivered("200, JSON", Answer(headers=JSON, body=b'{"partialSuccess":{}}')),
    row_delivered("200, empty object", Answer(headers=JSON, body=b"{}")),
    row_delivered("200, JSON label without a body", Answer(headers=JSON)),
    row_delivered("200 without a Content-Type", Answer()),
    row_delivered("200, text", text(200, "OK")),
    row_delivered("201", Answer(201)),
    row_delivered("202", Answer(202)),
    row_delivered("204", Answer(204)),
    row_delivered("200, protobuf labelled JSON", Answer(headers=JSON, body=partial(0, ""))),
    row_delivered("200, JSON list", Answer(headers=JSON, body=b"[]")),
    row_delivered("200, undecodable, labelled protobuf", Answer(headers=PROTOBUF, body=b"\xff\xff\xff")),
    row_delivered("200, cut JSON", Answer(headers=JSON, body=b'{"partialSuccess":')),
    row_delivered("200, body ends in the middle", Answer(headers=PROTOBUF, body=b"12345678", truncate=True)),
    row_delivered(
        "200, reset in the middle of the body", Answer(headers=PROTOBUF, body=b"12345678", close="mid-body", reset=True)
    ),
    row_delivered("200, no body after the headers", Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")),
    row_delivered("200, end after the status", Answer(raw=b"HTTP/1.1 200 OK\r\n")),
    row_delivered(
        "200, chunks that end too early", Answer(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc")
    ),
    row_delivered(
        "200, labelled gzip but plain", Answer(headers={**PROTOBUF, "Content-Encoding": "gzip"}, body=b"12345678")
    ),
    row_delivered("200, labelled gzip and empty", Answer(headers={**PROTOBUF, "Content-Encoding": "gzip"})),
    row_delivered(
        "200, body drips beyond the time-out",
        Answer(headers=PROTOBUF, body=b"12345678", drip=SHORT / 4),
        timeout=SHORT,
        result=None,
    ),
    row_delivered(
        "200, a warning in protobuf",
        Answer(headers=PROTOBUF, body=partial(0, "use the other port")),
        (logging.WARNING, "Server message: use the other port"),
    ),
    # Accepted in part.
    row_partial("partial success, protobuf", Answer(headers=PROTOBUF, body=partial(1, "too old")), "too old"),
    row_partial("partial success of all", Answer(headers=PROTOBUF, body=partial(2, "too old")), "too old", 2),
    row_partial("partial success of more than was sent", Answer(headers=PROTOBUF, body=partial(9, "odd")), "odd", 9),
    row_partial(
        "partial success, JSON, number as text",
        Answer(headers=JSON, body=b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'),
        "too old",
    ),
    row_partial(
        "partial success, JSON labelled protobuf",
        Answer(headers=PROTOBUF, body=b'{"partialSuccess":{"rejectedSpans":1,"errorMessage":"too old"}}'),
        "too old",
    ),
    row_partial(
        "partial success, protobuf labelled JSON", Answer(headers=JSON, body=partial(1, "mislabelled")), "mislabelled"
    ),
    row_partial(
        "partial success, protobuf labelled text", Answer(headers=TEXT, body=partial(1, "mislabelled")), "mislabelled"
    ),
    row_partial(
        "partial success, gzip",
        Answer(
            headers={**JSON, "Content-Encoding": "gzip"}, body=gzip.compress(b'{"partialSuccess":{"rejectedSpans":1}}')
        ),
        "",
    ),
    row_partial("partial success, prompt in SQL", Answer(headers=PROTOBUF, body=partial(1, "bad" + SQL)), "bad"),
    # Redirects and login pages.
    *(
        row_login(f"{status} to a login", redirect(status, LOGIN), f"{status}: {SAID_LOGIN}")
        for status in (301, 302, 303, 307, 308)
    ),
    row_login("304", Answer(304), "304: the server redirects to elsewhere, which is not followed with credentials"),
    row_login(
        "307 to itself",
        redirect(307, TRACES_PATH),
        "307: the server redirects to /v1/traces, which is not followed with credentials",
    ),
    row_login(
        "200, login page",
        page(200, "Sign in"),
        r"200 with an HTML page \(Sign in\) instead of an answer to OTLP: a login page\?",
    ),
    row_login(
        "200, login page without a label",
        Answer(body=b"\n<html><title>Sign in</title></html>"),
        r"200 with an HTML page \(Sign in\) instead of an answer to OTLP: a login page\?",
    ),
    row_login(
        "200, login page labelled JSON",
        Answer(headers=JSON, body=b"<!doctype html><title>Sign in</title>"),
        r"200 with an HTML page \(Sign in\) instead of an answer to OTLP: a login page\?",
    ),
    row_login(
        "200, HTML label without a body",
        Answer(headers=HTML),
        r"200 with an HTML page instead of an answer to OTLP: a login page\?",
    ),
    row_not_mlflow("403, page", page(403, "Forbidden"), r"403: an HTML page \(Forbidden\)"),
    row_not_mlflow("400, page", page(400, "Bad Request"), r"400: an HTML page \(Bad Request\)"),
    # Not MLflow, or MLflow without the endpoint.
    row_not_mlflow(
        "404, page: MLflow's Flask, a wrong path",
        Answer(404, headers=HTML, body=PLAIN_404.encode()),
        r"404: an HTML page \(404 Not Found\)",
    ),
    row_not_mlflow("405", detail("Method Not Allowed", 405), "405: Method Not Allowed"),
    row_not_mlflow(
        "501: MLflow's file store",
        detail("REST OTLP span logging is not supported by FileStore", 501),
        "501: REST OTLP span logging is not supported by FileStore",
        advice_of(MessageCode.FILE_STORE),
    ),
    # Credentials.
    row_credentials(
        "401: MLflow's basic-auth",
        text(401, "You are not authenticated. Please see\nthe docs.", WWW_Authenticate='Basic realm="mlflow"'),
        r"401: You are not authenticated\. Please see the docs\.",
    ),
    row_credentials(
        "401: an authorization function's",
        Answer(
            401, headers={**JSON, "WWW-Authenticate": 'Bearer error="invalid_token"'}, body=b'{"message":"expired"}'
        ),
        "401: expired",
    ),
    row_credentials(
        "401: Kubernetes, expired",
        kubernetes(401, "UNAUTHENTICATED", "Authentication with the Kubernetes API failed."),
        "401: Authentication with the Kubernetes API failed.",
    ),
    row_credentials(
        "401: Kubernetes, none",
        kubernetes(401, "UNAUTHENTICATED", "Missing Authorization header or X-Forwarded-Access-Token header."),
        "401: Missing Authorization header or X-Forwarded-Access-Token header.",
    ),
    row_credentials("401, page", page(401, "Unauthorized"), r"401: an HTML page \(Unauthorized\)"),
    row_retried("407", Answer(407), "407", CREDENTIALS_ADVICE),  # the proxy's credentials, not those of the server
    # The destination.
    row_destination(
        "404: unknown experiment, 3.10", error(404, "RESOURCE_DOES_NOT_EXIST", NO_EXPERIMENT), f"404: {NO_EXPERIMENT}"
    ),
    row_destination(
        "404: unknown experiment, 3.13",
        error(404, "RESOURCE_DOES_NOT_EXIST", NO_EXPERIMENT, **NO_NEWS),
        f"404: {NO_EXPERIMENT}",
    ),
    row_destination(
        "422: unknown experiment, 3.6 and 3.8",
        detail(f"Failed to log OpenTelemetry spans: Trace tr-12: {NO_EXPERIMENT}"),
        f"422: Failed to log OpenTelemetry spans: Trace tr-12: {NO_EXPERIMENT}",
    ),
    row_destination(
        "422: no experiment header",
        detail(
            [{"type": "missing", "loc": ["header", "x-mlflow-experiment-id"], "msg": "Field required", "input": PROMPT}]
        ),
        "422: header.x-mlflow-experiment-id: Field required",
    ),
    row_destination(
        "400: no experiment header, basic-auth",
        text(400, "Missing required header: X-Mlflow-Experiment-Id"),
        "400: Missing required header: X-Mlflow-Experiment-Id",
    ),
    row_destination(
        "400: malformed experiment id",
        error(400, "INVALID_PARAMETER_VALUE", "Invalid experiment ID 'abc'. Experiment ID must be a valid integer."),
        "400: Invalid experiment ID 'abc'. Experiment ID must be a valid integer.",
    ),
    row_destination(
        "404: unknown workspace",
        error(404, "RESOURCE_DOES_NOT_EXIST", "Workspace 'nope' not found"),
        "404: Workspace 'nope' not found",
    ),
    row_destination(
        "400: malformed workspace",
        error(400, "INVALID_PARAMETER_VALUE", "Workspace name 'Team A!' must match the pattern ^[a-z0-9]+$"),
        r"400: Workspace name 'Team A!' must match the pattern \^\[a-z0-9\]\+\$",
    ),
    row_destination(
        "400: Kubernetes without a workspace",
        kubernetes(400, "INVALID_PARAMETER_VALUE", "Workspace context is required for this request."),
        "400: Workspace context is required for this request.",
    ),
    row_destination(
        "500: a workspace where there are none",
        error(500, "FEATURE_DISABLED", "Workspace APIs are not available: workspaces are not enabled on this server"),
        "500: Workspace APIs are not available: workspaces are not enabled on this server",
        advice_of(MessageCode.WORKSPACES_DISABLED),
        times=4,
    ),
    row_destination("403: basic-auth", text(403, "Permission denied"), "403: Permission denied"),
    row_destination(
        "403: Kubernetes",
        kubernetes(403, "PERMISSION_DENIED", "Permission denied for requested operation."),
        "403: Permission denied for requested operation.",
    ),
    row_destination(
        "403: MLflow's allowed hosts",
        text(403, "Invalid Host header - possible DNS rebinding attack detected"),
        "403: Invalid Host header - possible DNS rebinding attack detected",
        advice_of(MessageCode.HOST_NOT_ALLOWED),
    ),
    row_destination("404, JSON: another API", detail("Not Found", 404), "404: Not Found"),
    row_destination("404, empty", Answer(404), "404"),
    # The server is away, or has no time.
    row_retried("408", Answer(408), "408"),
    row_retried("425", Answer(425), "425"),
    row_retried("429", text(429, "slow down"), "429: slow down"),
    row_retried(
        "500, plain text: Kubernetes API away",
        text(500, "Internal Server Error"),
        "500: Internal Server Error",
        may_have_arrived=True,
        times=1,
    ),
    row_retried(
        "500: Kubernetes API answers 503",
        kubernetes(500, "INTERNAL_ERROR", "Failed to perform Kubernetes authorization check: (503)"),
        r"500: Failed to perform Kubernetes authorization check: \(503\)",
        may_have_arrived=True,
        times=1,
    ),
    row_retried("500: nothing else is accepted", Answer(500), "500", may_have_arrived=True),
    row_retried(
        "502, page of a proxy",
        page(502, "502 Bad Gateway"),
        r"502: an HTML page \(502 Bad Gateway\)",
        may_have_arrived=True,
    ),
    row_retried(
        "503: MLflow's database is locked",
        error(503, "TEMPORARILY_UNAVAILABLE", "(sqlite3.OperationalError) database is locked" + SQL),
        r"503: \(sqlite3\.OperationalError\) database is locked",
        may_have_arrived=True,
    ),
    row_retried("503, page", page(503, "Down for maintenance"), r"503: an HTML page \(Down for maintenance\)"),
    row_retried("503, empty", Answer(503), "503"),
    row_retried("503, long", text(503, "x" * 5000), "503: x{300}[.]{3}"),
    row_retried("503, control characters", text(503, "a\x1b[31mb"), r"503: a\?\[31mb"),
    row_retried("503, undecodable", Answer(503, body=b"\xff\x00\xfe"), "503"),
    row_retried(
        "503, labelled gzip but plain", Answer(503, headers={"Content-Encoding": "gzip"}, body=b"plain"), "503"
    ),
    row_retried(
        "503, body ends in the middle", Answer(503, headers=TEXT, body=b"away now", truncate=True), "503: away"
    ),
    row_retried("504", text(504, "upstream timed out"), "504: upstream timed out", may_have_arrived=True),
    row_retried("507", Answer(507), "507"),
    row_retried("503, closes the connection", Answer(503, keep_alive=False), "503"),
    row_retried(
        "400: MLflow's SQLite file is no database",
        error(400, "BAD_REQUEST", "(sqlite3.DatabaseError) file is not a database" + SQL),
        r"400: \(sqlite3\.DatabaseError\) file is not a database",
        may_have_arrived=True,
    ),
    # Connections that end.
    row_retried(
        "closed before the request is read", Answer(close="before-request"), CLOSED, may_have_arrived=True, times=1
    ),
    row_retried(
        "reset before the request is read",
        Answer(close="before-request", reset=True),
        CLOSED,
        may_have_arrived=True,
        times=1,
    ),
    row_retried(
        "closed after the request's headers", Answer(close="after-headers-read"), CLOSED, may_have_arrived=True
    ),
    row_retried(
        "reset after the request's headers",
        Answer(close="after-headers-read", reset=True),
        CLOSED,
        may_have_arrived=True,
        times=1,
    ),
    row_retried("closed after the request", Answer(close="after-request"), CLOSED, may_have_arrived=True),
    row_retried("reset after the request", Answer(close="after-request", reset=True), CLOSED, may_have_arrived=True),
    row_retried(
        "reset in the middle of the status", Answer(raw=b"HTTP/1.1 20", reset=True), CLOSED, may_have_arrived=True
    ),
    row_retried(
        "reset after the status", Answer(raw=b"HTTP/1.1 200 OK\r\n", reset=True), CLOSED, may_have_arrived=True
    ),
    row_retried(
        "no HTTP",
        Answer(raw=b"220 smtp ready\r\n"),
        r"127\.0\.0\.1:\d+ does not speak HTTP",
        advice_of(MessageCode.NOT_HTTP),
        may_have_arrived=True,
        result=SUCCESS,
    ),
    row_retried(
        "reset after the request, MLflow 3.17",
        Answer(close="after-request", reset=True),
        CLOSED,
        rest_paths=(VERSION,),
        rest_responses={VERSION: Answer(body=b"3.17.2")},
    ),
    row_retried(
        "no answer in time", Answer(delay=30), LATE, may_have_arrived=True, times=1, timeout=SHORT, result=None
    ),
    *(
        row_retried(name, answer, message, may_have_arrived=may_have_arrived, times=1, timeout=SHORT, result=None)
        for name, answer, message, may_have_arrived in (
            ("status and headers drip beyond the time-out", Answer(drip_head=SHORT / 10), LATE, True),
            (
                "503, body drips beyond the time-out",
                Answer(503, headers=TEXT, body=b"away" * 9, drip=SHORT / 10),
                "503: .*",
                False,
            ),
        )
    ),
    # Size and content.
    Row("413", (Answer(413),), requests=3),
    Row(
        "413 for a single span",
        then=page(413, "Request Entity Too Large"),
        end=(0, SPANS, 0),
        requests=3,
        log_lines=both_spans_dropped(r"413: an HTML page \(Request Entity Too Large\)", SIZE_ADVICE),
        result=FAILURE,
    ),
    row_rejected(
        "400: no OTLP",
        detail("Invalid OpenTelemetry protobuf format", 400),
        "400: Invalid OpenTelemetry protobuf format",
    ),
    row_rejected(
        "400: a long session",
        error(400, "INVALID_PARAMETER_VALUE", "'Session ID' exceeds the maximum length of 250 characters"),
        "400: 'Session ID' exceeds the maximum length of 250 characters",
    ),
    row_rejected(
        "400: a prompt in SQL",
        error(400, "BAD_REQUEST", "(psycopg2.errors.NumericValueOutOfRange) bigint out of range" + SQL),
        r"400: \(psycopg2\.errors\.NumericValueOutOfRange\) bigint out of range",
    ),
    row_rejected(
        "400: a trace id of another workspace, 3.10",
        error(400, "BAD_REQUEST", "No row was found"),
        "400: No row was found",
    ),
    row_rejected(
        "422: a bad span", detail("Failed to log OpenTelemetry spans"), "422: Failed to log OpenTelemetry spans"
    ),
    row_rejected("411", Answer(411), "411"),
    row_rejected("418", Answer(418), "418"),
    Row(
        "422 once: PostgreSQL crashed",
        (detail("Failed to log OpenTelemetry spans"),),
        requests=3,
        log_lines=[SENT_WITHOUT_LOOKUP],
        rest_paths=(VERSION, BATCH_GET, BATCH_GET),
    ),
]


def test_rows_have_unique_names() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 60


class BackgroundExport:
    """An export in a background thread."""

    def __init__(self, exporter: MLflowSpanExporter) -> None:
        self._exporter = exporter
        self._result: SpanExportResult | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._result = self._exporter.export(make_spans("first", "second"))

    def result(self) -> SpanExportResult | None:
        self._thread.join(20)
        return self._result


def span_counts(exporter: MLflowSpanExporter) -> Counts:
    stats = exporter.stats()
    return stats.delivered, stats.dropped, SPANS - stats.delivered - stats.dropped


def log_records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Records of this library at any level, and warnings of its dependencies."""
    return [
        (record.levelno, record.getMessage())
        for record in caplog.records
        if record.name.startswith(OURS) or record.levelno >= logging.WARNING
    ]


def find_differences(log_lines: Sequence[tuple[int, str]], expected: Sequence[Line]) -> str:
    """Return unexpected (+) and missing (-) log lines; empty if there are none. The order does not matter."""
    missing = list(expected)
    unexpected = []
    for level, message in log_lines:
        line = next((line for line in missing if line[0] == level and re.fullmatch(line[1] + CODE, message)), None)
        if line is None:
            unexpected.append(f"{logging.getLevelName(level)} {message}")
        else:
            missing.remove(line)
    return "\n".join([*(f"+ {line}" for line in unexpected), *(f"- {logging.getLevelName(a)} {b}" for a, b in missing)])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_response_has_one_outcome(row: Row, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    release = threading.Event()
    # Held, if the timeout of a request leaves time to check the counts in between.
    held = Answer(row.then.status, headers=row.then.headers, body=row.then.body, hold=release)
    gate = [held] if row.answers and row.timeout > SHORT else []
    scripted_server.answer(*row.answers, *gate, then=row.then)
    for path, answer in row.rest_responses.items():
        scripted_server.answer(answer, path=path)
    exporter = MLflowSpanExporter(
        tracking_uri=scripted_server.url, experiment_id="1", credentials=SECRET, timeout=row.timeout
    )
    # The scripted server has no version: it would not count as MLflow (tests/delivery/test_other_services.py).
    pipeline = pipeline_of(exporter)
    assert pipeline is not None
    pipeline._clients.otlp._identify = None
    request_count = sum(answer.close != "before-request" for answer in row.answers)
    try:
        with skip_retry_delays(exporter):
            export = BackgroundExport(exporter)
            if gate:
                scripted_server.wait_for(request_count + 1)
                assert span_counts(exporter) == row.between
                assert exporter.stats().requests == len(row.answers) + 1
                assert not find_differences(log_records(caplog), [line for line in row.log_lines if line != RECOVERED])
                if row.result is FAILURE:  # it does not wait for failures that a user has to fix
                    assert export.result() is FAILURE
                release.set()
            result = export.result()
            assert row.result in (None, result)
            assert result is not SUCCESS or exporter.stats().delivered == SPANS
            assert exporter.force_flush(20_000)
        assert span_counts(exporter) == row.end
        assert exporter.stats().requests == row.requests
    finally:
        release.set()
        exporter.shutdown()
    assert not find_differences(log_records(caplog), row.log_lines)
    resent = scripted_server.to(TRACES_PATH)
    assert len(resent) == row.requests - (len(row.answers) - request_count)
    assert tuple(request.path for request in scripted_server.requests if request.path != TRACES_PATH) == row.rest_paths
    assert all(request.headers["authorization"] == f"Bearer {SECRET}" for request in scripted_server.requests)


@contextmanager
def exporter_to(server: ScriptedServer, **arguments: Any) -> Iterator[MLflowSpanExporter]:
    exporter = MLflowSpanExporter(tracking_uri=server.url, experiment_id="1", credentials=SECRET, **arguments)
    try:
        yield exporter
    finally:
        exporter.shutdown()


# Retry-After


def in_seconds(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("value", "min_seconds"),
    [
        (lambda: "1", 1.0),
        (lambda: in_seconds(2), 1.0),  # dates have no fractions
        # As without the header: 0.5 s +-20 %.
        (lambda: "0", 0.4),
        (lambda: in_seconds(-60), 0.4),
        (lambda: "-5", 0.4),
        (lambda: "soon", 0.4),
        (lambda: "", 0.4),
    ],
    ids=["seconds", "date", "none", "past", "negative", "words", "empty"],
)
def test_retry_after_delays_next_attempt(
    value: Callable[[], str], min_seconds: float, scripted_server: ScriptedServer
) -> None:
    def answer(request: RecordedRequest) -> Answer:
        # A date is relative to the response: the request may have taken a while.
        return Answer(429, headers={"Retry-After": value()}) if request is scripted_server.requests[0] else ACCEPTED

    scripted_server.answer_with(TRACES_PATH, answer)
    with exporter_to(scripted_server) as exporter:
        assert exporter.export(make_spans("first", "second")) is SUCCESS  # within the timeout of 10 s
        assert span_counts(exporter) == (SPANS, 0, 0)
    first, second = scripted_server.to(TRACES_PATH)
    assert second.at - first.at >= min_seconds


@pytest.mark.parametrize(
    "value", ["100", "99999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"], ids=["long", "absurd", "date"]
)
def test_retry_after_beyond_timeout_drops_nothing(
    value: str, scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    scripted_server.answer(Answer(503, headers={"Retry-After": value}), then=ACCEPTED)
    with exporter_to(scripted_server, timeout=SHORT) as exporter:
        assert exporter.export(make_spans("first", "second")) is FAILURE
        assert span_counts(exporter) == (0, 0, SPANS)
        assert len(scripted_server.to(TRACES_PATH)) == 1
        pipeline = exporter._pipeline
        assert pipeline is not None
        wait_until(
            lambda: not pipeline.work_queue.in_progress(), what="it is delayed"
        )  # a flush cancels pending delays
        assert exporter.force_flush(20_000)
        assert span_counts(exporter) == (SPANS, 0, 0)
    assert not find_differences(log_records(caplog), [export_failing("503", SERVER_ADVICE), RECOVERED])
    assert len(scripted_server.to(TRACES_PATH)) == 2


# Connections


def test_export_succeeds_when_server_starts_later(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(listening=False) as server, exporter_to(server, timeout=SHORT) as exporter:
        assert exporter.export(make_spans("first", "second")) is FAILURE
        assert span_counts(exporter) == (0, 0, SPANS)
        server.listen()
        assert exporter.force_flush(20_000)
        assert span_counts(exporter) == (SPANS, 0, 0)
    message = r"127\.0\.0\.1:\d+ refuses connections: is the server running\?"
    assert not find_differences(
        log_records(caplog), [export_failing(message, advice_of(MessageCode.CONNECTION_REFUSED)), RECOVERED]
    )
    assert [request.path for request in server.requests] == [TRACES_PATH]


def test_closed_idle_connection_is_replaced_without_error(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with exporter_to(scripted_server) as exporter:
        for _ in range(3):
            assert exporter.export(make_spans("first", "second")) is SUCCESS
            scripted_server.close_idle_connections()
        assert exporter.stats().requests == 3
    assert not log_records(caplog)
    assert [request.connection for request in scripted_server.requests] == [1, 2, 3]


# Lookup of stored spans


class StoredSpans:
    """MLflow's lookup of stored spans: the named spans of the first request."""

    def __init__(self, server: ScriptedServer, version: str, *names: str) -> None:
        self._server, self._names = server, names
        server.answer(Answer(body=version.encode()), path=VERSION)
        server.answer_with(BATCH_GET, self)

    def __call__(self, request: RecordedRequest) -> Answer:
        traces = [
            {
                "spans": [
                    {
                        "trace_id": base64.b64encode(span.trace_id).decode(),
                        "span_id": base64.b64encode(span.span_id).decode(),
                    }
                ]
            }
            for span in self._server.to(TRACES_PATH)[0].spans()
            if span.name in self._names and f"trace_ids=tr-{span.trace_id.hex()}" in request.query.split("&")
        ]
        return Answer(headers=JSON, body=json.dumps({"traces": traces}).encode())


@pytest.mark.parametrize(
    ("stored", "rest_paths", "resent"),
    [
        (("first", "second"), 1, []),
        # Looked up until the response stays the same, because the server may still be writing.
        (("first",), 2, ["second"]),
        ((), 2, ["first", "second"]),
    ],
    ids=["all", "some", "none"],
)
def test_request_that_may_have_arrived_sends_only_missing_spans(
    stored: tuple[str, ...],
    rest_paths: int,
    resent: list[str],
    scripted_server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    StoredSpans(scripted_server, "3.13.0", *stored)
    scripted_server.answer(Answer(502), then=ACCEPTED)
    with exporter_to(scripted_server) as exporter:
        assert exporter.export(make_spans("first", "second")) is SUCCESS
        assert span_counts(exporter) == (SPANS, 0, 0)
        assert exporter.stats().requests == 1 + bool(resent)
        assert exporter.export(make_spans("third")) is SUCCESS  # the recovery is logged by now
    paths = [request.path for request in scripted_server.requests]
    again = [TRACES_PATH] if resent else []
    assert paths == [TRACES_PATH, VERSION, *[BATCH_GET] * rest_paths, *again, TRACES_PATH]
    names = [span.name for request in scripted_server.to(TRACES_PATH) for span in request.spans()]
    assert names == ["first", "second", *resent, "third"]
    assert not find_differences(log_records(caplog), [export_failing("502", SERVER_ADVICE), RECOVERED])
