"""The persistent queue of a target: requests in files, and with `durability="every-span"` a journal of ended spans."""

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, pluralize
from mlflow_otlp_exporter._internal.config.describe import credential_fingerprint
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, mark_local_root
from mlflow_otlp_exporter._internal.spool.directory import folder_name
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState
from mlflow_otlp_exporter._internal.spool.index import Entry
from mlflow_otlp_exporter._internal.spool.journal import Journal
from mlflow_otlp_exporter._internal.spool.journal_format import JournalHeader
from mlflow_otlp_exporter._internal.spool.recovery import AbandonedJournal, find_abandoned_journals
from mlflow_otlp_exporter._internal.spool.storage import DAMAGED_FOLDER, REJECTED_FOLDER, SpoolStorage

JOURNAL_FOLDER, FEEDBACK_FOLDER = "journal", "feedback"
_SHARED_FOLDER = (
    "Two exporters of this application have credentials that cannot be told apart on disk: each sends spans of the "
    "other with its own credential. Give each exporter its own spool_dir, a token file, or a function of another name."
)
_NO_DESTINATION = "the journal of a killed process does not name their destination"


class RecoveredSpans(NamedTuple):
    """Spans of a killed process; `is_redacted` is true if private content was removed before they were written."""

    destination: Destination
    spans: list[ReadableSpan]
    is_redacted: bool


EncodeRecovered = Callable[[RecoveredSpans], Sequence[tuple[Destination, list[EncodedSpan]]]]


class StoredRequest(NamedTuple):
    """A request read from disk."""

    destination: Destination
    spans: list[EncodedSpan]
    state: DeliveryState  # earlier attempts to send it
    origin_label: str  # who left it on disk, for the log; empty for a request of this queue


# Open queues of this process.
_open_queues: "weakref.WeakSet[PersistentQueue]" = weakref.WeakSet()


def open_queue(
    settings: Settings, credentials: str, problem_log: ProblemLog, header: JournalHeader | None = None
) -> "PersistentQueue":
    """Open the queue of a target; `credentials` says for readers whose credential it is, never the credential."""
    name = folder_name_for(settings)
    about = f"spans for {settings.traces.address}, sent with the credentials of: {credentials}\n"
    storage = SpoolStorage(settings.disk, name, about, problem_log)
    journal = None
    if settings.disk.durability == "every-span":
        journal = Journal(lambda: storage.ensure_folder() / JOURNAL_FOLDER, problem_log, header)
    server = settings.traces
    secrets = server.credentials, server.token, server.password, server.headers.get("authorization")
    queue = PersistentQueue(storage, journal, problem_log)
    queue.identity = settings.disk.spool_dir, name, secrets
    _open_queues.add(queue)
    return queue


def folder_name_for(settings: Settings) -> str:
    server = settings.traces
    return folder_name(server.address, credential_fingerprint(server), settings.namespace)


class PersistentQueue:
    """Requests on disk, and with `every-span` a journal."""

    def __init__(self, storage: SpoolStorage, journal: Journal | None, problem_log: ProblemLog) -> None:
        self.storage, self.journal, self._problem_log = storage, journal, problem_log
        self.on_append: Callable[[], None] = lambda: None
        self.identity: tuple[object, ...] = ()  # `spool_dir`, folder name and secrets, which are only compared
        self._created_ns = time.time_ns()
        self._recovered_names: set[str] = set()

    def append(
        self, destination: Destination, spans: Sequence[EncodedSpan], *, attempted: bool, may_have_arrived: bool
    ) -> Entry | None:
        """Write spans to disk. Returns None if the disk takes nothing now."""
        sent_at = time.time() if attempted else 0.0
        entry = self.storage.append(destination, spans, may_have_arrived=may_have_arrived, sent_at=sent_at)
        if entry is not None:
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
        """Whether requests, journals or feedback are on disk already."""
        folder = self.storage.find_folder()
        with suppress(OSError):
            folders = [folder / name for name in (JOURNAL_FOLDER, FEEDBACK_FOLDER)] if folder is not None else ()
            return bool(self.storage.entries()) or any(any(folder.glob("*")) for folder in folders)
        return False

    def recover_journals(self, encode: EncodeRecovered, on_filtered: Callable[[Sequence[ReadableSpan]], None]) -> None:
        """Turn the spans of killed processes into requests, except those that these processes would have filtered."""
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
                self.storage.log_unreadable(message)
            if is_stored and not journal.damaged_line_count:
                journal.remove_files()
                continue
            journal.release_files()
            if is_stored:
                for path in journal.paths:
                    self.storage.quarantine_file(path)
                self.storage.log_unreadable(
                    f"{pluralize(journal.damaged_line_count, 'line')} in the journal of a killed process cannot "
                    f"be read. The journal was moved to {DAMAGED_FOLDER}/."
                )
        for problem, name in unsafe_names.items():
            self.storage.log_unreadable(f"Journal file {name!r} in {folder} is skipped: {problem}.")

    def _recover(
        self, journal: AbandonedJournal, encode: EncodeRecovered, on_filtered: Callable[[Sequence[ReadableSpan]], None]
    ) -> bool:
        """Store the spans of a journal in another form; False if that failed for some of them."""
        groups: dict[tuple[Destination, bool], list[ReadableSpan]] = {}
        filtered: list[list[ReadableSpan]] = []
        unknown: list[ReadableSpan] = []
        for trace in journal.read_traces():
            if trace.header is None:
                unknown += trace.spans.values()
            elif trace.is_filtered:
                filtered.append(list(trace.spans.values()))
            else:
                mark_local_root(trace.spans)  # because a root that was open at the kill never ends
                for span in trace.spans.values():
                    destination = trace.header.destination.for_trace(span.resource.attributes, trace.route)
                    groups.setdefault((destination, trace.header.is_redacted), []).append(span)
        for (destination, is_redacted), spans in groups.items():
            for encoded_destination, encoded in encode(RecoveredSpans(destination, spans, is_redacted)):
                # They may have been in flight when the process was killed.
                entry = self.append(encoded_destination, encoded, attempted=True, may_have_arrived=True)
                if entry is None:
                    return False
                self._recovered_names.add(entry.name)
        for spans in filtered:
            on_filtered(spans)
        if unknown:
            self._drop_unknown(unknown, encode)
        return True

    def _drop_unknown(self, spans: list[ReadableSpan], encode: EncodeRecovered) -> None:
        # Their tenant is unknown, and another one must not get them.
        for destination, encoded in encode(RecoveredSpans(Destination(), spans, is_redacted=False)):
            self.dead_letter(destination, encoded, _NO_DESTINATION)
        self._problem_log.stats.add_dropped(len(spans), "spool_file_unreadable")
        message = f"Spans dropped: {_NO_DESTINATION}. They were moved to {REJECTED_FOLDER}/."
        self._problem_log.report(_NO_DESTINATION, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message), len(spans))

    def close(self) -> None:
        _open_queues.discard(self)
        if self.journal is not None:
            self.journal.close()

    def read(self, entry: Entry) -> StoredRequest | None:
        """Check out a request; None if its file is gone, damaged or unreadable."""
        if entry.name not in self.storage.own_names and any(
            queue.identity[:2] == self.identity[:2] and queue.identity != self.identity for queue in list(_open_queues)
        ):
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_SHARED, _SHARED_FOLDER))
        content = self.storage.checkout(entry)
        if content is None:
            return None
        header, state, spans = content
        return StoredRequest(header.destination, spans, state, self._origin_label(entry))

    def _origin_label(self, entry: Entry) -> str:
        # A reader of the log must not search today's run for the cause of yesterday's problem.
        if entry.name in self._recovered_names:
            return "left by a killed process"
        if entry.name in self.storage.own_names:
            return ""
        return "left by an earlier run" if entry.created_ns < self._created_ns else "left by another exporter"
