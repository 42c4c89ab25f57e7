"""The spool: requests on disk, one file each, bounded; used by any number of threads and processes at once.

Nothing here raises: what cannot be written stays with the caller, and the disk is tried again later.
"""

from __future__ import annotations

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
from mlflow_otlp_exporter._internal.common.files import atomic_write
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.spool_settings import SpoolSettings
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool.dead_letters import DAMAGED, DeadLetterDirectory
from mlflow_otlp_exporter._internal.spool.directory import create_spool_directory, existing_spool_directory
from mlflow_otlp_exporter._internal.spool.file_format import (
    CorruptFileError,
    DeliveryState,
    FileHeader,
    UnsupportedVersionError,
)
from mlflow_otlp_exporter._internal.spool.index import Entry, Index, Totals, destination_hash, list_entries

_TEMPORARY = re.compile(r".+\.[0-9a-f]+-[0-9a-f]{8}\.tmp")
_ABANDONED_SECONDS = 3600.0  # a file that nobody has finished to write for so long
_MOST_FILES = 100_000
_MOST_DROPPED = 10_000  # to make room for one
# Of the disk this much is left to others: a twentieth, as in a container it may be small, but not more than that.
_FLOOR_SHARE, _LARGEST_FLOOR = 20, 256 * 1024 * 1024
# What other processes put in and take out is seen this often; more rarely where looking takes long.
_LOOK_SECONDS, _LOOK_SHARE = 1.0, 20.0
_RETRY_FIRST, _RETRY_LONGEST = 1.0, 60.0
_BROKEN = "the spool"


class SpoolStorage:
    """Requests on disk for one target and one identity.

    Args:
        settings: Where, how much, how long.
        name: The folder's name.
        about: What the folder is for, for people: one line.
        report: Where losses are counted and told.
        clock: Seconds since 1970.

    Attributes:
        pressed: Says whether memory has no room for what does not fit onto the disk.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        name: str,
        about: str,
        report: ProblemLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._name, self._about, self._report, self._clock = settings, name, about, report, clock
        self.pressed: Callable[[], bool] = lambda: False
        self._folder: Path | None = None
        self._index = Index()
        self._passed_over: set[str] = set()
        self._looked_at, self._look_took = -_LOOK_SECONDS, 0.0
        self._resume_at, self._failures = 0.0, 0
        self._aside = DeadLetterDirectory(settings.spool_max_bytes, self._new_unique, self._write)
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._unique = f"{os.getpid():x}-{os.urandom(4).hex()}"
        self._numbers = itertools.count()
        self._in_hand: set[str] = set()
        self._own: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"SpoolStorage({self._name!r})"

    # The folder

    def folder(self) -> Path:
        """The folder, made if it is missing.

        Raises:
            OSError: There is none that can be used.
        """
        with self._lock:
            if self._folder is None or not self._folder.is_dir():
                # What was chosen once stays: what lies there is not looked for anywhere else.
                given = str(self._folder.parent) if self._folder else self._settings.spool_dir
                self._folder = create_spool_directory(given, self._name, os.environ)
                self._write(self._folder / "about.txt", self._about.encode())
            return self._folder

    def _write(self, path: Path, content: bytes) -> None:
        atomic_write(path, content, self._unique, sync=self._settings.spool_fsync)

    def _new_unique(self) -> str:
        return f"{self._unique}-{next(self._numbers)}"

    # In

    def put(
        self, destination: Destination, spans: Sequence[EncodedSpan], *, uncertain: bool = False, sent: float = 0.0
    ) -> Entry | None:
        """Writes a request to disk.

        Args:
            destination: Where it goes.
            spans: Its spans.
            uncertain: Whether it may have arrived.
            sent: When it was sent last, in seconds since 1970; 0 if it never was.

        Returns:
            Its file; None if that is not possible now.
        """
        if not self.usable:
            return None
        created = self._clock()
        header = FileHeader(destination, len(spans), tuple(dict.fromkeys(span.trace_id for span in spans)), created)
        content = spool_file.to_bytes(header, spans, DeliveryState(int(sent > 0), uncertain, sent))
        with self._lock:
            try:
                entry = self._put(destination, len(spans), content, created)
            except OSError as error:
                self._broken(error, len(spans))
                return None
            self._failures, self._resume_at = 0, 0.0
        self._report.solved(_BROKEN, add_code(MessageCode.RECOVERED, "the spool can be used again"))
        return entry

    def _put(self, destination: Destination, span_count: int, content: bytes, created: float) -> Entry:
        folder = self.folder()
        self._look()
        self._make_room(folder, len(content))
        # After all that is there, also when the clock was set back.
        stamp = max(int(created * 1e9), self._index.newest + 1)
        entry = Entry(stamp, span_count, destination_hash(destination), self._new_unique(), len(content))
        try:
            self._write(folder / entry.name, content)
        except FileNotFoundError:  # removed just now
            self._write(self.folder() / entry.name, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._displaced(len(content)):
                raise
            self._write(folder / entry.name, content)
        self._index.add(entry)
        self._own[entry.name] = span_count
        return entry

    def _make_room(self, folder: Path, size: int) -> None:
        settings, totals = self._settings, self._index.totals
        if size > settings.spool_max_bytes:
            raise OSError(
                errno.EFBIG, f"a request is larger than all that may lie there ({settings.spool_max_bytes} bytes)"
            )
        excess = max(totals.size + size - settings.spool_max_bytes, int(totals.files >= _MOST_FILES))
        if excess > 0:
            self._drop_oldest(excess)
        disk = shutil.disk_usage(folder)
        floor = min(disk.total // _FLOOR_SHARE, _LARGEST_FLOOR)
        if disk.total and disk.free - size < floor and not self._displaced(size):
            raise OSError(errno.ENOSPC, f"less than {floor // 1_000_000} MB of the disk are free")

    def _displaced(self, size: int) -> bool:
        """On a full disk: what is new waits in memory; where that has no room, it takes the place of what is oldest."""
        return self.pressed() and self._drop_oldest(size)

    def _drop_oldest(self, size: int) -> bool:
        """Makes room by giving up what is oldest; whether there was so much."""
        freed = spans = 0
        for entry in list(itertools.islice(self._index, _MOST_DROPPED)):
            if freed >= size:
                break
            if entry.name not in self._in_hand and self._unlink(entry):
                freed += entry.size
                spans += entry.spans
        if spans:
            self._lost(spans, "the spool is full: its oldest spans went first", MessageCode.SPOOL_FULL)
        return freed >= size

    def _lost(self, spans: int, why: str, code: MessageCode) -> None:
        self._report.count(dropped=spans)
        self._report.problem(f"{_BROKEN} {why}", add_code(code, f"spans are lost: {why}"), spans)

    def _broken(self, error: OSError, spans: int) -> None:
        wait = min(_RETRY_FIRST * 2.0 ** min(self._failures, 16), _RETRY_LONGEST)
        self._failures, self._resume_at = self._failures + 1, time.monotonic() + wait
        where = self._folder or self._settings.spool_dir or "the usual places"
        said = error.strerror or str(error) or type(error).__name__
        self._report.problem(
            _BROKEN,
            add_code(
                MessageCode.SPOOL_UNAVAILABLE,
                f"the spool in {where} cannot be used ({said}): what waits for the server waits in memory, and is lost "
                "with the process; make room there, or set MLFLOW_OTLP_SPOOL_DIR",
            ),
            spans,
            logging.WARNING,
        )

    # What is there

    def entries(self) -> list[Entry]:
        """What waits, oldest first, as it was seen lately; without what is in hand here or cannot be read."""
        with self._lock:
            try:
                self._look()
            except OSError:
                return []
            kept = self._in_hand | self._passed_over
            return [entry for entry in self._index if entry.name not in kept]

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against putting something in."""
        return time.monotonic() >= self._resume_at

    def own_entries(self) -> list[Entry]:
        """The same, but only what this process has put in."""
        return [entry for entry in self.entries() if self.is_own(entry)]

    def is_own(self, entry: Entry) -> bool:
        """Whether this process has put it in."""
        return entry.name in self._own

    def existing_folder(self) -> Path | None:
        """The folder, if there is one.

        Raises:
            OSError: It cannot be looked at.
        """
        with self._lock:
            self._look()
            return self._folder if self._folder is not None and self._folder.is_dir() else None

    def totals(self) -> Totals:
        """How much waits."""
        with self._lock:
            self.look_again()
            with suppress(OSError):
                self._look()
            return self._index.totals

    def look_again(self) -> None:
        """The next look is at the disk itself."""
        self._looked_at = -_LOOK_SECONDS

    def spans_of_this_process(self) -> int:
        """How many spans that were put in here wait still, and nobody has delivered."""
        with self._lock:
            if self._own:
                self.look_again()
                with suppress(OSError):
                    self._look()
                self._own = {name: spans for name, spans in self._own.items() if name in self._index}
            return sum(self._own.values())

    def _look(self) -> None:
        begin = time.monotonic()
        if begin - self._looked_at < max(_LOOK_SECONDS, _LOOK_SHARE * self._look_took):
            return
        if self._folder is None:
            self._folder = existing_spool_directory(self._settings.spool_dir, self._name, os.environ)
        self._index = Index(list_entries(self._folder) if self._folder is not None else ())
        self._passed_over = {name for name in self._passed_over if name in self._index}
        self._looked_at = time.monotonic()
        self._look_took = self._looked_at - begin

    def expire(self) -> None:
        """Gives up what is too old; to be called when an attempt to send has just failed."""
        with self._lock:
            oldest = int((self._clock() - self._settings.spool_max_age) * 1e9)
            old = list(itertools.takewhile(lambda entry: entry.stamp < oldest, self._index))
            spans = sum(entry.spans for entry in old if entry.name not in self._in_hand and self._unlink(entry))
        if spans:
            days = self._settings.spool_max_age / 86_400
            self._lost(spans, f"they waited on disk for more than {days:g} days", MessageCode.SPOOL_EXPIRED)

    # Out

    def load(self, entry: Entry) -> tuple[FileHeader, DeliveryState, list[EncodedSpan]] | None:
        """Takes a request in hand; `remove` or `put_back` ends that.

        Returns:
            None if it is gone or cannot be read; what is damaged has been set aside then.
        """
        with self._lock:
            folder = self._folder
            if folder is None:
                return None
            self._in_hand.add(entry.name)
        try:
            return spool_file.from_bytes((folder / entry.name).read_bytes())
        except FileNotFoundError:
            with self._lock:
                self._index.discard(entry)
        except CorruptFileError as error:
            self._set_aside(entry, str(error))
        except UnsupportedVersionError as error:
            said = f"the spool in {folder} has files of an unknown format ({error}): they are left to a newer version"
            self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, said))
            self._passed_over.add(entry.name)
        except (OSError, MemoryError) as error:
            said = f"a file of the spool in {folder} cannot be read: {error}"
            self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, said))
            self._passed_over.add(entry.name)
        self.put_back(entry)
        return None

    def put_back(self, entry: Entry) -> None:
        """Says that a request is no longer in hand here, and stays on disk."""
        with self._lock:
            self._in_hand.discard(entry.name)

    def mark(self, entry: Entry, state: DeliveryState) -> None:
        """Notes in a request's file what has happened to it: it counts for whoever sends it next."""
        with self._lock:
            folder = self._folder
        if folder is not None:
            with suppress(OSError), (folder / entry.name).open("r+b", buffering=0) as file:
                file.seek(spool_file.STATE_OFFSET)
                file.write(state.to_bytes())

    def remove(self, entry: Entry) -> None:
        """Forgets a request that has been delivered, or refused for good."""
        with self._lock:
            self._unlink(entry)
            self._in_hand.discard(entry.name)

    def _unlink(self, entry: Entry) -> bool:
        self._index.discard(entry)
        self._own.pop(entry.name, None)
        if self._folder is None:
            return False
        try:
            (self._folder / entry.name).unlink()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                # It would be sent again and again.
                self._passed_over.add(entry.name)
                said = f"a file of the spool in {self._folder} cannot be removed: {error}"
                self._report.once(logging.WARNING, add_code(MessageCode.SPOOL_FILE_UNREADABLE, said))
            return False
        return True

    # Set aside

    def put_refused(self, destination: Destination, spans: Sequence[EncodedSpan], message: str) -> None:
        """Keeps spans that the server has refused for good, for people to look at.

        Args:
            destination: Where they were to go.
            spans: The spans.
            message: What the server said.
        """
        with suppress(OSError):
            self._aside.keep_refused(self.folder(), destination, spans, message, self._clock())

    def _set_aside(self, entry: Entry, why: str) -> None:
        """Moves what is damaged out of the way. Needs no lock: who has it in hand is alone with it."""
        self._index.discard(entry)
        self._own.pop(entry.name, None)
        assert self._folder is not None
        with suppress(OSError):
            self._aside.keep_request(self._folder, entry)
        if (self._folder / entry.name).exists():
            self._passed_over.add(entry.name)
        said = f"a file of the spool is damaged ({why}) and was set aside in {DAMAGED}/"
        self._lost(entry.spans, said, MessageCode.SPOOL_FILE_UNREADABLE)

    def set_aside(self, path: Path) -> None:
        """Moves what is damaged, and no request, out of the way.

        Args:
            path: The file, in the folder or one below it.
        """
        with suppress(OSError):
            self._aside.keep_file(self.folder(), path, self._clock())
        with suppress(OSError):
            path.unlink()  # where it cannot be moved: it would be read again and again

    def sweep(self) -> None:
        """Removes what processes that died had begun to write."""
        with self._lock:
            folder = self._folder
        if folder is None:
            return
        now = self._clock()
        with suppress(OSError):
            for each in list(folder.iterdir()):
                if _TEMPORARY.fullmatch(each.name) and abs(now - each.stat().st_mtime) > _ABANDONED_SECONDS:
                    each.unlink()
