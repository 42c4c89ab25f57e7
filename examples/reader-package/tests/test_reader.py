"""How a package tests its reader: alone, and with everything an application sends."""

import acme_tracing
from acme_tracing.mlflow import READERS

from mlflow_otlp_exporter.readers import Kind, Usage
from mlflow_otlp_exporter.testing import read_attributes, recording


def test_table_reads_a_model_call() -> None:
    """The reader alone: attributes may have any type."""
    normalized = read_attributes(READERS[0], {"acme.step": "model", "acme.tokens.in": "12", "acme.reply": "Yes."})
    assert normalized is not None
    assert (normalized.kind, normalized.usage) == (Kind.CHAT_MODEL, Usage(input=12))


def test_installed_reader_shows_a_chat() -> None:
    """What MLflow gets, through the entry point."""
    with recording() as recorded:
        acme_tracing.ask("Rain in Lyon?")
    (span,) = recorded.spans
    assert span.attributes["mlflow.spanType"] == "CHAT_MODEL"
    assert span.inputs["messages"] == [{"role": "user", "content": "Rain in Lyon?"}]
    assert span.attributes["llm.token_count.prompt"] == 12
