"""What is asked of MLflow's REST side besides sending spans, in the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog, logger
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.mlflow_api.assessment_files import AssessmentFiles
from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import AssessmentSender, AssessmentTask
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment
from mlflow_otlp_exporter._internal.mlflow_api.background import BackgroundTasks
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_updater import TraceUpdater
from mlflow_otlp_exporter._internal.model.destination import EXPERIMENT_HEADER, Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome
from mlflow_otlp_exporter._internal.spool.storage import SpoolStorage
from mlflow_otlp_exporter._internal.transport.messages import Transport

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader

# Between the delivery of a trace's root and the call that follows: others share its reading, and live spans go first.
_FOLLOW_UP_SECONDS = 2.0
# Before feedback is sent: that on a trace in progress comes before it.
_FEEDBACK_SECONDS = 1.0
# Calls that wait in memory.
_MOST = 10_000


class MlflowRestClient:
    """Follow-ups of traces, where they are wanted, feedback, and the desk that all calls go over.

    Args:
        api: MLflow's REST side.
        settings: All settings.
        experiments: Turns names into ids.
        stored: Tells the server's version.
        report: Where calls are counted.
        spool: Where feedback is kept that has to wait; None to keep it in memory.

    Attributes:
        uploads: AttachmentUploader images, sounds and files, where that is wanted.
    """

    def __init__(
        self,
        api: Transport,
        settings: Settings,
        experiments: ExperimentResolver,
        stored: ServerInfo,
        report: ProblemLog,
        spool: SpoolStorage | None = None,
    ) -> None:
        self._desk = BackgroundTasks(settings.timeout)
        self._experiments = experiments
        self._own_experiment = settings.traces.headers.get(EXPERIMENT_HEADER)
        self._files: AssessmentFiles | None = None
        if spool is not None:
            self._files = AssessmentFiles(spool.ensure_folder, spool.find_folder, settings.disk.spool_max_age)
        self._feedback = AssessmentSender(api, report, self._files)
        self._looked = self._files is None
        self.uploads: AttachmentUploader | None = None
        if settings.uploads:
            # Few apps need it.
            from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import create_uploader

            self.uploads = create_uploader(settings, api, self.experiment, stored, report)
        self._follow_ups: TraceUpdater | None = None
        wanted = settings.enrichment.trace_info
        # What is only guessed to be MLflow, behind a Collector's address, is asked only if that is wanted.
        if wanted or (wanted is None and settings.api_certain):
            self._follow_ups = TraceUpdater(api, self.experiment, stored, report, everything=bool(wanted))

    def experiment(self, destination: Destination, seconds: float) -> str | ExportOutcome | None:
        """The id of the experiment that spans for a destination go to.

        Args:
            destination: Where they go.
            seconds: How long a request may take.

        Returns:
            See `ExperimentResolver.id_of`.
        """
        return self._own_experiment or self._experiments.id_of(destination, seconds)

    def delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> None:
        """Takes note of spans that have arrived; never raises.

        Args:
            destination: Where they went.
            spans: The spans.
        """
        try:
            self._take_up()
            turn = self._follow_ups.delivered(destination, spans) if self._follow_ups is not None else None
        except Exception:  # noqa: BLE001 - what follows spans must never cost them
            said = "what follows spans is left out, by a mistake in this library; please report it"
            logger.exception(add_code(MessageCode.INTERNAL_ERROR, said))
            return
        if turn is not None:
            self._desk.put(("traces", destination), turn, wait=_FOLLOW_UP_SECONDS)

    def assess(self, assessment: Assessment) -> None:
        """Sends feedback in the background.

        Args:
            assessment: What is sent.
        """
        self._take_up()
        if self._desk.count >= _MOST:
            self._feedback.give_up(AssessmentTask(self._feedback, assessment))
            return
        self._send(assessment)

    def _take_up(self) -> None:
        """Once: what another run has left on disk. Not at the start, as an app may fork until it sends something."""
        if not self._looked and self._files is not None:
            self._looked = True
            for each in self._files.left():
                self._send(each, kept=True)

    def _send(self, assessment: Assessment, *, kept: bool = False) -> None:
        self._desk.put(
            ("feedback", assessment.id), AssessmentTask(self._feedback, assessment, kept=kept), wait=_FEEDBACK_SECONDS
        )

    def wait(self, seconds: float) -> bool:
        """Waits for the calls that are to be made now; see `BackgroundTasks.wait`."""
        return self._desk.wait(seconds)

    def close(self, seconds: float) -> None:
        """Makes the calls that can be made within the time, and gives up the rest."""
        self._desk.close(seconds)
