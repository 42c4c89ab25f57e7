"""MLflow's attributes: what its console, search and scorers read (measured on 3.17.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.enrichment.kinds import is_model, to_mlflow_span_type
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    Cost,
    Document,
    Kind,
    Message,
    NormalizedSpan,
    Part,
    Usage,
)
from mlflow_otlp_exporter._internal.enrichment.providers import resolve_provider, to_catalog_provider
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import is_repr, normalize_schema, unwrap_result
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, to_json, to_text

INPUTS, OUTPUTS, TYPE = "mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.spanType"
TOOLS, USAGE, COST, MESSAGES = (
    "mlflow.chat.tools",
    "mlflow.chat.tokenUsage",
    "mlflow.llm.cost",
    "mlflow.chat.messages",
)
LOG_LEVEL = "mlflow.spanLogLevel"
MODEL, PROVIDER, TAG = "mlflow.llm.model", "mlflow.llm.provider", "mlflow.traceTag."
TRACE_NAME, LINKED_PROMPTS = TAG + "mlflow.traceName", TAG + "mlflow.linkedPrompts"
_MAX_NAME_LENGTH, _MAX_KEY_LENGTH, _MAX_TAG_LENGTH = 4096, 250, 4096
_MAX_TAGS = 100
# What the console takes as sound.
_AUDIO_FORMATS = frozenset({"wav", "mp3"})
# What frameworks put into metadata for themselves.
_FRAMEWORK_PREFIXES = ("langgraph_", "ls_", "lc_", "checkpoint_", "__pregel")
_IDENTITY_KEYS = frozenset(
    {"session_id", "thread_id", "user_id", "conversation_id", "sessionId", "userId", "checkpoint_ns"}
)
# Parameters that repeat what stands elsewhere, or that no person looks for.
_IGNORED_PARAMETERS = frozenset(
    {
        "messages",
        "input",
        "inputs",
        "prompt",
        "prompts",
        "tools",
        "functions",
        "instructions",
        "system",
        "model",
        "model_name",
        "id",
        "created_at",
        "metadata",
        "output",
        "_type",
        "extra_body",
        "response_format",
    }
)
# As MLflow's SDK has it: what stays when the console's filter leaves the plumbing out, which a span without a level is.
_INFO_KINDS = frozenset({Kind.CHAT_MODEL, Kind.LLM, Kind.TOOL, Kind.RETRIEVER, Kind.AGENT, Kind.EMBEDDING})
_LEVEL_INFO, _LEVEL_ERROR = 20, 40
_PRICED_KINDS = (Kind.CHAT_MODEL, Kind.LLM, Kind.EMBEDDING, Kind.RERANKER)


def write(span: SpanState) -> dict[str, Any]:
    """The attributes of MLflow's for a span; whoever adds them keeps what is there already."""
    found, kind = span.observation, span.kind
    written: dict[str, Any] = {TYPE: to_mlflow_span_type(kind) if kind is not None else Kind.UNKNOWN.value}
    if span.span.status.status_code is StatusCode.ERROR:
        written[LOG_LEVEL] = _LEVEL_ERROR
    elif kind in _INFO_KINDS:
        written[LOG_LEVEL] = _LEVEL_INFO
    if is_model(kind):
        _write_chat(span, written)
    elif kind is Kind.TOOL:
        _write_values(found.input, unwrap_result(found.output), written)
    elif kind in (Kind.RETRIEVER, Kind.RERANKER, Kind.MEMORY) and (found.documents or found.query):
        _write_retrieval(found, kind, written)
    elif kind is Kind.EMBEDDING:
        if found.embedded_texts:
            written[INPUTS] = to_json({"input": list(found.embedded_texts)})
    else:
        _write_input_output(span, written)
    if found.usage is not None and span.keeps_usage:
        _write_usage(found.usage, written)
    if kind in _PRICED_KINDS:
        _write_model(found, written)
        if found.cost is not None and span.keeps_usage and (cost := _complete_cost(found.cost, found.usage)):
            written[COST] = to_json(cost)
    if span.parent_id is None:
        _write_trace(span, written)
    return written


def _write_chat(span: SpanState, written: dict[str, Any]) -> None:
    found = span.observation
    given, answered = found.input_messages, found.output_messages
    tools = [_build_tool(each.name, each.description, each.parameters) for each in found.tools or ()]
    if given:
        request: dict[str, Any] = {"messages": [_build_message(each) for each in given]}
        if model := found.request_model or found.response_model:
            request["model"] = model
        request |= {
            key: value
            for key, value in (found.invocation_parameters or {}).items()
            if key not in _IGNORED_PARAMETERS and value not in (None, "", [], {})
        }
        if files := _collect_files(given):
            # A chat has no place for them; beside it the console shows them.
            request["files"] = files
        if tools and _has_tools(span.attributes.get("input.value")):
            # Before 3.13 MLflow takes no list in JSON text; what it shows without us must not go.
            request["tools"] = tools
        written[INPUTS] = to_json(request)
    elif found.input is not None and not isinstance(found.input, str):
        written[INPUTS] = to_json(found.input)
    if answered:
        written[OUTPUTS] = to_json(_build_choices(answered, found.finish_reason))
    elif given:
        # The console shows no chat for a side that is missing, as after a failed call.
        written[MESSAGES] = to_json([_build_message(each) for each in given])
    if tools:
        written[TOOLS] = to_json(tools)


def _collect_files(messages: Sequence[Message]) -> list[str]:
    """References to uploaded files that are neither images nor sounds that a chat shows."""
    parts = [part for message in messages for part in message.parts if part.url.startswith(ATTACHMENT)]
    return list(dict.fromkeys(part.url for part in parts if _build_content_part(part)["type"] == "text"))


def _has_tools(request: Any) -> bool:
    return isinstance(request, str) and '"tools"' in request


def _build_choices(messages: Sequence[Message], reason: str | None) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        choice: dict[str, Any] = {"index": index, "message": _build_message(message)}
        if reason:
            choice["finish_reason"] = reason
        choices.append(choice)
    return {"choices": choices}


def _build_tool(name: str, description: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "parameters": normalize_schema(parameters)}
    if description:
        function["description"] = description
    return {"type": "function", "function": function}


def _build_message(message: Message) -> dict[str, Any]:
    """A message as MLflow's console takes it; one that it does not take would hide all others."""
    made: dict[str, Any] = {"role": message.role, "content": _build_content(message)}
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        made["tool_call_id"] = message.tool_call_id
    if message.name:
        made["name"] = message.name
    if message.reasoning:
        made["reasoning"] = message.reasoning
    return made


def _build_content(message: Message) -> Any:
    if not message.parts:
        return None if message.tool_calls or message.reasoning else ""
    if len(message.parts) == 1 and message.parts[0].kind == "text":
        return message.parts[0].text
    if all(part.kind == "text" for part in message.parts):
        return message.text
    return [_build_content_part(part) for part in message.parts]


def _build_content_part(part: Part) -> dict[str, Any]:
    if part.kind == "image" and part.url:
        return {"type": "image_url", "image_url": {"url": part.url}}
    if part.kind == "audio" and part.data and part.format in _AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    named = part.text or (part.url if not part.url.startswith(("data:", ATTACHMENT)) else "")
    return {"type": "text", "text": f"[{part.kind} {named or part.format}]".replace(" ]", "]")}


def _write_values(given: Any, returned: Any, written: dict[str, Any]) -> None:
    if given is not None:
        written[INPUTS] = to_json(decode_json(given))
    if returned is not None:
        written[OUTPUTS] = to_json(returned)


def _write_retrieval(found: NormalizedSpan, kind: Kind, written: dict[str, Any]) -> None:
    query = found.query if found.query is not None else found.input
    if kind is Kind.RERANKER:
        request: dict[str, Any] = {}
        if query is not None:
            request["query"] = query
        if found.input_documents:
            request["documents"] = [_build_document(each) for each in found.input_documents]
        if found.top_k is not None:
            request["top_k"] = found.top_k
        if request:
            written[INPUTS] = to_json(request)
    elif query is not None:
        written[INPUTS] = to_json(decode_json(query))
    if found.documents:
        written[OUTPUTS] = to_json([_build_document(each) for each in found.documents])


def _build_document(document: Document) -> dict[str, Any]:
    metadata = dict(document.metadata or {})
    if document.score is not None:
        metadata.setdefault("score", document.score)
    if "doc_uri" not in metadata and isinstance(source := metadata.get("source"), str):
        metadata["doc_uri"] = source  # what MLflow's retrieval scorers cite
    made: dict[str, Any] = {"page_content": document.content, "metadata": metadata}
    if document.id:
        made["id"] = document.id
    return made


def _write_input_output(span: SpanState, written: dict[str, Any]) -> None:
    """Inputs and outputs of agents and of what is around them.

    A root and an agent get the user's last words and the final answer only, which is what previews, sessions and
    scorers read; MLflow makes a user's turn of all messages that stand there.
    """
    found = span.observation
    told = span.parent_id is None or span.kind is Kind.AGENT
    if told and span.question:
        written[INPUTS] = to_json({"messages": [{"role": "user", "content": span.question}]})
    elif found.input_messages and not told:
        written[INPUTS] = to_json({"messages": [_build_message(each) for each in found.input_messages]})
    elif found.input is not None and "input.value" not in span.attributes:
        written[INPUTS] = to_json(decode_json(found.input))
    if told and span.answer:
        answer = {"role": "assistant", "content": span.answer}
        written[OUTPUTS] = to_json({"choices": [{"index": 0, "message": answer}]})
    elif found.output_messages and not told:
        written[OUTPUTS] = to_json(_build_choices(found.output_messages, found.finish_reason))
    elif found.output is not None and "output.value" not in span.attributes and not is_repr(found.output):
        written[OUTPUTS] = to_json(decode_json(found.output))
    if span.kind is Kind.AGENT and found.transcript and not told:
        written[MESSAGES] = to_json([_build_message(each) for each in found.transcript])


def _write_usage(usage: Usage, written: dict[str, Any]) -> None:
    """Counts; always with a total, or MLflow makes it 0 when there is no output."""
    given, answered = usage.input, usage.output
    if given is None and answered is None and usage.total is None:
        return
    total = usage.total if usage.total is not None else (given or 0) + (answered or 0)
    counts = {
        "input_tokens": given if given is not None else max(total - (answered or 0), 0),
        "output_tokens": answered if answered is not None else max(total - (given or 0), 0),
        "total_tokens": total,
    }
    if usage.cache_read:
        counts["cache_read_input_tokens"] = usage.cache_read
    if usage.cache_write:
        counts["cache_creation_input_tokens"] = usage.cache_write
    written[USAGE] = to_json(counts)


def _write_model(found: NormalizedSpan, written: dict[str, Any]) -> None:
    model = found.response_model or found.request_model
    if model:
        written[MODEL] = model
    if provider := resolve_provider(found.provider, model):
        written[PROVIDER] = to_catalog_provider(provider)


def _complete_cost(cost: Cost, usage: Usage | None) -> dict[str, float] | None:
    """Costs with all three keys, without which MLflow takes none of them.

    A source that knows the total only has it divided by the tokens on each side.
    """
    given, answered, total = cost
    if total is None:
        total = (given or 0.0) + (answered or 0.0)
    if not total:
        return None
    if given is None and answered is None:
        tokens_in, tokens_out = (usage.input or 0, usage.output or 0) if usage else (0, 0)
        given = total * tokens_in / (tokens_in + tokens_out) if tokens_in + tokens_out else total
    given = given if given is not None else max(total - (answered or 0.0), 0.0)
    return {
        "input_cost": given,
        "output_cost": answered if answered is not None else total - given,
        "total_cost": total,
    }


def _write_trace(span: SpanState, written: dict[str, Any]) -> None:
    """What MLflow reads on the root only."""
    name = span.observation.title or span.span.name
    if name:
        written[TRACE_NAME] = name[:_MAX_NAME_LENGTH]
    lifted = span.lifted
    if lifted is None:
        return
    if lifted.session:
        written["session.id"] = lifted.session
    if lifted.user:
        written["user.id"] = lifted.user
    tags: dict[str, str] = dict.fromkeys(lifted.tags or (), "true")
    for key, value in (lifted.metadata or {}).items():
        if not key.startswith(_FRAMEWORK_PREFIXES) and key not in _IDENTITY_KEYS and value is not None:
            tags.setdefault(key, to_text(value))
    for key, said in list(tags.items())[:_MAX_TAGS]:
        # MLflow keeps keys of its own among the tags; nobody else's may look like them.
        if key and len(key) <= _MAX_KEY_LENGTH and not key.startswith("mlflow."):
            written[TAG + key] = said[:_MAX_TAG_LENGTH]
    if span.prompts:
        written[LINKED_PROMPTS] = to_json([{"name": each.name, "version": each.version} for each in span.prompts])
