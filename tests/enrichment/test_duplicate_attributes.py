"""Attributes that compact spans do not repeat."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher
from support.random_traces import span


def enrich_attributes(own: Mapping[str, Any], *, compact: bool = False) -> Mapping[str, Any]:
    (enriched,) = Enricher(compact=compact).enrich([span(1, own)])
    assert isinstance(enriched, EnrichedSpan)
    return enriched.attributes


USER_MESSAGES = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])
ASSISTANT_MESSAGES = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "yo"}]}])
REQUEST = '{"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}'
RESPONSE = '{"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yo"}}], "model": "m"}'
FLAT = {
    "openinference.span.kind": "LLM",
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "hi",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "yo",
    "llm.invocation_parameters": '{"temperature": 0.5}',
}
CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": USER_MESSAGES,
    "gen_ai.output.messages": ASSISTANT_MESSAGES,
}


@pytest.mark.parametrize(
    ("own", "dropped"),
    [
        (CHAT, {"gen_ai.input.messages", "gen_ai.output.messages"}),
        (
            {**FLAT, "input.value": REQUEST, "output.value": RESPONSE},
            {*(key for key in FLAT if "messages" in key), "input.value", "output.value"},
        ),
        # A value with a key that no other attribute holds stays.
        (
            {
                **FLAT,
                "input.value": REQUEST[:-1] + ', "seed": 1}',
                "output.value": RESPONSE[:-1] + ', "logprobs": [1]}',
            },
            {key for key in FLAT if "messages" in key},
        ),
        # The application's own inputs cover nothing.
        ({**CHAT, "mlflow.spanInputs": "{}"}, set()),
        (
            {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.arguments": '{"a": 1}'},
            {"gen_ai.tool.call.arguments"},
        ),
        ({"openinference.span.kind": "CHAIN", "input.value": "hi"}, set()),
        (
            {"openinference.span.kind": "RETRIEVER", "retrieval.documents.0.document.content": "x"},
            {"retrieval.documents.0.document.content"},
        ),
        ({"http.method": "GET"}, set()),
    ],
)
def test_compact_drops_attributes_covered_by_mlflow_attributes(own: Mapping[str, Any], dropped: set[str]) -> None:
    assert set(own) - set(enrich_attributes(own, compact=True)) == dropped
    assert set(own) - set(enrich_attributes(own)) == set()
