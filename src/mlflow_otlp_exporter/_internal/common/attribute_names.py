"""Names of attributes that this library sets on spans.

OpenInference's names are repeated here, because importing `openinference.semconv` would take a fifth of this library's
import time. A test compares them with the package's constants.
"""

from __future__ import annotations

# OpenInference's. Those of the first group are also the keys of its context values.
SESSION_ID = "session.id"
USER_ID = "user.id"
METADATA = "metadata"
TAGS = "tag.tags"
PROMPT_TEMPLATE = "llm.prompt_template.template"
PROMPT_TEMPLATE_VERSION = "llm.prompt_template.version"
PROMPT_TEMPLATE_VARIABLES = "llm.prompt_template.variables"

SPAN_KIND = "openinference.span.kind"
INPUT_VALUE, INPUT_MIME_TYPE = "input.value", "input.mime_type"
OUTPUT_VALUE, OUTPUT_MIME_TYPE = "output.value", "output.mime_type"
JSON, TEXT = "application/json", "text/plain"
TOOL_NAME, TOOL_DESCRIPTION = "tool.name", "tool.description"
DOCUMENTS = "retrieval.documents"
RERANKED_DOCUMENTS = "reranker.output_documents"
DOCUMENT_ID, DOCUMENT_CONTENT = "document.id", "document.content"
DOCUMENT_SCORE, DOCUMENT_METADATA = "document.score", "document.metadata"
TOKENS_IN, TOKENS_OUT, TOKENS_TOTAL = "llm.token_count.prompt", "llm.token_count.completion", "llm.token_count.total"
TOKENS_CACHE_READ = "llm.token_count.prompt_details.cache_read"
TOKENS_CACHE_WRITE = "llm.token_count.prompt_details.cache_write"
TOKENS_REASONING = "llm.token_count.completion_details.reasoning"
MODEL_NAME, PROVIDER = "llm.model_name", "llm.provider"

# MLflow's, and those of a trace's destination in MLflow.
SPAN_TYPE = "mlflow.spanType"
SPAN_INPUTS, SPAN_OUTPUTS = "mlflow.spanInputs", "mlflow.spanOutputs"
USAGE = "mlflow.chat.tokenUsage"
TRACE_TAG = "mlflow.traceTag."
# The session that the application set, on the root only: a framework may replace `session.id` when the span ends.
TRACE_SESSION = "mlflow.trace.session"
LINKED_PROMPTS = "mlflow.traceTag.mlflow.linkedPrompts"
WORKSPACE, EXPERIMENT = "mlflow.workspace", "mlflow.experiment"
EXPERIMENT_ID, RUN_ID = "mlflow.experiment_id", "mlflow.run_id"

# Beginning of a reference to an attachment.
ATTACHMENT = "mlflow-attachment://"

# OpenInference's instrumentations replace hidden content by this.
REDACTED = "__REDACTED__"
