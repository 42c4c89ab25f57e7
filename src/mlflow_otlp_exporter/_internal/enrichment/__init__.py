"""Enrichment: readers of conventions, one normal form, and writers of OpenInference's and MLflow's attributes."""

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher

__all__ = ["EnrichedSpan", "Enricher"]
