"""OTLP/gRPC: `TraceService/Export`, with the answers of OTLP/HTTP in gRPC's terms."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.config.models import GatewaySettings
from mlflow_otlp_exporter._internal.encoding.span_decoder import parse_protobuf
from mlflow_otlp_exporter._internal.gateway.certificates import CertificateFiles
from mlflow_otlp_exporter._internal.gateway.intake import Intake
from mlflow_otlp_exporter._internal.gateway.metrics import GatewayMetrics
from mlflow_otlp_exporter._internal.gateway.protocol import Answer, AnswerKind, Rejection, build_answer_message
from mlflow_otlp_exporter._internal.gateway.tokens import TokenFile

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_STATUS_DETAILS = "grpc-status-details-bin"
# Requests that are decoded at once.
_MAX_DECODERS = 4


class _Status(grpc.Status):  # type: ignore[misc]  # grpc has no type hints
    def __init__(self, answer: Answer, details: bytes) -> None:
        self.code = grpc.StatusCode[answer.kind.grpc_status]
        self.details = answer.message
        self.trailing_metadata = ((_STATUS_DETAILS, details),)


class GrpcReceiver:
    """A gRPC server in threads of its own."""

    def __init__(
        self,
        intake: Intake,
        tokens: TokenFile | None,
        certificates: CertificateFiles | None,
        gateway: GatewaySettings,
        metrics: GatewayMetrics,
    ) -> None:
        self._intake, self._tokens, self._metrics = intake, tokens, metrics
        max_bytes = gateway.gateway_max_request_size
        # Two gateways must not share a port unnoticed.
        options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
        pool = ThreadPoolExecutor(_MAX_DECODERS, thread_name_prefix="mlflow-otlp-grpc")
        self._server = grpc.server(pool, options=options)
        method = grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": method}),))
        address = gateway.gateway_grpc_listen
        try:
            if certificates is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, certificates.make_grpc_credentials())
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen at {address}: {error}") from None

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        self._server.stop(grace_seconds).wait()

    def _export(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        try:
            answer = self._take(body, metadata)
        except Rejection as rejection:
            answer = rejection.answer
        except ValueError as error:
            answer = Answer(AnswerKind.MALFORMED, str(error))
        self._metrics.record_answer(answer, "grpc", answer.kind.grpc_status, context.peer())
        if answer.kind is not AnswerKind.ACCEPTED:
            _abort(answer, context)
        return build_answer_message(answer).SerializeToString()

    def _take(self, body: bytes, metadata: Mapping[str, str]) -> Answer:
        is_allowed = self._tokens.authenticate(metadata.get("authorization", "")) if self._tokens else None
        return self._intake.take(parse_protobuf(body), metadata, is_allowed)


def _abort(answer: Answer, context: grpc.ServicerContext) -> NoReturn:
    status = build_answer_message(answer)
    if answer.retry_after_seconds:
        # Without it, clients must not send again after RESOURCE_EXHAUSTED, and wait as they like after UNAVAILABLE.
        retry_info = RetryInfo(retry_delay=Duration(seconds=answer.retry_after_seconds))
        status.details.add().Pack(retry_info)  # type: ignore[attr-defined]  # a google.rpc.Status
    context.abort_with_status(_Status(answer, status.SerializeToString()))
    raise AssertionError  # abort_with_status raises
