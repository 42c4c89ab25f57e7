"""The POST of one request: tried until it has an outcome that trying again would not change, or until time is up."""

from __future__ import annotations

import gzip
import itertools
import logging
import random
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from mlflow_otlp_exporter._destination import Destination, Experiments
from mlflow_otlp_exporter._fork import after_fork_in_child
from mlflow_otlp_exporter._report import Report
from mlflow_otlp_exporter._response import Cause, Outcome, Verdict, read_answer, read_failure
from mlflow_otlp_exporter._transport import Answer, Transport

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0
# A body that fits into one packet gains nothing from being smaller.
_SMALLEST_COMPRESSED = 1024
# Upstream compresses at gzip's level 9, which takes twice as long and saves 8 % for LLM spans (docs/performance.md).
_LEVEL = 1


@dataclass(frozen=True)
class Request:
    """Encoded spans on their way to one destination.

    Attributes:
        destination: Where they go inside MLflow.
        body: An `ExportTraceServiceRequest`, not compressed.
        span_count: How many spans it holds.
    """

    destination: Destination
    body: bytes
    span_count: int


def backoff(attempt: int, jitter: float) -> float:
    """Seconds to wait before a repetition.

    Args:
        attempt: 0 before the first repetition.
        jitter: From 0 to 1; spreads the clients that were thrown off by the same outage.
    """
    # No larger power: 2.0 ** 1024 does not fit into a float.
    return min(_FIRST_BACKOFF * 2.0 ** min(attempt, 16), _LONGEST_BACKOFF) * (0.8 + 0.4 * jitter)


def compressed(body: bytes, compression: str) -> bytes:
    """The body as it goes over the wire."""
    if compression == "gzip":
        return gzip.compress(body, _LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL) if compression == "deflate" else body


class Delivery:
    """Sends requests to the OTLP endpoint.

    Args:
        server: The OTLP endpoint.
        experiments: Turns names into ids.
        compression: `none`, `gzip` or `deflate`.
        report: Where requests are counted.
        experiment_is_set: True if the user's own headers name the experiment.
        clock: Monotonic seconds.
        jitter: A random number from 0 to 1.
    """

    def __init__(
        self,
        server: Transport,
        experiments: Experiments,
        *,
        compression: str,
        report: Report,
        experiment_is_set: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server, self._experiments, self._compression, self._report = server, experiments, compression, report
        self._experiment_is_set = experiment_is_set
        self._clock, self._jitter = clock, jitter
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        self._closed = threading.Event()

    def deliver(self, request: Request, seconds: float) -> Outcome:
        """Sends a request, again and again while the server is away.

        Args:
            request: What to send.
            seconds: For everything: looking up the experiment, all attempts, and the waits between them.
        """
        deadline = self._clock() + seconds
        compression = self._compression if len(request.body) >= _SMALLEST_COMPRESSED else "none"
        content = compressed(request.body, compression)
        for attempt in itertools.count():
            outcome = self._attempt(request, content, compression, deadline - self._clock(), repeated=attempt > 0)
            if compression != "none" and outcome.status in (400, 415):
                compression, content = "none", request.body
                outcome = self._attempt(request, content, compression, deadline - self._clock(), repeated=True)
                self._learn_from(outcome)
            if outcome.verdict is not Verdict.RETRY or outcome.cause is not Cause.SERVER:
                return outcome
            wait = max(backoff(attempt, self._jitter()), outcome.retry_after or 0.0)
            if self._clock() + wait >= deadline or self._closed.wait(wait):
                return outcome
        raise AssertionError  # itertools.count has no end

    def _learn_from(self, outcome: Outcome) -> None:
        """MLflow before 3.7 answers 400 to every compressed body; what it takes plain was not wrong in itself."""
        if outcome.verdict in (Verdict.DELIVERED, Verdict.PARTLY):
            said = f"the server takes no bodies compressed with {self._compression}: they are sent plain from now on"
            self._report.once(logging.WARNING, said)
            self._compression = "none"

    def _attempt(
        self, request: Request, content: bytes, compression: str, seconds: float, *, repeated: bool
    ) -> Outcome:
        seconds = max(seconds, 0.1)
        experiment = None if self._experiment_is_set else self._experiments.id_of(request.destination, seconds)
        if isinstance(experiment, Outcome):
            return experiment
        headers = {"content-type": "application/x-protobuf", **request.destination.headers(experiment)}
        if compression != "none":
            headers["content-encoding"] = compression
        self._report.count(requests=1, retries=int(repeated))
        answer = self._server.request("POST", "", headers=headers, body=content, seconds=seconds)
        return read_answer(answer) if isinstance(answer, Answer) else read_failure(answer)

    def close(self) -> None:
        """Ends waits between attempts, now and from now on."""
        self._closed.set()
