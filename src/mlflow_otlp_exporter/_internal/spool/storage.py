"""Requests on disk, one file each, bounded; used by any number of threads and processes at once.

Disk errors are not raised: spans that cannot be written stay with the caller, and the disk is tried again later.

Two folders, bounded as well, hold what is never sent again: dead letters with the server's message, and damaged files.
"""

import errno
import itertools
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.files import (
    atomic_write,
    create_private_directory,
    open_regular_file,
    read_regular_file,
    secure_directory,
)
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SpoolSettings
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.spool.directory import create_spool_directory, find_spool_directory
from mlflow_otlp_exporter._internal.spool.file_format import (
    MAX_FILE_BYTES,
    STATE_OFFSET,
    CorruptFileError,
    DeliveryState,
    FileHeader,
    UnsupportedVersionError,
    decode_file,
    encode_file,
)
from mlflow_otlp_exporter._internal.spool.index import Entry, Index, Totals, hash_destination, list_entries

# "refused" is the name that version 0.1.0 gave the folder.
REJECTED_FOLDER, DAMAGED_FOLDER = "refused", "damaged"
ABOUT_FILE = "about.txt"
_TEMPORARY_NAME = r".+\.[0-9a-f]+-[0-9a-f]{8}\.tmp"
_ABANDONED_SECONDS = 3600.0  # age of a temporary file whose writer has died
MAX_FILES = 100_000
_MAX_EVICTED_FILES = 10_000  # for one new file
# The folder of dead letters and that of damaged files may each hold an eighth of the bytes of the spool, beside them.
_MAX_DEAD_LETTERS, _DEAD_LETTER_SHARE = 1000, 8
# Free disk space for others: a twentieth, because the disk of a container may be small, but at most this.
_RESERVED_SHARE, _MAX_RESERVED_BYTES = 20, 256 * 1024 * 1024
# Changes by other processes are noticed after a second, or after 20 times the time of listing, if that is longer.
_REFRESH_SECONDS, _REFRESH_FACTOR = 1.0, 20.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 60.0
_PROBLEM_KEY = "the spool"


class SpoolStorage:
    """Request files of one target and identity; `name` is that of the folder, `about` says its purpose to readers."""

    def __init__(
        self,
        settings: SpoolSettings,
        name: str,
        about: str,
        problem_log: ProblemLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self._about, self._clock = name, about, clock
        self._settings, self._problem_log = settings, problem_log
        # Whether requests that the full disk does not take have no room in memory either.
        self.is_memory_full: Callable[[], bool] = lambda: False
        self._folder: Path | None = None
        self._index = Index()
        self._skipped: set[str] = set()
        self._next_refresh_at = 0.0
        self._retry_at, self._failure_count = 0.0, 0
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._unique = f"{os.getpid():x}-{os.urandom(4).hex()}"
        self._file_numbers = itertools.count()
        self._checked_out: set[str] = set()
        self.own_names: set[str] = set()  # files that this process wrote

    # Folder

    def ensure_folder(self) -> Path:
        """Return the folder, created if it is missing; raises OSError if no candidate is usable."""
        with self._lock:
            if self._folder is not None:
                with suppress(FileNotFoundError):
                    secure_directory(self._folder)
                    return self._folder
            # A folder that was chosen once stays chosen: the files in it are not searched elsewhere.
            spool_dir = str(self._folder.parent) if self._folder else self._settings.spool_dir
            self._folder = create_spool_directory(spool_dir, self.name, os.environ)
            with suppress(OSError):  # for readers of the folder only
                atomic_write(self._folder / ABOUT_FILE, self._about.encode(), self._unique)
            return self._folder

    def find_folder(self) -> Path | None:
        with self._lock, suppress(OSError):
            self._refresh()
            if self._folder is not None:
                secure_directory(self._folder)
                return self._folder
        return None

    def _new_unique(self) -> str:
        return f"{self._unique}-{next(self._file_numbers)}"

    # Writing

    @property
    def is_writable(self) -> bool:
        """False for a while after an error of the disk."""
        return time.monotonic() >= self._retry_at

    def append(
        self,
        destination: Destination,
        spans: Sequence[EncodedSpan],
        *,
        may_have_arrived: bool = False,
        sent_at: float = 0.0,
    ) -> Entry | None:
        """Write a request that was sent at a Unix time, or never (0); None if the disk takes nothing now."""
        if not self.is_writable:
            return None
        created_at = self._clock()
        state = DeliveryState(int(sent_at > 0), may_have_arrived, sent_at)
        try:
            content = encode_file(destination, spans, state, created_at)
            with self._lock:
                entry = self._append(destination, len(spans), created_at, content)
        except OSError as error:
            self._on_io_error(error)
            return None
        self._failure_count, self._retry_at = 0, 0.0
        message = add_code(MessageCode.RECOVERED, "Spool recovered: it is writable again")
        self._problem_log.resolve(_PROBLEM_KEY, message)
        return entry

    def _append(self, destination: Destination, span_count: int, created_at: float, content: bytes) -> Entry:
        folder = self.ensure_folder()
        self._refresh()
        self._make_room(folder, len(content))
        created_ns, key = self._index.next_created_ns(created_at), hash_destination(destination)
        entry = Entry(created_ns, span_count, key, self._new_unique(), len(content))
        try:
            atomic_write(folder / entry.name, content, self._unique)
        except FileNotFoundError:  # the folder was removed meanwhile
            atomic_write(self.ensure_folder() / entry.name, content, self._unique)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._evict(len(content)):
                raise
            atomic_write(folder / entry.name, content, self._unique)
        self._index.add(entry)
        self.own_names.add(entry.name)
        return entry

    def _make_room(self, folder: Path, size_bytes: int) -> None:
        max_bytes, totals = self._settings.spool_max_bytes, self._index.totals
        if size_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"a request is larger than the spool may be ({max_bytes} bytes)")
        excess = max(totals.size_bytes + size_bytes - max_bytes, int(totals.file_count >= MAX_FILES))
        if excess > 0:
            self._drop_oldest(excess)
        disk = shutil.disk_usage(folder)
        reserved_bytes = min(disk.total // _RESERVED_SHARE, _MAX_RESERVED_BYTES)
        if disk.total and disk.free - size_bytes < reserved_bytes and not self._evict(size_bytes):
            raise OSError(errno.ENOSPC, f"less than {reserved_bytes / 1e6:.3g} MB of the disk are free")

    def _evict(self, size_bytes: int) -> bool:
        # On a full disk, new requests are queued in memory; when that is full, too, they replace the oldest on disk.
        return self.is_memory_full() and self._drop_oldest(size_bytes)

    def _drop_oldest(self, size_bytes: int) -> bool:
        """Drop the oldest requests to free that many bytes; False if there were not enough."""
        freed_bytes = span_count = 0
        for entry in list(itertools.islice(self._index, _MAX_EVICTED_FILES)):
            if freed_bytes < size_bytes and entry.name not in self._checked_out and self._unlink(entry):
                freed_bytes += entry.size_bytes
                span_count += entry.span_count
        if span_count:
            reason = "the spool is full. Its oldest requests were removed."
            self._record_dropped(span_count, reason, MessageCode.SPOOL_FULL)
        return freed_bytes >= size_bytes

    def _record_dropped(self, span_count: int, reason: str, code: MessageCode) -> None:
        self._problem_log.stats.add_dropped(span_count, code.name.lower())
        self._problem_log.report(f"{_PROBLEM_KEY} {reason}", add_code(code, f"Spans dropped: {reason}"), span_count)

    def _on_io_error(self, error: OSError) -> None:
        key = _PROBLEM_KEY
        if error.errno == errno.EFBIG:
            key += " and a large request"  # which must not keep others in memory
        else:
            delay_seconds = min(_MIN_RETRY_SECONDS * 2.0 ** min(self._failure_count, 16), _MAX_RETRY_SECONDS)
            self._failure_count, self._retry_at = self._failure_count + 1, time.monotonic() + delay_seconds
        folder = self._folder or self._settings.spool_dir or "the default folders"
        reason = error.strerror or str(error) or type(error).__name__
        message = (
            f"Spool in {folder} cannot be used: {reason}. Spans are queued in memory, and lost if the process ends. "
            "Free disk space, correct the permissions, or set MLFLOW_OTLP_SPOOL_DIR."
        )
        message = add_code(MessageCode.SPOOL_UNAVAILABLE, message)
        self._problem_log.report(key, message, 0, logging.WARNING)  # each attempt would count the same spans again

    # Listing

    def entries(self) -> list[Entry]:
        """List requests, oldest first, without those that are checked out by this process or unreadable."""
        with self._lock:
            try:
                self._refresh()
            except OSError:
                return []
            hidden = self._checked_out | self._skipped
            return [entry for entry in self._index if entry.name not in hidden]

    @property
    def listed_totals(self) -> Totals:
        """The totals of the last listing, which waits neither for the disk nor for a thread that does."""
        return self._index.totals

    def totals(self) -> Totals:
        with self._lock:
            with suppress(OSError):
                self._refresh(force=True)
            return self._index.totals

    def pending_span_count(self, destination: Destination | None = None, *, is_own: bool = True) -> int:
        """Count the spans, of a destination or of all, that this process (`is_own`) or any wrote and none has sent."""
        key = None if destination is None else hash_destination(destination)
        with self._lock:
            if self.own_names or not is_own:
                with suppress(OSError):
                    self._refresh(force=True)
                self.own_names = {name for name in self.own_names if name in self._index}
            entries = [entry for entry in self._index if key in (None, entry.destination_hash)]
            return sum(entry.span_count for entry in entries if not is_own or entry.name in self.own_names)

    def _refresh(self, *, force: bool = False) -> None:
        started_at = time.monotonic()
        if not force and started_at < self._next_refresh_at:
            return
        if self._folder is None:
            self._folder = find_spool_directory(self._settings.spool_dir, self.name, os.environ)
        unsafe_names: dict[str, str] = {}
        self._index = Index(() if self._folder is None else list_entries(self._folder, unsafe_names))
        self._skipped = {name for name in self._skipped if name in self._index}
        for problem, name in unsafe_names.items():
            self.log_unreadable(f"Spool file {name} in {self._folder} is skipped: {problem}.")
        now = time.monotonic()
        self._next_refresh_at = now + max(_REFRESH_SECONDS, _REFRESH_FACTOR * (now - started_at))

    # Reading and removing

    def checkout(self, entry: Entry) -> tuple[FileHeader, DeliveryState, list[EncodedSpan]] | None:
        """Read a request and hold it until `remove` or `release`; None if it is gone, damaged or unreadable."""
        with self._lock:
            folder = self._folder
            if folder is None:
                return None
            self._checked_out.add(entry.name)
        try:
            return decode_file(read_regular_file(folder / entry.name, MAX_FILE_BYTES))
        except FileNotFoundError:
            with self._lock:
                self._index.discard(entry)
        except CorruptFileError as error:
            self._quarantine(entry, str(error))
        except UnsupportedVersionError as error:
            message = f"Spool in {folder} has files of an unsupported format ({error}). A newer version may send them."
            self._skip(entry, message)
        except (OSError, MemoryError) as error:
            self._skip(entry, f"Spool file in {folder} cannot be read: {error}. It is skipped.")
        self.release(entry)
        return None

    def _skip(self, entry: Entry, message: str) -> None:
        self._skipped.add(entry.name)
        self.log_unreadable(message)

    def log_unreadable(self, message: str) -> None:
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, message))

    def release(self, entry: Entry) -> None:
        """Leave a request that was checked out on disk for a later attempt."""
        with self._lock:
            self._checked_out.discard(entry.name)

    def write_state(self, entry: Entry, state: DeliveryState) -> None:
        """Update the state in the file of a request, for the process that sends it next."""
        if self._folder is not None:
            with suppress(OSError):
                descriptor = open_regular_file(self._folder / entry.name, os.O_WRONLY)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    file.seek(STATE_OFFSET)
                    file.write(state.pack())

    def remove(self, entry: Entry) -> None:
        with self._lock:
            self._unlink(entry)
            self._checked_out.discard(entry.name)

    def remove_expired(self) -> None:
        """Drop requests that are too old; to be called when an attempt to send has just failed."""
        with self._lock:
            min_created_ns = int((self._clock() - self._settings.spool_max_age) * 1e9)
            expired = list(itertools.takewhile(lambda entry: entry.created_ns < min_created_ns, self._index))
            removed = [entry for entry in expired if entry.name not in self._checked_out and self._unlink(entry)]
            span_count = sum(entry.span_count for entry in removed)
        if span_count:
            days = self._settings.spool_max_age / 86_400
            reason = f"they were queued on disk for more than {days:g} day{'' if days == 1 else 's'}."
            self._record_dropped(span_count, reason, MessageCode.SPOOL_EXPIRED)

    def _unlink(self, entry: Entry) -> bool:
        self._index.discard(entry)
        self.own_names.discard(entry.name)
        if self._folder is None:
            return False
        try:
            (self._folder / entry.name).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            # Skipped, because the request would be sent again and again.
            self._skip(entry, f"Spool file in {self._folder} cannot be removed: {error}. It is not sent again.")
            return False
        return True

    # Dead letters

    def dead_letter(self, destination: Destination, spans: Sequence[EncodedSpan], message: str) -> None:
        """Keep spans that the server rejected for good, with its message."""
        now = self._clock()
        with suppress(OSError):
            content = encode_file(destination, spans, DeliveryState(1, sent_at=now), now, message)
            entry = Entry(int(now * 1e9), len(spans), hash_destination(destination), self._new_unique(), len(content))
            atomic_write(self._make_dead_letter_room(REJECTED_FOLDER, entry), content, self._unique)

    def _quarantine(self, entry: Entry, reason: str) -> None:
        # Without the lock, because the request is checked out.
        self._index.discard(entry)
        self.own_names.discard(entry.name)
        assert self._folder is not None
        path = self._folder / entry.name
        with suppress(OSError):
            path.replace(self._make_dead_letter_room(DAMAGED_FOLDER, entry))
        if path.exists():
            self._skipped.add(entry.name)
        reason = f"a spool file is damaged ({reason}). It was moved to {DAMAGED_FOLDER}/."
        self._record_dropped(entry.span_count, reason, MessageCode.SPOOL_FILE_UNREADABLE)

    def quarantine_file(self, path: Path) -> None:
        """Move a damaged file that is not a request, in the folder or below it."""
        with suppress(OSError):
            entry = Entry(int(self._clock() * 1e9), 0, "0" * 8, self._new_unique(), path.stat().st_size)
            path.replace(self._make_dead_letter_room(DAMAGED_FOLDER, entry))
        with suppress(OSError):
            path.unlink()  # if it could not be moved: it would be read again and again

    def _make_dead_letter_room(self, name: str, new_entry: Entry) -> Path:
        """Remove the oldest files for a new one, and return the path of the new one; raises OSError."""
        folder = self.ensure_folder() / name
        create_private_directory(folder)
        index = Index(list_entries(folder))
        max_bytes = self._settings.spool_max_bytes // _DEAD_LETTER_SHARE
        for entry in list(index):
            is_too_large = index.totals.size_bytes + new_entry.size_bytes > max_bytes
            if index.totals.file_count < _MAX_DEAD_LETTERS and not is_too_large:
                break
            (folder / entry.name).unlink(missing_ok=True)
            index.discard(entry)
        return folder / new_entry.name

    def remove_temporary_files(self) -> None:
        """Remove the unfinished files of dead processes."""
        now = self._clock()
        with suppress(OSError):
            for path in list(self._folder.iterdir() if self._folder is not None else ()):
                if re.fullmatch(_TEMPORARY_NAME, path.name):
                    with suppress(OSError):  # a directory, or removed meanwhile
                        if abs(now - path.lstat().st_mtime) > _ABANDONED_SECONDS:
                            path.unlink()
