"""MLflow's own attributes, set by the application or by MLflow's SDK in the same application."""

from mlflow_otlp_exporter._internal.enrichment.kinds import KIND_WORDS, MODEL_KINDS, parse_kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.tables import read_usage
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_text


def read(span: SpanView) -> NormalizedSpan | None:
    """Read `mlflow.*`: JSON if the SDK wrote them, plain text from others."""
    attributes = span.attributes
    kind = parse_kind(decode_json(attributes.get("mlflow.spanType")), KIND_WORDS)
    inputs, outputs = attributes.get("mlflow.spanInputs"), attributes.get("mlflow.spanOutputs")
    return NormalizedSpan(
        kind=kind,
        input_messages=read_request(inputs, is_model=kind in MODEL_KINDS) if inputs is not None else None,
        output_messages=read_response(outputs, is_model=kind in MODEL_KINDS) if outputs is not None else None,
        input=decode_json(inputs),
        output=decode_json(outputs),
        tools=read_tools(attributes.get("mlflow.chat.tools")),
        usage=read_usage(attributes.get("mlflow.chat.tokenUsage")),
        response_model=parse_text(decode_json(attributes.get("mlflow.llm.model"))),
        provider=parse_text(decode_json(attributes.get("mlflow.llm.provider"))),
    )
