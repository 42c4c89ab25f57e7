"""Conventions that are tables: how SDKs and frameworks with attributes of their own name what a span holds."""

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind
from mlflow_otlp_exporter._internal.enrichment.readers.tables import Dialect

LANGFUSE = Dialect(
    "Langfuse",
    frozenset({"langfuse"}),
    {
        "kind": ("langfuse.observation.type",),
        "input": ("langfuse.observation.input", "langfuse.trace.input"),
        "output": ("langfuse.observation.output", "langfuse.trace.output"),
        "usage": ("langfuse.observation.usage_details",),
        "cost": ("langfuse.observation.cost_details",),
        "response_model": ("langfuse.observation.model.name",),
        "invocation_parameters": ("langfuse.observation.model.parameters",),
        "trace_name": ("langfuse.trace.name",),
        "session": ("langfuse.session.id", "langfuse.trace.session_id"),
        "user": ("langfuse.user.id", "langfuse.trace.user_id"),
        "tags": ("langfuse.trace.tags",),
    },
    {
        "generation": Kind.CHAT_MODEL,
        "agent": Kind.AGENT,
        "tool": Kind.TOOL,
        "chain": Kind.CHAIN,
        "retriever": Kind.RETRIEVER,
        "embedding": Kind.EMBEDDING,
        "evaluator": Kind.EVALUATOR,
        "guardrail": Kind.GUARDRAIL,
    },
    ("langfuse.trace.metadata.",),
)

LANGSMITH = Dialect(
    "LangSmith",
    frozenset({"langsmith"}),
    {
        "kind": ("langsmith.span.kind",),
        "input": ("gen_ai.prompt",),
        "output": ("gen_ai.completion",),
        "usage": ("langsmith.metadata.usage_metadata",),
        "provider": ("langsmith.metadata.ls_provider",),
        "tags": ("langsmith.span.tags",),
    },
    {
        "llm": Kind.LLM,
        "chain": Kind.CHAIN,
        "tool": Kind.TOOL,
        "retriever": Kind.RETRIEVER,
        "embedding": Kind.EMBEDDING,
        "prompt": Kind.PROMPT,
        "parser": Kind.PARSER,
    },
    ("langsmith.metadata.",),
    frozenset({"_type", "model", "model_name", "stream", "usage_metadata", "revision_id"}),
    frozenset({"input", "output"}),
)

# Before the conventions of OpenTelemetry: the source's own kind is more exact than `gen_ai.operation.name`.
DIALECTS = (LANGFUSE, LANGSMITH)
