"""Types of arguments of the public functions, for annotations in your own code."""

from mlflow_otlp_exporter._internal.common.types import Durability, MaskName, NoiseFilter, SourceType, SpanKind

__all__ = ["Durability", "MaskName", "NoiseFilter", "SourceType", "SpanKind"]
