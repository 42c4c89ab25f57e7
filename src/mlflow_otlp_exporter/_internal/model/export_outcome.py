"""The outcome of one export request, as derived from the server's response."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mlflow_otlp_exporter._internal.common.codes import MessageCode


class Disposition(enum.Enum):
    """What to do about a request."""

    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial success"
    RETRYABLE = "retryable"
    TOO_LARGE = "too large"
    PERMANENT = "permanent"


class FailureKind(enum.Enum):
    """What stood in the way."""

    CONTENT = "content"
    SIZE = "size"
    DESTINATION = "destination"
    CREDENTIALS = "credentials"
    NOT_MLFLOW = "not MLflow"
    SERVER = "server"


@dataclass(frozen=True)
class ExportOutcome:
    """What became of one request.

    Attributes:
        disposition: What to do.
        cause: What stood in the way; None if nothing did.
        message: In words, with the server's own message, cut and without SQL parameters.
        status: The HTTP status; None without an answer.
        retry_after: Seconds that the server asks to wait.
        rejected: How many spans the server says it did not take (partial success).
        ambiguous: True if the spans may have been stored all the same.
        code: Under which the message is explained.
    """

    disposition: Disposition
    cause: FailureKind | None = None
    message: str = ""
    status: int | None = None
    retry_after: float | None = None
    rejected: int = 0
    ambiguous: bool = False
    code: MessageCode = MessageCode.DESTINATION_REJECTED


DELIVERED = ExportOutcome(Disposition.SUCCESS)
