"""Traces of LLM agents into MLflow with plain OpenTelemetry."""

from mlflow_otlp_exporter._internal.common.errors import ConfigurationError
from mlflow_otlp_exporter._internal.common.stats import Stats
from mlflow_otlp_exporter._internal.delivery.exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.processing.processor import MLflowSpanProcessor
from mlflow_otlp_exporter._internal.setup.configure import configure, flush, log_expectation, log_feedback, shutdown
from mlflow_otlp_exporter._internal.setup.telemetry import FlushResult, Telemetry
from mlflow_otlp_exporter._internal.tracing.context import trace_context
from mlflow_otlp_exporter._internal.tracing.span_attributes import set_documents, set_inputs, set_outputs, set_usage
from mlflow_otlp_exporter._internal.tracing.spans import current_trace_id, span, update_trace
from mlflow_otlp_exporter._internal.tracing.traced import traced
from mlflow_otlp_exporter._internal.version import __version__

__all__ = [
    "ConfigurationError",
    "FlushResult",
    "MLflowSpanExporter",
    "MLflowSpanProcessor",
    "Stats",
    "Telemetry",
    "__version__",
    "configure",
    "current_trace_id",
    "flush",
    "log_expectation",
    "log_feedback",
    "set_documents",
    "set_inputs",
    "set_outputs",
    "set_usage",
    "shutdown",
    "span",
    "trace_context",
    "traced",
    "update_trace",
]

for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
del _name, _public
