"""Portions and requests: whole traces, up to a size, and few roots where they are linked to a run."""

from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.delivery.packing import batch_by_size, iter_chunks
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, Framing

NOTHING = Framing(b"", b"")


def span(trace: int, size: int, number: int = 0, *, root: bool = False) -> EncodedSpan:
    return EncodedSpan(trace, number, root, NOTHING, NOTHING, number.to_bytes(4, "big") + b"x" * (size - 4))


def sizes(batches: list[list[EncodedSpan]]) -> list[list[int]]:
    return [[each.trace_id for each in batch] for batch in batches]


def test_whole_traces_share_a_request_up_to_the_size() -> None:
    spans = [span(1, 40), span(2, 40), span(1, 40), span(3, 40)]
    assert sizes(list(batch_by_size(spans, 120))) == [[1, 1, 2], [3]]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [2, 3]]
    assert sizes(list(batch_by_size(spans, 0))) == [[1, 1, 2, 3]]


def test_trace_that_is_larger_than_a_request_is_cut_and_a_span_is_not() -> None:
    spans = [span(1, 40), span(1, 40), span(1, 300), span(1, 40)]
    assert sizes(list(batch_by_size(spans, 100))) == [[1, 1], [1], [1]]


def test_at_most_100_roots_where_they_are_linked_to_a_run() -> None:
    spans = [each for trace in range(250) for each in (span(trace, 10), span(trace, 10, root=True))]
    counts = [sum(each.is_root for each in batch) for batch in batch_by_size(spans, 0, linked_to_run=True)]
    assert counts == [100, 100, 50]
    assert [len(batch) for batch in batch_by_size(spans, 0)] == [500]


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(4, 200), st.booleans()), max_size=60),
    st.integers(0, 300),
    st.booleans(),
)
def test_every_span_is_in_one_request_in_its_traces_order(
    shapes: list[tuple[int, int, bool]], size: int, linked: bool
) -> None:
    spans = [span(trace, length, number, root=root) for number, (trace, length, root) in enumerate(shapes)]
    batches = list(batch_by_size(spans, size, linked_to_run=linked))
    flat = [each for batch in batches for each in batch]
    assert sorted(flat) == sorted(spans)
    for trace in range(1, 9):
        assert [each for each in flat if each.trace_id == trace] == [each for each in spans if each.trace_id == trace]
    for batch in batches:
        assert batch
        assert not size or len(batch) == 1 or sum(len(each.body) for each in batch) <= size


def whole_trace(trace: int, count: int) -> list[ReadableSpan]:
    return [ReadableSpan(str(each), SpanContext(trace, each + 1, is_remote=False)) for each in range(count)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), max_size=8))
def test_portions_are_whole_traces_and_no_larger_than_they_must_be(counts: list[int]) -> None:
    spans = [each for trace, count in enumerate(counts, 1) for each in whole_trace(trace, count)]
    expected = list(spans)
    found: list[ReadableSpan] = []
    for portion in iter_chunks(spans):
        found += portion
        assert len(spans) == len(expected) - len(found)  # what was taken is in the list no more
        traces = [each.context.trace_id for each in portion]
        assert not spans or spans[0].context.trace_id != traces[-1]
        assert len(portion) - traces.count(traces[-1]) < 64
        assert len(portion) >= 64 or not spans
    assert found == expected


def test_only_a_portion_of_the_spans_is_in_memory_beside_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = MLflowSpanExporter(endpoint="http://127.0.0.1:9")
    pipeline = exporter._pipeline
    assert pipeline is not None
    spans = [each for trace in range(1, 101) for each in whole_trace(trace, 10)]
    expected = pipeline.batching.batches(tuple(spans))[0]
    alive, counts, encode = WeakSet(spans), list[int](), pipeline.batching.encoder.encode

    def counting(*arguments: Any, **more: Any) -> EncodedSpan:
        counts.append(len(alive))
        return encode(*arguments, **more)

    monkeypatch.setattr(pipeline.batching.encoder, "encode", counting)
    assert pipeline.batching.batches_out_of(spans) == expected
    assert (len(counts), counts[0], spans) == (1000, 1000, [])
    assert counts[-1] < 500
    exporter.shutdown(0)
