"""Bounds of the trace cache."""

from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.enrichment.normalized_span import EMPTY
from mlflow_otlp_exporter._internal.enrichment.span_state import SpanSummary
from mlflow_otlp_exporter._internal.enrichment.trace_cache import TraceCache


def test_trace_cache_evicts_by_count_age_and_size() -> None:
    clock_seconds = [0.0]
    cache = TraceCache(lambda: clock_seconds[0])
    summary = SpanSummary(
        1, 2, 0, 0, Kind.CHAT_MODEL, "", False, None, "q" * 100, None, (), None, None, None, "", (), EMPTY
    )
    for number in range(3000):
        cache.add(number, [summary])
    assert len(cache.traces) == 2000
    assert cache.get(0) == ()
    assert cache.get(2999) == (summary,)
    clock_seconds[0] = 1000.0
    cache.add(5000, [summary])
    assert len(cache.traces) == 1
    cache.remove(5000)
    assert len(cache.traces) == 0
    large = summary._replace(question="q" * 4_000_000)
    for number in range(10):
        cache.add(number, [large])
    assert len(cache.traces) <= 4
