"""Removal of attributes whose whole content is in attributes that enrichment added.

Otherwise a span holds the same text up to four times: in `input.value`, in flattened messages, in the source's own
attributes and in MLflow's; MLflow 3.16 even displays it twice (mlflow #25718).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import MODEL_KINDS, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import NormalizedSpan
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import normalize_schema
from mlflow_otlp_exporter._internal.enrichment.values import JSON_STARTS, MAX_JSON_LENGTH, decode_json, parse_structured
from mlflow_otlp_exporter._internal.enrichment.writers.mlflow import INPUTS, OUTPUTS, TOOLS

_TOOL_KEYS = ("gen_ai.tool.definitions", "ai.prompt.tools")
_TOOL_PREFIXES = ("llm.tools.", "llm.request.functions.")
_ARGUMENT_KEYS = (
    *("gen_ai.tool.call.arguments", "ai.toolCall.args", "ai.toolCall.input", "tool_arguments"),
    *("gcp.vertex.agent.tool_call_args", "traceloop.entity.input", "input.value"),
)
_RESULT_KEYS = (
    *("gen_ai.tool.call.result", "ai.toolCall.result", "ai.toolCall.output", "tool_response"),
    *("gcp.vertex.agent.tool_response", "traceloop.entity.output", "output.value"),
)
# Keys of a provider's request and response that the span has elsewhere, or that are not needed.
_REQUEST_KEYS = frozenset({"messages", "model", "tools", "functions"})
_ANSWER_KEYS = frozenset(
    {"id", "choices", "created", "model", "object", "usage", "service_tier", "system_fingerprint", "type", "role"}
)
_CHOICE_KEYS = frozenset({"finish_reason", "index", "logprobs", "message"})
_MESSAGE_KEYS = frozenset({"role", "content", "tool_calls", "name", "tool_call_id", "reasoning", "reasoning_content"})
_EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})
_KINDS_WITH_DUPLICATES = (*MODEL_KINDS, TOOL, Kind.RETRIEVER, Kind.RERANKER)


def drop_duplicate_attributes(span: SpanState, added: Mapping[str, Any]) -> Mapping[str, Any]:
    """The span's own attributes without those that are covered by `added`, MLflow's attributes from enrichment.

    MLflow's attributes that the application set itself cover nothing.
    """
    own = span.attributes
    duplicates = _find_duplicates(span, added) if span.kind in _KINDS_WITH_DUPLICATES else ()
    remaining = own.copy() if duplicates else own
    for key in duplicates:
        remaining.pop(key, None)
    return remaining


def _find_duplicates(span: SpanState, added: Mapping[str, Any]) -> list[str]:
    duplicates: list[str] = []
    own, normalized = span.attributes, span.normalized
    if not own.keys().isdisjoint(added):
        added = {key: value for key, value in added.items() if key not in own}
    if span.kind in MODEL_KINDS:
        if INPUTS in added and (OUTPUTS in added or not normalized.output_messages) and not _has_files(normalized):
            duplicates += normalized.covered_keys
            if normalized.input_messages and _is_plain_request(
                own.get("input.value"), normalized.invocation_parameters
            ):
                duplicates += ("input.value", "input.mime_type")
            if normalized.output_messages and "output.value" in own and _is_plain_answer(own["output.value"]):
                duplicates += ("output.value", "output.mime_type")
        if TOOLS in added and all(
            normalize_schema(tool.parameters) == tool.parameters for tool in normalized.tools or ()
        ):
            duplicates += _TOOL_KEYS
            duplicates += [key for key in own if key.startswith(_TOOL_PREFIXES)]
    elif span.kind is TOOL:
        duplicates += _find_equal_values(_ARGUMENT_KEYS, own, added.get(INPUTS), normalized.input)
        duplicates += _find_equal_values(_RESULT_KEYS, own, added.get(OUTPUTS), normalized.output)
    elif normalized.documents and OUTPUTS in added:
        prefixes = ("retrieval.documents.", "reranker.output_documents.", "reranker.input_documents.")
        duplicates += [key for key in own if key.startswith(prefixes)]
    return duplicates


def _has_files(normalized: NormalizedSpan) -> bool:
    """Whether a message holds a part that MLflow's console cannot display, so that only its name was written."""
    messages = (*(normalized.input_messages or ()), *(normalized.output_messages or ()))
    return any(part.kind not in ("text", "image") for message in messages for part in message.parts)


def _find_equal_values(keys: tuple[str, ...], own: Mapping[str, Any], added: str | None, source: Any) -> Iterator[str]:
    """The keys whose values are the same as `added`, which was written from `source`."""
    if added is None:
        return
    # A text that is no JSON was written in quotes: there is nothing to parse.
    is_text = isinstance(source, str) and source[:1] not in JSON_STARTS and len(added) <= MAX_JSON_LENGTH
    value, same_text = (source, source) if is_text else (decode_json(added), added)
    for key in keys:
        if key in own and (own[key] == same_text or decode_json(own[key]) == value):
            yield key
            if key.endswith(".value"):
                yield key.replace(".value", ".mime_type")


def _is_plain_request(value: Any, parameters: Mapping[str, Any] | None) -> bool:
    request = parse_structured(value)
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        return False
    known_keys = _REQUEST_KEYS | (parameters or {}).keys()
    return request.keys() <= known_keys and all(_is_plain_message(message) for message in request["messages"])


def _is_plain_answer(value: Any) -> bool:
    answer = parse_structured(value)
    choices = answer.get("choices") if isinstance(answer, dict) and answer.keys() <= _ANSWER_KEYS else None
    return isinstance(choices, list) and all(
        isinstance(choice, dict)
        and choice.keys() <= _CHOICE_KEYS
        and not choice.get("logprobs")
        and _is_plain_message(choice.get("message"))
        for choice in choices
    )


def _is_plain_message(message: Any) -> bool:
    """Whether a message holds nothing that the normal form lacks."""
    return isinstance(message, dict) and all(
        key in _MESSAGE_KEYS or value in _EMPTY_VALUES for key, value in message.items()
    )
