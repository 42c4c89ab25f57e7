"""The persistent queue of a target: requests in files, and with `durability="every-span"` a journal of ended spans.

Without a persistent queue, spans are queued in memory only.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool.directory import folder_name
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import DAMAGED_FOLDER, REJECTED_FOLDER, Entry
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader
from mlflow_otlp_exporter._internal.spool.recovery import AbandonedJournal, find_abandoned_journals
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.transport.authorization import credential_fingerprint

JOURNAL_FOLDER = "journal"
_SHARED_FOLDER = (
    "Two exporters of this application have credentials that cannot be told apart on disk: each sends spans of the "
    "other with its own credential. Give each exporter its own spool_dir, a token file, or a function of another name."
)
_NO_DESTINATION = "the journal of a killed process does not name their destination"
# A reader of the log must not search today's run for the cause of yesterday's problem.
_EARLIER_RUN, _OTHER_EXPORTER, _KILLED_PROCESS = (
    "left by an earlier run",
    "left by another exporter",
    "left by a killed process",
)


class RecoveredSpans(NamedTuple):
    """Spans of a killed process; `is_redacted` is true if private content was removed before they were written."""

    destination: Destination
    spans: list[ReadableSpan]
    is_redacted: bool


EncodeRecovered = Callable[[RecoveredSpans], Sequence[tuple[Destination, list[EncodedSpan]]]]


class StoredRequest(NamedTuple):
    """A request read from disk.

    Attributes:
        state: Earlier attempts to send it.
        origin_label: Who left it on disk, for the log; empty for a request of this queue.
    """

    destination: Destination
    spans: list[EncodedSpan]
    state: DeliveryState
    origin_label: str


# Open queues of this process.
_open_queues: weakref.WeakSet[PersistentQueue] = weakref.WeakSet()


def open_queue(
    settings: Settings, credentials: str, problem_log: ProblemLog, header: JournalHeader | None = None
) -> PersistentQueue:
    """Open the queue of a target.

    `credentials` describes owner and source of the credential for readers of the folder, never the credential. `header`
    holds for all spans in the journal; None for the defaults.
    """
    name = folder_name_for(settings)
    about = f"spans for {settings.traces.address}, sent with the credentials of: {credentials}\n"
    storage = SpoolStorage(settings.disk, name, about, problem_log)
    journal = None
    if settings.disk.durability == "every-span":
        journal = Journal(lambda: storage.ensure_folder() / JOURNAL_FOLDER, problem_log, header)
    server = settings.traces
    # Known parts of the credential; only compared, never written.
    secrets = server.credentials, server.token, server.password, server.headers.get("authorization")
    queue = PersistentQueue(storage, journal, problem_log, (settings.disk.spool_dir, name, secrets))
    _open_queues.add(queue)
    return queue


def folder_name_for(settings: Settings) -> str:
    server = settings.traces
    return folder_name(server.address, credential_fingerprint(server), settings.namespace)


class PersistentQueue:
    """Requests on disk.

    Attributes:
        journal: The journal of ended spans; None without `every-span`.
        on_append: Called when a request was written.
    """

    def __init__(
        self,
        storage: SpoolStorage,
        journal: Journal | None,
        problem_log: ProblemLog,
        identity: tuple[str | None, str, tuple[object, ...]] = (None, "", ()),
    ) -> None:
        self.storage, self.journal = storage, journal
        self._problem_log, self.identity = problem_log, identity  # identity: `spool_dir`, folder name, secrets
        self.on_append: Callable[[], None] = lambda: None
        self._created_ns = time.time_ns()
        self._recovered_names: set[str] = set()

    def append(
        self, destination: Destination, spans: Sequence[EncodedSpan], *, attempted: bool, uncertain: bool
    ) -> Entry | None:
        """Write spans to disk; `uncertain` if they may have arrived. Returns None if the disk takes nothing now."""
        sent_at = time.time() if attempted else 0.0
        entry = self.storage.append(destination, spans, uncertain=uncertain, sent_at=sent_at)
        if entry is None:
            return None
        self._problem_log.stats.add(spooled=len(spans))
        self.acknowledge(spans)
        self.on_append()
        return entry

    def dead_letter(self, destination: Destination, spans: Sequence[EncodedSpan], message: str) -> None:
        """Keep spans that the server rejected for good, with its message."""
        self.storage.dead_letter(destination, spans, message)

    def acknowledge(self, spans: Sequence[EncodedSpan]) -> None:
        """Remove spans that have an outcome from the journal."""
        if self.journal is not None:
            self.journal.acknowledge([(span.trace_id, span.span_id) for span in spans])

    def has_leftovers(self) -> bool:
        """Whether requests or journals are on disk already."""
        folder = self.storage.find_folder()
        with suppress(OSError):
            return bool(self.storage.entries()) or (folder is not None and any((folder / JOURNAL_FOLDER).glob("*")))
        return False

    def recover_journals(self, encode: EncodeRecovered, on_filtered: Callable[[Sequence[ReadableSpan]], None]) -> None:
        """Turn the spans in journals of killed processes into requests.

        `on_filtered` gets the spans of traces that the killed process would have filtered.
        """
        folder = self.storage.find_folder()
        if folder is None:
            return
        own_unique = self.journal.unique if self.journal is not None else ""
        unsafe_names: dict[str, str] = {}
        for journal in find_abandoned_journals(folder / JOURNAL_FOLDER, own_unique, unsafe_names):
            try:
                is_stored = self._recover(journal, encode, on_filtered)
            except OSError as error:
                is_stored = False
                message = f"Journal of a killed process in {folder} cannot be read: {error}. Reading it is retried."
                self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message))
            if is_stored and not journal.damaged_line_count:
                journal.remove_files()
                continue
            journal.release_files()
            if is_stored:
                self._quarantine_journal(journal)
        for problem, name in unsafe_names.items():
            message = f"Journal file {name} in {folder} is skipped: {problem}."
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message))

    def _recover(
        self,
        journal: AbandonedJournal,
        encode: EncodeRecovered,
        on_filtered: Callable[[Sequence[ReadableSpan]], None],
    ) -> bool:
        """Store the spans of a journal in another form; False if that failed for some of them."""
        groups: dict[tuple[Destination | None, bool], list[ReadableSpan]] = {}
        for trace in journal.read_traces():
            if trace.is_filtered:
                on_filtered(list(trace.spans.values()))
                continue
            is_redacted = trace.header is not None and trace.header.is_redacted
            for destination, spans in trace.group_by_destination().items():
                groups.setdefault((destination, is_redacted), []).extend(spans)
        is_stored = all(
            self._append_recovered(encoded_destination, encoded_spans)
            for (destination, is_redacted), spans in groups.items()
            if destination is not None
            for encoded_destination, encoded_spans in encode(RecoveredSpans(destination, spans, is_redacted))
        )
        if is_stored:
            for (destination, _), spans in groups.items():
                if destination is None:
                    self._quarantine_spans(spans, encode)
        return is_stored

    def _append_recovered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> bool:
        # They may have been in flight when the process was killed.
        entry = self.append(destination, spans, attempted=True, uncertain=True)
        if entry is not None:
            self._recovered_names.add(entry.name)
        return entry is not None

    def _quarantine_journal(self, journal: AbandonedJournal) -> None:
        for path in journal.paths:
            self.storage.quarantine_file(path)
        message = (
            f"{journal.damaged_line_count} lines in the journal of a killed process cannot be read. The journal was "
            f"moved to {DAMAGED_FOLDER}/."
        )
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message))

    def _quarantine_spans(self, spans: list[ReadableSpan], encode: EncodeRecovered) -> None:
        # Their tenant is unknown, and another one must not get them.
        for destination, encoded in encode(RecoveredSpans(Destination(), spans, is_redacted=False)):
            self.dead_letter(destination, encoded, _NO_DESTINATION)
        self._problem_log.stats.add(dropped=len(spans))
        message = f"Spans dropped: {_NO_DESTINATION}. They were moved to {REJECTED_FOLDER}/."
        self._problem_log.report(_NO_DESTINATION, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message), len(spans))

    def close(self) -> None:
        _open_queues.discard(self)
        if self.journal is not None:
            self.journal.close()

    def read(self, entry: Entry) -> StoredRequest | None:
        """Check out a request; None if its file is gone, damaged or unreadable."""
        if not self.storage.is_own(entry) and any(
            queue.identity[:2] == self.identity[:2] and queue.identity != self.identity for queue in list(_open_queues)
        ):
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_SHARED, _SHARED_FOLDER))
        content = self.storage.checkout(entry)
        if content is None:
            return None
        header, state, spans = content
        return StoredRequest(header.destination, spans, state, self._origin_label(entry))

    def _origin_label(self, entry: Entry) -> str:
        if entry.name in self._recovered_names:
            return _KILLED_PROCESS
        if self.storage.is_own(entry):
            return ""
        return _EARLIER_RUN if entry.created_ns < self._created_ns else _OTHER_EXPORTER
