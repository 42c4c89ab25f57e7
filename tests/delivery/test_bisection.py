"""How a refused request is cut, and what is put aside meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.delivery.bisection import after_passing, cut, halves, put_aside
from mlflow_otlp_exporter._internal.delivery.export_request import Origin, Search, Shipment
from mlflow_otlp_exporter._internal.encoding.span_encoder import Encoder
from mlflow_otlp_exporter._internal.mlflow_api.experiments import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from support.traces import ended

SPANS = [Encoder().encode(span) for span in ended(6, children=2)]


def shipment(spans: list[EncodedSpan]) -> Shipment:
    return Shipment(Destination(experiment_id="1"), list(spans), Origin(len(spans)))


@given(st.lists(st.sampled_from(SPANS), min_size=2, max_size=18, unique_by=lambda span: span.span_id))
def test_halves_are_all_of_it_and_cut_no_trace_that_is_not_alone(spans: list[EncodedSpan]) -> None:
    first, second = halves(spans)
    assert first
    assert second
    assert sorted(span.span_id for span in [*first, *second]) == sorted(span.span_id for span in spans)
    traces = {span.trace_id for span in first} & {span.trace_id for span in second}
    assert not traces or len({span.trace_id for span in spans}) == 1


def test_either_half_may_go_first() -> None:
    left, right = halves(SPANS)
    for chance, expected in ((0.9, left), (0.1, right)):
        first, second = cut(shipment(SPANS), Search(0, after_500=False), chance)
        assert (first.spans, first.sibling) == (expected, second)


def test_half_that_passes_leaves_the_culprit_in_the_other() -> None:
    whole, search = shipment(SPANS), Search(0, after_500=False)
    whole.uncertain = True
    first, second = cut(whole, search, 0.9)
    assert (first.origin, first.search, first.uncertain) == (whole.origin, search, True)
    assert after_passing(first) == []
    assert second.guilty


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.booleans()), min_size=10, max_size=10))
def test_when_the_culprit_is_alone_all_else_has_passed_or_is_put_aside(
    turns: list[tuple[bool, float, bool]],
) -> None:
    """Whichever half is refused, and whichever is uncertain."""
    search, passed = Search(0, after_500=False), list[EncodedSpan]()
    current, uncertain = shipment(SPANS), False
    for first_is_refused, chance, doubtful in turns:
        if len(current.spans) == 1:
            break
        first, second = cut(current, search, chance)
        if first_is_refused:
            second.uncertain = doubtful
            uncertain = uncertain or doubtful
            current = first
        else:
            passed += first.spans
            assert after_passing(first) == []
            current = second
    rest = put_aside(current)
    assert put_aside(current) == []
    assert len(rest) <= 1
    aside = [span for each in rest for span in each.spans]
    assert sorted(span.span_id for span in [*passed, *aside, *current.spans]) == sorted(span.span_id for span in SPANS)
    assert all(each.found_in is search and each.uncertain is uncertain for each in rest)
    assert current.search is None
