"""`mlflow-otlp spool`: show, send and delete the requests on disk."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlflow_otlp_exporter._internal.cli.output import clean, paint
from mlflow_otlp_exporter._internal.common.backoff import BackoffState
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.files import (
    FileLock,
    atomic_write,
    create_private_directory,
    open_regular_file,
    read_regular_file,
    secure_directory,
)
from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.spool import file_format as spool_file
from mlflow_otlp_exporter._internal.spool.directory import candidate_roots, create_spool_directory
from mlflow_otlp_exporter._internal.spool.index import Index, hash_destination, list_entries
from mlflow_otlp_exporter._internal.spool.persistent_queue import FEEDBACK_FOLDER, JOURNAL_FOLDER, folder_name_for
from mlflow_otlp_exporter._internal.spool.recovery import find_abandoned_journals
from mlflow_otlp_exporter._internal.spool.storage import ABOUT_FILE, DAMAGED_FOLDER, MAX_FILES, REJECTED_FOLDER

_POLL_SECONDS, _PROGRESS_SECONDS = 0.1, 5.0
_LOCK_FILE, _MAX_TEXT_BYTES, _MAX_FEEDBACK_BYTES = "lock", 10_000, 4 << 20
_UNREADABLE = (OSError, spool_file.CorruptFileError, spool_file.UnsupportedVersionError)


_DEAD_LETTERS = ("--dead-letters", "--refused")  # the second name is that of version 0.1.0
_ADD = Callable[..., argparse.ArgumentParser]


def add_command(add: _ADD) -> argparse.ArgumentParser:
    """Add the command; `add` creates a parser, of a command or of an action."""
    spool = add(None, "spool", "show, send and delete the requests on disk")
    actions = spool.add_subparsers(metavar="action", dest="action")
    status = add(
        actions,
        "status",
        "show number and age of the queued requests of each target, and the sending process",
        "mlflow-otlp spool status --json",
    )
    listing = add(
        actions,
        "list",
        "list the queued requests, the oldest first",
        "mlflow-otlp spool list --dead-letters --workspace team-a",
    )
    listing.add_argument(
        *_DEAD_LETTERS,
        action="store_true",
        help="list dead letters (requests that were rejected for good) and the reasons",
    )
    flush = add(
        actions,
        "flush",
        "send the queued requests of the current settings",
        "mlflow-otlp spool flush",
        "mlflow-otlp spool flush --from http://old-host:5000",
    )
    flush.add_argument(
        "--from",
        dest="source",
        metavar="TARGET",
        help="also send what was queued for another address or with another credential:\n"
        "an address, HOST:PORT, or the name of a folder of `spool status`",
    )
    retry = add(
        actions,
        "retry",
        "send dead letters (requests that were rejected for good) again, for the current settings",
        "mlflow-otlp spool retry --experiment agents --yes",
    )
    purge = add(
        actions,
        "purge",
        "delete the queued requests of the current settings",
        "mlflow-otlp spool purge --dead-letters --yes",
    )
    purge.add_argument(
        *_DEAD_LETTERS, action="store_true", help="delete dead letters and damaged files instead of queued requests"
    )
    for action, verb in ((purge, "delete"), (retry, "send")):
        action.add_argument("--yes", action="store_true", help=f"{verb}; without it, only show what would be done")
    for action in (flush, retry):
        action.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    for action in (listing, purge, retry):
        action.add_argument("--workspace", help="only requests for this workspace")
        action.add_argument("--experiment", help="only requests for the experiment with this name or id")
    for action in (status, listing):
        action.add_argument("--json", action="store_true", help="print JSON")
    return spool


def run_action(options: argparse.Namespace) -> int:
    """Run an action; return 1 if requests or feedback remain after `flush` or `retry`, else 0."""
    settings = resolve({"spool": True}, defaults={"create_experiment": True})
    if options.action == "status":
        return _print_status(settings, as_json=options.json)
    if options.action == "flush":
        has_all = not options.source or _adopt_requests(settings, options.source)
        return _flush(settings, options.timeout) or int(not has_all)
    selection = _Selection(options.workspace, options.experiment)
    if options.action == "list":
        subfolder = REJECTED_FOLDER if options.dead_letters else ""
        return _print_requests(settings, subfolder, selection, as_json=options.json)
    if options.action == "retry":
        return _retry(settings, selection, options.timeout, is_confirmed=options.yes)
    return _purge(settings, selection, rejected=options.dead_letters, confirmed=options.yes)


class _Selection(NamedTuple):
    """Which requests are meant, by their destination."""

    workspace: str | None
    experiment: str | None

    def __bool__(self) -> bool:
        return self.workspace is not None or self.experiment is not None

    def matches(self, path: Path) -> bool:
        """Whether a file is selected; an unreadable file only if all are."""
        if not self:
            return True
        try:
            destination = _read_header(path)[0].destination
        except _UNREADABLE:
            return False
        is_workspace = self.workspace in (None, destination.workspace)
        return is_workspace and self.experiment in (None, *_experiment_names(destination))


def _experiment_names(destination: Destination) -> list[str]:
    names = (destination.experiment, destination.experiment_id, destination.service_name)
    return [name for name in names if name] or ["Default"]


def _read_header(path: Path) -> tuple[spool_file.FileHeader, spool_file.DeliveryState]:
    with os.fdopen(open_regular_file(path, os.O_RDONLY), "rb") as file:
        return spool_file.read_header(file.read(spool_file.MAX_HEADER_BYTES))


def _folders(settings: Settings) -> Iterator[Path]:
    for root in candidate_roots(settings.disk.spool_dir, os.environ):
        # A folder that the doctor has created has no ABOUT_FILE.
        folders = {path.parent for path in [*root.glob(f"*/{ABOUT_FILE}"), *root.glob("*/*.otlp")]}
        for pattern in (f"*/{REJECTED_FOLDER}/*.otlp", f"*/{FEEDBACK_FOLDER}/*.json"):
            folders |= {path.parent.parent for path in root.glob(pattern)}
        for folder in sorted(folders):
            with suppress(OSError):
                secure_directory(folder)
                yield folder


class QueuedElsewhere(NamedTuple):
    """Requests that no process sends with the current settings."""

    target: str
    folder: Path
    span_count: int
    journal_count: int


def find_queued_elsewhere(settings: Settings) -> Iterator[QueuedElsewhere]:
    """Yield the folders of other addresses and credentials with requests that no process sends now."""
    for folder in _folders(settings):
        if folder.name != folder_name_for(settings):
            span_count = Index(list_entries(folder)).totals.span_count
            journal_count = len(list((folder / JOURNAL_FOLDER).glob("*")))
            if (span_count or journal_count) and _find_sender(folder) == "none":
                yield QueuedElsewhere(_describe_target(folder), folder, span_count, journal_count)


def _describe_target(folder: Path) -> str:
    return _read_text(folder / ABOUT_FILE) if (folder / ABOUT_FILE).exists() else clean(folder.name)


def _is_target(folder: Path, source: str) -> bool:
    """Return whether a folder is meant by its name or path, or by the address or host and port of its target."""
    address = _describe_target(folder).removeprefix("spans for ").partition(", sent with ")[0]
    addresses = (address, address.removesuffix(TRACES_PATH), urlsplit(address).netloc)
    return source.rstrip("/") in filter(None, (folder.name, str(folder), *addresses))


def _adopt_requests(settings: Settings, source: str) -> bool:
    """Move what is queued for another target to the queue of the current settings; naming the target is the consent.

    Returns False if the queue has no room for all of it.
    """
    current_name = folder_name_for(settings)
    folders = [folder for folder in _folders(settings) if folder.name != current_name and _is_target(folder, source)]
    if not folders:
        message = f"nothing is queued for {clean(source)}: `mlflow-otlp spool status` lists the targets"
        raise ConfigurationError(message, MessageCode.SPOOL_UNAVAILABLE)
    destination = create_spool_directory(settings.disk.spool_dir, current_name, os.environ)
    queue = Index(list_entries(destination))
    span_count = file_count = feedback_count = remaining_count = 0
    for folder in folders:
        lock = FileLock(folder / _LOCK_FILE)
        if not lock.acquire():
            message = f"{_describe_target(folder)}: process {_read_text(lock.path)} sends these requests"
            raise ConfigurationError(message, MessageCode.SPOOL_UNAVAILABLE)
        try:
            for entry in Index(list_entries(folder)):
                # Beyond its limits, the queue would drop its oldest requests for the next new one.
                has_room = queue.totals.size_bytes + entry.size_bytes <= settings.disk.spool_max_bytes
                if not has_room or queue.totals.file_count >= MAX_FILES:
                    remaining_count += entry.span_count
                    continue
                _move(folder / entry.name, destination / entry.name)
                queue.add(entry)
                span_count, file_count = span_count + entry.span_count, file_count + 1
            for journal in find_abandoned_journals(folder / JOURNAL_FOLDER, "", {}):
                create_private_directory(destination / JOURNAL_FOLDER)
                for path in journal.paths:
                    _move(path, destination / JOURNAL_FOLDER / path.name)
                    file_count += 1
                journal.release_files()
            for path in _feedback_files(folder):
                create_private_directory(destination / FEEDBACK_FOLDER)
                _move(path, destination / FEEDBACK_FOLDER / path.name)
                feedback_count += 1
        finally:
            lock.release()
    print(f"{_format_files(span_count, file_count, feedback_count)} taken over from {clean(source)}")
    if remaining_count:
        print(
            f"{pluralize(remaining_count, 'span')} not taken over, because the spool is full (limit: "
            f"{settings.disk.spool_max_bytes} bytes, {MAX_FILES} files). Raise MLFLOW_OTLP_SPOOL_MAX_BYTES, or run the "
            "command again when these requests are sent."
        )
    return not remaining_count


def _format_files(span_count: int, file_count: int, feedback_count: int) -> str:
    feedback = f" and {pluralize(feedback_count, 'feedback file')}" if feedback_count else ""
    return f"{pluralize(span_count, 'span')} in {pluralize(file_count, 'file')}{feedback}"


def _move(path: Path, destination: Path) -> None:
    try:
        path.replace(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        atomic_write(
            destination, read_regular_file(path, spool_file.MAX_FILE_BYTES), f"{os.getpid():x}-{os.urandom(4).hex()}"
        )
        path.unlink()


def _read_text(path: Path) -> str:
    try:
        return clean(read_regular_file(path, _MAX_TEXT_BYTES).decode(errors="replace").strip())
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _feedback_files(folder: Path) -> list[Path]:
    with suppress(OSError):
        secure_directory(folder / FEEDBACK_FOLDER)
        return sorted((folder / FEEDBACK_FOLDER).glob("*.json"))
    return []


def _describe_folder(folder: Path, *, is_current: bool) -> dict[str, Any]:
    def count(subfolder: str) -> dict[str, Any]:
        totals = Index(list_entries(folder / subfolder)).totals
        return {"spans": totals.span_count, "requests": totals.file_count, "bytes": totals.size_bytes}

    oldest_at = Index(list_entries(folder)).totals.oldest_at
    journals = list((folder / JOURNAL_FOLDER).glob("*"))
    return {
        "target": _describe_target(folder),
        "current": is_current,
        "folder": str(folder),
        "queued": count("") | {"oldest_seconds": round(max(0.0, time.time() - oldest_at), 1) if oldest_at else None},
        REJECTED_FOLDER: count(REJECTED_FOLDER),
        DAMAGED_FOLDER: count(DAMAGED_FOLDER),
        "journal": {"bytes": sum(path.lstat().st_size for path in journals), "files": len(journals)},
        "feedback": {"files": len(_feedback_files(folder))},
        "sender": _find_sender(folder),
    }


def _print_status(settings: Settings, *, as_json: bool) -> int:
    current_name = folder_name_for(settings)
    targets = [_describe_folder(folder, is_current=folder.name == current_name) for folder in _folders(settings)]
    kinds = ("queued", REJECTED_FOLDER, DAMAGED_FOLDER)
    totals = {
        kind: {unit: sum(target[kind][unit] for target in targets) for unit in ("spans", "requests", "bytes")}
        for kind in kinds
    }
    if as_json:
        print(json.dumps({"targets": targets, "totals": totals}, indent=2))
        return 0
    for target in targets:
        print(f"{paint(target['target'], 'bold')}{' (current settings)' if target['current'] else ''}")
        oldest, journal = target["queued"]["oldest_seconds"], target["journal"]
        age = "" if oldest is None else f", oldest {_format_age(oldest)} ago"
        rows = {
            "folder": clean(target["folder"]),
            "queued": f"{_format_counts(target['queued'], 'request')}{age}",
            "dead letters": _format_counts(target[REJECTED_FOLDER], "file"),
            "damaged": _format_counts(target[DAMAGED_FOLDER], "file"),
        }
        if journal["files"]:
            rows["journal"] = f"{journal['bytes']} bytes in {pluralize(journal['files'], 'file')}"
        if target["feedback"]["files"]:
            rows["feedback"] = pluralize(target["feedback"]["files"], "file")
        rows["sender"] = target["sender"]
        has_files = oldest is not None or journal["files"] or target["feedback"]["files"]
        if not target["current"] and target["sender"] == "none" and has_files:
            rows["to send"] = f"mlflow-otlp spool flush --from {clean(Path(target['folder']).name)}"
        for label, text in rows.items():
            print(f"  {label:12} {text}")
    if len(targets) > 1:
        print(f"total: {_format_counts(totals['queued'], 'request')} queued")
    if not targets:
        print("no spool: no requests are queued")
    return 0


def _format_counts(counts: Mapping[str, int], noun: str) -> str:
    return f"{pluralize(counts['spans'], 'span')} in {pluralize(counts['requests'], noun)}, {counts['bytes']} bytes"


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


def _format_age(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return pluralize(round(seconds), "second")


def _format_time(timestamp: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
    except (OSError, OverflowError, ValueError):  # a damaged header, whose checksum is not verified here
        return "unknown time"


def _print_requests(settings: Settings, subfolder: str, selection: _Selection, *, as_json: bool) -> int:
    requests: list[dict[str, Any]] = []
    for folder in _folders(settings):
        unsafe_names: dict[str, str] = {}
        for entry in Index(list_entries(folder / subfolder, unsafe_names)):
            path = folder / subfolder / entry.name
            if selection.matches(path):
                requests.append(_describe_request(path))
        if not selection:
            requests += [{"file": name, "skipped": problem} for problem, name in unsafe_names.items()]
            if not subfolder:
                requests += map(_describe_feedback, _feedback_files(folder))
    if as_json:
        print(json.dumps(requests, indent=2))
        return 0
    for request in requests:
        print(clean(_format_request(request)))
    return 0


def _describe_request(path: Path) -> dict[str, Any]:
    try:
        header, state = _read_header(path)
    except _UNREADABLE as error:
        return {"file": path.name, "unreadable": str(error)}
    return {
        "file": path.name,
        "created": _format_time(header.created_at),
        "spans": header.span_count,
        "traces": [f"tr-{trace_id:032x}" for trace_id in header.trace_ids],
        "experiment": _experiment_names(header.destination)[0],
        "workspace": header.destination.workspace,
        "attempts": state.attempts,
        "may_have_arrived": state.may_have_arrived,
        "message": header.message,
    }


def _describe_feedback(path: Path) -> dict[str, Any]:
    try:
        assessment = json.loads(read_regular_file(path, _MAX_FEEDBACK_BYTES))["assessment"]
        name, trace = str(assessment["assessment_name"]), str(assessment["trace_id"])
        return {"file": path.name, "created": _format_time(path.stat().st_mtime), "feedback": name, "traces": [trace]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return {"file": path.name, "unreadable": str(error)}


def _format_request(request: Mapping[str, Any]) -> str:
    if "skipped" in request:
        return f"{request['file']}  is skipped: {request['skipped']}"
    if "unreadable" in request:
        return f"{request['file']}  cannot be read: {request['unreadable']}"
    if "feedback" in request:
        return f"{request['created']}  feedback {request['feedback']!r} on {request['traces'][0]}"
    traces, workspace = request["traces"], request["workspace"]
    columns = [
        request["created"],
        f"{pluralize(request['spans'], 'span')} of {pluralize(len(traces), 'trace')}",
        traces[0] if traces else "-",
        f"experiment {request['experiment']}" + (f" of workspace {workspace}" if workspace else ""),
        pluralize(request["attempts"], "attempt") + (", may have arrived" if request["may_have_arrived"] else ""),
        request["message"],
    ]
    return "  ".join(filter(None, columns))


def _flush(settings: Settings, timeout_seconds: float) -> int:
    deadline, pause = time.monotonic() + timeout_seconds, threading.Event()
    next_report = time.monotonic() + _PROGRESS_SECONDS
    pipeline = Pipeline(settings, None)
    try:
        assert pipeline.persistent_queue is not None
        assert pipeline.spool_consumer is not None
        spool, consumer = pipeline.persistent_queue.storage, pipeline.spool_consumer
        consumer.wake()
        # The first tick recovers the journals of killed processes.
        while (not consumer.has_ticked or spool.totals().file_count) and time.monotonic() < deadline:
            if _is_stuck(pipeline.retry_sender.backoff, spool.find_folder()):
                break  # the reason was logged
            if time.monotonic() >= next_report:
                next_report += _PROGRESS_SECONDS
                sent_count, queued = pipeline.stats().delivered, spool.totals()
                progress = f"{pluralize(sent_count, 'span')} sent, {queued.span_count} still queued ..."
                print(progress, file=sys.stderr, flush=True)
            pause.wait(_POLL_SECONDS)
        remaining = spool.totals()
        pipeline.wait_for_rest_calls(deadline - time.monotonic())
        folder = spool.find_folder()
        feedback_count = len(_feedback_files(folder)) if folder is not None else 0
    finally:
        pipeline.shutdown(1.0)
    print(
        f"{pluralize(pipeline.stats().delivered, 'span')} sent, {remaining.span_count} queued in "
        f"{pluralize(remaining.file_count, 'request')}"
    )
    if feedback_count or pipeline.stats().feedback:
        print(f"{pluralize(pipeline.stats().feedback, 'feedback file')} sent, {feedback_count} still on disk")
    return 1 if remaining.file_count or feedback_count else 0


def _is_stuck(backoff: BackoffState[Destination, ExportOutcome], folder: Path | None) -> bool:
    """Whether the server fails, or each destination with queued requests does."""
    destinations = list(backoff.failure_counts)
    outcomes = map(backoff.last_failure, destinations)
    if any(outcome is None or outcome.cause is not FailureKind.DESTINATION for outcome in outcomes):
        return True
    failing = set(map(hash_destination, destinations))
    return bool(failing) and all(entry.destination_hash in failing for entry in list_entries(folder or Path()))


def _retry(settings: Settings, selection: _Selection, timeout_seconds: float, *, is_confirmed: bool) -> int:
    """Move dead letters back to the queue, and send it."""
    folder = next((folder for folder in _folders(settings) if folder.name == folder_name_for(settings)), None)
    span_count = file_count = 0
    for entry in Index(list_entries(folder / REJECTED_FOLDER)) if folder is not None else ():
        path = folder / REJECTED_FOLDER / entry.name if folder is not None else Path()
        if selection.matches(path):
            span_count, file_count = span_count + entry.span_count, file_count + 1
            if is_confirmed and folder is not None:
                path.replace(folder / entry.name)
    counts = f"{pluralize(span_count, 'span')} in {pluralize(file_count, 'file')}"
    if not is_confirmed:
        print(f"{counts} would be sent again; run again with --yes to send")
        return 0
    print(f"{counts} queued again")
    return _flush(settings, timeout_seconds) if file_count else 0


def _delete_feedback(folder: Path, *, is_confirmed: bool) -> int:
    paths = _feedback_files(folder)
    for path in paths if is_confirmed else ():
        path.unlink(missing_ok=True)
    return len(paths)


def _purge(settings: Settings, selection: _Selection, *, rejected: bool, confirmed: bool) -> int:
    span_count = file_count = feedback_count = 0
    for folder in _folders(settings):
        if folder.name != folder_name_for(settings):
            continue
        has_journals = not rejected and not selection
        feedback_count += _delete_feedback(folder, is_confirmed=confirmed) if has_journals else 0
        for journal in find_abandoned_journals(folder / JOURNAL_FOLDER, "", {}) if has_journals else ():
            with suppress(OSError):
                span_count += sum(len(trace.spans) for trace in journal.read_traces())
                file_count += len(journal.paths)
            if confirmed:
                journal.remove_files()
            else:
                journal.release_files()
        for subfolder in (REJECTED_FOLDER, DAMAGED_FOLDER) if rejected else ("",):
            for entry in list_entries(folder / subfolder):
                path = folder / subfolder / entry.name
                if not selection.matches(path):
                    continue
                span_count, file_count = span_count + entry.span_count, file_count + 1
                if confirmed:
                    path.unlink(missing_ok=True)
    outcome = "deleted" if confirmed else "would be deleted; run again with --yes to delete"
    print(f"{_format_files(span_count, file_count, feedback_count)} {outcome}")
    return 0
