"""The one exception that this library raises into an app."""

from __future__ import annotations

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code


class ConfigurationError(ValueError):
    """A setting is wrong.

    Raised by `configure()`, the constructors, `log_feedback()` and `log_expectation()` only, and before anything is
    exported. The message says what was wrong, where it came from (argument, environment variable, file) and what was
    expected; it never holds a secret. It ends with a code that docs/troubleshooting.md explains. A server that is away
    is not a wrong setting and raises nothing.

    Args:
        message: What is wrong.
        code: Under which it is explained.
    """

    def __init__(self, message: str, code: MessageCode = MessageCode.INVALID_SETTING) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return add_code(self.code, str(self.args[0]))


ConfigurationError.__module__ = "mlflow_otlp_exporter"
