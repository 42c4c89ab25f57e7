"""Kinds of spans, and the names that conventions have for them."""

from enum import Enum


class Kind(str, Enum):
    """The operation that a span stands for; the value is MLflow's span type."""

    CHAT_MODEL = "CHAT_MODEL"
    LLM = "LLM"
    AGENT = "AGENT"
    CHAIN = "CHAIN"
    WORKFLOW = "WORKFLOW"
    TASK = "TASK"
    TOOL = "TOOL"
    RETRIEVER = "RETRIEVER"
    RERANKER = "RERANKER"
    EMBEDDING = "EMBEDDING"
    GUARDRAIL = "GUARDRAIL"
    EVALUATOR = "EVALUATOR"
    MEMORY = "MEMORY"
    PARSER = "PARSER"
    PROMPT = "PROMPT"
    DECISION = "DECISION"
    UNKNOWN = "UNKNOWN"


# `gen_ai.operation.name`: names of the semantic conventions, and others from frameworks.
OPERATIONS = {
    operation: kind
    for kind, operations in {
        Kind.CHAT_MODEL: ("chat", "generate_content", "response", "responses", "message", "llm_call"),
        Kind.LLM: ("text_completion", "completion"),
        Kind.EMBEDDING: ("embeddings", "embedding"),
        Kind.TOOL: ("execute_tool", "tool_call"),
        Kind.RETRIEVER: ("retrieval", "vector_db_retrieve"),
        Kind.RERANKER: ("rerank", "reranking"),
        Kind.AGENT: ("invoke_agent", "create_agent", "agent_call", "user_prompt"),
        Kind.CHAIN: ("plan", "agent_step", "execute_event_loop_cycle", "schedule_tool_calls"),
        Kind.WORKFLOW: ("invoke_workflow", "workflow"),
        Kind.TASK: ("execute_task",),
        Kind.MEMORY: (
            *("search_memory", "create_memory", "update_memory", "upsert_memory", "delete_memory"),
            *("create_memory_store", "delete_memory_store"),
        ),
        Kind.EVALUATOR: ("evaluate",),
        Kind.GUARDRAIL: ("guardrail", "apply_guardrail"),
    }.items()
    for operation in operations
}
# Words that sources use for the kind of a span, in lower case.
KIND_WORDS = {
    **{kind.value.lower(): kind for kind in Kind if kind not in (Kind.UNKNOWN, Kind.DECISION)},
    **dict.fromkeys(("chat", "generation", "model"), Kind.CHAT_MODEL),
    "embedder": Kind.EMBEDDING,
}

# Calls of a language model.
MODEL_KINDS = frozenset({Kind.CHAT_MODEL, Kind.LLM})
# What all spans are compared with: before Python 3.12, reading a member of an Enum takes 0.1 us.
AGENT, EMBEDDING, LLM, TOOL = Kind.AGENT, Kind.EMBEDDING, Kind.LLM, Kind.TOOL
# OpenInference has fewer kinds.
_TO_OPENINFERENCE = {
    Kind.CHAT_MODEL: "LLM",
    **dict.fromkeys((Kind.WORKFLOW, Kind.TASK, Kind.MEMORY, Kind.PARSER), "CHAIN"),
}
OPENINFERENCE_KINDS = {
    word: kind for kind in Kind if kind not in _TO_OPENINFERENCE for word in (kind.value, kind.value.lower())
}
# MLflow displays PROMPT with a generic icon, and does not search for it.
_TO_MLFLOW = {Kind.PROMPT: "CHAIN", Kind.DECISION: "LLM"}
TO_OPENINFERENCE = {kind: _TO_OPENINFERENCE.get(kind, kind.value) for kind in Kind}
TO_MLFLOW = {kind: _TO_MLFLOW.get(kind, kind.value) for kind in Kind}
