"""Spans in memory, for the tests of this folder."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.memory import Memory, provider


@pytest.fixture
def memory() -> Iterator[Memory]:
    exporter = InMemorySpanExporter()
    with provider(exporter) as tracer_provider:
        trace.set_tracer_provider(tracer_provider)
        yield Memory(exporter)
