"""From an answer to a decision: what a server's answer to `POST /v1/traces` means for the spans that were sent.

Pure functions; the rows follow what MLflow 3.4 to 3.17, proxies and login pages were seen to answer. The table stands
in docs/answers.md.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.model.export_outcome import DELIVERED, Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import HttpResponse, TransportError

_LONGEST_MESSAGE = 300
_HTML = re.compile(rb"^\s*(<!doctype|<html|<head|<body|<\?xml)", re.IGNORECASE)
# SQLAlchemy appends the statement and its parameters, prompts among them, to its messages; PostgreSQL the row, or the
# key, and the line of the statement.
_SQL = re.compile(
    r"\s*\[SQL:.*|\s*\[parameters:.*|\(Background on this error.*|\s*\bDETAIL: .*|\s*\bLINE \d+: .*", re.DOTALL
)
# MLflow quotes values that it finds too long: what is longer than a name may be a prompt.
_QUOTED = re.compile(r"(['\"`])(?:(?!\1).){100,}(?:\1|$)")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
# SQLite's words for a damaged file, which MLflow passes on as a 400, as if the request were wrong.
_DAMAGED = ("file is not a database", "database disk image is malformed")
# A longer wait is not believed: a clock or a proxy may be wrong, and nobody would notice for days that nothing arrives.
_LONGEST_RETRY_AFTER = 3600.0


def classify_error(failure: TransportError) -> ExportOutcome:
    """Decides for a request that got no answer."""
    cause = FailureKind.CREDENTIALS if failure.credentials else FailureKind.SERVER
    code = MessageCode.CREDENTIAL_UNAVAILABLE if failure.credentials else failure.code
    return ExportOutcome(Disposition.RETRY, cause, failure.message, ambiguous=failure.arrived, code=code)


def classify_response(answer: HttpResponse) -> ExportOutcome:
    """Decides for a request that was answered.

    Args:
        answer: Status, headers (lower-case names) and body.
    """
    status = answer.status
    if 200 <= status < 300:
        return _success(answer)
    said = server_message(answer)
    message = f"{status}: {said}" if said else f"{status}"
    if 300 <= status < 400:
        where = answer.headers.get("location", "elsewhere").partition("?")[0][:_LONGEST_MESSAGE]
        message = f"{status}: the server redirects to {where}, which is not followed with credentials"
        return ExportOutcome(Disposition.RETRY, FailureKind.NOT_MLFLOW, message, status, code=MessageCode.REDIRECTED)
    if status in (401, 407):
        code = MessageCode.UNAUTHENTICATED if status == 401 else MessageCode.PROXY_UNAUTHENTICATED
        return ExportOutcome(Disposition.RETRY, FailureKind.CREDENTIALS, message, status, code=code)
    if status == 413:
        return ExportOutcome(Disposition.SPLIT, FailureKind.SIZE, message, status, code=MessageCode.REQUEST_TOO_LARGE)
    if (is_html(answer) and status not in _TRANSIENT) or status in (405, 501):
        # 501: MLflow's file store; 404 as HTML and 405: another server, or MLflow under another path. A proxy's own 502
        # is HTML, too, but that is a server that is away.
        wait = retry_after(answer.headers)
        return ExportOutcome(
            Disposition.RETRY, FailureKind.NOT_MLFLOW, message, status, wait, code=_other_server_code(said)
        )
    if _is_destination(answer, said):
        return ExportOutcome(
            Disposition.RETRY, FailureKind.DESTINATION, message, status, code=_destination_code(answer, said)
        )
    if status in _TRANSIENT or (status == 400 and any(words in said for words in _DAMAGED)):
        wait = retry_after(answer.headers)
        code, ambiguous = _server_code(answer, said), _may_be_stored(answer, said)
        return ExportOutcome(
            Disposition.RETRY, FailureKind.SERVER, message, status, wait, ambiguous=ambiguous, code=code
        )
    return ExportOutcome(Disposition.REFUSED, FailureKind.CONTENT, message, status, code=MessageCode.SPAN_REJECTED)


def _may_be_stored(answer: HttpResponse, said: str) -> bool:
    """Whether a server that is in trouble may have stored the spans, or some: before 3.12, each trace on its own.

    A database that stops in the middle makes MLflow answer 503; so does Envoy when MLflow is killed in the middle. All
    other 503 come from those who have passed nothing on.
    """
    if answer.status == 503:
        return error_code(answer) == "TEMPORARILY_UNAVAILABLE" or "disconnect/reset before headers" in said
    return answer.status in (400, 500, 502, 504)


def _other_server_code(said: str) -> MessageCode:
    if "FileStore" in said:
        return MessageCode.FILE_STORE
    # What nginx answers to a request without TLS.
    return MessageCode.TLS_REQUIRED if "sent to HTTPS port" in said else MessageCode.NO_OTLP_ENDPOINT


def _destination_code(answer: HttpResponse, said: str) -> MessageCode:
    """Which of workspace, experiment, permission or host name it is; the first that fits."""
    lowered = said.lower()
    found = error_code(answer)
    if answer.status == 403:
        return MessageCode.HOST_NOT_ALLOWED if "invalid host header" in lowered else MessageCode.PERMISSION_DENIED
    if found == "PERMISSION_DENIED":
        return MessageCode.PERMISSION_DENIED
    if found == "FEATURE_DISABLED":
        return MessageCode.WORKSPACES_DISABLED
    if "workspace" in lowered:
        return MessageCode.WORKSPACE_REQUIRED if "required" in lowered else MessageCode.WORKSPACE_NOT_FOUND
    if "experiment" in lowered:
        wanted = "x-mlflow-experiment-id" in lowered
        return MessageCode.EXPERIMENT_REQUIRED if wanted else MessageCode.EXPERIMENT_NOT_FOUND
    return MessageCode.NO_OTLP_ENDPOINT if answer.status == 404 and not found else MessageCode.DESTINATION_REJECTED


def _server_code(answer: HttpResponse, said: str) -> MessageCode:
    if any(words in said for words in _DAMAGED):
        return MessageCode.DATABASE_DAMAGED
    if answer.status == 429:
        return MessageCode.RATE_LIMITED
    if "authorization check" in said:
        return MessageCode.AUTHORIZATION_CHECK_FAILED
    if answer.status == 500:
        return MessageCode.SERVER_ERROR
    return (
        MessageCode.DATABASE_UNAVAILABLE
        if error_code(answer) == "TEMPORARILY_UNAVAILABLE"
        else MessageCode.SERVER_UNAVAILABLE
    )


def _success(answer: HttpResponse) -> ExportOutcome:
    """2xx: protobuf, JSON, JSON labelled protobuf (MLflow 3.4 to 3.6) or nothing; but not a login page."""
    body = answer.body
    if is_html(answer):
        message = f"{answer.status} with an HTML page (a login page?) instead of an answer to OTLP"
        return ExportOutcome(
            Disposition.RETRY, FailureKind.NOT_MLFLOW, message, answer.status, code=MessageCode.HTML_PAGE
        )
    if not body or not answer.complete:
        # The status stands, whatever became of the body: sending again would store the spans twice.
        return DELIVERED
    rejected, said = _partial_success(body)
    if rejected:
        return ExportOutcome(
            Disposition.PARTLY,
            FailureKind.CONTENT,
            f"{rejected} spans rejected: {said}",
            answer.status,
            rejected=rejected,
            code=MessageCode.PARTIAL_SUCCESS,
        )
    return ExportOutcome(Disposition.DELIVERED, message=said, status=answer.status, code=MessageCode.SERVER_MESSAGE)


def _partial_success(body: bytes) -> tuple[int, str]:
    """Rejected spans and message of an `ExportTraceServiceResponse`; 0 and nothing if the body is something else.

    The first byte tells JSON from protobuf whatever the Content-Type says: `{` would be field 15 as a group, which
    the message does not have. A line feed may be either, as it is the tag of field 1: protobuf is tried first.
    """
    message = None if body[:1] in (b"{", b"[") else _protobuf(body)
    if message is None:
        found = _json(body)
        partial = found.get("partialSuccess") or found.get("partial_success") if isinstance(found, dict) else None
        if not isinstance(partial, dict):
            return 0, ""
        # JSON carries 64-bit numbers as strings.
        rejected = str(partial.get("rejectedSpans", partial.get("rejected_spans", 0)))
        said = partial.get("errorMessage", partial.get("error_message", ""))
        return int(rejected) if rejected.isdecimal() else 0, sanitize_server_text(str(said or ""))
    return max(0, message.partial_success.rejected_spans), sanitize_server_text(message.partial_success.error_message)


def _protobuf(body: bytes) -> ExportTraceServiceResponse | None:
    try:
        return ExportTraceServiceResponse.FromString(body)
    except DecodeError:
        return None


def is_html(answer: HttpResponse) -> bool:
    """Whether the body is a page, by what it is said to be, or by how it begins."""
    labelled = "html" in answer.headers.get("content-type", "").lower()
    # MLflow's basic auth labels its plain sentences so.
    sentence = answer.status in (401, 403) and answer.body.strip() and b"<" not in answer.body
    return (labelled and not sentence) or bool(_HTML.match(answer.body))


def _is_destination(answer: HttpResponse, said: str) -> bool:
    """Whether workspace, experiment or permission is what is wrong, not the spans."""
    if answer.status in (403, 404):
        return True
    code = error_code(answer)
    if code in ("FEATURE_DISABLED", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
        return True
    if answer.status in (400, 422):
        # 3.6 and 3.8 answer 422 for an unknown experiment; 400 and 422 name the header that is missing or malformed.
        lowered = said.lower()
        return any(word in lowered for word in ("experiment", "workspace"))
    return False


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, UnicodeDecodeError):
        return None


def error_code(answer: HttpResponse) -> str:
    """MLflow's error code of an answer, or nothing."""
    found = _json(answer.body)
    if isinstance(found, dict):
        inner = found.get("error")
        code = inner.get("code") if isinstance(inner, dict) else found.get("error_code")
        return str(code or "")
    return ""


def server_message(answer: HttpResponse) -> str:
    """The server's own words, from any of MLflow's five error shapes; cut, on one line, without SQL parameters."""
    # About what is not there or not allowed, MLflow quotes names alone, with whole sentences between them.
    clean = _on_one_line if answer.status in (403, 404) else sanitize_server_text
    found = _json(answer.body)
    if isinstance(found, dict):
        inner, detail = found.get("error"), found.get("detail")
        if isinstance(inner, dict):
            return clean(str(inner.get("message", "")))
        if isinstance(detail, list):
            items = [item for item in detail if isinstance(item, dict)]
            return clean(
                "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', '')}" for item in items)
            )
        return clean(str(detail or found.get("message") or ""))
    if is_html(answer):
        title = re.search(rb"<title[^>]*>([^<]*)</title>", answer.body, re.IGNORECASE)
        words = f" ({sanitize_server_text(title.group(1).decode(errors='replace'))})" if title else ""
        return f"an HTML page{words}"
    return clean(answer.body.decode("utf-8", errors="replace")) if _is_text(answer) else ""


def _is_text(answer: HttpResponse) -> bool:
    return answer.headers.get("content-type", "").lower().startswith("text/") or answer.body.isascii()


def sanitize_server_text(text: str) -> str:
    """A server's text as it may be logged: one line, cut, no SQL statement, no long value, no control characters."""
    return _on_one_line(_QUOTED.sub(r"\1...\1", " ".join(_SQL.sub("", text).split())))


def _on_one_line(text: str) -> str:
    line = " ".join(_SQL.sub("", text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that `Retry-After` asks to wait, given as seconds or as a date (RFC 9110, 10.2.3); an hour at most."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
