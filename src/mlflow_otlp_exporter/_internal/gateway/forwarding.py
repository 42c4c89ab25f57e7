"""Sends the spans of each client with the client's own credential, from memory only."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.config.models import ServerSettings, Settings, SettingSource, SpoolSettings
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.gateway.intake import Intake, IsAllowed
from mlflow_otlp_exporter._internal.gateway.protocol import GATEWAY, Answer, AnswerKind, Rejection
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

# Credentials at once, each with its share of the buffer and a few threads; an unused one makes room after a minute.
_MAX_CREDENTIALS, _MIN_IDLE_SECONDS = 32, 60.0
_MAX_CREDENTIAL_LENGTH = 8192
_RETRY_AFTER_SECONDS = 5


class ForwardingIntake(Intake):
    """An intake with a pipeline for each credential. Spans are in memory only: a credential must not reach a disk.

    What is in memory when its credential makes room for another one, or at the end, is sent for as long as that may
    take, and dropped then. The spool that an earlier run filled is sent with the gateway's own credential.
    """

    def __init__(self, pipeline: Pipeline, max_destinations: int) -> None:
        super().__init__(pipeline, None, max_destinations)
        self._settings = _limit_to_memory(pipeline.settings)
        self._intakes: dict[str, tuple[Intake, float]] = {}  # by credential, with the time of its last request
        self._intakes_lock = threading.Lock()
        pipeline.trace_buffer = self  # for its metrics

    @property
    def span_count(self) -> int:
        return self.queued_span_count

    @property
    def byte_count(self) -> int:
        return self.queued_byte_count

    @property
    def queued_span_count(self) -> int:
        return sum(intake.queued_span_count for intake, _ in list(self._intakes.values()))

    @property
    def queued_byte_count(self) -> int:
        return sum(intake.queued_byte_count for intake, _ in list(self._intakes.values()))

    def take(
        self, request: ExportTraceServiceRequest, headers: Mapping[str, str], is_allowed: IsAllowed | None = None
    ) -> Answer:
        credential = headers.get("authorization", "").strip()
        if not credential or len(credential) > _MAX_CREDENTIAL_LENGTH or not credential.isprintable():
            raise Rejection(AnswerKind.UNAUTHENTICATED, f"the {GATEWAY} forwards `authorization`, which is missing")
        intake = self._find_intake(credential)
        if intake is None:
            message = f"more than {_MAX_CREDENTIALS} clients with different credentials"
            return Answer(AnswerKind.UNAVAILABLE, message, retry_after_seconds=_RETRY_AFTER_SECONDS)
        return intake.take(request, headers)

    def _find_intake(self, credential: str) -> Intake | None:
        now, unused = time.monotonic(), None
        with self._intakes_lock:
            if credential in self._intakes:
                intake = self._intakes[credential][0]
            elif self._is_closed:
                return None
            else:
                if len(self._intakes) >= _MAX_CREDENTIALS:
                    oldest = min(self._intakes, key=lambda key: self._intakes[key][1])
                    if self._intakes[oldest][1] > now - _MIN_IDLE_SECONDS:
                        return None
                    unused = self._intakes.pop(oldest)[0]
                intake = self._build_intake(credential)
            self._intakes[credential] = intake, now
        if unused is not None:
            unused.close(0.0)
        return intake

    def _build_intake(self, credential: str) -> Intake:
        settings = self._settings
        traces, api = _set_credential(settings.traces, credential), settings.api
        api = None if api is None else _set_credential(api, credential)
        main = self._pipeline
        pipeline = Pipeline(settings._replace(traces=traces, api=api), None, main.metrics, main.problem_log)
        intake = Intake(pipeline, make_trace_filter(settings.app.noise), self._max_destinations)
        intake.share_counts(self)
        return intake

    def close(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        with self._intakes_lock:
            self._is_closed = True
            intakes = [intake for intake, _ in self._intakes.values()]
        threads = [
            threading.Thread(target=intake.close, args=(timeout_seconds,), name="mlflow-otlp-gateway-end")
            for intake in intakes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        super().close(max(0.0, deadline - time.monotonic()))


def _limit_to_memory(settings: Settings) -> Settings:
    buffer = settings.buffer
    share = buffer._replace(
        buffer_spans=max(1, buffer.buffer_spans // _MAX_CREDENTIALS),
        buffer_bytes=max(1, buffer.buffer_bytes // _MAX_CREDENTIALS),
    )
    return settings._replace(buffer=share, disk=SpoolSettings())


def _set_credential(server: ServerSettings, credential: str) -> ServerSettings:
    return ServerSettings(
        server.url,
        server.group,
        {**server.headers, "authorization": credential},
        certificate_file=server.certificate_file,
        client_certificate_file=server.client_certificate_file,
        client_key_file=server.client_key_file,
        insecure_tls=server.insecure_tls,
        sources={**server.sources, "headers": SettingSource("header of the client")},
    )
