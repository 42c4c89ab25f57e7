"""Setters for inputs, outputs, documents and token usage of manual spans, as OpenInference attributes.

No function here raises; values that cannot be written are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.trace import Span

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.bounded import ELLIPSIS, bounded_text
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.json_values import bounded_json, bounded_str
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.tracing.parents import find_current_span

_MAX_DOCUMENT_COUNT = 1000
# Client libraries whose streams yield events with a type, and the types that add text.
_EVENT_PACKAGES = frozenset({"anthropic", "openai"})
_TEXT_EVENTS = frozenset({"content.delta", "content_block_delta", "response.output_text.delta"})


def set_inputs(value: Any, *, span: Span | None = None) -> None:
    """Set the inputs of a span (`input.value`).

    Args:
        value: A string, or any other value, which is written as JSON.
        span: The span; None means the current span.
    """
    _set_attributes(span, as_inputs(value))


def set_outputs(value: Any, *, span: Span | None = None) -> None:
    """Set the outputs of a span (`output.value`); `@traced` does not overwrite them.

    Args:
        value: A string, or any other value, which is written as JSON.
        span: The span; None means the current span.
    """
    _set_attributes(span, as_outputs(value))


def set_documents(documents: Iterable[Any], *, span: Span | None = None) -> None:
    """Set the documents that a retriever or reranker returned (`retrieval.documents.*`).

    Args:
        documents: Strings; mappings with `page_content`, `content` or `text`, and `id`, `score`, `metadata`; objects
            with attributes of these names, such as LangChain's documents; or pairs of one of these and a score. At
            most 1,000 documents are written.
        span: The span; None means the current span. On a span of kind `RERANKER` the documents are written as
            `reranker.output_documents.*`.
    """
    try:
        target = find_current_span() if span is None else span
        _set_attributes(target, as_documents(documents, _kind_of(target)))
    except BaseException as error:
        if must_propagate(error):
            raise
        logger.warning(
            "set_documents() ignores its argument: %s: %s [%s]",
            type(error).__name__,
            bounded_str(error),
            MessageCode.CONTENT_NOT_RECORDED,
        )


def set_usage(
    *,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    total_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
    reasoning_tokens: int | None = None,
    model: str | None = None,
    provider: str | None = None,
    span: Span | None = None,
) -> None:
    """Set the token usage of a model call (`llm.token_count.*`); MLflow adds up tokens and computes the cost.

    Call it only on the span of the model call itself: in MLflow, the usage of a span hides the usage of its children.

    Args:
        input_tokens: Number of prompt tokens, including cached tokens.
        output_tokens: Number of completion tokens, including reasoning tokens.
        total_tokens: Sum of both; computed if None.
        cache_read_tokens: Number of prompt tokens that were read from a cache.
        cache_write_tokens: Number of prompt tokens that were written to a cache.
        reasoning_tokens: Number of completion tokens that were used for reasoning.
        model: Name of the model (`llm.model_name`).
        provider: Provider of the model, such as `openai` (`llm.provider`).
        span: The span; None means the current span.
    """
    if total_tokens is None and not (input_tokens is None and output_tokens is None):
        total_tokens = (input_tokens or 0) + (output_tokens or 0)
    attributes = {
        names.TOKENS_IN: input_tokens,
        names.TOKENS_OUT: output_tokens,
        names.TOKENS_TOTAL: total_tokens,
        names.TOKENS_CACHE_READ: cache_read_tokens,
        names.TOKENS_CACHE_WRITE: cache_write_tokens,
        names.TOKENS_REASONING: reasoning_tokens,
        names.MODEL_NAME: model,
        names.PROVIDER: provider,
    }
    _set_attributes(span, {name: value for name, value in attributes.items() if value is not None})


def as_inputs(value: Any) -> dict[str, Any]:
    if issubclass(type(value), str):
        return {names.INPUT_VALUE: bounded_text(str.__str__(value)), names.INPUT_MIME_TYPE: names.TEXT}
    return {names.INPUT_VALUE: bounded_json(value), names.INPUT_MIME_TYPE: names.JSON}


def as_outputs(value: Any) -> dict[str, Any]:
    if issubclass(type(value), str):
        return {names.OUTPUT_VALUE: bounded_text(str.__str__(value)), names.OUTPUT_MIME_TYPE: names.TEXT}
    return {names.OUTPUT_VALUE: bounded_json(value), names.OUTPUT_MIME_TYPE: names.JSON}


def join_items(items: list[Any], *, is_cut: bool) -> Any:
    """Return what a stream yielded: the text of texts, bytes and model chunks, or else the list of its items."""
    if all(type(item) is bytes for item in items):
        return b"".join(items).decode(errors="replace") + (ELLIPSIS if is_cut else "")
    texts = []
    for item in items:
        if (text := _text_of_item(item)) is None:
            return [*items, ELLIPSIS] if is_cut else items
        texts.append(text)
    return "".join(texts) + (ELLIPSIS if is_cut else "")


def _text_of_item(item: Any) -> str | None:
    """Return the text that an item adds to a stream; None if it holds something else."""
    kind, text = type(item), None
    if kind is str:
        text = item
    elif kind is bytes:
        text = item.decode(errors="replace")
    elif kind.__name__ == "ChatCompletionChunk" and len(item.choices) < 2:  # OpenAI; the last chunk has no choice
        deltas = [choice.delta for choice in item.choices]
        text = None if any(delta.tool_calls for delta in deltas) else "".join(delta.content or "" for delta in deltas)
    elif kind.__name__.endswith("MessageChunk") and not getattr(item, "tool_call_chunks", None):  # LangChain
        text = item.content
    elif str(kind.__module__).partition(".")[0] in _EVENT_PACKAGES and isinstance(getattr(item, "type", None), str):
        text = _text_of_event(item)
    return text if isinstance(text, str) else None


def _text_of_event(event: Any) -> Any:
    if event.type not in _TEXT_EVENTS:
        return None if "tool" in event.type or "function_call" in event.type else ""
    delta = event.delta
    return delta if isinstance(delta, str) else getattr(delta, "text", "" if hasattr(delta, "thinking") else None)


def as_documents(documents: Iterable[Any], kind: str = "RETRIEVER") -> dict[str, Any]:
    prefix = names.RERANKED_DOCUMENTS if kind == "RERANKER" else names.DOCUMENTS
    attributes: dict[str, Any] = {}
    for index, document in enumerate(documents):
        if index >= _MAX_DOCUMENT_COUNT:
            break
        for name, value in _document_attributes(document).items():
            attributes[f"{prefix}.{index}.{name}"] = value
    return attributes


def _document_attributes(document: Any) -> dict[str, Any]:
    score: Any = None
    content: Any
    if isinstance(document, tuple) and len(document) == 2:  # a document and its score
        document, score = document
    if isinstance(document, str):
        content, document_id, metadata = document, None, None
    else:
        texts = (_get(document, name) for name in ("page_content", "content", "text"))
        content = next((text for text in texts if text), None)
        document_id, metadata = _get(document, "id"), _get(document, "metadata")
        score = _get(document, "score") if score is None else score
    attributes: dict[str, Any] = {
        names.DOCUMENT_CONTENT: bounded_text(content)
        if isinstance(content, str)
        else bounded_json(document if content is None else content)
    }
    if document_id is not None:
        attributes[names.DOCUMENT_ID] = bounded_str(document_id)
    if score is not None:
        attributes[names.DOCUMENT_SCORE] = float(score)
    if metadata:
        attributes[names.DOCUMENT_METADATA] = bounded_json(metadata)
    return attributes


def _get(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, Mapping) else getattr(document, name, None)


def _kind_of(span: Span) -> str:
    attributes = getattr(span, "attributes", None) or {}
    return str(attributes.get(names.SPAN_KIND, ""))


def _set_attributes(span: Span | None, attributes: Mapping[str, Any]) -> None:
    target = find_current_span() if span is None else span
    if target.is_recording():
        target.set_attributes(attributes)
