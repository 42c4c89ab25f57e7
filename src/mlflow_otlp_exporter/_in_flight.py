"""Requests that have no outcome yet, with their spans and bytes: what limits and flushes count by."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlflow_otlp_exporter._fork import after_fork_in_child


class InFlight:
    """Counts requests that have no outcome yet.

    Attributes:
        changed: Notified when one has got its outcome.
        spans: Their spans.
        bytes: Their bytes, before compression.
    """

    def __init__(self) -> None:
        self._renew()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        """Also in a forked child: what the parent has, the parent sends."""
        self.changed = threading.Condition()
        self.spans = self.bytes = 0
        self._open: dict[int, None] = {}
        self._last = 0

    def opened(self, spans: int, size: int) -> Callable[[], None]:
        """Counts a request.

        Args:
            spans: How many spans it has.
            size: How many bytes.

        Returns:
            What is to be called when it has its outcome; more than once does no harm.
        """
        with self.changed:
            self._last += 1
            ticket = self._last
            self._open[ticket] = None
            self.spans += spans
            self.bytes += size
            changed = self.changed

        def settled() -> None:
            with changed:
                # After a fork another condition counts: the parent's requests are no business of the child's.
                if changed is self.changed and self._open.pop(ticket, ticket) is None:
                    self.spans -= spans
                    self.bytes -= size
                    changed.notify_all()

        return settled

    def wait(self, seconds: float) -> bool:
        """Waits until all requests that are counted now have their outcome.

        Args:
            seconds: How long to wait at most.

        Returns:
            Whether they have.
        """
        with self.changed:
            newest = self._last
            return self.changed.wait_for(lambda: next(iter(self._open), newest + 1) > newest, seconds)
