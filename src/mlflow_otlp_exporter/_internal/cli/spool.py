"""`mlflow-otlp spool`: show, send and delete the requests on disk."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlflow_otlp_exporter._internal.common.files import FileLock, open_regular_file, read_regular_file, secure_directory
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool.directory import candidate_roots
from mlflow_otlp_exporter._internal.spool.index import Index, list_entries
from mlflow_otlp_exporter._internal.spool.persistent_queue import JOURNAL_FOLDER, folder_name_for
from mlflow_otlp_exporter._internal.spool.recovery import find_abandoned_journals
from mlflow_otlp_exporter._internal.spool.storage import ABOUT_FILE, DAMAGED_FOLDER, REJECTED_FOLDER

_POLL_SECONDS, _PROGRESS_SECONDS = 0.1, 5.0
_LOCK_FILE, _MAX_TEXT_BYTES = "lock", 10_000


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    spool = commands.add_parser("spool", help="show, send and delete the requests on disk")
    actions = spool.add_subparsers(required=True, metavar="action", dest="action")
    actions.add_parser(
        "status", help="show number and age of the queued requests of each target, and the sending process"
    )
    listing = actions.add_parser("list", help="list the queued requests")
    listing.add_argument("--refused", action="store_true", help="list the rejected requests and the server's messages")
    flush = actions.add_parser("flush", help="send the queued requests of the current settings")
    flush.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    purge = actions.add_parser("purge", help="delete the queued requests of the current settings")
    purge.add_argument("--refused", action="store_true", help="delete the rejected and damaged requests instead")
    purge.add_argument("--yes", action="store_true", help="delete; without it, only show what would be deleted")


def run_action(options: argparse.Namespace) -> int:
    """Run an action; return 1 if requests remain after `flush`, or if `purge` was not confirmed, else 0."""
    settings = resolve({"spool": True}, defaults={"create_experiment": True})
    if options.action == "status":
        return _print_status(settings)
    if options.action == "list":
        return _print_requests(settings, REJECTED_FOLDER if options.refused else "")
    if options.action == "flush":
        return _flush(settings, options.timeout)
    return _purge(settings, rejected=options.refused, confirmed=options.yes)


def _folders(settings: Settings) -> Iterator[Path]:
    for root in candidate_roots(settings.disk.spool_dir, os.environ):
        for about in sorted(root.glob(f"*/{ABOUT_FILE}")):
            with suppress(OSError):
                secure_directory(about.parent)
                yield about.parent


def _read_text(path: Path) -> str:
    try:
        return _clean(read_regular_file(path, _MAX_TEXT_BYTES).decode(errors="replace").strip())
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _clean(text: str) -> str:
    """Replace what could control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _print_status(settings: Settings) -> int:
    current_name, is_empty = folder_name_for(settings), True
    for folder in _folders(settings):
        is_empty = False
        queued = Index(list_entries(folder)).totals
        print(f"{_read_text(folder / ABOUT_FILE)}{' (current settings)' if folder.name == current_name else ''}")
        print(f"  folder   {folder}")
        age = f", oldest {_format_age(queued.oldest_at)} ago" if queued.file_count else ""
        print(f"  queued   {queued.span_count} spans in {queued.file_count} requests, {queued.size_bytes} bytes{age}")
        for name in (REJECTED_FOLDER, DAMAGED_FOLDER):
            totals = Index(list_entries(folder / name)).totals
            print(f"  {name:8} {totals.span_count} spans in {totals.file_count} files, {totals.size_bytes} bytes")
        journals = list((folder / JOURNAL_FOLDER).glob("*"))
        if journals:
            print(f"  journal  {sum(path.lstat().st_size for path in journals)} bytes in {len(journals)} files")
        print(f"  sender   {_find_sender(folder)}")
    if is_empty:
        print("no spool: no requests are queued")
    return 0


def _find_sender(folder: Path) -> str:
    lock = FileLock(folder / _LOCK_FILE)
    try:
        if not lock.path.exists():
            return "none"
        process = _read_text(lock.path)
        if lock.acquire():
            return "none"
    except OSError:
        return "unknown"
    finally:
        lock.release()
    return f"process {process}"


def _format_age(timestamp: float) -> str:
    seconds = max(0.0, time.time() - timestamp)
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _format_time(timestamp: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
    except (OSError, OverflowError, ValueError):  # a damaged header, whose checksum is not verified here
        return "unknown time"


def _print_requests(settings: Settings, subfolder: str) -> int:
    for folder in _folders(settings):
        unsafe_names: dict[str, str] = {}
        for entry in Index(list_entries(folder / subfolder, unsafe_names)):
            try:
                with os.fdopen(open_regular_file(folder / subfolder / entry.name, os.O_RDONLY), "rb") as file:
                    header, state = spool_file.read_header(file.read(spool_file.MAX_HEADER_BYTES))
            except (OSError, spool_file.CorruptFileError, spool_file.UnsupportedVersionError) as error:
                print(f"{entry.name}  cannot be read: {error}")
                continue
            destination = header.destination
            experiment = destination.experiment or destination.experiment_id or destination.service_name or "Default"
            columns = [
                _format_time(header.created_at),
                f"{header.span_count} spans of {len(header.trace_ids)} traces",
                f"tr-{header.trace_ids[0]:032x}" if header.trace_ids else "-",
                f"experiment {experiment}"
                + (f" of workspace {destination.workspace}" if destination.workspace else ""),
                f"{state.attempts} attempts" + (", may have arrived" if state.may_have_arrived else ""),
            ]
            print(_clean("  ".join([*columns, header.message] if header.message else columns)))
        for problem, name in unsafe_names.items():
            print(f"{name}  is skipped: {problem}")
    return 0


def _flush(settings: Settings, timeout_seconds: float) -> int:
    deadline, pause = time.monotonic() + timeout_seconds, threading.Event()
    next_report = time.monotonic() + _PROGRESS_SECONDS
    pipeline = Pipeline(settings, None)
    try:
        assert pipeline.persistent_queue is not None
        assert pipeline.spool_consumer is not None
        spool, sender, consumer = pipeline.persistent_queue.storage, pipeline.retry_sender, pipeline.spool_consumer
        consumer.wake()
        # The first tick recovers the journals of killed processes.
        while (not consumer.has_ticked or spool.totals().file_count) and time.monotonic() < deadline:
            if sender.backoff.failure_counts and sender.failure_count:
                break  # the reason was logged
            if time.monotonic() >= next_report:
                next_report += _PROGRESS_SECONDS
                sent_count, queued = pipeline.stats().delivered, spool.totals()
                print(f"{sent_count} spans sent, {queued.span_count} still queued ...", file=sys.stderr, flush=True)
            pause.wait(_POLL_SECONDS)
        remaining = spool.totals()
    finally:
        pipeline.shutdown(1.0)
    delivered = pipeline.stats().delivered
    print(f"{delivered} spans sent, {remaining.span_count} queued in {remaining.file_count} requests")
    return 1 if remaining.file_count else 0


def _purge(settings: Settings, *, rejected: bool, confirmed: bool) -> int:
    span_count = file_count = 0
    for folder in _folders(settings):
        if folder.name != folder_name_for(settings):
            continue
        for journal in find_abandoned_journals(folder / JOURNAL_FOLDER, "", {}) if not rejected else ():
            with suppress(OSError):
                span_count += sum(len(trace.spans) for trace in journal.read_traces())
                file_count += len(journal.paths)
            if confirmed:
                journal.remove_files()
            else:
                journal.release_files()
        for subfolder in (REJECTED_FOLDER, DAMAGED_FOLDER) if rejected else ("",):
            for entry in list_entries(folder / subfolder):
                span_count, file_count = span_count + entry.span_count, file_count + 1
                if confirmed:
                    (folder / subfolder / entry.name).unlink(missing_ok=True)
    outcome = "deleted" if confirmed else "would be deleted; confirm with --yes"
    print(f"{span_count} spans in {file_count} files {outcome}")
    if not confirmed and file_count:
        print("mlflow-otlp: nothing was deleted", file=sys.stderr)
        return 1
    return 0
