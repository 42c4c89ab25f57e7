"""The journal of `durability="every-span"`: each span is on disk before its `end()` returns, until it has an outcome.

One process appends to files of its own, each in the page cache, none synced: what `kill -9` leaves. It holds a lock on
each, which the kernel frees with it, so that another process can tell what is left behind.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.file_lock import locked, remove_if_locked
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.spool.journal_format import (
    JournalHeader,
    line,
    origins_record,
    owner_record,
    span_record,
)

SUFFIX = ".journal"
_FULL = 4 * 1024 * 1024
_MOST_FILES = 64
_PROBLEM = "the journal"
Key = tuple[int, int]


class Segment:
    """A file of the journal, open and locked.

    Attributes:
        path: Where it is.
        descriptor: Open for appending.
        waiting: Spans in it that have no outcome yet.
        origins: What it says of all its spans; None if it does not yet.
        owners: Numbers of the resources and scopes that it has, by identity; the objects are kept so that it stays so.
        size: Bytes, about.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(path, flags, 0o600)
        if not locked(self.descriptor):
            os.close(self.descriptor)
            raise OSError(f"{path} cannot be locked")
        self.waiting: dict[Key, None] = {}
        self.origins: JournalHeader | None = None
        self.owners: dict[int, tuple[int, Any]] = {}
        self.numbers = itertools.count()
        self.size = 0

    def write(self, record: Any) -> None:
        content = line(record)
        written = os.write(self.descriptor, content)
        self.size += written
        if written != len(content):
            raise OSError("the disk took a part of it only")

    def begin(self, origins: JournalHeader) -> None:
        """Says what holds for all its spans. Two threads at once say it twice, which does no harm."""
        if self.origins is None:
            self.write(origins_record(origins))
            self.origins = origins

    def number_of(self, owner: Any) -> int:
        known = self.owners.get(id(owner))
        if known is None:
            # Two threads at once write it twice, under two numbers. First written, then known.
            known = (next(self.numbers), owner)
            self.write(owner_record(owner, known[0]))
            self.owners[id(owner)] = known
        return known[0]


class Journal:
    """Ended spans on disk, until they have an outcome.

    Args:
        folder: Says where; may raise `OSError`.
        report: Where to say that the disk takes nothing.
        origins: What holds for all spans that are written here; None for the defaults.
    """

    def __init__(self, folder: Callable[[], Path], report: ProblemLog, origins: JournalHeader | None = None) -> None:
        self._folder, self._report, self._origins = folder, report, origins or JournalHeader()
        self._segments: deque[Segment] = deque()
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: the parent's files are the parent's, and so are its locks, which closing leaves."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self.unique = f"{os.getpid():x}-{os.urandom(4).hex()}"
        self._segments = deque()
        self._current: Segment | None = None
        self._numbers = itertools.count()
        self._opening = threading.RLock()
        self._error: Exception | None = None
        self._missed = 0
        self._closed = self._paused = False

    def note_noise(self, noise: Iterable[str]) -> None:
        """Says which traces are left out; it holds for what is written from now on."""
        with self._opening:
            self._origins = self._origins._replace(noise=tuple(noise))
            self._current = None  # a new file says it

    # In the app's threads

    def record(self, span: ReadableSpan) -> None:
        """Writes an ended span; never raises. What cannot be written is in memory only, which `turn` tells."""
        if self._closed or self._paused:
            self._missed += 1
            return
        try:
            self._record(span)
        except Exception as error:  # noqa: BLE001 - an odd span, a full disk: nothing of it is the app's business
            self._error = error
            self._missed += 1

    def _record(self, span: ReadableSpan) -> None:
        context = span.context
        key = (context.trace_id, context.span_id)
        segment = self._current or self._open()
        while True:
            # First entered, then looked at again: a file that is no longer current may be gone as soon as nothing in it
            # waits, but nobody takes it away between these two.
            segment.waiting[key] = None
            current = self._current
            if segment is current:
                break
            segment.waiting.pop(key, None)
            segment = current or self._open()
        try:
            segment.begin(self._origins)
            segment.write(
                span_record(span, segment.number_of(span.resource), segment.number_of(span.instrumentation_scope))
            )
        except BaseException:
            segment.waiting.pop(key, None)
            raise

    def _open(self) -> Segment:
        with self._opening:
            if self._current is None:
                folder = self._folder()
                folder.mkdir(0o700, exist_ok=True)
                segment = Segment(folder / f"{self.unique}-{next(self._numbers):06d}{SUFFIX}")
                self._segments.append(segment)
                self._current = segment
            return self._current

    # In threads of this library

    def forget(self, keys: Iterable[Key]) -> None:
        """Tells that spans have an outcome: delivered, refused, or on disk in another form."""
        with self._opening:
            segments = tuple(self._segments)
            gone = [key for key in keys if any(key in segment.waiting for segment in segments)]
            if gone:
                with suppress(OSError):
                    segments[-1].write(["gone", gone])
            for segment in segments:
                for key in gone:
                    segment.waiting.pop(key, None)

    def turn(self) -> None:
        """Begins a new file when the last one is full, removes those that nothing waits in, tells what went wrong."""
        with self._opening:
            current = self._current
            if current is not None and (current.size > _FULL or not current.path.exists()):
                self._current = None
            # In their order only: what a later one says to be gone may stand in an earlier one.
            while self._segments and self._segments[0] is not self._current and not self._segments[0].waiting:
                segment = self._segments.popleft()
                remove_if_locked(segment.path, segment.descriptor)
            self._paused = len(self._segments) > _MOST_FILES
        error, self._error, missed, self._missed = self._error, None, self._missed, 0
        if missed:
            why = f"{type(error).__name__}: {error}" if error else "too much waits in it already"
            said = f"ended spans are in memory only, as the journal cannot be written ({why})"
            self._report.problem(_PROBLEM, add_code(MessageCode.JOURNAL_UNAVAILABLE, said), missed, logging.WARNING)
        elif not self._paused:
            self._report.solved(
                _PROBLEM, add_code(MessageCode.RECOVERED, "ended spans are written to the journal again")
            )

    def close(self) -> None:
        """Writes nothing more. What has no outcome stays for the next process."""
        with self._opening:
            self._closed = True
            self._current = None
            while self._segments and not self._segments[0].waiting:
                segment = self._segments.popleft()
                remove_if_locked(segment.path, segment.descriptor)
            for segment in self._segments:
                os.close(segment.descriptor)
            self._segments.clear()
