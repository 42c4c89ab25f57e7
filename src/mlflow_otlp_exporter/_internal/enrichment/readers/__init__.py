"""All readers, in order of precedence: the first reader that has a field wins. See docs/adding-a-convention.md."""

from mlflow_otlp_exporter._internal.enrichment.readers import (
    dialects,
    genai,
    genai_events,
    llama_index,
    openinference,
    openllmetry,
    pydantic_ai,
)
from mlflow_otlp_exporter._internal.enrichment.readers.base import Reader
from mlflow_otlp_exporter._internal.enrichment.readers.dialects import DIALECTS, LOGFIRE, MCP, VERCEL
from mlflow_otlp_exporter._internal.enrichment.readers.tables import table_reader

_OPENINFERENCE = frozenset(
    {"openinference", "input", "output", "llm", "tool", "retrieval", "reranker", "embedding", "prompt", "agent"}
    | {"session", "user", "tag", "metadata"}
)
_PYDANTIC_AI = frozenset(
    {"pydantic_ai", "final_result", "all_messages_events", "events", "agent_name", "model_request_parameters"}
    | {"tool_arguments", "tool_response"}
)

READERS = (
    Reader("MLflow", frozenset({"mlflow"}), dialects.read_mlflow),
    # Before OpenInference, whose output.value is the whole state of the crew.
    Reader("CrewAI", frozenset({"crew_tasks", "task_id"}), openinference.read_crewai),
    # Before GenAI's attributes, which mark the span as a tool.
    Reader("Google ADK, merged tools", frozenset({"gcp"}), dialects.read_merged_tools),
    Reader("OpenInference", _OPENINFERENCE, openinference.read),
    *map(table_reader, DIALECTS),
    Reader("OpenLLMetry", frozenset({"traceloop"}), openllmetry.read),
    Reader("OpenTelemetry GenAI", frozenset({"gen_ai", "operation", "enduser"}), genai.read),
    Reader("OpenTelemetry GenAI, operation details", frozenset({"gen_ai"}), genai.read_details),
    Reader("OpenTelemetry GenAI, message events", frozenset({"gen_ai"}), genai_events.read),
    Reader("OpenTelemetry GenAI, flattened prompts", frozenset({"gen_ai"}), openllmetry.read_flattened),
    table_reader(VERCEL),
    Reader("pydantic-ai", _PYDANTIC_AI, pydantic_ai.read),
    Reader("Google ADK", frozenset({"gcp"}), dialects.read_adk),
    Reader("LlamaIndex", frozenset({"llamaindex", "step", "workflow"}) | llama_index.EVENTS, llama_index.read),
    table_reader(LOGFIRE),
    Reader("LiteLLM, provider's traffic", frozenset({"llm"}), openinference.read_litellm_traffic),
    table_reader(MCP),
)
