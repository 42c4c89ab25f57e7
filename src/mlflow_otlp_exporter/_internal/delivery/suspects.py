"""The spans that may be to blame for a 500, and what the requests of each destination say about that."""

from __future__ import annotations

from collections.abc import Callable

from mlflow_otlp_exporter._internal.delivery.blame import FailureEvidence, FailureSuspect
from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest
from mlflow_otlp_exporter._internal.model.destination import Destination

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
