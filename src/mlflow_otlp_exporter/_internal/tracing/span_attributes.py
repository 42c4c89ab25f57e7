"""What a span says of inputs, outputs, documents and tokens, in OpenInference's words.

For spans that are made by hand. Nothing here raises: what cannot be written is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.bounded_json import bounded_json, bounded_text
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import logger

_MOST_DOCUMENTS = 1000


def set_inputs(value: Any, *, span: Span | None = None) -> None:
    """Says what went into a span.

    Args:
        value: A text, or anything, which becomes JSON.
        span: The span; None for the current one.
    """
    _write(span, as_inputs(value))


def set_outputs(value: Any, *, span: Span | None = None) -> None:
    """Says what came out of a span; `@traced` leaves it as it is then.

    Args:
        value: A text, or anything, which becomes JSON.
        span: The span; None for the current one.
    """
    _write(span, as_outputs(value))


def set_documents(documents: Iterable[Any], *, span: Span | None = None) -> None:
    """Says which documents a retriever or reranker found.

    Args:
        documents: Texts; mappings with `page_content`, `content` or `text`, and `id`, `score`, `metadata`; objects with
            such attributes, as LangChain's; or pairs of one of these and a score.
        span: The span; None for the current one. One of kind `RERANKER` has them as the reranker's output.
    """
    found = trace.get_current_span() if span is None else span
    try:
        _write(found, as_documents(documents, _kind(found)))
    except Exception as error:  # noqa: BLE001 - an app must not fail for what is said about it
        said, kind = "set_documents() leaves out what it was given: %s: %s [%s]", type(error).__name__
        logger.warning(said, kind, error, MessageCode.CONTENT_NOT_RECORDED)


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
    """Says what a call of a model took; MLflow adds it up, and makes a cost of it.

    Only on the span of the call itself: in MLflow, the usage of a span hides that of the spans below it.

    Args:
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of the answer, reasoning included.
        total_tokens: Both; added up if it is not given.
        cache_read_tokens: How many of the prompt's were read from a cache.
        cache_write_tokens: How many of the prompt's were written to a cache.
        reasoning_tokens: How many of the answer's were spent on reasoning.
        model: The model's name.
        provider: Who runs it, such as `openai`.
        span: The span; None for the current one.
    """
    if total_tokens is None and not (input_tokens is None and output_tokens is None):
        total_tokens = (input_tokens or 0) + (output_tokens or 0)
    found = {
        names.TOKENS_IN: input_tokens,
        names.TOKENS_OUT: output_tokens,
        names.TOKENS_TOTAL: total_tokens,
        names.TOKENS_CACHE_READ: cache_read_tokens,
        names.TOKENS_CACHE_WRITE: cache_write_tokens,
        names.TOKENS_REASONING: reasoning_tokens,
        names.MODEL_NAME: model,
        names.PROVIDER: provider,
    }
    _write(span, {name: value for name, value in found.items() if value is not None})


def as_inputs(value: Any) -> dict[str, Any]:
    """The attributes for what went in."""
    if isinstance(value, str):
        return {names.INPUT_VALUE: bounded_text(value), names.INPUT_MIME_TYPE: names.TEXT}
    return {names.INPUT_VALUE: bounded_json(value), names.INPUT_MIME_TYPE: names.JSON}


def as_outputs(value: Any) -> dict[str, Any]:
    """The attributes for what came out."""
    if isinstance(value, str):
        return {names.OUTPUT_VALUE: bounded_text(value), names.OUTPUT_MIME_TYPE: names.TEXT}
    return {names.OUTPUT_VALUE: bounded_json(value), names.OUTPUT_MIME_TYPE: names.JSON}


def as_documents(documents: Iterable[Any], kind: str = "RETRIEVER") -> dict[str, Any]:
    """The attributes for documents.

    Args:
        documents: As for `set_documents`.
        kind: The span's kind.
    """
    prefix = names.RERANKED_DOCUMENTS if kind == "RERANKER" else names.DOCUMENTS
    found: dict[str, Any] = {}
    for number, document in enumerate(documents):
        if number >= _MOST_DOCUMENTS:
            break
        for name, value in _document(document).items():
            found[f"{prefix}.{number}.{name}"] = value
    return found


def _document(document: Any) -> dict[str, Any]:
    score: Any = None
    content: Any
    if isinstance(document, tuple) and len(document) == 2:  # a document and its score
        document, score = document
    if isinstance(document, str):
        content, number, metadata = document, None, None
    else:
        content = next((each for name in ("page_content", "content", "text") if (each := _item(document, name))), None)
        number, metadata = _item(document, "id"), _item(document, "metadata")
        score = _item(document, "score") if score is None else score
    found: dict[str, Any] = {
        names.DOCUMENT_CONTENT: bounded_text(content)
        if isinstance(content, str)
        else bounded_json(document if content is None else content)
    }
    if number is not None:
        found[names.DOCUMENT_ID] = str(number)
    if score is not None:
        found[names.DOCUMENT_SCORE] = float(score)
    if metadata:
        found[names.DOCUMENT_METADATA] = bounded_json(metadata)
    return found


def _item(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, Mapping) else getattr(document, name, None)


def _kind(span: Span) -> str:
    attributes = getattr(span, "attributes", None) or {}
    return str(attributes.get(names.SPAN_KIND, ""))


def _write(span: Span | None, attributes: Mapping[str, Any]) -> None:
    found = trace.get_current_span() if span is None else span
    if found.is_recording():
        found.set_attributes(attributes)
