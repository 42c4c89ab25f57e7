"""Evidence whether the server or a single span causes its 500 responses.

A server in trouble answers 500 to some requests and not to others, and a bisection always isolates a span: each
response fits some span, so the bisection proves nothing. The proof comes afterwards: the span alone is answered with
500 again and again, and between any two of these responses a request without suspicion was delivered at once. A server
that answers 500 to a share `p` of all requests produces such a pair with a probability of `p * (1 - p)`, at most a
quarter: ten pairs in a row once in a million times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest
from mlflow_otlp_exporter._internal.model.destination import Destination

# Pairs in a row after which a span is dropped; of them, how many must be the span's own.
_PAIRS, _OWN_PAIRS = 10, 5
# For this long no span is suspected after a request was delivered that had been answered with 500.
_UNSTABLE_SECONDS = 60.0
# Confirm a rejection or a suspicion with a second attempt after this delay: servers answer a transient 400 or 422, too
# (two batches of one trace at once before 3.16, a database that crashes).
CONFIRM_SECONDS = 1.0
# The first attempts of a suspect follow after CONFIRM_SECONDS; then the delay doubles up to the maximum.
_QUICK_ATTEMPTS = 2
_MAX_PAUSE_SECONDS, _MAX_UNSTABLE_PAUSE_SECONDS = 30.0, 2.0
# Attempts before a request that is answered with 500 is bisected; more while the server is unstable.
MIN_ATTEMPTS, _UNSTABLE_ATTEMPTS = 2, 6
# After each bisection in which nothing was delivered, the attempts double, up to 32.
_MAX_DOUBLINGS = 4
_MAX_DESTINATIONS = 1000


@dataclass
class FailureSuspect:
    """A single span that is answered with 500.

    Attributes:
        isolated_at: When it was isolated.
        delivered_count: Requests that had been delivered when its bisection began.
        server_error_count: 500 responses since it is alone.
        pair_count: How many of these responses came while other requests were delivered.
        was_compared: Whether the last one did.
        last_error_at: When the last response came.
    """

    isolated_at: float
    delivered_count: int
    server_error_count: int = 0
    pair_count: int = 0
    was_compared: bool = False
    last_error_at: float = 0.0


class FailureEvidence:
    """What the requests of one destination say about the server."""

    def __init__(self) -> None:
        self.delivered_count = 0
        self._pair_count = 0
        self._others_pass = False
        self._unstable_until = 0.0

    def record_success(self) -> None:
        """Record the delivery of a request without suspicion."""
        self.delivered_count += 1
        self._others_pass = True

    def record_bisection_success(self) -> None:
        """Record the delivery of a part of a bisection, which says nothing about the server."""
        self.delivered_count += 1

    def record_late_success(self, now: float) -> None:
        """Record the delivery of a request that was answered with 500 before: the server is unstable."""
        self.delivered_count += 1
        self._pair_count = 0
        self._others_pass = False
        self._unstable_until = now + _UNSTABLE_SECONDS

    def record_failure(self) -> None:
        """Record a 500 response to a request without suspicion."""
        self._others_pass = False

    def record_suspect_failure(self, suspect: FailureSuspect, now: float) -> None:
        suspect.server_error_count += 1
        suspect.last_error_at = now
        suspect.was_compared = self._others_pass
        if self._others_pass:
            self._pair_count += 1
            suspect.pair_count += 1
        self._others_pass = False

    def is_unstable(self, now: float) -> bool:
        """Return whether the server recently answered 500 to a request that it accepted later."""
        return now < self._unstable_until

    def is_convincing(self, suspect: FailureSuspect, now: float) -> bool:
        """Return whether a suspect may be logged: others pass, and it failed again a while after its isolation."""
        is_confirmed = suspect.server_error_count > 0 and suspect.last_error_at >= suspect.isolated_at + CONFIRM_SECONDS
        return is_confirmed and self.delivered_count > suspect.delivered_count and not self.is_unstable(now)

    def is_proven(self, suspect: FailureSuspect, now: float) -> bool:
        return self.is_convincing(suspect, now) and self._pair_count >= _PAIRS and suspect.pair_count >= _OWN_PAIRS

    def pause_seconds(self, suspect: FailureSuspect, now: float) -> float:
        """Return the delay before a suspect is sent again."""
        if suspect.server_error_count < _QUICK_ATTEMPTS:
            return CONFIRM_SECONDS
        max_seconds = _MAX_UNSTABLE_PAUSE_SECONDS if self.is_unstable(now) else _MAX_PAUSE_SECONDS
        if not suspect.was_compared:
            return max_seconds  # while no other request passes, an attempt proves nothing
        return min(CONFIRM_SECONDS * 2.0 ** min(suspect.server_error_count - 1, 16), max_seconds)


class SuspectRegistry:
    """Requests of a single span that are answered with 500, and the evidence, by destination."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._evidence: dict[str, FailureEvidence] = {}
        self._requests: dict[str, list[ExportRequest]] = {}

    def evidence_at(self, destination: Destination) -> FailureEvidence:
        evidence = self._evidence.get(destination.name)
        if evidence is None:
            if len(self._evidence) >= _MAX_DESTINATIONS:
                self._evidence = {key: value for key, value in self._evidence.items() if key in self._requests}
            evidence = self._evidence.setdefault(destination.name, FailureEvidence())
        return evidence

    def count(self, destination: Destination) -> int:
        return len(self._requests.get(destination.name, ()))

    def add(self, request: ExportRequest, bisection: Bisection | None) -> FailureSuspect:
        """Add a request of one span, and the bisection that isolated it, if any."""
        if bisection is None:
            delivered_count = self.evidence_at(request.destination).delivered_count
        else:
            delivered_count = bisection.delivered_count
        self._requests.setdefault(request.destination.name, []).append(request)
        request.suspect = FailureSuspect(self._clock(), delivered_count)
        return request.suspect

    def remove(self, request: ExportRequest) -> None:
        if not request.suspect:
            return
        request.suspect = None
        requests = self._requests[request.destination.name]
        requests.remove(request)
        if not requests:
            del self._requests[request.destination.name]

    def record_success(self, request: ExportRequest) -> None:
        evidence = self._evidence.get(request.destination.name)
        if evidence is None:
            return  # no suspect, no evidence
        bisection, now = request.bisection, self._clock()
        was_isolated = request.has_bad_span and bisection is not None and bisection.had_server_error
        if request.server_error_count or request.suspect or was_isolated:
            evidence.record_late_success(now)
            for suspect_request in self._requests.get(request.destination.name, ()):
                suspect_request.not_before = now  # an unstable server clears the other suspects, too
        elif bisection is not None or request.previous_bisection is not None:
            evidence.record_bisection_success()
        else:
            evidence.record_success()

    def attempts_before_bisection(self, request: ExportRequest, *, others_pass: bool) -> int:
        """Return how often a request is sent before it is bisected; `others_pass` since its last bisection began."""
        bisection, previous = request.bisection, request.previous_bisection
        if self.evidence_at(request.destination).is_unstable(self._clock()):
            return _UNSTABLE_ATTEMPTS
        if bisection is not None or (others_pass and previous is not None):
            return 1
        cancelled_count = previous.cancelled_count if previous is not None else 0
        return MIN_ATTEMPTS << min(cancelled_count, _MAX_DOUBLINGS)
