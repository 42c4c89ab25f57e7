"""The names of spool files: they tell age, number of spans and destination without opening the files."""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_otlp_exporter._internal.common.files import find_problem
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool.file_format import MAX_FILE_BYTES

_PATTERN = r"(\d{20})-(\d{1,9})-([0-9a-f]{8})-([0-9a-f]+-[0-9a-f]{8}-\d+)\.otlp"
_MAX_CREATED_NS = 10**19 - 1  # in the year 2286


class Entry(NamedTuple):
    """A spool file; entries sort in the order of writing, because `created_ns` (since 1970) always grows."""

    created_ns: int
    span_count: int
    destination_hash: str
    unique: str
    size_bytes: int

    @property
    def name(self) -> str:
        return f"{self.created_ns:020d}-{self.span_count}-{self.destination_hash}-{self.unique}.otlp"


def hash_destination(destination: Destination) -> str:
    return hashlib.sha256(repr(destination).encode()).hexdigest()[:8]


def list_entries(folder: Path, unsafe_names: dict[str, str] | None = None) -> list[Entry]:
    """List the spool files of a folder, unordered; raises OSError.

    Files that are none of this user are left out; `unsafe_names` gets the reason and one name for each.
    """
    entries: list[Entry] = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                match = re.fullmatch(_PATTERN, file.name)
                if match:
                    try:
                        status = file.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # another process sent and removed it meanwhile
                    entry = Entry(int(match[1]), int(match[2]), match[3], match[4], status.st_size)
                    problem = find_problem(status)
                    if status.st_size > MAX_FILE_BYTES:
                        problem = problem or f"it is larger than {MAX_FILE_BYTES} bytes"
                    if problem is None and entry.name == file.name and entry.created_ns <= _MAX_CREATED_NS:
                        entries.append(entry)
                    elif unsafe_names is not None:
                        unsafe_names[problem or "it has an impossible name"] = file.name
    except (FileNotFoundError, NotADirectoryError):
        return []
    return entries


class Totals(NamedTuple):
    """Sums over a folder; `oldest_at` is in seconds since 1970, 0 without files."""

    file_count: int
    span_count: int
    size_bytes: int
    oldest_at: float


class Index:
    """The files of a folder, oldest first, with their sums; no operation takes longer with more files."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._size_bytes = self._span_count = 0
        self._newest_ns = 0
        for entry in sorted(entries):
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def totals(self) -> Totals:
        oldest = next(iter(self), None)
        oldest_at = oldest.created_ns / 1e9 if oldest else 0.0
        return Totals(len(self._entries), self._span_count, self._size_bytes, oldest_at)

    def next_created_ns(self, now: float) -> int:
        """Return a time after that of all entries, also if the clock was set back."""
        return min(max(int(now * 1e9), self._newest_ns + 1), _MAX_CREATED_NS)

    def add(self, entry: Entry) -> None:
        """Add an entry that is newer than all others."""
        self._entries[entry.name] = entry
        self._size_bytes += entry.size_bytes
        self._span_count += entry.span_count
        self._newest_ns = max(self._newest_ns, entry.created_ns)

    def discard(self, entry: Entry) -> None:
        if self._entries.pop(entry.name, None) is not None:
            self._size_bytes -= entry.size_bytes
            self._span_count -= entry.span_count
