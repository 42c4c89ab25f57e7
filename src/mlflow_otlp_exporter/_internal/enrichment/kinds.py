"""From what conventions call an operation to what it is."""

from __future__ import annotations

from typing import Any

from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind

# `gen_ai.operation.name`: the semantic conventions, and what frameworks put there besides.
_OPERATIONS = {
    "chat": Kind.CHAT_MODEL,
    "text_completion": Kind.LLM,
    "completion": Kind.LLM,
    "generate_content": Kind.CHAT_MODEL,
    "response": Kind.CHAT_MODEL,
    "responses": Kind.CHAT_MODEL,
    "message": Kind.CHAT_MODEL,
    "embeddings": Kind.EMBEDDING,
    "embedding": Kind.EMBEDDING,
    "execute_tool": Kind.TOOL,
    "retrieval": Kind.RETRIEVER,
    "vector_db_retrieve": Kind.RETRIEVER,
    "rerank": Kind.RERANKER,
    "reranking": Kind.RERANKER,
    "invoke_agent": Kind.AGENT,
    "create_agent": Kind.AGENT,
    "plan": Kind.CHAIN,
    "invoke_workflow": Kind.WORKFLOW,
    "workflow": Kind.WORKFLOW,
    "agent_step": Kind.CHAIN,
    "execute_event_loop_cycle": Kind.CHAIN,
    "execute_task": Kind.TASK,
    "search_memory": Kind.MEMORY,
    "create_memory": Kind.MEMORY,
    "update_memory": Kind.MEMORY,
    "upsert_memory": Kind.MEMORY,
    "delete_memory": Kind.MEMORY,
    "create_memory_store": Kind.MEMORY,
    "delete_memory_store": Kind.MEMORY,
    "evaluate": Kind.EVALUATOR,
    "guardrail": Kind.GUARDRAIL,
    "apply_guardrail": Kind.GUARDRAIL,
}
_TRACELOOP = {"workflow": Kind.WORKFLOW, "task": Kind.TASK, "agent": Kind.AGENT, "tool": Kind.TOOL}
_REQUEST_TYPES = {
    "chat": Kind.CHAT_MODEL,
    "completion": Kind.LLM,
    "embedding": Kind.EMBEDDING,
    "rerank": Kind.RERANKER,
}
_OPENINFERENCE = {
    "LLM": Kind.LLM,
    "CHAIN": Kind.CHAIN,
    "AGENT": Kind.AGENT,
    "TOOL": Kind.TOOL,
    "RETRIEVER": Kind.RETRIEVER,
    "EMBEDDING": Kind.EMBEDDING,
    "RERANKER": Kind.RERANKER,
    "GUARDRAIL": Kind.GUARDRAIL,
    "EVALUATOR": Kind.EVALUATOR,
    "PROMPT": Kind.PROMPT,
    "DECISION": Kind.DECISION,
    "UNKNOWN": Kind.UNKNOWN,
}
# What OpenInference calls each: it has fewer.
_TO_OPENINFERENCE = {
    Kind.CHAT_MODEL: "LLM",
    Kind.WORKFLOW: "CHAIN",
    Kind.TASK: "CHAIN",
    Kind.MEMORY: "CHAIN",
    Kind.PARSER: "CHAIN",
}
# And MLflow: PROMPT would be shown as it is, with a generic icon, and is found by nobody.
_TO_MLFLOW = {Kind.PROMPT: "CHAIN", Kind.DECISION: "LLM"}


def parse_operation(name: Any) -> Kind | None:
    """The kind for `gen_ai.operation.name`."""
    return _OPERATIONS.get(name.strip().lower()) if isinstance(name, str) else None


def parse_traceloop_kind(name: Any) -> Kind | None:
    """The kind for `traceloop.span.kind`."""
    return _TRACELOOP.get(name.lower()) if isinstance(name, str) else None


def parse_request_type(name: Any) -> Kind | None:
    """The kind for OpenLLMetry's older `llm.request.type`."""
    return _REQUEST_TYPES.get(name.lower()) if isinstance(name, str) else None


def parse_openinference_kind(name: Any) -> Kind | None:
    """The kind for `openinference.span.kind`, in whatever case."""
    return _OPENINFERENCE.get(name.strip().upper()) if isinstance(name, str) else None


def to_openinference_kind(kind: Kind) -> str:
    """What OpenInference calls a kind."""
    return _TO_OPENINFERENCE.get(kind, kind.value)


def to_mlflow_span_type(kind: Kind) -> str:
    """MLflow's span type for a kind."""
    return _TO_MLFLOW.get(kind, kind.value)


def is_model(kind: Kind | None) -> bool:
    """Whether a kind is a call of a language model."""
    return kind is Kind.CHAT_MODEL or kind is Kind.LLM
