"""Sending of feedback and expectations in the background, with retries; meanwhile they are stored on disk."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.files import (
    UnsafeFileError,
    atomic_write,
    create_private_directory,
    read_regular_file,
    secure_directory,
)
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, logger, pluralize
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
from mlflow_otlp_exporter._internal.mlflow_api.background import retry_later
from mlflow_otlp_exporter._internal.mlflow_api.server import request_json
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import Transport

# How long the sender waits for a missing trace, and for the end of a rejection.
_MAX_REJECTED_SECONDS = 300.0
_DIRECTORY_NAME, _SUFFIX = "feedback", ".json"
_MAX_FILES, _MAX_FILE_BYTES = 10_000, 4 << 20
_TRACE_ID = r"tr-[0-9a-f]{32}"


class AssessmentFiles:
    """Assessments in the spool directory, one small file each, which the next run reads; never raises.

    The files need no lock: every process that reads a file sends it, and MLflow stores an assessment once by its id.
    Both functions return the spool directory, which `create_directory` creates if necessary.
    """

    def __init__(
        self,
        create_directory: Callable[[], Path],
        find_directory: Callable[[], Path | None],
        max_age_seconds: float,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._create_directory, self._find_directory = create_directory, find_directory
        self._max_age_seconds, self._clock = max_age_seconds, clock

    def write(self, assessment: Assessment) -> bool:
        """Store an assessment; whether that succeeded."""
        try:
            directory = self._create_directory() / _DIRECTORY_NAME
            create_private_directory(directory)
            path = directory / f"{assessment.id}{_SUFFIX}"
            content = json.dumps({"workspace": assessment.workspace, "assessment": assessment.body}).encode()
            with os.scandir(directory) as entries:
                if sum(1 for _ in entries) >= _MAX_FILES or len(content) > _MAX_FILE_BYTES:
                    return False
            atomic_write(path, content, f"{os.getpid():x}-{os.urandom(4).hex()}")
        except (OSError, ValueError):
            return False
        return True

    def delete(self, assessment: Assessment) -> None:
        with suppress(OSError):
            directory = self._find_directory()
            if directory is not None:
                (directory / _DIRECTORY_NAME / f"{assessment.id}{_SUFFIX}").unlink(missing_ok=True)

    def read(self, loaded_ids: Container[str] = ()) -> Iterator[Assessment]:
        """Yield the stored assessments with other ids; damaged and old files are deleted, which is logged."""
        reasons: list[str] = []
        for path in self._list_paths():
            try:
                if self._clock() - path.lstat().st_mtime > self._max_age_seconds:
                    reasons.append("too old")
                else:
                    if path.stem not in loaded_ids:
                        yield _parse_assessment(read_regular_file(path, _MAX_FILE_BYTES), path.stem)
                    continue
            except UnsafeFileError as error:
                reasons.append(str(error.strerror))
            except OSError:
                continue  # another process sent it meanwhile, or it stays for a later run
            except (ValueError, KeyError, TypeError, RecursionError):
                reasons.append("damaged")
            with suppress(OSError):
                path.unlink()
        if reasons:
            _log_dropped(f"{pluralize(len(reasons), 'stored file')} deleted ({', '.join(sorted(set(reasons)))}).")

    def _list_paths(self) -> list[Path]:
        try:
            directory = self._find_directory()
            if directory is not None:
                secure_directory(directory / _DIRECTORY_NAME)
                return sorted((directory / _DIRECTORY_NAME).glob(f"*{_SUFFIX}"))
        except FileNotFoundError:
            pass
        except OSError as error:
            _log_dropped(f"the stored feedback cannot be read ({error})")
        return []


def _parse_assessment(content: bytes, assessment_id: str) -> Assessment:
    values = json.loads(content)
    body, workspace = dict(values["assessment"]), values["workspace"]
    trace_id = body["trace_id"]
    if body["assessment_id"] != assessment_id or not re.fullmatch(_TRACE_ID, trace_id):
        raise ValueError
    if not (workspace is None or isinstance(workspace, str)):
        raise TypeError
    return Assessment(workspace, trace_id, body)


def _log_dropped(reason: str) -> None:
    logger.warning("%s", add_code(MessageCode.FEEDBACK_DROPPED, f"Feedback dropped: {reason}"))


class AssessmentSender:
    """Sends assessments; `files=None` keeps those that wait in memory only."""

    def __init__(
        self,
        api: Transport,
        problem_log: ProblemLog,
        files: AssessmentFiles | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._problem_log, self._files, self._clock = api, problem_log, files, clock

    def send(self, task: AssessmentTask, timeout_seconds: float) -> SendResult:
        assessment = task.assessment
        workspace = assessment.workspace
        path = f"/api/3.0/mlflow/traces/{quote(assessment.trace_id)}/assessments"
        body = {"assessment": assessment.body}
        result = request_json(self._api, "POST", path, body, workspace=workspace, timeout_seconds=timeout_seconds)
        outcome = result.outcome
        if not result.is_ok and _is_id_taken(outcome):
            # Its id is taken: an earlier response was lost, or another process has sent the file.
            result = request_json(
                self._api, "GET", f"{path}/{assessment.id}", None, workspace=workspace, timeout_seconds=timeout_seconds
            )
        if result.is_ok:
            self._problem_log.stats.add(feedback=1)
            self._delete(task)
            return SendResult()
        is_missing = _is_trace_missing(outcome)
        if outcome.disposition is not Disposition.RETRYABLE and not is_missing:
            self._drop(task, outcome.message)
            return SendResult()
        if is_missing or outcome.cause in (FailureKind.DESTINATION, FailureKind.NOT_MLFLOW):
            now = self._clock()
            task.rejected_since = now if task.rejected_since is None else task.rejected_since
            if now - task.rejected_since > _MAX_REJECTED_SECONDS:
                self._drop(task, outcome.message)
                return SendResult()
        else:
            task.rejected_since = None
        self._persist(task)
        return retry_later(task, outcome)

    def _persist(self, task: AssessmentTask) -> None:
        if self._files is not None and not task.is_stored:
            task.is_stored = self._files.write(task.assessment)

    def _delete(self, task: AssessmentTask) -> None:
        if self._files is not None:
            self._files.delete(task.assessment)

    def _drop(self, task: AssessmentTask, reason: str) -> None:
        self._delete(task)
        self._problem_log.stats.add(feedback_dropped=1)
        self._problem_log.log_once(
            logging.WARNING, add_code(MessageCode.FEEDBACK_DROPPED, f"Feedback dropped: {reason}")
        )

    def give_up(self, task: AssessmentTask) -> None:
        """End a task unfinished: the assessment stays on disk for the next run, or is dropped."""
        self._persist(task)
        if not task.is_stored:
            self._drop(task, "it could not be sent before shutdown, or too many requests are queued")


class AssessmentTask:
    """An assessment to be sent."""

    not_before = 0.0
    failures = 0  # consecutive
    rejected_since: float | None = None

    def __init__(self, sender: AssessmentSender, assessment: Assessment, *, is_stored: bool = False) -> None:
        self.sender, self.assessment = sender, assessment
        self.is_stored = is_stored  # on disk

    def run(self, timeout_seconds: float) -> SendResult:
        return self.sender.send(self, timeout_seconds)

    def give_up(self) -> None:
        self.sender.give_up(self)


def _is_id_taken(outcome: ExportOutcome) -> bool:
    """Whether the server may have this assessment; the words are those of its database, or of MLflow 3.17."""
    message = outcome.message.lower()
    return any(words in message for words in ("unique constraint", "duplicate", "constraint violation"))


def _is_trace_missing(outcome: ExportOutcome) -> bool:
    """MLflow 3.10 and 3.13 return the message of the database."""
    return outcome.status == 404 or "foreign key" in outcome.message.lower()
