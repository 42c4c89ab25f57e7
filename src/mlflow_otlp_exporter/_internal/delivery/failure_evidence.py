"""Who is to blame for a 500: the server, or the one span that is answered so.

A server in trouble answers 500 to some requests and not to others, and a search for a culprit always finds one: each
answer of it fits some span. So the search proves nothing. What does is what comes after: the span alone is answered 500
again and again, and between any two of these answers a request that nobody suspected was delivered at once. A server
that answers 500 to a part `p` of all requests gives such a pair with a probability of `p * (1 - p)`, a quarter at most,
and ten of them in a row once in a million times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest
from mlflow_otlp_exporter._internal.model.destination import Destination

# Pairs in a row after which a span is lost for good; of them, how many must be the span's own.
_PAIRS, _OWN_PAIRS = 10, 5
# For so long nothing is blamed after something has passed that had a 500: such a server answers so now and then.
_MOODY_SECONDS = 60.0
# What was found is believed, and told, when it is refused or answered 500 again this much later: servers answer a
# transient 400 or 422 now and then, too (two batches of one trace at once before 3.16, a database that crashes).
CONFIRM_SECONDS = 1.0
# Seconds between two sendings of a suspect: so long for the first ones, and at most.
_QUICK = 2
_LONGEST, _LONGEST_MOODY = 30.0, 2.0


@dataclass
class FailureSuspect:
    """A span that the search for a culprit has found, or that was alone in its request.

    Attributes:
        found: When, by the courier's clock.
        delivered: How many requests had been delivered when the search began.
        errors: How often it was answered 500 since it is alone.
        pairs: How many of these answers came while others passed.
        compared: Whether the last one did.
        last: When it was answered so last.
    """

    found: float
    delivered: int
    errors: int = 0
    pairs: int = 0
    compared: bool = False
    last: float = 0.0


class FailureEvidence:
    """What the requests of one destination say about the server.

    Attributes:
        delivered: How many were delivered.
    """

    def __init__(self) -> None:
        self.delivered = 0
        self._pairs = 0
        self._others_pass = False
        self._moody_until = 0.0

    def passed(self) -> None:
        """A request has been delivered that nothing was known against."""
        self.delivered += 1
        self._others_pass = True

    def passed_in_search(self) -> None:
        """A part of a searched request has been delivered, which says nothing about the server."""
        self.delivered += 1

    def passed_after_all(self, now: float) -> None:
        """A request has been delivered that was answered 500 before: so it was not to blame, and maybe nothing is."""
        self.delivered += 1
        self._pairs = 0
        self._others_pass = False
        self._moody_until = now + _MOODY_SECONDS

    def failed(self) -> None:
        """A request that nothing was known against was answered 500."""
        self._others_pass = False

    def failed_again(self, suspect: FailureSuspect, now: float) -> None:
        """A suspect was answered 500 on its own."""
        suspect.errors += 1
        suspect.last = now
        suspect.compared = self._others_pass
        if self._others_pass:
            self._pairs += 1
            suspect.pairs += 1
        self._others_pass = False

    def moody(self, now: float) -> bool:
        """Whether the server has answered 500 of late to what it took later."""
        return now < self._moody_until

    def convincing(self, suspect: FailureSuspect, now: float) -> bool:
        """Whether a suspect may be named: others pass, and it was answered 500 again a while after it was found."""
        again = suspect.errors > 0 and suspect.last >= suspect.found + CONFIRM_SECONDS
        return again and self.delivered > suspect.delivered and not self.moody(now)

    def proven(self, suspect: FailureSuspect, now: float) -> bool:
        """Whether a suspect is to blame beyond doubt."""
        return self.convincing(suspect, now) and self._pairs >= _PAIRS and suspect.pairs >= _OWN_PAIRS

    def pause(self, suspect: FailureSuspect, now: float) -> float:
        """Seconds until a suspect is sent again, longer each time."""
        if suspect.errors < _QUICK:
            return CONFIRM_SECONDS
        longest = _LONGEST_MOODY if self.moody(now) else _LONGEST
        # While nothing else passes there is nothing to compare with, and no hurry.
        doubled = CONFIRM_SECONDS * 2.0 ** min(suspect.errors - 1, 16) if suspect.compared else longest
        return min(doubled, longest)


# How often something is sent before it is searched for what is answered 500, and where the server answers so now and
# then to what it takes later.
TRIES, _TRIES_WHILE_MOODY = 2, 6
# After each search in which nothing passes it is sent twice as often, up to 32 times.
_MOST_DOUBLED = 4
_MOST_DESTINATIONS = 1000


class SuspectRegistry:
    """Shipments of a single span each that are answered 500, by destination.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._evidence: dict[str, FailureEvidence] = {}
        self._shipments: dict[str, list[ExportRequest]] = {}

    def evidence_at(self, destination: Destination) -> FailureEvidence:
        """What is known about the server where a destination is; of at most 1,000 destinations without a suspect."""
        found = self._evidence.get(destination.name)
        if found is None:
            if len(self._evidence) >= _MOST_DESTINATIONS:
                self._evidence = {key: each for key, each in self._evidence.items() if key in self._shipments}
            found = self._evidence.setdefault(destination.name, FailureEvidence())
        return found

    def count(self, destination: Destination) -> int:
        """How many there are."""
        return len(self._shipments.get(destination.name, ()))

    def add(self, shipment: ExportRequest, search: Bisection | None) -> FailureSuspect:
        """SuspectRegistry a shipment.

        Args:
            shipment: A shipment of one span.
            search: The search that has found it, if one has.
        """
        delivered = self.evidence_at(shipment.destination).delivered if search is None else search.delivered
        self._shipments.setdefault(shipment.destination.name, []).append(shipment)
        shipment.suspect = FailureSuspect(self._clock(), delivered)
        return shipment.suspect

    def remove(self, shipment: ExportRequest) -> None:
        """Forgets a shipment that has an outcome, if it is a suspect."""
        if not shipment.suspect:
            return
        shipment.suspect = None
        left = self._shipments[shipment.destination.name]
        left.remove(shipment)
        if not left:
            del self._shipments[shipment.destination.name]

    def passed(self, shipment: ExportRequest) -> None:
        """Draws the conclusions from a delivery."""
        evidence = self._evidence.get(shipment.destination.name)
        if evidence is None:
            return  # nothing is suspected there
        search, now = shipment.search, self._clock()
        if shipment.errors or shipment.suspect or (shipment.guilty and search is not None and search.after_500):
            evidence.passed_after_all(now)
            for each in self._shipments.get(shipment.destination.name, ()):
                each.not_before = now  # they are not to blame either, if the server answers so now and then
        elif search is not None or shipment.found_in is not None:
            evidence.passed_in_search()
        else:
            evidence.passed()

    def tries(self, shipment: ExportRequest, *, others_pass: bool) -> int:
        """How often a shipment is sent before it is searched for what is answered 500.

        Args:
            shipment: A shipment of several spans.
            others_pass: Whether something was delivered since its search began.
        """
        search, found_in = shipment.search, shipment.found_in
        if self.evidence_at(shipment.destination).moody(self._clock()):
            return _TRIES_WHILE_MOODY
        if search is not None or (others_pass and found_in is not None):
            return 1
        called_off = found_in.called_off if found_in is not None else 0
        return TRIES << min(called_off, _MOST_DOUBLED)
