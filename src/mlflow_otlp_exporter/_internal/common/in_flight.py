"""Requests without an outcome, with their spans and bytes: limits and flushes depend on them."""

from __future__ import annotations

import threading

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset


class InFlightRequests:
    """Counts requests that have no outcome yet. `changed` is notified when one is completed."""

    def __init__(self) -> None:
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent sends the requests that it has.
        self.changed = threading.Condition()
        self.span_count = self.byte_count = 0  # bytes before compression
        self._requests: dict[int, Ticket] = {}
        self._last_number = 0

    def track(self, span_count: int, byte_count: int) -> Ticket:
        with self.changed:
            self._last_number += 1
            request = Ticket(self, self._last_number)
            self._requests[self._last_number] = request
            request.resize(span_count, byte_count)
            return request

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the requests that are tracked now, except ignored ones; return whether all of them are completed."""
        with self.changed:
            last_number = self._last_number

            def requests() -> list[Ticket]:
                return [request for number, request in self._requests.items() if number <= last_number]

            self.changed.wait_for(lambda: all(request.is_ignored for request in requests()), timeout_seconds)
            return not requests()

    def complete(self, number: int) -> None:
        """Stop tracking a request. Needs the lock of `changed`."""
        request = self._requests.pop(number, None)
        if request is not None:
            request.resize(0, 0)
            self.changed.notify_all()


class Ticket:
    """One tracked request. Calling it completes the request; further calls have no effect."""

    def __init__(self, in_flight: InFlightRequests, number: int) -> None:
        self._in_flight, self._number, self._changed = in_flight, number, in_flight.changed
        self._span_count = self._byte_count = 0
        self.is_ignored = False

    def resize(self, span_count: int, byte_count: int) -> None:
        self._in_flight.span_count += span_count - self._span_count
        self._in_flight.byte_count += byte_count - self._byte_count
        self._span_count, self._byte_count = span_count, byte_count

    def __call__(self) -> None:
        with self._changed:
            # After a fork there is another condition: the child ignores requests of the parent.
            if self._changed is self._in_flight.changed:
                self._in_flight.complete(self._number)

    def ignore_in_flush(self) -> None:
        """Exclude the request from the wait of a flush, because it may be pending indefinitely."""
        with self._changed:
            self.is_ignored = True
            self._changed.notify_all()
