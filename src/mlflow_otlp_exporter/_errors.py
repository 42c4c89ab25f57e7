"""The one exception that this library raises into an app."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A setting is wrong.

    Raised by `configure()` and the constructors only, before anything is exported. The message says what was
    wrong, where it came from (argument, environment variable, file) and what was expected; it never holds a secret.
    A server that is away is not a wrong setting and raises nothing.
    """


ConfigurationError.__module__ = "mlflow_otlp_exporter"
