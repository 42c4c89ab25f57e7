"""MLflow's attributes: what its console, search and scorers read (measured on 3.17.2)."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys
from mlflow_otlp_exporter._internal.enrichment.kinds import AGENT, EMBEDDING, MODEL_KINDS, TO_MLFLOW, TOOL, Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Cost, Document, Message, Part, Usage
from mlflow_otlp_exporter._internal.enrichment.payloads import read_other_fields, simplify_call
from mlflow_otlp_exporter._internal.enrichment.providers import resolve_provider, strip_provider, to_catalog_provider
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanState
from mlflow_otlp_exporter._internal.enrichment.tools import is_repr, normalize_schema, unwrap_result
from mlflow_otlp_exporter._internal.enrichment.values import decode_json, to_json, to_text
from mlflow_otlp_exporter._internal.enrichment.writers.openinference import has_all_counts
from mlflow_otlp_exporter._internal.model.spans import Utf8Text, escape_json

INPUTS, OUTPUTS, TYPE = "mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.spanType"
TOOLS, USAGE, MESSAGES = "mlflow.chat.tools", "mlflow.chat.tokenUsage", "mlflow.chat.messages"
COST, LOG_LEVEL = "mlflow.llm.cost", "mlflow.spanLogLevel"
MODEL, PROVIDER, TAG = "mlflow.llm.model", "mlflow.llm.provider", "mlflow.traceTag."
TRACE_NAME, LINKED_PROMPTS = TAG + "mlflow.traceName", TAG + "mlflow.linkedPrompts"
_MAX_NAME_LENGTH, _MAX_KEY_LENGTH, _MAX_TAG_LENGTH, _MAX_TAGS = 4096, 250, 4096, 100
# The console plays no other audio formats.
_AUDIO_FORMATS = frozenset({"wav", "mp3"})
# Prefixes of keys that frameworks add to metadata for their own use.
_FRAMEWORK_PREFIXES = ("langgraph_", "ls_", "lc_", "checkpoint_", "__pregel")
_IDENTITY_KEYS = frozenset(
    {"session_id", "thread_id", "user_id", "conversation_id", "sessionId", "userId", "checkpoint_ns"}
)
# Parameters whose content is elsewhere, or that are not of interest.
_IGNORED_PARAMETERS = frozenset(
    {"messages", "input", "inputs", "prompt", "prompts", "tools", "functions", "instructions", "system", "output"}
    | {"model", "model_name", "id", "created_at", "metadata", "_type", "extra_body", "response_format"}
)
# As in MLflow's SDK: the console's filter can hide all other spans, because a span without a level counts as DEBUG.
_INFO_KINDS = frozenset({Kind.CHAT_MODEL, Kind.LLM, Kind.TOOL, Kind.RETRIEVER, Kind.AGENT, Kind.EMBEDDING})
_LEVEL_INFO, _LEVEL_ERROR = 20, 40
_CONSTANTS: dict[Kind | None, dict[str, Any]] = {
    kind: {TYPE: name} | ({LOG_LEVEL: _LEVEL_INFO} if kind in _INFO_KINDS else {})
    for kind, name in (*TO_MLFLOW.items(), (None, Kind.UNKNOWN.value))
}
# The beginning of a message that has a role and a text only, by its role.
_PLAIN_STARTS = {role: f'{{"role": "{role}", "content": ' for role in ("system", "user", "assistant")}
# Bytes that UTF-8 never has, one for each of these roles and one for all other messages.
_MARKS, _OTHER_MARK = {"system": b"\xfd", "user": b"\xfe", "assistant": b"\xff"}, b"\xfc"
_SEPARATORS = {mark: f'"}}, {_PLAIN_STARTS[role]}"'.encode() for role, mark in _MARKS.items()}
_MIN_ENCODED_LENGTH = 2000
_RETRIEVAL_KINDS = frozenset({Kind.RETRIEVER, Kind.RERANKER, Kind.MEMORY})
_PRICED_KINDS = frozenset({Kind.CHAT_MODEL, Kind.LLM, Kind.EMBEDDING, Kind.RERANKER})


def write(span: SpanState) -> dict[str, Any]:
    """MLflow's attributes for a span; those that the span has already take precedence."""
    normalized, kind = span.normalized, span.kind
    attributes = _CONSTANTS[kind].copy()
    if span.has_failed:
        attributes[LOG_LEVEL] = _LEVEL_ERROR
    if kind in MODEL_KINDS:
        _write_chat(span, attributes)
    elif kind is TOOL:
        _write_values(normalized.input, unwrap_result(normalized.output), attributes)
    elif kind in _RETRIEVAL_KINDS and (normalized.documents or normalized.query):
        _write_retrieval(span, attributes)
    elif kind is EMBEDDING:
        if normalized.embedded_texts:
            attributes[INPUTS] = to_json({"input": list(normalized.embedded_texts)})
    else:
        _write_input_output(span, attributes)
    usage = normalized.usage if span.counts_usage else None
    # Every MLflow reads OpenInference's counts. 3.6 misreads this attribute, and then reads no other.
    if usage is not None and (USAGE in span.attributes or not has_all_counts(usage, span.attributes)):
        _write_usage(usage, attributes)
    if kind in _PRICED_KINDS:
        model = normalized.response_model or normalized.request_model or ""
        attributes |= _describe_model((normalized.provider or "", model))
    # MLflow 3.18 prices no agent by its tokens, but accepts a cost that the source states.
    if normalized.cost is not None and span.counts_usage and (kind in _PRICED_KINDS or kind is AGENT):
        costs = _complete_cost(normalized.cost, normalized.usage)
        if costs:
            attributes[COST] = to_json(costs)
    if span.is_local_root:
        _write_trace(span, attributes)
    return attributes


def _write_chat(span: SpanState, attributes: dict[str, Any]) -> None:
    normalized = span.normalized
    input_messages, output_messages = normalized.input_messages, normalized.output_messages
    tools = [_build_tool(*tool) for tool in normalized.tools] if normalized.tools else None
    if input_messages:
        fields = {
            key: value
            for key, value in (normalized.invocation_parameters or {}).items()
            if key not in _IGNORED_PARAMETERS and value not in (None, "", [], {})
        }
        texts = _read_texts(input_messages)
        if None in texts and (files := _collect_files(input_messages)):
            # A chat message cannot hold them; the console displays them next to the chat.
            fields["files"] = files
        value = span.attributes.get("input.value") if tools else None
        if isinstance(value, str) and '"tools"' in value:
            # MLflow before 3.13 accepts no list as JSON text: keep the tools that it displays from the request.
            fields["tools"] = tools
        model = normalized.request_model or normalized.response_model
        end = (f'], "model": {to_json(model)}' if model else "]") + (f", {to_json(fields)[1:]}" if fields else "}")
        attributes[INPUTS] = _encode_request(input_messages, texts, end)
    elif normalized.input is not None and not isinstance(normalized.input, str):
        attributes[INPUTS] = to_json(normalized.input)
    if output_messages:
        attributes[OUTPUTS] = _encode_choices(output_messages, normalized.finish_reason)
    elif input_messages:
        # The console displays no chat if the outputs are missing, for example after a failed call.
        attributes[MESSAGES] = to_json([_build_message(message) for message in input_messages])
    if tools:
        attributes[TOOLS] = to_json(tools)


def _read_texts(messages: Sequence[Message]) -> list[str | None]:
    """The texts of messages that have a role and a text only; None for other messages."""
    return [
        None
        if calls or name or reasoning or len(parts) != 1 or parts[0].kind != "text" or role not in _PLAIN_STARTS
        else parts[0].text
        for role, parts, calls, _, name, reasoning in messages
    ]


def _encode_request(messages: Sequence[Message], texts: Sequence[str | None], end: str) -> str | bytes:
    """A request as JSON text; in UTF-8 if it is long, which takes a third of the time."""
    if sum(map(len, filter(None, texts))) >= _MIN_ENCODED_LENGTH:
        try:
            return Utf8Text(b"".join((b'{"messages": [', _join_messages(messages, texts), end.encode())))
        except UnicodeEncodeError:  # a surrogate
            pass
    return '{"messages": [' + ", ".join(_encode_messages(messages, texts)) + end


def _join_messages(messages: Sequence[Message], texts: Sequence[str | None]) -> bytes:
    """Messages as JSON in UTF-8: their texts are escaped at once, then marks are replaced by what stands between."""
    pairs = list(zip(messages, texts, strict=True))
    pieces = [_OTHER_MARK if text is None else _MARKS[message.role] + text.encode() for message, text in pairs]
    content = escape_json(b"".join(pieces))
    for mark, separator in _SEPARATORS.items():
        content = content.replace(mark, separator)
    plain = [run and run[4:] + b'"}' for run in (content.split(_OTHER_MARK) if None in texts else (content,))]
    others = [to_json(_build_message(message)).encode() for message, text in pairs if text is None]
    return b", ".join(filter(None, chain.from_iterable(zip_longest(plain, others))))


def _encode_messages(messages: Sequence[Message], texts: Sequence[str | None]) -> list[str]:
    return [
        to_json(_build_message(message)) if text is None else f"{_PLAIN_STARTS[message.role]}{to_json(text)}}}"
        for message, text in zip(messages, texts, strict=True)
    ]


def _encode_choices(messages: Sequence[Message], reason: str | None) -> str:
    end = f', "finish_reason": {to_json(reason)}}}' if reason else "}"
    encoded = _encode_messages(messages, _read_texts(messages))
    choices = [f'{{"index": {index}, "message": {message}{end}' for index, message in enumerate(encoded)]
    return f'{{"choices": [{", ".join(choices)}]}}'


def _collect_files(messages: Sequence[Message]) -> list[str]:
    """References to uploaded files that a chat cannot display: neither images nor audio in a known format."""
    parts = [part for message in messages for part in message.parts if part.url and part.url.startswith(ATTACHMENT)]
    return list(dict.fromkeys([part.url for part in parts if _build_content_part(part)["type"] == "text"]))


def _build_tool(name: str, description: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "parameters": normalize_schema(parameters)}
    if description:
        function["description"] = description
    return {"type": "function", "function": function}


def _build_message(message: Message) -> dict[str, Any]:
    """A message as MLflow's console accepts it; a single invalid message would hide all others."""
    parts = message.parts
    is_text = len(parts) == 1 and parts[0].kind == "text"
    result: dict[str, Any] = {"role": message.role, "content": parts[0].text if is_text else _build_content(message)}
    if message.tool_calls:
        result["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        result["tool_call_id"] = message.tool_call_id
    if message.name:
        result["name"] = message.name
    if message.reasoning:
        result["reasoning"] = message.reasoning
    return result


def _build_content(message: Message) -> Any:
    if not message.parts:
        return None if message.tool_calls or message.reasoning else ""
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
    label = part.text or (part.url if not part.url.startswith(("data:", ATTACHMENT)) else "")
    return {"type": "text", "text": f"[{part.kind} {label or part.format}]".replace(" ]", "]")}


def _write_values(input_value: Any, output_value: Any, attributes: dict[str, Any]) -> None:
    if input_value is not None:
        attributes[INPUTS] = to_json(decode_json(input_value))
    if output_value is not None:
        attributes[OUTPUTS] = to_json(output_value)


def _write_retrieval(span: SpanState, attributes: dict[str, Any]) -> None:
    normalized = span.normalized
    query = normalized.query if normalized.query is not None else normalized.input
    if span.kind is Kind.RERANKER:
        request: dict[str, Any] = {}
        if query is not None:
            request["query"] = query
        if normalized.input_documents:
            request["documents"] = [_build_document(document) for document in normalized.input_documents]
        if normalized.top_k is not None:
            request["top_k"] = normalized.top_k
        if request:
            attributes[INPUTS] = to_json(request)
    elif query is not None:
        attributes[INPUTS] = to_json(decode_json(query))
    if normalized.documents:
        attributes[OUTPUTS] = to_json([_build_document(document) for document in normalized.documents])


def _build_document(document: Document) -> dict[str, Any]:
    metadata = dict(document.metadata or {})
    if document.score is not None:
        metadata.setdefault("score", document.score)
    if "doc_uri" not in metadata and isinstance(source := metadata.get("source"), str):
        metadata["doc_uri"] = source  # MLflow's retrieval scorers cite this key
    result: dict[str, Any] = {"page_content": document.content, "metadata": metadata}
    if document.id:
        result["id"] = document.id
    return result


def _write_input_output(span: SpanState, attributes: dict[str, Any]) -> None:
    """Inputs and outputs of agents, chains and other spans around calls.

    A root and an agent get the last text of the user and the final answer only, for previews, sessions and scorers:
    MLflow takes all messages in the inputs for the user's turn.
    """
    normalized = span.normalized
    has_preview = span.is_local_root or span.kind is AGENT
    if has_preview and span.question:
        question: dict[str, Any] = {"messages": [{"role": "user", "content": span.question}]}
        attributes[INPUTS] = to_json(question | read_other_fields(normalized.input, span.question))
    elif normalized.input_messages and not has_preview:
        attributes[INPUTS] = to_json({"messages": [_build_message(message) for message in normalized.input_messages]})
    elif normalized.input is not None:
        _write_value(INPUTS, normalized.input, span.attributes.get("input.value"), attributes)
    if has_preview and span.answer:
        answer = {"role": "assistant", "content": span.answer}
        choices: dict[str, Any] = {"choices": [{"index": 0, "message": answer}]}
        attributes[OUTPUTS] = to_json(choices | read_other_fields(normalized.output, span.answer))
    elif normalized.output_messages and not has_preview:
        attributes[OUTPUTS] = _encode_choices(normalized.output_messages, normalized.finish_reason)
    elif normalized.output is not None and not is_repr(normalized.output):
        _write_value(OUTPUTS, normalized.output, span.attributes.get("output.value"), attributes)
    if normalized.transcript and span.kind is AGENT and not has_preview:
        attributes[MESSAGES] = to_json([_build_message(message) for message in normalized.transcript])


def _write_value(key: str, value: Any, openinference_value: Any, attributes: dict[str, Any]) -> None:
    decoded = decode_json(value)
    simple = simplify_call(decoded)
    # MLflow reads OpenInference's attribute itself.
    if value != openinference_value or simple is not decoded:
        attributes[key] = to_json(simple)


def _write_usage(usage: Usage, attributes: dict[str, Any]) -> None:
    """Token counts, always with a total: without output tokens, MLflow computes a total of 0."""
    input_tokens, output_tokens = usage.input, usage.output
    if input_tokens is None and output_tokens is None and usage.total is None:
        return
    total = usage.total if usage.total is not None else (input_tokens or 0) + (output_tokens or 0)
    counts = {
        "input_tokens": input_tokens if input_tokens is not None else max(total - (output_tokens or 0), 0),
        "output_tokens": output_tokens if output_tokens is not None else max(total - (input_tokens or 0), 0),
        "total_tokens": total,
    }
    if usage.cache_read:
        counts["cache_read_input_tokens"] = usage.cache_read
    if usage.cache_write:
        counts["cache_creation_input_tokens"] = usage.cache_write
    if usage.cache_write_1h:
        counts["cache_creation_input_tokens_above_1hr"] = usage.cache_write_1h
    attributes[USAGE] = "{" + ", ".join([f'"{name}": {count}' for name, count in counts.items()]) + "}"


@cache_by_keys
def _describe_model(names: tuple[str, ...]) -> dict[str, str]:
    provider, model = resolve_provider(*names), names[1]
    attributes = {MODEL: strip_provider(model, provider)} if model else {}
    return attributes | {PROVIDER: to_catalog_provider(provider)} if provider else attributes


def _complete_cost(cost: Cost, usage: Usage | None) -> dict[str, float] | None:
    """Costs with all three keys, because MLflow ignores incomplete ones.

    If only the total is known, it is divided by the tokens of input and output.
    """
    input_cost, output_cost, total = cost
    if total is None:
        total = (input_cost or 0.0) + (output_cost or 0.0)
    if not total:
        return None
    if input_cost is None and output_cost is None:
        input_tokens, output_tokens = (usage.input or 0, usage.output or 0) if usage else (0, 0)
        input_cost = total * input_tokens / (input_tokens + output_tokens) if input_tokens + output_tokens else total
    input_cost = input_cost if input_cost is not None else max(total - (output_cost or 0.0), 0.0)
    return {
        "input_cost": input_cost,
        "output_cost": output_cost if output_cost is not None else total - input_cost,
        "total_cost": total,
    }


def _write_trace(span: SpanState, attributes: dict[str, Any]) -> None:
    """Attributes that MLflow reads on the root only."""
    if name := span.normalized.trace_name or span.span.name:
        attributes[TRACE_NAME] = name[:_MAX_NAME_LENGTH]
    trace_fields = span.trace_fields
    if trace_fields is None:
        return
    identity = (("session.id", trace_fields.session), ("user.id", trace_fields.user))
    attributes.update((key, value) for key, value in identity if value)
    tags: dict[str, str] = dict.fromkeys(trace_fields.tags or (), "true")
    for key, value in (trace_fields.metadata or {}).items():
        if not key.startswith(_FRAMEWORK_PREFIXES) and key not in _IDENTITY_KEYS and value is not None:
            tags.setdefault(key, to_text(value))
    for key, value in list(tags.items())[:_MAX_TAGS]:
        # Tags that begin with `mlflow.` are reserved for MLflow.
        if key and len(key) <= _MAX_KEY_LENGTH and not key.startswith("mlflow."):
            attributes[TAG + key] = value[:_MAX_TAG_LENGTH]
    if span.prompts:
        attributes[LINKED_PROMPTS] = to_json(
            [{"name": prompt.name, "version": prompt.version} for prompt in span.prompts]
        )
