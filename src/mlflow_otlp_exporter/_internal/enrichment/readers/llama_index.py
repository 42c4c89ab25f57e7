"""LlamaIndex's own OpenTelemetry integration: events of its instrumentation, flattened, with JSON and Python reprs."""

import re
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import MODEL_KINDS, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.readers.tables import read_usage, read_values
from mlflow_otlp_exporter._internal.enrichment.values import parse_objects, parse_repr, select_text

# Kind by the beginning of an event's name, in order of precedence.
_KINDS = {
    "LLMChat": Kind.CHAT_MODEL,
    "LLMCompletion": Kind.LLM,
    "Embedding": Kind.EMBEDDING,
    "Retrieval": Kind.RETRIEVER,
    "ReRank": Kind.RERANKER,
    **dict.fromkeys(("LLMPredict", "LLMStructuredPredict", "Query", "Synthesize", "GetResponse"), Kind.CHAIN),
    **dict.fromkeys(("StreamChat", "AgentChatWithStep"), Kind.AGENT),
    "AgentRunStep": Kind.CHAIN,
}
_CALLS = (*MODEL_KINDS, Kind.EMBEDDING, Kind.RETRIEVER, Kind.RERANKER)
EVENTS = frozenset(name + end for name in _KINDS for end in ("StartEvent", "EndEvent"))
_STEP_EVENTS = ("step.output", "workflow.output")
_STEP_INPUT = "llamaindex.step.input_summary"
_QUERY_KEYS = ("query", "query.query_str", "query_str", "str_or_query_bundle.query_str", "str_or_query_bundle")
_ANSWER_KEYS = ("response.response", "response", "output", "response.message.content")
# The input of a workflow's step is a repr, which may be cut.
_TOOL_CALL = r"(?s)ToolCall\(tool_name='([^']{1,256})', tool_kwargs=(.*?), tool_id="
_USER_MESSAGE = r"user_msg=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_TEXT = r"text=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_MAX_REPR_LENGTH = 20_000


def read(span: SpanView) -> NormalizedSpan | None:
    fields: dict[str, Any] = {}
    kinds: list[Kind] = []
    for event in span.events:
        name = event.name.removesuffix("StartEvent").removesuffix("EndEvent")
        if name in _KINDS and name != event.name:
            kinds.append(_KINDS[name])
            # Values that are None are written as `null`.
            fields.update((key, value) for key, value in event.attributes.items() if value != "null")
    if not kinds:
        return _read_step(span)
    kind = kinds[0]
    query = select_text(*map(fields.get, _QUERY_KEYS))
    content: dict[str, Any] = {"input": query, "output": select_text(*map(fields.get, _ANSWER_KEYS))}
    if kind in _CALLS:
        request = {"query": query, "top_k": fields.get("top_n"), "input": fields.get("chunks")}
        request |= {"messages": parse_objects(fields.get("messages")), "prompt": fields.get("prompt")}
        request["tools"] = fields.get("additional_kwargs.tools")
        response = unflatten(fields, "response.") if kind in MODEL_KINDS else None
        answer = {"choices": [response], **response} if isinstance(response, dict) else {}
        content = read_values(kind, request, answer if kind in MODEL_KINDS else parse_objects(fields.get("nodes")))
        content["usage"] = content.get("usage") or read_usage(answer.get("additional_kwargs"))
        content["input"] = content["output"] = None
    model_class = str(fields.get("model_dict.class_name") or span.name.partition(".")[0]).lower()
    content["request_model"] = select_text(fields.get("model_dict.model_name"), fields.get("model_dict.model"))
    content["response_model"] = select_text(fields.get("response.raw.model"), fields.get("model_name"))
    provider = model_class.replace("_", "").removesuffix("llm").removesuffix("embedding") or None
    return NormalizedSpan(kind=kind, provider=provider, **content)


def _read_step(span: SpanView) -> NormalizedSpan | None:
    """A workflow and its steps, whose input and output are reprs."""
    attributes = span.attributes
    summary = str(attributes.get(_STEP_INPUT) or "")[:_MAX_REPR_LENGTH]
    outputs = [event.attributes.get("output") for event in span.events if event.name in _STEP_EVENTS]
    output = str(outputs[-1])[:_MAX_REPR_LENGTH] if outputs else ""
    if not outputs and not summary:
        return None
    question, is_run = re.search(_USER_MESSAGE, summary), any(event.name == "workflow.output" for event in span.events)
    kind = Kind.AGENT if is_run and "AgentOutput(" in output else Kind.WORKFLOW if is_run else None
    normalized = NormalizedSpan(kind=kind, input=parse_repr(question[1]) if question else None)
    if call := re.match(_TOOL_CALL, summary):
        normalized = NormalizedSpan(kind=Kind.TASK, input=parse_repr(call[2]))
        is_run = span.name.endswith(".call_tool")  # the step's output has the result; the span of the tool has none
        if is_run:
            normalized = normalized._replace(kind=Kind.TOOL, tool_name=call[1])
    return normalized._replace(output=_read_text(output) if is_run else None)


def _read_text(value: str) -> Any:
    """The last text in a repr, if it was not cut before its end."""
    texts = re.findall(_TEXT, value)
    return parse_repr(texts[-1]) if texts else None
