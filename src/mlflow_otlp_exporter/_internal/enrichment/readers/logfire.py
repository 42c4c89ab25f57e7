"""logfire's own attributes beside the GenAI ones."""

from mlflow_otlp_exporter._internal.enrichment.messages import read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind, NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import read_usage
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import parse_structured, parse_text, parse_texts

_IGNORED_TAGS = frozenset({"LLM"})


def read(span: SpanView) -> NormalizedSpan | None:
    """Read the message, tags, the raw usage, and the request and response of versions before 5."""
    attributes = span.attributes
    tags = parse_texts(attributes.get("logfire.tags"))
    request = parse_structured(attributes.get("request_data"))
    response = parse_structured(attributes.get("response_data"))
    input_messages = output_messages = tools = None
    if isinstance(request, dict):
        input_messages, tools = read_request(request, is_model=True), read_tools(request.get("tools"))
    if isinstance(response, dict):
        message = response.get("message")
        output_messages = read_messages([message], "assistant") if isinstance(message, dict) else None
        output_messages = output_messages or read_response(response, is_model=True)
    return NormalizedSpan(
        kind=Kind.CHAT_MODEL if input_messages or output_messages else None,
        # The span's name is a template; the message is the template with its values.
        trace_name=parse_text(attributes.get("logfire.msg")) if "logfire.msg_template" in attributes else None,
        input_messages=input_messages,
        output_messages=output_messages,
        tools=tools,
        usage=read_usage(attributes.get("gen_ai.usage.raw")),
        tags=tuple(tag for tag in tags if tag not in _IGNORED_TAGS) or None if tags else None,
    )
