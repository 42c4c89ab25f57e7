"""A span context is the tuple that the app's thread takes it for, on the installed OpenTelemetry."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

from mlflow_otlp_exporter._internal.model.spans import IS_REMOTE, SPAN_ID, TRACE_FLAGS, TRACE_ID, TRACE_STATE


@pytest.mark.parametrize("is_remote", [True, False])
@pytest.mark.parametrize("flags", [TraceFlags.DEFAULT, TraceFlags.SAMPLED])
def test_span_context_indices_match_properties(is_remote: bool, flags: int) -> None:
    context = SpanContext(7, 8, is_remote, TraceFlags(flags))
    assert (context[TRACE_ID], context[IS_REMOTE], context[TRACE_FLAGS]) == (7, is_remote, flags)
    assert (context.trace_id, context.is_remote, context.trace_flags) == (7, is_remote, flags)


def test_span_context_of_span_matches_indices() -> None:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("x").start_span("span")
    context = span.get_span_context()
    assert (context[TRACE_ID], context[SPAN_ID]) == (context.trace_id, context.span_id)
    assert context[TRACE_STATE] is context.trace_state
    assert not context[IS_REMOTE]
    assert context[TRACE_FLAGS] == context.trace_flags
    assert context.trace_flags & TraceFlags.SAMPLED
    span.end()
