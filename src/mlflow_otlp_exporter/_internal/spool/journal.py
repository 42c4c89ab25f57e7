"""The journal of `durability="every-span"`: each span is on disk before its `end()` returns, until it has an outcome.

Each process appends to files of its own, in the page cache, without sync: that is what `kill -9` leaves. It locks each
file; the kernel frees the lock when the process dies, so that another process recognises abandoned files.
"""

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.files import create_private_directory, remove_if_locked, try_lock
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.spool.journal_format import (
    JournalHeader,
    build_header_record,
    build_owner_record,
    build_span_record,
    encode_line,
)

SUFFIX = ".journal"
_MAX_SEGMENT_BYTES = 4 * 1024 * 1024
_MAX_SEGMENTS = 64
_PROBLEM_KEY = "the journal"
SpanKey = tuple[int, int]


class Segment:
    """A file of the journal, open for appending and locked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(path, flags, 0o600)
        if not try_lock(self.descriptor):
            os.close(self.descriptor)
            raise OSError(f"{path} cannot be locked")
        self.pending: dict[SpanKey, None] = {}  # without an outcome
        self.header: JournalHeader | None = None  # None before the first span
        # Numbers of the resources and scopes in it, by identity; holding the objects keeps their ids unique.
        self.owners: dict[int, tuple[int, Any]] = {}
        self.owner_numbers = itertools.count()
        self.size_bytes = 0  # approximately

    def write_records(self, records: Iterable[Any]) -> None:
        # In one call: each lets other threads run.
        content = b"".join(map(encode_line, records))
        written_bytes = os.write(self.descriptor, content)
        self.size_bytes += written_bytes
        if written_bytes != len(content):
            raise OSError("only a part of the line was written")

    def discard(self, keys: Iterable[SpanKey]) -> None:
        for key in keys:
            self.pending.pop(key, None)

    def write_header(self, header: JournalHeader) -> None:
        """Write the header once; two threads at once write it twice, which does no harm."""
        if self.header is None:
            self.write_records([build_header_record(header)])
            self.header = header

    def get_owner_number(self, owner: Any) -> int:
        numbered = self.owners.get(id(owner))
        if numbered is None:
            # Two threads at once write the owner twice, with two numbers. It is remembered after it was written.
            numbered = (next(self.owner_numbers), owner)
            self.write_records([build_owner_record(owner, numbered[0])])
            self.owners[id(owner)] = numbered
        return numbered[0]


class Journal:
    """Ended spans on disk, until they have an outcome. `folder` may raise OSError."""

    def __init__(
        self, folder: Callable[[], Path], problem_log: ProblemLog, header: JournalHeader | None = None
    ) -> None:
        self._folder, self._problem_log, self._header = folder, problem_log, header or JournalHeader()
        self._segments: deque[Segment] = deque()
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The files stay the parent's, and so do their locks: closing the descriptors in a child does not free them.
        for segment in self._segments:
            os.close(segment.descriptor)
        self.unique = f"{os.getpid():x}-{os.urandom(4).hex()}"
        self._segments = deque()
        self._current: Segment | None = None
        self._segment_numbers = itertools.count()
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._missed_span_count = 0
        self._is_closed = self._is_paused = self._has_written = False  # has written: since the last problem

    def set_trace_filter(self, words: Iterable[str]) -> None:
        """Set the trace filter of the spans that are written from now on."""
        with self._lock:
            self._header = self._header._replace(trace_filter=tuple(words))
            self._current = None  # the header stands at the beginning of a file

    # Called by application threads

    def append(self, *spans: ReadableSpan) -> bool:
        """Write ended spans; never raises. False: they are in memory only, which `rotate` logs."""
        if self._is_closed or self._is_paused:
            self._missed_span_count += len(spans)
            return False
        try:
            self._append(spans)
        except BaseException as error:  # a malformed span or a full disk must not raise into the application
            if must_propagate(error):
                raise
            self._error = error
            self._missed_span_count += len(spans)
            return False
        self._has_written = True
        return True

    def _append(self, spans: Sequence[ReadableSpan]) -> None:
        keys = dict.fromkeys([(span.context.trace_id, span.context.span_id) for span in spans])
        segment = self._current or self._open_segment()
        while True:
            # First add the keys, then check the segment again: a segment that is no longer current may be removed as
            # soon as no span in it is pending, but not between these two steps.
            segment.pending.update(keys)
            current = self._current
            if segment is current:
                break
            segment.discard(keys)
            segment = current or self._open_segment()
        try:
            segment.write_header(self._header)
            number = segment.get_owner_number
            records = [build_span_record(s, number(s.resource), number(s.instrumentation_scope)) for s in spans]
            segment.write_records(records)
        except BaseException:
            segment.discard(keys)
            raise
        if segment.size_bytes > _MAX_SEGMENT_BYTES:
            with self._lock:
                self._current = None if self._current is segment else self._current

    def _open_segment(self) -> Segment:
        with self._lock:
            if self._current is None:
                folder = self._folder()
                create_private_directory(folder)
                segment = Segment(folder / f"{self.unique}-{next(self._segment_numbers):06d}{SUFFIX}")
                self._segments.append(segment)
                self._current = segment
            return self._current

    # Called by threads of this library

    def acknowledge(self, keys: Iterable[SpanKey]) -> None:
        """Record that spans have an outcome: delivered, dropped, or stored in a spool file."""
        with self._lock:
            segments = tuple(self._segments)
            settled = [key for key in keys if any(key in segment.pending for segment in segments)]
            if settled:
                with suppress(OSError):
                    segments[-1].write_records([["gone", settled]])
            for segment in segments:
                segment.discard(settled)

    def rotate(self) -> None:
        """Replace a removed file, remove files without pending spans, and log problems since the last call."""
        with self._lock:
            current = self._current
            if current is not None and not current.path.exists():
                self._current = None
            self._remove_settled()
            self._is_paused = len(self._segments) > _MAX_SEGMENTS
        error, self._error = self._error, None
        missed_span_count, self._missed_span_count = self._missed_span_count, 0
        if missed_span_count:
            self._has_written = False
            reason = f"{type(error).__name__}: {error}" if error else "too many spans in it have no outcome"
            message = f"Journal cannot be written: {reason}. Ended spans are in memory only."
            message = add_code(MessageCode.JOURNAL_UNAVAILABLE, message)
            self._problem_log.report(_PROBLEM_KEY, message, missed_span_count, logging.WARNING)
        elif self._has_written and not self._is_paused:
            message = "Journal recovered: ended spans are written to it again"
            self._problem_log.resolve(_PROBLEM_KEY, add_code(MessageCode.RECOVERED, message))

    def _remove_settled(self) -> None:
        # Oldest first only: a later file may acknowledge spans of an earlier one.
        while self._segments and self._segments[0] is not self._current and not self._segments[0].pending:
            segment = self._segments.popleft()
            remove_if_locked(segment.path, segment.descriptor)

    def close(self) -> None:
        """Stop writing; spans without an outcome stay for the next process."""
        with self._lock:
            self._is_closed = True
            self._current = None
            self._remove_settled()
            for segment in self._segments:
                os.close(segment.descriptor)
            self._segments.clear()
