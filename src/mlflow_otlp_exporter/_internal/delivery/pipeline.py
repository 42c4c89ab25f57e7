"""What an exporter holds: routing, encoding, packing, delivery in a row."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.backoff import LONGEST_IN_MEMORY
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.in_flight import InFlightRequests, Ticket
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.batcher import Batch, Batcher
from mlflow_otlp_exporter._internal.delivery.explanation import format_outcome
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.delivery.wait import both, suspects, waker
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.static_prefix import with_static_prefix
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, Destination
from mlflow_otlp_exporter._internal.model.encoded_span import memory_bytes_of
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.tracing.routing import route_of

if TYPE_CHECKING:
    import requests

    from mlflow_otlp_exporter._internal.delivery.exporter_metrics import ExporterMetrics
    from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer
    from mlflow_otlp_exporter._internal.mlflow_api.client import MlflowRestClient
    from mlflow_otlp_exporter._internal.mlflow_api.workspace import NamespaceWorkspace
    from mlflow_otlp_exporter._internal.spool.persistent_queue import PersistentQueue
    from mlflow_otlp_exporter._internal.transport.messages import Transport


class Pipeline:
    """From spans to outcomes.

    Args:
        settings: All settings.
        session: A session of the user's.
        metrics: The SDK's metrics about exporters, if they are wanted.

    Raises:
        ConfigurationError: The credentials, or the provider of a session, cannot be used.
    """

    def __init__(
        self, settings: Settings, session: requests.Session | None, metrics: ExporterMetrics | None = None
    ) -> None:
        # Here, not at the top: requests is half of the import time, and an app that only imports should not pay it.
        from mlflow_otlp_exporter._internal.transport.authorization import load_credential_provider_session
        from mlflow_otlp_exporter._internal.transport.client import HttpClient

        self.settings, self._metrics = settings, metrics
        self.report = ProblemLog()
        self.destination = Destination(settings.workspace, settings.experiment, settings.experiment_id, settings.run_id)
        self.batching = Batcher(settings, self.destination, self.report, size=self._size, give_up=self._give_up)
        session = session or load_credential_provider_session(settings.traces)
        self.server = HttpClient(settings.traces, session)
        # A session of the user's may sign requests or hold proxies for this server, not for another one.
        same = settings.api is not None and urlsplit(settings.api.url).netloc == urlsplit(settings.traces.url).netloc
        self.api = HttpClient(settings.api, session if same else None) if settings.api else None
        self.namespace: NamespaceWorkspace | None = None
        traces, rest = self._servers()
        self.experiments = ExperimentResolver(
            rest, certain=settings.is_api_certain, create=settings.create_experiment, report=self.report
        )
        delivery = OTLPClient(
            traces,
            self.experiments,
            compression=settings.compression,
            report=self.report,
            experiment_is_set=EXPERIMENT_HEADER in self.server.header_names,
        )
        stored = ServerInfo(rest, self.report, certain=settings.is_api_certain)
        self.depot: PersistentQueue | None = None
        if settings.disk.spool:
            # Here, as most of what it needs is imported by nobody else.
            from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader
            from mlflow_otlp_exporter._internal.spool.persistent_queue import open_queue

            header = JournalHeader(self.destination, not self.batching.cleaner.is_idle)
            self.depot = open_queue(settings, str(self.server.credentials), self.report, header)
        self.courier = RetrySender(
            self.server,
            delivery,
            stored,
            self.report,
            explain=self.format_outcome,
            queued=self._queued,
            depot=self.depot,
        )
        self.rest_side: MlflowRestClient | None = None
        if rest is not None:
            from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import AssessmentFiles
            from mlflow_otlp_exporter._internal.mlflow_api.client import MlflowRestClient

            files: AssessmentFiles | None = None
            if self.depot is not None:
                storage = self.depot.storage
                files = AssessmentFiles(storage.ensure_folder, storage.find_folder, settings.disk.spool_max_age)
            self.rest_side = MlflowRestClient(rest, settings, self.experiments, stored, self.report, files)
            self.courier.delivered, self.courier.uploads = self.rest_side.on_delivered, self.rest_side.uploader
        self.senders: WorkQueue[ExportRequest] = WorkQueue(self._step, self.courier.abandon)
        self.drainer: SpoolConsumer | None = None
        if self.depot is not None:
            from mlflow_otlp_exporter._internal.delivery.spool_consumer import SpoolConsumer

            self.drainer = SpoolConsumer(
                self.depot, send=self._send, spill=self._spill, tidy=self._tidy, report=self.report
            )
            self.depot.on_append = self.drainer.wake
            self.depot.storage.is_memory_full = self._is_pressed
        self.in_flight = InFlightRequests()
        self.closed = False
        self._until = math.inf
        if self.drainer is not None and self.depot is not None and self.depot.has_leftovers():
            # What another run has left, sent by threads that need all of the above. Else no thread is started before
            # there is something to send, as an app may fork until then.
            self.drainer.wake()

    def _servers(self) -> tuple[Transport, Transport | None]:
        """The OTLP endpoint and the REST side, wherever they lie, and in the workspace of a pod."""
        traces, rest = with_static_prefix(
            self.server, self.api if self.settings.is_api_certain else None, self._found_at
        )
        rest = rest or self.api
        if self.settings.namespace is not None and rest is not None:
            from mlflow_otlp_exporter._internal.mlflow_api.workspace import with_namespace_workspace  # only in pods

            traces, rest, self.namespace = with_namespace_workspace(self.settings.namespace, traces, rest, self.report)
        return traces, rest

    def _found_at(self, url: str) -> None:
        said = f"the server has its OTLP endpoint at {url}, as MLflow before 3.16 does under a static prefix"
        self.report.once(logging.INFO, add_code(MessageCode.EXPORT_CONFIGURED, said))

    @property
    def record(self) -> Callable[[ReadableSpan], None] | None:
        """What puts an ended span on disk at once; None unless every span is to be there."""
        journal = self.depot.journal if self.depot is not None else None
        if journal is None or self.batching.cleaner.is_idle:
            return journal.append if journal is not None else None
        write, clean = journal.append, self.batching.cleaner.clean

        def record(span: ReadableSpan) -> None:
            with suppress(Exception):  # then it is in memory only, until it is refused
                write(clean(span))

        return record

    def note_noise(self, noise: Sequence[str]) -> None:
        """Writes beside the spans on disk which traces are left out: whoever finds them after a kill judges alike."""
        if self.depot is not None and self.depot.journal is not None:
            self.depot.journal.set_trace_filter(noise)

    def _step(self, shipment: ExportRequest) -> SendResult[ExportRequest]:
        left = max(0.2, self._until - time.monotonic())
        return self.courier.step(shipment, min(self.settings.timeout, left))

    def _queued(self, destination: Destination) -> int:
        queued = sum(len(each.spans) for each in self.senders.queued(destination) if not each.origin.kept)
        return queued if self.depot is None else queued + self.depot.storage.totals().span_count

    def hurry(self, seconds: float) -> None:
        """Ends waits between attempts, as somebody waits for the outcome, and keeps requests within that time.

        Args:
            seconds: How long somebody waits.
        """
        self._until = time.monotonic() + seconds
        self.courier.patience.hurry()
        self.senders.hurry()

    def relax(self) -> None:
        """Gives requests and waits their own time again."""
        self._until = math.inf
        self.courier.patience.relax()

    def solve(self, why: str, message: str) -> None:
        """Tells that what made spans be refused is over."""
        self.report.solved(why, add_code(MessageCode.RECOVERED, message))

    def _size(self) -> int:
        sizes = [size for size in (self.settings.max_request_size, self.courier.size_limit) if size]
        return min(sizes, default=0)

    def send(self, batch: Batch, track: Callable[[int, int], Ticket]) -> None:
        """Sends a batch in the background.

        Args:
            batch: Where to, and what.
            track: Called with its spans and bytes; what it returns is told when it is settled.
        """
        ticket = track(len(batch[1]), memory_bytes_of(batch[1]))
        self.enqueue(batch, RequestOrigin(len(batch[1]), ticket, suspected=ticket.suspected))

    def enqueue(self, batch: Batch, origin: RequestOrigin) -> None:
        """Sends a batch in a thread of its own, and keeps it until it has an outcome."""
        destination, spans = batch
        if self._metrics is not None:
            origin.counted = self._metrics.started(len(spans))
        shipment = ExportRequest(destination, spans, origin, since=self.courier.clock())
        if self.drainer is None:
            self._send(shipment)
        elif not (self.courier.patience.is_down(destination) and self.courier.put_away(shipment)):
            self._send(shipment)
            self.drainer.wake()

    def _send(self, shipment: ExportRequest) -> None:
        wait = self.courier.patience.left(shipment.destination) if shipment.origin.kept else 0.0
        self.senders.put(shipment.destination, shipment, wait=wait)

    def keep(self, spans: Sequence[ReadableSpan], why: str) -> None:
        """Puts on disk what there is no time left to send, or gives it up where there is no disk.

        Args:
            spans: The spans.
            why: In words, following "spans are lost: ".
        """
        for destination, encoded in self.batching.batches(spans)[0]:
            depot = self.depot
            if depot is None or not depot.append(destination, encoded, attempted=False, uncertain=False):
                self.refuse(len(encoded), why)

    def _spill(self) -> bool:
        """Puts on disk what has waited in memory for long, or would have to; whether anything waits there."""
        depot, courier = self.depot, self.courier
        if depot is not None and depot.storage.is_writable:
            now = courier.clock()

            def late(shipment: ExportRequest) -> bool:
                if shipment.origin.kept or shipment.search is not None or shipment.sibling is not None:
                    return False
                return now - shipment.since > LONGEST_IN_MEMORY or courier.patience.is_down(shipment.destination)

            for shipment in self.senders.withdraw(late):
                if not courier.put_away(shipment):
                    self._send(shipment)
        return self.senders.waiting()

    def _is_pressed(self) -> bool:
        """Whether memory has no room for what does not fit onto the disk."""
        waiting = sum(shipment.size for shipment in self.senders.all_queued() if not shipment.origin.kept)
        return self.closed or 2 * waiting > self.settings.buffer.buffer_bytes

    def _tidy(self) -> None:
        """Gives up what has waited on disk for too long, and takes over what killed processes left of each span."""
        if self.depot is not None:
            if self.courier.patience.troubled:
                self.depot.storage.remove_expired()
            self.depot.recover_journals(self.batching.recovered, self.leave_out)

    def drained(self, seconds: float) -> int:
        """Waits until what this process has put on disk is sent, or it shows that this will take longer.

        Args:
            seconds: How long to wait at most.

        Returns:
            How many of its spans are on disk still.
        """
        return self.drainer.wait(seconds, self.courier) if self.drainer is not None else 0

    def deliver(self, batches: Sequence[Batch]) -> bool:
        """Sends batches and waits for what becomes of them, for the time-out at most.

        What may succeed later is sent again in the background.

        Returns:
            Whether all was delivered.
        """
        deadline = time.monotonic() + self.settings.timeout
        waits = [(threading.Event(), batch) for batch in batches]
        origins: list[RequestOrigin] = []
        for done, batch in waits:
            count, size = len(batch[1]), memory_bytes_of(batch[1])
            if self.in_flight.bytes + size > self.settings.buffer.buffer_bytes and self.depot is None:
                self._lost(count, "memory_limit")
                self.refuse(count, "the server is away, and no more may wait in memory")
                origins.append(RequestOrigin(count))
                done.set()
                continue
            ticket = self.in_flight.opened(count, size)
            origins.append(RequestOrigin(count, both(done.set, ticket), waker(done), suspects(done, ticket)))
            trouble = self.courier.patience.trouble(batch[0])
            self.enqueue(batch, origins[-1])
            if trouble is not None and trouble.cause is not FailureKind.SERVER:
                done.set()  # it waits behind what somebody has to mend first
        for done, _ in waits:
            done.wait(max(0.0, deadline - time.monotonic()))
        return all(origin.remaining == 0 and not origin.refused for origin in origins)

    def _lost(self, count: int, why: str) -> None:
        if self._metrics is not None:
            self._metrics.lost(count, why)

    def _give_up(self, count: int, spans: Sequence[ReadableSpan], kind: str, why: str) -> None:
        """Counts and tells spans that cannot be sent at all."""
        self._lost(count, kind)
        self._forget(spans)
        self.refuse(count, why)

    def _forget(self, spans: Sequence[ReadableSpan]) -> None:
        """Says that spans that no request has are not to be sent after a kill either."""
        if self.depot is not None and self.depot.journal is not None:
            keys = [(span.context.trace_id, span.context.span_id) for span in spans if span.context is not None]
            self.depot.journal.acknowledge(keys)

    def refuse(self, count: int, why: str) -> None:
        """Counts spans that are given up, and says why."""
        self.report.count(dropped=count)
        self.report.problem(why, add_code(MessageCode.SPANS_DROPPED, f"spans are lost: {why}"), count)

    def leave_out(self, spans: Sequence[ReadableSpan]) -> None:
        """Counts spans of traces that are left out as noise."""
        self.report.count(filtered=len(spans))
        self._forget(spans)
        scopes = sorted({span.instrumentation_scope.name for span in spans if span.instrumentation_scope is not None})
        said = (
            f"a trace is left out, as all its spans are of {', '.join(scopes[:5])}; stats() counts such spans, "
            "MLFLOW_OTLP_NOISE=none sends them"
        )
        self.report.once(logging.INFO, add_code(MessageCode.TRACE_FILTERED, said))

    def trace_url(self, trace_id: int, resource_attributes: Mapping[str, Any]) -> str | None:
        """The address of a trace in the MLflow console; None if it cannot be told now.

        Args:
            trace_id: OpenTelemetry's trace id.
            resource_attributes: The resource's attributes.
        """
        if self.settings.api is None:
            return None
        destination = self.destination.for_trace(resource_attributes, route_of(trace_id))
        experiment = self.experiments.resolve(destination, self.settings.timeout)
        if not isinstance(experiment, str):
            return None
        # The console itself writes both names: older ones read the first, newer ones the second.
        query = {"selectedEvaluationId": f"tr-{trace_id:032x}", "traceId": f"tr-{trace_id:032x}"}
        workspace = destination.workspace or (self.namespace.cached_name if self.namespace else None)
        if workspace:
            query["workspace"] = workspace
        return f"{self.settings.api.url}/#/experiments/{experiment}/traces?{urlencode(query)}"

    def stats(self) -> Stats:
        """The counters now."""
        repairs = self.batching.encoder.repairs
        return replace(self.report.stats(), values_repaired=repairs.repaired, values_dropped=repairs.left_out)

    def format_outcome(self, outcome: ExportOutcome) -> str:
        """An outcome in words: where, what the server said, what to do, and the code."""
        return format_outcome(outcome, self.server, self.settings)

    def close(self, seconds: float) -> None:
        """Waits for what is queued, then gives up what is left and closes connections."""
        deadline = time.monotonic() + seconds
        self.closed = self.courier.closing = True
        self.hurry(seconds)
        if self.drainer is not None:
            self.drainer.close()
            for shipment in self.senders.withdraw(lambda shipment: shipment.origin.kept):
                shipment.origin.release()
        self.senders.close(seconds)
        if self.depot is not None and self.drainer is not None:
            for shipment in self.senders.unfinished():
                shipment.uncertain = True
                self.courier.abandon(shipment)
            self.depot.close()
            self.drainer.release()
        if self.rest_side is not None:
            self.rest_side.close(max(0.0, deadline - time.monotonic()))
        self.report.conclude()
        self.server.close()
        if self.api:
            self.api.close()
