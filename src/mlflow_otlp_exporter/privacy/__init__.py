"""What must not leave the app: masks, hidden contents, payloads that are too large, noisy resource attributes."""

from mlflow_otlp_exporter.privacy._cleaner import Cleaner
from mlflow_otlp_exporter.privacy._resource import resource_filter

__all__ = ["Cleaner", "resource_filter"]
