"""The names of spool files: they tell age, number of spans and destination without opening the files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_otlp_exporter._internal.model.destination import Destination

_PATTERN = re.compile(r"(\d{20})-(\d{1,9})-([0-9a-f]{8})-([0-9a-f]+-[0-9a-f]{8}-\d+)\.otlp")


class Entry(NamedTuple):
    """A spool file; entries sort in the order in which the files were written.

    `created_ns` counts from 1970, but is at least one more than that of the newest file before.
    """

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


def list_entries(folder: Path) -> list[Entry]:
    """List the spool files of a folder, unordered; raises OSError. Other files are ignored."""
    entries: list[Entry] = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                match = _PATTERN.fullmatch(file.name)
                if match:
                    try:
                        size_bytes = file.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue  # another process sent and removed it meanwhile
                    entries.append(Entry(int(match[1]), int(match[2]), match[3], match[4], size_bytes))
    except FileNotFoundError:
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
        self.newest_ns = 0
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

    def add(self, entry: Entry) -> None:
        """Add an entry that is newer than all others."""
        self._entries[entry.name] = entry
        self._size_bytes += entry.size_bytes
        self._span_count += entry.span_count
        self.newest_ns = max(self.newest_ns, entry.created_ns)

    def discard(self, entry: Entry) -> None:
        if self._entries.pop(entry.name, None) is not None:
            self._size_bytes -= entry.size_bytes
            self._span_count -= entry.span_count
