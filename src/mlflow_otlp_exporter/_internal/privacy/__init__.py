"""What must not leave the app: masks, hidden contents, payloads that are too large, noisy resource attributes."""

from mlflow_otlp_exporter._internal.privacy.redactor import Redactor
from mlflow_otlp_exporter._internal.privacy.resource import resource_filter

__all__ = ["Redactor", "resource_filter"]
