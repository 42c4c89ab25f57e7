"""OpenInference's semantic conventions (openinference-semantic-conventions 0.1)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from openinference.semconv.trace import RerankerAttributes, SpanAttributes

from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys
from mlflow_otlp_exporter._internal.enrichment.kinds import (
    AGENT,
    EMBEDDING,
    LLM,
    MODEL_KINDS,
    OPENINFERENCE_KINDS,
    Kind,
)
from mlflow_otlp_exporter._internal.enrichment.messages import ROLES, merge_messages, normalize_role, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    Cost,
    Document,
    Message,
    NormalizedSpan,
    Part,
    Prompt,
    ToolDefinition,
    Usage,
    has_content,
)
from mlflow_otlp_exporter._internal.enrichment.payloads import add_system_message, read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, index_order, unflatten
from mlflow_otlp_exporter._internal.enrichment.tools import find_tools, read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    parse_float,
    parse_int,
    parse_kind,
    parse_objects,
    parse_repr,
    parse_structured,
    parse_text,
    parse_texts,
    select_text,
)

_GROUP_NAMES = frozenset(
    {"input_messages", "output_messages", "tools", "prompts", "choices", "token_count", "cost"}
    | {"documents", "input_documents", "output_documents", "embeddings"}
)
_MODELED_KINDS = frozenset({LLM, EMBEDDING})
_CONVERSATION_KINDS = frozenset({LLM, AGENT, Kind.CHAIN, None})
_INPUT, _OUTPUT, _PARAMETERS = "input.value", "output.value", SpanAttributes.LLM_INVOCATION_PARAMETERS
_EMBEDDING_PARAMETERS, _TOP_K = SpanAttributes.EMBEDDING_INVOCATION_PARAMETERS, RerankerAttributes.RERANKER_TOP_K
_MODEL_HOLDERS = (_PARAMETERS, _EMBEDDING_PARAMETERS, _INPUT)
_Value = TypeVar("_Value")
_new = tuple.__new__
COUNT_KEYS = tuple(
    f"llm.token_count.{count}"
    for count in (
        *("prompt", "completion", "total", "prompt_details.cache_read", "prompt_details.cache_write"),
        *("completion_details.reasoning", "prompt_details.audio", "completion_details.audio"),
    )
)
# LangGraph writes its configuration as metadata.
_SESSION_KEYS = ("session_id", "thread_id")
# Fields that are a text; of several attributes for one field, the first counts.
_TEXT_FIELDS = (
    (SpanAttributes.TOOL_NAME, "tool_name"),
    (SpanAttributes.TOOL_DESCRIPTION, "tool_description"),
    ("tool.id", "tool_call_id"),
    (RerankerAttributes.RERANKER_QUERY, "query"),
    ("llm.request.model_name", "request_model"),
    ("llm.response.model_name", "response_model"),
    (SpanAttributes.LLM_MODEL_NAME, "response_model"),
    (SpanAttributes.EMBEDDING_MODEL_NAME, "response_model"),
    (RerankerAttributes.RERANKER_MODEL_NAME, "response_model"),
    (SpanAttributes.LLM_PROVIDER, "provider"),
    (SpanAttributes.LLM_SYSTEM, "provider"),
    ("llm.finish_reason", "finish_reason"),
    (SpanAttributes.SESSION_ID, "session"),
    (SpanAttributes.USER_ID, "user"),
    ("agent.name", "agent_name"),
)
_COST_KEYS = ("llm.cost.prompt", "llm.cost.completion", "llm.cost.total")


class _Plan(NamedTuple):
    """What the keys of attributes tell."""

    texts: list[tuple[str, str]]  # key, field
    fields: list[tuple[str, Callable[[Mapping[str, Any]], Any]]]  # field, reader
    groups: Mapping[str, list[tuple[str, str, str]]]  # flattened attributes: key, index, remaining path
    # The keys of role and content by message, if all messages have a content and no other field.
    pairs: Mapping[str, list[tuple[str | None, str]]]
    message_keys: Mapping[str, tuple[str, ...]]  # all keys of a group of messages
    has_messages: bool


def read(span: SpanView) -> NormalizedSpan | None:
    attributes = span.attributes
    plan = _make_plan(tuple(attributes))
    kind = parse_kind(attributes.get(SpanAttributes.OPENINFERENCE_SPAN_KIND), OPENINFERENCE_KINDS)
    request, response = attributes.get(_INPUT), attributes.get(_OUTPUT)
    fields: dict[str, Any] = {"kind": kind, "input": request, "output": response}
    for key, field in plan.texts:
        text = attributes[key]
        if isinstance(text, str) and text and field not in fields:
            fields[field] = text
    for field, read_field in plan.fields:
        fields[field] = read_field(attributes)
    if metadata := fields.get("metadata"):
        fields.setdefault("session", select_text(*map(metadata.get, _SESSION_KEYS)))
        fields.setdefault("user", select_text(metadata.get("user_id")))
    if plan.has_messages or (kind in _CONVERSATION_KINDS and (request or response)):
        _read_all_messages(attributes, kind, plan, fields)
    if kind is LLM:
        fields["invocation_parameters"] = _parse_object(attributes.get(_PARAMETERS))
        if not fields.get("tools"):
            fields["tools"] = _find_in_holders(attributes, (_PARAMETERS, _INPUT), '"tools"', find_tools)
        if fields.get("input_messages") or fields.get("output_messages"):
            fields["kind"] = Kind.CHAT_MODEL
    elif kind is Kind.RETRIEVER and response and not any(doc.id or doc.score for doc in fields.get("documents") or ()):
        # OpenInference's instrumentation of LangChain records ids in the output only.
        value = parse_structured(response)
        value = value.get("documents") if isinstance(value, dict) else value
        fields["documents"] = read_documents(value) or fields.get("documents")
    if "response_model" not in fields and kind in _MODELED_KINDS:
        # The model of a failed call is only among the parameters.
        fields["response_model"] = _find_in_holders(
            attributes, _MODEL_HOLDERS, '"model', lambda holder: select_text(*map(holder.get, ("model", "model_name")))
        )
    return NormalizedSpan(**fields)


def read_crewai(span: SpanView) -> NormalizedSpan | None:
    """Read the question and the answer of a CrewAI crew or task; the question is in the list of the crew's tasks."""
    attributes = span.attributes
    descriptions = [parse_text(task.get("description")) for task in parse_objects(attributes.get("crew_tasks"))]
    tasks = [description for description in descriptions if description]
    result = parse_structured(attributes.get("output.value"))
    answer = select_text(result.get("raw")) if isinstance(result, dict) else None
    description = None
    if isinstance(result, dict) and not tasks and "task_id" in attributes:
        description = select_text(result.get("description"))
    question = "\n".join(tasks) or description
    return NormalizedSpan(input=question, output=answer) if question or answer else None


def read_litellm_traffic(span: SpanView) -> NormalizedSpan | None:
    """Read LiteLLM's span below a call: the provider's request, which alone has the tools of a call of Responses."""
    if span.name != "raw_gen_ai_request":
        return None
    fields = {key.rpartition(".")[2]: value for key, value in span.attributes.items() if key.startswith("llm.")}
    # The usage is that of the span above. An empty input keeps it from being searched for.
    return NormalizedSpan(
        kind=Kind.TASK, input=fields.get("messages", ""), tools=read_tools(parse_repr(fields.get("tools")))
    )


@cache_by_keys
def _make_plan(keys: tuple[str, ...]) -> _Plan:
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for key in keys:
        segments = key.split(".", 3)
        if len(segments) > 2 and segments[1] in _GROUP_NAMES:
            groups.setdefault(segments[1], []).append((key, segments[2], segments[-1]))
    pairs, message_keys = {}, {}
    for name in ("input_messages", "output_messages"):
        flat_keys = groups.get(name, ())
        roles = {index: key for key, index, path in flat_keys if path == "message.role"}
        contents = {index: key for key, index, path in flat_keys if path == "message.content"}
        message_keys[name] = tuple([key for key, _, _ in flat_keys])
        is_plain = len(roles) + len(contents) == len(flat_keys) and contents.keys() >= roles.keys()
        pairs[name] = [(roles.get(index), contents[index]) for index in sorted(contents, key=index_order) if is_plain]
    names = {*keys, *[f"{group}." for group in groups]}
    return _Plan(
        [(key, field) for key, field in _TEXT_FIELDS if key in names],
        [(field, read_field) for name, field, read_field in _FIELD_READERS if name in names],
        groups,
        pairs,
        message_keys,
        not groups.keys().isdisjoint(("input_messages", "output_messages", "prompts", "choices")),
    )


def _read_flat_messages(
    attributes: Mapping[str, Any], plan: _Plan, group: str, default_role: str
) -> tuple[Message, ...] | None:
    """Messages from flattened attributes; those of nothing but texts, nearly all, skip the general parser."""
    if group not in plan.groups:
        return None
    messages: list[Message] = []
    for role_key, content_key in plan.pairs[group]:
        content, source_role = attributes[content_key], attributes[role_key] if role_key else None
        role = ROLES.get(source_role) if isinstance(source_role, str) else default_role
        role = role or normalize_role(source_role, default_role)
        if not isinstance(content, str) or content[:2] in ("", "[{", "[ ") or role == "tool":
            break
        # As Message(role, (Part("text", content),)), in a third of the time.
        messages.append(_new(Message, (role, (_new(Part, ("text", content, "", "", "")),), (), "", "", "")))
    else:
        if messages:
            return tuple(messages)
    items: dict[str, dict[str, Any]] = {}
    for key, index, path in plan.groups[group]:
        items.setdefault(index, {})[path] = attributes[key]
    for item in items.values():
        item.update({path: item.pop(path, None) for path in ("message.role", "message.content")})
    parsed = [read_messages([unflatten(items[index], "")], default_role) for index in sorted(items, key=index_order)]
    messages = [message for item in parsed for message in item or ()]
    # LangChain's root has a role, but no content.
    return merge_messages(messages) if has_content(messages) else None


def _read_all_messages(attributes: Mapping[str, Any], kind: Kind | None, plan: _Plan, fields: dict[str, Any]) -> None:
    """Set input and output messages, and the keys of attributes that they cover."""
    input_messages = _read_flat_messages(attributes, plan, "input_messages", "user")
    output_messages = _read_flat_messages(attributes, plan, "output_messages", "assistant")
    covered_keys = plan.message_keys["input_messages"] if input_messages else ()
    covered_keys += plan.message_keys["output_messages"] if output_messages else ()
    if input_messages is None and "prompts" in plan.groups:
        prompts = _read_texts(attributes, SpanAttributes.LLM_PROMPTS + ".", "prompt")
        input_messages = tuple(Message("user", (Part("text", text),)) for text in prompts or ()) or None
    if output_messages is None and "choices" in plan.groups:
        completions = _read_texts(attributes, "llm.choices.", "completion")
        output_messages = tuple(Message("assistant", (Part("text", text),)) for text in completions or ()) or None
    request, response = fields["input"], fields["output"]
    if kind is LLM and input_messages and isinstance(request, str) and '"system":' in request:
        # Anthropic's and Bedrock's instructions stand beside the messages.
        input_messages = add_system_message(parse_structured(request), input_messages)
    if kind in _CONVERSATION_KINDS:
        if request and (input_messages is None or kind is not LLM):
            input_messages = read_request(request, is_model=kind in MODEL_KINDS) or input_messages
        if response and (output_messages is None or kind is not LLM):
            output_messages = read_response(response, is_model=kind in MODEL_KINDS) or output_messages
    fields.update(input_messages=input_messages, output_messages=output_messages, covered_keys=covered_keys)


def _read_flat_tools(attributes: Mapping[str, Any]) -> tuple[ToolDefinition, ...] | None:
    entries = unflatten(attributes, SpanAttributes.LLM_TOOLS + ".")
    schemas = [entry.get("tool", {}).get("json_schema") for entry in entries if isinstance(entry, dict)]
    return read_tools([schema for schema in schemas if schema])


def _find_in_holders(
    attributes: Mapping[str, Any], keys: Iterable[str], mark: str, find: Callable[[dict[str, Any]], _Value | None]
) -> _Value | None:
    """The first result from the objects in attributes; JSON text is parsed only if it contains the mark."""
    for value in map(attributes.get, keys):
        holder = _parse_object(value) if not isinstance(value, str) or mark in value else None
        if holder is not None and (result := find(holder)):
            return result
    return None


def _read_flat_documents(prefix: str, attributes: Mapping[str, Any]) -> tuple[Document, ...] | None:
    return read_documents(unflatten(attributes, prefix + "."))


def read_documents(value: Any) -> tuple[Document, ...] | None:
    """The documents in a list of objects; None if one of them has no content."""
    if not isinstance(value, list) or not value:
        return None
    documents: list[Document] = []
    for item in value:
        if not isinstance(item, dict):
            return None
        nested = item.get("document", item.get("node"))  # LlamaIndex
        document = {**item, **nested} if isinstance(nested, dict) else item
        texts = map(document.get, ("content", "page_content", "text"))
        content = select_text(*texts) or _read_parts(document.get("content"))
        if content is None:
            return None
        metadata = _parse_object(document.get("metadata", document.get("meta")))
        document_id = str(document.get("id", document.get("id_")) or "")
        documents.append(Document(content, document_id, parse_float(document.get("score")), metadata))
    return tuple(documents)


def _read_parts(parts: Any) -> str | None:
    """The text of a document in parts, as Genkit writes it."""
    items = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join([item["text"] for item in items if isinstance(item.get("text"), str)]) or None


def _read_texts(attributes: Mapping[str, Any], prefix: str, name: str) -> tuple[str, ...] | None:
    """The texts of flattened objects below a prefix: `PREFIX.0.NAME.text` and so on."""
    entries = unflatten(attributes, prefix)
    texts = [entry.get(name, {}).get("text") for entry in entries if isinstance(entry, dict)]
    return tuple(text for text in texts if isinstance(text, str)) or None


def _read_usage(attributes: Mapping[str, Any]) -> Usage | None:
    usage = Usage(*[parse_int(attributes[key]) if key in attributes else None for key in COUNT_KEYS])
    return usage if usage.input is not None or usage.output is not None or usage.total is not None else None


def _read_cost(attributes: Mapping[str, Any]) -> Cost | None:
    cost = Cost(*(parse_float(attributes.get(key)) for key in _COST_KEYS))
    return cost if any(cost) else None


def _parse_object(value: Any) -> dict[str, Any] | None:
    parsed = parse_structured(value)
    return parsed if isinstance(parsed, dict) else None


def read_prompt(attributes: Mapping[str, Any], version_key: str, *name_keys: str) -> Prompt | None:
    name = select_text(*map(attributes.get, name_keys))
    return Prompt(name, str(attributes.get(version_key) or "")) if name else None


def _read_prompt(attributes: Mapping[str, Any]) -> Prompt | None:
    return read_prompt(attributes, "prompt.version", "prompt.id", "prompt.name")


# Fields that are parsed, or read from several attributes: a key, or a group with a dot, that must be there, field,
# reader. Of several for one field, the last counts.
_FIELD_READERS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Any]], ...] = (
    ("token_count.", "usage", _read_usage),
    ("cost.", "cost", _read_cost),
    ("tools.", "tools", _read_flat_tools),
    ("metadata", "metadata", lambda attributes: _parse_object(attributes["metadata"])),
    (SpanAttributes.TAG_TAGS, "tags", lambda attributes: parse_texts(attributes[SpanAttributes.TAG_TAGS])),
    ("prompt.id", "prompt", _read_prompt),
    ("prompt.name", "prompt", _read_prompt),
    ("embeddings.", "embedded_texts", lambda attributes: _read_texts(attributes, "embedding.embeddings.", "embedding")),
    (_TOP_K, "top_k", lambda attributes: parse_int(attributes[_TOP_K])),
    ("input_documents.", "input_documents", partial(_read_flat_documents, RerankerAttributes.RERANKER_INPUT_DOCUMENTS)),
    ("output_documents.", "documents", partial(_read_flat_documents, RerankerAttributes.RERANKER_OUTPUT_DOCUMENTS)),
    ("documents.", "documents", partial(_read_flat_documents, SpanAttributes.RETRIEVAL_DOCUMENTS)),
)
