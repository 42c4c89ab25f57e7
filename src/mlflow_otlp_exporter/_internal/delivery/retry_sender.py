"""One attempt for one export request, and the decision what follows: success, retry, split, bisect, spool or drop.

A request is kept until it is delivered or rejected for good; with a spool it outlives the process, and rejected spans
become dead letters. A rejected request is bisected, so that only the bad span is dropped. A 413 splits it.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlflow_otlp_exporter._internal.common.backoff import BackoffState, compute_backoff
from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.hints import adapt_fix, add_fix
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, log_exception, pluralize
from mlflow_otlp_exporter._internal.common.process_end import is_ending
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, split_spans
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.encoding.sanitizer import describe_span, truncate_span
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    ALL_OR_NOTHING_SINCE,
    COUNTS_ONCE_SINCE,
    MAX_WRITE_SECONDS,
    ServerInfo,
    ServerUnavailableError,
)
from mlflow_otlp_exporter._internal.mlflow_api.trace_location import TraceLocator
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, encode_body
from mlflow_otlp_exporter._internal.transport.client import HttpClient

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader
    from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue

# Failures that a user has to correct: these destinations are retried more slowly.
_USER_FAILURES = frozenset({FailureKind.CREDENTIALS, FailureKind.DESTINATION, FailureKind.SIZE})
# Between two reads of a token file whose token the server rejected, and between two lookups of stored spans.
_TOKEN_POLL_SECONDS, _LOOKUP_SECONDS = 0.25, 1.0
# A rejection is confirmed by a second attempt after this delay: servers answer a transient 400 or 422, too (two batches
# of one trace at once before 3.16, a database that crashes).
_CONFIRM_SECONDS = 1.0
# Counted 500s before a request is bisected and before a span is dropped; a 500 counts again only after the destination
# has accepted another request.
_ERRORS_BEFORE_BISECTION, _ERRORS_BEFORE_DROP = 2, 5
_MAX_DESTINATIONS = 1000
_MIN_REQUEST_BYTES = 16 * 1024


class RetrySender:
    """Sends export requests and decides about retries."""

    def __init__(
        self,
        server: HttpClient,
        client: OTLPClient,
        server_info: ServerInfo,
        problem_log: ProblemLog,
        locator: TraceLocator | None = None,
        *,
        explain: Callable[[ExportOutcome], str],
        count_queued: Callable[[Destination, bool], int] = lambda *_: 0,
        persistent_queue: "PersistentQueue | None" = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._server, self._client, self._server_info = server, client, server_info
        self._problem_log, self._explain, self._count_queued = problem_log, explain, count_queued
        self._locator = locator or TraceLocator(None)
        self._persistent_queue = persistent_queue
        self._where = "in memory" if persistent_queue is None else "on disk"
        self._auth_paused_until, self.clock, self._jitter = 0.0, clock, jitter
        self.on_delivered: Callable[[Destination, Sequence[EncodedSpan]], None] = lambda _destination, _spans: None
        self.uploader: AttachmentUploader | None = None
        self.backoff: BackoffState[Destination, ExportOutcome] = BackoffState(
            clock, jitter, has_spool=persistent_queue is not None
        )
        self.failure_count = 0
        # The number of the last accepted request of each destination.
        self._accepted_numbers, self._last_accepted = itertools.count(1), dict[str, int]()
        # Failing destinations with queued spans of this run; for others, the log names where the leftovers come from.
        self._live_destinations: set[Destination] = set()
        self.max_request_bytes: int | None = None  # reduced after a 413 of a proxy
        self.is_closing = False  # at shutdown, delays and confirmations are skipped

    def send(self, request: ExportRequest, timeout_seconds: float) -> SendResult:
        """Make one attempt and decide what follows; the timeout is for each HTTP request of the attempt."""
        try:
            return self._send(request, timeout_seconds)
        except Exception as error:  # noqa: BLE001 - a mistake in this library must not lose spans or stop the others
            return self._on_internal_error(request, error)

    def _send(self, request: ExportRequest, timeout_seconds: float) -> SendResult:
        if not request.spans and not request.advance(self._jitter()):
            return SendResult()  # spooled or settled meanwhile
        if self._auth_paused_until and self._is_auth_paused():
            return SendResult((request,), destination_delay=_TOKEN_POLL_SECONDS)
        result = self._separate_foreign_traces(request) if self._locator.locations else None
        if result is None and request.may_have_arrived:
            result = self._skip_stored_spans(request, timeout_seconds)
        if result is None and self.uploader is not None:
            result = self._upload(self.uploader, request, timeout_seconds)
        if result is not None:
            return result
        body = encode_body(request.spans)
        request.was_sent = True
        if request.future.is_on_disk:
            request.future.record_attempt()
        outcome = self._client.export(request.destination, body, timeout_seconds)
        if outcome.was_posted:
            self._problem_log.stats.add(retries=int(request.was_posted))
            request.was_posted = True
        return self._on_outcome(request, outcome, len(body), timeout_seconds)

    def _on_outcome(
        self, request: ExportRequest, outcome: ExportOutcome, body_bytes: int, timeout_seconds: float
    ) -> SendResult:
        if outcome.disposition in (Disposition.SUCCESS, Disposition.PARTIAL_SUCCESS):
            return self._on_success(request, outcome, timeout_seconds)
        self.failure_count += 1
        if request.destination.trace_experiment_id and _is_refused(outcome):
            return self._on_foreign_trace_refused(request, outcome)
        if outcome.trace_id is not None:
            return self._on_foreign_trace(request, outcome, outcome.trace_id, timeout_seconds)
        if outcome.disposition is Disposition.TOO_LARGE:
            return self._on_too_large(request, outcome, body_bytes)
        if outcome.disposition is Disposition.PERMANENT:
            return self._on_permanent_error(request, outcome, timeout_seconds)
        return self._on_retryable_failure(request, outcome)

    def _is_auth_paused(self) -> bool:
        is_paused = self.clock() < self._auth_paused_until and not self.is_closing
        if is_paused and not self._server.has_new_credential():
            return True
        self._auth_paused_until = 0.0
        return False

    def _upload(
        self, uploader: "AttachmentUploader", request: ExportRequest, timeout_seconds: float
    ) -> SendResult | None:
        """Upload an attachment of the spans; None when the spans may be sent."""
        for span in request.spans:
            if span.attachments:
                request.attachments.setdefault((span.trace_id, span.span_id), span.attachments)
        spans = uploader.upload_next(
            request.spans,
            request.destination,
            timeout_seconds,
            is_last_attempt=self.is_closing and self._persistent_queue is None,
        )
        if isinstance(spans, ExportOutcome):
            return self._on_retryable_failure(request, spans)
        request.spans = spans
        return SendResult((request,)) if any(span.attachments for span in spans) else None

    def _separate_foreign_traces(self, request: ExportRequest) -> SendResult | None:
        """Split off traces that other experiments are known to have; None if there are none."""
        if request.destination.trace_experiment_id:
            return None
        workspace, requests = request.destination.workspace, []
        locations = {span.trace_id: self._locator.experiment_of(workspace, span.trace_id) for span in request.spans}
        for experiment_id in dict.fromkeys(filter(None, locations.values())):
            part = request.split_off({trace_id for trace_id, other in locations.items() if other == experiment_id})
            part.destination = request.destination._replace(trace_experiment_id=experiment_id)
            # Their attachments are in the wrong experiment, if they are uploaded at all.
            part.spans = [
                span._replace(attachments=request.attachments.get((span.trace_id, span.span_id), span.attachments))
                for span in part.spans
            ]
            requests.append(part)
        return SendResult((request, *requests)) if requests else None

    def _on_foreign_trace(
        self, request: ExportRequest, outcome: ExportOutcome, trace_id: int, timeout_seconds: float
    ) -> SendResult:
        """Find the experiment that has a trace, which takes its spans; other spans are sent at once."""
        workspace = request.destination.workspace
        own_ids = dict.fromkeys(span.trace_id for span in request.spans)
        if trace_id not in own_ids:
            return self._on_permanent_error(request, outcome, timeout_seconds)
        location = self._locator.locate(trace_id, own_ids, workspace, timeout_seconds)
        if isinstance(location, str):
            message = f"Another service's experiment {location} has traces of this service, and gets its spans of them"
            self._problem_log.log_once(logging.WARNING, add_fix(MessageCode.TRACE_IN_OTHER_EXPERIMENT, message))
            return SendResult((request,))
        part = request.split_off({trace_id})
        if location.cause is not FailureKind.SERVER:
            reason = f"another experiment has their trace tr-{trace_id:032x}, and cannot be looked up"
            self._drop_foreign_spans(part, MessageCode.TRACE_IN_OTHER_EXPERIMENT, f"{reason}: {location.message}")
        elif self.is_closing:
            self.spool_or_drop(part)
        else:
            part.not_before = self.clock() + compute_backoff(part.delay_count, self._jitter())
            part.delay_count += 1
            return SendResult((request, part), requeue_last=True)
        return SendResult((request,))

    def _on_foreign_trace_refused(self, request: ExportRequest, outcome: ExportOutcome) -> SendResult:
        """Drop spans that the experiment of another service does not take."""
        destination = request.destination
        self._locator.forget(destination.workspace, {span.trace_id for span in request.spans})
        if outcome.status == 401 and not request.rejection_count:
            # An expired token is rejected by the service's own experiment, too, and the spans wait for a new token.
            request.rejection_count += 1
            request.destination = destination._replace(trace_experiment_id=None)
            return SendResult((request,))
        reason = f"experiment {destination.trace_experiment_id} of another service has their trace, and rejects them"
        return self._drop_foreign_spans(request, MessageCode.TRACE_IN_OTHER_EXPERIMENT, f"{reason}: {outcome.message}")

    def _drop_foreign_spans(self, request: ExportRequest, code: MessageCode, message: str) -> SendResult:
        outcome = ExportOutcome(Disposition.PERMANENT, FailureKind.CONTENT, message, code=code)
        return self._drop(request, outcome, pluralize(len(request.spans), "span"))

    def _separate_missing_traces(self, request: ExportRequest, timeout_seconds: float) -> list[ExportRequest]:
        """Split off accepted spans that MLflow did not store, because another workspace has a trace of the request.

        MLflow 3.12 to 3.18 then stores none of the request's new traces. Missing traces that may be shared are sent
        again in a request each, the other missing ones together. A trace that is still missing after it was sent alone
        belongs to another workspace.
        """
        remote_ids = {span.trace_id for span in request.spans if span.has_remote_parent or span.is_call}
        workspace = request.destination.workspace
        missing = self._locator.find_missing(remote_ids, workspace, timeout_seconds) if remote_ids else ()
        if not missing:
            return []
        other_ids = {span.trace_id for span in request.spans} - remote_ids
        if not other_ids and len(remote_ids) == 1:
            reason = "the server accepted them, and has not stored their trace, which another workspace has"
            self._drop_foreign_spans(request.split_off(missing), MessageCode.TRACE_IN_OTHER_WORKSPACE, reason)
            return []
        others = request.split_off(self._locator.find_missing(other_ids, workspace, timeout_seconds))
        return [others, *(request.split_off({trace_id}) for trace_id in missing)]

    def _on_success(self, request: ExportRequest, outcome: ExportOutcome, timeout_seconds: float) -> SendResult:
        self._record_acceptance(request.destination)
        self._record_recovery(request.destination)
        missing = self._separate_missing_traces(request, timeout_seconds)
        count = len(request.spans)
        rejected_count = min(outcome.rejected_count, count)
        if rejected_count:
            message = f"Spans rejected{_origin_label(request)}: {self._explain(outcome)}"
            self._problem_log.report(f"rejected {request.destination.name}", message, rejected_count)
        elif outcome.message:
            message = add_code(MessageCode.SERVER_MESSAGE, f"Server message: {outcome.message}")
            self._problem_log.log_once(logging.WARNING, message)
        if count:
            self._settle(request, count - rejected_count, rejected_count, outcome)
        return SendResult((request, *missing) if request.advance(self._jitter()) else missing)

    def _record_acceptance(self, destination: Destination) -> None:
        self._last_accepted.pop(destination.name, None)
        evict_oldest(self._last_accepted, _MAX_DESTINATIONS)[destination.name] = next(self._accepted_numbers)

    def _record_recovery(self, destination: Destination) -> None:
        self.backoff.record_success(destination)
        self._live_destinations.discard(destination)
        message = f"Export recovered for {destination.description}"
        self._problem_log.resolve(destination.name, add_code(MessageCode.RECOVERED, message))

    def _settle(
        self, request: ExportRequest, delivered_count: int, dropped_count: int, outcome: ExportOutcome | None = None
    ) -> None:
        spans, request.spans = request.spans, []  # an error from here on must not send them again
        self._problem_log.stats.add(delivered=delivered_count)
        if dropped_count:
            self._problem_log.stats.add_dropped(dropped_count, (outcome and outcome.error_type) or "shutdown")
        try:
            if self._persistent_queue is not None:
                self._persistent_queue.acknowledge(spans)
            if delivered_count:
                self.on_delivered(request.destination, spans)
        finally:
            request.future.settle(delivered_count, dropped_count, outcome)

    def _skip_stored_spans(self, request: ExportRequest, timeout_seconds: float) -> SendResult | None:
        """Remove stored spans; None when the rest may be sent. A server that may still be writing is asked again."""
        try:
            if not self._server_info.is_older_than(COUNTS_ONCE_SINCE, timeout_seconds):
                request.may_have_arrived = False
                return None
            trace_ids = {span.trace_id for span in request.spans}
            stored_ids = self._server_info.stored_spans(trace_ids, request.destination.workspace, timeout_seconds)
        except ServerUnavailableError as error:
            return self._on_retryable_failure(request, error.outcome)
        if stored_ids is not None:
            are_all_stored = all((span.trace_id, span.span_id) in stored_ids for span in request.spans)
            may_grow = stored_ids != request.stored_ids or self.clock() < request.check_until
            if not are_all_stored and may_grow:
                request.stored_ids = stored_ids
                request.not_before = self.clock() + _LOOKUP_SECONDS
                request.future.yield_slot()
                return SendResult((request,), requeue_last=True)
        request.may_have_arrived, request.stored_ids = False, None
        if not stored_ids:
            return None
        missing = [span for span in request.spans if (span.trace_id, span.span_id) not in stored_ids]
        stored = [span for span in request.spans if (span.trace_id, span.span_id) in stored_ids]
        if stored:
            request.spans = stored
            self._settle(request, len(stored), 0)
            # The server stored these and answered 500 because of others (MLflow 3.10).
            self._record_acceptance(request.destination)
        request.spans = missing
        if missing:
            return None
        self._record_recovery(request.destination)
        return SendResult((request,) if request.advance(self._jitter()) else ())

    def _on_too_large(self, request: ExportRequest, outcome: ExportOutcome, body_bytes: int) -> SendResult:
        """Split a request after a 413 and send smaller requests from now on; a single span is truncated."""
        if self._persistent_queue is not None and body_bytes <= _MIN_REQUEST_BYTES:
            return self._on_retryable_failure(request, outcome)
        smaller_bytes = max(body_bytes // 2, _MIN_REQUEST_BYTES)
        self.max_request_bytes = min(self.max_request_bytes or smaller_bytes, smaller_bytes)
        if len(request.spans) > 1:
            parts = [request.part(spans) for spans in split_spans(request.spans)]
            return SendResult((*parts, *request.separate_others()))
        truncated = truncate_span(request.spans[0], body_bytes // 2) if body_bytes > _MIN_REQUEST_BYTES else None
        if truncated is None:
            return self._drop(request, outcome)
        request.spans = [truncated]
        return SendResult((request,))

    def _on_permanent_error(self, request: ExportRequest, outcome: ExportOutcome, timeout_seconds: float) -> SendResult:
        """Bisect until the bad span is alone; drop it when the rejection is confirmed."""
        if len(request.spans) > 1:
            try:
                request.may_have_arrived = self._server_info.is_older_than(ALL_OR_NOTHING_SINCE, timeout_seconds)
            except ServerUnavailableError:
                request.may_have_arrived = True
            request.bisect(self._jitter())
            return SendResult((request,))
        others = request.separate_others()
        request.rejection_count += 1
        if request.rejection_count > 1 or self.is_closing:
            self._drop(request, outcome)
            return SendResult(others)
        request.not_before = self.clock() + _CONFIRM_SECONDS
        return SendResult((*others, request), requeue_last=True)

    def _drop(self, request: ExportRequest, outcome: ExportOutcome, spans_label: str = "") -> SendResult:
        count = len(request.spans)
        spans_label = spans_label or (describe_span(request.spans[0]) if count == 1 else pluralize(count, "span"))
        message = f"Dropped {spans_label}{_origin_label(request)}: {self._explain(outcome)}"
        self._problem_log.report(f"refused {outcome.status} {spans_label}", message, count)
        if self._persistent_queue is not None:
            self._persistent_queue.dead_letter(request.destination, request.spans, outcome.message)
        self._settle(request, 0, count, outcome)
        return SendResult(request.separate_others())  # of a bisection, which ends here

    def _on_retryable_failure(self, request: ExportRequest, outcome: ExportOutcome) -> SendResult:
        destination, cause = request.destination, outcome.cause or FailureKind.SERVER
        request.may_have_arrived = request.may_have_arrived or outcome.may_have_arrived
        if outcome.may_have_arrived and outcome.status in (None, 504):
            request.check_until = self.clock() + MAX_WRITE_SECONDS
        request.future.record_failure(may_have_arrived=request.may_have_arrived)
        if self.is_closing and (request.delay_count or self.backoff.failure_count(destination) > 1):
            self.spool_or_drop(request)
            return SendResult()
        request.delay_count += 1
        can_spool = self._persistent_queue is not None and not request.future.is_on_disk
        if can_spool and (
            self.is_closing or self.backoff.should_spool(destination, request.delay_count, request.created_at)
        ):
            delay = self._start_delay(request, outcome, cause)
            if self.spool(request):
                return SendResult(destination_delay=0.0 if self.is_closing else delay)
            return SendResult((request,), destination_delay=delay)
        if outcome.status == 500 and cause is FailureKind.SERVER:
            return self._on_server_error(request, outcome)
        delay = self._start_delay(request, outcome, cause)
        if outcome.code is MessageCode.RESPONSE_TIMEOUT and is_ending():  # the end has waited long enough
            self.spool_or_drop(request)
            return SendResult()
        if cause is FailureKind.CREDENTIALS and self._server.has_new_credential():
            return SendResult((request,))
        if cause is FailureKind.DESTINATION:
            self._client.forget(destination)
        if cause is FailureKind.CREDENTIALS and self._server.credentials.can_watch:
            self._auth_paused_until = self.clock() + delay
            delay = _TOKEN_POLL_SECONDS
        return SendResult((request,), destination_delay=delay)

    def spool(self, request: ExportRequest) -> bool:
        """Write a request to disk; False if the disk does not take it."""
        request.gather()
        queue, spans = self._persistent_queue, request.spans
        assert queue is not None
        self._live_destinations.add(request.destination)
        if spans:
            if not queue.append(
                request.destination, spans, attempted=request.was_sent, may_have_arrived=request.may_have_arrived
            ):
                return False
            request.spans = []
            request.future.settle(len(spans), 0)
        return True

    def _start_delay(self, request: ExportRequest, outcome: ExportOutcome, cause: FailureKind) -> float:
        """Log that the destination fails, and return its delay in seconds."""
        destination, needs_user = request.destination, cause in _USER_FAILURES
        retry_after = outcome.retry_after
        delay = self.backoff.record_failure(destination, outcome, retry_after=retry_after, needs_user=needs_user)
        if not request.future.label:
            self._live_destinations.add(destination)
        # Leftovers of another run are named only while this run has no spans queued for the same destination.
        label = "" if destination in self._live_destinations else _origin_label(request)
        queued_count = self._count_queued(destination, not label) + len(request.spans) * (not request.future.is_on_disk)
        where = f"{self._where} for {destination.description}{label}"
        message = f"Export failing, spans are queued {where}: {self._explain(outcome)}"
        message = adapt_fix(outcome.code, message, is_own=not label)
        self._problem_log.report_waiting(destination.name, message, queued_count, is_own=not label)
        if request.future.on_postponed is not None:
            request.future.on_postponed(outcome)  # last: it wakes a waiting thread, which may read the log
        return delay

    def _on_server_error(self, request: ExportRequest, outcome: ExportOutcome) -> SendResult:
        """Decide after a 500; it counts only while the destination accepts other requests in between."""
        accepted_number = self._last_accepted.get(request.destination.name, 0)
        if not request.server_error_count or accepted_number > request.accepted_number:
            request.server_error_count += 1
            request.accepted_number = accepted_number
        if len(request.spans) > 1 and (
            request.is_bisected_after_500 or request.server_error_count >= _ERRORS_BEFORE_BISECTION
        ):
            request.is_bisected_after_500, request.server_error_count, request.delay_count = True, 0, 0
            request.bisect(self._jitter())
            return SendResult((request,))
        others = request.separate_others()
        if request.server_error_count >= _ERRORS_BEFORE_DROP:  # a single span: two or more are bisected before
            self._drop(request, outcome._replace(cause=FailureKind.CONTENT))  # the fix is not on the server
            return SendResult(others)
        if request.delay_count > 1:
            request.future.yield_slot()
        if request.server_error_count == 1:
            delay = self._start_delay(request, outcome, FailureKind.SERVER)
            return SendResult((*others, request), destination_delay=delay, requeue_last=True)
        if self.is_closing:
            self.spool_or_drop(request)
            return SendResult(others)
        # Other requests were accepted: only this one waits.
        request.not_before = self.clock() + compute_backoff(request.delay_count - 1, self._jitter())
        return SendResult((*others, request), requeue_last=True)

    def _on_internal_error(self, request: ExportRequest, error: Exception) -> SendResult:
        """Retry after an unexpected exception, behind other requests; drop the spans after five."""
        request.exception_count += 1
        log_exception(error, "send spans")
        if self.is_closing:
            self.spool_or_drop(request)
            return SendResult()
        if request.exception_count < _ERRORS_BEFORE_DROP:
            request.not_before = self.clock() + compute_backoff(request.exception_count, self._jitter())
            return SendResult((request,), requeue_last=True)
        outcome = ExportOutcome(Disposition.PERMANENT, message=type(error).__name__, code=MessageCode.INTERNAL_ERROR)
        return self._drop(request, outcome)

    def spool_or_drop(self, request: ExportRequest) -> None:
        """Spool a request that cannot be sent before the end, or drop it without a spool."""
        if request.future.is_on_disk:
            request.future.release()
            return
        if self._persistent_queue is not None and self.spool(request):
            return
        request.gather()
        count = len(request.spans)
        if not count:
            return
        outcome = self.backoff.last_failure(request.destination)
        message = "Spans dropped: not delivered before shutdown"
        message = f"{message}: {self._explain(outcome)}" if outcome else add_code(MessageCode.NOT_DELIVERED, message)
        self._problem_log.report(f"abandoned {request.destination.name}", message, count)
        self._settle(request, 0, count)


def _origin_label(request: ExportRequest) -> str:
    return f" ({request.future.label})" if request.future.label else ""


def _is_refused(outcome: ExportOutcome) -> bool:
    return outcome.cause is FailureKind.DESTINATION or outcome.status == 401 or outcome.trace_id is not None
