"""Names of providers: OpenInference's, and those of MLflow's price catalog."""

from __future__ import annotations

# Frameworks name themselves as provider; none of them sells tokens.
_FRAMEWORKS = frozenset(
    {
        "strands-agents",
        "microsoft.agent_framework",
        "langgraph",
        "langchain",
        "gcp.vertex.agent",
        "autogen",
        "crewai",
        "llama_index",
        "llamaindex",
        "haystack",
        "dspy",
        "semantic_kernel",
        "agno",
        "smolagents",
        "litellm_proxy",
    }
)
_OPENINFERENCE = {
    "azure.ai.openai": "azure",
    "az.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "az.ai.inference": "azure",
    "azure_openai": "azure",
    "azureopenai": "azure",
    "azure-openai": "azure",
    "azure_ai": "azure",
    "aws.bedrock": "aws",
    "aws_bedrock": "aws",
    "bedrock": "aws",
    "amazon-bedrock": "aws",
    "bedrock_converse": "aws",
    "gemini": "google",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "google_genai": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "google_vertexai": "google",
    "vertex_ai": "google",
    "vertexai": "google",
    "x_ai": "xai",
    "mistral_ai": "mistralai",
    "mistral": "mistralai",
}
_CATALOG = {
    "azure.ai.inference": "azure_ai",
    "az.ai.inference": "azure_ai",
    "azure_ai": "azure_ai",
    "azure": "azure",
    "aws": "bedrock",
    "mistralai": "mistral",
    "google": "gemini",
}
_VERTEX_AI = frozenset({"gcp.vertex_ai", "google-vertex", "google_vertexai", "vertex_ai", "vertexai"})
_MODEL_PREFIXES = (
    ("gpt-", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
    ("chatgpt-", "openai"),
    ("text-embedding-", "openai"),
    ("claude-", "anthropic"),
    ("gemini-", "google"),
    ("mistral-", "mistralai"),
    ("codestral-", "mistralai"),
    ("command-", "cohere"),
    ("deepseek-", "deepseek"),
    ("grok-", "xai"),
)


def resolve_provider(said: str | None, model: str | None) -> str | None:
    """The provider in the words of the source, lower case, without an API's name behind it; never a framework's name.

    Args:
        said: What the span says.
        model: The model, whose name tells the provider if the span does not.
    """
    if said:
        name = said.strip().lower()
        known = name in _OPENINFERENCE or name in _FRAMEWORKS
        if not known and "." in name:
            # Vercel AI names provider and API: openai.chat, anthropic.messages, azure-openai.responses.
            name = name.partition(".")[0]
        if name and name not in _FRAMEWORKS and name != "gcp":
            return name
        if name == "gcp":
            return "google"
    if model:
        bare = model.rpartition("/")[2].lower()
        for prefix, provider in _MODEL_PREFIXES:
            if bare.startswith(prefix):
                return provider
    return None


def to_openinference_provider(provider: str) -> str:
    """A provider as OpenInference's `llm.provider` enumerates it."""
    return _OPENINFERENCE.get(provider, provider)


def to_catalog_provider(provider: str) -> str:
    """A provider as MLflow's price catalog names it."""
    if provider in _VERTEX_AI:
        return "vertex_ai"
    if provider in _CATALOG:
        return _CATALOG[provider]
    name = to_openinference_provider(provider)
    return _CATALOG.get(name, name)
