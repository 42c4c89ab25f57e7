"""Spans that this library starts: their tracer and kinds, `span()`, and the functions about the current trace."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import Span, set_span_in_context

from mlflow_otlp_exporter._internal.common import attribute_names as names
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import logger
from mlflow_otlp_exporter._internal.common.types import SpanKind
from mlflow_otlp_exporter._internal.tracing import routing
from mlflow_otlp_exporter._internal.tracing.context import parse_tags
from mlflow_otlp_exporter._internal.tracing.errors import record_error
from mlflow_otlp_exporter._internal.tracing.parents import find_current_span, find_parent_context
from mlflow_otlp_exporter._internal.tracing.span_attributes import as_inputs
from mlflow_otlp_exporter._internal.version import __version__

# OpenInference's span kinds.
KINDS = frozenset(
    "LLM CHAIN AGENT TOOL RETRIEVER EMBEDDING RERANKER GUARDRAIL EVALUATOR PROMPT UNKNOWN".split()  # noqa: SIM905
)
# MLflow's span types that map to a kind other than CHAIN.
_KIND_OF_SPAN_TYPE = {"CHAT_MODEL": "LLM"}
_KNOWN_KINDS = (*sorted(KINDS), *_KIND_OF_SPAN_TYPE, "DECISION", "MEMORY", "PARSER", "TASK", "WORKFLOW")
# Similarity (difflib) from which an unknown kind counts as mistyped: RETRIEVAL has 0.78, TALK has 0.75.
_MIN_SIMILARITY = 0.77
# Shorter kinds resemble too many words: LM, ASK, VLM.
_MIN_MISTYPED_LENGTH = 4
_SCOPE = "mlflow_otlp_exporter"

_provider: trace.TracerProvider | None = None
_cached_tracer: tuple[trace.TracerProvider | None, trace.Tracer | None] = (None, None)


def use_provider(provider: trace.TracerProvider | None) -> None:
    """Set the provider of the tracer of `@traced` and `span()`; None means the global provider."""
    global _provider  # noqa: PLW0603 - one for the process, as the global provider is
    _provider = provider


def get_tracer() -> trace.Tracer:
    # Cached, because creating a tracer takes longer than creating a span.
    global _cached_tracer  # noqa: PLW0603 - replaced as one tuple, so that threads never see half of it
    provider = _provider or trace.get_tracer_provider()
    cached_provider, tracer = _cached_tracer
    if cached_provider is not provider or tracer is None:
        tracer = provider.get_tracer(_SCOPE, __version__)
        _cached_tracer = (provider, tracer)
    return tracer


def log_failure(message: str, name: str, error: BaseException, *, is_failing: bool = False) -> None:
    """Log an exception in code of others. `is_failing`: the application's own exception goes before any other."""
    if must_propagate(error) and not is_failing:
        raise error
    with suppress(Exception):  # the stack may be exhausted
        logger.warning(message, name, type(error).__name__, MessageCode.CONTENT_NOT_RECORDED)


def kind_attributes(kind: str | Enum, function: str) -> dict[str, Any]:
    """Return the attributes for a kind, which may be one of OpenInference, of MLflow, or of the application."""
    span_type = str(kind.value if isinstance(kind, Enum) else kind).strip().upper() or "CHAIN"
    _warn_unknown_kind(span_type, function)
    known_kind = span_type if span_type in KINDS else _KIND_OF_SPAN_TYPE.get(span_type, "CHAIN")
    attributes = {names.SPAN_KIND: known_kind}
    return attributes if span_type == known_kind else {**attributes, names.SPAN_TYPE: span_type}


@lru_cache(maxsize=256)  # because decorators may be applied at every call
def _closest_kind(kind: str) -> str | None:
    if kind in _KNOWN_KINDS or len(kind) < _MIN_MISTYPED_LENGTH:
        return None
    import difflib  # imported only for an unknown kind

    candidates = [candidate for candidate in _KNOWN_KINDS if candidate[0] == kind[0]]
    matches = difflib.get_close_matches(kind, candidates, 1, _MIN_SIMILARITY)
    return matches[0] if matches else None


@lru_cache(maxsize=256)  # once for each function
def _warn_unknown_kind(kind: str, function: str) -> None:
    if closest_kind := _closest_kind(kind):
        logger.warning(
            "@traced(kind=%r) of %s: unknown kind, used as it is. Did you mean %s? [%s]",
            kind,
            function,
            closest_kind,
            MessageCode.UNKNOWN_KIND,
        )


class span:  # noqa: N801 - used like a function
    """Create a span for a block of code, as a context manager or an async context manager.

    ```python
    with span("search", kind="RETRIEVER", inputs={"query": query}) as current:
        documents = search(query)
        set_documents(documents)
        current.set_attribute("index", "manuals")
    ```

    The block gets OpenTelemetry's span. `set_inputs()`, `set_outputs()`, `set_documents()` and `set_usage()` write to
    it without further arguments. An exception is recorded as `@traced` does. The parent is found as `@traced` does.

    Args:
        name: Name of the span.
        kind: Kind of the span, as for `@traced` (`CHAIN`).
        inputs: Inputs: a string, or any other value, which is written as JSON; None for none.
        attributes: Further attributes of the span.

    Raises:
        TypeError: The name is no string, the kind no string or enum, or `attributes` no mapping.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: SpanKind | str = "CHAIN",
        inputs: Any = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        check_span_arguments("span", name, kind, attributes)
        self._name, self._inputs = name, inputs
        self._attributes = {**kind_attributes(kind, f"span({name!r})"), **(attributes or {})}
        if self._attributes[names.SPAN_KIND] == "TOOL":
            self._attributes.setdefault(names.TOOL_NAME, name)
        self._open: list[tuple[Span, Context, Any]] = []

    def __enter__(self) -> Span:
        try:
            current = get_tracer().start_span(self._name, find_parent_context(), attributes=self._attributes)
            if self._inputs is not None and current.is_recording():
                current.set_attributes(as_inputs(self._inputs))
        except BaseException as error:  # noqa: BLE001 - of a sampler or processor of others
            log_failure("Span of %s could not be recorded: %s [%s]", self._name, error)
            current = trace.INVALID_SPAN
        context = set_span_in_context(current)
        self._open.append((current, context, attach(context)))
        return current

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        current, context, token = self._open.pop()
        # Frameworks that run both ends in threads leave the context in another thread: nothing to undo there.
        if get_current() is context:
            detach(token)
        try:
            if error is not None:
                record_error(current, error)
            current.end()
        except BaseException as raised:  # noqa: BLE001 - of a processor of others
            log_failure("Span of %s could not be recorded: %s [%s]", self._name, raised, is_failing=error is not None)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def check_span_arguments(function: str, name: Any, kind: Any, attributes: Any) -> None:
    """Raise `TypeError` for arguments of `span()` or `@traced`."""
    if not isinstance(name, str):
        raise TypeError(f"{function}(name=) is {type(name).__name__}: expected a string")
    if not isinstance(kind, str | Enum):
        raise TypeError(f"{function}(kind=) is {type(kind).__name__}: expected a string, such as 'TOOL'")
    if attributes is not None and not isinstance(attributes, Mapping):
        raise TypeError(f"{function}(attributes=) is {type(attributes).__name__}: expected a mapping")


def current_trace_id() -> str | None:
    """Return MLflow's id of the current trace (`tr-...`), for user interfaces, logs and `log_feedback()`.

    Returns:
        The id; None outside of a span.
    """
    context = find_current_span().get_span_context()
    return f"tr-{context.trace_id:032x}" if context.is_valid else None


def update_trace(
    *,
    tags: Mapping[str, Any] | Iterable[str] | None = None,
    session: str | None = None,
    user: str | None = None,
    name: str | None = None,
) -> None:
    """Set tags, session, user or name of the current trace, from inside one of its spans.

    Writes to the trace's first span in this process, as long as that span is open; values replace earlier ones. Use
    `trace_context()` to set the values for all spans, and for traces that start later. Never raises: what cannot be
    set is logged.

    Args:
        tags: Tags of the trace, as a mapping or as names without values. Names that begin with `mlflow.` are ignored.
        session: Id of the session or conversation.
        user: Id of the user.
        name: Name of the trace, which is the name of its first span.
    """
    try:
        current = find_current_span()
        context = current.get_span_context()
        root = routing.open_root(context.trace_id) if context.is_valid else None
        if root is None and getattr(current, "parent", context) is None:  # without `MLflowSpanProcessor`
            root = cast("SdkSpan", current)
        if root is None or not root.is_recording():
            _log_no_trace(
                "no span is current" if not context.is_valid else "the trace's first span is not recorded here"
            )
            return
        tag_names, tag_values = parse_tags(tags)
        all_tags = {**dict.fromkeys(tag_names, "true"), **tag_values}
        attributes = {names.TRACE_TAG + key: value for key, value in all_tags.items()}
        for key, value in ((names.SESSION_ID, session), (names.USER_ID, user)):
            if value is not None and (text := str(value).strip()):
                attributes[key] = text
        if names.SESSION_ID in attributes:
            attributes[names.TRACE_SESSION] = attributes[names.SESSION_ID]
        root.set_attributes(attributes)
        if name is not None and str(name).strip():
            root.update_name(str(name).strip())
    except BaseException as error:
        if must_propagate(error):
            raise
        logger.warning(
            "update_trace() ignores a value: %s [%s]", type(error).__name__, MessageCode.INVALID_TRACE_CONTEXT
        )


@lru_cache(maxsize=8)  # once for each reason
def _log_no_trace(reason: str) -> None:
    logger.log(logging.WARNING, "update_trace() has no effect: %s [%s]", reason, MessageCode.INVALID_TRACE_CONTEXT)
