"""Enrichment: readers of conventions, one normal form, and writers of OpenInference's and MLflow's attributes."""
