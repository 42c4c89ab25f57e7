"""What is asked of MLflow's REST API besides spans, in a thread of its own: no span waits for it, nor does the app.

An errand is taken step by step, and repeated as long as it may succeed; what is left at the end is given up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Protocol

from mlflow_otlp_exporter._internal.common.backoff import hurried
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.in_flight import InFlightRequests, Ticket
from mlflow_otlp_exporter._internal.common.work_queue import SendResult, WorkQueue

# At the end each request has this many seconds at least.
_LEAST_SECONDS = 0.2
# After so many failures no flush waits for an errand any more.
_WAITED_FOR = 2


class Task(Protocol):
    """What is to be asked."""

    not_before: float
    failures: int
    ticket: Ticket | None

    def run(self, seconds: float) -> SendResult[Task]:
        """Takes it a step further.

        Args:
            seconds: How long each request may take.
        """

    def give_up(self) -> None:
        """Ends it undone."""


class BackgroundTasks:
    """Takes errands further in the background, those of one key one after the other.

    Args:
        timeout: Seconds for a request.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout, self._until, self._hurry_began = timeout, math.inf, -math.inf
        self._closing = False
        self._senders: WorkQueue[Task] = WorkQueue(self._step, self._abandon, count=1)
        self._in_flight = InFlightRequests()
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has to ask, the parent asks."""
        self._lock = threading.Lock()
        # Errands, and how often each failed since somebody waits for it.
        self._open: dict[Task, int] = {}

    def put(self, key: Hashable, errand: Task, *, wait: float = 0.0) -> None:
        """Takes an errand in.

        Args:
            key: Errands of the same key wait for each other.
            errand: What is to be asked.
            wait: Seconds to wait before, unless somebody hurries.
        """
        with self._lock:
            self._open[errand] = 0
            errand.ticket = self._in_flight.opened(1, 0)
        self._senders.put(key, errand, wait=wait)

    @property
    def count(self) -> int:
        """How many errands are not done."""
        return self._in_flight.spans

    def _step(self, errand: Task) -> SendResult[Task]:
        failures, began = errand.failures, time.monotonic()
        after = errand.run(min(self._timeout, max(_LEAST_SECONDS, self._until - time.monotonic())))
        if after.remaining and errand.failures and self._closing:
            self._abandon(errand)
            return SendResult[Task]()
        if not after.remaining:
            self._settle(errand)
        elif errand.failures > failures:
            self._fail(errand)
        return replace(after, retry_after=hurried(after.retry_after, began, self._hurry_began))

    def _fail(self, errand: Task) -> None:
        with self._lock:
            self._open[errand] = self._open.get(errand, 0) + 1
            if self._open[errand] >= _WAITED_FOR and errand.ticket is not None:
                errand.ticket.suspected(1, 0)

    def _abandon(self, errand: Task) -> None:
        errand.give_up()
        self._settle(errand)

    def _settle(self, errand: Task) -> None:
        with self._lock:
            self._open.pop(errand, None)
            if errand.ticket is not None:
                errand.ticket()

    def hurry(self, seconds: float) -> None:
        """Ends waits, as somebody waits for the outcome.

        Args:
            seconds: How long somebody waits.
        """
        self._hurry_began = time.monotonic()
        self._until = self._hurry_began + seconds
        with self._lock:
            for errand, failures in self._open.items():
                if failures and errand.ticket is not None:
                    # Counted anew: it may succeed now.
                    errand.ticket()
                    errand.ticket = self._in_flight.opened(1, 0)
                    self._open[errand] = 0
        self._senders.hurry()

    def relax(self) -> None:
        """Gives requests and waits their own time again."""
        self._until, self._hurry_began = math.inf, -math.inf

    def wait(self, seconds: float) -> bool:
        """Waits for what was taken in until now, as long as it does not fail again and again.

        Args:
            seconds: How long to wait at most.

        Returns:
            Whether all of it is done.
        """
        if seconds <= 0:
            return self._in_flight.wait(0.0)
        self.hurry(seconds)
        try:
            return self._in_flight.wait(seconds)
        finally:
            self.relax()

    def close(self, seconds: float) -> None:
        """Does what can be done within the time, and gives up the rest.

        Args:
            seconds: How long to wait at most.
        """
        self._closing = True
        self._hurry_began = time.monotonic()
        self._until = self._hurry_began + seconds
        self._senders.close(seconds)
