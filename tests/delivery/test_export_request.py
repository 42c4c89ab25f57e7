"""Splitting and bisecting export requests."""

from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.delivery.export_request import (
    ExportFuture,
    ExportRequest,
    bisect,
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
        first, second = bisect(export_request(SPANS), chance)
        assert (first.spans, first.other_half, second.other_half) == (expected, second, first)


def test_bisect_keeps_what_is_known_about_the_request() -> None:
    whole = export_request(SPANS)
    whole.may_have_arrived, whole.created_at, whole.accepted_number = True, 12.0, 7
    whole.server_error_count = 2
    for half in bisect(whole, 0.9):
        assert (half.future, half.may_have_arrived, half.created_at) == (whole.future, True, 12.0)
        assert (half.server_error_count, half.accepted_number, half.delay_count) == (1, 7, 0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=10, max_size=10))
def test_bisect_loses_no_span(steps: list[tuple[bool, float]]) -> None:
    current, others = export_request(SPANS), list[EncodedSpan]()
    for is_first_failing, chance in steps:
        if len(current.spans) == 1:
            break
        first, second = bisect(current, chance)
        current, other = (first, second) if is_first_failing else (second, first)
        others += other.spans
    assert sorted(span.span_id for span in [*others, *current.spans]) == sorted(span.span_id for span in SPANS)


def test_bisect_gives_a_single_span_all_attempts() -> None:
    whole = export_request(SPANS[:2])
    whole.server_error_count = 2
    assert [half.server_error_count for half in bisect(whole, 0.9)] == [0, 0]
