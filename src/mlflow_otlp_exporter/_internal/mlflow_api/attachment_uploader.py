"""Upload of attachments through MLflow's REST API before the spans that refer to them.

MLflow's SDK uploads after the spans; uploading first ensures that no span refers to a missing file. If nothing can be
uploaded, spans contain the files themselves, or say that a file was not kept. During an outage, spans wait with the
files that they refer to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from urllib.parse import quote, urlencode, urlsplit

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, Version, request_json
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import Attachment, EncodedSpan
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import inline_attachments
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# Older consoles cannot show attachments (seen on 3.10.1 and 3.11.1).
_SHOWS_ATTACHMENTS_SINCE: Version = (3, 11)
_ARTIFACTS_PATH = "/api/2.0/mlflow-artifacts/artifacts"
# After this many failures while spans wait, the uploader checks whether only uploading fails.
_MAX_FAILURES = 3
# Pauses after only uploading has failed, and after uploading was rejected.
_PAUSE_SECONDS, _REJECTED_PAUSE_SECONDS = 60.0, 600.0
_PRESIGNED_ONLY = "403: the server takes files only by signed URLs (`mlflow server --artifacts-presigned-only`)"
_MAX_UPLOADED, _MAX_DESTINATIONS = 10_000, 1000


class _UploadsUnavailable(Exception):
    """Nothing can be uploaded for some time."""

    def __init__(self, reason: str, pause_seconds: float = _REJECTED_PAUSE_SECONDS) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class AttachmentUploader:
    """Uploads the files to which the spans of export requests refer.

    If nothing can be uploaded, `max_inline_length` characters of base64 may stay in a span. `same_server` means that
    spans are sent to the same server, so that they have to wait for it anyway.
    """

    def __init__(
        self,
        api: Transport,
        resolve_experiment: Callable[[Destination, float], str | ExportOutcome | None],
        server: ServerInfo,
        problem_log: ProblemLog,
        *,
        max_inline_length: int,
        same_server: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._resolve_experiment, self._server = api, resolve_experiment, server
        self._problem_log = problem_log
        self._max_inline_length, self._same_server, self._clock = max_inline_length, same_server, clock
        self._directories: dict[tuple[str | None, str], str] = {}
        # By name of the destination: consecutive failures; end and reason of a pause.
        self._failures: dict[str, int] = {}
        self._pauses: dict[str, tuple[float, str]] = {}
        self._min_rejected_bytes: int | None = None
        # By the experiment that has the trace, if it is not the destination's.
        self._uploaded: dict[tuple[str | None, str], None] = {}

    def upload_next(
        self,
        spans: list[EncodedSpan],
        destination: Destination,
        timeout_seconds: float,
        *,
        is_last_attempt: bool = False,
    ) -> list[EncodedSpan] | ExportOutcome:
        """Upload one file at most, and return the spans without the attachments that are uploaded or inlined.

        The spans can be sent if no attachment remains. A failure is returned if uploading may succeed later.
        """
        pending = {attachment.id: attachment for span in spans for attachment in span.attachments}
        if not pending:
            return spans
        experiment_id = destination.trace_experiment_id
        uploaded = {name for name in pending if (experiment_id, name) in self._uploaded}
        if uploaded:
            return _remove_attachments(spans, uploaded)
        paused_until, reason = self._pauses.get(destination.name, (0.0, ""))
        if self._clock() < paused_until:
            return self._inline_instead(spans, pending, reason)
        try:
            directory = self._directory(destination, timeout_seconds)
        except ServerUnavailableError as error:
            return self._retry_later(spans, destination, error.outcome, pending, is_last_attempt=is_last_attempt)
        except _UploadsUnavailable as error:
            return self._pause(spans, destination, pending, str(error), error.pause_seconds)
        attachment = next(iter(pending.values()))
        if self._min_rejected_bytes is not None and len(attachment.data) >= self._min_rejected_bytes:
            return self._inline_instead(spans, {attachment.id}, "a proxy has rejected a file of this size")
        outcome = self._upload(directory, attachment, spans, destination, timeout_seconds)
        if outcome.disposition is Disposition.SUCCESS:
            self._failures.pop(destination.name, None)
            self._problem_log.stats.add(attachments_uploaded=1)
            evict_oldest(self._uploaded, _MAX_UPLOADED)[experiment_id, attachment.id] = None
            return _remove_attachments(spans, {attachment.id})
        if outcome.disposition is Disposition.TOO_LARGE:
            size = len(attachment.data)
            self._min_rejected_bytes = min(self._min_rejected_bytes or size, size)
            return self._inline_instead(spans, {attachment.id}, outcome.message)
        if outcome.cause not in (FailureKind.SERVER, FailureKind.CREDENTIALS) or "rtifact serving" in outcome.message:
            return self._pause(spans, destination, pending, outcome.message, _REJECTED_PAUSE_SECONDS)
        return self._retry_later(
            spans,
            destination,
            outcome,
            pending,
            is_last_attempt=is_last_attempt,
            is_server_healthy=lambda: self._is_server_healthy(destination, timeout_seconds),
        )

    def _upload(
        self,
        directory: str,
        attachment: Attachment,
        spans: list[EncodedSpan],
        destination: Destination,
        timeout_seconds: float,
    ) -> ExportOutcome:
        trace_id = next(span.trace_id for span in spans if attachment in span.attachments)
        path = f"{_ARTIFACTS_PATH}{directory}/traces/tr-{trace_id:032x}/artifacts/attachments/{attachment.id}"
        headers = Destination(workspace=destination.workspace).headers(None)
        headers["content-type"] = "application/octet-stream"
        response = self._api.send(
            HttpRequest("PUT", path, headers=headers, body=attachment.data, timeout_seconds=timeout_seconds)
        )
        if not isinstance(response, HttpResponse):
            return classify_error(response)
        outcome = classify_response(response)
        # The server's own message advises to upgrade the MLflow SDK, which the application does not use.
        is_presigned_only = b'"artifacts_presigned_only":true' in response.body.replace(b" ", b"")
        return outcome._replace(message=_PRESIGNED_ONLY) if is_presigned_only and outcome.status == 403 else outcome

    def _retry_later(
        self,
        spans: list[EncodedSpan],
        destination: Destination,
        outcome: ExportOutcome,
        pending: Mapping[str, Attachment],
        *,
        is_last_attempt: bool,
        is_server_healthy: Callable[[], bool] = lambda: False,
    ) -> list[EncodedSpan] | ExportOutcome:
        """Let the spans wait; not for long unless an outage makes them wait anyway."""
        name = destination.name
        failures = evict_oldest(self._failures, _MAX_DESTINATIONS)[name] = self._failures.get(name, 0) + 1
        if (is_last_attempt or failures >= _MAX_FAILURES) and (not self._same_server or is_server_healthy()):
            return self._pause(spans, destination, pending, outcome.message, _PAUSE_SECONDS)
        # Without the status: a 500 to an upload is no reason to search for a span at which the server fails.
        return outcome._replace(status=None, may_have_arrived=False)

    def _pause(
        self,
        spans: list[EncodedSpan],
        destination: Destination,
        pending: Mapping[str, Attachment],
        reason: str,
        pause_seconds: float,
    ) -> list[EncodedSpan]:
        pauses = evict_oldest(self._pauses, _MAX_DESTINATIONS)
        pauses[destination.name] = (self._clock() + pause_seconds, reason)
        return self._inline_instead(spans, pending, reason)

    def _inline_instead(
        self, spans: list[EncodedSpan], attachment_ids: Collection[str], reason: str
    ) -> list[EncodedSpan]:
        """Put files into the spans that refer to them, as if attachments were off."""
        result = []
        for span in spans:
            attachments = [attachment for attachment in span.attachments if attachment.id in attachment_ids]
            result.append(inline_attachments(span, attachments, self._max_inline_length) if attachments else span)
        self._problem_log.stats.add(attachments_failed=len(attachment_ids))
        message = (
            "images, audio and files cannot be uploaded to MLflow: spans contain small ones, and name type and size of "
            f"others: {reason}"
        )
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.ATTACHMENT_UPLOAD, message))
        return result

    def _directory(self, destination: Destination, timeout_seconds: float) -> str:
        """The directory of an experiment's files, as MLflow's artifact proxy names it.

        Raises `_UploadsUnavailable` if the files are stored elsewhere or the server knows no attachments, and
        `ServerUnavailableError` if the server cannot answer now.
        """
        version = self._server.version(timeout_seconds)
        if version is None:
            # The server may tell its version soon, and `ServerInfo` limits the requests for it.
            raise _UploadsUnavailable(
                "attachments need MLflow 3.11 or newer, and its version is unknown", _PAUSE_SECONDS
            )
        if version < _SHOWS_ATTACHMENTS_SINCE:
            number = ".".join(map(str, version))
            raise _UploadsUnavailable(f"attachments need MLflow 3.11 or newer, and the server has {number}")
        experiment = self._resolve_experiment(destination, timeout_seconds)
        if isinstance(experiment, ExportOutcome):
            raise ServerUnavailableError(experiment)
        if experiment is None:
            raise _UploadsUnavailable("no MLflow server answers next to the OTLP endpoint")
        key = (destination.workspace, experiment)
        directory = self._directories.get(key)
        if directory is None:
            directory = self._request_directory(experiment, destination, timeout_seconds)
            evict_oldest(self._directories, _MAX_DESTINATIONS)[key] = directory
        return directory

    def _request_directory(self, experiment: str, destination: Destination, timeout_seconds: float) -> str:
        path = f"/api/2.0/mlflow/experiments/get?{urlencode({'experiment_id': experiment})}"
        result = request_json(
            self._api, "GET", path, None, workspace=destination.workspace, timeout_seconds=timeout_seconds
        )
        if not result.is_ok:
            if result.outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
                raise ServerUnavailableError(result.outcome)
            raise _UploadsUnavailable(result.outcome.message)
        record = result.content.get("experiment")
        location = urlsplit(str(record.get("artifact_location", "")) if isinstance(record, dict) else "")
        if location.scheme != "mlflow-artifacts" or location.netloc:
            raise _UploadsUnavailable(
                f"the artifacts of experiment {experiment} are not kept by the MLflow server itself "
                "(`mlflow server --serve-artifacts` with a location of `mlflow-artifacts:/`)"
            )
        directory = quote(location.path.strip("/"))
        return f"/{directory}" if directory else ""

    def _is_server_healthy(self, destination: Destination, timeout_seconds: float) -> bool:
        """Whether the server and its database answer, so that only uploading fails."""
        self._directories.clear()
        try:
            with suppress(_UploadsUnavailable):
                self._directory(destination, timeout_seconds)
        except ServerUnavailableError:
            return False
        return True


def _remove_attachments(spans: list[EncodedSpan], attachment_ids: Collection[str]) -> list[EncodedSpan]:
    return [
        span._replace(attachments=tuple(item for item in span.attachments if item.id not in attachment_ids))
        if span.attachments
        else span
        for span in spans
    ]
