"""Upload attachments through MLflow's REST API before the spans that refer to them.

MLflow's SDK uploads after the spans; here it is before, so that no span refers to what is not there. Where nothing can
be uploaded, spans say it themselves, or that it is not kept. What cannot be uploaded just now waits as spans do, with
them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote, urlencode, urlsplit

from mlflow_otlp_exporter._internal.common.bounded_dict import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import Settings
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest
from mlflow_otlp_exporter._internal.mlflow_api.rest_client import request_json
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, Version
from mlflow_otlp_exporter._internal.model.attachment import Attachment
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import inline_attachments
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# Older consoles do not know them (seen on 3.10.1 and 3.11.1).
_KNOWN_SINCE: Version = (3, 11)
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
# How often uploading may fail, while spans wait, before it is asked whether uploading alone is what fails.
_TRIES = 3
# For so long nothing is uploaded after uploading alone has failed, and after it was refused.
_PAUSE_SECONDS, _REFUSED_SECONDS = 60.0, 600.0
_KEPT, _MOST_DESTINATIONS = 10_000, 1000


def create_uploader(
    settings: Settings,
    api: Transport,
    experiment: Callable[[Destination, float], str | ExportOutcome | None],
    stored: ServerInfo,
    report: ProblemLog,
) -> AttachmentUploader:
    """What uploads, as the settings want it; the other arguments are those of `AttachmentUploader`."""
    same = settings.api is not None and urlsplit(settings.api.url).netloc == urlsplit(settings.traces.url).netloc
    longest = settings.privacy.base64_max_length
    return AttachmentUploader(api, experiment, stored, report, longest=longest, same_server=same)


class AttachmentUploader:
    """Uploads the files that the spans of export requests refer to.

    Args:
        api: MLflow's REST side.
        experiment: The id of a destination's experiment, within some seconds; or why there is none.
        stored: Tells the server's version.
        report: Where files are counted.
        longest: Characters of base64 that may stay in a span where nothing can be uploaded.
        same_server: Whether spans go to the same server, so that they must wait while it is away.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        api: Transport,
        experiment: Callable[[Destination, float], str | ExportOutcome | None],
        stored: ServerInfo,
        report: ProblemLog,
        *,
        longest: int,
        same_server: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._experiment, self._stored, self._report = api, experiment, stored, report
        self._longest, self._same_server, self._clock = longest, same_server, clock
        self._folders: dict[tuple[str | None, str], str] = {}
        # By the name of a destination.
        self._failures: dict[str, int] = {}
        self._paused: dict[str, tuple[float, str]] = {}
        self._smallest_refused: int | None = None
        self._done: dict[str, None] = {}
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()

    def step(self, shipment: ExportRequest, seconds: float, *, hurried: bool = False) -> ExportOutcome | bool:
        """Upload one file at most.

        Args:
            shipment: Its spans lose what they do not need any more.
            seconds: How long each request may take.
            hurried: True if there is no time for other tries.

        Returns:
            Whether the spans can be sent; or what stands in the way, and may pass.
        """
        wanted = {each.id: each for span in shipment.spans for each in span.attachments}
        if not wanted:
            return True
        with self._lock:
            done = self._done.keys() & wanted.keys()
        if done:
            _settle(shipment, done)
            return done == wanted.keys()
        until, why = self._paused.get(shipment.destination.name, (0.0, ""))
        if self._clock() < until:
            return self._without(shipment, wanted, why)
        try:
            folder = self._folder(shipment.destination, seconds)
        except ServerUnavailableError as error:
            return self._later(shipment, wanted, error.outcome, hurried=hurried)
        except _Impossible as error:
            return self._refused(shipment, wanted, str(error), error.seconds)
        each = next(iter(wanted.values()))
        if self._smallest_refused is not None and len(each.data) >= self._smallest_refused:
            return self._without(shipment, {each.id: each}, "it is too large for what is between here and MLflow")
        outcome = self._put(folder, each, shipment, seconds)
        if outcome.verdict is Disposition.DELIVERED:
            self._failures.pop(shipment.destination.name, None)
            self._report.count(attachments_uploaded=1)
            with self._lock:
                self._done[each.id] = None
                while len(self._done) > _KEPT:
                    del self._done[next(iter(self._done))]
            _settle(shipment, {each.id})
            return len(wanted) == 1
        return self._failed(shipment, wanted, each, outcome, seconds, hurried=hurried)

    def _put(self, folder: str, each: Attachment, shipment: ExportRequest, seconds: float) -> ExportOutcome:
        trace_id = next(span.trace_id for span in shipment.spans if each in span.attachments)
        path = f"{_ARTIFACTS}{folder}/traces/tr-{trace_id:032x}/artifacts/attachments/{each.id}"
        headers = {"content-type": "application/octet-stream", **_headers(shipment.destination)}
        answer = self._api.send(HttpRequest("PUT", path, headers=headers, body=each.data, timeout_seconds=seconds))
        return classify_response(answer) if isinstance(answer, HttpResponse) else classify_error(answer)

    def _failed(
        self,
        shipment: ExportRequest,
        wanted: dict[str, Attachment],
        each: Attachment,
        outcome: ExportOutcome,
        seconds: float,
        *,
        hurried: bool,
    ) -> ExportOutcome | bool:
        if outcome.verdict is Disposition.SPLIT:
            size = len(each.data)
            self._smallest_refused = min(self._smallest_refused or size, size)
            return self._without(shipment, {each.id: each}, outcome.message)
        if outcome.cause not in (FailureKind.SERVER, FailureKind.CREDENTIALS) or "rtifact serving" in outcome.message:
            return self._refused(shipment, wanted, outcome.message)
        return self._later(shipment, wanted, outcome, hurried=hurried, is_up=lambda: self._is_up(shipment, seconds))

    def _later(
        self,
        shipment: ExportRequest,
        wanted: dict[str, Attachment],
        outcome: ExportOutcome,
        *,
        hurried: bool,
        is_up: Callable[[], bool] = lambda: False,
    ) -> ExportOutcome | bool:
        """Spans wait with what is to be uploaded; not for long where it is no outage that they would wait for too."""
        name = shipment.destination.name
        failures = evict_oldest(self._failures, _MOST_DESTINATIONS)[name] = self._failures.get(name, 0) + 1
        if (hurried or failures >= _TRIES) and (not self._same_server or is_up()):
            self._pause(shipment, _PAUSE_SECONDS, outcome.message)
            return self._without(shipment, wanted, outcome.message)
        # Without its status: a 500 to this is no reason to look for a span that the server trips over.
        return replace(outcome, status=None, ambiguous=False)

    def _refused(
        self, shipment: ExportRequest, wanted: dict[str, Attachment], why: str, seconds: float = _REFUSED_SECONDS
    ) -> bool:
        self._pause(shipment, seconds, why)
        return self._without(shipment, wanted, why)

    def _pause(self, shipment: ExportRequest, seconds: float, why: str) -> None:
        evict_oldest(self._paused, _MOST_DESTINATIONS)[shipment.destination.name] = (self._clock() + seconds, why)

    def _without(self, shipment: ExportRequest, wanted: dict[str, Attachment], why: str) -> bool:
        """Has the spans say themselves what is not uploaded; whether that was all."""
        files = list(wanted.values())
        shipment.spans = [
            inline_attachments(span, [each for each in span.attachments if each.id in wanted], self._longest)
            if any(each.id in wanted for each in span.attachments)
            else span
            for span in shipment.spans
        ]
        self._report.count(attachments_failed=len(files))
        said = "images, sound and files cannot be uploaded to MLflow: spans hold them where they are small enough, and"
        self._report.once(
            logging.WARNING, add_code(MessageCode.ATTACHMENT_UPLOAD, f"{said} name type and size where not: {why}")
        )
        return not any(span.attachments for span in shipment.spans)

    def _folder(self, destination: Destination, seconds: float) -> str:
        """Where the server keeps the files of an experiment, as its artifacts' proxy names it.

        Raises:
            ServerUnavailableError: The server cannot say so now.
            _Impossible: It keeps them elsewhere, or knows no attachments.
        """
        version = self._stored.version(seconds)
        if version is None:
            # It may tell soon, and is not asked each time.
            raise _Impossible("an unknown version of MLflow shows none; 3.11 and newer do", _PAUSE_SECONDS)
        if version < _KNOWN_SINCE:
            raise _Impossible(f"MLflow {'.'.join(map(str, version))} shows none; 3.11 and newer do")
        experiment = self._experiment(destination, seconds)
        if isinstance(experiment, ExportOutcome):
            raise ServerUnavailableError(experiment)
        if experiment is None:
            raise _Impossible("no MLflow server answers beside the OTLP endpoint")
        key = (destination.workspace, experiment)
        found = self._folders.get(key)
        if found is None:
            found = self._asked(experiment, destination, seconds)
            evict_oldest(self._folders, _MOST_DESTINATIONS)[key] = found
        return found

    def _asked(self, experiment: str, destination: Destination, seconds: float) -> str:
        query = urlencode({"experiment_id": experiment})
        path = f"/api/2.0/mlflow/experiments/get?{query}"
        reply = request_json(self._api, "GET", path, None, workspace=destination.workspace, seconds=seconds)
        if not reply.fine:
            if reply.outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
                raise ServerUnavailableError(reply.outcome)
            raise _Impossible(reply.outcome.message)
        record = reply.content.get("experiment")
        location = urlsplit(str(record.get("artifact_location", "")) if isinstance(record, dict) else "")
        if location.scheme != "mlflow-artifacts" or location.netloc:
            raise _Impossible(
                f"the artifacts of experiment {experiment} are not kept by the MLflow server itself "
                "(`mlflow server --serve-artifacts` with a location of `mlflow-artifacts:/`)"
            )
        path = quote(location.path.strip("/"))
        return f"/{path}" if path else ""

    def _is_up(self, shipment: ExportRequest, seconds: float) -> bool:
        """Whether the server answers, and its database, so that uploading alone is what fails."""
        self._folders.clear()
        try:
            self._folder(shipment.destination, seconds)
        except ServerUnavailableError:
            return False
        except _Impossible:
            return True
        return True


class _Impossible(Exception):
    """Nothing can be uploaded, for some seconds."""

    def __init__(self, why: str, seconds: float = _REFUSED_SECONDS) -> None:
        super().__init__(why)
        self.seconds = seconds


def _headers(destination: Destination) -> dict[str, str]:
    return Destination(workspace=destination.workspace).headers(None)


def _settle(shipment: ExportRequest, done: set[str]) -> None:
    """Spans need these files no longer."""
    shipment.spans = [
        span._replace(attachments=tuple(each for each in span.attachments if each.id not in done))
        if span.attachments
        else span
        for span in shipment.spans
    ]
