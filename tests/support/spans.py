"""Spans for tests, made by the real SDK."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext

from support.markers import PROMPT

# What `lost` tells of `limited`.
LIMITED = (3, 4, 1, 2, 5)


class Prompting(SpanProcessor):
    """Gives each span a prompt that must not show up in any log."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Only where the test has none of its own."""
        if "input.value" not in (span.attributes or {}):
            span.set_attribute("input.value", PROMPT)


def make_spans(*names: str, service: str | None = "bot") -> list[ReadableSpan]:
    """Ended spans, each a trace of its own."""
    memory = InMemorySpanExporter()
    with provider(memory, service) as made:
        for name in names:
            made.get_tracer("tests").start_span(name).end()
    return list(memory.get_finished_spans())


def make_limited_span() -> ReadableSpan:
    """An ended span that the limits of its provider have cost something of each kind."""
    limits = SpanLimits(max_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    made = TracerProvider(resource=Resource({}), span_limits=limits, shutdown_on_exit=False)
    links = [Link(SpanContext(each, 1, is_remote=False), dict.fromkeys("abcdef", each)) for each in (1, 2)]
    span = made.get_tracer("tests").start_span("limited", attributes=dict.fromkeys("abcde", "x"), links=links)
    for _ in range(5):
        span.add_event("event", dict.fromkeys("abc", "x"))
    span.end()
    made.shutdown()
    assert isinstance(span, ReadableSpan)
    return span


def dropped_counts(span: ReadableSpan) -> tuple[int, ...]:
    """What limits have cost a span: attributes, events, links; attributes of each event, of each link."""
    events = [each.dropped_attributes for each in span.events]
    links = [each.dropped_attributes for each in span.links]
    return (span.dropped_attributes, span.dropped_events, span.dropped_links, *events, *links)


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
