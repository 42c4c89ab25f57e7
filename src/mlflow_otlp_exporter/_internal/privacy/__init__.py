"""What must not leave the app: masks, hidden contents, payloads that are too large, noisy resource attributes."""

from mlflow_otlp_exporter._internal.privacy.redactor import Cleaner
from mlflow_otlp_exporter._internal.privacy.resource import resource_filter

__all__ = ["Cleaner", "resource_filter"]
