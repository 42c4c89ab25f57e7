"""The span that surrounds the running code, also where an instrumentation does not make its spans current."""

from __future__ import annotations

import sys

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context

from mlflow_otlp_exporter._internal.common.errors import must_propagate

# OpenInference's instrumentations of libraries with callbacks, which have the span of the running tool or node.
_INSTRUMENTATIONS = ("openinference.instrumentation.langchain", "openinference.instrumentation.llama_index")


def find_current_span() -> Span:
    """Return the innermost of OpenTelemetry's current span and the spans that OpenInference knows."""
    current = trace.get_current_span()
    for name in _INSTRUMENTATIONS:
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            span = module.get_current_span()
        except BaseException as error:  # of other versions, or while the module is imported
            if must_propagate(error):
                raise
            continue
        if span is not None and span.is_recording() and _is_inside(span, current):
            current = span
    return current


def find_parent_context() -> Context | None:
    """Return the context with the innermost span; None if that is OpenTelemetry's current context."""
    if not any(name in sys.modules for name in _INSTRUMENTATIONS):
        return None
    span = find_current_span()
    return None if span is trace.get_current_span() else set_span_in_context(span)


def _is_inside(span: Span, current: Span) -> bool:
    # Both are open where this code runs, so the one that started later is inside the other.
    context = current.get_span_context()
    if not context.is_valid:
        return True
    started_at = getattr(current, "start_time", None)
    if started_at is None:  # a parent in another process
        return span.get_span_context().trace_id == context.trace_id
    return bool((getattr(span, "start_time", None) or 0) >= started_at)
