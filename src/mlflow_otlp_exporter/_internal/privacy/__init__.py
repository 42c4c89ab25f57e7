"""Remove from spans what must not leave the application: masks, hidden content, size limits, resource attributes."""

from mlflow_otlp_exporter._internal.privacy.redactor import Redactor, make_resource_filter

__all__ = ["Redactor", "make_resource_filter"]
