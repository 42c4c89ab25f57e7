"""`mlflow-otlp spool`: what lies on disk, shown, sent and removed by hand."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.file_lock import FileLock
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool.dead_letters import DAMAGED_FOLDER, REJECTED_FOLDER
from mlflow_otlp_exporter._internal.spool.directory import candidate_roots
from mlflow_otlp_exporter._internal.spool.index import Index, list_entries
from mlflow_otlp_exporter._internal.spool.persistent_queue import JOURNAL_FOLDER, folder_name_for
from mlflow_otlp_exporter._internal.spool.recovery import find_abandoned_journals

_POLL_SECONDS = 0.1
_LOCK, _ABOUT = "lock", "about.txt"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its words to the command line."""
    spool = commands.add_parser("spool", help="what waits on disk for the server")
    actions = spool.add_subparsers(required=True, metavar="action", dest="action")
    actions.add_parser("status", help="how much waits, for which target, since when, and who sends it")
    listing = actions.add_parser("list", help="the requests that wait")
    listing.add_argument("--refused", action="store_true", help="those that the server has refused for good, and why")
    flush = actions.add_parser("flush", help="send what waits for the target of the settings in force here")
    flush.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="60 s if it is not given")
    purge = actions.add_parser("purge", help="remove what waits for the target of the settings in force here")
    purge.add_argument("--refused", action="store_true", help="what was refused or damaged, instead of what waits")
    purge.add_argument("--yes", action="store_true", help="really; without it, only say what would be removed")


def act(given: argparse.Namespace) -> int:
    """Does what the command line says.

    Args:
        given: Its words.

    Returns:
        The exit status: 0; 1 if something waits still after `flush`, or if `purge` was not confirmed.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    settings = resolve({"spool": True}, defaults={"create_experiment": True})
    if given.action == "status":
        return _status(settings)
    if given.action == "list":
        return _list(settings, REJECTED_FOLDER if given.refused else "")
    if given.action == "flush":
        return _flush(settings, given.timeout)
    return _purge(settings, refused=given.refused, really=given.yes)


def _folders(settings: Settings) -> Iterator[Path]:
    for root in candidate_roots(settings.disk.spool_dir, os.environ):
        with suppress(OSError):
            yield from sorted(path.parent for path in root.glob(f"*/{_ABOUT}"))


def _status(settings: Settings) -> int:
    own, found = folder_name_for(settings), False
    for folder in _folders(settings):
        found = True
        waiting = Index(list_entries(folder)).totals
        about = (folder / _ABOUT).read_text(encoding="utf-8").strip()
        print(f"{about}{' (the settings in force here)' if folder.name == own else ''}")
        print(f"  folder   {folder}")
        since = f", the oldest for {_ago(waiting.oldest_at)}" if waiting.file_count else ""
        print(
            f"  waiting  {waiting.span_count} spans in {waiting.file_count} requests, {waiting.size_bytes} bytes{since}"
        )
        for name in (REJECTED_FOLDER, DAMAGED_FOLDER):
            aside = Index(list_entries(folder / name)).totals
            print(f"  {name:8} {aside.span_count} spans in {aside.file_count} files, {aside.size_bytes} bytes")
        journals = list((folder / JOURNAL_FOLDER).glob("*"))
        if journals:
            print(f"  journal  {sum(path.stat().st_size for path in journals)} bytes in {len(journals)} files")
        print(f"  sender   {_holder(folder)}")
    if not found:
        print("there is no spool: nothing waits")
    return 0


def _holder(folder: Path) -> str:
    lock = FileLock(folder / _LOCK)
    try:
        if not lock.path.exists():
            return "none now"
        process = lock.path.read_text(encoding="ascii")
        if lock.acquire():
            return "none now"
    except (OSError, UnicodeDecodeError):
        return "unknown"
    finally:
        lock.release()
    return f"process {process}"


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _when(then: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))
    except (OSError, OverflowError, ValueError):  # a header that is damaged: the checksum is not looked at here
        return "at no time"


def _list(settings: Settings, where: str) -> int:
    for folder in _folders(settings):
        for entry in Index(list_entries(folder / where)):
            try:
                with (folder / where / entry.name).open("rb") as file:
                    header, state = spool_file.read_header(file.read(spool_file.MAX_HEADER_BYTES))
            except (OSError, spool_file.CorruptFileError, spool_file.UnsupportedVersionError) as error:
                print(f"{entry.name}  cannot be read: {error}")
                continue
            destination = header.destination
            place = destination.experiment or destination.experiment_id or destination.service_name or "Default"
            words = [
                _when(header.created_at),
                f"{header.span_count} spans of {len(header.trace_ids)} traces",
                f"tr-{header.trace_ids[0]:032x}" if header.trace_ids else "-",
                f"experiment {place}" + (f" of workspace {destination.workspace}" if destination.workspace else ""),
                f"sent {state.attempts} times" + (", may have arrived" if state.uncertain else ""),
            ]
            print("  ".join([*words, header.message] if header.message else words))
    return 0


def _flush(settings: Settings, seconds: float) -> int:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    pipeline = Pipeline(settings, None)
    try:
        assert pipeline.persistent_queue is not None
        assert pipeline.spool_consumer is not None
        spool, sender, consumer = pipeline.persistent_queue.storage, pipeline.retry_sender, pipeline.spool_consumer
        consumer.wake()
        # The first tick recovers the journals of killed processes.
        while (not consumer.has_ticked or spool.totals().file_count) and time.monotonic() < deadline:
            if sender.backoff.has_failures and sender.failure_count:
                break  # the log has said why
            pause.wait(_POLL_SECONDS)
        left = spool.totals()
    finally:
        pipeline.shutdown(1.0)
    print(f"{pipeline.stats().delivered} spans sent, {left.span_count} wait in {left.file_count} requests")
    return 1 if left.file_count else 0


def _purge(settings: Settings, *, refused: bool, really: bool) -> int:
    spans = files = 0
    for folder in _folders(settings):
        if folder.name != folder_name_for(settings):
            continue
        for orphan in find_abandoned_journals(folder / JOURNAL_FOLDER, "") if not refused else ():
            with suppress(OSError):
                spans, files = (
                    spans + sum(len(trace.spans) for trace in orphan.read_traces()),
                    files + len(orphan.paths),
                )
            if really:
                orphan.remove_files()
            else:
                orphan.release_files()
        for where in (REJECTED_FOLDER, DAMAGED_FOLDER) if refused else ("",):
            for entry in list_entries(folder / where):
                spans, files = spans + entry.span_count, files + 1
                if really:
                    (folder / where / entry.name).unlink(missing_ok=True)
    print(f"{spans} spans in {files} files {'removed' if really else 'would be removed: say it again with --yes'}")
    if not really and files:
        print("mlflow-otlp: nothing was removed", file=sys.stderr)
        return 1
    return 0
