"""Enrichment: conventions are read into one normal form, and written as OpenInference and as MLflow's attributes."""

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher

__all__ = ["EnrichedSpan", "Enricher"]
