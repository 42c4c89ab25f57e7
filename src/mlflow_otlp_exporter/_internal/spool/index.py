"""The names of a spool's files, which tell what must be known without opening them: age, spans, where they go."""

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
    """A file of a spool; they are in the order in which they were written.

    Attributes:
        stamp: When it was written, in nanoseconds since 1970, or one more than that of the newest file before.
        spans: How many spans it has.
        key: Stands for its destination.
        unique: Tells it from all others.
        size: Its bytes.
    """

    stamp: int
    spans: int
    key: str
    unique: str
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.stamp:020d}-{self.spans}-{self.key}-{self.unique}.otlp"


def destination_hash(destination: Destination) -> str:
    """A few characters that stand for a destination in a file's name."""
    return hashlib.sha256(repr(destination).encode()).hexdigest()[:8]


def list_entries(folder: Path) -> list[Entry]:
    """The files of a spool, in no order; all else that lies there is nobody's business here.

    Raises:
        OSError: The folder cannot be read.
    """
    found: list[Entry] = []
    try:
        with os.scandir(folder) as names:
            for each in names:
                match = _PATTERN.fullmatch(each.name)
                if match:
                    try:
                        size = each.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue  # sent by somebody just now
                    found.append(Entry(int(match[1]), int(match[2]), match[3], match[4], size))
    except FileNotFoundError:
        return []
    return found


class Totals(NamedTuple):
    """How much there is.

    Attributes:
        files: How many files.
        spans: How many spans they have.
        size: Their bytes.
        oldest: When the oldest was written, in seconds since 1970; 0 if there is none.
    """

    files: int
    spans: int
    size: int
    oldest: float


class Index:
    """The files of a folder, oldest first, with their sums; nothing here takes longer the more there are.

    Args:
        entries: What is there.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._size = self._spans = 0
        self.newest = 0
        for entry in sorted(entries):
            self.add(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def totals(self) -> Totals:
        """How much there is."""
        oldest = next(iter(self), None)
        return Totals(len(self._entries), self._spans, self._size, oldest.stamp / 1e9 if oldest else 0.0)

    def add(self, entry: Entry) -> None:
        """Adds the newest."""
        self._entries[entry.name] = entry
        self._size += entry.size
        self._spans += entry.spans
        self.newest = max(self.newest, entry.stamp)

    def discard(self, entry: Entry) -> None:
        """Takes one out, if it is there."""
        if self._entries.pop(entry.name, None) is not None:
            self._size -= entry.size
            self._spans -= entry.spans
