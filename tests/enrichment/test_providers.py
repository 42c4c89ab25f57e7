"""Names of providers in OpenInference and in MLflow's price catalog."""

import pytest

from mlflow_otlp_exporter._internal.enrichment.providers import (
    resolve_provider,
    to_catalog_provider,
    to_openinference_provider,
)


@pytest.mark.parametrize(
    ("source_name", "model", "openinference", "catalog"),
    [
        ("openai", None, "openai", "openai"),
        ("OpenAI", None, "openai", "openai"),
        ("openai.chat", None, "openai", "openai"),
        ("azure.ai.openai", None, "azure", "azure"),
        ("az.ai.inference", None, "azure", "azure_ai"),
        ("aws.bedrock", None, "aws", "bedrock"),
        ("amazon-bedrock", None, "aws", "bedrock"),
        ("gcp.gemini", None, "google", "gemini"),
        ("gcp.vertex_ai", None, "google", "vertex_ai"),
        ("mistral_ai", None, "mistralai", "mistral"),
        ("mistralai", None, "mistralai", "mistral"),
        ("x_ai", None, "xai", "xai"),
        ("strands-agents", "gpt-4o", "openai", "openai"),
        ("langgraph", "claude-sonnet-4-5", "anthropic", "anthropic"),
        (None, "models/gemini-2.5-flash", "google", "gemini"),
        ("my-gateway", "gpt-4o", "my-gateway", "my-gateway"),
    ],
)
def test_resolve_provider_of_each_name_maps_to_openinference_and_catalog(
    source_name: str | None, model: str | None, openinference: str, catalog: str
) -> None:
    provider = resolve_provider(source_name, model)
    assert provider is not None
    assert (to_openinference_provider(provider), to_catalog_provider(provider)) == (openinference, catalog)


def test_resolve_provider_of_framework_returns_none() -> None:
    assert resolve_provider("crewai", "my-model") is None
    assert resolve_provider(None, None) is None
