"""Splitting and bisecting export requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.delivery.export_request import (
    Bisection,
    ExportFuture,
    ExportRequest,
    bisect,
    merge_deferred,
    next_half,
    split_spans,
)
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from support.traces import make_traces

SPANS = [SpanEncoder().encode(span) for span in make_traces(6, children=2)]


def export_request(spans: list[EncodedSpan]) -> ExportRequest:
    return ExportRequest(Destination(experiment_id="1"), list(spans), ExportFuture(len(spans)))


@given(st.lists(st.sampled_from(SPANS), min_size=2, max_size=18, unique_by=lambda span: span.span_id))
def test_split_spans_keeps_all_spans_and_whole_traces(spans: list[EncodedSpan]) -> None:
    first, second = split_spans(spans)
    assert first
    assert second
    assert sorted(span.span_id for span in [*first, *second]) == sorted(span.span_id for span in spans)
    traces = {span.trace_id for span in first} & {span.trace_id for span in second}
    assert not traces or len({span.trace_id for span in spans}) == 1


def test_bisect_orders_halves_by_chance() -> None:
    first_half, second_half = split_spans(SPANS)
    for chance, expected in ((0.9, first_half), (0.1, second_half)):
        first, second = bisect(export_request(SPANS), Bisection(had_server_error=False, accepted_number=7), chance)
        assert (first.spans, first.other_half) == (expected, second)


def test_next_half_marks_other_half_after_delivery() -> None:
    whole, bisection = export_request(SPANS), Bisection(had_server_error=False, accepted_number=7)
    whole.may_have_arrived = True
    first, second = bisect(whole, bisection, 0.9)
    assert (first.future, first.bisection, first.may_have_arrived) == (whole.future, bisection, True)
    assert next_half(first) == []
    assert second.has_bad_span


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.booleans()), min_size=10, max_size=10))
def test_bisection_delivers_or_defers_all_other_spans(
    steps: list[tuple[bool, float, bool]],
) -> None:
    """For any sequence of failing and uncertain halves."""
    bisection, passed = Bisection(had_server_error=False, accepted_number=7), list[EncodedSpan]()
    current, uncertain = export_request(SPANS), False
    for is_first_failing, chance, doubtful in steps:
        if len(current.spans) == 1:
            break
        first, second = bisect(current, bisection, chance)
        if is_first_failing:
            second.may_have_arrived = doubtful
            uncertain = uncertain or doubtful
            current = first
        else:
            passed += first.spans
            assert next_half(first) == []
            current = second
    deferred = merge_deferred(current)
    assert merge_deferred(current) == []
    assert len(deferred) <= 1
    deferred_spans = [span for request in deferred for span in request.spans]
    assert sorted(span.span_id for span in [*passed, *deferred_spans, *current.spans]) == sorted(
        span.span_id for span in SPANS
    )
    assert all(request.may_have_arrived is uncertain for request in deferred)
    assert current.bisection is None


@pytest.mark.parametrize("had_server_error", [False, True])
def test_merge_deferred_counts_the_server_error_of_its_bisection(had_server_error: bool) -> None:
    first, _ = bisect(export_request(SPANS), Bisection(had_server_error, accepted_number=7), 0.9)
    [deferred] = merge_deferred(first)
    assert (deferred.server_error_count, deferred.accepted_number) == (int(had_server_error), 7)


def test_merge_deferred_counts_no_server_error_for_a_single_span() -> None:
    first, _ = bisect(export_request(SPANS[:2]), Bisection(had_server_error=True, accepted_number=7), 0.9)
    [deferred] = merge_deferred(first)
    assert (len(deferred.spans), deferred.server_error_count) == (1, 0)
