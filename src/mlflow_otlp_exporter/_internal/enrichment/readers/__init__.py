"""All readers, in the order of their precedence: the first that says something about a field wins.

To add a convention, add a module here with a function `read(source)` and a line to `READERS`.
"""

from __future__ import annotations

from mlflow_otlp_exporter._internal.enrichment.readers import (
    crewai,
    genai,
    genai_events,
    genai_legacy,
    google_adk,
    logfire,
    mcp,
    mlflow,
    openinference,
    pydantic_ai,
    traceloop,
    vercel,
)
from mlflow_otlp_exporter._internal.enrichment.readers.base import Reader

_OPENINFERENCE = frozenset(
    {
        "openinference",
        "input",
        "output",
        "llm",
        "tool",
        "retrieval",
        "reranker",
        "embedding",
        "session",
        "user",
        "tag",
        "metadata",
        "prompt",
        "agent",
    }
)

READERS = (
    Reader("MLflow", frozenset({"mlflow"}), mlflow.read),
    # Before OpenInference, whose output.value is the crew's whole state.
    Reader("CrewAI", frozenset({"crew_tasks", "task_id"}), crewai.read),
    # Before GenAI's attributes, which say that it is a tool.
    Reader("Google ADK, merged tools", frozenset({"gcp"}), google_adk.read_merged),
    Reader("OpenInference", _OPENINFERENCE, openinference.read),
    Reader("OpenTelemetry GenAI", frozenset({"gen_ai", "operation", "enduser"}), genai.read),
    Reader("OpenTelemetry GenAI, operation details", frozenset({"gen_ai"}), genai.read_details),
    Reader("OpenTelemetry GenAI, message events", frozenset({"gen_ai"}), genai_events.read),
    Reader("OpenTelemetry GenAI, flattened prompts", frozenset({"gen_ai"}), genai_legacy.read),
    Reader("Vercel AI SDK", frozenset({"ai"}), vercel.read),
    Reader(
        "pydantic-ai",
        frozenset(
            {
                "pydantic_ai",
                "final_result",
                "all_messages_events",
                "events",
                "agent_name",
                "model_request_parameters",
                "tool_arguments",
                "tool_response",
            }
        ),
        pydantic_ai.read,
    ),
    Reader("Google ADK", frozenset({"gcp"}), google_adk.read),
    Reader("logfire", frozenset({"logfire", "request_data", "response_data"}), logfire.read),
    Reader("OpenLLMetry", frozenset({"traceloop"}), traceloop.read),
    Reader("Model Context Protocol", frozenset({"mcp"}), mcp.read),
)
