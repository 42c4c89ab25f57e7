"""The single object behind exporter and processor: spans in, outcomes out."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.backoff import MAX_SECONDS_IN_MEMORY
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.exporter_metrics import ExporterMetrics
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.primitives import LazyCondition
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.process_end import is_ending, run_closing_steps
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.batcher import Batcher, iter_chunks
from mlflow_otlp_exporter._internal.delivery.clients import build_clients, format_outcome
from mlflow_otlp_exporter._internal.delivery.export_request import ExportFuture, ExportRequest
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_location import TraceLocator, explain_missing, format_console_url
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, memory_bytes_of
from mlflow_otlp_exporter._internal.tracing.routing import route_of

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer
    from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
    from mlflow_otlp_exporter._internal.mlflow_api.client import MlflowRestClient
    from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue
    from mlflow_otlp_exporter._internal.transport.client import Session

# Spans that are encoded before they are sent: at high rates, thousands of spans end while others are encoded.
_SPANS_PER_PART = 512
# Failed attempts after which `export` returns, as upstream's does. The spans are retried in the background.
_MAX_ATTEMPTS = 6
# The end of the process waits that long for a server: with a spool, and for one that has not answered before.
_MAX_EXIT_SECONDS = 2.5


class Pipeline:
    """Batcher, retry sender, spool and REST calls of one exporter, and the threads that run them."""

    # Notified when a request is settled or postponed. Re-entrant, because a signal handler may export or flush, and
    # waiting releases it as a whole; `concurrent.futures.wait` would hold locks that the handler needs.
    _changed = LazyCondition()

    def __init__(
        self,
        settings: Settings,
        session: Session | None,
        metrics: ExporterMetrics | None = None,
        problem_log: ProblemLog | None = None,
    ) -> None:
        self.settings, self.metrics, self.problem_log = settings, metrics, problem_log or ProblemLog()
        self._clients = clients = build_clients(
            settings, self.problem_log, session=session, on_endpoint_moved=self._log_endpoint_moved
        )
        self.otlp_client = clients.otlp
        if metrics is not None:
            metrics.observe(self)
            clients.otlp.on_outcome = lambda outcome, seconds, destination: metrics.record_request(
                seconds, outcome.error_type, outcome.status, destination
            )
        self.batcher = Batcher(
            settings,
            clients.destination,
            self.problem_log,
            max_bytes=self._max_request_bytes,
            on_dropped=self._record_lost,
        )
        api, certain, has_api = clients.api, settings.is_api_certain, clients.experiments.has_api
        server_info = ServerInfo(api, self.problem_log, certain=certain, has_api=has_api)
        self._locator = TraceLocator(api, checks_workspaces=settings.has_same_server and certain)
        self.persistent_queue: PersistentQueue | None = None
        if settings.disk.spool:
            # Imported only with a spool: nothing else needs most of it.
            from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader
            from mlflow_otlp_exporter._internal.spool.persistent_queue import open_queue

            header = JournalHeader(clients.destination, not self.batcher.redactor.is_idle)
            self.persistent_queue = open_queue(settings, str(clients.server.credentials), self.problem_log, header)
        self.retry_sender = RetrySender(
            clients.server,
            clients.otlp,
            server_info,
            self.problem_log,
            self._locator,
            explain=lambda outcome: format_outcome(outcome, clients.server, settings),
            count_queued=self._count_queued,
            persistent_queue=self.persistent_queue,
        )
        self.rest_client: MlflowRestClient | None = None
        if clients.api is not None:
            from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import AssessmentFiles
            from mlflow_otlp_exporter._internal.mlflow_api.client import MlflowRestClient

            files: AssessmentFiles | None = None
            if self.persistent_queue is not None:
                storage = self.persistent_queue.storage
                files = AssessmentFiles(storage.ensure_folder, storage.find_folder, settings.disk.spool_max_age)
            self.rest_client = MlflowRestClient(
                clients.api, settings, clients.experiments, server_info, self.problem_log, files, clients.otlp.export
            )
            self.retry_sender.on_delivered = self.rest_client.on_delivered
            self.retry_sender.uploader = self.rest_client.uploader
        self.work_queue: WorkQueue[ExportRequest] = WorkQueue(self._send_once, self.retry_sender.spool_or_drop)
        self.spool_consumer: SpoolConsumer | None = None
        if self.persistent_queue is not None:
            from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer

            self.spool_consumer = SpoolConsumer(
                self.persistent_queue,
                send=self._enqueue_request,
                spill=self._spill_to_disk,
                maintain=self._expire_and_recover,
                problem_log=self.problem_log,
            )
            self.persistent_queue.on_append = self.spool_consumer.wake
            self.persistent_queue.storage.is_memory_full = self._is_memory_full
        self.trace_buffer: Any = None  # of the worker or the gateway, with `span_count` and `byte_count`
        self.is_closed = False
        self._flush_deadline = math.inf
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)
        if self.spool_consumer and self.persistent_queue and self.persistent_queue.has_leftovers():
            # Last, because its thread needs all of the above. Without leftovers no thread starts before there is
            # something to send: until then, the application may fork.
            self.spool_consumer.wake()

    def _reset_after_fork(self) -> None:
        # The parent sends the requests that it has.
        self.__dict__.pop("_changed", None)
        self._in_flight: set[ExportFuture] = set()
        self.in_flight_span_count = self.in_flight_byte_count = 0  # bytes before compression

    # Spans

    @property
    def span_recorder(self) -> Callable[..., bool] | None:
        """The function that writes ended spans to the journal; None unless durability is `every-span`."""
        journal = self.persistent_queue.journal if self.persistent_queue is not None else None
        if journal is None or self.batcher.redactor.is_idle:
            return journal.append if journal is not None else None
        write, redact = journal.append, self.batcher.redactor.redact

        def record(*spans: ReadableSpan) -> bool:
            try:
                return write(*map(redact, spans))
            except BaseException as error:  # the spans are only in memory then, and dropped when they are encoded
                if must_propagate(error):
                    raise
                return False

        return record

    def set_trace_filter(self, patterns: Sequence[str]) -> None:
        """Write the patterns to the journal, so that recovery after a kill filters the same traces."""
        if self.persistent_queue is not None and self.persistent_queue.journal is not None:
            self.persistent_queue.journal.set_trace_filter(patterns)

    def submit(self, spans: list[ReadableSpan], byte_count: int, max_span_bytes: float = math.inf) -> None:
        """Encode spans of estimated sizes, grouped by trace, and send them in the background.

        The list is emptied meanwhile: a span of the SDK takes many times the memory of its bytes.
        """
        unsent_count = len(spans)
        mean_bytes = byte_count // max(1, unsent_count)
        self._add_in_flight(unsent_count, unsent_count * mean_bytes)
        try:
            if self.is_closed:
                self.spool_or_drop(spans, "the exporter is shut down")
                return
            for part in iter_chunks(spans, _SPANS_PER_PART) if unsent_count > _SPANS_PER_PART else (spans,):
                for destination, encoded in self.batcher.build_and_clear(part, min(byte_count, max_span_bytes)):
                    self._submit_batch(destination, encoded, mean_bytes)
                    unsent_count -= len(encoded)
        except BaseException as error:
            self.record_dropped(unsent_count, f"{type(error).__name__} was raised", "internal_error")
            raise
        finally:
            self._add_in_flight(-unsent_count, -unsent_count * mean_bytes)

    def _submit_batch(self, destination: Destination, encoded: list[EncodedSpan], mean_bytes: int) -> None:
        future = ExportFuture(len(encoded), memory_bytes_of(encoded))
        # The spans are in flight already: if they counted twice, even for a moment, the buffer could seem full.
        self._add_in_flight(0, future.byte_count - future.span_count * mean_bytes)
        merge = partial(ExportRequest.merge, spans=encoded, other=future, max_bytes=self._max_request_bytes())
        if not self.work_queue.extend_last(destination, merge):
            self._enqueue(destination, encoded, future)
        elif self.metrics is not None:
            self.metrics.record_start(future.span_count)

    def _add_in_flight(self, span_count: int, byte_count: int) -> None:
        with self._changed:
            self.in_flight_span_count += span_count
            self.in_flight_byte_count += byte_count

    def _untrack(self, future: Future[int]) -> None:
        with self._changed:
            if isinstance(future, ExportFuture) and future in self._in_flight:  # after a fork, the parent has it
                self._in_flight.discard(future)
                self._add_in_flight(-future.span_count, -future.byte_count)
            self._changed.notify_all()

    def export(self, spans: Sequence[ReadableSpan]) -> Callable[[], bool]:
        """Send spans, and return a function that waits for their outcome, for at most the timeout.

        It returns true if all were delivered or spooled. What may succeed later is retried in the background.
        """
        batches, failed_count = self.batcher.build(spans)
        deadline = time.monotonic() + self.settings.timeout
        futures = [self._export(destination, encoded) for destination, encoded in batches]

        def wait() -> bool:
            with self._changed:
                seconds = deadline - time.monotonic()
                self._changed.wait_for(lambda: all(item.done() or item.is_postponed for item in futures), seconds)
            return not failed_count and all(future.done() and future.result() == 0 for future in futures)

        return wait

    def _export(self, destination: Destination, spans: list[EncodedSpan]) -> ExportFuture:
        future = ExportFuture(len(spans), memory_bytes_of(spans))
        in_flight_bytes = self.in_flight_byte_count + future.byte_count
        if in_flight_bytes > self.settings.buffer.buffer_bytes and self.persistent_queue is None:
            reason = "the server is unavailable and the memory limit is reached"
            self._record_lost(len(spans), (), "memory_limit", reason)
            future.settle(0, len(spans))
            return future

        attempts = itertools.count(1)

        def on_postponed(outcome: ExportOutcome | None) -> None:
            # A server may recover within the timeout; what a user has to correct will not.
            if outcome is not None and (outcome.cause is not FailureKind.SERVER or next(attempts) >= _MAX_ATTEMPTS):
                with self._changed:
                    future.is_postponed = True
                    self._changed.notify_all()

        future.on_postponed = on_postponed
        last_outcome = self.retry_sender.backoff.last_failure(destination)
        self._add_in_flight(future.span_count, future.byte_count)
        self._enqueue(destination, spans, future)
        on_postponed(last_outcome)  # these spans are queued behind requests that fail
        return future

    def _enqueue(self, destination: Destination, spans: list[EncodedSpan], future: ExportFuture) -> None:
        with self._changed:
            self._in_flight.add(future)
        future.add_done_callback(self._untrack)
        if self.metrics is not None:
            future.on_counted = self.metrics.record_start(len(spans))
        request, sender = ExportRequest(destination, spans, future, created_at=time.monotonic()), self.retry_sender
        is_failing = sender.backoff.failure_counts and sender.backoff.is_backing_off(destination)
        if is_failing and self.persistent_queue is not None and sender.spool(request):
            return
        must_wait = self.work_queue.enqueue(destination, request)
        if self.spool_consumer is not None and (must_wait or not self.spool_consumer.is_started):
            # The consumer spools requests that wait for too long.
            self.spool_consumer.wake()

    def _enqueue_request(self, request: ExportRequest) -> None:
        # A new request in memory is behind the failing ones in the queue; one from the disk may be the only one.
        is_delayed = request.future.is_on_disk and self._flush_deadline == math.inf
        delay = self.retry_sender.backoff.remaining_delay(request.destination) if is_delayed else 0.0
        self.work_queue.enqueue(request.destination, request, delay=delay)

    def _send_once(self, request: ExportRequest) -> SendResult:
        remaining_seconds = max(0.2, self._flush_deadline - time.monotonic())
        return self.retry_sender.send(request, min(self.settings.timeout, remaining_seconds))

    def spool_or_drop(self, spans: Sequence[ReadableSpan], reason: str) -> None:
        """Write spans to disk that cannot be sent any more, or drop them without a spool."""
        queue = self.persistent_queue
        for destination, encoded in self.batcher.build(spans)[0]:
            if queue is None or not queue.append(destination, encoded, attempted=False, may_have_arrived=False):
                self.record_dropped(len(encoded), reason, "shutdown")
            elif is_ending():  # uWSGI's master is not: its workers send these spans
                self.problem_log.report_queued(len(encoded))

    # Called by the retry sender, the spool and its consumer

    def _max_request_bytes(self) -> int:
        return min(filter(None, (self.settings.max_request_size, self.retry_sender.max_request_bytes)), default=0)

    def _count_queued(self, destination: Destination, is_own: bool) -> int:
        queued, queue = self.work_queue.items_of(destination), self.persistent_queue
        count = sum(len(request.spans) for request in queued if not request.future.is_on_disk)
        return count + (0 if queue is None else queue.storage.pending_span_count(destination, is_own=is_own))

    def _spill_to_disk(self) -> bool:
        """Spool requests that were queued in memory for too long; True if any request is still queued."""
        queue, sender = self.persistent_queue, self.retry_sender
        if queue is not None and queue.storage.is_writable:
            now = sender.clock()

            def is_late(request: ExportRequest) -> bool:
                if request.future.is_on_disk:
                    return False
                is_old = now - request.created_at > MAX_SECONDS_IN_MEMORY
                return is_old or sender.backoff.is_backing_off(request.destination)

            for request in self.work_queue.remove_if(is_late):
                if not sender.spool(request):
                    self._enqueue_request(request)
        return self.work_queue.has_items()

    def _is_memory_full(self) -> bool:
        """Return whether requests that do not fit on the disk would not fit into memory either."""
        queued = sum(request.byte_count for request in self.work_queue.all_items() if not request.future.is_on_disk)
        return self.is_closed or 2 * queued > self.settings.buffer.buffer_bytes

    def _expire_and_recover(self) -> None:
        """Drop expired requests and recover spans from the journals of killed processes."""
        if self.persistent_queue is not None:
            if self.retry_sender.backoff.failure_counts:
                self.persistent_queue.storage.remove_expired()
            self.persistent_queue.recover_journals(self.batcher.build_recovered, self.record_filtered)
            if self.rest_client is not None:
                self.rest_client.load_stored_assessments()

    # Counters and log

    @property
    def dropped_count(self) -> int:
        return self.problem_log.stats.snapshot().dropped

    def _record_lost(self, count: int, spans: Sequence[ReadableSpan], kind: str, reason: str) -> None:
        """Record spans that were dropped before they became a request; `spans` are those that are known."""
        if self.metrics is not None:
            self.metrics.record_exported(count, kind)
        self._remove_from_journal(spans)
        self.record_dropped(count, reason, kind)

    def record_dropped(self, count: int, reason: str, kind: str) -> None:
        self.problem_log.stats.add_dropped(count, kind)
        self.problem_log.report(reason, add_code(MessageCode.SPANS_DROPPED, f"Spans dropped: {reason}"), count)

    def report_missing_threads(self) -> None:
        message = "uWSGI runs without --enable-threads: spans are sent only while it processes requests, or at its end"
        self.problem_log.log_once(logging.WARNING, add_code(MessageCode.THREADS_DISABLED, message))

    def record_filtered(self, spans: Sequence[ReadableSpan]) -> None:
        """Record spans of filtered traces, and log the first one."""
        self.problem_log.stats.add(filtered=len(spans))
        self._remove_from_journal(spans)
        scopes = sorted({span.instrumentation_scope.name for span in spans if span.instrumentation_scope is not None})
        message = (
            f"A trace is filtered out: all its spans are of {', '.join(scopes[:5])}; stats() counts such spans, "
            "MLFLOW_OTLP_NOISE=none sends them"
        )
        self.problem_log.log_once(logging.INFO, add_code(MessageCode.TRACE_FILTERED, message))

    def _remove_from_journal(self, spans: Sequence[ReadableSpan]) -> None:
        """Without a request, spans are removed from the journal here: else they would be sent after a kill."""
        if self.persistent_queue is not None and self.persistent_queue.journal is not None:
            keys = [(span.context.trace_id, span.context.span_id) for span in spans if span.context is not None]
            self.persistent_queue.journal.acknowledge(keys)

    def _log_endpoint_moved(self, url: str) -> None:
        message = f"The server has its OTLP endpoint at {url}, as MLflow before 3.16 does under a static prefix"
        self.problem_log.log_once(logging.INFO, add_code(MessageCode.EXPORT_CONFIGURED, message))

    def stats(self) -> Stats:
        snapshot, repairs = self.problem_log.stats.snapshot(), self.batcher.encoder.repairs
        return snapshot._replace(values_repaired=repairs.repaired, values_dropped=repairs.left_out)

    # Flush and shutdown

    def flush(self, timeout_seconds: float) -> bool:
        """Cancel delays and wait for all requests in flight; True if all were delivered or spooled within the time."""
        dropped_before, deadline = self.dropped_count, time.monotonic() + timeout_seconds
        self._flush_deadline = deadline
        try:
            self.work_queue.wake_all()
            with self._changed:
                in_flight = frozenset(self._in_flight)
                is_settled = self._changed.wait_for(lambda: in_flight.isdisjoint(self._in_flight), timeout_seconds)
            self.wait_until_drained(deadline - time.monotonic())
            self.wait_for_rest_calls(deadline - time.monotonic())
        finally:
            self._flush_deadline = math.inf
        return is_settled and self.dropped_count == dropped_before

    def wait_until_drained(self, timeout_seconds: float) -> int:
        """Wait until the spans that this process spooled are sent; see `SpoolConsumer.wait`."""
        return self.spool_consumer.wait(timeout_seconds, self.retry_sender) if self.spool_consumer is not None else 0

    def wait_for_rest_calls(self, timeout_seconds: float) -> bool:
        """Wait for pending trace metadata updates and feedback; stop early if the server is unavailable."""
        return self.rest_client is None or self.rest_client.wait(max(0.0, timeout_seconds))

    def limit_exit_seconds(self, timeout_seconds: float) -> float:
        """Shorten a timeout at the end of the process, if the disk takes the spans, or the server has failed before."""
        if not is_ending():
            return timeout_seconds
        queue = self.persistent_queue
        is_short = (queue is not None and queue.storage.is_writable) or self.retry_sender.backoff.failure_counts
        return min(timeout_seconds, _MAX_EXIT_SECONDS) if is_short else timeout_seconds

    def shutdown(self, timeout_seconds: float) -> None:
        """Wait for queued requests, spool or drop the remaining ones, and close connections."""
        self.is_closed = self.retry_sender.is_closing = True
        timeout_seconds = self.limit_exit_seconds(timeout_seconds)
        self._flush_deadline = time.monotonic() + timeout_seconds
        steps = (self._close_consumer, self.work_queue.close, self._close_queue, self._close_clients)
        run_closing_steps(timeout_seconds, *steps, is_outermost=True)

    def _close_consumer(self, _seconds: float) -> None:
        if self.spool_consumer is not None:
            self.spool_consumer.close()
            for request in self.work_queue.remove_if(lambda request: request.future.is_on_disk):
                request.future.release()

    def _close_queue(self, _seconds: float) -> None:
        if self.persistent_queue is not None and self.spool_consumer is not None:
            for request in self.work_queue.in_progress():
                request.may_have_arrived = True
                self.retry_sender.spool_or_drop(request)
            self.persistent_queue.close()
            self.spool_consumer.release()
            self.problem_log.report_queued(self.persistent_queue.storage.pending_span_count())

    def _close_clients(self, timeout_seconds: float) -> None:
        if self.rest_client is not None:
            self.rest_client.close(timeout_seconds)
        self.problem_log.flush()
        self._clients.close()

    # Destinations and REST calls

    def workspace_of(self, trace_id: int, resource_attributes: Mapping[str, Any]) -> str | None:
        """Return the workspace of a trace; None for the server's default."""
        return self._destination_of(trace_id, resource_attributes).workspace

    def _destination_of(self, trace_id: int, resource_attributes: Mapping[str, Any]) -> Destination:
        return self._clients.destination.for_trace(resource_attributes, route_of(trace_id))

    def send_assessment(self, assessment: Assessment) -> bool:
        """Send feedback in the background; False, and it is dropped, without a REST API."""
        if self.rest_client is None:
            self.drop_assessment("no MLflow server is known beside the OTLP endpoint")
            return False
        self.rest_client.send_assessment(assessment)
        return True

    def drop_assessment(self, reason: str) -> None:
        self.problem_log.stats.add(feedback_dropped=1)
        message = add_code(MessageCode.FEEDBACK_DROPPED, f"Feedback dropped: {reason}")
        self.problem_log.log_once(logging.WARNING, message)

    def trace_url(self, trace_id: int, resource_attributes: Mapping[str, Any], *, is_checked: bool) -> str | None:
        """Return the address of a trace in the MLflow console; None, with a log line, if MLflow does not have it."""
        destination = self._destination_of(trace_id, resource_attributes)
        if is_checked and self.settings.api is not None:
            location = self._locator.look_up([trace_id], destination.workspace, self.settings.timeout)[trace_id]
            if not isinstance(location, str):
                message = f"trace_url() returns None: {explain_missing(location)}"
                self.problem_log.log_once(logging.WARNING, add_code(MessageCode.TRACE_NOT_STORED, message))
                return None
            destination = destination._replace(trace_experiment_id=location)
        return self.console_url(destination, trace_id)

    def console_url(self, destination: Destination, trace_id: int | None = None) -> str | None:
        """Return the address of a trace, or of the experiment; None if the experiment cannot be looked up now."""
        if self.settings.api is None:
            return None
        other_id = self._locator.experiment_of(destination.workspace, trace_id) if trace_id else None
        experiment = other_id or self._clients.experiments.resolve(destination, self.settings.timeout)
        if not isinstance(experiment, str):
            return None
        namespace = self._clients.namespace
        workspace = destination.workspace or (namespace.cached_name if namespace else None)
        return format_console_url(self.settings.api.url, experiment, trace_id, workspace)
