"""Requests that have no outcome yet, with their spans and bytes: what limits and flushes count by."""

from __future__ import annotations

import threading
from typing import Protocol

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset


class Ticket(Protocol):
    """One request that is counted."""

    def __call__(self) -> None:
        """It has its outcome."""

    def suspected(self, spans: int, size: int) -> None:
        """All that is left of it are suspects, whose outcome nobody can say when to expect: no flush waits for them.

        Args:
            spans: How many spans.
            size: How many bytes.
        """


class InFlightRequests:
    """Counts requests that have no outcome yet.

    Attributes:
        changed: Notified when one has got its outcome.
        spans: Their spans.
        bytes: Their bytes, before compression.
    """

    def __init__(self) -> None:
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has, the parent sends."""
        self.changed = threading.Condition()
        self.spans = self.bytes = 0
        self._open: dict[int, _Counted] = {}
        self._last = 0

    def opened(self, spans: int, size: int) -> Ticket:
        """Counts a request.

        Args:
            spans: How many spans it has.
            size: How many bytes.

        Returns:
            What is to be called when it has its outcome; more than once does no harm.
        """
        with self.changed:
            self._last += 1
            ticket = _Counted(self, self._last)
            self._open[self._last] = ticket
            ticket.weigh(spans, size)
            return ticket

    def wait(self, seconds: float) -> bool:
        """Waits until all requests that are counted now have their outcome, but for suspects.

        Args:
            seconds: How long to wait at most.

        Returns:
            Whether all have.
        """
        with self.changed:
            newest = self._last
            self.changed.wait_for(lambda: not any(not each.is_suspect for each in self._until(newest)), seconds)
            return not self._until(newest)

    def _until(self, newest: int) -> list[_Counted]:
        return [ticket for number, ticket in self._open.items() if number <= newest]

    def close(self, number: int) -> None:
        """Takes a request out of the count."""
        ticket = self._open.pop(number, None)
        if ticket is not None:
            ticket.weigh(0, 0)
            self.changed.notify_all()


class _Counted:
    """A request that `InFlightRequests` counts."""

    def __init__(self, in_flight: InFlightRequests, number: int) -> None:
        self._in_flight, self._number, self._changed = in_flight, number, in_flight.changed
        self._spans = self._size = 0
        self.is_suspect = False

    def weigh(self, spans: int, size: int) -> None:
        """Counts so many spans and bytes instead of those before."""
        self._in_flight.spans += spans - self._spans
        self._in_flight.bytes += size - self._size
        self._spans, self._size = spans, size

    def __call__(self) -> None:
        with self._changed:
            # After a fork another condition counts: the parent's requests are no business of the child's.
            if self._changed is self._in_flight.changed:
                self._in_flight.close(self._number)

    def suspected(self, spans: int, size: int) -> None:
        with self._changed:
            if self._changed is self._in_flight.changed:
                self.weigh(spans, size)
                self.is_suspect = True
                self._changed.notify_all()
