"""Names of providers in OpenInference and in MLflow's price catalog."""

import pytest

from mlflow_otlp_exporter._internal.enrichment.providers import (
    resolve_provider,
    strip_provider,
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
        ("azure-openai.responses", None, "azure", "azure"),
        ("google.vertex.chat", None, "google", "gemini"),
        ("my-server.chat", None, "my-server", "my-server"),
        ("llm.example.com", "gpt-4o", "llm.example.com", "llm.example.com"),
        ("https://api.groq.com/openai/v1", "llama-3", "groq", "groq"),
        ("my-resource.openai.azure.com", "gpt-4o", "azure", "azure"),
        ("bedrock-runtime.us-east-1.amazonaws.com", None, "aws", "bedrock"),
        ("127.0.0.1:8000", "gpt-4o", "openai", "openai"),
        ("127.0.0.1:8000", "my-model", "127.0.0.1:8000", "127.0.0.1:8000"),
        ("[::1]:8000", None, "[::1]:8000", "[::1]:8000"),
        ("localhost", "claude-sonnet-4-5", "anthropic", "anthropic"),
        (None, "groq/llama-3", "groq", "groq"),
        (None, "openrouter/openai/gpt-4o", "openrouter", "openrouter"),
        ("litellm", "bedrock/anthropic.claude-sonnet-4-5", "aws", "bedrock"),
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


@pytest.mark.parametrize(
    ("model", "provider", "stripped"),
    [
        ("openai/gpt-4o", "openai", "gpt-4o"),
        ("gemini/gemini-2.5-flash", "google", "gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "gcp.gemini", "gemini-2.5-flash"),
        ("openai/gpt-oss-20b", "groq", "openai/gpt-oss-20b"),
        ("openrouter/openai/gpt-4o", "openrouter", "openai/gpt-4o"),
        ("meta-llama/Llama-3-8b", "huggingface", "meta-llama/Llama-3-8b"),
        ("ft:gpt-4o:team::id", "openai", "ft:gpt-4o:team::id"),
        ("openai/", "openai", "openai/"),
    ],
)
def test_strip_provider_removes_provider_of_same_span(model: str, provider: str, stripped: str) -> None:
    assert strip_provider(model, provider) == stripped
