"""Spans without an outcome in the journals of killed processes, grouped by trace, with the headers of the journals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from mlflow_otlp_exporter._internal.model.destination import Destination, Route
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

# A file ends with the span that fills it, so one span can make it larger than its usual 4 MB.
_MAX_JOURNAL_BYTES = 256 << 20


@dataclass
class RecoveredTrace:
    """Spans of one trace.

    Attributes:
        spans: Spans without an outcome, by span id; they may have arrived.
        route: Where the trace goes; None for the destination of the header.
        header: Header of the journal; None if it is missing or damaged.
        has_settled_spans: True if other spans of the trace had an outcome.
    """

    spans: dict[int, ReadableSpan] = field(default_factory=dict)
    route: Route | None = None
    header: JournalHeader | None = None
    has_settled_spans: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether the killed process would have filtered the trace, which it does only with whole traces."""
        trace_filter = make_trace_filter(self.header.trace_filter) if self.header is not None else None
        spans = list(self.spans.values())
        is_whole = not self.has_settled_spans and any(span.parent is None for span in spans)
        return trace_filter is not None and is_whole and trace_filter(spans)

    def group_by_destination(self) -> dict[Destination | None, list[ReadableSpan]]:
        """Group the spans by where the killed process would have sent them; None where that is unknown."""
        default = self.header.destination if self.header is not None else None
        groups: dict[Destination | None, list[ReadableSpan]] = {}
        for span in self.spans.values():
            destination = None if default is None else default.for_trace(span.resource.attributes, self.route)
            groups.setdefault(destination, []).append(span)
        return groups


class AbandonedJournal:
    """The files of the journal of a dead process, in order, open and locked by this process.

    `damaged_line_count` excludes a last line that was truncated by the kill.
    """

    def __init__(self, paths: list[Path], descriptors: list[int]) -> None:
        self.paths, self._descriptors = paths, descriptors
        self.damaged_line_count = 0

    def read_traces(self) -> list[RecoveredTrace]:
        """Read the traces that have spans without an outcome; raises OSError if a file is unreadable."""
        traces: dict[int, RecoveredTrace] = {}
        spans: list[ReadableSpan] = []
        self.damaged_line_count = 0
        for path in self.paths:
            owners: dict[int, list[Any]] = {}
            header: JournalHeader | None = None
            content = read_regular_file(path, _MAX_JOURNAL_BYTES)
            records = list(parse_lines(content))
            is_truncated = bool(content) and not content.endswith(b"\n")
            self.damaged_line_count += max(0, sum(map(bool, content.split(b"\n"))) - len(records) - is_truncated)
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
        for path, descriptor in zip(self.paths, self._descriptors, strict=True):
            remove_if_locked(path, descriptor)
        self._descriptors = []

    def release_files(self) -> None:
        """Leave the files for a later attempt."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def find_abandoned_journals(
    folder: Path, own_unique: str, unsafe_names: dict[str, str] | None = None
) -> Iterator[AbandonedJournal]:
    """Yield the journals of dead processes; `own_unique` is that of this process's journal.

    `unsafe_names` gets the reason and one name for each kind of file that is no regular file of this user.
    """
    unsafe_names = {} if unsafe_names is None else unsafe_names
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
            if try_lock(descriptors[path]):
                continue
        except UnsafeFileError as error:
            unsafe_names[str(error.strerror)] = path.name
            continue
        except OSError:
            pass
        break
    else:
        if descriptors:
            return AbandonedJournal(list(descriptors), list(descriptors.values()))
    for descriptor in descriptors.values():
        os.close(descriptor)
    return None
