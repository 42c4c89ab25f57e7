"""What a killed process left in its journal: the spans that had no outcome, trace by trace, and what held for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.file_lock import locked, remove_if_locked
from mlflow_otlp_exporter._internal.model.destination import Destination, Route
from mlflow_otlp_exporter._internal.spool.journal import SUFFIX
from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader, origins_of, records, route_in, span_of
from mlflow_otlp_exporter._internal.tracing.routing import read_routes
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter


@dataclass
class RecoveredTrace:
    """Spans of one trace.

    Attributes:
        spans: Those that had no outcome; they may have arrived all the same.
        route: Where the trace goes; None for where all of the process's went.
        origins: What held for the process; None if that cannot be told.
        begun: Whether others of its spans had an outcome.
    """

    spans: dict[int, ReadableSpan] = field(default_factory=dict)
    route: Route | None = None
    origins: JournalHeader | None = None
    begun: bool = False

    @property
    def is_noise(self) -> bool:
        """Whether the process would have left it out: a whole trace, of which nothing was sent."""
        is_noise = make_trace_filter(self.origins.noise) if self.origins is not None else None
        spans = list(self.spans.values())
        whole = not self.begun and any(span.parent is None for span in spans)
        return is_noise is not None and whole and is_noise(spans)

    def by_destination(self) -> dict[Destination | None, list[ReadableSpan]]:
        """The spans by where the process would have sent them; None where that cannot be told."""
        groups: dict[Destination | None, list[ReadableSpan]] = {}
        for span in self.spans.values():
            own = self.origins.destination if self.origins is not None else None
            found = None if own is None else own.for_trace(span.resource.attributes, self.route)
            groups.setdefault(found, []).append(span)
        return groups


class AbandonedJournal:
    """The files of one journal whose process is no more, locked here.

    Args:
        paths: Its files in order.
        descriptors: The same, open and locked.

    Attributes:
        paths: As given.
        damaged: How many lines could not be read, besides a last one that the kill has cut off.
    """

    def __init__(self, paths: list[Path], descriptors: list[int]) -> None:
        self.paths, self._descriptors = paths, descriptors
        self.damaged = 0

    def traces(self) -> list[RecoveredTrace]:
        """The traces of which there are spans that had no outcome.

        Raises:
            OSError: A file cannot be read.
        """
        found: dict[int, RecoveredTrace] = {}
        ended: list[ReadableSpan] = []
        self.damaged = 0
        for path in self.paths:
            owners: dict[int, list[Any]] = {}
            origins: JournalHeader | None = None
            content = path.read_bytes()
            read = list(records(content))
            cut_off = bool(content) and not content.endswith(b"\n")
            self.damaged += max(0, sum(map(bool, content.split(b"\n"))) - len(read) - cut_off)
            for record in read:
                try:
                    if record[0] == "origins":
                        origins = origins_of(record)
                    elif record[0] == "owner":
                        owners[record[1]] = record
                    elif record[0] == "span":
                        span, route = span_of(record, owners), route_in(record)
                        trace = found.setdefault(span.context.trace_id, RecoveredTrace())
                        trace.spans[span.context.span_id] = span
                        trace.route, trace.origins = trace.route or route, trace.origins or origins
                        ended.append(span)
                    elif record[0] == "gone":
                        for trace_id, span_id in record[1]:
                            trace = found.setdefault(trace_id, RecoveredTrace())
                            trace.begun = True
                            trace.spans.pop(span_id, None)
                except Exception:  # noqa: BLE001 - one that is damaged must not keep the others
                    self.damaged += 1
        # Of those with an outcome, too: where the root has said where to, the others go there.
        for trace_id, route in read_routes(ended).items():
            found[trace_id].route = found[trace_id].route or route
        return [trace for trace in found.values() if trace.spans]

    def remove(self) -> None:
        """Forgets them: they are on disk in another form now."""
        for path, descriptor in zip(self.paths, self._descriptors, strict=True):
            remove_if_locked(path, descriptor)
        self._descriptors = []

    def release(self) -> None:
        """Leaves them for later."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def find_abandoned_journals(folder: Path, own: str) -> Iterator[AbandonedJournal]:
    """The journals of processes that are no more.

    Args:
        folder: Where they are.
        own: The `unique` of this process's.
    """
    journals: dict[str, list[Path]] = {}
    with suppress(OSError):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            journals.setdefault(path.stem.rpartition("-")[0], []).append(path)
    for unique, paths in journals.items():
        if unique != own:
            descriptors = _lock_all(paths)
            if descriptors is not None:
                yield AbandonedJournal(paths, descriptors)


def _lock_all(paths: list[Path]) -> list[int] | None:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDWR))
            if not locked(descriptors[-1]):
                break
        else:
            return descriptors
    except OSError:
        pass
    for descriptor in descriptors:
        os.close(descriptor)
    return None
