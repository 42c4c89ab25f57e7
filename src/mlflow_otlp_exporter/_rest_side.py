"""What is asked of MLflow's REST side besides sending spans, in the background."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_otlp_exporter._codes import Code
from mlflow_otlp_exporter._desk import Desk
from mlflow_otlp_exporter._destination import EXPERIMENT_HEADER, Destination, Experiments
from mlflow_otlp_exporter._encoder import EncodedSpan
from mlflow_otlp_exporter._follow_up import FollowUps
from mlflow_otlp_exporter._report import Report, logger
from mlflow_otlp_exporter._response import Outcome
from mlflow_otlp_exporter._settings import Settings
from mlflow_otlp_exporter._stored import Stored
from mlflow_otlp_exporter._transport import Transport

# Between the delivery of a trace's root and the call that follows: others share its reading, and live spans go first.
_FOLLOW_UP_SECONDS = 2.0


class RestSide:
    """Follow-ups of traces, where they are wanted, and the desk that all calls go over.

    Args:
        api: MLflow's REST side.
        settings: All settings.
        experiments: Turns names into ids.
        stored: Tells the server's version.
        report: Where calls are counted.
    """

    def __init__(
        self, api: Transport, settings: Settings, experiments: Experiments, stored: Stored, report: Report
    ) -> None:
        self._desk = Desk(settings.timeout)
        self._experiments = experiments
        self._own_experiment = settings.traces.headers.get(EXPERIMENT_HEADER)
        self._follow_ups: FollowUps | None = None
        wanted = settings.enrichment.trace_info
        # What is only guessed to be MLflow, behind a Collector's address, is asked only if that is wanted.
        if wanted or (wanted is None and settings.api_certain):
            self._follow_ups = FollowUps(api, self._experiment, stored, report, everything=bool(wanted))

    @property
    def follows_up(self) -> bool:
        """Whether traces are followed up."""
        return self._follow_ups is not None

    def _experiment(self, destination: Destination, seconds: float) -> str | Outcome | None:
        """The id of the experiment that spans for a destination go to."""
        return self._own_experiment or self._experiments.id_of(destination, seconds)

    def delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> None:
        """Takes note of spans that have arrived; never raises.

        Args:
            destination: Where they went.
            spans: The spans.
        """
        if self._follow_ups is None:
            return
        try:
            turn = self._follow_ups.delivered(destination, spans)
        except Exception:  # noqa: BLE001 - what follows spans must never cost them
            said = "what follows spans is left out, by a mistake in this library; please report it [%s]"
            logger.exception(said, Code.MISTAKE)
            return
        if turn is not None:
            self._desk.put(("traces", destination), turn, wait=_FOLLOW_UP_SECONDS)

    def wait(self, seconds: float) -> bool:
        """Waits for the calls that are to be made now; see `Desk.wait`."""
        return self._desk.wait(seconds)

    def close(self, seconds: float) -> None:
        """Makes the calls that can be made within the time, and gives up the rest."""
        self._desk.close(seconds)
