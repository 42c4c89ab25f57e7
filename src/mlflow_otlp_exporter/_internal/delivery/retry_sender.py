"""What is done about an outcome: settle, wait, cut, ask, give up. One step at a time, for one shipment.

A shipment is kept until it is delivered, refused for good, or the process ends; how long it waits is told to whoever
calls. Which part of a request is to blame is found by cutting it, and only that part is refused.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_otlp_exporter._internal.common.backoff import BackoffState
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.delivery.export_request import (
    Bisection,
    ExportRequest,
    bisect,
    merge_deferred,
    next_half,
    split_spans,
)
from mlflow_otlp_exporter._internal.delivery.failure_evidence import CONFIRM_SECONDS, TRIES, SuspectRegistry
from mlflow_otlp_exporter._internal.delivery.otlp_client import EncodedBatch, OTLPClient, Server
from mlflow_otlp_exporter._internal.encoding.sanitizer import describe_span, truncate_span
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    ALL_OR_NOTHING_SINCE,
    COUNTS_ONCE_SINCE,
    MAX_WRITE_SECONDS,
    ServerInfo,
    ServerUnavailableError,
)
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, encode_request
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader
    from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue

# Between two looks at a token file that the server has rejected, and two questions for what has arrived.
_REFRESH_SECONDS, _PAUSE_BETWEEN_ASKING = 0.25, 1.0
# Seconds between two suspects at least, however many there are.
_BETWEEN_SUSPECTS = 0.5
_SMALLEST_REQUEST = 16 * 1024
_Result = SendResult[ExportRequest]


class RetrySender:
    """Takes shipments one step further.

    Args:
        server: Whose credentials may be rejected.
        delivery: Makes the attempts.
        stored: Tells what has arrived.
        report: Where outcomes are counted and told.
        explain: Puts an outcome into words, with advice.
        queued: How many spans of a destination wait besides the shipment whose turn it is.
        depot: Where what has to wait is put on disk; None to keep it in memory.
        clock: Monotonic seconds.
        jitter: A random number from 0 to 1.
    """

    def __init__(
        self,
        server: Server,
        delivery: OTLPClient,
        stored: ServerInfo,
        report: ProblemLog,
        *,
        explain: Callable[[ExportOutcome], str],
        queued: Callable[[Destination], int] = lambda _: 0,
        depot: PersistentQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server, self._delivery, self._stored = server, delivery, stored
        self._report, self._explain, self._queued, self._depot = report, explain, queued, depot
        self._where = "in memory" if depot is None else "on disk"
        self._locked_until, self.clock, self._jitter = 0.0, clock, jitter
        self.delivered: Callable[[Destination, Sequence[EncodedSpan]], None] = lambda _destination, _spans: None
        self.uploads: AttachmentUploader | None = None
        self.patience = BackoffState(clock, jitter, on_disk=depot is not None)
        self.failures = 0
        self._suspects = SuspectRegistry(clock)
        # Destinations in trouble at which spans of this run wait, and not only what others have left on disk.
        self._concerned: set[Destination] = set()
        # Bytes that a request may have: less than was asked for once a proxy has said 413.
        self.size_limit: int | None = None
        self.closing = False

    def step(self, shipment: ExportRequest, seconds: float) -> _Result:
        """Asks or sends once, and decides.

        Args:
            shipment: What is to be sent.
            seconds: How long a request may take.
        """
        if not shipment.spans:
            return SendResult()  # put aside by a search
        shipment.began = self.clock()
        if shipment.began < self._locked_until and not self.closing and not self._server.has_new_credential():
            return SendResult((shipment,), retry_after=_REFRESH_SECONDS)
        self._locked_until = 0.0
        decided = self._decided(shipment)
        if decided is None and shipment.uncertain:
            decided = self._ask(shipment, seconds)
        if decided is None and self.uploads is not None:
            decided = self._upload(self.uploads, shipment, seconds)
        if decided is not None:
            return decided
        request = EncodedBatch(shipment.destination, encode_request(shipment.spans), len(shipment.spans))
        self._report.count(retries=int(shipment.attempted))
        shipment.attempted = True
        shipment.origin.sending()
        outcome = self._delivery.attempt(request, seconds)
        if outcome.verdict in (Disposition.DELIVERED, Disposition.PARTLY):
            return self._arrived(shipment, outcome)
        self.failures += 1
        if outcome.verdict is Disposition.SPLIT:
            return self._too_large(shipment, outcome, len(request.body))
        if outcome.verdict is Disposition.REFUSED:
            return self._refused(shipment, outcome, seconds)
        return self._postponed(shipment, outcome)

    def _upload(self, uploads: AttachmentUploader, shipment: ExportRequest, seconds: float) -> _Result | None:
        """Upload a file that the spans refer to; None when they may be sent."""
        is_last_attempt = self.closing and self._depot is None
        spans = uploads.upload_next(shipment.spans, shipment.destination, seconds, is_last_attempt=is_last_attempt)
        if isinstance(spans, ExportOutcome):
            return self._postponed(shipment, spans)
        shipment.spans = spans
        return SendResult((shipment,)) if any(span.attachments for span in spans) else None

    def _decided(self, shipment: ExportRequest) -> _Result | None:
        """What can be said without sending; None if nothing can."""
        if shipment.named and shipment.suspect and self.closing:
            evidence = self._suspects.evidence_at(shipment.destination)
            if evidence.convincing(shipment.suspect, self.clock()):
                return self._give_up(shipment, shipment.named)
        if shipment.guilty and len(shipment.spans) > 1:
            return self._cut(shipment)
        if shipment.guilty and not shipment.suspect and shipment.search and shipment.search.after_500:
            return self._found(shipment, shipment.search)
        return None

    def _arrived(self, shipment: ExportRequest, outcome: ExportOutcome) -> _Result:
        self._suspects.passed(shipment)
        self._recovered(shipment.destination)
        count = len(shipment.spans)
        rejected = min(outcome.rejected, count)
        if shipment.named:
            what = describe_span(shipment.spans[0])
            self._again(_refusal(shipment.named, what), f"{what} is accepted after all")
        if rejected:
            key = f"rejected {shipment.destination.name}"
            said = f"spans are lost{_whose(shipment)}: {self._explain(outcome)}"
            self._report.problem(key, said, rejected)
        elif outcome.message:
            self._report.once(
                logging.WARNING, add_code(MessageCode.SERVER_MESSAGE, f"the server says: {outcome.message}")
            )
        self._settle(shipment, count - rejected, rejected, outcome)
        return SendResult(next_half(shipment))

    def _recovered(self, destination: Destination) -> None:
        self.patience.passed(destination)
        self._concerned.discard(destination)
        self._again(destination.name, "spans are accepted again")

    def _again(self, key: str, said: str) -> None:
        self._report.solved(key, add_code(MessageCode.RECOVERED, said))

    def _settle(
        self, shipment: ExportRequest, delivered: int, refused: int, outcome: ExportOutcome | None = None
    ) -> None:
        self._forget_suspect(shipment)
        self._report.count(delivered=delivered, dropped=refused)
        if delivered:
            self.delivered(shipment.destination, shipment.spans)
        if self._depot is not None:
            self._depot.acknowledge(shipment.spans)
        shipment.spans = []  # whatever goes wrong from here on: it has its outcome, and is not sent again
        shipment.origin.settle(delivered, refused, outcome)

    def _forget_suspect(self, shipment: ExportRequest) -> None:
        if shipment.named:
            shipment.origin.acquit(shipment.size)
            shipment.named = None
        self._suspects.remove(shipment)

    def _ask(self, shipment: ExportRequest, seconds: float) -> _Result | None:
        """Leaves out of a shipment what has arrived; None when it may be sent.

        A server behind a proxy that gave up may still be writing: it is asked until its answer no longer changes.
        """
        try:
            if not self._stored.is_older_than(COUNTS_ONCE_SINCE, seconds):
                shipment.uncertain = False
                return None
            ids = {span.trace_id for span in shipment.spans}
            found = self._stored.stored_spans(ids, shipment.destination.workspace, seconds)
        except ServerUnavailableError as error:
            return self._postponed(shipment, error.outcome)
        complete = found is not None and all((span.trace_id, span.span_id) in found for span in shipment.spans)
        if found is not None and not complete and (found != shipment.seen or self.clock() < shipment.ask_until):
            shipment.seen = found
            shipment.not_before = self.clock() + _PAUSE_BETWEEN_ASKING
            shipment.origin.deferred()
            return SendResult((shipment,), requeue_last=True)
        shipment.uncertain, shipment.seen = False, None
        if not found:
            return None
        missing = [span for span in shipment.spans if (span.trace_id, span.span_id) not in found]
        arrived = [span for span in shipment.spans if (span.trace_id, span.span_id) in found]
        shipment.spans = arrived
        if arrived:
            self._settle(shipment, len(arrived), 0)
        shipment.spans = missing
        if missing:
            return None
        self._recovered(shipment.destination)
        return SendResult(next_half(shipment))

    def _cut(self, shipment: ExportRequest, *, after_500: bool = False) -> _Result:
        """Looks for the culprit in halves of a shipment; what was beside it is put aside."""
        search = shipment.search or self._search(shipment, after_500=after_500)
        return SendResult(bisect(shipment, search, self._jitter()))

    def _search(self, shipment: ExportRequest, *, after_500: bool) -> Bisection:
        delivered, before = self._suspects.evidence_at(shipment.destination).delivered, shipment.found_in
        called_off = before.called_off + 1 if before is not None and before.delivered == delivered else 0
        return Bisection(delivered, after_500, called_off)

    def _too_large(self, shipment: ExportRequest, outcome: ExportOutcome, size: int) -> _Result:
        """413: smaller requests from now on; a single span is shortened. What is small already waits, if it is safe."""
        if self._depot is not None and size <= _SMALLEST_REQUEST:
            return self._postponed(shipment, outcome)
        smaller = max(size // 2, _SMALLEST_REQUEST)
        self.size_limit = min(self.size_limit or smaller, smaller)
        if len(shipment.spans) > 1:
            parts = [
                ExportRequest(shipment.destination, spans, shipment.origin) for spans in split_spans(shipment.spans)
            ]
            return SendResult((*parts, *merge_deferred(shipment)))
        shorter = truncate_span(shipment.spans[0], size // 2) if size > _SMALLEST_REQUEST else None
        if shorter is None:
            return self._give_up(shipment, outcome)
        shipment.spans = [shorter]
        return SendResult((shipment,))

    def _refused(self, shipment: ExportRequest, outcome: ExportOutcome, seconds: float) -> _Result:
        """The content is refused: cut until the culprit is alone, which is refused when that is repeated."""
        if len(shipment.spans) > 1:
            try:
                shipment.uncertain = self._stored.is_older_than(ALL_OR_NOTHING_SINCE, seconds)
            except ServerUnavailableError:
                shipment.uncertain = True
            return self._cut(shipment)
        aside = merge_deferred(shipment)
        shipment.refusals += 1
        if shipment.refusals > 1 or self.closing:
            self._give_up(shipment, outcome)
            return SendResult(aside)
        shipment.not_before = self.clock() + CONFIRM_SECONDS
        return SendResult((*aside, shipment), requeue_last=True)

    def _give_up(self, shipment: ExportRequest, outcome: ExportOutcome) -> _Result:
        what = describe_span(shipment.spans[0]) if len(shipment.spans) == 1 else f"{len(shipment.spans)} spans"
        said = f"{what} is lost{_whose(shipment)}: {self._explain(outcome)}"
        self._report.problem(_refusal(outcome, what), said, len(shipment.spans))
        if self._depot is not None:
            self._depot.dead_letter(shipment.destination, shipment.spans, outcome.message)
        self._settle(shipment, 0, len(shipment.spans), outcome)
        return SendResult()

    def _postponed(self, shipment: ExportRequest, outcome: ExportOutcome) -> _Result:
        """It may succeed later: the destination waits, the data stays."""
        destination, cause = shipment.destination, outcome.cause or FailureKind.SERVER
        if self.closing and self.patience.failures(destination) > 1:
            self.abandon(shipment)
            return SendResult()
        shipment.uncertain = shipment.uncertain or outcome.ambiguous
        if outcome.ambiguous and outcome.status in (None, 504):
            shipment.ask_until = self.clock() + MAX_WRITE_SECONDS
        shipment.origin.failed(uncertain=shipment.uncertain)
        shipment.postponed += 1
        live = self._depot is not None and not shipment.origin.kept
        if live and (self.closing or self.patience.is_over(destination, shipment.postponed, shipment.since)):
            wait = self._waiting(shipment, outcome, cause)
            if self.put_away(shipment):
                return SendResult(retry_after=0.0 if self.closing else wait)
            return SendResult((shipment,), retry_after=wait)
        if outcome.status == 500 and cause is FailureKind.SERVER:
            return self._answered_500(shipment, outcome)
        wait = self._waiting(shipment, outcome, cause)
        if cause is FailureKind.CREDENTIALS and self._server.has_new_credential():
            return SendResult((shipment,))
        if cause is FailureKind.DESTINATION:
            self._delivery.forget(destination)
        if cause is FailureKind.CREDENTIALS and self._server.credentials.can_watch:
            self._locked_until = self.clock() + wait
            wait = _REFRESH_SECONDS
        return SendResult((shipment,), retry_after=wait)

    def put_away(self, shipment: ExportRequest) -> bool:
        """Puts a shipment on disk, with all that a search has put aside for it; whether nothing of it is left."""
        assert self._depot is not None
        self._concerned.add(shipment.destination)
        for each in merge_deferred(shipment):
            shipment.spans += each.spans
            shipment.uncertain = shipment.uncertain or each.uncertain
        count = len(shipment.spans)
        if count:
            spans, attempted = shipment.spans, shipment.attempted
            if not self._depot.append(shipment.destination, spans, attempted=attempted, uncertain=shipment.uncertain):
                return False
            self._forget_suspect(shipment)
            shipment.spans = []
            shipment.origin.settle(count, 0)
        return True

    def _waiting(self, shipment: ExportRequest, outcome: ExportOutcome, cause: FailureKind) -> float:
        """Tells that a destination waits, and says how many seconds."""
        destination, searching = shipment.destination, shipment.search is not None
        wait = self.patience.failed(destination, outcome, cause, searching=searching, began=shipment.began)
        waiting = self._queued(destination) + (0 if shipment.origin.kept else len(shipment.spans))
        if not shipment.origin.left:
            self._concerned.add(destination)
        whose = "" if destination in self._concerned else _whose(shipment)
        self._report.waiting(destination.name, f"spans wait {self._where}{whose}: {self._explain(outcome)}", waiting)
        shipment.origin.postponed(outcome)  # last: it wakes who waits, and they may read the log
        return wait

    def _answered_500(self, shipment: ExportRequest, outcome: ExportOutcome) -> _Result:
        """A 500 may be a server in trouble, or a span that it trips over.

        What stays 500 is searched like a refusal. Where nothing passes during the search, not even what it has put
        aside, it is the server, and the next search begins later.
        """
        evidence, shipment.errors = self._suspects.evidence_at(shipment.destination), shipment.errors + 1
        since = shipment.search or shipment.found_in or shipment.suspect
        if since is None and shipment.errors == 1:
            evidence.failed()
        others_pass = since is not None and evidence.delivered > since.delivered
        if len(shipment.spans) > 1:
            if shipment.errors < self._suspects.tries(shipment, others_pass=others_pass):
                return SendResult((shipment,), retry_after=self._waiting(shipment, outcome, FailureKind.SERVER))
            wait = 0.0 if others_pass else self._waiting(shipment, outcome, FailureKind.SERVER)
            return replace(self._cut(shipment, after_500=True), retry_after=wait)
        wait = 0.0 if others_pass else self._waiting(shipment, outcome, FailureKind.SERVER)
        if since is None and shipment.errors < TRIES:
            return SendResult((shipment,), retry_after=wait)
        return self._alone(shipment, outcome, wait)

    def _found(self, shipment: ExportRequest, search: Bisection) -> _Result:
        """All else of a search has passed: the span that is left is to blame for its 500, if anything is."""
        self._suspects.add(shipment, search)
        shipment.not_before = self.clock() + CONFIRM_SECONDS
        return SendResult((*merge_deferred(shipment), shipment), requeue_last=True)

    def _alone(self, shipment: ExportRequest, outcome: ExportOutcome, wait: float) -> _Result:
        """A single span was answered 500: it is sent again now and then, and others go first."""
        evidence, now = self._suspects.evidence_at(shipment.destination), self.clock()
        suspect = shipment.suspect or self._suspects.add(shipment, shipment.search)
        evidence.failed_again(suspect, now)
        aside = merge_deferred(shipment)
        if evidence.proven(suspect, now) or (self.closing and evidence.convincing(suspect, now)):
            self._give_up(shipment, replace(outcome, cause=FailureKind.CONTENT))
            return SendResult(aside)
        if evidence.convincing(suspect, now) and not shipment.named:
            what = describe_span(shipment.spans[0])
            shipment.named = replace(outcome, cause=FailureKind.CONTENT)  # what is to be mended is not the server
            said = f"{what} waits {self._where}{_whose(shipment)}, and is sent again now and then; others are accepted"
            self._report.waiting(_refusal(outcome, what), f"{said}: {self._explain(shipment.named)}", 1)
            shipment.origin.suspect(shipment.size)
        others = self._suspects.count(shipment.destination)
        shipment.not_before = now + max(evidence.pause(suspect, now), others * _BETWEEN_SUSPECTS)
        return SendResult((*aside, shipment), retry_after=wait, requeue_last=True)

    def abandon(self, shipment: ExportRequest) -> None:
        """Gives up what the process's end has left no time for."""
        if shipment.origin.kept:
            shipment.origin.release()
            return
        if self._depot is not None and self.put_away(shipment):
            return
        for each in merge_deferred(shipment):
            self.abandon(each)
        count = len(shipment.spans)
        if not count:
            return
        if shipment.named:
            self._give_up(shipment, shipment.named)
            return
        trouble = self.patience.trouble(shipment.destination)
        said = "spans are lost: they could not be sent before the end"
        said = add_code(MessageCode.NOT_DELIVERED, said) if trouble is None else f"{said}: {self._explain(trouble)}"
        self._report.problem(f"abandoned {shipment.destination.name}", said, count)
        self._settle(shipment, 0, count)


def _refusal(outcome: ExportOutcome, what: str) -> str:
    return f"refused {outcome.status} {what}"


def _whose(shipment: ExportRequest) -> str:
    """What is said of spans that somebody else has left; the key of a problem stays without it."""
    return f" ({shipment.origin.left})" if shipment.origin.left else ""
