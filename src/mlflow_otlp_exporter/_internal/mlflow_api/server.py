"""What MLflow has stored already: asked before spans are sent again that may have arrived.

MLflow upserts spans by trace and span id, but before 3.17 it adds the tokens and the cost of a span again each time it
comes (measured on 3.6.0 to 3.13.0), and before 3.12 it stores a part of a request that it refuses.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Collection
from urllib.parse import urlencode

from mlflow_otlp_exporter._internal.common.backoff import compute_backoff
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.model.destination import WORKSPACE_HEADER
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

Version = tuple[int, ...]
COUNTS_ONCE: Version = (3, 17)
ALL_OR_NOTHING: Version = (3, 12)
TRACES_BELOW_PREFIX: Version = (3, 16)
# SQLite waits 20 s for its lock: what a proxy gave up on may be stored as late as that.
SLOWEST_WRITE = 25.0
# Who did not tell its version may tell it later: a token had expired, or a login page stood in between. The first use
# after so many seconds asks again; each answer in vain doubles them.
_ASK_AGAIN_SECONDS, _LONGEST_SECONDS = 60.0, 600.0
# Whole traces come back, prompts and all.
_LONGEST_READ_BACK = 256 * 1024 * 1024
# In one URL: 35 characters and the parameter's name each, below the 8 kB that proxies take.
_TRACES_AT_ONCE = 100
_NUMBER = re.compile(r"\d+(\.\d+)+")
_NOT_STORED = ExportOutcome(
    Disposition.RETRY,
    FailureKind.NOT_MLFLOW,
    "200 with something else (a login page?) instead of what is stored",
    200,
    code=MessageCode.HTML_PAGE,
)


class ServerUnavailableError(Exception):
    """The server cannot answer now."""

    def __init__(self, outcome: ExportOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def pause_after(in_vain: int) -> float:
    """Seconds for which an answer counts that told nothing: the next use after them asks again.

    Args:
        in_vain: How many such answers there were before it.
    """
    return compute_backoff(in_vain, 0.5, first_seconds=_ASK_AGAIN_SECONDS, max_seconds=_LONGEST_SECONDS)


def version_of(api: Transport, seconds: float) -> Version | None:
    """The version of an MLflow server; None if it does not tell, or is none.

    Args:
        api: MLflow's REST side.
        seconds: For the request.

    Raises:
        ServerUnavailableError: The server is away.
    """
    answer = api.request("GET", "/version", headers={}, seconds=seconds)
    if not isinstance(answer, HttpResponse):
        raise ServerUnavailableError(classify_error(answer))
    if answer.status >= 500 or answer.status == 429:  # the server cannot answer
        raise ServerUnavailableError(classify_response(answer))
    return read_version(answer)


def read_version(answer: HttpResponse) -> Version | None:
    """The version in an answer to `GET /version`, which is plain text whatever it is labelled as; None if none is."""
    text = answer.body.decode("ascii", "replace").strip()
    found = _NUMBER.match(text) if answer.status == 200 and len(text) < 40 else None
    return tuple(map(int, found.group().split("."))) if found else None


def traces_at_root(api: Transport, seconds: float) -> bool | None:
    """Whether a server with a static prefix has its OTLP endpoint at the root; None if that is not known now."""
    try:
        version = version_of(api, seconds)
    except ServerUnavailableError:
        return None
    return None if version is None else version < TRACES_BELOW_PREFIX


class ServerInfo:
    """Asks MLflow's REST side what is stored, where that is possible.

    Args:
        api: MLflow's REST side; None if there is none.
        report: Where to say that asking is not possible.
        clock: Monotonic seconds.
        certain: False if the REST side is a guess, which may be another web site.
    """

    def __init__(
        self,
        api: Transport | None,
        report: ProblemLog,
        clock: Callable[[], float] = time.monotonic,
        *,
        certain: bool = True,
    ) -> None:
        self._api, self._report, self._clock, self._certain = api, report, clock, certain
        self._version: Version | None = None
        self._in_vain, self._ask_at = 0, 0.0

    def before(self, version: Version, seconds: float) -> bool:
        """Whether the server is older than a version, or of an unknown one.

        Raises:
            ServerUnavailableError: The server is away.
        """
        found = self.version(seconds)
        return found is None or found < version

    def version(self, seconds: float) -> Version | None:
        """The server's version; None as long as it does not tell.

        The server is not asked before this matters. What it tells is kept; an answer that tells no version, such as a
        rejected token or a login page, counts for a while, and then the next use asks again.

        Raises:
            ServerUnavailableError: The server is away.
        """
        if self._version is None and self._api is not None and self._clock() >= self._ask_at:
            found = version_of(self._api, seconds)
            if found is not None:
                self._version = found
                return found
            self._in_vain, self._ask_at = self._in_vain + 1, self._clock() + pause_after(self._in_vain)
        return self._version  # another thread may have been told

    def spans(
        self, trace_ids: Collection[int], workspace: str | None, seconds: float
    ) -> frozenset[tuple[int, int]] | None:
        """Which spans of these traces are stored.

        Returns:
            Pairs of trace id and span id; None where it cannot be asked.

        Raises:
            ServerUnavailableError: The server cannot answer now.
        """
        if self._api is None:
            self._cannot("there is no MLflow server to ask")
            return None
        found: set[tuple[int, int]] = set()
        wanted = sorted(trace_ids)
        headers = {WORKSPACE_HEADER: workspace} if workspace else {}
        for start in range(0, len(wanted), _TRACES_AT_ONCE):
            query = urlencode([("trace_ids", f"tr-{each:032x}") for each in wanted[start : start + _TRACES_AT_ONCE]])
            answer = self._api.request(
                "GET",
                f"/api/3.0/mlflow/traces/batchGet?{query}",
                headers=headers,
                seconds=seconds,
                longest=_LONGEST_READ_BACK,
            )
            if not isinstance(answer, HttpResponse):
                raise ServerUnavailableError(classify_error(answer))
            if answer.status != 200 or not answer.complete:
                outcome = classify_response(answer)
                if answer.status in (403, 404, 405, 400, 501):
                    self._cannot(outcome.message)
                    return None
                if outcome.verdict is Disposition.DELIVERED:
                    outcome = ExportOutcome(
                        Disposition.RETRY,
                        FailureKind.SERVER,
                        "the server's answer was cut off",
                        code=MessageCode.CONNECTION_CLOSED,
                    )
                raise ServerUnavailableError(outcome)
            pairs = _pairs(answer.body)
            if pairs is None:
                if not self._certain:
                    self._cannot(_NOT_STORED.message)
                    return None
                raise ServerUnavailableError(_NOT_STORED)
            found.update(pairs)
        return frozenset(found)

    def _cannot(self, why: str) -> None:
        self._report.once(
            logging.WARNING,
            add_code(
                MessageCode.POSSIBLE_DUPLICATE,
                f"spans that may have arrived are sent again without asking whether they did ({why}): MLflow before "
                "3.17 may count their tokens twice",
            ),
        )


def _pairs(body: bytes) -> set[tuple[int, int]] | None:
    """Trace and span ids of a `batchGet` answer: OTLP JSON, but with ids in base64; None if it is no such answer."""
    try:
        answer = json.loads(body)
        if answer and "traces" not in answer:  # where nothing is stored, MLflow says `{}`
            return None
        spans = [span for trace in answer.get("traces", []) for span in trace.get("spans", [])]
        return {(_number(span["trace_id"]), _number(span["span_id"])) for span in spans}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _number(encoded: str) -> int:
    return int.from_bytes(base64.b64decode(encoded, validate=True), "big")
