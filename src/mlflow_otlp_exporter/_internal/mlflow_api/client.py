"""MLflow's REST API as the pipeline uses it: trace metadata, assessments and attachments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, log_exception
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import (
    AssessmentFiles,
    AssessmentSender,
    AssessmentTask,
)
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
from mlflow_otlp_exporter._internal.mlflow_api.background import BackgroundTasks
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.late_roots import DELAY_SECONDS, LateRootCorrector
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_completer import TraceCompleter
from mlflow_otlp_exporter._internal.mlflow_api.trace_updater import TraceUpdater
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import Transport

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader

# Delay of metadata updates after a trace's root was delivered: one search serves many traces, and spans go first.
_UPDATE_DELAY_SECONDS = 2.0
# Delay of feedback, which may be given on a trace that is still in progress.
_FEEDBACK_DELAY_SECONDS = 1.0
_MAX_TASKS = 10_000


class MlflowRestClient:
    """Sends trace metadata updates and assessments in the background; `files=None` keeps assessments in memory."""

    def __init__(
        self,
        api: Transport,
        settings: Settings,
        experiments: ExperimentResolver,
        server: ServerInfo,
        problem_log: ProblemLog,
        files: AssessmentFiles | None,
        send_spans: Callable[[Destination, bytes, float], ExportOutcome],
    ) -> None:
        self._tasks, self._timeout_seconds = BackgroundTasks(settings.timeout), settings.timeout
        self._root_wait_seconds = settings.enrichment.root_wait
        self._experiments = experiments
        self._header_experiment_id = settings.traces.headers.get(EXPERIMENT_HEADER)
        self._files, self._has_loaded_files = files, files is None
        self._assessment_ids: dict[str, None] = {}  # of those that this process has sent, or is about to send
        self._assessments = AssessmentSender(api, problem_log, files)
        self.uploader: AttachmentUploader | None = None  # None if attachments are off
        if settings.uploads_attachments:
            # Imported here, because few applications need it.
            from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader

            max_length, same_server = settings.privacy.base64_max_length, settings.has_same_server
            self.uploader = AttachmentUploader(
                api, self.resolve_experiment, server, problem_log, max_inline_length=max_length, same_server=same_server
            )
        self._updater: TraceUpdater | None = None
        self._completer: TraceCompleter | None = None
        self._corrector: LateRootCorrector | None = None
        trace_info = settings.enrichment.trace_info
        # A REST API that is only guessed, behind a Collector's address, is used only if the user asks for it.
        if trace_info or settings.is_api_certain:
            self._updater = TraceUpdater(api, self.resolve_experiment, server, problem_log, everything=trace_info)
        if self._updater is not None and settings.enrichment.root_wait < math.inf:
            self._corrector = LateRootCorrector(api, self.resolve_experiment, server)
            self._completer = TraceCompleter(
                api,
                send_spans,
                server,
                problem_log,
                wait_seconds=settings.enrichment.root_wait,
                on_completed=self._update_completed,
            )

    def resolve_experiment(self, destination: Destination, timeout_seconds: float) -> str | ExportOutcome | None:
        """The id of a destination's experiment; see `ExperimentResolver.resolve`."""
        header_id = None if destination.trace_experiment_id else self._header_experiment_id
        return header_id or self._experiments.resolve(destination, timeout_seconds)

    def on_delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> None:
        """Schedule the metadata updates of delivered spans; never raises."""
        try:
            self._load_pending_assessments()
            task = self._updater.add_delivered(destination, spans) if self._updater is not None else None
            if task is not None:
                self._tasks.enqueue(("traces", destination), task, delay_seconds=_UPDATE_DELAY_SECONDS)
            completion = self._completer.add_delivered(destination, spans) if self._completer is not None else None
            if completion is not None:
                self._tasks.enqueue(("local roots", destination), completion, delay_seconds=self._root_wait_seconds)
            correction = self._corrector.add_delivered(destination, spans) if self._corrector is not None else None
            if correction is not None:
                self._tasks.enqueue(("roots", destination), correction, delay_seconds=DELAY_SECONDS)
        except Exception as error:  # noqa: BLE001 - a failed update must never affect the spans
            log_exception(error, "schedule a trace metadata update")

    def _update_completed(self, destination: Destination, spans: Sequence[EncodedSpan]) -> None:
        task = self._updater.add_delivered(destination, spans) if self._updater is not None else None
        if task is None:
            return
        if self._completer is not None and self._completer.is_closing:
            task.run(self._timeout_seconds)  # the queue accepts no more tasks
        else:
            self._tasks.enqueue(("traces", destination), task, delay_seconds=_UPDATE_DELAY_SECONDS)

    def send_assessment(self, assessment: Assessment) -> None:
        self._load_pending_assessments()
        if self._tasks.pending_count >= _MAX_TASKS:
            self._assessments.give_up(AssessmentTask(self._assessments, assessment))
            return
        self._enqueue_assessment(assessment)

    def _load_pending_assessments(self) -> None:
        """Load once what another run has stored; not at start, because an application may fork before its first use."""
        if not self._has_loaded_files:
            self.load_stored_assessments()

    def load_stored_assessments(self) -> None:
        """Load what other runs have stored since the last call."""
        self._has_loaded_files = True
        if self._files is not None and self._tasks.pending_count < _MAX_TASKS:
            for assessment in self._files.read(self._assessment_ids):
                if self._tasks.pending_count < _MAX_TASKS:
                    self._enqueue_assessment(assessment, is_stored=True)

    def _enqueue_assessment(self, assessment: Assessment, *, is_stored: bool = False) -> None:
        evict_oldest(self._assessment_ids, _MAX_TASKS)[assessment.id] = None
        task = AssessmentTask(self._assessments, assessment, is_stored=is_stored)
        self._tasks.enqueue(("feedback", assessment.id), task, delay_seconds=_FEEDBACK_DELAY_SECONDS)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the queued tasks; see `BackgroundTasks.wait`."""
        return self._tasks.wait(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Finish tasks within the time, and give up the remaining ones."""
        if self._completer is not None:
            self._completer.is_closing = True
        self._tasks.close(timeout_seconds)
