"""Spans for tests, made by the real SDK."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.markers import PROMPT


class Prompting(SpanProcessor):
    """Gives each span a prompt that must not show up in any log."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Only where the test has none of its own."""
        if "input.value" not in (span.attributes or {}):
            span.set_attribute("input.value", PROMPT)


def finished(*names: str, service: str | None = "bot") -> list[ReadableSpan]:
    """Ended spans, each a trace of its own."""
    memory = InMemorySpanExporter()
    with provider(memory, service) as made:
        for name in names:
            made.get_tracer("tests").start_span(name).end()
    return list(memory.get_finished_spans())


@contextmanager
def provider(exporter: InMemorySpanExporter, service: str | None = "bot") -> Iterator[TracerProvider]:
    """A tracer provider that exports each span at once, shut down afterwards."""
    made = TracerProvider(resource=Resource({"service.name": service} if service else {}), shutdown_on_exit=False)
    made.add_span_processor(Prompting())
    made.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield made
    finally:
        made.shutdown()
