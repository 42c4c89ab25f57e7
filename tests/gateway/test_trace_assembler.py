"""When a trace of several processes goes out, and what goes out then."""

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.gateway.trace_assembler import TraceAssembler
from mlflow_otlp_exporter._internal.tracing.trace_filter import make_trace_filter

WAIT, MAX_AGE = 2.0, 45.0


def make_span(
    number: int, parent: int = 0, *, trace: int = 1, is_remote: bool = False, **attributes: Any
) -> ReadableSpan:
    return ReadableSpan(
        f"span {number}",
        SpanContext(trace, number, is_remote=False),
        SpanContext(trace, parent, is_remote=is_remote) if parent else None,
        Resource({}),
        {name.replace("_", "."): value for name, value in attributes.items()},
        start_time=number,
        end_time=100 - number,
        instrumentation_scope=InstrumentationScope("opentelemetry.instrumentation.requests"),
    )


@pytest.fixture
def assembler() -> TraceAssembler:
    return TraceAssembler(decision_wait_seconds=WAIT, max_age_seconds=MAX_AGE, trace_filter=None)


def names(spans: Sequence[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


def test_pop_ready_waits_after_last_span_of_trace_with_root(assembler: TraceAssembler) -> None:
    assembler.add(make_span(1), 0.0)
    assert assembler.next_due() == WAIT
    assembler.add(make_span(2, 1), 1.5)
    assert assembler.pop_ready(WAIT) == []
    assert assembler.next_due() == 1.5 + WAIT
    # In the order of their ends, which is not that of their arrival.
    assert names(assembler.pop_ready(3.5)) == ["span 2", "span 1"]
    assert (assembler.span_count, assembler.byte_count, assembler.next_due()) == (0, 0, None)


def test_pop_ready_waits_for_caller_of_local_root(assembler: TraceAssembler) -> None:
    assembler.add(make_span(2, 1, is_remote=True), 0.0)
    assert assembler.pop_ready(9.9) == []
    assembler.add(make_span(1), 9.9)
    assert assembler.pop_ready(11.8) == []
    assert names(assembler.pop_ready(11.9)) == ["span 2", "span 1"]


def test_pop_ready_sends_local_root_whose_caller_is_not_traced(assembler: TraceAssembler) -> None:
    assembler.add(make_span(2, 1, is_remote=True), 0.0)
    assert names(assembler.pop_ready(10.0)) == ["span 2"]


def test_pop_ready_at_maximum_age_marks_topmost_span(assembler: TraceAssembler) -> None:
    assembler.add(make_span(3, 2), 0.0)
    assembler.add(make_span(2, 1), 44.0)
    assert assembler.pop_ready(44.9) == []
    spans = assembler.pop_ready(MAX_AGE)
    assert [(span.name, span.parent.is_remote) for span in spans if span.parent] == [
        ("span 3", False),
        ("span 2", True),
    ]


def test_pop_all_before_the_time_marks_no_span(assembler: TraceAssembler) -> None:
    assembler.add(make_span(2, 1), 0.0)
    (span,) = assembler.pop_all()
    assert span.parent is not None
    assert not span.parent.is_remote


def test_add_span_of_steady_trace_goes_out_at_maximum_age(assembler: TraceAssembler) -> None:
    assembler.add(make_span(1), 0.0)
    for second in range(1, 45):
        assembler.add(make_span(second + 1, 1), float(second))
        assert assembler.pop_ready(float(second)) == []
    assert len(assembler.pop_ready(MAX_AGE)) == 45


def test_late_span_goes_out_after_the_wait_with_root_without_output(assembler: TraceAssembler) -> None:
    assembler.add(make_span(1), 0.0)
    assert names(assembler.pop_ready(2.0)) == ["span 1"]
    assembler.add(make_span(2, 1), 10.0)
    assert names(assembler.pop_ready(12.0)) == ["span 2", "span 1"]
    assert assembler.resent_count == 1
    assembler.add(make_span(3, 1), 20.0)
    assert names(assembler.pop_ready(22.0)) == ["span 3", "span 1"]


def test_late_span_goes_out_alone_if_root_had_output(assembler: TraceAssembler) -> None:
    assembler.add(make_span(1, output_value="answer"), 0.0)
    assembler.pop_ready(2.0)
    assembler.add(make_span(2, 1), 10.0)
    assert names(assembler.pop_ready(12.0)) == ["span 2"]
    assert assembler.resent_count == 0


def test_traces_do_not_affect_each_other(assembler: TraceAssembler) -> None:
    assembler.add(make_span(1, trace=1), 0.0)
    assembler.add(make_span(1, trace=2), 1.0)
    assert [span.context.trace_id for span in assembler.pop_ready(2.0)] == [1]
    assert [span.context.trace_id for span in assembler.pop_ready(3.0)] == [2]


def test_filter_drops_whole_traces_only() -> None:
    assembler = TraceAssembler(
        decision_wait_seconds=WAIT, max_age_seconds=MAX_AGE, trace_filter=make_trace_filter(["default"])
    )
    assembler.add(make_span(1), 0.0)
    assembler.add(make_span(2, 1, trace=2, is_remote=True), 0.0)
    assembler.add(make_span(1, trace=3, input_value="question"), 0.0)
    assert [span.context.trace_id for span in assembler.pop_ready(10.0)] == [3, 2]
    assert [span.context.trace_id for span in assembler.filtered_spans] == [1]
