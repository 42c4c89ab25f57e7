"""Delays between attempts, and the state of each destination that currently fails."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

# Seconds before the first retry, and at most: what a user has to correct is retried more slowly.
_SERVER_DELAYS = (0.5, 30.0)
_USER_DELAYS = (2.0, 60.0)
# Requests that wait longer than this are written to disk, if there is a spool.
MAX_SECONDS_IN_MEMORY = 2.0
# Requests on disk are safe, so they are retried at most once a minute.
_MAX_DELAY_ON_DISK = 60.0

_Key = TypeVar("_Key", bound=Hashable)
_Failure = TypeVar("_Failure")


class BackoffState(Generic[_Key, _Failure]):
    """Counts consecutive failures of each destination, in `failure_counts`.

    `jitter` returns a random number from 0 to 1. `has_spool` says whether waiting requests are on disk.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float], *, has_spool: bool) -> None:
        self._clock, self._jitter, self._has_spool = clock, jitter, has_spool
        self.failure_counts: dict[_Key, int] = {}
        self._resume_at: dict[_Key, float] = {}
        self._last_failures: dict[_Key, _Failure] = {}

    def record_success(self, key: _Key) -> None:
        self.failure_counts.pop(key, None)
        self._resume_at.pop(key, None)
        self._last_failures.pop(key, None)

    def record_failure(self, key: _Key, failure: _Failure, *, retry_after: float | None, needs_user: bool) -> float:
        """Record a failed attempt, and return the seconds for which the destination waits.

        `needs_user` says that a user has to correct it.
        """
        now = self._clock()
        self._last_failures[key] = failure
        resume_at = self._resume_at.get(key, 0.0)
        if now < resume_at:
            # The attempt was early because of a flush, so it does not change the delay.
            return resume_at - now
        failure_count = self.failure_counts.get(key, 0)
        first_seconds, max_seconds = _USER_DELAYS if needs_user else _SERVER_DELAYS
        self.failure_counts[key] = failure_count + 1
        max_seconds = _MAX_DELAY_ON_DISK if self._has_spool else max_seconds
        delay = compute_backoff(failure_count, self._jitter(), first_seconds=first_seconds, max_seconds=max_seconds)
        delay = max(delay, retry_after or 0.0)
        self._resume_at[key] = now + delay
        return delay

    def failure_count(self, key: _Key) -> int:
        return self.failure_counts.get(key, 0)

    def should_spool(self, key: _Key, delay_count: int, since: float) -> bool:
        """Whether a request that waits since then, and had so many delays, is written to disk."""
        return delay_count > 1 or self.failure_count(key) > 0 or self._clock() - since > MAX_SECONDS_IN_MEMORY

    def last_failure(self, key: _Key) -> _Failure | None:
        return self._last_failures.get(key)

    def is_backing_off(self, key: _Key) -> bool:
        """Whether at least two attempts in a row failed and the delay is still running."""
        return self.failure_counts.get(key, 0) > 1 and self.remaining_delay(key) > 0.0

    def remaining_delay(self, key: _Key) -> float:
        return max(0.0, self._resume_at.get(key, 0.0) - self._clock())


def compute_backoff(attempt: int, jitter: float, *, first_seconds: float = 0.5, max_seconds: float = 30.0) -> float:
    """Return the delay in seconds before a retry; attempt 0 is the first retry, and the delay doubles with each.

    The jitter (0 to 1) spreads the clients that were thrown off by the same outage over -20 % to +20 % of the delay.
    """
    # No larger power: 2.0 ** 1024 does not fit into a float.
    return min(first_seconds * 2.0 ** min(attempt, 16), max_seconds) * (0.8 + 0.4 * jitter)
