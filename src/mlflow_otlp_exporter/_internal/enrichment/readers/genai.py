"""OpenTelemetry's semantic conventions for generative AI: attributes and operation details.

Written by the GenAI instrumentations, OpenLLMetry from 0.47, OpenLIT, logfire, pydantic-ai, Strands, Google ADK 2,
Microsoft Agent Framework, Semantic Kernel and Vercel AI 7, some of which use older names beside.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_otlp_exporter._internal.enrichment.kinds import OPERATIONS, Kind
from mlflow_otlp_exporter._internal.enrichment.messages import read_messages, read_system_message
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Cost, Document, Message, NormalizedSpan, Usage
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView
from mlflow_otlp_exporter._internal.enrichment.readers.openinference import read_documents, read_prompt
from mlflow_otlp_exporter._internal.enrichment.readers.tables import collect_properties, parse_counts
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    parse_float,
    parse_kind,
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
_USAGE = "gen_ai.usage."
_TOTAL_COST = ("operation.cost", "gen_ai.usage.cost", "gen_ai.cost.total_cost", "gen_ai.usage.total_cost")
_USER_KEYS = ("user.id", "enduser.id", "gen_ai.request.user")
_DOCUMENT_KEYS = ("gen_ai.retrieval.documents", "gen_ai.output.documents")
_COSTS = ("gen_ai.cost.input_cost", "gen_ai.cost.output_cost")


def read(span: SpanView) -> NormalizedSpan | None:
    attributes = span.attributes
    kind = parse_kind(attributes.get("gen_ai.operation.name"), OPERATIONS)
    input_messages = read_messages(attributes.get(_IN))
    output_messages = read_messages(attributes.get(_OUT), "assistant")
    covered_keys = [key for key, messages in ((_IN, input_messages), (_OUT, output_messages)) if messages]
    transcript = None
    if output_messages and any(message.role == "tool" for message in output_messages):
        # An agent's output may be its whole run, which ends with the answer.
        transcript = (*(input_messages or ()), *output_messages)
        output_messages = tuple(m for m in output_messages if m.role == "assistant" and m.text)[-1:] or output_messages
    if (
        input_messages
        and kind is not Kind.AGENT
        and (instructions := _read_instructions(attributes, input_messages)) is not None
    ):
        input_messages = (instructions, *input_messages)
        covered_keys.append(_SYSTEM)
    is_tool = kind is Kind.TOOL
    return NormalizedSpan(
        kind=kind,
        input_messages=input_messages,
        output_messages=output_messages,
        transcript=transcript,
        input=_read_arguments(attributes, input_messages) if is_tool else None,
        output=_read_result(attributes, output_messages) if is_tool else None,
        tools=read_tools(attributes.get("gen_ai.tool.definitions")),
        # OpenLIT writes the names of requested tools on the model's span.
        tool_name=parse_text(attributes.get("gen_ai.tool.name")) if is_tool or kind is None else None,
        tool_description=parse_text(attributes.get("gen_ai.tool.description")) if is_tool else None,
        tool_call_id=parse_text(attributes.get("gen_ai.tool.call.id")) if is_tool else None,
        documents=_read_documents(attributes),
        query=parse_text(attributes.get("gen_ai.retrieval.query.text")),
        embedded_texts=parse_texts(attributes.get("gen_ai.embeddings.input")) if kind is Kind.EMBEDDING else None,
        usage=_read_usage(attributes),
        cost=_read_cost(attributes),
        request_model=parse_text(attributes.get("gen_ai.request.model")),
        response_model=parse_text(attributes.get("gen_ai.response.model")),
        provider=select_text(attributes.get("gen_ai.provider.name"), attributes.get("gen_ai.system")),
        invocation_parameters=_read_parameters(attributes),
        finish_reason=_read_finish_reason(attributes),
        prompt=read_prompt(attributes, "gen_ai.prompt.version", "gen_ai.prompt.name"),
        session=parse_text(attributes.get("gen_ai.conversation.id")),
        user=select_text(*map(attributes.get, _USER_KEYS)),
        agent_name=parse_text(attributes.get("gen_ai.agent.name")),
        error_type=parse_text(attributes.get("error.type")),
        response_id=parse_text(attributes.get("gen_ai.response.id")),
        covered_keys=tuple(covered_keys),
    )


def read_details(span: SpanView) -> NormalizedSpan | None:
    """Read the events in which newer instrumentations put large values; Strands writes one event per part."""
    events = [event.attributes for event in span.events if event.name == _DETAILS]
    if not events:
        return None
    attributes: dict[str, Any] = {}
    for key, value in (item for event in events for item in event.items()):
        if key in attributes and key in (_IN, _OUT):
            attributes[key] = [*parse_objects(attributes[key]), *parse_objects(value)]
        else:
            attributes.setdefault(key, value)
    for key in (_SYSTEM, "gen_ai.operation.name"):
        attributes.setdefault(key, span.attributes.get(key))
    return read(span._replace(attributes=attributes))


def _read_arguments(attributes: Mapping[str, Any], input_messages: tuple[Message, ...] | None) -> Any:
    """A tool's arguments; Strands writes them as a message with one call."""
    value = attributes.get("gen_ai.tool.call.arguments")
    calls = [call for message in input_messages or () for call in message.tool_calls]
    if value is None and not calls and isinstance(request := parse_structured(attributes.get(_IN)), dict):
        call = request["request"] if isinstance(request.get("request"), dict) else request  # Gemini CLI
        return call.get("args", request)
    return calls[0].arguments if value is None and len(calls) == 1 else value


def _read_result(attributes: Mapping[str, Any], output_messages: tuple[Message, ...] | None) -> Any:
    value = attributes.get("gen_ai.tool.call.result")
    results = [message.text for message in output_messages or () if message.role == "tool"]
    if value is None and not results and isinstance(output := parse_structured(attributes.get(_OUT)), dict):
        return output.get("llmContent", output)  # Gemini CLI
    return results[0] if value is None and len(results) == 1 else value


def _read_instructions(attributes: Mapping[str, Any], input_messages: tuple[Message, ...]) -> Message | None:
    if any(message.role == "system" for message in input_messages):
        return None  # OpenLIT writes the instructions twice
    value = attributes.get(_SYSTEM)
    return read_system_message(value) if value else None


def _read_usage(attributes: Mapping[str, Any]) -> Usage | None:
    """Token counts under any of their names; None if neither input nor output is there."""
    usage = parse_counts(
        {
            "total_tokens": attributes.get("llm.usage.total_tokens"),
            **collect_properties(attributes, (_USAGE + "details.",)),
            **collect_properties(attributes, (_USAGE,)),
        }
    )
    return None if usage.input is None and usage.output is None else usage


def _read_cost(attributes: Mapping[str, Any]) -> Cost | None:
    total = next((total for key in _TOTAL_COST if (total := parse_float(attributes.get(key))) is not None), None)
    # OpenLIT writes 0 for models without a known price. LiteLLM's costs of tokens do not include its margin.
    return Cost(*(parse_float(attributes.get(key)) for key in _COSTS))._replace(total=total) if total else None


def _read_parameters(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    start = len(_PARAMETERS)
    parameters = {
        key[start:]: value
        for key, value in attributes.items()
        if key.startswith(_PARAMETERS) and key not in _IGNORED_PARAMETERS
    }
    return parameters or None


def _read_finish_reason(attributes: Mapping[str, Any]) -> str | None:
    reasons = attributes.get("gen_ai.response.finish_reasons")
    if reasons is None:
        single = parse_text(attributes.get("gen_ai.response.finish_reason"))
        return single.rpartition(".")[2].lower() if single else None  # Semantic Kernel's FinishReason.STOP
    parsed = parse_texts(reasons)  # JSON text from logfire and Microsoft Agent Framework
    return parsed[0] if parsed else None


def _read_documents(attributes: Mapping[str, Any]) -> tuple[Document, ...] | None:
    values = [attributes[key] for key in _DOCUMENT_KEYS if attributes.get(key) is not None]
    return next(filter(None, map(read_documents, map(parse_structured, values))), None)
