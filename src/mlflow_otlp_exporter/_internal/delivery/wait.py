"""What ends the wait for a request's outcome, before there is one: more of it would not help."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind


def both(*calls: Callable[[], None]) -> Callable[[], None]:
    """Calls several functions one after another."""

    def call() -> None:
        for each in calls:
            each()

    return call


def suspects(done: threading.Event, ticket: Ticket) -> Callable[[int, int], None]:
    """Ends a wait when all that is left is answered 500 for as long as nobody knows."""

    def suspected(spans: int, size: int) -> None:
        ticket.suspected(spans, size)
        done.set()

    return suspected


def waker(done: threading.Event) -> Callable[[ExportOutcome], None]:
    """Ends a wait that more of it would not help: only a server that is away may be back within the time-out."""

    def postponed(outcome: ExportOutcome) -> None:
        if outcome.cause is not FailureKind.SERVER:
            done.set()

    return postponed
