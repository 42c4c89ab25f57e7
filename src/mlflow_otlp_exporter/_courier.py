"""What is done about an outcome: settle, wait, cut, ask, give up. One step at a time, for one shipment.

A shipment is kept until it is delivered, refused for good, or the process ends; how long it waits is told to whoever
calls. Which part of a request is to blame is found by cutting it, and only that part is refused.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlflow_otlp_exporter._credentials import Credentials
from mlflow_otlp_exporter._delivery import Delivery, Request, backoff
from mlflow_otlp_exporter._destination import Destination
from mlflow_otlp_exporter._encoder import EncodedSpan, assemble
from mlflow_otlp_exporter._isolation import halves
from mlflow_otlp_exporter._repair import described, shortened
from mlflow_otlp_exporter._report import Report
from mlflow_otlp_exporter._response import Cause, Outcome, Verdict
from mlflow_otlp_exporter._stored import ALL_OR_NOTHING, COUNTS_ONCE, Stored, Unanswered

# A refusal of a single span counts when it is repeated this much later: servers answer a transient 400 or 422 now and
# then (two batches of one trace at once before 3.16, a database that crashes).
_CONFIRM_SECONDS = 1.0
_PAUSE_BETWEEN_ASKING = 1.0
# Seconds before the first repetition, and at most: what a person has to mend is asked for more slowly.
_BACKOFF = {
    Cause.SERVER: (0.5, 30.0),
    Cause.NOT_MLFLOW: (0.5, 30.0),
    Cause.CREDENTIALS: (2.0, 60.0),
    Cause.DESTINATION: (2.0, 60.0),
}
# Between two looks at a token file that the server has rejected.
_LOOK_SECONDS = 0.25
_TRIES_OF_A_500, _TRIES_OF_A_SPAN = 3, 6
# For so long no span is blamed for its 500s after one has passed that had some.
_MOODY_SECONDS = 60.0
# SQLite waits 20 s for its lock: what a proxy gave up on may be stored as late as that.
_SLOWEST_WRITE = 25.0
_SMALLEST_REQUEST = 16 * 1024


class Search:
    """A search for one culprit in a request that was refused.

    The half that is refused is cut further. The other half is put aside, and sent as one request when the culprit is
    alone: a search costs about as many requests as the request can be halved.

    Args:
        delivered: How many requests had been delivered when it began.
    """

    def __init__(self, delivered: int) -> None:
        self.delivered = delivered
        self.rest: list[EncodedSpan] = []
        self.uncertain = False


class Origin:
    """The request that shipments come from.

    Args:
        span_count: How many spans it had.
        settled: Called when each of them has an outcome.
        postponed: Called with the reason when some of them have to wait.
    """

    def __init__(
        self,
        span_count: int,
        settled: Callable[[], None] = lambda: None,
        postponed: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self.remaining = span_count
        self.refused = 0
        self.postponed = postponed
        self._settled = settled

    def settle(self, delivered: int, refused: int) -> None:
        """Counts spans that have an outcome."""
        self.refused += refused
        self.remaining -= delivered + refused
        if self.remaining <= 0:
            self._settled()


@dataclass(eq=False)
class Shipment:
    """Encoded spans on their way, and what is known of them.

    Attributes:
        destination: Where they go.
        spans: The spans.
        origin: The request that they come from.
        not_before: When they may be sent, by the courier's clock.
        uncertain: True if they may have arrived.
        seen: What was stored of them when that was asked last.
        search: The search for a culprit that it is a part of.
        suspect: True if the culprit must be among them.
        sibling: The other half, which is suspect when this one has been delivered.
        refusals: How often the single span that this is was refused.
        errors: How often the server answered 500 to it.
        passed: How many requests had been delivered when the search for it began, or when it got its first 500.
        ask_until: Until then what is missing may still be on its way into the server's database.
        attempted: Whether it has been sent before.
    """

    destination: Destination
    spans: list[EncodedSpan]
    origin: Origin
    not_before: float = 0.0
    uncertain: bool = False
    seen: frozenset[tuple[int, int]] | None = None
    search: Search | None = None
    suspect: bool = False
    sibling: Shipment | None = field(default=None, repr=False)
    refusals: int = 0
    errors: int = 0
    passed: int | None = None
    ask_until: float = 0.0
    attempted: bool = False


@dataclass(frozen=True)
class Next:
    """What comes after a step.

    Attributes:
        shipments: What is left of the shipment, to be sent in its place.
        wait: Seconds for which the whole destination waits.
        at_the_end: True if others of the destination go first.
    """

    shipments: Sequence[Shipment] = ()
    wait: float = 0.0
    at_the_end: bool = False


class Server(Protocol):
    """What the courier must know of the server: `Connection`."""

    @property
    def credentials(self) -> Credentials:
        """What it is asked with."""

    def has_new_credential(self) -> bool:
        """Whether there is another one than that which it rejected."""


class Courier:
    """Takes shipments one step further.

    Args:
        server: Whose credentials may be rejected.
        delivery: Makes the attempts.
        stored: Tells what has arrived.
        report: Where outcomes are counted and told.
        explain: Puts an outcome into words, with advice.
        clock: Monotonic seconds.
        jitter: A random number from 0 to 1.
    """

    def __init__(
        self,
        server: Server,
        delivery: Delivery,
        stored: Stored,
        report: Report,
        *,
        explain: Callable[[Outcome], str],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server, self._delivery, self._stored = server, delivery, stored
        self._report, self._explain = report, explain
        self._locked_until = 0.0
        self.clock, self._jitter = clock, jitter
        self._failures: dict[Destination, int] = {}
        self._delivered = 0
        self._moody_until = 0.0
        # Bytes that a request may have: less than was asked for once a proxy has said 413.
        self.size_limit: int | None = None
        self.closing = False

    def step(self, shipment: Shipment, seconds: float) -> Next:
        """Asks or sends once, and decides.

        Args:
            shipment: What is to be sent.
            seconds: How long a request may take.
        """
        if not shipment.spans:
            return Next()  # put aside by a search
        if self.clock() < self._locked_until and not self.closing and not self._server.has_new_credential():
            return Next((shipment,), wait=_LOOK_SECONDS)
        self._locked_until = 0.0
        if shipment.suspect and len(shipment.spans) > 1:
            return self._cut(shipment)
        if shipment.uncertain:
            waiting = self._ask(shipment, seconds)
            if waiting is not None:
                return waiting
        request = Request(shipment.destination, assemble(shipment.spans), len(shipment.spans))
        self._report.count(retries=int(shipment.attempted))
        shipment.attempted = True
        outcome = self._delivery.attempt(request, seconds)
        if outcome.verdict in (Verdict.DELIVERED, Verdict.PARTLY):
            return self._arrived(shipment, outcome)
        if outcome.verdict is Verdict.SPLIT:
            return self._too_large(shipment, outcome, len(request.body))
        if outcome.verdict is Verdict.REFUSED:
            return self._refused(shipment, outcome, seconds)
        return self._postponed(shipment, outcome)

    def _arrived(self, shipment: Shipment, outcome: Outcome) -> Next:
        self._delivered += 1
        if shipment.errors:
            # What passes after a 500 shows a server that answers so now and then.
            self._moody_until = self.clock() + _MOODY_SECONDS
        self._failures.pop(shipment.destination, None)
        count = len(shipment.spans)
        rejected = min(outcome.rejected, count)
        self._report.solved(_key(shipment.destination), "spans are accepted again")
        if rejected:
            self._report.problem(_key(shipment.destination), f"spans are lost: {self._explain(outcome)}", rejected)
        elif outcome.message:
            self._report.once(logging.WARNING, f"the server says: {outcome.message}")
        self._settle(shipment, count - rejected, rejected)
        return Next(self._passed(shipment))

    def _passed(self, shipment: Shipment) -> list[Shipment]:
        """What follows in a search when one of its parts has passed: the culprit is in the other half, or nowhere."""
        if shipment.suspect:
            return self._put_aside(shipment)
        if shipment.sibling is not None:
            shipment.sibling.suspect = True
        return []

    def _settle(self, shipment: Shipment, delivered: int, refused: int) -> None:
        self._report.count(delivered=delivered, refused=refused)
        shipment.origin.settle(delivered, refused)

    def _ask(self, shipment: Shipment, seconds: float) -> Next | None:
        """Leaves out of a shipment what has arrived; None when it may be sent.

        A server behind a proxy that gave up may still be writing: it is asked until its answer no longer changes.
        """
        try:
            if not self._stored.before(COUNTS_ONCE, seconds):
                shipment.uncertain = False
                return None
            ids = {span.trace_id for span in shipment.spans}
            found = self._stored.spans(ids, shipment.destination.workspace, seconds)
        except Unanswered as error:
            return self._postponed(shipment, error.outcome)
        complete = found is not None and all((span.trace_id, span.span_id) in found for span in shipment.spans)
        late = self.clock() >= shipment.ask_until
        if found is not None and not complete and (found != shipment.seen or not late):
            shipment.seen = found
            shipment.not_before = self.clock() + _PAUSE_BETWEEN_ASKING
            return Next((shipment,), at_the_end=True)
        shipment.uncertain, shipment.seen = False, None
        if not found:
            return None
        missing = [span for span in shipment.spans if (span.trace_id, span.span_id) not in found]
        arrived = len(shipment.spans) - len(missing)
        shipment.spans = missing
        if arrived:
            self._settle(shipment, arrived, 0)
        return None if missing else Next(self._passed(shipment))

    def _cut(self, shipment: Shipment) -> Next:
        """Looks for the culprit in halves of a shipment; what was beside it is put aside."""
        search = shipment.search or Search(self._delivered)
        if shipment.sibling is not None:
            search.rest += shipment.sibling.spans
            search.uncertain = search.uncertain or shipment.sibling.uncertain
            shipment.sibling.spans = []
        left, right = (
            Shipment(shipment.destination, spans, shipment.origin, uncertain=shipment.uncertain, search=search)
            for spans in halves(shipment.spans)
        )
        if self._jitter() < 0.5:  # noqa: PLR2004
            # At random, or a culprit at either end would keep the search from all that passes in between.
            left, right = right, left
        left.sibling = right
        return Next((left, right))

    def _put_aside(self, shipment: Shipment) -> list[Shipment]:
        """What a search has put aside, as one shipment, now that the culprit is alone."""
        search, shipment.search = shipment.search, None
        if search is not None and shipment.sibling is not None:
            search.rest += shipment.sibling.spans
            search.uncertain = search.uncertain or shipment.sibling.uncertain
            shipment.sibling.spans, shipment.sibling = [], None
        if search is None or not search.rest:
            return []
        rest, search.rest = search.rest, []
        return [Shipment(shipment.destination, rest, shipment.origin, uncertain=search.uncertain)]

    def _too_large(self, shipment: Shipment, outcome: Outcome, size: int) -> Next:
        """413: smaller requests from now on; a single span is shortened."""
        smaller = max(size // 2, _SMALLEST_REQUEST)
        self.size_limit = min(self.size_limit or smaller, smaller)
        if len(shipment.spans) > 1:
            return self._cut_by_size(shipment)
        shorter = shortened(shipment.spans[0], size // 2) if size > _SMALLEST_REQUEST else None
        if shorter is None:
            return self._give_up(shipment, outcome)
        shipment.spans = [shorter]
        return Next((shipment,))

    def _cut_by_size(self, shipment: Shipment) -> Next:
        parts = [Shipment(shipment.destination, spans, shipment.origin) for spans in halves(shipment.spans)]
        return Next((*parts, *self._put_aside(shipment)))

    def _refused(self, shipment: Shipment, outcome: Outcome, seconds: float) -> Next:
        """The content is refused: cut until the culprit is alone, which is refused when that is repeated."""
        if len(shipment.spans) > 1:
            try:
                shipment.uncertain = self._stored.before(ALL_OR_NOTHING, seconds)
            except Unanswered:
                shipment.uncertain = True
            return self._cut(shipment)
        aside = self._put_aside(shipment)
        shipment.refusals += 1
        if shipment.refusals > 1 or self.closing:
            self._give_up(shipment, outcome)
            return Next(aside)
        shipment.not_before = self.clock() + _CONFIRM_SECONDS
        return Next((*aside, shipment), at_the_end=True)

    def _give_up(self, shipment: Shipment, outcome: Outcome) -> Next:
        what = described(shipment.spans[0]) if len(shipment.spans) == 1 else f"{len(shipment.spans)} spans"
        key = f"refused {outcome.status} {what}"
        self._report.problem(key, f"{what} is lost: {self._explain(outcome)}", len(shipment.spans))
        self._settle(shipment, 0, len(shipment.spans))
        return Next()

    def _postponed(self, shipment: Shipment, outcome: Outcome) -> Next:
        """It may succeed later: the destination waits, the data stays."""
        destination, cause = shipment.destination, outcome.cause or Cause.SERVER
        failures = self._failures.get(destination, 0)
        if self.closing and failures > 1:
            self.abandon(shipment)
            return Next()
        self._failures[destination] = failures + 1
        shipment.uncertain = shipment.uncertain or outcome.ambiguous
        if outcome.ambiguous and outcome.status in (None, 504):
            shipment.ask_until = self.clock() + _SLOWEST_WRITE
        self._report.problem(_key(destination), f"spans wait in memory: {self._explain(outcome)}", len(shipment.spans))
        shipment.origin.postponed(outcome)  # last: it wakes who waits, and they may read the log
        if outcome.status == 500 and cause is Cause.SERVER:  # noqa: PLR2004
            suspicion = self._suspected(shipment, outcome)
            if suspicion is not None:
                return suspicion
        if cause is Cause.CREDENTIALS and self._server.has_new_credential():
            return Next((shipment,))
        if cause is Cause.DESTINATION:
            self._delivery.forget(destination)
        wait = max(self._backoff(cause, failures), outcome.retry_after or 0.0)
        if cause is Cause.CREDENTIALS and self._server.credentials.watchable:
            self._locked_until = self.clock() + wait
            wait = _LOOK_SECONDS
        return Next((shipment,), wait=wait)

    def _backoff(self, cause: Cause, failures: int) -> float:
        first, longest = _BACKOFF[cause]
        return backoff(failures, self._jitter(), first=first, longest=longest)

    def _suspected(self, shipment: Shipment, outcome: Outcome) -> Next | None:
        """A 500 may be a server in trouble, or a span that it trips over.

        What stays 500 is searched like a refusal. If nothing passed during the search, it is the server: all is put
        together again and waits. A single span is given up after several 500s of its own while others pass, and none
        passes that had a 500 before.
        """
        shipment.errors += 1
        if len(shipment.spans) > 1:
            if shipment.search is None and shipment.errors < _TRIES_OF_A_500:
                return None
            return self._cut(shipment)
        search = shipment.search
        if search is not None and self._delivered == search.delivered:
            for each in self._put_aside(shipment):
                shipment.spans += each.spans
            shipment.errors = 0
            return None
        if shipment.passed is None:
            shipment.passed = self._delivered if search is None else search.delivered
        moody = self.clock() < self._moody_until
        if shipment.errors >= _TRIES_OF_A_SPAN and self._delivered > shipment.passed and not moody:
            return self._give_up(shipment, outcome)
        shipment.not_before = self.clock() + backoff(shipment.errors, self._jitter(), first=0.25, longest=2.0)
        return Next((*self._put_aside(shipment), shipment), at_the_end=True)

    def abandon(self, shipment: Shipment) -> None:
        """Gives up what the process's end has left no time for."""
        for each in self._put_aside(shipment):
            self.abandon(each)
        count = len(shipment.spans)
        if not count:
            return
        self._report.problem("abandoned", "spans are lost: they could not be sent before the end", count)
        self._settle(shipment, 0, count)


def _key(destination: Destination) -> str:
    return f"{destination.workspace}/{destination.experiment or destination.experiment_id}"
