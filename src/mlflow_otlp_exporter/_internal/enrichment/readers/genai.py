"""OpenTelemetry's semantic conventions for generative AI, attributes and operation details.

Serves the GenAI instrumentations, OpenLLMetry from 0.47, OpenLIT, logfire, pydantic-ai, Strands, Google ADK 2,
Microsoft Agent Framework, Semantic Kernel and Vercel AI 7, which all write these attributes, and older names beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import parse_operation
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages, read_system_message
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Cost, Kind, Message, NormalizedSpan, Prompt, Usage
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import read_documents
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    parse_float,
    parse_int,
    parse_objects,
    parse_structured,
    parse_text,
    parse_texts,
    select_text,
)

_DETAILS = "gen_ai.client.inference.operation.details"
_IN, _OUT, _SYSTEM = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"
_PARAMETERS = "gen_ai.request."
_IGNORED_PARAMETERS = frozenset({"gen_ai.request.model", "gen_ai.request.choice.count", "gen_ai.request.user"})
# Each count by all the names that it has had, the newest first.
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_TOTAL = ("gen_ai.usage.total_tokens", "llm.usage.total_tokens")
_CACHE_READ = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cache_read_input_tokens",
    "gen_ai.usage.details.cached_tokens",
)
_CACHE_WRITE = (
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write_input_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "gen_ai.usage.details.cache_creation_input_tokens",
)
_REASONING = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.details.reasoning_tokens",
)
_COUNT_KEYS = (
    _INPUT,
    _OUTPUT,
    _TOTAL,
    _CACHE_READ,
    _CACHE_WRITE,
    _REASONING,
    ("gen_ai.usage.audio.input_tokens", "gen_ai.usage.details.input_audio_tokens"),
    ("gen_ai.usage.audio.output_tokens", "gen_ai.usage.details.output_audio_tokens"),
)


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads a span that carries `gen_ai.*` attributes."""
    found = source.attributes
    kind = parse_operation(found.get("gen_ai.operation.name"))
    given = read_messages(found.get(_IN))
    answered = read_messages(found.get(_OUT), "assistant")
    carried = [key for key, said in ((_IN, given), (_OUT, answered)) if said]
    transcript = None
    if answered and any(message.role == "tool" for message in answered):
        # An agent's output may be its whole run; what it answered is the end of it.
        transcript = (*(given or ()), *answered)
        answered = tuple(m for m in answered if m.role == "assistant" and m.text)[-1:] or answered
    if given and kind is not Kind.AGENT and (instructions := _read_instructions(found, given)) is not None:
        given = (instructions, *given)
        carried.append(_SYSTEM)
    is_tool = kind is Kind.TOOL
    return NormalizedSpan(
        kind=kind,
        input_messages=given,
        output_messages=answered,
        transcript=transcript,
        input=_read_arguments(found, given) if is_tool else None,
        output=_read_result(found, answered) if is_tool else None,
        tools=read_tools(found.get("gen_ai.tool.definitions")),
        # OpenLIT names the tools that a model asked for on the model's span.
        tool_name=parse_text(found.get("gen_ai.tool.name")) if is_tool or kind is None else None,
        tool_description=parse_text(found.get("gen_ai.tool.description")) if is_tool else None,
        tool_call_id=parse_text(found.get("gen_ai.tool.call.id")) if is_tool else None,
        documents=_read_documents(found),
        query=parse_text(found.get("gen_ai.retrieval.query.text")),
        embedded_texts=parse_texts(found.get("gen_ai.embeddings.input")) if kind is Kind.EMBEDDING else None,
        usage=_read_usage(found),
        cost=_read_cost(found),
        request_model=parse_text(found.get("gen_ai.request.model")),
        response_model=parse_text(found.get("gen_ai.response.model")),
        provider=select_text(found.get("gen_ai.provider.name"), found.get("gen_ai.system")),
        invocation_parameters=_read_parameters(found),
        finish_reason=_read_finish_reason(found),
        prompt=_read_prompt(found),
        session=parse_text(found.get("gen_ai.conversation.id")),
        user=select_text(found.get("user.id"), found.get("enduser.id"), found.get("gen_ai.request.user")),
        agent_name=parse_text(found.get("gen_ai.agent.name")),
        response_id=parse_text(found.get("gen_ai.response.id")),
        carried=tuple(carried),
    )


def read_details(source: SpanView) -> NormalizedSpan | None:
    """Reads the event in which newer instrumentations put what is too large for attributes; Strands has one a part."""
    together: dict[str, Any] = {}
    for event in source.events:
        if event.name != _DETAILS:
            continue
        for key, value in event.attributes.items():
            if key in together and key in (_IN, _OUT):
                together[key] = [*parse_objects(together[key]), *parse_objects(value)]
            else:
                together.setdefault(key, value)
    if not together:
        return None
    operation = source.attributes.get("gen_ai.operation.name")
    if _SYSTEM not in together and _SYSTEM in source.attributes:
        together[_SYSTEM] = source.attributes[_SYSTEM]
    if operation is not None:
        together.setdefault("gen_ai.operation.name", operation)
    return read(source._replace(attributes=together))


def _select_value(found: Mapping[str, Any], *keys: str) -> Any:
    """The first value that is there, whatever it is."""
    for key in keys:
        if found.get(key) is not None:
            return found[key]
    return None


def _read_arguments(found: Mapping[str, Any], given: tuple[Message, ...] | None) -> Any:
    """A tool's arguments; Strands has them as a message with one call."""
    value = found.get("gen_ai.tool.call.arguments")
    calls = [call for message in given or () for call in message.tool_calls]
    return calls[0].arguments if value is None and len(calls) == 1 else value


def _read_result(found: Mapping[str, Any], answered: tuple[Message, ...] | None) -> Any:
    value = found.get("gen_ai.tool.call.result")
    results = [message.text for message in answered or () if message.role == "tool"]
    return results[0] if value is None and len(results) == 1 else value


def _read_instructions(found: Mapping[str, Any], given: tuple[Message, ...]) -> Message | None:
    if any(message.role == "system" for message in given):
        return None  # OpenLIT sends them twice
    value = found.get(_SYSTEM)
    return read_system_message(value) if value else None


def _read_usage(found: Mapping[str, Any]) -> Usage | None:
    """Token counts, by whatever name; None if neither input nor output is there."""
    counts = [_select_count(found, names) for names in _COUNT_KEYS[:2]]
    if counts[0] is None and counts[1] is None:
        return None
    return Usage(*counts, *(_select_count(found, names) for names in _COUNT_KEYS[2:]))


def _select_count(found: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = found.get(name)
        if value is not None and (count := parse_int(value)) is not None:
            return count
    return None


def _read_cost(found: Mapping[str, Any]) -> Cost | None:
    total = parse_float(_select_value(found, "operation.cost", "gen_ai.usage.cost"))
    return Cost(total=total) if total else None  # OpenLIT writes 0 for a model that it does not know


def _read_parameters(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    start = len(_PARAMETERS)
    parameters = {
        key[start:]: value
        for key, value in found.items()
        if key.startswith(_PARAMETERS) and key not in _IGNORED_PARAMETERS
    }
    return parameters or None


def _read_finish_reason(found: Mapping[str, Any]) -> str | None:
    reasons = found.get("gen_ai.response.finish_reasons")
    if reasons is None:
        single = parse_text(found.get("gen_ai.response.finish_reason"))
        return single.rpartition(".")[2].lower() if single else None  # Semantic Kernel's FinishReason.STOP
    listed = parse_texts(reasons)  # a JSON text with logfire and Microsoft Agent Framework
    return listed[0] if listed else None


def _read_documents(found: Mapping[str, Any]) -> Any:
    for key in ("gen_ai.retrieval.documents", "gen_ai.output.documents"):
        if found.get(key) is not None and (documents := read_documents(parse_structured(found[key]))):
            return documents
    return None


def _read_prompt(found: Mapping[str, Any]) -> Prompt | None:
    name = parse_text(found.get("gen_ai.prompt.name"))
    return Prompt(name, str(found.get("gen_ai.prompt.version") or "")) if name else None
