"""Which instrumentation observes a call of a model, if those of a framework and of the provider's client are both on.

The framework's span has the call's place in the trace, so the client's span is not started. LangChain's spans are never
current, so that the client's would be siblings, or even traces of their own: a callback marks its calls instead.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, Span, Tracer, TracerProvider

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest

# Clients that frameworks call, and LiteLLM, which is both.
CLIENT_LIBRARIES = frozenset(
    {"openai", "anthropic", "litellm", "google_genai", "vertexai", "bedrock", "mistralai", "groq", "cohere", "ollama"}
    | {"together", "replicate", "portkey"}
)
_MODEL_OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})
# Their spans of model calls have no tokens, so the client's span is needed.
_SCOPES_WITHOUT_USAGE = frozenset({"openinference.instrumentation.dspy"})
_MAX_OPEN_RUNS = 10_000


class _FrameworkCall:
    """A call that a framework's instrumentation observes; several if they begin in the same context."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.suppressed: dict[str, int] = {}  # by scope: each layer below has one span for each call


_current_call: ContextVar[_FrameworkCall | None] = ContextVar("mlflow_otlp_framework_call", default=None)


class ClientTracerProvider(TracerProvider):
    """Starts no span for a call that the span above describes already."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **kwargs: Any) -> Tracer:
        """Return a tracer for an instrumentation of a client."""
        tracer = self._provider.get_tracer(instrumenting_module_name, *args, **kwargs)
        return _ClientTracer(tracer, instrumenting_module_name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)


class _ClientTracer(Tracer):
    def __init__(self, tracer: Tracer, scope: str) -> None:
        self._tracer, self._scope = tracer, scope

    def start_span(self, name: str, context: Context | None = None, *args: Any, **kwargs: Any) -> Span:
        parent = trace.get_current_span(context)
        if _is_observed(parent, self._scope):
            return NonRecordingSpan(parent.get_span_context())  # spans below get the same parent
        return self._tracer.start_span(name, context, *args, **kwargs)

    @contextmanager
    def _start_current(self, name: str, *args: Any, end_on_exit: bool = True, **kwargs: Any) -> Iterator[Span]:
        span = self.start_span(name, *args, **kwargs)
        flags = {key: kwargs[key] for key in ("record_exception", "set_status_on_exception") if key in kwargs}
        with trace.use_span(span, end_on_exit=end_on_exit, **flags) as current:
            yield current

    start_as_current_span = _start_current  # type: ignore[assignment]  # a function of upstream's own kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)


def _is_observed(parent: Span, scope: str) -> bool:
    call = _current_call.get()
    if call is not None and call.ended < call.started and call.suppressed.get(scope, 0) < call.started:
        call.suppressed[scope] = call.suppressed.get(scope, 0) + 1
        return True
    if not isinstance(parent, ReadableSpan) or not parent.is_recording():
        return False
    attributes, parent_scope = parent.attributes or {}, parent.instrumentation_scope
    is_model = attributes.get("openinference.span.kind") == "LLM"
    is_model = is_model or attributes.get("gen_ai.operation.name") in _MODEL_OPERATIONS
    return is_model and (parent_scope is None or parent_scope.name not in {scope, *_SCOPES_WITHOUT_USAGE})


@functools.cache  # the hook cannot be removed
def mark_langchain_calls() -> None:
    """Mark LangChain's calls of models, in the context in which it calls the provider's client."""
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.tracers.context import register_configure_hook

    class CallMarker(BaseCallbackHandler):
        run_inline = True  # in the caller's context, also of asynchronous calls

        def __init__(self) -> None:
            self._runs: dict[Any, _FrameworkCall] = {}

        def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
            call = _current_call.get()
            if call is None or call.ended >= call.started:
                call = _FrameworkCall()
                _current_call.set(call)
            call.started += 1
            evict_oldest(self._runs, _MAX_OPEN_RUNS)[run_id] = call

        on_llm_start = on_chat_model_start

        def on_llm_end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
            if (call := self._runs.pop(run_id, None)) is not None:
                call.ended += 1

        on_llm_error = on_llm_end

    marker = CallMarker()
    # The default makes the handler part of every context.
    register_configure_hook(ContextVar("mlflow_otlp_call_marker", default=marker), inheritable=True)
