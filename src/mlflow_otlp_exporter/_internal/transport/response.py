"""Classification of responses and failures: what a response to `POST /v1/traces` means for the spans that were sent.

Pure functions. Their rules follow the observed responses of MLflow 3.4 to 3.17, proxies and login pages, which
docs/answers.md lists.
"""

import email.utils
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.model.export_outcome import DELIVERED, Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import HttpResponse, TransportError

_MAX_MESSAGE_LENGTH = 300
# Text of others is cut before a regular expression sees it; only the beginning of a page can hold its title.
_MAX_TEXT_LENGTH, _MAX_TITLE_BYTES = 10_000, 4_096
_MAX_COUNT_DIGITS = 18
_HTML = rb"(?i)^\s*(<!doctype|<html|<head|<body|<\?xml)"
# SQLAlchemy appends the statement and its parameters, which may hold prompts, to its messages. PostgreSQL appends the
# row or the key, and the line of the statement.
_SQL = r"(?s)\[SQL:.*|\[parameters:.*|\(Background on this error.*|\bDETAIL: .*|\bLINE \d{1,9}: .*"
# MLflow quotes values that are too long for it; a quoted text longer than a name may be a prompt.
_LONG_QUOTED_TEXT = r"(['\"`])(?:(?!\1).){100,}(?:\1|$)"
# MLflow 3.18 rejects a whole request for one such trace.
_TRACE_ELSEWHERE = r"Trace with ID 'tr-([0-9a-f]{32})' already exists in another experiment"
# nginx and AWS, Go, Apache, Tomcat.
_TLS_REQUIRED = rb"to HTTPS port|to an HTTPS server|to an SSL-enabled server|port requires TLS"
# Plain texts of MLflow's basic auth and of its check of the Host header.
_OWN_TEXTS = (b"Permission denied", b"You are not authenticated", b"Invalid Host header")
# Failures that another service at MLflow's address may cause; the other codes tell what is wrong.
_AMBIGUOUS_CODES = frozenset(
    {MessageCode.HTML_PAGE, MessageCode.NO_OTLP_ENDPOINT, MessageCode.DESTINATION_REJECTED}
    | {MessageCode.PERMISSION_DENIED, MessageCode.SPAN_REJECTED}
)
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
# SQLite's messages about a damaged file, which MLflow returns with status 400, as if the request were wrong.
_DAMAGED_DATABASE = ("file is not a database", "database disk image is malformed")
# A longer `Retry-After` is cut: a clock or a proxy may be wrong, and the export would stop for days without notice.
_MAX_RETRY_AFTER_SECONDS = 3600.0


def classify_error(error: TransportError) -> ExportOutcome:
    cause = FailureKind.CREDENTIALS if error.is_credential_error else FailureKind.SERVER
    code = MessageCode.CREDENTIAL_UNAVAILABLE if error.is_credential_error else error.code
    arrived = error.may_have_arrived
    return ExportOutcome(Disposition.RETRYABLE, cause, error.message, may_have_arrived=arrived, code=code)


def classify_response(response: HttpResponse) -> ExportOutcome:
    """Classify a response by its status, headers and body."""
    outcome = _classify_response(response)
    if response.status in (401, 403) and "mlflow-otlp gateway" in outcome.message:  # also behind a Collector
        is_unknown = response.status == 401
        return outcome._replace(code=MessageCode.GATEWAY_UNAUTHENTICATED if is_unknown else MessageCode.GATEWAY_DENIED)
    if outcome.code in _AMBIGUOUS_CODES and _is_foreign(response):
        outcome = outcome._replace(is_foreign=True)
    is_proxy_error, is_foreign = response.status in (403, 502, 503, 504), outcome.is_foreign and outcome.message
    if response.proxy and (is_proxy_error or is_foreign) and not error_code(response):
        code = MessageCode.PROXY if is_proxy_error else outcome.code
        return outcome._replace(message=f"{outcome.message}, through the proxy {response.proxy}", code=code)
    return outcome


def _classify_response(response: HttpResponse) -> ExportOutcome:
    status = response.status
    if 200 <= status < 300:
        return _classify_success(response)
    text = server_message(response)
    message = f"{status}: {text}" if text else f"{status}"
    if code := _wrong_protocol_code(response, text):
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.NOT_MLFLOW, message, status, code=code)
    if 300 <= status < 400:
        location = _to_one_line(response.headers.get("location", "elsewhere").partition("?")[0])
        message = f"{status}: the server redirects to {location}, which is not followed with credentials"
        code = MessageCode.REDIRECTED
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.NOT_MLFLOW, message, status, code=code)
    if status in (401, 407):
        code = MessageCode.UNAUTHENTICATED if status == 401 else MessageCode.PROXY_UNAUTHENTICATED
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.CREDENTIALS, message, status, code=code)
    if status == 413:
        code = MessageCode.REQUEST_TOO_LARGE
        return ExportOutcome(Disposition.TOO_LARGE, FailureKind.SIZE, message, status, code=code)
    if (is_html(response) and status not in _TRANSIENT) or status in (405, 501):
        # 501: MLflow's file store; 404 as HTML and 405: another server, or MLflow under another path. The 502 of a
        # proxy is HTML, too, but means that the server is unavailable.
        code = MessageCode.FILE_STORE if "FileStore" in text else MessageCode.NO_OTLP_ENDPOINT
        delay = parse_retry_after(response.headers)
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.NOT_MLFLOW, message, status, delay, code=code)
    if status == 400 and (match := re.match(_TRACE_ELSEWHERE, text)):
        trace_id, code = int(match.group(1), 16), MessageCode.TRACE_IN_OTHER_EXPERIMENT
        cause = FailureKind.CONTENT
        return ExportOutcome(Disposition.PERMANENT, cause, message, status, trace_id=trace_id, code=code)
    if _is_destination_error(response, text):
        code = _destination_code(response, text)
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.DESTINATION, message, status, code=code)
    is_server_error = status in _TRANSIENT or status < 200 or status >= 500
    if is_server_error or (status == 400 and any(words in text for words in _DAMAGED_DATABASE)):
        code, delay = _server_code(response, text), parse_retry_after(response.headers)
        arrived = _may_have_arrived(response, text)
        return ExportOutcome(
            Disposition.RETRYABLE, FailureKind.SERVER, message, status, delay, may_have_arrived=arrived, code=code
        )
    return ExportOutcome(Disposition.PERMANENT, FailureKind.CONTENT, message, status, code=MessageCode.SPAN_REJECTED)


def _is_foreign(response: HttpResponse) -> bool:
    """Whether MLflow has never made such an error: a proxy in front of it has, or another service."""
    if response.status < 300:
        return False
    if response.status in (404, 405):
        return not error_code(response)  # any FastAPI application answers `{"detail": "Not Found"}`
    content = parse_json(response.body)
    is_own = isinstance(content, dict) and ("detail" in content or bool(error_code(response)))
    return not is_own and not response.body.startswith(_OWN_TEXTS)


def _may_have_arrived(response: HttpResponse, text: str) -> bool:
    """Whether a failing server may have stored the spans, or some of them: before 3.12, each trace is stored alone.

    A database that stops during a request makes MLflow answer 503; so does Envoy if MLflow is killed during a request.
    All other 503 come from servers that have passed nothing on.
    """
    if response.status == 503:
        return error_code(response) == "TEMPORARILY_UNAVAILABLE" or "disconnect/reset before headers" in text
    # A 1xx response precedes the actual one, which is not read.
    return response.status in (400, 500, 502, 504) or response.status < 200


def _wrong_protocol_code(response: HttpResponse, text: str) -> MessageCode | None:
    """Recognize answers of a port that expects TLS, a client certificate, HTTP/2 or gRPC."""
    status = response.status
    if status == 400 and re.search(_TLS_REQUIRED, response.body[:_MAX_TITLE_BYTES]):
        return MessageCode.TLS_REQUIRED
    if status in (400, 403) and "SSL certificate" in text:  # nginx, the gateway
        return MessageCode.TLS_REJECTED
    is_http2_only = status in (426, 505) or (status == 415 and "grpc" in text.lower())
    return MessageCode.HTTP2_ONLY if is_http2_only else None


def _destination_code(response: HttpResponse, text: str) -> MessageCode:
    """Distinguish workspace, experiment, permission and host name; the first match counts."""
    lowered = text.lower()
    mlflow_code = error_code(response)
    if response.status == 403:
        return MessageCode.HOST_NOT_ALLOWED if "invalid host header" in lowered else MessageCode.PERMISSION_DENIED
    if mlflow_code == "PERMISSION_DENIED":
        return MessageCode.PERMISSION_DENIED
    if mlflow_code == "FEATURE_DISABLED":
        return MessageCode.WORKSPACES_DISABLED
    if "workspace" in lowered:
        return MessageCode.WORKSPACE_REQUIRED if "required" in lowered else MessageCode.WORKSPACE_NOT_FOUND
    if "experiment" in lowered:
        is_required = "x-mlflow-experiment-id" in lowered
        return MessageCode.EXPERIMENT_REQUIRED if is_required else MessageCode.EXPERIMENT_NOT_FOUND
    is_missing = response.status == 404 and not mlflow_code
    return MessageCode.NO_OTLP_ENDPOINT if is_missing else MessageCode.DESTINATION_REJECTED


def _server_code(response: HttpResponse, text: str) -> MessageCode:
    if any(words in text for words in _DAMAGED_DATABASE):
        return MessageCode.DATABASE_DAMAGED
    if response.status == 429:
        return MessageCode.RATE_LIMITED
    if "authorization check" in text:
        return MessageCode.AUTHORIZATION_CHECK_FAILED
    if response.status == 500:
        return MessageCode.SERVER_ERROR
    is_database_error = error_code(response) == "TEMPORARILY_UNAVAILABLE"
    return MessageCode.DATABASE_UNAVAILABLE if is_database_error else MessageCode.SERVER_UNAVAILABLE


def _classify_success(response: HttpResponse) -> ExportOutcome:
    """2xx: protobuf, JSON, JSON labelled protobuf (MLflow 3.4 to 3.6) or an empty body; but not a login page."""
    status, body = response.status, response.body
    if is_html(response):
        message = f"{status} with {server_message(response)} instead of an answer to OTLP: a login page?"
        code = MessageCode.HTML_PAGE
        return ExportOutcome(Disposition.RETRYABLE, FailureKind.NOT_MLFLOW, message, status, is_foreign=True, code=code)
    if not body and response.headers.get("content-type", "").startswith("text/"):
        return ExportOutcome(Disposition.SUCCESS, status=status, is_foreign=True)
    if not body or not response.is_complete:
        # The status counts even if the body is broken, because sending again would store the spans twice.
        return DELIVERED
    rejected, text, is_foreign = _parse_partial_success(body)
    if rejected:
        message, code = f"{pluralize(rejected, 'span')} rejected: {text}", MessageCode.PARTIAL_SUCCESS
        return ExportOutcome(
            Disposition.PARTIAL_SUCCESS, FailureKind.CONTENT, message, status, rejected_count=rejected, code=code
        )
    code = MessageCode.SERVER_MESSAGE
    return ExportOutcome(Disposition.SUCCESS, message=text, status=status, is_foreign=is_foreign, code=code)


def _parse_partial_success(body: bytes) -> tuple[int, str, bool]:
    """Rejected spans and message of an `ExportTraceServiceResponse`; `(0, "", True)` if the body is something else.

    The first byte distinguishes JSON from protobuf whatever the Content-Type: `{` would be field 15 as a group, which
    the message does not have. A line feed may be either, because it is the tag of field 1: protobuf is tried first.
    """
    message = None if body[:1] in (b"{", b"[") else _parse_protobuf(body)
    if message is None:
        content = parse_json(body)
        partial = content.get("partialSuccess") or content.get("partial_success") if isinstance(content, dict) else None
        if not isinstance(partial, dict):
            is_own = isinstance(content, dict) and set(content) <= {"partialSuccess", "partial_success"}
            return 0, "", not is_own and body.strip() not in (b"null", b"[]")
        # JSON carries 64-bit numbers as strings.
        rejected = str(partial.get("rejectedSpans", partial.get("rejected_spans", 0)))
        text = partial.get("errorMessage", partial.get("error_message", ""))
        is_count = rejected.isdecimal() and len(rejected) <= _MAX_COUNT_DIGITS
        return int(rejected) if is_count else 0, sanitize_server_text(str(text or "")), False
    partial_success = message.partial_success
    return max(0, partial_success.rejected_spans), sanitize_server_text(partial_success.error_message), False


def _parse_protobuf(body: bytes) -> trace_service_pb2.ExportTraceServiceResponse | None:
    try:
        return trace_service_pb2.ExportTraceServiceResponse.FromString(body)
    except DecodeError:
        return None


def is_html(response: HttpResponse) -> bool:
    """Whether the body is a page, judged by its label or its beginning."""
    is_labelled = "html" in response.headers.get("content-type", "").lower()
    # MLflow's basic auth labels its plain sentences as HTML.
    is_sentence = response.status in (401, 403) and response.body.strip() and b"<" not in response.body
    return (is_labelled and not is_sentence) or bool(re.match(_HTML, response.body))


def _is_destination_error(response: HttpResponse, text: str) -> bool:
    """Whether workspace, experiment or permission is wrong, not the spans."""
    if response.status in (403, 404):
        return True
    if error_code(response) in ("FEATURE_DISABLED", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
        return True
    # 3.6 and 3.8 answer 422 for an unknown experiment; 400 and 422 name the header that is missing or malformed.
    return response.status in (400, 422) and any(word in text.lower() for word in ("experiment", "workspace"))


def error_code(response: HttpResponse) -> str:
    """MLflow's error code of a response; empty if there is none."""
    content = parse_json(response.body)
    if isinstance(content, dict):
        error = content.get("error")
        code = error.get("code") if isinstance(error, dict) else content.get("error_code")
        return str(code or "")
    return ""


def server_message(response: HttpResponse) -> str:
    """The server's message, from any of MLflow's five error formats; cut, on one line, without SQL parameters."""
    # About missing and forbidden objects, MLflow quotes only names, with whole sentences between them.
    sanitize = _to_one_line if response.status in (403, 404) else sanitize_server_text
    challenge = response.headers.get("www-authenticate", "")[:_MAX_TEXT_LENGTH]
    if reason := re.search(r'error_description="([^"]+)"', challenge):
        return sanitize_server_text(reason[1])
    content = parse_json(response.body)
    if isinstance(content, dict):
        error, detail = content.get("error"), content.get("detail")
        if isinstance(error, dict):
            return sanitize(str(error.get("message", "")))
        if isinstance(detail, list):
            items = [item for item in detail if isinstance(item, dict)]
            return sanitize("; ".join(f"{_format_location(item.get('loc'))}: {item.get('msg', '')}" for item in items))
        return sanitize(str(detail or content.get("message") or error or ""))
    if response.status >= 400 and "protobuf" in response.headers.get("content-type", ""):
        with suppress(DecodeError):
            # The `google.rpc.Status` of a gateway or Collector has the same fields: a number and a text.
            return sanitize(trace_service_pb2.ExportTracePartialSuccess.FromString(response.body).error_message)
    if is_html(response):
        title = re.search(rb"<title[^>]*>([^<]*)</title>", response.body[:_MAX_TITLE_BYTES], re.IGNORECASE)
        suffix = f" ({sanitize_server_text(title.group(1).decode(errors='replace'))})" if title else ""
        return f"an HTML page{suffix}"
    is_text = response.headers.get("content-type", "").lower().startswith("text/") or response.body.isascii()
    return sanitize(response.body[:_MAX_TEXT_LENGTH].decode("utf-8", errors="replace")) if is_text else ""


def _format_location(location: Any) -> str:
    return ".".join(map(str, location[:10])) if isinstance(location, list) else str(location or "")


def sanitize_server_text(text: str) -> str:
    """A server's text as it may be logged: one line, cut, no SQL statement, no long value, no control characters."""
    text = " ".join(text[:_MAX_TEXT_LENGTH].split())
    return _to_one_line(re.sub(_LONG_QUOTED_TEXT, r"\1...\1", re.sub(_SQL, "", text)))


def _to_one_line(text: str) -> str:
    line = re.sub(_SQL, "", " ".join(text[:_MAX_TEXT_LENGTH].split())).rstrip()
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _MAX_MESSAGE_LENGTH else f"{line[:_MAX_MESSAGE_LENGTH]}..."


def parse_retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that `Retry-After` requests, as a number or a date (RFC 9110, 10.2.3); 3,600 at most."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        delay = float(value)
    else:
        try:
            delay = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, delay), _MAX_RETRY_AFTER_SECONDS)
