"""Rate-limited log lines about problems.

A problem is logged once in full. While it lasts, its repetitions are counted and logged at most once a minute. One line
says when it is resolved. A problem that comes and goes is logged like one that lasts.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.stats import ExportStats

_SUMMARY_SECONDS = 60.0
# A problem that recurs within this time is not logged as a new one, unless it lasts for so long.
_RECURRENCE_SECONDS = 10.0
# Limit of remembered messages and problems: those with ever new texts must not accumulate.
_MAX_REMEMBERED = 1000
# A problem can have several texts (refused connections, then 503, then a reset): each is logged once, not each change.
_MAX_TEXTS = 20
# Ids and numbers, which differ between two texts of the same kind.
_VARIABLE_PARTS = r"\b(?:tr-)?[0-9a-f]{16,}\b|\d+"
_CODE = r" \[MLO-\d+\]$"
logger = logging.getLogger("mlflow_otlp_exporter")
_QUEUED = (
    "Spans are queued on disk: not delivered before shutdown. The next run sends them; `mlflow-otlp spool flush` sends "
    "them now. [%s] [%s]"
)
_exceptions_logged_at: dict[str, float] = {}


def log_exception(error: BaseException, action: str) -> None:
    """Log an unexpected exception with its traceback, at most once a minute for each action."""
    now = time.monotonic()
    if now - _exceptions_logged_at.get(action, -math.inf) >= _SUMMARY_SECONDS:
        _exceptions_logged_at[action] = now
        message = "Internal error: could not %s. Please report this. [%s]"
        logger.error(message, action, MessageCode.INTERNAL_ERROR, exc_info=error)


class _Text:
    logged_at = -math.inf
    unlogged_span_count = 0

    def __init__(self, message: str) -> None:
        self.message = message


class _Problem:
    recurred_at: float | None = None
    resolved_at: float | None = None  # None while it lasts
    is_logged = False  # since it began or recurred
    has_own_spans = False  # whether spans of this exporter wait for its end

    def __init__(self, since: float) -> None:
        self.since = since
        self.texts: dict[str, _Text] = {}  # by their constant parts


class ProblemLog:
    """Rate-limited log lines of one exporter, and its counters. A key says what a problem is about."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stats = ExportStats()
        self._clock = clock
        self._problems: dict[str, _Problem] = {}
        self._logged_once: set[str] = set()
        self._is_end_reported = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # A child does not repeat what its parent has logged. The lock is re-entrant as in `ExportStats`.
        self._lock = threading.RLock()

    def log_once(self, level: int, message: str) -> None:
        with self._lock:
            if message in self._logged_once:
                return
            if len(self._logged_once) >= _MAX_REMEMBERED:
                self._logged_once.clear()
            self._logged_once.add(message)
        logger.log(level, "%s", message)

    def report(self, key: str, message: str, span_count: int, level: int = logging.ERROR) -> None:
        """Log a problem of `span_count` further spans."""
        with self._lock:
            text = self._text(key, message)
            text.unlogged_span_count += span_count
            more = f"; {pluralize(text.unlogged_span_count, 'more span')}" if text.unlogged_span_count else ""
            line = self._rate_limited_line(key, text, more)
            if line is not None:
                text.unlogged_span_count = 0
                if span_count and line == message:
                    line = _insert_before_code(line, f" [{pluralize(span_count, 'span')}]")
        if line is not None:
            logger.log(level, "%s", line)

    def report_waiting(self, key: str, message: str, span_count: int, *, is_own: bool = True) -> None:
        """Log that `span_count` spans are waiting now, in total; `is_own` is false for spans of another run."""
        with self._lock:
            line = self._rate_limited_line(key, self._text(key, message), f"; {pluralize(span_count, 'span')} now")
            self._problems[key].has_own_spans |= is_own
            if line == message:
                line = _insert_before_code(line, f" [{pluralize(span_count, 'span')}]")
        if line is not None and not self._is_end_reported:
            logger.error("%s", line)

    def report_queued(self, span_count: int) -> None:
        """Log at the end that spans stay on disk, unless a line has said so; later lines would repeat it."""
        with self._lock:
            problems = list(self._problems.values())
            is_known = any(problem.has_own_spans and problem.resolved_at is None for problem in problems)
            if not span_count or is_known or self._is_end_reported:
                return
            self._is_end_reported = True
        logger.warning(_QUEUED, pluralize(span_count, "span"), MessageCode.NOT_DELIVERED)

    def _text(self, key: str, message: str) -> _Text:
        """Return the state of a problem's text. Needs the lock."""
        now, problem = self._clock(), self._problems.get(key)
        if problem is None or (problem.resolved_at is not None and now - problem.resolved_at > _SUMMARY_SECONDS):
            if len(self._problems) >= _MAX_REMEMBERED:
                self._problems.clear()
            problem = self._problems[key] = _Problem(now)
        elif problem.resolved_at is not None:
            problem.recurred_at, problem.resolved_at, problem.is_logged = now, None, False
        constant_parts = re.sub(_VARIABLE_PARTS, "#", message)
        if constant_parts not in problem.texts:
            if len(problem.texts) >= _MAX_TEXTS:
                problem.texts.clear()
            problem.texts[constant_parts] = _Text(message)
        problem.texts[constant_parts].message = message
        return problem.texts[constant_parts]

    def _rate_limited_line(self, key: str, text: _Text, span_count: str) -> str | None:
        """Return the line to log now, if any; the message itself for the first time. Needs the lock."""
        now, problem = self._clock(), self._problems[key]
        is_first, silent_seconds = text.logged_at == -math.inf, now - text.logged_at
        recurred_at = problem.recurred_at
        lasts = recurred_at is not None and not problem.is_logged and now - recurred_at >= _RECURRENCE_SECONDS
        if not (is_first or lasts or silent_seconds >= _SUMMARY_SECONDS):
            return None
        text.logged_at, problem.is_logged = now, True
        if is_first:
            return text.message
        state = "still so after" if recurred_at is None else "on and off for"
        return _insert_before_code(text.message, f" [{state} {_format_duration(now - problem.since)}{span_count}]")

    def resolve(self, key: str, message: str) -> None:
        """Log that a problem is resolved, if it was logged."""
        with self._lock:
            problem = self._problems.get(key)
            if problem is None or problem.resolved_at is not None:
                return
            problem.resolved_at = now = self._clock()
        if problem.is_logged:
            duration = _format_duration(now - problem.since)
            logger.warning("%s", _insert_before_code(message, f", after {duration} of trouble"))

    def flush(self) -> None:
        """Log the spans that are counted but not logged yet, at the end."""
        with self._lock:
            lines = []
            for problem in list(self._problems.values()):
                for text in list(problem.texts.values()):
                    if text.unlogged_span_count:
                        addition = f" [{pluralize(text.unlogged_span_count, 'more span')}]"
                        lines.append(_insert_before_code(text.message, addition))
                        text.unlogged_span_count = 0
        for line in lines:
            logger.error("%s", line)


def _insert_before_code(message: str, addition: str) -> str:
    match = re.search(_CODE, message)
    return f"{message}{addition}" if match is None else f"{message[: match.start()]}{addition}{match.group()}"


def pluralize(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _format_duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
