"""The outcome of one export request, derived from the server's response."""

import enum
from typing import NamedTuple

from mlflow_otlp_exporter._internal.common.codes import MessageCode


class Disposition(enum.Enum):
    """What the outcome means for the request."""

    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial success"
    RETRYABLE = "retryable"
    TOO_LARGE = "too large"
    PERMANENT = "permanent"


class FailureKind(enum.Enum):
    """The kind of a failure."""

    CONTENT = "content"
    SIZE = "size"
    DESTINATION = "destination"
    CREDENTIALS = "credentials"
    NOT_MLFLOW = "not MLflow"
    SERVER = "server"


class ExportOutcome(NamedTuple):
    """The outcome of one request."""

    disposition: Disposition
    cause: FailureKind | None = None
    message: str = ""  # with the server's own message, cut and without SQL parameters
    status: int | None = None  # None without a response
    retry_after: float | None = None  # seconds
    rejected_count: int = 0  # spans that the server rejected (partial success)
    may_have_arrived: bool = False  # whether the spans may be stored although the request failed
    is_foreign: bool = False  # whether the response is not MLflow's own: that of a proxy, or of another service
    trace_id: int | None = None  # the trace that MLflow has in another experiment, for which it rejected the request
    code: MessageCode = MessageCode.DESTINATION_REJECTED
    was_posted: bool = True  # False if the look-up of the experiment failed before
    lookup_status: int | None = None  # of a look-up that failed; `status` is that of the spans

    @property
    def error_type(self) -> str | None:
        """The value of `error.type` in metrics, of which there are few; None for a success."""
        if self.disposition is Disposition.SUCCESS:
            return None
        if self.disposition is Disposition.PARTIAL_SUCCESS:
            return "partial_success"
        status = self.lookup_status if self.status is None else self.status
        if status is not None:
            return str(status)
        has_code = self.disposition is Disposition.PERMANENT or self.cause is FailureKind.DESTINATION
        return self.code.name.lower() if has_code else "no_answer"


DELIVERED = ExportOutcome(Disposition.SUCCESS)
