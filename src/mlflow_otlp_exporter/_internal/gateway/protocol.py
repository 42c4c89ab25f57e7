"""What OTLP says about requests and answers, without a server: headers, compression, parsing, answers."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mlflow_otlp_exporter._internal.encoding.span_decoder import parse_json, parse_protobuf

PROTOBUF, JSON = "application/x-protobuf", "application/json"
# Clients recognise answers about credentials by it, also behind a Collector.
GATEWAY = "mlflow-otlp gateway"
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_AUTO_DETECT = zlib.MAX_WBITS | 32  # gzip or zlib


class AnswerKind(enum.Enum):
    """The kinds of answers, with their HTTP status and the name of their gRPC status."""

    ACCEPTED = 200, "OK"
    MALFORMED = 400, "INVALID_ARGUMENT"
    UNAUTHENTICATED = 401, "UNAUTHENTICATED"
    DENIED = 403, "PERMISSION_DENIED"
    TOO_LARGE = 413, "RESOURCE_EXHAUSTED"
    UNSUPPORTED = 415, "UNIMPLEMENTED"
    UNAVAILABLE = 503, "UNAVAILABLE"

    def __init__(self, http_status: int, grpc_status: str) -> None:
        self.http_status, self.grpc_status = http_status, grpc_status


class Answer(NamedTuple):
    """An answer; `rejected_count` spans of an accepted request were dropped, for the reason in `message`.

    `has_denied` is true if the client's token does not allow some of them.
    """

    kind: AnswerKind = AnswerKind.ACCEPTED
    message: str = ""
    rejected_count: int = 0
    retry_after_seconds: int = 0  # with UNAVAILABLE
    has_denied: bool = False


class Rejection(Exception):
    """The request is not taken, for the reason in its answer."""

    def __init__(self, kind: AnswerKind, message: str, retry_after_seconds: int = 0) -> None:
        super().__init__(message)
        self.answer = Answer(kind, message, retry_after_seconds=retry_after_seconds)


class BodyFormat(NamedTuple):
    """How the body of a request is encoded, and hence that of the answer."""

    is_json: bool
    encoding: str


def read_format(headers: Mapping[str, str]) -> BodyFormat:
    """Read the format in headers, whose names are in lower case or found in any case; raises Rejection."""
    content_type = media_type(headers)
    if content_type not in (PROTOBUF, JSON):
        raise Rejection(AnswerKind.UNSUPPORTED, f"expected content-type {PROTOBUF} or {JSON}")
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise Rejection(AnswerKind.UNSUPPORTED, "expected content-encoding gzip, deflate or identity")
    return BodyFormat(content_type == JSON, encoding)


def media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_body(body: bytes, body_format: BodyFormat, max_bytes: int) -> ExportTraceServiceRequest:
    """Decompress and parse a body; raises Rejection."""
    if body_format.encoding in ("gzip", "deflate"):
        body = _decompress(body, max_bytes)
    try:
        return parse_json(body) if body_format.is_json else parse_protobuf(body)
    except ValueError as error:
        raise Rejection(AnswerKind.MALFORMED, str(error)) from None


def reject_size(max_bytes: int) -> Rejection:
    return Rejection(AnswerKind.TOO_LARGE, f"expected at most {max_bytes} bytes, also after decompression")


def _decompress(body: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(_AUTO_DETECT)
    try:
        content = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Rejection(AnswerKind.MALFORMED, "the body is not compressed as content-encoding says") from None
    if len(content) > max_bytes:
        raise reject_size(max_bytes)
    if not decompressor.eof or decompressor.unused_data:
        raise Rejection(AnswerKind.MALFORMED, "the compressed body is incomplete, or something follows it")
    return content


def build_answer_message(answer: Answer) -> Message:
    """Build the message of an answer: the response of the service, or a status."""
    if answer.kind is not AnswerKind.ACCEPTED:
        status: Message = Status(code=Code.Value(answer.kind.grpc_status), message=answer.message)
        return status
    response = ExportTraceServiceResponse()
    if answer.message:
        response.partial_success.CopyFrom(
            ExportTracePartialSuccess(rejected_spans=answer.rejected_count, error_message=answer.message)
        )
    return response


def encode_http_answer(answer: Answer, *, is_json: bool) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an answer."""
    headers = {"content-type": JSON if is_json else PROTOBUF}
    if answer.retry_after_seconds:
        headers["retry-after"] = str(answer.retry_after_seconds)
    if answer.kind is AnswerKind.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    message = build_answer_message(answer)
    content = json_format.MessageToJson(message, indent=None).encode() if is_json else message.SerializeToString()
    return headers, content
