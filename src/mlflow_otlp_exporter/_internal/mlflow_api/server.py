"""Requests to an MLflow server: one with JSON, its version, and the spans that it has stored.

Version and stored spans are read before spans that may have arrived are sent again.

MLflow upserts spans by trace and span id, but before 3.17 it adds the tokens and the cost of a span again each time the
span arrives (measured on 3.6.0 to 3.13.0), and before 3.12 it stores a part of a request that it rejects.
"""

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from mlflow_otlp_exporter._internal.common.backoff import compute_backoff
from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import (
    classify_error,
    classify_response,
    error_code,
    sanitize_server_text,
)

Version = tuple[int, ...]
COUNTS_ONCE_SINCE: Version = (3, 17)
ALL_OR_NOTHING_SINCE: Version = (3, 12)
TRACES_BELOW_PREFIX_SINCE: Version = (3, 16)
OTLP_SINCE: Version = (3, 6)
_NOT_MLFLOW: Mapping[str, Any] = {
    "disposition": Disposition.RETRYABLE,
    "cause": FailureKind.NOT_MLFLOW,
    "may_have_arrived": False,
    "is_foreign": True,
}
# SQLite waits 20 s for its lock: a request that a proxy has given up may still be stored that late.
MAX_WRITE_SECONDS = 25.0
# A server that does not tell its version may do so later: a token had expired, or a login page stood in between. The
# first use after this many seconds asks again; each further unusable response doubles them.
_VERSION_RETRY_SECONDS, _MAX_VERSION_RETRY_SECONDS = 60.0, 600.0
# The response holds whole traces, with their prompts.
_MAX_STORED_SPANS_BYTES = 256 * 1024 * 1024
# Twenty traces with previews and tags.
_MAX_JSON_BYTES = 4 * 1024 * 1024
# In one URL: 35 characters and the parameter's name each, below the 8 kB that proxies accept.
_TRACES_PER_REQUEST = 100
_VERSION_PATTERN = r"\d+(\.\d+)+"
_MAX_VERSION_LENGTH = 39
_UNUSABLE_RESPONSE = ExportOutcome(
    Disposition.RETRYABLE,
    FailureKind.NOT_MLFLOW,
    "200 with an unexpected body (a login page?) instead of stored traces",
    200,
    code=MessageCode.HTML_PAGE,
)
_INCOMPLETE_RESPONSE = ExportOutcome(
    Disposition.RETRYABLE, FailureKind.SERVER, "the server's answer was cut off", code=MessageCode.CONNECTION_CLOSED
)


class RestResult(NamedTuple):
    """Outcome of a request, and the JSON object of the response; empty if there is none."""

    outcome: ExportOutcome
    content: Mapping[str, Any]
    error_code: str = ""  # MLflow's own
    is_complete: bool = True  # whether the whole response was read

    @property
    def is_ok(self) -> bool:
        """Whether the server did what it was asked for."""
        return self.outcome.disposition is Disposition.SUCCESS


def request_json(
    api: Transport,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    *,
    workspace: str | None,
    timeout_seconds: float,
    max_response_bytes: int = _MAX_JSON_BYTES,
) -> RestResult:
    """Send a JSON body, if there is one, to a path from `/api` on; `workspace=None` is the server's default."""
    request = HttpRequest(
        method,
        path,
        headers={"content-type": "application/json", **Destination(workspace=workspace).headers(None)},
        body=b"" if body is None else json.dumps(body).encode(),
        timeout_seconds=timeout_seconds,
        max_response_bytes=max_response_bytes,
    )
    response = api.send(request)
    if not isinstance(response, HttpResponse):
        return RestResult(classify_error(response), {})
    outcome, content = classify_response(response), parse_json(response.body) if response.is_complete else None
    code = "" if outcome.disposition is Disposition.SUCCESS else error_code(response)
    return RestResult(outcome, content if isinstance(content, dict) else {}, code, response.is_complete)


class ServerUnavailableError(Exception):
    """The server cannot answer now."""

    def __init__(self, outcome: ExportOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def retry_interval(failure_count: int) -> float:
    """Seconds until the version is requested again after an unusable response that follows this many others."""
    return compute_backoff(
        failure_count, 0.5, first_seconds=_VERSION_RETRY_SECONDS, max_seconds=_MAX_VERSION_RETRY_SECONDS
    )


def fetch_version(api: Transport, timeout_seconds: float) -> Version | None:
    """The version of an MLflow server, or raises `ServerUnavailableError`; None if the server is perhaps not MLflow."""
    response = api.send(HttpRequest("GET", "/version", timeout_seconds=timeout_seconds))
    if not isinstance(response, HttpResponse):
        raise ServerUnavailableError(classify_error(response))
    if response.status >= 500 or response.status == 429:
        raise ServerUnavailableError(classify_response(response))
    return parse_version(response)


def parse_version(response: HttpResponse) -> Version | None:
    """The version in a response to `GET /version`, which is plain text whatever its label; None if there is none."""
    text = response.body[: 2 * _MAX_VERSION_LENGTH].decode("ascii", "replace").strip()
    is_short = response.status == 200 and len(text) <= _MAX_VERSION_LENGTH
    match = re.match(_VERSION_PATTERN, text) if is_short else None
    return tuple(map(int, match.group().split("."))) if match else None


def has_traces_at_root(api: Transport, timeout_seconds: float) -> bool | None:
    """Whether a server with a static prefix has its OTLP endpoint at the root; None if that is unknown now."""
    try:
        version = fetch_version(api, timeout_seconds)
    except ServerUnavailableError:
        return None
    return None if version is None else version < TRACES_BELOW_PREFIX_SINCE


def identify_server(api: Transport, outcome: ExportOutcome, timeout_seconds: float) -> ExportOutcome:
    """Tell the response of another service at MLflow's address from that of MLflow, which tells its version.

    A response to the version that another server in front of MLflow may give, too, decides nothing.
    """
    response = api.send(HttpRequest("GET", "/version", timeout_seconds=timeout_seconds))
    if not isinstance(response, HttpResponse):
        return outcome
    version = parse_version(response)
    is_failure = outcome.disposition is not Disposition.SUCCESS
    if version is None:
        is_page = outcome.code is MessageCode.HTML_PAGE and classify_response(response).code is MessageCode.HTML_PAGE
        is_denied = response.status in (401, 407) or (response.status == 403 and bool(response.body))
        is_redirect, is_error = 300 <= response.status < 400, response.status >= 500 or response.status == 429
        if is_failure and (is_page or is_denied or is_redirect or is_error):
            return outcome
        return outcome._replace(code=MessageCode.NOT_MLFLOW, **_NOT_MLFLOW, message=_describe_other(outcome, response))
    if version < OTLP_SINCE and outcome.code is MessageCode.NO_OTLP_ENDPOINT:
        message = f"MLflow {'.'.join(map(str, version))} does not support OpenTelemetry ({outcome.message})"
        return outcome._replace(code=MessageCode.OTLP_UNSUPPORTED, **_NOT_MLFLOW, message=message)
    return outcome


def _describe_other(outcome: ExportOutcome, response: HttpResponse) -> str:
    product = sanitize_server_text(response.headers.get("server", ""))
    details = [outcome.message or f"{outcome.status or response.status}", f"server: {product}" if product else ""]
    return f"another service than MLflow answers ({'; '.join(filter(None, details))})"


class ServerInfo:
    """Reads version and stored spans from MLflow's REST API; another web site may respond if it is not `certain`."""

    def __init__(
        self,
        api: Transport | None,
        problem_log: ProblemLog,
        clock: Callable[[], float] = time.monotonic,
        *,
        certain: bool = True,
        has_api: Callable[[], bool] = lambda: True,
    ) -> None:
        self._known_api, self._problem_log, self._clock, self._certain = api, problem_log, clock, certain
        self._has_api = has_api
        self._version: Version | None = None
        self._failure_count, self._retry_at = 0, 0.0

    @property
    def _api(self) -> Transport | None:
        return self._known_api if self._has_api() else None

    def is_older_than(self, version: Version, timeout_seconds: float) -> bool:
        """Whether the server is older than a version, or of an unknown one; may raise `ServerUnavailableError`."""
        server_version = self.version(timeout_seconds)
        return server_version is None or server_version < version

    def version(self, timeout_seconds: float) -> Version | None:
        """The server's version, cached; None as long as it does not tell it; may raise `ServerUnavailableError`.

        A response without version, such as a rejected token or a login page, counts for `retry_interval`.
        """
        api = self._api
        if self._version is None and api is not None and self._clock() >= self._retry_at:
            version = fetch_version(api, timeout_seconds)
            if version is not None:
                self._version = version
                return version
            self._retry_at = self._clock() + retry_interval(self._failure_count)
            self._failure_count += 1
        return self._version  # another thread may have received it

    def stored_spans(
        self, trace_ids: Collection[int], workspace: str | None, timeout_seconds: float
    ) -> frozenset[tuple[int, int]] | None:
        """Pairs of trace id and span id that the server has of these traces; None if they cannot be read.

        Raises `ServerUnavailableError` if the server cannot answer now.
        """
        api = self._api
        if api is None:
            self._warn_unreadable("no MLflow server is known")
            return None
        stored: set[tuple[int, int]] = set()
        names = [f"tr-{trace_id:032x}" for trace_id in sorted(trace_ids)]
        headers = Destination(workspace).headers(None)
        for start in range(0, len(names), _TRACES_PER_REQUEST):
            query = urlencode([("trace_ids", name) for name in names[start : start + _TRACES_PER_REQUEST]])
            request = HttpRequest(
                "GET",
                f"/api/3.0/mlflow/traces/batchGet?{query}",
                headers=headers,
                timeout_seconds=timeout_seconds,
                max_response_bytes=_MAX_STORED_SPANS_BYTES,
            )
            response = api.send(request)
            if not isinstance(response, HttpResponse):
                raise ServerUnavailableError(classify_error(response))
            if response.status != 200 or not response.is_complete:
                outcome = classify_response(response)
                if response.status in (403, 404, 405, 400, 501):
                    self._warn_unreadable(outcome.message)
                    return None
                is_success = outcome.disposition is Disposition.SUCCESS
                raise ServerUnavailableError(_INCOMPLETE_RESPONSE if is_success else outcome)
            pairs = _parse_stored_spans(response.body)
            if pairs is None:
                if not self._certain:
                    self._warn_unreadable(_UNUSABLE_RESPONSE.message)
                    return None
                raise ServerUnavailableError(_UNUSABLE_RESPONSE)
            stored.update(pairs)
        return frozenset(stored)

    def _warn_unreadable(self, reason: str) -> None:
        message = (
            f"spans that may have arrived are sent again without checking whether they are stored ({reason}): MLflow "
            "before 3.17 may count their tokens twice"
        )
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.POSSIBLE_DUPLICATE, message))


def _parse_stored_spans(body: bytes) -> set[tuple[int, int]] | None:
    """Trace and span ids of a `batchGet` response: OTLP JSON with ids in base64; None if it is another response."""
    try:
        content = json.loads(body)
        if content and "traces" not in content:  # MLflow answers `{}` if it has none of the traces
            return None
        spans = [span for trace in content.get("traces", []) for span in trace.get("spans", [])]
        return {(_decode_id(span["trace_id"]), _decode_id(span["span_id"])) for span in spans}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _decode_id(encoded: str) -> int:
    return int.from_bytes(base64.b64decode(encoded, validate=True), "big")
