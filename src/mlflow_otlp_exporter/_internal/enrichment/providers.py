"""Names of providers: those of OpenInference and of MLflow's price catalog."""

import re

# Frameworks that write their own name as the provider.
_FRAMEWORKS = frozenset(
    {"strands-agents", "microsoft.agent_framework", "langgraph", "langchain", "gcp.vertex.agent", "autogen", "crewai"}
    | {"llama_index", "llamaindex", "haystack", "dspy", "semantic_kernel", "agno", "smolagents"}
    | {"litellm_proxy", "litellm"}
)
_VERTEX_AI = frozenset({"gcp.vertex_ai", "google-vertex", "google_vertexai", "vertex_ai", "vertexai"})
_ALIASES = {
    "azure": {"azure.ai.openai", "az.ai.openai", "azure.ai.inference", "az.ai.inference"}
    | {"azure_openai", "azureopenai", "azure-openai", "azure_ai"},
    "aws": {"aws.bedrock", "aws_bedrock", "bedrock", "amazon-bedrock", "bedrock_converse"},
    "google": {"gemini", "googleai", "gcp.gemini", "gcp", "gcp.gen_ai", "google_genai", "google-gla"} | _VERTEX_AI,
    "xai": {"x_ai"},
    "mistralai": {"mistral_ai", "mistral"},
}
_OPENINFERENCE = {alias: provider for provider, aliases in _ALIASES.items() for alias in aliases}
_CATALOG = {
    **dict.fromkeys(("azure.ai.inference", "az.ai.inference", "azure_ai"), "azure_ai"),
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
# Names that stand before a model (`groq/llama-3`, as LiteLLM writes it), before an API (`openai.chat`, Vercel AI) or in
# the name of a host (`api.groq.com`).
_PROVIDERS = frozenset(
    {*_OPENINFERENCE, *_CATALOG, *_MODEL_PREFIXES}
    | {"azure", "groq", "openrouter", "ollama", "ollama_chat", "huggingface"}
    | {"together_ai", "togetherai", "together", "fireworks_ai", "fireworks", "perplexity", "cerebras", "replicate"}
    | {"nvidia_nim", "databricks", "watsonx", "sagemaker", "sambanova", "hosted_vllm", "vllm", "lm_studio", "deepinfra"}
    | {"cohere_chat", "moonshot", "dashscope", "nebius", "novita", "voyage", "jina_ai", "github", "litellm_proxy"}
)
_DOMAINS = {"amazonaws": "aws", "googleapis": "google", "x": "xai"}
_APIS = frozenset({"chat", "responses", "messages", "completion", "completions", "embedding", "embeddings", "image"})
_MAX_ADDRESS_LENGTH = 64
_ADDRESS = r"(?:localhost|[\d.]+|\[[\da-f:]*\])(?::\d+)?"


def resolve_provider(source_name: str | None, model: str | None) -> str | None:
    """The provider as the source names it, in lower case and without the API behind it; never a framework.

    If the span names no provider, or an address, the name of the model is used.
    """
    name = (source_name or "").strip().lower().rpartition("://")[2].partition("/")[0]
    is_address = bool(re.fullmatch(_ADDRESS, name[:_MAX_ADDRESS_LENGTH]))
    if name and name not in _FRAMEWORKS and not is_address:
        return _read_dotted(name) if "." in name and name not in _OPENINFERENCE else name
    if model:
        prefix, _, bare = model.lower().rpartition("/")
        if (prefix := prefix.partition("/")[0]) in _PROVIDERS:
            return prefix
        for provider, prefixes in _MODEL_PREFIXES.items():
            if bare.startswith(prefixes):
                return provider
    return name if is_address else None


def _read_dotted(name: str) -> str:
    """A provider with its API, or the host of an API; the names of other hosts stay as they are."""
    labels = name.partition(":")[0].split(".")
    if labels[0] in _PROVIDERS or labels[-1] in _APIS:
        return labels[0]
    for label in labels[:0:-1]:
        if label in _DOMAINS or label in _PROVIDERS:
            return _DOMAINS.get(label, label)
    return name


def strip_provider(model: str, provider: str | None) -> str:
    """The model without its provider before it. A gateway's models keep the name of their maker."""
    prefix, slash, bare = model.partition("/")
    if not slash or not bare or (prefix != "models" and prefix not in _PROVIDERS):
        return model
    is_same = prefix == "models" or provider is None or to_catalog_provider(prefix) == to_catalog_provider(provider)
    return bare if is_same else model


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
