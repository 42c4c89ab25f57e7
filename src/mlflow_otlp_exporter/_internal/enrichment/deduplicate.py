"""Dropping attributes whose content stands wholly in those that were added.

The same text otherwise stands up to four times on a span: in `input.value`, in flattened messages, in the source's own
attributes and in MLflow's; MLflow 3.16 even shows it twice (mlflow #25718).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import is_model
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Kind
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import normalize_schema
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, parse_structured

_INPUTS, _OUTPUTS, _TOOLS = "mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.chat.tools"
_TOOL_KEYS = ("gen_ai.tool.definitions", "ai.prompt.tools", "model_request_parameters")
_TOOL_PREFIXES = ("llm.tools.", "llm.request.functions.")
_ARGUMENT_KEYS = (
    "gen_ai.tool.call.arguments",
    "ai.toolCall.args",
    "ai.toolCall.input",
    "tool_arguments",
    "gcp.vertex.agent.tool_call_args",
    "traceloop.entity.input",
    "input.value",
)
_RESULT_KEYS = (
    "gen_ai.tool.call.result",
    "ai.toolCall.result",
    "ai.toolCall.output",
    "tool_response",
    "gcp.vertex.agent.tool_response",
    "traceloop.entity.output",
    "output.value",
)
# What a provider's request and answer hold besides messages and parameters, and the span has elsewhere or nobody needs.
_REQUEST_KEYS = frozenset({"messages", "model", "tools", "functions"})
_ANSWER_KEYS = frozenset(
    {"id", "choices", "created", "model", "object", "usage", "service_tier", "system_fingerprint", "type", "role"}
)
_CHOICE_KEYS = frozenset({"finish_reason", "index", "logprobs", "message"})
_MESSAGE_KEYS = frozenset({"role", "content", "tool_calls", "name", "tool_call_id", "reasoning", "reasoning_content"})
_EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})


def drop_duplicate_attributes(span: SpanState, written: Mapping[str, Any]) -> dict[str, Any]:
    """A span's attributes without those that the written ones carry.

    Args:
        span: The span.
        written: MLflow's attributes as they were written for it; what the application set itself is not touched.
    """
    there = span.attributes
    dropped = set(_find_duplicates(span, {key: value for key, value in written.items() if key not in there}))
    return {key: value for key, value in there.items() if key not in dropped} if dropped else dict(there)


def _find_duplicates(span: SpanState, written: Mapping[str, Any]) -> Iterator[str]:
    there, found = span.attributes, span.observation
    if is_model(span.kind):
        if _INPUTS in written and (_OUTPUTS in written or not found.output_messages) and not _has_files(span):
            yield from found.carried
            if found.input_messages and _is_plain_request(there.get("input.value"), found.invocation_parameters):
                yield from ("input.value", "input.mime_type")
            if found.output_messages and _is_plain_answer(there.get("output.value")):
                yield from ("output.value", "output.mime_type")
        if _TOOLS in written and all(
            normalize_schema(tool.parameters) == tool.parameters for tool in found.tools or ()
        ):
            yield from _TOOL_KEYS[:2]
            for key in there:
                if key.startswith(_TOOL_PREFIXES):
                    yield key
    elif span.kind is Kind.TOOL:
        yield from _find_equal_values(_ARGUMENT_KEYS, there, written.get(_INPUTS))
        yield from _find_equal_values(_RESULT_KEYS, there, written.get(_OUTPUTS))
    elif span.kind in (Kind.RETRIEVER, Kind.RERANKER) and found.documents and _OUTPUTS in written:
        for key in there:
            if key.startswith(("retrieval.documents.", "reranker.output_documents.", "reranker.input_documents.")):
                yield key


def _has_files(span: SpanState) -> bool:
    """Whether a message holds what MLflow's console has no form for, so that only its name was written."""
    messages = (*(span.observation.input_messages or ()), *(span.observation.output_messages or ()))
    return any(part.kind not in ("text", "image") for message in messages for part in message.parts)


def _find_equal_values(keys: tuple[str, ...], there: Mapping[str, Any], written: Any) -> Iterator[str]:
    """Keys whose value is the very value that was written."""
    if written is None:
        return
    value = decode_json(written)
    for key in keys:
        if key in there and decode_json(there[key]) == value:
            yield key
            if key.endswith(".value"):
                yield key.replace(".value", ".mime_type")


def _is_plain_request(value: Any, parameters: Mapping[str, Any] | None) -> bool:
    found = parse_structured(value)
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        return False
    known = _REQUEST_KEYS | (parameters or {}).keys()
    return found.keys() <= known and all(_is_plain_message(each) for each in found["messages"])


def _is_plain_answer(value: Any) -> bool:
    found = parse_structured(value)
    if not isinstance(found, dict) or not found.keys() <= _ANSWER_KEYS:
        return False
    choices = found.get("choices")
    return isinstance(choices, list) and all(
        isinstance(choice, dict)
        and choice.keys() <= _CHOICE_KEYS
        and not choice.get("logprobs")
        and _is_plain_message(choice.get("message"))
        for choice in choices
    )


def _is_plain_message(message: Any) -> bool:
    """Whether a message holds nothing but what the normal form has."""
    return isinstance(message, dict) and all(
        key in _MESSAGE_KEYS or value in _EMPTY_VALUES for key, value in message.items()
    )
