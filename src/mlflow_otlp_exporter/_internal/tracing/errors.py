"""Which exceptions are failures of a span, and how they are recorded."""

from __future__ import annotations

import traceback
from typing import Any

from opentelemetry.trace import Span, Status, StatusCode

from mlflow_otlp_exporter._internal.common.bounded import bounded_text
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.json_values import bounded_str

# Exceptions by which libraries direct the control flow: class names by the package of the class or of a base class.
_CONTROL_FLOW = {
    "builtins": {"GeneratorExit", "KeyboardInterrupt", "StopAsyncIteration", "StopIteration"},
    "_pytest": {"Exit", "Skipped"},
    "airflow": {"AirflowSkipException", "TaskDeferred"},
    "bdb": {"BdbQuit"},
    "celery": {"TaskPredicate"},  # Retry, Ignore, Reject
    "click": {"Exit"},
    "greenlet": {"GreenletExit"},
    "langgraph": {"GraphBubbleUp"},  # interrupts, and commands to a parent graph
    "prefect": {"Pause"},
    "pydantic_ai": {"ApprovalRequired", "CallDeferred"},
    "streamlit": {"RerunException", "ScriptControlException", "StopException"},
    "tornado": {"Finish"},
    "unittest": {"SkipTest"},
}
_CANCELLATION = {"asyncio": "CancelledError", "concurrent": "CancelledError", "trio": "Cancelled"}
# Exceptions that stand for a response, and where they have its status.
_RESPONSES = {"starlette": "status_code", "werkzeug": "code", "aiohttp": "status", "tornado": "status_code"}
_SERVER_ERROR = 500
_MAX_MESSAGE_LENGTH, _MAX_TRACEBACK_LENGTH, _MAX_FRAMES = 10_000, 100_000, 50


def record_error(span: Span, error: BaseException) -> None:
    """Record an exception and set the status, unless the exception is control flow. Never raises for an `Exception`."""
    if not span.is_recording() or is_control_flow(error):
        return
    kind, message = type(error), bounded_str(error, _MAX_MESSAGE_LENGTH)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    # Not `span.record_exception`: it raises if `__str__` does, and formats all frames, which takes a minute for a
    # RecursionError that passes 500 spans.
    attributes = {
        "exception.type": module + kind.__qualname__,
        "exception.message": message,
        "exception.stacktrace": _format_traceback(error),
        "exception.escaped": "False",
    }
    span.add_event("exception", attributes)
    if not _is_client_error(error):
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message}"))


def is_control_flow(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return any(base.__name__ in _CONTROL_FLOW.get(_package(base), ()) for base in type(error).__mro__)


def is_cancellation(error: BaseException | None) -> bool:
    return any(_CANCELLATION.get(_package(base)) == base.__name__ for base in type(error).__mro__)


def _is_client_error(error: BaseException) -> bool:
    """Return whether a web framework answers this exception with a redirect or a status below 500."""
    for base in type(error).__mro__:
        name = _RESPONSES.get(_package(base))
        if name is not None and base.__name__ in ("HTTPException", "HTTPError"):
            status: Any = getattr(error, name, None)
            return isinstance(status, int) and status < _SERVER_ERROR
    return False


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def _format_traceback(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-_MAX_FRAMES)
    except BaseException as raised:  # attributes of the exception may be properties
        if must_propagate(raised):
            raise
        lines = traceback.format_tb(error.__traceback__, limit=-_MAX_FRAMES)
    return bounded_text("".join(lines), _MAX_TRACEBACK_LENGTH)
