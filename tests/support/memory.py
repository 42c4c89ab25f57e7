"""Spans in memory, as the tracer provider made them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@contextmanager
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield tracer_provider
    tracer_provider.shutdown()


class Memory:
    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def only(self) -> ReadableSpan:
        (span,) = self.spans()
        return span

    def attributes(self) -> dict[str, Any]:
        return dict(self.only().attributes or {})

    def by_name(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans() if span.name == name)
        return span

    def output(self, name: str) -> Any:
        return (self.by_name(name).attributes or {}).get("output.value")

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def is_child(self, name: str, parent: str) -> bool:
        span, context = self.by_name(name), self.by_name(parent).context
        return span.parent is not None and context is not None and span.parent.span_id == context.span_id
