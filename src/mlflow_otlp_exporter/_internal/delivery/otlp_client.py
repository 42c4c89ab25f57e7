"""The POST of one request: experiment, headers, compression, and the answer read."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome
from mlflow_otlp_exporter._internal.transport.authorization import Authorization
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, Transport
from mlflow_otlp_exporter._internal.transport.response import classify_error, classify_response

# A body that fits into one packet gains nothing from being smaller.
_SMALLEST_COMPRESSED = 1024
# Upstream's level 9 takes three to six times as long as level 1 and saves 20 % to 50 %; level 4 takes 1.5 times as long
# and has most of that (docs/performance.md).
_LEVEL = 4


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded spans on their way to one destination.

    Attributes:
        destination: Where they go inside MLflow.
        body: An `ExportTraceServiceRequest`, not compressed.
        span_count: How many spans it holds.
    """

    destination: Destination
    body: bytes
    span_count: int


class Server(Protocol):
    """What must be known of a server whose credential may be rejected: `Connection`."""

    @property
    def credentials(self) -> Authorization:
        """What it is asked with."""

    def has_new_credential(self) -> bool:
        """Whether there is another one than that which it rejected."""


def compress(body: bytes, compression: str) -> bytes:
    """The body as it goes over the wire."""
    if compression == "gzip":
        return gzip.compress(body, _LEVEL, mtime=0)
    return zlib.compress(body, _LEVEL) if compression == "deflate" else body


class OTLPClient:
    """Sends requests to the OTLP endpoint.

    Args:
        server: The OTLP endpoint.
        experiments: Turns names into ids.
        compression: `none`, `gzip` or `deflate`.
        report: Where requests are counted.
        experiment_is_set: True if the user's own headers name the experiment.
    """

    def __init__(
        self,
        server: Transport,
        experiments: ExperimentResolver,
        *,
        compression: str,
        report: ProblemLog,
        experiment_is_set: bool = False,
    ) -> None:
        self._server, self._experiments, self._compression, self._report = server, experiments, compression, report
        self._experiment_is_set = experiment_is_set

    def attempt(self, request: EncodedBatch, seconds: float) -> ExportOutcome:
        """Sends a request once; a second time, plain, where a compressed body was refused.

        Args:
            request: What to send.
            seconds: For looking up the experiment, and again for the request.
        """
        experiment = None if self._experiment_is_set else self._experiments.resolve(request.destination, seconds)
        if isinstance(experiment, ExportOutcome):
            return experiment
        headers = {"content-type": "application/x-protobuf", **request.destination.headers(experiment)}
        if self._compression == "none" or len(request.body) < _SMALLEST_COMPRESSED:
            return self._post(headers, request.body, seconds)
        with_encoding = {**headers, "content-encoding": self._compression}
        outcome = self._post(with_encoding, compress(request.body, self._compression), seconds)
        if outcome.status in (400, 415):
            plain = self._post(headers, request.body, seconds)
            if plain.verdict in (Disposition.DELIVERED, Disposition.PARTLY):
                # MLflow before 3.7 answers 400 to every compressed body; what it takes plain was not wrong in itself.
                said = (
                    f"the server takes no bodies compressed with {self._compression}: they are sent plain from now on"
                )
                self._report.once(logging.WARNING, add_code(MessageCode.COMPRESSION_UNSUPPORTED, said))
                self._compression = "none"
            return plain
        return outcome

    def _post(self, headers: Mapping[str, str], content: bytes, seconds: float) -> ExportOutcome:
        self._report.count(requests=1)
        answer = self._server.send(HttpRequest("POST", "", headers=headers, body=content, timeout_seconds=seconds))
        return classify_response(answer) if isinstance(answer, HttpResponse) else classify_error(answer)

    def forget(self, destination: Destination) -> None:
        """Looks the experiment up anew the next time: it may have been deleted, or made again under its name."""
        self._experiments.invalidate(destination)
