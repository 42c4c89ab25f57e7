"""OpenInference's semantic conventions (openinference-semantic-conventions 0.1)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from openinference.semconv.trace import DocumentAttributes, RerankerAttributes, SpanAttributes

from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys
from mlflow_otlp_exporter._internal.enrichment.kinds import MODEL_KINDS, OPENINFERENCE_KINDS, Kind
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

_TOOLS = SpanAttributes.LLM_TOOLS + "."
_GROUP_NAMES = frozenset(
    {"input_messages", "output_messages", "tools", "prompts", "choices", "token_count", "cost"}
    | {"documents", "input_documents", "output_documents", "embeddings"}
)
_FlatKey = tuple[str, str, str]
COUNT_KEYS = (
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION,
    SpanAttributes.LLM_TOKEN_COUNT_TOTAL,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_READ,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_WRITE,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION_DETAILS_REASONING,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_AUDIO,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION_DETAILS_AUDIO,
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


def read(span: SpanView) -> NormalizedSpan | None:
    attributes = span.attributes
    kind = parse_kind(attributes.get(SpanAttributes.OPENINFERENCE_SPAN_KIND), OPENINFERENCE_KINDS)
    groups = _group_keys(tuple(attributes))
    input_messages, output_messages, covered_keys = _read_all_messages(attributes, kind, groups)
    texts: dict[str, Any] = {}
    for key, field, _ in groups["texts"]:
        text = attributes[key]
        if isinstance(text, str) and text and field not in texts:
            texts[field] = text
    if "response_model" not in texts and kind in (Kind.LLM, Kind.EMBEDDING):
        texts["response_model"] = _read_parameter_model(attributes)
    metadata = parse_structured(attributes[SpanAttributes.METADATA]) if SpanAttributes.METADATA in attributes else None
    if isinstance(metadata, dict):
        texts.setdefault("session", select_text(*map(metadata.get, _SESSION_KEYS)))
        texts.setdefault("user", select_text(metadata.get("user_id")))
    parameters = attributes.get(SpanAttributes.LLM_INVOCATION_PARAMETERS) if kind is Kind.LLM else None
    parameters = parse_structured(parameters)
    return NormalizedSpan(
        kind=kind,
        input_messages=input_messages,
        output_messages=output_messages,
        input=attributes.get(SpanAttributes.INPUT_VALUE),
        output=attributes.get(SpanAttributes.OUTPUT_VALUE),
        tools=_read_tools(attributes, kind, groups),
        documents=_read_documents(attributes, groups, kind),
        input_documents=read_documents(unflatten(attributes, RerankerAttributes.RERANKER_INPUT_DOCUMENTS + "."))
        if "input_documents" in groups
        else None,
        top_k=parse_int(attributes.get(RerankerAttributes.RERANKER_TOP_K)),
        embedded_texts=_read_texts(attributes, groups, "embeddings", "embedding.embeddings.", "embedding"),
        usage=_read_usage(attributes) if "token_count" in groups else None,
        cost=_read_cost(attributes) if "cost" in groups else None,
        invocation_parameters=parameters if isinstance(parameters, dict) else None,
        prompt=read_prompt(attributes, "prompt.version", "prompt.id", "prompt.name"),
        tags=parse_texts(attributes[SpanAttributes.TAG_TAGS]) if SpanAttributes.TAG_TAGS in attributes else None,
        metadata=metadata if isinstance(metadata, dict) else None,
        covered_keys=covered_keys,
        **texts,
    )


def read_crewai(span: SpanView) -> NormalizedSpan | None:
    """Read the question and the answer of a CrewAI crew or task; the question is in the list of the crew's tasks."""
    attributes = span.attributes
    tasks = [
        task["description"]
        for task in parse_objects(attributes.get("crew_tasks"))
        if parse_text(task.get("description"))
    ]
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
def _group_keys(keys: tuple[str, ...]) -> Mapping[str, list[_FlatKey]]:
    """Flattened attributes by group, collected in one pass: key, index, remaining path; `texts`: key, field."""
    key_set = set(keys)
    groups: dict[str, list[_FlatKey]] = {"texts": [(key, field, "") for key, field in _TEXT_FIELDS if key in key_set]}
    for key in keys:
        segments = key.split(".", 3)
        if len(segments) > 2 and segments[1] in _GROUP_NAMES:
            groups.setdefault(segments[1], []).append((key, segments[2], segments[-1]))
    for name in ("input_messages", "output_messages"):
        flat_keys = groups.get(name, ())
        roles = {index: key for key, index, path in flat_keys if path == "message.role"}
        contents = {index: key for key, index, path in flat_keys if path == "message.content"}
        # The keys of role and content by message, if all messages have a content and no other field.
        if flat_keys and len(roles) + len(contents) == len(flat_keys) and contents.keys() >= roles.keys():
            groups[f"{name}."] = [
                (roles.get(index, ""), contents[index], "") for index in sorted(contents, key=index_order)
            ]
    return groups


def _read_flat_messages(
    attributes: Mapping[str, Any], groups: Mapping[str, list[_FlatKey]], group: str, default_role: str
) -> tuple[Message, ...] | None:
    """Messages from flattened attributes; those of nothing but texts, nearly all, skip the general parser."""
    if group not in groups:
        return None
    messages: list[Message] = []
    for role_key, content_key, _ in groups.get(f"{group}.", ()):
        content, source_role = attributes[content_key], attributes[role_key] if role_key else None
        role = ROLES.get(source_role) if isinstance(source_role, str) else default_role
        role = role or normalize_role(source_role, default_role)
        if not isinstance(content, str) or content[:1] in ("", "[") or role == "tool":
            break
        messages.append(Message(role, (Part("text", content),)))
    else:
        if messages:
            return tuple(messages)
    items: dict[str, dict[str, Any]] = {}
    for key, index, path in groups.get(group, ()):
        items.setdefault(index, {})[path] = attributes[key]
    for item in items.values():
        item.update({path: item.pop(path, None) for path in ("message.role", "message.content")})
    parsed = [read_messages([unflatten(items[index], "")], default_role) for index in sorted(items, key=index_order)]
    messages = [message for item in parsed for message in item or ()]
    # LangChain's root has a role, but no content.
    return merge_messages(messages) if has_content(messages) else None


def _read_all_messages(
    attributes: Mapping[str, Any], kind: Kind | None, groups: Mapping[str, list[_FlatKey]]
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None, tuple[str, ...]]:
    """Input and output messages, and the keys of attributes that they cover."""
    input_messages = _read_flat_messages(attributes, groups, "input_messages", "user")
    output_messages = _read_flat_messages(attributes, groups, "output_messages", "assistant")
    covered_keys = [key for key, _, _ in groups["input_messages"]] if input_messages else []
    covered_keys += [key for key, _, _ in groups["output_messages"]] if output_messages else ()
    if input_messages is None:
        prompts = _read_texts(attributes, groups, "prompts", SpanAttributes.LLM_PROMPTS + ".", "prompt")
        input_messages = tuple(Message("user", (Part("text", text),)) for text in prompts or ()) or None
    if output_messages is None:
        completions = _read_texts(attributes, groups, "choices", "llm.choices.", "completion")
        output_messages = tuple(Message("assistant", (Part("text", text),)) for text in completions or ()) or None
    request = attributes.get(SpanAttributes.INPUT_VALUE)
    if kind is Kind.LLM and input_messages and isinstance(request, str) and '"system":' in request:
        # Anthropic's and Bedrock's instructions stand beside the messages.
        input_messages = add_system_message(parse_structured(request), input_messages)
    if kind in (Kind.LLM, Kind.AGENT, Kind.CHAIN, None):
        if input_messages is None or kind is not Kind.LLM:
            input_messages = (request and read_request(request, is_model=kind in MODEL_KINDS)) or input_messages
        if output_messages is None or kind is not Kind.LLM:
            response = attributes.get(SpanAttributes.OUTPUT_VALUE)
            output_messages = (response and read_response(response, is_model=kind in MODEL_KINDS)) or output_messages
    return input_messages, output_messages, tuple(covered_keys)


def _read_tools(
    attributes: Mapping[str, Any], kind: Kind | None, groups: Mapping[str, list[_FlatKey]]
) -> tuple[ToolDefinition, ...] | None:
    if "tools" in groups:
        entries = unflatten(attributes, _TOOLS)
        schemas = [entry.get("tool", {}).get("json_schema") for entry in entries if isinstance(entry, dict)]
        tools = read_tools([schema for schema in schemas if schema])
        if tools:
            return tools
    if kind is not Kind.LLM:
        return None
    keys = (SpanAttributes.LLM_INVOCATION_PARAMETERS, SpanAttributes.INPUT_VALUE)
    return next(filter(None, map(find_tools, _parse_holders(attributes, keys, '"tools"'))), None)


def _parse_holders(attributes: Mapping[str, Any], keys: Iterable[str], mark: str) -> Iterator[dict[str, Any]]:
    """The objects in attributes; JSON text only if it contains the mark."""
    for key in keys:
        value = attributes.get(key)
        if value is not None and (not isinstance(value, str) or mark in value):
            holder = parse_structured(value)
            if isinstance(holder, dict):
                yield holder


def _read_documents(
    attributes: Mapping[str, Any], groups: Mapping[str, list[_FlatKey]], kind: Kind | None
) -> tuple[Document, ...] | None:
    if "documents" in groups:
        return read_documents(unflatten(attributes, SpanAttributes.RETRIEVAL_DOCUMENTS + "."))
    if "output_documents" in groups:
        return read_documents(unflatten(attributes, RerankerAttributes.RERANKER_OUTPUT_DOCUMENTS + "."))
    if kind is Kind.RETRIEVER:
        value = parse_structured(attributes.get(SpanAttributes.OUTPUT_VALUE))
        return read_documents(value.get("documents") if isinstance(value, dict) else value)
    return None


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
        content = select_text(
            document.get(DocumentAttributes.DOCUMENT_CONTENT.rpartition(".")[2]),
            document.get("page_content"),
            document.get("text"),
        ) or _read_parts(document.get("content"))
        if content is None:
            return None
        metadata = parse_structured(document.get("metadata", document.get("meta")))
        documents.append(
            Document(
                content,
                str(document.get("id", document.get("id_")) or ""),
                parse_float(document.get("score")),
                metadata if isinstance(metadata, dict) else None,
            )
        )
    return tuple(documents)


def _read_parts(parts: Any) -> str | None:
    """The text of a document in parts, as Genkit writes it."""
    texts = (
        [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if isinstance(parts, list)
        else []
    )
    return "\n".join(texts) or None


def _read_texts(
    attributes: Mapping[str, Any], groups: Mapping[str, list[_FlatKey]], group: str, prefix: str, name: str
) -> tuple[str, ...] | None:
    """The texts of flattened objects below a prefix: `PREFIX.0.NAME.text` and so on."""
    if group not in groups:
        return None
    entries = unflatten(attributes, prefix)
    texts = [entry.get(name, {}).get("text") for entry in entries if isinstance(entry, dict)]
    return tuple(text for text in texts if isinstance(text, str)) or None


def _read_usage(attributes: Mapping[str, Any]) -> Usage | None:
    usage = Usage(*(parse_int(attributes.get(key)) for key in COUNT_KEYS))
    return usage if usage.input is not None or usage.output is not None or usage.total is not None else None


def _read_cost(attributes: Mapping[str, Any]) -> Cost | None:
    cost = Cost(*(parse_float(attributes.get(key)) for key in _COST_KEYS))
    return cost if any(cost) else None


def _read_parameter_model(attributes: Mapping[str, Any]) -> str | None:
    """The model of a failed call is only among the parameters."""
    keys = (
        SpanAttributes.LLM_INVOCATION_PARAMETERS,
        SpanAttributes.EMBEDDING_INVOCATION_PARAMETERS,
        SpanAttributes.INPUT_VALUE,
    )
    holders = _parse_holders(attributes, keys, '"model')
    return next(filter(None, (select_text(holder.get("model"), holder.get("model_name")) for holder in holders)), None)


def read_prompt(attributes: Mapping[str, Any], version_key: str, *name_keys: str) -> Prompt | None:
    name = select_text(*map(attributes.get, name_keys))
    return Prompt(name, str(attributes.get(version_key) or "")) if name else None
