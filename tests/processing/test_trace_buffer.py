"""When a trace is handed over: told what happens and when, without a clock or a thread."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.model.spans import estimate_bytes
from mlflow_otlp_exporter._internal.processing import trace_buffer
from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer

LINGER, HOLD, GRACE = 1.0, 30.0, 5.0
LOCAL, REMOTE = SpanContext(1, 99, is_remote=False), SpanContext(1, 99, is_remote=True)


def span(trace: int, name: str, parent: SpanContext | None = LOCAL, **more: Any) -> ReadableSpan:
    return ReadableSpan(name, SpanContext(trace, hash(name) % 2**60 + 1, False), parent, Resource({}), **more)


class Fixture:
    """A buffer, driven by events with times in seconds."""

    def __init__(self, *, has_start_events: bool = True) -> None:
        self.buffer = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD, has_start_events=has_start_events)

    def start(self, trace: int, count: int = 1) -> None:
        for _ in range(count):
            self.buffer.record_starts(trace, 1)

    def end(self, at: float, trace: int, name: str, parent: SpanContext | None = LOCAL) -> None:
        self.buffer.add(span(trace, name, parent), at)

    @property
    def resent_names(self) -> list[str]:
        return [span.name for span in self.buffer.resent_spans]

    def pop_names(self, at: float) -> list[str]:
        return [span.name for span in self.buffer.pop_ready(at)]


def test_complete_trace_is_ready_after_linger() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "child")
    fixture.end(0.5, 1, "root", None)
    assert fixture.buffer.next_due() == 1.5
    assert fixture.pop_names(1.4) == []
    assert fixture.pop_names(1.5) == ["child", "root"]
    assert fixture.buffer.next_due() is None
    assert (fixture.buffer.span_count, fixture.buffer.byte_count) == (0, 0)


def test_due_traces_are_popped_together_grouped_by_trace() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.start(2, 2)
    for at, (trace, name, parent) in enumerate(
        [(1, "child 1", LOCAL), (2, "child 2", LOCAL), (1, "root 1", None), (2, "root 2", None)]
    ):
        fixture.end(at / 10, trace, name, parent)
    assert fixture.pop_names(2) == ["child 1", "root 1", "child 2", "root 2"]


def test_few_traces_are_ready_soon() -> None:
    fixture = Fixture()
    for number in range(1, 10):
        fixture.start(number)
        fixture.end(number * 6.0, number, str(number), None)
        assert fixture.pop_names(number * 6.0 + LINGER) == [str(number)]


def pop_when_due(
    ends: Sequence[float], batch_interval_seconds: float, *, open_count: int = 0
) -> list[tuple[float, int]]:
    """Return time and size of the batches of traces that end at these times, while others are in progress."""
    buffer, batches = TraceBuffer(linger_seconds=0.1, max_age_seconds=1e7), list[tuple[float, int]]()
    buffer.batch_interval_seconds = batch_interval_seconds
    for number in range(open_count):
        buffer.record_starts(1000 + number, 1)
        buffer.record_starts(1000 + number, 1)
        buffer.add(span(1000 + number, "child"), 0.0)
    for number, at in enumerate([*ends, 1e6]):
        while (due := buffer.next_due()) is not None and due <= at:
            batches.append((due, len(buffer.pop_ready(due))))
        if number < len(ends):
            buffer.record_starts(number + 1, 1)
            buffer.add(span(number + 1, str(number), None), at)
    return batches


@settings(deadline=None)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=40), st.floats(0.0, 2.0), st.sampled_from([0, 30]))
def test_trace_waits_for_linger_or_for_the_batch_interval(gaps: list[float], interval: float, open_count: int) -> None:
    ends = list(accumulate(gaps))
    batches = pop_when_due(ends, interval, open_count=open_count)
    assert sum(count for _, count in batches) == len(ends)
    assert all(later[0] - earlier[0] >= interval - 1e-6 for earlier, later in pairwise(batches))
    last_batch_at, remaining = -10.0, ends
    for at, count in batches:
        assert at == pytest.approx(max(remaining[0] + 0.1, last_batch_at + interval))
        last_batch_at, remaining = at, remaining[count:]


@pytest.mark.parametrize(("interval", "min_batches", "max_batches"), [(0.0, 40, 60), (1.0, 9, 11), (2.0, 5, 6)])
def test_longer_batch_interval_makes_fewer_batches(interval: float, min_batches: int, max_batches: int) -> None:
    assert min_batches <= len(pop_when_due([number / 6 for number in range(60)], interval)) <= max_batches


def test_complete_traces_of_8_mib_are_ready_at_once() -> None:
    buffer, text = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD), "x" * 3_000_000
    for trace in (1, 2, 3, 4):
        buffer.record_starts(trace, 1)
        buffer.record_starts(trace, 1)
    for trace in (1, 2, 3, 4):  # all incomplete
        buffer.add(span(trace, f"child {trace}", attributes={"text": text}), 0.0)
    assert buffer.pop_ready(0.1) == []
    buffer.add(span(1, "root 1", None), 0.1)
    buffer.add(span(2, "root 2", None), 0.1)
    assert buffer.pop_ready(0.2) == []  # 6 MB: not full yet
    buffer.add(span(3, "root 3", None), 0.2)
    assert [span.name for span in buffer.pop_ready(0.2)] == [
        "child 1",
        "root 1",
        "child 2",
        "root 2",
        "child 3",
        "root 3",
    ]
    assert buffer.span_count == 1


def test_complete_traces_of_256_spans_are_ready_at_once() -> None:
    buffer = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD)
    for trace in range(1, 10):
        for number in range(30 if trace < 9 else 15):
            buffer.record_starts(trace, 1)
            buffer.add(span(trace, f"{trace}.{number}"), 0.0)
        buffer.record_starts(trace, 1)
    for trace in range(1, 9):
        assert buffer.pop_ready(0.0) == []
        buffer.add(span(trace, f"root {trace}", None), 0.0)  # in total 248 spans of complete traces, 15 of another
    assert buffer.pop_ready(0.0) == []
    buffer.record_starts(10, 1)
    for _ in range(8):
        buffer.add(span(10, "root 10", None), 0.0)
    assert (len(buffer.pop_ready(0.0)), buffer.span_count) == (256, 15)


def test_open_child_delays_trace_after_root() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "root", None)
    assert fixture.pop_names(4.9) == []
    fixture.end(4.9, 1, "child")
    assert fixture.pop_names(5.9) == ["root", "child"]


def test_open_child_delays_trace_for_grace_period_at_most() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "root", None)
    assert fixture.pop_names(GRACE) == ["root"]
    fixture.end(20.0, 1, "late child")
    assert fixture.pop_names(21.0) == ["late child"]
    assert fixture.resent_names == ["root"]  # its request and response are those of the child


@pytest.mark.parametrize("output", ["output.value", "mlflow.spanOutputs", "gen_ai.output.messages"])
def test_root_with_output_is_sent_once(output: str) -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.buffer.add(span(1, "root", None, attributes={output: "hello"}), 0.0)
    assert fixture.pop_names(GRACE) == ["root"]
    fixture.end(20.0, 1, "late child")
    assert fixture.pop_names(21.0) == ["late child"]
    assert fixture.resent_names == []


@pytest.mark.parametrize("parent", [None, REMOTE])
def test_root_is_sent_again_with_the_last_of_its_late_children(parent: SpanContext | None) -> None:
    fixture = Fixture()
    fixture.start(1, 3)
    fixture.end(0.0, 1, "root", parent)
    assert [span.name for span in fixture.buffer.pop_all()] == ["root"]  # a flush
    fixture.end(10.0, 1, "first child")
    assert fixture.pop_names(16.0) == ["first child"]
    assert fixture.resent_names == []
    fixture.end(20.0, 1, "last child")
    assert fixture.pop_names(21.0) == ["last child"]
    assert fixture.resent_names == ["root"]
    assert (fixture.buffer.span_count, fixture.buffer.byte_count) == (0, 0)


def test_large_root_is_not_remembered() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.buffer.add(span(1, "root", None, attributes={"text": "x" * 100_000}), 0.0)
    fixture.pop_names(GRACE)
    fixture.end(20.0, 1, "late child")
    assert fixture.pop_names(21.0) == ["late child"]
    assert fixture.resent_names == []


def pop_parents(spans: Sequence[ReadableSpan]) -> dict[str, bool]:
    """Whether the parent of each span is remote."""
    return {span.name: span.parent is not None and span.parent.is_remote for span in spans}


def test_topmost_span_of_trace_without_root_becomes_local_root() -> None:
    buffer = Fixture().buffer
    agent, tool = span(1, "agent", start_time=1), span(1, "tool", start_time=3)
    model = span(1, "model", agent.context, start_time=2)
    for _ in range(3):
        buffer.record_starts(1, 1)
    for member in (model, tool, agent):
        buffer.add(member, 0.0)
    spans = buffer.pop_ready(2.0)
    assert pop_parents(spans) == {"agent": True, "model": False, "tool": False}
    (root,) = (span for span in spans if span.name == "agent")
    assert root.parent is not None
    assert (root.context, root.parent.span_id, buffer.resent_spans) == (agent.context, LOCAL.span_id, [])


def test_open_span_that_never_ends_is_replaced_at_the_end() -> None:
    # A processor in between passed the start of the root, and not its end.
    fixture = Fixture()
    fixture.start(1, 3)
    fixture.end(0.0, 1, "agent")
    assert pop_parents(fixture.buffer.pop_all()) == {"agent": False}
    fixture.end(1.0, 1, "later")
    assert pop_parents(fixture.buffer.pop_all()) == {"later": False}
    assert fixture.resent_names == []
    assert [*fixture.buffer.pop_all(is_final=True), *fixture.buffer.pop_all(is_final=True)] == []
    assert pop_parents(fixture.buffer.resent_spans) == {"agent": True}


def test_end_of_open_trace_with_remote_parent_changes_nothing() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "request", REMOTE)
    assert pop_parents(fixture.buffer.pop_all(is_final=True)) == {"request": True}
    fixture.start(2, 2)
    fixture.end(0.0, 2, "root", None)
    assert pop_parents(fixture.buffer.pop_all(is_final=True)) == {"root": False}
    assert fixture.resent_names == []


def test_open_trace_is_ready_after_max_age() -> None:
    fixture = Fixture()
    fixture.start(1, 3)
    fixture.end(0.0, 1, "first")
    fixture.end(10.0, 1, "second")
    assert fixture.pop_names(HOLD - 0.1) == []
    assert fixture.pop_names(HOLD) == ["first", "second"]
    fixture.end(40.0, 1, "root", None)
    assert fixture.pop_names(41.0) == ["root"]


def test_open_traces_of_similar_age_are_popped_together() -> None:
    fixture = Fixture()
    for trace, at in enumerate([0.0, 5.0, 9.9, 10.1], 1):
        fixture.start(trace, 2)
        fixture.end(at, trace, f"child {trace}")
    fixture.start(5, 3)
    fixture.end(9.0, 5, "child 5")
    fixture.end(26.0, 5, "root 5", None)  # its other child is open
    fixture.start(6)  # without ended spans
    assert fixture.pop_names(HOLD) == ["child 1", "child 2", "child 3"]
    assert fixture.pop_names(31.0) == ["child 5", "root 5"]
    assert fixture.pop_names(HOLD + 10.0) == []
    assert fixture.pop_names(HOLD + 10.1) == ["child 4"]


def test_open_trace_is_not_popped_early_with_complete_traces() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "child")
    fixture.start(2)
    fixture.end(27.0, 2, "root 2", None)
    fixture.start(3, 1)
    fixture.end(27.0, 3, "orphan")
    assert fixture.pop_names(29.9) == ["root 2", "orphan"]
    assert fixture.pop_names(HOLD) == ["child"]


def test_span_with_remote_parent_is_local_root() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "child")
    fixture.end(0.0, 1, "server span", REMOTE)
    assert fixture.pop_names(LINGER) == ["child", "server span"]


def test_trace_with_two_roots_waits_for_both() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.end(0.0, 1, "root a", REMOTE)
    fixture.end(2.0, 1, "root b", REMOTE)
    assert fixture.pop_names(3.0) == ["root a", "root b"]
    fixture.start(1)
    fixture.end(10.0, 1, "root c", REMOTE)
    assert fixture.pop_names(11.0) == ["root c"]


def test_span_start_during_linger_delays_trace() -> None:
    fixture = Fixture()
    fixture.start(1)
    fixture.end(0.0, 1, "root a", REMOTE)
    fixture.start(1)
    assert fixture.pop_names(2.0) == []
    fixture.end(2.0, 1, "root b", REMOTE)
    assert fixture.pop_names(3.0) == ["root a", "root b"]


def test_orphan_without_start_is_ready() -> None:
    fixture = Fixture()
    fixture.end(0.0, 1, "orphan")
    assert fixture.pop_names(LINGER) == ["orphan"]


@pytest.mark.parametrize(
    ("parent", "due"), [(None, LINGER), (REMOTE, LINGER), (LOCAL, HOLD)], ids=["root", "local root", "child"]
)
def test_root_completes_trace_without_start_events(parent: SpanContext | None, due: float) -> None:
    fixture = Fixture(has_start_events=False)
    fixture.end(0.0, 1, "child")
    fixture.end(0.0, 1, "last", parent)
    assert fixture.pop_names(due - 0.1) == []
    assert fixture.pop_names(due) == ["child", "last"]


def test_late_child_does_not_wait_for_root_without_start_events() -> None:
    fixture = Fixture(has_start_events=False)
    fixture.end(0.0, 1, "root", None)
    fixture.pop_names(LINGER)
    fixture.end(2.0, 1, "late child")
    assert fixture.pop_names(2.0 + LINGER) == ["late child"]


def test_pop_all_returns_open_traces() -> None:
    fixture = Fixture()
    fixture.start(1, 2)
    fixture.start(2)
    fixture.end(0.0, 1, "child")
    assert [span.name for span in fixture.buffer.pop_all()] == ["child"]
    assert fixture.buffer.pop_all() == []
    fixture.end(1.0, 1, "root", None)
    assert fixture.pop_names(2.0) == ["root"]


def test_open_traces_without_ended_spans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_buffer, "_MAX_OPEN_TRACES", 100)
    fixture = Fixture()
    for trace in range(1, 51):  # with a buffered span each, as neighbours that must not be evicted
        fixture.start(trace)
        fixture.start(trace)
        fixture.end(0.0, trace, "child")
    for trace in range(51, 300):
        fixture.start(trace)
    assert fixture.buffer.next_due() is not None
    assert len(fixture.buffer._traces) == 150
    assert list(fixture.buffer._spanless) == list(range(200, 300))
    fixture.end(0.0, 299, "root", None)
    fixture.end(0.0, 51, "forgotten", None)
    assert sorted(fixture.pop_names(LINGER)) == ["forgotten", "root"]
    fixture.buffer.pop_all(is_final=True)
    assert set(fixture.buffer._traces) == set(fixture.buffer._spanless)


def test_burst_of_traces_evicts_none_whose_first_end_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_buffer, "_MAX_OPEN_TRACES", 100)
    fixture = Fixture()
    for trace in range(1, 301):
        fixture.start(trace)
        fixture.start(trace)
    for trace in range(1, 301):
        fixture.end(0.0, trace, "child")
    assert fixture.pop_names(LINGER) == []  # all roots are open


def test_estimate_bytes_counts_texts_and_overhead() -> None:
    small = estimate_bytes(span(1, "a"))
    large = estimate_bytes(span(1, "a", attributes={"a": "x" * 1000, "b": ("y" * 500, 1), "c": 1}))
    event = estimate_bytes(span(1, "a", events=[Event("e", {"a": "x" * 1000})]))
    assert 1500 < large - small < 2200
    assert 1000 < event - small < 2200
    assert 2000 < small < 3500


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "end", "end root", "take", "take all"]),
            st.integers(1, 4),
            st.floats(0, 20, allow_nan=False),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_buffer_pops_every_span_once_within_max_age(
    events: list[tuple[str, int, float]], has_start_events: bool
) -> None:
    buffer = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD, has_start_events=has_start_events)
    ended: dict[str, float] = {}
    popped: Counter[str] = Counter()
    now = 0.0
    for number, (what, trace, passed) in enumerate(events):
        now += passed
        if what == "start":
            buffer.record_starts(trace, 1)
        elif what.startswith("end"):
            name = f"{trace}/{number}"
            buffer.add(span(trace, name, None if what == "end root" else LOCAL), now)
            ended[name] = now
        else:
            popped.update(span.name for span in (buffer.pop_ready(now) if what == "take" else buffer.pop_all()))
            held = [name for name in ended if not popped[name]]
            assert buffer.span_count == len(held)
            assert what == "take" or not held
            assert all(now - ended[name] <= HOLD for name in held)
    popped.update(span.name for span in buffer.pop_ready(now + HOLD))
    assert popped == Counter(ended.keys())
    assert (buffer.span_count, buffer.byte_count, buffer.next_due()) == (0, 0, None)
