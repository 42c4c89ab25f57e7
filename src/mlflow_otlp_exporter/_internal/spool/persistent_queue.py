"""What the courier cannot deliver now, on disk: put there from memory, and taken out again as shipments like any other.

Without a depot all waits in memory.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool.dead_letters import DAMAGED
from mlflow_otlp_exporter._internal.spool.directory import folder_name
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader
from mlflow_otlp_exporter._internal.spool.recovery import AbandonedJournal, find_abandoned_journals
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.transport.authorization import credential_fingerprint

JOURNAL = "journal"
_SHARED = (
    "two exporters of this app have credentials that cannot be told apart on disk: each sends with its own what the "
    "other has put there; give each a spool_dir, a token file, or a function of another name"
)
_NOWHERE = "the journal of a killed process does not tell where they belong"
# Who has left what this exporter finds on disk. "Earlier" is before it was made, whoever that was.
_EARLIER, _ANOTHER, _KILLED = "left by an earlier run", "left by another exporter", "left by a killed process"


class RecoveredSpans(NamedTuple):
    """Spans that a killed process has left.

    Attributes:
        destination: Where it would have sent them.
        spans: The spans.
        clean: Whether what must not leave the app was taken out of them before they were written.
    """

    destination: Destination
    spans: list[ReadableSpan]
    clean: bool


Encode = Callable[[RecoveredSpans], Sequence[tuple[Destination, list[EncodedSpan]]]]


class StoredRequest(NamedTuple):
    """A request as it lies on disk.

    Attributes:
        destination: Where it goes.
        spans: Its spans.
        state: What happened to it before.
        origin_label: Who left it on disk, for the log; empty if this queue stored it.
    """

    destination: Destination
    spans: list[EncodedSpan]
    state: DeliveryState
    origin_label: str


# Those of this process that have not been closed.
_open: weakref.WeakSet[PersistentQueue] = weakref.WeakSet()


def open_queue(
    settings: Settings, credentials: str, report: ProblemLog, origins: JournalHeader | None = None
) -> PersistentQueue:
    """The depot of a target.

    Args:
        settings: All settings.
        credentials: Whose they are and where they come from, for people; never the credential.
        report: Where to tell what goes wrong.
        origins: What holds for all spans that the journal gets; None for the defaults.
    """
    name = folder_name_for(settings)
    about = f"spans for {settings.traces.address}, sent with the credentials of: {credentials}\n"
    spool = SpoolStorage(settings.disk, name, about, report)
    every_span = settings.disk.durability == "every-span"
    depot = PersistentQueue(
        spool, Journal(lambda: spool.folder() / JOURNAL, report, origins) if every_span else None, report
    )
    depot.place = settings.disk.spool_dir, name
    server = settings.traces
    depot.secrets = server.credentials, server.token, server.password, server.headers.get("authorization")
    _open.add(depot)
    return depot


def folder_name_for(settings: Settings) -> str:
    """The name of the folder of a target."""
    server = settings.traces
    return folder_name(server.address, credential_fingerprint(server), settings.namespace)


class PersistentQueue:
    """Puts shipments on disk and takes them out.

    Args:
        spool: The disk.
        journal: What tells each span that has an outcome; None without `every-span`.
        report: Where spans are counted that are put on disk.

    Attributes:
        changed: Called when something was put on disk.
        place: Where the disk is.
        secrets: What the credentials are made of, as far as this app knows it; only ever compared.
    """

    def __init__(self, spool: SpoolStorage, journal: Journal | None, report: ProblemLog) -> None:
        self.spool, self.journal = spool, journal
        self._report = report
        self.changed: Callable[[], None] = lambda: None
        self.place: tuple[str | None, str] = (None, "")
        self.secrets: tuple[object, ...] = ()
        self._made_at = time.time_ns()
        self._adopted: set[str] = set()

    def put(self, destination: Destination, spans: Sequence[EncodedSpan], *, attempted: bool, uncertain: bool) -> bool:
        """Puts spans on disk.

        Args:
            destination: Where they go.
            spans: The spans.
            attempted: Whether they were sent.
            uncertain: Whether they may have arrived.

        Returns:
            Whether they are there.
        """
        return self._put(destination, spans, attempted=attempted, uncertain=uncertain) is not None

    def _put(
        self, destination: Destination, spans: Sequence[EncodedSpan], *, attempted: bool, uncertain: bool
    ) -> Entry | None:
        entry = self.spool.put(destination, spans, uncertain=uncertain, sent=time.time() if attempted else 0.0)
        if entry is None:
            return None
        self._report.count(spooled=len(spans))
        self.settled(spans)
        self.changed()
        return entry

    def refuse(self, destination: Destination, spans: Sequence[EncodedSpan], message: str) -> None:
        """Keeps what the server has refused for good, for people to look at."""
        self.spool.put_refused(destination, spans, message)

    def settled(self, spans: Sequence[EncodedSpan]) -> None:
        """Tells that spans have an outcome: what is in the journal of them is needed no more."""
        if self.journal is not None:
            self.journal.forget([(span.trace_id, span.span_id) for span in spans])

    def has_leftovers(self) -> bool:
        """Whether something is on disk already."""
        try:
            folder = self.spool.existing_folder()
            return bool(self.spool.entries()) or (folder is not None and any((folder / JOURNAL).glob("*")))
        except OSError:
            return False

    def adopt(self, encode: Encode, leave_out: Callable[[Sequence[ReadableSpan]], None]) -> None:
        """Makes requests of the spans that killed processes left in their journals.

        Args:
            encode: Makes them.
            leave_out: Told of spans that the process would have left out as noise.
        """
        folder = self.spool.existing_folder()
        if folder is None:
            return
        for orphan in find_abandoned_journals(
            folder / JOURNAL, self.journal.unique if self.journal is not None else ""
        ):
            try:
                safe = self._adopt(orphan, encode, leave_out)
            except OSError as error:
                safe = False
                said = f"the journal of a killed process in {folder} cannot be read: {error}"
                self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, said))
            if safe and orphan.damaged:
                orphan.release()
                self._set_aside(orphan)
            elif safe:
                orphan.remove()
            else:
                orphan.release()

    def _adopt(
        self, orphan: AbandonedJournal, encode: Encode, leave_out: Callable[[Sequence[ReadableSpan]], None]
    ) -> bool:
        """Whether all of it is on disk in another form."""
        groups: dict[tuple[Destination | None, bool], list[ReadableSpan]] = {}
        for trace in orphan.traces():
            if trace.is_noise:
                leave_out(list(trace.spans.values()))
                continue
            clean = trace.origins is not None and trace.origins.clean
            for destination, spans in trace.by_destination().items():
                groups.setdefault((destination, clean), []).extend(spans)
        nowhere = [spans for (destination, _), spans in groups.items() if destination is None]
        safe = all(
            self._put_adopted(where, encoded)
            for (destination, clean), spans in groups.items()
            if destination is not None
            for where, encoded in encode(RecoveredSpans(destination, spans, clean))
        )
        if safe:
            for spans in nowhere:
                self._hold_back(spans, encode)
        return safe

    def _put_adopted(self, destination: Destination, spans: Sequence[EncodedSpan]) -> bool:
        # They may have been on their way when the process was killed.
        entry = self._put(destination, spans, attempted=True, uncertain=True)
        if entry is not None:
            self._adopted.add(entry.name)
        return entry is not None

    def _set_aside(self, orphan: AbandonedJournal) -> None:
        for path in orphan.paths:
            self.spool.set_aside(path)
        said = f"{orphan.damaged} lines of a killed process's journal cannot be read: it was set aside in {DAMAGED}/"
        self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, said))

    def _hold_back(self, spans: list[ReadableSpan], encode: Encode) -> None:
        """Keeps what may belong to anybody for people to look at: another tenant must not get it."""
        for destination, encoded in encode(RecoveredSpans(Destination(), spans, clean=False)):
            self.refuse(destination, encoded, _NOWHERE)
        self._report.count(dropped=len(spans))
        self._report.problem(
            _NOWHERE,
            add_code(MessageCode.SPOOL_FILE_UNREADABLE, f"spans are set aside in refused/: {_NOWHERE}"),
            len(spans),
        )

    def close(self) -> None:
        """Ends the journal."""
        _open.discard(self)
        if self.journal is not None:
            self.journal.close()

    def read(self, entry: Entry) -> StoredRequest | None:
        """Read a request from disk; None if it is gone or damaged."""
        if not self.spool.is_own(entry) and any(
            queue.place == self.place and queue.secrets != self.secrets for queue in list(_open)
        ):
            self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_SHARED, _SHARED))
        loaded = self.spool.load(entry)
        if loaded is None:
            return None
        header, state, spans = loaded
        return StoredRequest(header.destination, spans, state, self._origin_label(entry))

    def _origin_label(self, entry: Entry) -> str:
        """Who has left a request on disk, in words; empty for what this exporter was given.

        A reader of the log is not to search today's run for what was wrong with yesterday's.
        """
        if entry.name in self._adopted:
            return _KILLED
        if self.spool.is_own(entry):
            return ""
        return _EARLIER if entry.stamp < self._made_at else _ANOTHER
