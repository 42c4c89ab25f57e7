"""Names of providers: those of OpenInference and of MLflow's price catalog."""

# Frameworks that write their own name as the provider.
_FRAMEWORKS = frozenset(
    {"strands-agents", "microsoft.agent_framework", "langgraph", "langchain", "gcp.vertex.agent", "autogen", "crewai"}
    | {"llama_index", "llamaindex", "haystack", "dspy", "semantic_kernel", "agno", "smolagents", "litellm_proxy"}
)
_VERTEX_AI = frozenset({"gcp.vertex_ai", "google-vertex", "google_vertexai", "vertex_ai", "vertexai"})
_ALIASES = {
    "azure": {"azure.ai.openai", "az.ai.openai", "azure.ai.inference", "az.ai.inference"}
    | {"azure_openai", "azureopenai", "azure-openai", "azure_ai"},
    "aws": {"aws.bedrock", "aws_bedrock", "bedrock", "amazon-bedrock", "bedrock_converse"},
    "google": {"gemini", "gcp.gemini", "gcp.gen_ai", "google_genai", "google-gla"} | _VERTEX_AI,
    "xai": {"x_ai"},
    "mistralai": {"mistral_ai", "mistral"},
}
_OPENINFERENCE = {alias: provider for provider, aliases in _ALIASES.items() for alias in aliases}
_CATALOG = {
    "azure.ai.inference": "azure_ai",
    "az.ai.inference": "azure_ai",
    "azure_ai": "azure_ai",
    "aws": "bedrock",
    "mistralai": "mistral",
    "google": "gemini",
}

_MODEL_PREFIXES = {
    "openai": ("gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-"),
    "anthropic": ("claude-",),
    "google": ("gemini-",),
    "mistralai": ("mistral-", "codestral-"),
    "cohere": ("command-",),
    "deepseek": ("deepseek-",),
    "xai": ("grok-",),
}


def resolve_provider(source_name: str | None, model: str | None) -> str | None:
    """The provider as the source names it, in lower case and without the API behind it; never a framework.

    If the span names no provider, the name of the model is used.
    """
    if source_name:
        name = source_name.strip().lower()
        is_known = name in _OPENINFERENCE or name in _FRAMEWORKS
        if not is_known and "." in name:
            # Vercel AI writes provider and API: openai.chat, anthropic.messages, azure-openai.responses.
            name = name.partition(".")[0]
        if name and name not in _FRAMEWORKS and name != "gcp":
            return name
        if name == "gcp":
            return "google"
    if model:
        bare = model.rpartition("/")[2].lower()
        for provider, prefixes in _MODEL_PREFIXES.items():
            if bare.startswith(prefixes):
                return provider
    return None


def to_openinference_provider(provider: str) -> str:
    """The provider as a value of OpenInference's `llm.provider`."""
    return _OPENINFERENCE.get(provider, provider)


def to_catalog_provider(provider: str) -> str:
    """The provider as MLflow's price catalog names it."""
    if provider in _VERTEX_AI:
        return "vertex_ai"
    if provider in _CATALOG:
        return _CATALOG[provider]
    name = to_openinference_provider(provider)
    return _CATALOG.get(name, name)
