"""docs/adding-a-convention.md: its reader works, and reaches MLflow's attributes with the one line that it names."""

import ast
import json
import re
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan, Enricher, enricher
from mlflow_otlp_exporter._internal.enrichment import readers as readers_module
from support.environments import ROOT
from support.spans import provider

PAGE = (ROOT / "docs" / "adding-a-convention.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's blocks define; they assert what the page says."""
    found: dict[str, Any] = {"__name__": "acme"}
    for code in BLOCKS:
        exec(compile(code, "adding-a-convention.md", "exec", dont_inherit=True), found)
    return found


def test_blocks_are_run_and_assert(names: dict[str, Any]) -> None:
    assert names["observation"] is not None
    assert len(BLOCKS) == 3
    asserts = [node for node in ast.walk(ast.parse(BLOCKS[1])) if isinstance(node, ast.Assert)]
    assert len(asserts) == 2


def test_the_line_goes_where_the_page_says() -> None:
    assert "READERS" in PAGE
    assert isinstance(readers_module.READERS, tuple)
    assert "enrichment/readers/__init__.py" in PAGE
    assert (ROOT / "src" / "mlflow_otlp_exporter" / "enrichment" / "readers" / "__init__.py").is_file()


def test_the_span_gets_mlflows_attributes(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enricher, "READERS", (*readers_module.READERS, names["line"]))
    monkeypatch.setattr(enricher, "_PREFIXES", enricher._PREFIXES | names["line"].prefixes)
    memory = InMemorySpanExporter()
    with provider(memory) as made:
        made.get_tracer("acme").start_span("acme.step", attributes=names["attributes"]).end()
    (enriched,) = Enricher(compact=True).enrich(memory.get_finished_spans())
    assert isinstance(enriched, EnrichedSpan)
    found = enriched.attributes
    assert found["mlflow.spanType"] == "CHAT_MODEL"
    assert [message["role"] for message in json.loads(found["mlflow.spanInputs"])["messages"]] == ["system", "user"]
    assert json.loads(found["mlflow.spanOutputs"])["choices"][0]["message"]["content"] == "Yes."
    assert (found["mlflow.llm.provider"], found["session.id"]) == ("openai", "chat-7")
    assert (found["llm.token_count.prompt"], found["llm.token_count.completion"]) == (12, 3)
    assert not found.keys() & {"acme.prompt", "acme.reply"}
