"""Spans without an outcome in the journals of killed processes, grouped by trace, with the headers of the journals."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.files import (
    UnsafeFileError,
    open_regular_file,
    read_regular_file,
    remove_if_locked,
    secure_directory,
    try_lock,
)
from mlflow_otlp_exporter._internal.model.destination import Route
from mlflow_otlp_exporter._internal.spool.journal import SUFFIX
from mlflow_otlp_exporter._internal.spool.journal_format import (
    JournalHeader,
    parse_header,
    parse_lines,
    parse_route,
    parse_span,
)
from mlflow_otlp_exporter._internal.tracing.routing import read_routes
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

# Usually 4 MB, but it ends with what fills it: a request of the gateway of 20 MB takes up to six times as much in JSON.
_MAX_JOURNAL_BYTES = 256 << 20


class RecoveredTrace:
    """Spans of one trace."""

    route: Route | None = None  # None for the destination of the header
    header: JournalHeader | None = None  # None if it is missing or damaged
    has_settled_spans = False  # other spans of the trace had an outcome

    def __init__(self) -> None:
        self.spans: dict[int, ReadableSpan] = {}  # without an outcome, by id; they may have arrived

    @property
    def is_filtered(self) -> bool:
        """Whether the killed process would have filtered the trace, which it does only with whole traces."""
        trace_filter = make_trace_filter(self.header.trace_filter) if self.header is not None else None
        spans = list(self.spans.values())
        is_whole = not self.has_settled_spans and any(span.parent is None for span in spans)
        return trace_filter is not None and is_whole and trace_filter(spans)


class AbandonedJournal:
    """The files of the journal of a dead process, in order, open and locked by this process."""

    def __init__(self, descriptors: dict[Path, int]) -> None:
        self.paths, self._descriptors = list(descriptors), descriptors
        self.damaged_line_count = 0

    def read_traces(self) -> list[RecoveredTrace]:
        """Read the traces that have spans without an outcome; raises OSError if a file is unreadable."""
        traces: dict[int, RecoveredTrace] = {}
        spans: list[ReadableSpan] = []
        self.damaged_line_count = 0
        for path in self.paths:
            owners: dict[int, list[Any]] = {}
            header: JournalHeader | None = None
            records, damaged_line_count = parse_lines(read_regular_file(path, _MAX_JOURNAL_BYTES))
            self.damaged_line_count += damaged_line_count
            for record in records:
                try:
                    if record[0] == "origins":
                        header = parse_header(record)
                    elif record[0] == "owner":
                        owners[record[1]] = record
                    elif record[0] == "span":
                        span, route = parse_span(record, owners), parse_route(record)
                        trace = traces.setdefault(span.context.trace_id, RecoveredTrace())
                        trace.spans[span.context.span_id] = span
                        trace.route, trace.header = trace.route or route, trace.header or header
                        spans.append(span)
                    elif record[0] == "gone":
                        for trace_id, span_id in record[1]:
                            trace = traces.setdefault(trace_id, RecoveredTrace())
                            trace.has_settled_spans = True
                            trace.spans.pop(span_id, None)
                except Exception:  # noqa: BLE001 - a damaged record must not affect the others
                    self.damaged_line_count += 1
        # Settled spans, too: where the root names a destination, its other spans go there.
        for trace_id, route in read_routes(spans).items():
            traces[trace_id].route = traces[trace_id].route or route
        return [trace for trace in traces.values() if trace.spans]

    def remove_files(self) -> None:
        # Oldest first: a later file may acknowledge spans of an earlier one.
        for path, descriptor in self._descriptors.items():
            remove_if_locked(path, descriptor)
        self._descriptors = {}

    def release_files(self) -> None:
        """Leave the files for a later attempt."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}


def find_abandoned_journals(folder: Path, own_unique: str, unsafe_names: dict[str, str]) -> Iterator[AbandonedJournal]:
    """Yield the journals of dead processes; `unsafe_names` gets the reason and one name per kind of unusable file."""
    journals: dict[str, list[Path]] = {}
    try:
        secure_directory(folder)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            journals.setdefault(path.stem.rpartition("-")[0], []).append(path)
    except FileNotFoundError:
        return
    except OSError as error:
        unsafe_names[error.strerror or str(error)] = folder.name
    for unique, paths in journals.items():
        if unique != own_unique:
            journal = _lock_files(paths, unsafe_names)
            if journal is not None:
                yield journal


def _lock_files(paths: list[Path], unsafe_names: dict[str, str]) -> AbandonedJournal | None:
    descriptors: dict[Path, int] = {}
    for path in paths:
        try:
            descriptors[path] = open_regular_file(path, os.O_RDWR)
            if not try_lock(descriptors[path]):
                break
        except UnsafeFileError as error:
            unsafe_names[str(error.strerror)] = path.name
        except OSError:
            break
    else:
        if descriptors:
            return AbandonedJournal(descriptors)
    AbandonedJournal(descriptors).release_files()
    return None
