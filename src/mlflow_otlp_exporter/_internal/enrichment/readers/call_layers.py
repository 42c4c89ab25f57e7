"""Tables of frameworks that add attributes of their own to GenAI's: LiteLLM and LiveKit Agents."""

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect, read_dialect

LITELLM = Dialect(
    "LiteLLM",
    frozenset({"litellm", "metadata", "hidden_params"}),
    {
        "usage": ("metadata.usage_object",),
        "user": ("llm.user", "metadata.user_api_key_end_user_id", "metadata.user_api_key_user_id"),
    },
)


LIVEKIT = Dialect(
    "LiveKit Agents",
    frozenset({"lk"}),
    {
        "tool_name": ("lk.function_tool.name",),
        "tool_call_id": ("lk.function_tool.id",),
        "input": (
            *("lk.pii.user_input", "lk.user_input", "lk.user_transcript"),
            *("lk.pii.function_tool.arguments", "lk.function_tool.arguments"),
            *("lk.pii.chat_ctx", "lk.chat_ctx"),
        ),
        "output": (
            *("lk.pii.response.text", "lk.response.text"),
            *("lk.pii.function_tool.output", "lk.function_tool.output"),
        ),
    },
)


def read_livekit(span: SpanView) -> NormalizedSpan | None:
    """Read LiveKit's spans. Only `llm_request` is the call of the model; spans above and below name the model, too."""
    normalized = read_dialect(LIVEKIT, span) or NormalizedSpan()
    if span.attributes.get("lk.function_tool.is_error") is True:
        normalized = normalized._replace(error_type="tool_error")
    is_layer = "gen_ai.request.model" in span.attributes and "gen_ai.operation.name" not in span.attributes
    return normalized._replace(kind=Kind.TASK) if is_layer else normalized
