"""What became of the spans, told truthfully: counters, and log lines that do not flood.

A problem is logged once in full. While it lasts, its repetitions are counted and summed up at most once a minute;
when it is over, one line says so.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow_otlp_exporter._fork import after_fork_in_child

_SUMMARY_SECONDS = 60.0
# Messages and problems that are known: those with ever new texts must not pile up.
_REMEMBERED = 1000
# A problem changes its face (refused connections, then 503, then a reset): each face is told once, not each change.
_FACES = 20
# What differs between two tellings of the same: ids and numbers.
_VARYING = re.compile(r"\b(?:tr-)?[0-9a-f]{16,}\b|\d+")
logger = logging.getLogger("mlflow_otlp_exporter")


@dataclass(frozen=True)
class Stats:
    """Counts since start.

    Attributes:
        delivered: Spans that the server accepted.
        refused: Spans that were given up; the log says why.
        requests: Requests that were sent to the OTLP endpoint.
        retries: How many of those repeated an earlier one.
        noise: Spans of traces that were left out, as they have nothing of an agent in them.
        values_repaired: Attribute values that were changed to be encodable: characters that UTF-8 does not have,
            integers beyond 64 bits.
        values_left_out: Attribute values that were left out: types that OTLP does not have, too deep a nesting.
    """

    delivered: int = 0
    refused: int = 0
    requests: int = 0
    retries: int = 0
    noise: int = 0
    values_repaired: int = 0
    values_left_out: int = 0


@dataclass
class _Face:
    told: float
    untold_spans: int = 0


@dataclass
class _Problem:
    since: float
    faces: dict[str, _Face] = field(default_factory=dict)


class Report:
    """Counters and rate-limited log lines of one exporter.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._renew_lock()
        self._counts = dict.fromkeys(Stats.__dataclass_fields__, 0)
        self._problems: dict[str, _Problem] = {}
        self._said: set[str] = set()
        after_fork_in_child(self._renew)

    def _renew(self) -> None:
        """In a forked child: its own lock and counts; what was said need not be said again."""
        self._renew_lock()
        self._counts = dict.fromkeys(Stats.__dataclass_fields__, 0)

    def _renew_lock(self) -> None:
        # Re-entrant: a signal handler or a finalizer may end a span while its own thread is in here.
        self._lock = threading.RLock()

    def stats(self) -> Stats:
        """The counters now."""
        with self._lock:
            return Stats(**self._counts)

    def count(self, **amounts: int) -> None:
        """Adds to counters, named as in `Stats`."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def once(self, level: int, message: str) -> None:
        """Logs a message that never needs saying twice."""
        with self._lock:
            if message in self._said:
                return
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said.add(message)
        logger.log(level, "%s", message)

    def problem(self, key: str, message: str, spans: int, level: int = logging.ERROR) -> None:
        """Tells that spans could not be delivered.

        Args:
            key: What the problem is about; `solved` takes the same.
            message: What happened and what to do.
            spans: How many spans are affected.
            level: The log level.
        """
        with self._lock:
            now = self._clock()
            known = self._problems.get(key)
            if known is None:
                if len(self._problems) >= _REMEMBERED:
                    self._problems.clear()
                known = self._problems[key] = _Problem(now)
            gist = _VARYING.sub("#", message)
            face = known.faces.get(gist)
            if face is None:
                if len(known.faces) >= _FACES:
                    known.faces.clear()
                known.faces[gist] = _Face(now)
                line = f"{message} [{spans} spans]"
            elif now - face.told < _SUMMARY_SECONDS:
                face.untold_spans += spans
                return
            else:
                face.told = now
                total, face.untold_spans = face.untold_spans + spans, 0
                line = f"{message} [still so after {now - known.since:.0f} s; {total} more spans]"
        logger.log(level, "%s", line)

    def solved(self, key: str, message: str) -> None:
        """Tells that a problem is over, if it was told before."""
        with self._lock:
            known = self._problems.pop(key, None)
            duration = self._clock() - known.since if known else 0.0
        if known:
            logger.warning("%s, after %.0f s of trouble", message, duration)
