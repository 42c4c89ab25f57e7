"""Send feedback and expectations to MLflow in the background, with retries; meanwhile they are stored on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from mlflow_otlp_exporter._internal.common.backoff import compute_backoff
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.mlflow_api.assessment_files import AssessmentFiles
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
from mlflow_otlp_exporter._internal.mlflow_api.background import Task
from mlflow_otlp_exporter._internal.mlflow_api.rest_client import request_json
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import Transport

# How long a trace is waited for, and how long a refusal is taken for one that may end.
_PATIENCE = 300.0


class AssessmentSender:
    """Sends assessments.

    Args:
        api: MLflow's REST side.
        report: Where they are counted.
        files: Where they are kept; None to keep them in memory only.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        api: Transport,
        report: ProblemLog,
        files: AssessmentFiles | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._report, self._files, self._clock = api, report, files, clock

    def step(self, note: AssessmentTask, seconds: float) -> SendResult[Task]:
        """Sends one, and decides."""
        found = note.assessment
        path = f"/api/3.0/mlflow/traces/{quote(found.trace)}/assessments"
        reply = request_json(
            self._api, "POST", path, {"assessment": found.body}, workspace=found.workspace, seconds=seconds
        )
        outcome = reply.outcome
        if not reply.fine and _may_be_there(outcome):
            # Its id is taken: an earlier answer was lost, or another process has sent what was on disk.
            reply = request_json(
                self._api, "GET", f"{path}/{found.id}", None, workspace=found.workspace, seconds=seconds
            )
        if reply.fine:
            self._report.count(feedback=1)
            self._forget(note)
            return SendResult()
        missing = _lacks_trace(outcome)
        if outcome.verdict is not Disposition.RETRY and not missing:
            self._lose(note, outcome.message)
            return SendResult()
        if missing or outcome.cause in (FailureKind.DESTINATION, FailureKind.NOT_MLFLOW):
            now = self._clock()
            note.refused_at = now if note.refused_at is None else note.refused_at
            if now - note.refused_at > _PATIENCE:
                self._lose(note, outcome.message)
                return SendResult()
        else:
            note.refused_at = None
        self._keep(note)
        wait = max(compute_backoff(note.failures, 0.5), outcome.retry_after or 0.0)
        note.failures += 1
        return SendResult((note,), retry_after=wait, requeue_last=True)

    def _keep(self, note: AssessmentTask) -> None:
        if self._files is not None and not note.kept:
            note.kept = self._files.put(note.assessment)

    def _forget(self, note: AssessmentTask) -> None:
        if self._files is not None:
            self._files.remove(note.assessment)

    def _lose(self, note: AssessmentTask, why: str) -> None:
        self._forget(note)
        self._report.count(feedback_dropped=1)
        self._report.once(logging.WARNING, add_code(MessageCode.FEEDBACK_DROPPED, f"feedback is lost: {why}"))

    def give_up(self, note: AssessmentTask) -> None:
        """Ends undone: it stays on disk for later, or is lost."""
        self._keep(note)
        if not note.kept:
            self._lose(note, "it could not be sent before the end, or too much waits")


@dataclass(eq=False)
class AssessmentTask:
    """An assessment that is to be sent.

    Attributes:
        owner: Sends it.
        assessment: What is sent.
        not_before: When its turn is.
        failures: How often in a row that was in vain.
        ticket: Counts it.
        refused_at: Since when it was answered, but not taken.
        kept: Whether it is on disk.
    """

    owner: AssessmentSender
    assessment: Assessment
    not_before: float = 0.0
    failures: int = 0
    ticket: Ticket | None = None
    refused_at: float | None = None
    kept: bool = False

    def run(self, seconds: float) -> SendResult[Task]:
        """Sends it."""
        return self.owner.step(self, seconds)

    def give_up(self) -> None:
        """Ends undone."""
        self.owner.give_up(self)


def _may_be_there(outcome: ExportOutcome) -> bool:
    """Whether the server may have this very assessment: the words are its database's, or those of 3.17."""
    said = outcome.message.lower()
    return any(words in said for words in ("unique constraint", "duplicate", "constraint violation"))


def _lacks_trace(outcome: ExportOutcome) -> bool:
    """Whether the trace is not there yet. MLflow 3.10 and 3.13 leave that to the database to say."""
    return outcome.status == 404 or "foreign key" in outcome.message.lower()
