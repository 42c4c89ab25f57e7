"""Spans that the real SDK makes."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext

from support.markers import PROMPT

# `dropped_counts` of `make_limited_span`.
LIMITED = (3, 4, 1, 2, 5)


class Prompting(SpanProcessor):
    """Gives each span a prompt that must not appear in any log."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the prompt, unless the test has set one."""
        if "input.value" not in (span.attributes or {}):
            span.set_attribute("input.value", PROMPT)


def make_spans(*names: str, service: str | None = "bot") -> list[ReadableSpan]:
    """Make ended spans, each in its own trace."""
    memory = InMemorySpanExporter()
    with provider(memory, service) as tracer_provider:
        for name in names:
            tracer_provider.get_tracer("tests").start_span(name).end()
    return list(memory.get_finished_spans())


def make_limited_span() -> ReadableSpan:
    """Make an ended span from which the provider's limits dropped something of each kind."""
    limits = SpanLimits(max_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    tracer_provider = TracerProvider(resource=Resource({}), span_limits=limits, shutdown_on_exit=False)
    links = [Link(SpanContext(number, 1, is_remote=False), dict.fromkeys("abcdef", number)) for number in (1, 2)]
    span = tracer_provider.get_tracer("tests").start_span(
        "limited", attributes=dict.fromkeys("abcde", "x"), links=links
    )
    for _ in range(5):
        span.add_event("event", dict.fromkeys("abc", "x"))
    span.end()
    tracer_provider.shutdown()
    assert isinstance(span, ReadableSpan)
    return span


def dropped_counts(span: ReadableSpan) -> tuple[int, ...]:
    """Return the dropped attributes, events and links of a span, and the dropped attributes of each event and link."""
    events = [event.dropped_attributes for event in span.events]
    links = [link.dropped_attributes for link in span.links]
    return (span.dropped_attributes, span.dropped_events, span.dropped_links, *events, *links)


@contextmanager
def provider(exporter: InMemorySpanExporter, service: str | None = "bot") -> Iterator[TracerProvider]:
    """Run a tracer provider that exports each span when it ends."""
    tracer_provider = TracerProvider(
        resource=Resource({"service.name": service} if service else {}), shutdown_on_exit=False
    )
    tracer_provider.add_span_processor(Prompting())
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield tracer_provider
    finally:
        tracer_provider.shutdown()
