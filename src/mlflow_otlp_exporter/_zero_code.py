"""The exporter behind `OTEL_TRACES_EXPORTER=mlflow`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mlflow_otlp_exporter._errors import ConfigurationError
from mlflow_otlp_exporter._exporter import MLflowSpanExporter
from mlflow_otlp_exporter._report import logger


class ZeroCodeSpanExporter(MLflowSpanExporter):
    """`MLflowSpanExporter` with the defaults of `configure()` that never raises when it is made.

    `opentelemetry-instrument` switches off all tracing, other exporters included, when a constructor raises. A wrong
    setting is logged as an error instead, and this exporter alone stays off.

    Args:
        **arguments: Those of `MLflowSpanExporter`, as a declarative configuration file gives them.
    """

    _defaults: ClassVar[Mapping[str, Any]] = {"create_experiment": True}

    def __init__(self, **arguments: Any) -> None:
        try:
            super().__init__(**arguments)
        except (ConfigurationError, TypeError) as error:
            # TypeError: an argument that does not exist, from a configuration file.
            logger.error("no spans will be exported to MLflow: %s", error)
