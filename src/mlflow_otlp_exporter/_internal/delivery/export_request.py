"""Encoded spans on their way: where they come from, what is known of them, and what comes after a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.delivery.failure_evidence import FailureSuspect


@dataclass(eq=False)
class Bisection:
    """A search for one culprit in a request that was refused, or answered 500.

    The half that is refused is cut further. The other half is put aside, and sent as one request when the culprit is
    alone: a search costs about as many requests as the request can be halved.

    Attributes:
        delivered: How many requests of the destination had been delivered when it began.
        after_500: True if it began with a 500.
        called_off: How many searches just before it have found that nothing passes.
        rest: What was put aside.
        uncertain: True if that may have arrived.
    """

    delivered: int
    after_500: bool
    called_off: int = 0
    rest: list[EncodedSpan] = field(default_factory=list)
    uncertain: bool = False


class RequestOrigin:
    """The request that shipments come from.

    Args:
        span_count: How many spans it had.
        settled: Called when each of them has an outcome.
        postponed: Called with the reason when some of them have to wait.
        suspected: Called with spans and bytes when nothing is left but suspects: spans that are sent again now and
            then, for how long nobody can say.

    Attributes:
        remaining: Spans without an outcome.
        refused: Spans that were given up.
        postponed: As given.
        left: Who has left it on disk, in words; empty for what this exporter was given.
        counted: Called with the spans that were delivered and refused, and the outcome behind that: None at the end.
    """

    def __init__(
        self,
        span_count: int,
        settled: Callable[[], None] = lambda: None,
        postponed: Callable[[ExportOutcome], None] = lambda _: None,
        suspected: Callable[[int, int], None] = lambda _spans, _size: None,
    ) -> None:
        self.remaining = span_count
        self.refused = 0
        self.postponed = postponed
        self.left = ""
        self.counted: Callable[[int, int, ExportOutcome | None], None] = lambda _delivered, _refused, _outcome: None
        self._settled, self._suspected = settled, suspected
        self._suspects = self._suspect_bytes = 0

    @property
    def kept(self) -> bool:
        """Whether it is on disk, so that nothing is lost with the process."""
        return False

    def sending(self) -> None:
        """Tells that some of it is about to be sent."""

    def failed(self, *, uncertain: bool) -> None:
        """Tells that some of it was sent in vain.

        Args:
            uncertain: Whether it may have arrived all the same.
        """

    def deferred(self) -> None:
        """Tells that what is left of it waits for longer, and others may go meanwhile."""

    def release(self) -> None:
        """Tells that what is left of it is given up here; where it is kept, it stays."""

    def settle(self, delivered: int, refused: int, outcome: ExportOutcome | None = None) -> None:
        """Counts spans that have an outcome."""
        self.counted(delivered, refused, outcome)
        self.refused += refused
        self.remaining -= delivered + refused
        if self.remaining <= 0:
            self._settled()
        else:
            self._tell_suspects()

    def suspect(self, size: int) -> None:
        """Counts a span that has become a suspect.

        Args:
            size: Its bytes.
        """
        self._suspects += 1
        self._suspect_bytes += size
        self._tell_suspects()

    def acquit(self, size: int) -> None:
        """Counts a suspect that is about to be settled."""
        self._suspects -= 1
        self._suspect_bytes -= size

    def _tell_suspects(self) -> None:
        if self._suspects and self._suspects >= self.remaining:
            self._suspected(self._suspects, self._suspect_bytes)


@dataclass(eq=False)
class ExportRequest:
    """Encoded spans on their way, and what is known of them.

    Attributes:
        destination: Where they go.
        spans: The spans.
        origin: The request that they come from.
        not_before: When they may be sent, by the courier's clock.
        began: When the last step with them began, by the courier's clock.
        uncertain: True if they may have arrived.
        seen: What was stored of them when that was asked last.
        search: The search for a culprit that it is a part of.
        found_in: The search that it is what was left of, when its culprit was alone.
        guilty: True if the culprit must be among them.
        sibling: The other half, which is guilty when this one has been delivered.
        refusals: How often the single span that this is was refused.
        errors: How often the server answered 500 to it since it is what it is.
        suspect: What is known of the single span that this is, when it is answered 500.
        named: The last answer to it, once the span was named as a suspect.
        ask_until: Until then what is missing may still be on its way into the server's database.
        attempted: Whether it has been sent before.
        postponed: How often it had to wait.
        since: When it came, by the courier's clock.
    """

    destination: Destination
    spans: list[EncodedSpan]
    origin: RequestOrigin
    not_before: float = 0.0
    began: float = 0.0
    uncertain: bool = False
    seen: frozenset[tuple[int, int]] | None = None
    search: Bisection | None = None
    found_in: Bisection | None = None
    guilty: bool = False
    sibling: ExportRequest | None = field(default=None, repr=False)
    refusals: int = 0
    errors: int = 0
    suspect: FailureSuspect | None = None
    named: ExportOutcome | None = None
    ask_until: float = 0.0
    attempted: bool = False
    postponed: int = 0
    since: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of its spans."""
        return sum(len(span.body) for span in self.spans)


def split_spans(spans: Sequence[EncodedSpan]) -> tuple[list[EncodedSpan], list[EncodedSpan]]:
    """Cuts between traces as near to the middle as can be; a single trace between its spans.

    Args:
        spans: Two or more.
    """
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    if len(traces) == 1:
        return list(spans[: len(spans) // 2]), list(spans[len(spans) // 2 :])
    groups = list(traces.values())
    middle = _middle([sum(len(span.body) for span in group) for group in groups])
    left, right = groups[:middle], groups[middle:]
    return [span for group in left for span in group], [span for group in right for span in group]


def _middle(sizes: Sequence[int]) -> int:
    """Where to cut, by bytes, with at least one item on either side."""
    total, passed = sum(sizes), 0
    for index, size in enumerate(sizes):
        if index and passed + size / 2 >= total / 2:
            return index
        passed += size
    return len(sizes) - 1


def bisect(shipment: ExportRequest, search: Bisection, chance: float) -> tuple[ExportRequest, ExportRequest]:
    """The halves of a shipment that has the culprit; the half that was beside it is put aside.

    Args:
        shipment: Of two or more spans.
        search: The search that they are parts of.
        chance: A random number from 0 to 1: which half goes first.
    """
    _take_sibling(shipment, search)
    first, second = (
        ExportRequest(shipment.destination, spans, shipment.origin, uncertain=shipment.uncertain, search=search)
        for spans in split_spans(shipment.spans)
    )
    if chance < 0.5:
        # At random, or a culprit at either end would keep the search from all that passes in between.
        first, second = second, first
    first.sibling = second
    return first, second


def next_half(shipment: ExportRequest) -> list[ExportRequest]:
    """What follows in a search when one of its parts has passed: the culprit is in the other half, or nowhere."""
    if shipment.guilty:
        return merge_deferred(shipment)
    if shipment.sibling is not None:
        shipment.sibling.guilty = True
    return []


def merge_deferred(shipment: ExportRequest) -> list[ExportRequest]:
    """What a search has put aside, as one shipment, now that the culprit is alone."""
    search, shipment.search = shipment.search, None
    if search is None:
        return []
    _take_sibling(shipment, search)
    rest, search.rest = search.rest, []
    if not rest:
        return []
    return [ExportRequest(shipment.destination, rest, shipment.origin, uncertain=search.uncertain, found_in=search)]


def _take_sibling(shipment: ExportRequest, search: Bisection) -> None:
    """Puts the other half aside; whoever has it in a queue finds it empty."""
    sibling, shipment.sibling = shipment.sibling, None
    if sibling is not None:
        search.rest += sibling.spans
        search.uncertain = search.uncertain or sibling.uncertain
        sibling.spans = []
