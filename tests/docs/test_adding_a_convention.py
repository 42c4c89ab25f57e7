"""The table in docs/adding-a-convention.md sets MLflow's attributes once its reader is in the list of readers."""

import ast
import json
import re
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.enrichment import readers as readers_module
from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher
from mlflow_otlp_exporter._internal.enrichment.readers import dialects
from mlflow_otlp_exporter.testing import using_readers
from support.environments import ROOT
from support.spans import provider

PAGE = (ROOT / "docs" / "adding-a-convention.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Run the page's blocks, which contain assertions, and return their variables."""
    variables: dict[str, Any] = {"__name__": "acme"}
    for code in BLOCKS:
        exec(compile(code, "adding-a-convention.md", "exec", dont_inherit=True), variables)
    return variables


def test_blocks_run_and_contain_assertions(names: dict[str, Any]) -> None:
    assert names["normalized"] is not None
    assert len(BLOCKS) == 3
    asserts = [node for node in ast.walk(ast.parse(BLOCKS[1])) if isinstance(node, ast.Assert)]
    assert len(asserts) == 7


def test_page_names_the_files_of_dialects_and_readers() -> None:
    assert "READERS" in PAGE
    assert isinstance(dialects.DIALECTS, tuple)
    assert "enrichment/readers/dialects.py" in PAGE
    assert isinstance(readers_module.READERS, tuple)
    assert "enrichment/readers/__init__.py" in PAGE
    assert (ROOT / "src" / "mlflow_otlp_exporter" / "_internal" / "enrichment" / "readers" / "__init__.py").is_file()


def test_table_of_the_page_sets_mlflow_attributes(names: dict[str, Any]) -> None:
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer_provider.get_tracer("acme").start_span("acme.step", attributes=names["attributes"]).end()
    with using_readers(names["ACME"]):
        (enriched,) = Enricher(compact=True).enrich(memory.get_finished_spans())
    assert isinstance(enriched, EnrichedSpan)
    attributes = enriched.attributes
    assert attributes["mlflow.spanType"] == "CHAT_MODEL"
    assert [message["role"] for message in json.loads(attributes["mlflow.spanInputs"])["messages"]] == [
        "system",
        "user",
    ]
    assert json.loads(attributes["mlflow.spanOutputs"])["choices"][0]["message"]["content"] == "Yes."
    assert (attributes["mlflow.llm.provider"], attributes["session.id"]) == ("openai", "chat-7")
    assert (attributes["llm.token_count.prompt"], attributes["llm.token_count.completion"]) == (12, 3)
    assert not attributes.keys() & {"acme.prompt", "acme.reply"}
