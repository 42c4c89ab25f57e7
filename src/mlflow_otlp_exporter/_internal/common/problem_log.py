"""What became of the spans, told truthfully: counters, and log lines that do not flood.

A problem is logged once in full. While it lasts, its repetitions are counted and summed up at most once a minute;
when it is over, one line says so. One that comes and goes is told like one that lasts.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.stats import Stats

_SUMMARY_SECONDS = 60.0
# A problem that is back within that time is not told anew, unless it lasts for so long.
_BACK_SECONDS = 10.0
# Messages and problems that are known: those with ever new texts must not pile up.
_REMEMBERED = 1000
# A problem changes its face (refused connections, then 503, then a reset): each face is told once, not each change.
_FACES = 20
# What differs between two tellings of the same: ids and numbers.
_VARYING = re.compile(r"\b(?:tr-)?[0-9a-f]{16,}\b|\d+")
_CODE = re.compile(r" \[MLO-\d+\]$")
logger = logging.getLogger("mlflow_otlp_exporter")


@dataclass
class _Face:
    told: float
    message: str
    untold_spans: int = 0


@dataclass
class _Problem:
    """What is known of a problem.

    Attributes:
        since: When it was there first.
        back: When it came back, if it was over in between.
        over: When it was over; None while it is there.
        told: Whether it was told since it is there or back.
        faces: Its texts, by what does not vary in them.
    """

    since: float
    back: float | None = None
    over: float | None = None
    told: bool = False
    faces: dict[str, _Face] = field(default_factory=dict)


class ProblemLog:
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
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
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
        """Tells what has befallen spans, each once.

        Args:
            key: What the problem is about; `solved` takes the same.
            message: What happened and what to do.
            spans: How many spans are affected now, besides those before.
            level: The log level.
        """
        with self._lock:
            face = self._face(key, message)
            face.untold_spans += spans
            line = self._line(key, face, f"{face.untold_spans} more spans")
            if line is not None:
                face.untold_spans = 0
                line = _longer(line, f" [{_counted(spans)}]") if line == message else line
        if line is not None:
            logger.log(level, "%s", line)

    def waiting(self, key: str, message: str, spans: int) -> None:
        """Tells that spans have to wait.

        Args:
            key: What the problem is about; `solved` takes the same.
            message: What happened and what to do.
            spans: How many spans wait now, all in all.
        """
        with self._lock:
            line = self._line(key, self._face(key, message), f"{_counted(spans)} now")
            if line == message:
                line = _longer(line, f" [{_counted(spans)}]")
        if line is not None:
            logger.error("%s", line)

    def _face(self, key: str, message: str) -> _Face:
        """What is known of a problem's text. Needs the lock."""
        now, known = self._clock(), self._problems.get(key)
        if known is None or (known.over is not None and now - known.over > _SUMMARY_SECONDS):
            if len(self._problems) >= _REMEMBERED:
                self._problems.clear()
            known = self._problems[key] = _Problem(now)
        elif known.over is not None:
            known.back, known.over, known.told = now, None, False
        gist = _VARYING.sub("#", message)
        if gist not in known.faces:
            if len(known.faces) >= _FACES:
                known.faces.clear()
            known.faces[gist] = _Face(-math.inf, message)
        known.faces[gist].message = message
        return known.faces[gist]

    def _line(self, key: str, face: _Face, spans: str) -> str | None:
        """What is to be logged now, or nothing: the message itself for the first time. Needs the lock."""
        now, known = self._clock(), self._problems[key]
        first, silent = face.told == -math.inf, now - face.told
        lasting = known.back is not None and not known.told and now - known.back >= _BACK_SECONDS
        if not (first or lasting or silent >= _SUMMARY_SECONDS):
            return None
        face.told, known.told = now, True
        if first:
            return face.message
        how = "still so after" if known.back is None else "on and off for"
        return _longer(face.message, f" [{how} {_duration(now - known.since)}; {spans}]")

    def solved(self, key: str, message: str) -> None:
        """Tells that a problem is over, if it was told before."""
        with self._lock:
            known = self._problems.get(key)
            if known is None or known.over is not None:
                return
            known.over = now = self._clock()
        if known.told:
            logger.warning("%s", _longer(message, f", after {_duration(now - known.since)} of trouble"))

    def conclude(self) -> None:
        """At the end: tells of spans that were counted, but not told yet."""
        with self._lock:
            faces = [face for known in self._problems.values() for face in known.faces.values() if face.untold_spans]
            lines = [_longer(face.message, f" [{face.untold_spans} more spans]") for face in faces]
            for face in faces:
                face.untold_spans = 0
        for line in lines:
            logger.error("%s", line)


def _longer(message: str, more: str) -> str:
    """A message with more at its end, but before its code, which stays the last."""
    found = _CODE.search(message)
    return f"{message}{more}" if found is None else f"{message[: found.start()]}{more}{found.group()}"


def _counted(spans: int) -> str:
    return f"{spans} span" if spans == 1 else f"{spans} spans"


def _duration(seconds: float) -> str:
    """Seconds in words, as exactly as people care."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
