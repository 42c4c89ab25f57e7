"""The public exception of this library, and which exceptions of application code are never caught."""

from __future__ import annotations

import signal
import threading

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code


class ConfigurationError(ValueError, RuntimeError):
    """A setting is invalid.

    Raised only by `configure()`, the constructors, `log_feedback()` and `log_expectation()`, before anything is
    exported. The message says what is wrong, where the value came from (argument, environment variable, file) and what
    was expected. It never contains a secret, and ends with a code that docs/troubleshooting.md explains. An unavailable
    server is not an invalid setting and raises nothing. It is also a RuntimeError, because upstream's exporter raises
    one for an unusable credential provider.

    Args:
        message: What is wrong.
        code: The code of the message.

    Attributes:
        code: The code of the message.
    """

    def __init__(self, message: str, code: MessageCode = MessageCode.INVALID_SETTING) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return add_code(self.code, str(self.args[0]))


ConfigurationError.__module__ = "mlflow_otlp_exporter"


def must_propagate(error: BaseException) -> bool:
    """Return whether an exception ends the process, such as Ctrl-C, or was raised by a signal handler.

    Signal handlers run between any two instructions of the main thread. They raise at time limits, too, such as those
    of Celery and pytest-timeout. Everything else that a `__str__`, mask or property raises, also an exception that is
    no `Exception`, concerns only the value.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    return isinstance(error, KeyboardInterrupt | SystemExit) or _is_raised_by_signal_handler(error)


def _is_raised_by_signal_handler(error: BaseException) -> bool:
    handler_codes = {getattr(signal.getsignal(number), "__code__", None) for number in signal.Signals}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handler_codes:
            return True
        traceback = traceback.tb_next
    return False
