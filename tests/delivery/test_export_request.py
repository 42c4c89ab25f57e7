"""Splitting and bisecting export requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.delivery.export_request import (
    ExportFuture,
    ExportRequest,
    split_spans,
)
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
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


MERGED: dict[str, tuple[dict[str, object], dict[str, object], int, bool]] = {
    "unsent": ({}, {}, 0, True),
    "at the limit": ({}, {}, 30, True),
    "above the limit": ({}, {}, 29, False),
    "sent before": ({"was_sent": True}, {}, 0, False),
    "settled meanwhile": ({"spans": []}, {}, 0, False),
    "of a run": ({"destination": Destination(experiment_id="1", run_id="r")}, {}, 0, False),
    "from the disk": ({}, {"is_on_disk": True}, 0, False),
    "of a caller that waits": ({}, {"on_postponed": print}, 0, False),
}


@pytest.mark.parametrize(("fields", "future_fields", "max_bytes", "expected"), MERGED.values(), ids=MERGED)
def test_merge_takes_later_spans_only_into_unsent_requests(
    fields: dict[str, object], future_fields: dict[str, object], max_bytes: int, expected: bool
) -> None:
    request = ExportRequest(Destination(experiment_id="1"), SPANS[:3], ExportFuture(3, byte_count=10))
    for target, values in ((request, fields), (request.future, future_fields)):
        for name, value in values.items():
            setattr(target, name, value)
    before = list(request.spans)
    assert request.merge(SPANS[3:5], ExportFuture(2, byte_count=20), max_bytes) is expected
    assert request.spans == [*before, *(SPANS[3:5] if expected else ())]
    counts = (request.future.span_count, request.future.remaining_count, request.future.byte_count)
    assert counts == ((5, 5, 30) if expected else (3, 3, 10))


def test_bisect_keeps_one_half_by_chance() -> None:
    first_half, second_half = split_spans(SPANS)
    for chance, expected in ((0.9, (first_half, second_half)), (0.1, (second_half, first_half))):
        request = export_request(SPANS)
        request.bisect(chance)
        assert (request.spans, request.other_half) == expected


def test_advance_bisects_other_half_unsent() -> None:
    request = export_request(SPANS)
    request.may_have_arrived = True
    request.bisect(0.9)
    other_half, request.spans, request.may_have_arrived = request.other_half, [], False  # delivered
    assert request.advance(0.9)
    assert (request.spans, request.other_half) == split_spans(other_half)
    assert request.may_have_arrived


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=10, max_size=10), st.booleans())
def test_bisection_sends_or_returns_every_span_once(steps: list[tuple[bool, float]], ends_early: bool) -> None:
    """For any sequence of failing and delivered halves."""
    request, delivered = export_request(SPANS), list[EncodedSpan]()
    for is_failing, chance in steps:
        if len(request.spans) == 1:
            break
        if is_failing:
            request.bisect(chance)
        else:
            delivered += request.spans
            request.spans = []
            if not request.advance(chance):
                break
    if ends_early:
        request.gather()
        others = []
    else:
        others = [span for part in request.separate_others() for span in part.spans]
    spans = [*delivered, *request.spans, *others]
    assert sorted(span.span_id for span in spans) == sorted(span.span_id for span in SPANS)
    assert (request.other_half, request.deferred) == ([], [])
    assert request.separate_others() == []


@pytest.mark.parametrize(("is_after_500", "count"), [(False, 0), (True, 1)])
def test_separate_others_counts_the_server_error_of_the_bisection(is_after_500: bool, count: int) -> None:
    request = export_request(SPANS)
    request.is_bisected_after_500 = is_after_500
    request.bisect(0.9)
    [others] = request.separate_others()
    assert (others.server_error_count, request.is_bisected_after_500) == (count, False)


def test_separate_others_counts_no_server_error_for_a_single_span() -> None:
    request = export_request(SPANS[:2])
    request.is_bisected_after_500 = True
    request.bisect(0.9)
    [others] = request.separate_others()
    assert (len(others.spans), others.server_error_count) == (1, 0)
