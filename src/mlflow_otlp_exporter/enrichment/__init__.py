"""Enrichment: conventions are read into one normal form, and written as OpenInference and as MLflow's attributes."""

from mlflow_otlp_exporter.enrichment._enricher import Enriched, Enricher

__all__ = ["Enriched", "Enricher"]
