"""What an exporter holds: routing, encoding, delivery in a row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._delivery import Delivery, Request
from mlflow_otlp_exporter._destination import EXPERIMENT_HEADER, Destination, Experiments, by_destination
from mlflow_otlp_exporter._encoder import EncodedSpan, Encoder, assemble
from mlflow_otlp_exporter._packing import packed
from mlflow_otlp_exporter._report import Report, Stats
from mlflow_otlp_exporter._response import Cause, Outcome, Verdict
from mlflow_otlp_exporter._senders import Senders
from mlflow_otlp_exporter._settings import Settings

if TYPE_CHECKING:
    import requests

_ADVICE = {
    Cause.CREDENTIALS: "check the token, its file, or user and password",
    Cause.DESTINATION: "check experiment, workspace, and the permission to write there",
    Cause.NOT_MLFLOW: "check the address: it should be that of an MLflow server with a database (3.6 or newer)",
    Cause.SERVER: "check that the server is up",
    Cause.SIZE: "let the proxy in front of MLflow accept larger bodies",
    Cause.CONTENT: "the server took the request, not its content",
}
Job = tuple[Request, Callable[[], None]]


class Pipeline:
    """From spans to outcomes.

    Args:
        settings: All settings.
        session: A session of the user's.

    Raises:
        ConfigurationError: The credentials cannot be used.
    """

    def __init__(self, settings: Settings, session: requests.Session | None) -> None:
        # Here, not at the top: requests is half of the import time, and an app that only imports should not pay it.
        from mlflow_otlp_exporter._connection import Connection  # noqa: PLC0415

        self.settings = settings
        self.report = Report()
        self.encoder = Encoder()
        self.server = Connection(settings.traces, session)
        # A session of the user's may sign requests or hold proxies for this server, not for another one.
        same = settings.api is not None and urlsplit(settings.api.url).netloc == urlsplit(settings.traces.url).netloc
        self.api = Connection(settings.api, session if same else None) if settings.api else None
        self.destination = Destination(settings.workspace, settings.experiment, settings.experiment_id, settings.run_id)
        self.experiments = Experiments(
            self.api, certain=settings.api_certain, create=settings.create_experiment, report=self.report
        )
        self.delivery = Delivery(
            self.server,
            self.experiments,
            compression=settings.compression,
            report=self.report,
            experiment_is_set=EXPERIMENT_HEADER in self.server.header_names,
        )
        self.senders: Senders[Job] = Senders(self._work_off)
        self.closed = False

    def requests(self, spans: Sequence[ReadableSpan]) -> tuple[list[Request], int]:
        """Encodes spans and puts requests together.

        Returns:
            The requests, and how many spans could not be encoded at all.
        """
        made: list[Request] = []
        broken = 0
        for destination, group in by_destination(spans, self.destination).items():
            encoded: list[EncodedSpan] = []
            for span in group:
                try:
                    encoded.append(self.encoder.encode(span))
                except Exception as error:  # noqa: BLE001 - one span of an odd make must not take the others with it
                    broken += 1
                    self.refuse(1, f"a span could not be encoded ({type(error).__name__})")
            linked = destination.run_id is not None
            batches = packed(encoded, self.settings.max_request_size, linked_to_run=linked)
            made += [Request(destination, assemble(batch), len(batch)) for batch in batches]
        if self.encoder.repairs.left_out:
            said = "attribute values of types that OpenTelemetry does not have are left out; stats() counts them"
            self.report.once(logging.WARNING, said)
        return made, broken

    def deliver(self, request: Request) -> bool:
        """Sends a request and tells what became of it."""
        try:
            outcome = self.delivery.deliver(request, self.settings.timeout)
        except BaseException as error:
            self.refuse(request.span_count, f"sending them raised {type(error).__name__}")
            raise
        key = f"{request.destination.workspace}/{request.destination.experiment or request.destination.experiment_id}"
        delivered = outcome.verdict is Verdict.DELIVERED
        refused = 0 if delivered else min(outcome.rejected, request.span_count) or request.span_count
        self.report.count(delivered=request.span_count - refused, refused=refused)
        if delivered:
            self.report.solved(key, f"spans are accepted again by {self.server.url}")
            if outcome.message:
                self.report.once(logging.WARNING, f"{self.server.url} says: {outcome.message}")
        else:
            self.report.problem(key, f"spans are lost: {self._explained(outcome)}", refused)
        return delivered

    def enqueue(self, request: Request, settled: Callable[[], None]) -> None:
        """Sends a request in a thread of its own.

        Args:
            request: The request.
            settled: Called when there is an outcome.
        """
        self.senders.put(request.destination, (request, settled))

    def _work_off(self, job: Job) -> None:
        request, settled = job
        try:
            self.deliver(request)
        finally:
            settled()

    def refuse(self, count: int, why: str) -> None:
        """Counts spans that are given up, and says why."""
        self.report.count(refused=count)
        self.report.problem(why, f"spans are lost: {why}", count)

    def stats(self) -> Stats:
        """The counters now."""
        repairs = self.encoder.repairs
        return replace(self.report.stats(), values_repaired=repairs.repaired, values_left_out=repairs.left_out)

    def _explained(self, outcome: Outcome) -> str:
        advice = _ADVICE[outcome.cause or Cause.SERVER]
        if outcome.cause is Cause.CREDENTIALS:
            advice = f"credentials: {self.server.credentials}; {advice}"
            if self.server.unused_variables:
                names = ", ".join(self.server.unused_variables)
                advice += f" ({names} not used: set for another server than the one that spans are sent to)"
        return f"{self.server.url}: {outcome.message}; {advice}"

    def close(self, seconds: float) -> None:
        """Waits for what is queued, then ends repetitions and closes connections."""
        self.closed = True
        deadline = time.monotonic() + seconds
        self.senders.close(seconds)
        self.delivery.close()
        self.senders.close(max(0.1, deadline - time.monotonic()))
        self.server.close()
        if self.api:
            self.api.close()
