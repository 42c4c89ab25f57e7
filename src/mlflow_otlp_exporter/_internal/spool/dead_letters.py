"""Files beside the queue that are never sent again: rejected requests with the server's message, and damaged files.

Both folders are bounded; the oldest files are removed first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.spool.file_format import DeliveryState, FileHeader, encode_file
from mlflow_otlp_exporter._internal.spool.index import Entry, Index, hash_destination, list_entries

# "refused" is the name that version 0.1.0 gave the folder.
REJECTED_FOLDER, DAMAGED_FOLDER = "refused", "damaged"
# Each folder may hold an eighth of the bytes of the spool, in addition to them.
_MAX_FILES, _SHARE = 1000, 8


class DeadLetterDirectory:
    """The folders of dead letters; all methods raise OSError.

    Args:
        max_bytes: Size limit of the spool.
        new_unique: Returns a part of a file name that no other file has.
        write: Writes a file.
    """

    def __init__(self, max_bytes: int, new_unique: Callable[[], str], write: Callable[[Path, bytes], None]) -> None:
        self._max_folder_bytes, self._new_unique, self._write = max_bytes // _SHARE, new_unique, write

    def add_rejected(
        self, folder: Path, destination: Destination, spans: Sequence[EncodedSpan], message: str, now: float
    ) -> None:
        header = FileHeader(destination, len(spans), tuple({span.trace_id for span in spans}), now, message)
        content = encode_file(header, spans, DeliveryState(1, uncertain=False, sent_at=now))
        entry = Entry(int(now * 1e9), len(spans), hash_destination(destination), self._new_unique(), len(content))
        self._write(self._make_room(folder / REJECTED_FOLDER, entry), content)

    def quarantine_request(self, folder: Path, entry: Entry) -> None:
        (folder / entry.name).replace(self._make_room(folder / DAMAGED_FOLDER, entry))

    def quarantine_file(self, folder: Path, path: Path, now: float) -> None:
        """Move a damaged file that is not a request."""
        entry = Entry(int(now * 1e9), 0, "0" * 8, self._new_unique(), path.stat().st_size)
        path.replace(self._make_room(folder / DAMAGED_FOLDER, entry))

    def _make_room(self, folder: Path, new_entry: Entry) -> Path:
        """Remove old files for a new one, and return the path of the new one."""
        folder.mkdir(0o700, exist_ok=True)
        index = Index(list_entries(folder))
        for entry in list(index):
            is_too_large = index.totals.size_bytes + new_entry.size_bytes > self._max_folder_bytes
            if index.totals.file_count < _MAX_FILES and not is_too_large:
                break
            (folder / entry.name).unlink(missing_ok=True)
            index.discard(entry)
        return folder / new_entry.name
