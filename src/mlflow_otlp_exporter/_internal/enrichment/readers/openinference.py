"""OpenInference's semantic conventions (openinference-semantic-conventions 0.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openinference.semconv.trace import (
    DocumentAttributes,
    RerankerAttributes,
    SpanAttributes,
)

from mlflow_otlp_exporter._internal.enrichment.kinds import is_model, parse_openinference_kind
from mlflow_otlp_exporter._internal.enrichment.messages import merge_messages, normalize_role, read_messages
from mlflow_otlp_exporter._internal.enrichment.normalized_span import (
    Cost,
    Document,
    Kind,
    Message,
    NormalizedSpan,
    Part,
    Prompt,
    ToolDefinition,
    Usage,
)
from mlflow_otlp_exporter._internal.enrichment.payloads import read_request, read_response
from mlflow_otlp_exporter._internal.enrichment.readers.base import SpanView, unflatten
from mlflow_otlp_exporter._internal.enrichment.tools import read_tools
from mlflow_otlp_exporter._internal.enrichment.values import (
    parse_float,
    parse_int,
    parse_structured,
    parse_text,
    parse_texts,
    select_text,
)

_TOOLS = SpanAttributes.LLM_TOOLS + "."
_GROUP_NAMES = frozenset(
    {
        "input_messages",
        "output_messages",
        "tools",
        "prompts",
        "choices",
        "token_count",
        "cost",
        "documents",
        "input_documents",
        "output_documents",
        "embeddings",
    }
)
_FlatKey = tuple[str, str, str]
_COUNT_KEYS = (
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION,
    SpanAttributes.LLM_TOKEN_COUNT_TOTAL,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_READ,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_CACHE_WRITE,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION_DETAILS_REASONING,
    SpanAttributes.LLM_TOKEN_COUNT_PROMPT_DETAILS_AUDIO,
    SpanAttributes.LLM_TOKEN_COUNT_COMPLETION_DETAILS_AUDIO,
)
# LangGraph's configuration arrives as metadata.
_SESSION_KEYS, _USER_KEYS = ("session_id", "thread_id"), ("user_id",)
_COST_KEYS = ("llm.cost.prompt", "llm.cost.completion", "llm.cost.total")


def read(source: SpanView) -> NormalizedSpan | None:
    """Reads a span that carries OpenInference attributes."""
    found = source.attributes
    kind = parse_openinference_kind(found.get(SpanAttributes.OPENINFERENCE_SPAN_KIND))
    groups = _group_keys(found)
    given, answered, carried = _read_all_messages(found, kind, groups)
    metadata = parse_structured(found.get(SpanAttributes.METADATA))
    return NormalizedSpan(
        kind=kind,
        input_messages=given,
        output_messages=answered,
        input=found.get(SpanAttributes.INPUT_VALUE),
        output=found.get(SpanAttributes.OUTPUT_VALUE),
        tools=_read_tools(found, kind, groups),
        tool_name=parse_text(found.get(SpanAttributes.TOOL_NAME)),
        tool_description=parse_text(found.get(SpanAttributes.TOOL_DESCRIPTION)),
        tool_call_id=parse_text(found.get("tool.id")),
        documents=_read_documents(found, groups, kind),
        query=parse_text(found.get(RerankerAttributes.RERANKER_QUERY)),
        input_documents=read_documents(unflatten(found, RerankerAttributes.RERANKER_INPUT_DOCUMENTS + "."))
        if "input_documents" in groups
        else None,
        top_k=parse_int(found.get(RerankerAttributes.RERANKER_TOP_K)),
        embedded_texts=_read_embedded_texts(found) if "embeddings" in groups else None,
        usage=_read_usage(found) if "token_count" in groups else None,
        cost=_read_cost(found) if "cost" in groups else None,
        request_model=parse_text(found.get("llm.request.model_name")),
        response_model=select_text(
            found.get("llm.response.model_name"),
            found.get(SpanAttributes.LLM_MODEL_NAME),
            found.get(SpanAttributes.EMBEDDING_MODEL_NAME),
            found.get(RerankerAttributes.RERANKER_MODEL_NAME),
        )
        or _read_parameter_model(found, kind),
        provider=select_text(found.get(SpanAttributes.LLM_PROVIDER), found.get(SpanAttributes.LLM_SYSTEM)),
        invocation_parameters=_read_parameters(found, kind),
        finish_reason=parse_text(found.get("llm.finish_reason")),
        prompt=_read_prompt(found),
        session=select_text(found.get(SpanAttributes.SESSION_ID), *_select_values(metadata, _SESSION_KEYS)),
        user=select_text(found.get(SpanAttributes.USER_ID), *_select_values(metadata, _USER_KEYS)),
        tags=parse_texts(found.get(SpanAttributes.TAG_TAGS)),
        metadata=metadata if isinstance(metadata, dict) else None,
        agent_name=parse_text(found.get("agent.name")),
        carried=carried,
    )


def _select_values(metadata: Any, names: tuple[str, ...]) -> list[Any]:
    return [metadata.get(name) for name in names] if isinstance(metadata, dict) else []


def _group_keys(found: Mapping[str, Any]) -> dict[str, list[_FlatKey]]:
    """Flattened attributes by group, found in one pass: key, index, what follows the index."""
    groups: dict[str, list[_FlatKey]] = {}
    for key in found:
        segments = key.split(".", 3)
        if len(segments) > 2 and segments[1] in _GROUP_NAMES:  # there is something below the group
            groups.setdefault(segments[1], []).append((key, segments[2], segments[-1]))
    return groups


def _read_flat_messages(
    found: Mapping[str, Any], keys: Sequence[_FlatKey], otherwise: str
) -> tuple[Message, ...] | None:
    """Messages from flattened attributes; those with nothing but text, nearly all, without a detour over objects."""
    roles: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for key, index, rest in keys:
        if rest == "message.role":
            roles[index] = found[key]
        elif rest == "message.content":
            contents[index] = found[key]
        else:
            others.setdefault(index, {})[rest] = found[key]
    order = list(dict.fromkeys((*roles, *contents, *others)))
    if len(order) > 1:
        order.sort(key=_position)
    messages: list[Message] = []
    said_something = False
    for index in order:
        said, role = contents.get(index), normalize_role(roles.get(index), otherwise)
        if index not in others and isinstance(said, str) and said and said[0] != "[" and role != "tool":
            messages.append(Message(role, (Part("text", said),)))
            said_something = True
            continue
        item = others.get(index, {})
        item.update({"message.role": roles.get(index), "message.content": said})
        made = read_messages([unflatten(item, "")], otherwise) or ()
        # LangChain's root has a role and nothing else.
        said_something = said_something or any(each.parts or each.tool_calls or each.reasoning for each in made)
        messages += made
    return merge_messages(messages) if said_something else None


def _position(index: str) -> tuple[int, str]:
    return len(index), index


def _read_all_messages(
    found: Mapping[str, Any], kind: Kind | None, groups: Mapping[str, list[_FlatKey]]
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None, tuple[str, ...]]:
    """Messages in and out, and the keys whose content they carry."""
    given = answered = None
    carried: list[str] = []
    if keys := groups.get("input_messages"):
        given = _read_flat_messages(found, keys, "user")
        carried += [key for key, _, _ in keys] if given else ()
    if keys := groups.get("output_messages"):
        answered = _read_flat_messages(found, keys, "assistant")
        carried += [key for key, _, _ in keys] if answered else ()
    if "prompts" in groups and given is None:
        prompts = unflatten(found, SpanAttributes.LLM_PROMPTS + ".")
        said = [each.get("prompt", {}).get("text") for each in prompts if isinstance(each, dict)]
        given = tuple(Message("user", (Part("text", each),)) for each in said if isinstance(each, str)) or None
    if "choices" in groups and answered is None:
        choices = unflatten(found, "llm.choices.")
        said = [each.get("completion", {}).get("text") for each in choices if isinstance(each, dict)]
        answered = tuple(Message("assistant", (Part("text", each),)) for each in said if isinstance(each, str)) or None
    if kind in (Kind.LLM, Kind.AGENT, Kind.CHAIN, None):
        if given is None or kind is not Kind.LLM:
            given = read_request(found.get(SpanAttributes.INPUT_VALUE), model=is_model(kind)) or given
        if answered is None or kind is not Kind.LLM:
            answered = read_response(found.get(SpanAttributes.OUTPUT_VALUE), model=is_model(kind)) or answered
    return given, answered, tuple(carried)


def _read_tools(
    found: Mapping[str, Any], kind: Kind | None, groups: Mapping[str, list[_FlatKey]]
) -> tuple[ToolDefinition, ...] | None:
    if "tools" in groups:
        listed = unflatten(found, _TOOLS)
        schemas = [each.get("tool", {}).get("json_schema") for each in listed if isinstance(each, dict)]
        tools = read_tools([each for each in schemas if each])
        if tools:
            return tools
    if kind is not Kind.LLM:
        return None
    for key in (SpanAttributes.LLM_INVOCATION_PARAMETERS, SpanAttributes.INPUT_VALUE):
        value = found.get(key)
        if isinstance(value, str) and '"tools"' not in value:
            continue
        holder = parse_structured(value)
        if isinstance(holder, dict):
            inner = holder.get("kwargs")
            tools = read_tools(holder.get("tools"))
            tools = tools or (read_tools(inner.get("tools")) if isinstance(inner, dict) else None)
            if tools:
                return tools
    return None


def _read_documents(
    found: Mapping[str, Any], groups: Mapping[str, list[_FlatKey]], kind: Kind | None
) -> tuple[Document, ...] | None:
    if "documents" in groups:
        return read_documents(unflatten(found, SpanAttributes.RETRIEVAL_DOCUMENTS + "."))
    if "output_documents" in groups:
        return read_documents(unflatten(found, RerankerAttributes.RERANKER_OUTPUT_DOCUMENTS + "."))
    if kind is Kind.RETRIEVER:
        value = parse_structured(found.get(SpanAttributes.OUTPUT_VALUE))
        return read_documents(value.get("documents") if isinstance(value, dict) else value)
    return None


def read_documents(value: Any) -> tuple[Document, ...] | None:
    """Documents out of a list of objects; None if one of them has no content."""
    if not isinstance(value, list) or not value:
        return None
    documents: list[Document] = []
    for item in value:
        inner = item.get("document") if isinstance(item, dict) and isinstance(item.get("document"), dict) else item
        if not isinstance(inner, dict):
            return None
        content = select_text(
            inner.get(DocumentAttributes.DOCUMENT_CONTENT.rpartition(".")[2]),
            inner.get("page_content"),
            inner.get("text"),
        )
        if content is None:
            return None
        metadata = parse_structured(inner.get("metadata"))
        documents.append(
            Document(
                content,
                str(inner["id"]) if inner.get("id") not in (None, "") else "",
                parse_float(inner.get("score")),
                metadata if isinstance(metadata, dict) else None,
            )
        )
    return tuple(documents)


def _read_embedded_texts(found: Mapping[str, Any]) -> tuple[str, ...] | None:
    embedded = unflatten(found, "embedding.embeddings.")
    said = [each.get("embedding", {}).get("text") for each in embedded if isinstance(each, dict)]
    return tuple(each for each in said if isinstance(each, str)) or None


def _read_usage(found: Mapping[str, Any]) -> Usage | None:
    usage = Usage(*(parse_int(found.get(key)) for key in _COUNT_KEYS))
    return usage if usage.input is not None or usage.output is not None or usage.total is not None else None


def _read_cost(found: Mapping[str, Any]) -> Cost | None:
    cost = Cost(*(parse_float(found.get(key)) for key in _COST_KEYS))
    return cost if any(cost) else None


def _read_parameters(found: Mapping[str, Any], kind: Kind | None) -> Mapping[str, Any] | None:
    if kind is not Kind.LLM:
        return None
    parameters = parse_structured(found.get(SpanAttributes.LLM_INVOCATION_PARAMETERS))
    return parameters if isinstance(parameters, dict) else None


def _read_parameter_model(found: Mapping[str, Any], kind: Kind | None) -> str | None:
    """A failed call has its model among the parameters only."""
    if kind not in (Kind.LLM, Kind.EMBEDDING):
        return None
    for key in (
        SpanAttributes.LLM_INVOCATION_PARAMETERS,
        SpanAttributes.EMBEDDING_INVOCATION_PARAMETERS,
        SpanAttributes.INPUT_VALUE,
    ):
        value = found.get(key)
        if isinstance(value, str) and '"model' in value:
            holder = parse_structured(value)
            if isinstance(holder, dict) and (model := select_text(holder.get("model"), holder.get("model_name"))):
                return model
    return None


def _read_prompt(found: Mapping[str, Any]) -> Prompt | None:
    name = select_text(found.get("prompt.id"), found.get("prompt.name"))
    return Prompt(name, str(found.get("prompt.version") or "")) if name else None
