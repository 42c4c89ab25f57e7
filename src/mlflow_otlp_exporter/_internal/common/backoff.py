"""How long each destination waits between attempts, and which are known to take nothing now."""

from __future__ import annotations

import math
from collections.abc import Callable

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind

# Seconds before the first repetition, and at most: what a person has to mend is asked for more slowly.
_BACKOFF = {
    FailureKind.SERVER: (0.5, 30.0),
    FailureKind.NOT_MLFLOW: (0.5, 30.0),
    FailureKind.CREDENTIALS: (2.0, 60.0),
    FailureKind.DESTINATION: (2.0, 60.0),
    FailureKind.SIZE: (2.0, 60.0),
}
# Seconds after which what waits is put on disk, where there is one.
LONGEST_IN_MEMORY = 2.0
# Where what waits is safe on disk, nobody is in a hurry to ask.
_LONGEST_ON_DISK = 60.0
# Before the attempt for somebody who began to wait while the one before it was under way.
_HURRIED_SECONDS = 0.5


def hurried(wait: float, began: float, hurry: float) -> float:
    """The seconds to wait after an attempt: few if somebody began to wait for the outcome in the middle of it.

    Who hurries ends the waits that there are; this is the same for who came too early for that. The attempt that
    follows has begun after them, so there is one.

    Args:
        wait: The seconds to wait if nobody hurries.
        began: When the attempt began, in monotonic seconds.
        hurry: When somebody began to wait, by the same clock; -inf if nobody waits.
    """
    # What is hardly longer stays as it is, or two attempts would follow closely upon one another.
    return _HURRIED_SECONDS if began < hurry and wait > 2 * _HURRIED_SECONDS else wait


class BackoffState:
    """Counts failures in a row of each destination, and says what they mean.

    Args:
        clock: Monotonic seconds.
        jitter: A random number from 0 to 1.
        on_disk: Whether what waits is on disk.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float], *, on_disk: bool) -> None:
        self._clock, self._jitter, self._on_disk = clock, jitter, on_disk
        self._failures: dict[Destination, int] = {}
        self._resume_at: dict[Destination, float] = {}
        # Destinations whose next shipment is sent before its time, and from when on.
        self._hurried: dict[Destination, float] = {}
        self._hurry_began = -math.inf
        self._troubles: dict[Destination, ExportOutcome] = {}

    def passed(self, destination: Destination) -> None:
        """Tells that something was accepted."""
        self._failures.pop(destination, None)
        self._resume_at.pop(destination, None)
        self._troubles.pop(destination, None)

    def failed(
        self, destination: Destination, outcome: ExportOutcome, cause: FailureKind, *, searching: bool, began: float
    ) -> float:
        """Tells that something has to wait.

        Args:
            destination: Where it was to go.
            outcome: What came of it.
            cause: Why it has to wait.
            searching: True for a part of a search, which makes not many requests, as it ends soon.
            began: When the attempt began, by the clock.

        Returns:
            Seconds for which the destination waits.
        """
        now = self._clock()
        self._hurried.pop(destination, None)
        self._troubles[destination] = outcome
        full = self._full_wait(destination, outcome, cause, now, searching=searching)
        wait = hurried(full, began, self._hurry_began)
        if wait < full:
            self._hurried[destination] = now + wait
        return wait

    def _full_wait(
        self, destination: Destination, outcome: ExportOutcome, cause: FailureKind, now: float, *, searching: bool
    ) -> float:
        resume_at = self._resume_at.get(destination, 0.0)
        if now < resume_at:
            # It was not to be sent yet, but somebody flushed: that says nothing about how long to wait from now on.
            return resume_at - now
        failures, (first, longest) = self._failures.get(destination, 0), _BACKOFF[cause]
        if searching:
            longest = first
        else:
            self._failures[destination] = failures + 1
            longest = _LONGEST_ON_DISK if self._on_disk else longest
        wait = max(
            compute_backoff(failures, self._jitter(), first_seconds=first, max_seconds=longest),
            outcome.retry_after or 0.0,
        )
        self._resume_at[destination] = now + wait
        return wait

    def failures(self, destination: Destination) -> int:
        """How often in a row something had to wait."""
        return self._failures.get(destination, 0)

    def is_over(self, destination: Destination, postponed: int, since: float) -> bool:
        """Whether a shipment is put on disk: after a short first repetition, or where that is known to be in vain.

        Args:
            destination: Where it goes.
            postponed: How often it had to wait.
            since: When it came, by the clock.
        """
        return postponed > 1 or self.failures(destination) > 0 or self._clock() - since > LONGEST_IN_MEMORY

    def trouble(self, destination: Destination) -> ExportOutcome | None:
        """What came of the last attempt, if it has to be made again."""
        return self._troubles.get(destination)

    def is_down(self, destination: Destination) -> bool:
        """Whether it is known, after a repetition, that what is sent there now would have to wait."""
        return self._failures.get(destination, 0) > 1 and self.left(destination) > 0.0

    def left(self, destination: Destination) -> float:
        """Seconds until the next attempt is due; 0 if it is, or if somebody is in a hurry."""
        resume_at = self._resume_at.get(destination, 0.0)
        return max(0.0, min(resume_at, self._hurried.get(destination, math.inf)) - self._clock())

    @property
    def troubled(self) -> bool:
        """Whether any destination did not take what was sent there last."""
        return bool(self._failures)

    def hurry(self) -> None:
        """Has the next shipment of each destination sent, also where that may be in vain; `relax` ends it."""
        self._hurry_began = now = self._clock()
        for destination in list(self._resume_at):  # other threads put more there
            self._hurried[destination] = now

    def relax(self) -> None:
        """Tells that nobody waits for the outcome any more: what begins to wait now waits for its time."""
        self._hurry_began = -math.inf


def compute_backoff(attempt: int, jitter: float, *, first_seconds: float = 0.5, max_seconds: float = 30.0) -> float:
    """Return the delay in seconds before a retry; attempt 0 is the first retry, and the delay doubles with each.

    The jitter (0 to 1) spreads the clients that were thrown off by the same outage over -20 % to +20 % of the delay.
    """
    # No larger power: 2.0 ** 1024 does not fit into a float.
    return min(first_seconds * 2.0 ** min(attempt, 16), max_seconds) * (0.8 + 0.4 * jitter)
