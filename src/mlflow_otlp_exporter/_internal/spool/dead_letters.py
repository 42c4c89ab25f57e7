"""What a spool has set aside for people to look at, and sends no more: what was refused for good, and what is damaged.

Both are bounded, the oldest go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, FileHeader, to_bytes
from mlflow_otlp_exporter._internal.spool.index import Entry, Index, destination_hash, list_entries

REFUSED, DAMAGED = "refused", "damaged"
_MOST_FILES, _SHARE = 1000, 8


class DeadLetterDirectory:
    """The folders beside a spool's requests with what was set aside.

    Args:
        max_bytes: How many bytes the spool may have, of which each folder may have a share besides.
        unique: Makes what tells a file from all others.
        write: Writes a file.
    """

    def __init__(self, max_bytes: int, unique: Callable[[], str], write: Callable[[Path, bytes], None]) -> None:
        self._max_bytes, self._unique, self._write = max_bytes, unique, write

    def keep_refused(
        self, folder: Path, destination: Destination, spans: Sequence[EncodedSpan], message: str, now: float
    ) -> None:
        """Keeps spans that the server has refused for good.

        Args:
            folder: The spool's.
            destination: Where they were to go.
            spans: The spans.
            message: What the server said.
            now: Seconds since 1970.

        Raises:
            OSError: They could not be written.
        """
        header = FileHeader(destination, len(spans), tuple({span.trace_id for span in spans}), now, message)
        content = to_bytes(header, spans, DeliveryState(1, uncertain=False, sent=now))
        entry = Entry(int(now * 1e9), len(spans), destination_hash(destination), self._unique(), len(content))
        self._write(self._place(folder / REFUSED, entry), content)

    def keep_request(self, folder: Path, entry: Entry) -> None:
        """Moves a damaged request.

        Args:
            folder: The spool's.
            entry: The request.

        Raises:
            OSError: It could not be moved.
        """
        (folder / entry.name).replace(self._place(folder / DAMAGED, entry))

    def keep_file(self, folder: Path, path: Path, now: float) -> None:
        """Moves what is damaged, and no request.

        Args:
            folder: The spool's.
            path: The file.
            now: Seconds since 1970.

        Raises:
            OSError: It could not be moved.
        """
        entry = Entry(int(now * 1e9), 0, "0" * 8, self._unique(), path.stat().st_size)
        path.replace(self._place(folder / DAMAGED, entry))

    def _place(self, folder: Path, entry: Entry) -> Path:
        """Where a file is to lie, with room for it."""
        folder.mkdir(0o700, exist_ok=True)
        index = Index(list_entries(folder))
        for each in list(index):
            too_much = index.totals.size + entry.size > self._max_bytes // _SHARE
            if index.totals.files < _MOST_FILES and not too_much:
                break
            (folder / each.name).unlink(missing_ok=True)
            index.discard(each)
        return folder / entry.name
