"""The POST of one export request: experiment, headers, compression, classification of the response."""

import logging
import time
import zlib
from collections.abc import Callable, Mapping

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.model.spans import Body
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# Upstream's level 9 takes three to six times as long as level 1 and saves 20 % to 50 %; level 4 takes 1.5 times as long
# and saves most of that (docs/performance.md).
_COMPRESSION_LEVEL, _GZIP = 4, zlib.MAX_WBITS | 16
_MAX_CACHED_HEADERS = 1000
# Batches follow each other after this many response times, so that one exporter occupies a fifth of a small server at
# most. A slow server gets large batches instead: a request costs MLflow 11 to 35 ms whatever it holds.
_RESPONSES_PER_BATCH, _MAX_BATCH_INTERVAL_SECONDS = 5, 2.0


def compress(body: Body, compression: str) -> bytes:
    compressor = zlib.compressobj(_COMPRESSION_LEVEL, wbits=_GZIP if compression == "gzip" else zlib.MAX_WBITS)
    return b"".join([*map(compressor.compress, (body,) if isinstance(body, bytes) else body), compressor.flush()])


class OTLPClient:
    """Sends encoded requests; `experiment_is_set` is true if the user's own headers name the experiment."""

    def __init__(
        self,
        server: Transport,
        experiments: ExperimentResolver,
        *,
        compression: str,
        problem_log: ProblemLog,
        experiment_is_set: bool = False,
        identify: Callable[[ExportOutcome, float], ExportOutcome] | None = None,
    ) -> None:
        self._server, self._experiments, self._compression = server, experiments, compression
        self._problem_log = problem_log
        self._experiment_is_set, self._identify = experiment_is_set, identify
        self._headers: dict[tuple[Destination, str | None], dict[str, str]] = {}
        self.batch_interval_seconds = 0.0
        self.on_outcome: Callable[[ExportOutcome, float, Destination], None] = lambda *_: None

    def export(self, destination: Destination, body: Body, timeout_seconds: float) -> ExportOutcome:
        """Send an encoded request once, and once more uncompressed if the server rejects the compressed body.

        The timeout is for the lookup of the experiment, and again for each request.
        """
        experiment: str | ExportOutcome | None = destination.trace_experiment_id
        if experiment is None and not self._experiment_is_set:
            experiment = destination.experiment_id or self._experiments.resolve(destination, timeout_seconds)
        if isinstance(experiment, ExportOutcome):
            return experiment._replace(was_posted=False)
        headers = self._headers.get((destination, experiment))
        if headers is None:
            headers = {"content-type": "application/x-protobuf", **destination.headers(experiment)}
            evict_oldest(self._headers, _MAX_CACHED_HEADERS)[destination, experiment] = headers
        if self._compression == "none":
            return self._post(destination, headers, body, timeout_seconds)
        compressed_headers = {**headers, "Content-Encoding": self._compression}
        outcome = self._post(destination, compressed_headers, compress(body, self._compression), timeout_seconds)
        if outcome.status in (400, 415) and outcome.trace_id is None:
            outcome = self._post(destination, headers, body, timeout_seconds)
            if outcome.disposition in (Disposition.SUCCESS, Disposition.PARTIAL_SUCCESS):
                # MLflow before 3.7 answers 400 to every compressed body; if it accepts the uncompressed body, the
                # content was not the cause.
                message = (
                    f"The server does not accept {self._compression} bodies: they are sent uncompressed from now on"
                )
                self._problem_log.log_once(logging.WARNING, add_code(MessageCode.COMPRESSION_UNSUPPORTED, message))
                self._compression = "none"
        return outcome

    def _post(
        self, destination: Destination, headers: Mapping[str, str], body: Body, timeout_seconds: float
    ) -> ExportOutcome:
        self._problem_log.stats.add(requests=1)
        request = HttpRequest("POST", "", headers=headers, body=body, timeout_seconds=timeout_seconds)
        started_at = time.monotonic()
        response = self._server.send(request)
        outcome = classify_response(response) if isinstance(response, HttpResponse) else classify_error(response)
        seconds = time.monotonic() - started_at
        if outcome.is_foreign and self._identify is not None:
            outcome = self._identify(outcome, timeout_seconds)
        interval = _MAX_BATCH_INTERVAL_SECONDS
        if outcome.disposition is not Disposition.RETRYABLE:
            interval = min(interval, _RESPONSES_PER_BATCH * seconds)
        self.batch_interval_seconds += (interval - self.batch_interval_seconds) / 4  # the first response is often slow
        self.on_outcome(outcome, seconds, destination)
        return outcome

    def forget(self, destination: Destination) -> None:
        """Look the experiment up again before the next request: it may have been deleted or recreated."""
        self._experiments.invalidate(destination)
