"""Types of arguments, so that editors complete their values; public as `mlflow_otlp_exporter.types`."""

from typing import Literal

# OpenInference's kinds, and MLflow's span types.
SpanKind = Literal[
    "AGENT", "CHAIN", "CHAT_MODEL", "DECISION", "EMBEDDING", "EVALUATOR", "GUARDRAIL", "LLM", "MEMORY", "PARSER",
    "PROMPT", "RERANKER", "RETRIEVER", "TASK", "TOOL", "WORKFLOW",
]  # fmt: skip
Durability = Literal["request", "every-span"]
SourceType = Literal["HUMAN", "CODE", "LLM_JUDGE"]
NoiseFilter = Literal["default", "all", "none"]
MaskName = Literal["email", "keys", "cards", "phones"]
