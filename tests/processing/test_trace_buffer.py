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

from mlflow_otlp_exporter._internal.processing.trace_buffer import TraceBuffer, estimate_bytes

LINGER, HOLD, GRACE = 1.0, 30.0, 5.0
LOCAL, REMOTE = SpanContext(1, 99, is_remote=False), SpanContext(1, 99, is_remote=True)


def span(trace: int, name: str, parent: SpanContext | None = LOCAL, **more: Any) -> ReadableSpan:
    return ReadableSpan(name, SpanContext(trace, hash(name) % 2**60 + 1, False), parent, Resource({}), **more)


class Story:
    """A buffer and what happened to it, one second after the other."""

    def __init__(self, *, has_start_events: bool = True) -> None:
        self.buffer = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD, has_start_events=has_start_events)

    def start(self, trace: int, count: int = 1) -> None:
        for _ in range(count):
            self.buffer.record_start(trace)

    def end(self, at: float, trace: int, name: str, parent: SpanContext | None = LOCAL) -> None:
        self.buffer.add(span(trace, name, parent), at)

    def taken(self, at: float) -> list[str]:
        return [span.name for span in self.buffer.pop_ready(at)]


def test_complete_trace_is_ready_after_linger() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "child")
    story.end(0.5, 1, "root", None)
    assert story.buffer.next_due() == 1.5
    assert story.taken(1.4) == []
    assert story.taken(1.5) == ["child", "root"]
    assert story.buffer.next_due() is None
    assert (story.buffer.span_count, story.buffer.byte_count) == (0, 0)


def test_due_traces_are_popped_together_grouped_by_trace() -> None:
    story = Story()
    story.start(1, 2)
    story.start(2, 2)
    for at, (trace, name, parent) in enumerate(
        [(1, "child 1", LOCAL), (2, "child 2", LOCAL), (1, "root 1", None), (2, "root 2", None)]
    ):
        story.end(at / 10, trace, name, parent)
    assert story.taken(2) == ["child 1", "root 1", "child 2", "root 2"]


def test_traces_that_end_in_succession_are_popped_together() -> None:
    story = Story()
    taken: list[tuple[float, int]] = []
    for number in range(1, 151):  # five traces a second, for half a minute
        at = number / 5
        story.start(number)
        story.end(at, number, str(number), None)
        if found := story.taken(at):
            taken.append((at, len(found)))
    assert sum(count for _, count in taken) >= 120
    assert all(later[0] - earlier[0] >= 4.9 for earlier, later in pairwise(taken[2:]))
    assert all(count >= 20 for _, count in taken[3:])


def test_few_traces_are_ready_soon() -> None:
    story = Story()
    for number in range(1, 10):
        story.start(number)
        story.end(number * 6.0, number, str(number), None)
        assert story.taken(number * 6.0 + LINGER) == [str(number)]


def waits(ends: Sequence[float], *, in_progress: int = 0, never_end: int = 0) -> list[float]:
    """How long each of the traces that end then waits, as somebody who looks at the very moment sees it."""
    buffer, found, last = TraceBuffer(linger_seconds=0.1, max_age_seconds=1e7), dict[str, float](), len(ends)
    for number in range(in_progress):
        buffer.record_start(1000 + number)
        buffer.record_start(1000 + number)
        buffer.add(span(1000 + number, "child"), 0.0)
    for number in range(never_end):
        buffer.record_start(2000 + number)
    for number, at in enumerate([*ends, 1e6]):
        while (due := buffer.next_due()) is not None and due <= at:
            found |= {span.name: due - ends[int(span.name)] for span in buffer.pop_ready(due)}
        if number < last:
            buffer.record_start(number + 1)
            buffer.add(span(number + 1, str(number), None), at)
    return [found[str(number)] for number in range(last)]


@settings(deadline=None)
@given(st.lists(st.floats(0, 5), max_size=40))
def test_few_traces_wait_less_than_one_second(gaps: list[float]) -> None:
    ends = list[float]()
    for at in accumulate(gaps):
        if len(ends) < 5 or at - ends[-5] > 5:  # not more than five within any 5 s
            ends.append(at)
    assert all(item <= 0.6001 for item in waits(ends))


@pytest.mark.parametrize(
    ("a_second", "in_progress", "never_end", "least", "most"),
    [
        (0.1, 0, 0, 0.1, 0.1),
        (0.9, 0, 0, 0.1, 0.1),  # each goes soon
        (0.9, 0, 9000, 0.1, 0.1),  # whatever never ends
        (0.3, 3, 0, 0.1, 0.1),  # also of a few agents
        (0.9, 3, 0, 1.5, 3.5),
        (0.9, 20, 0, 4.0, 5.0),  # those of many share requests
        (0.1, 20, 0, 0.1, 0.1),  # if there is anything to share
        (1.3, 0, 0, 0.2, 2.4),
        (6.0, 0, 0, 4.7, 5.0),
    ],
)
def test_batch_interval_grows_with_trace_count(
    a_second: float, in_progress: int, never_end: int, least: float, most: float
) -> None:
    ends = [number / a_second for number in range(60)]
    longest = max(waits(ends, in_progress=in_progress, never_end=never_end))
    assert least - 0.01 <= longest <= most + 0.01


def test_complete_traces_of_8_mib_are_ready_at_once() -> None:
    buffer, text = TraceBuffer(linger_seconds=LINGER, max_age_seconds=HOLD), "x" * 3_000_000
    for trace in (1, 2, 3, 4):
        buffer.record_start(trace)
        buffer.record_start(trace)
    for trace in (1, 2, 3, 4):  # none of which is whole
        buffer.add(span(trace, f"child {trace}", attributes={"text": text}), 0.0)
    assert buffer.pop_ready(0.1) == []
    buffer.add(span(1, "root 1", None), 0.1)
    buffer.add(span(2, "root 2", None), 0.1)
    assert buffer.pop_ready(0.2) == []  # six million, and there may be company for them yet
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
            buffer.record_start(trace)
            buffer.add(span(trace, f"{trace}.{number}"), 0.0)
        buffer.record_start(trace)
    for trace in range(1, 9):
        assert buffer.pop_ready(0.0) == []
        buffer.add(span(trace, f"root {trace}", None), 0.0)  # 248 spans of whole traces at last, 15 of another
    assert buffer.pop_ready(0.0) == []
    buffer.record_start(10)
    for _ in range(8):
        buffer.add(span(10, "root 10", None), 0.0)
    assert (len(buffer.pop_ready(0.0)), buffer.span_count) == (256, 15)


def test_open_child_delays_trace_after_root() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "root", None)
    assert story.taken(4.9) == []
    story.end(4.9, 1, "child")
    assert story.taken(5.9) == ["root", "child"]


def test_open_child_delays_trace_for_grace_period_at_most() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "root", None)
    assert story.taken(GRACE) == ["root"]
    story.end(20.0, 1, "late child")
    assert story.taken(21.0) == ["late child"]


def test_open_trace_is_ready_after_max_age() -> None:
    story = Story()
    story.start(1, 3)
    story.end(0.0, 1, "first")
    story.end(10.0, 1, "second")
    assert story.taken(HOLD - 0.1) == []
    assert story.taken(HOLD) == ["first", "second"]
    story.end(40.0, 1, "root", None)
    assert story.taken(41.0) == ["root"]


def test_open_traces_of_similar_age_are_popped_together() -> None:
    story = Story()
    for trace, at in enumerate([0.0, 5.0, 9.9, 10.1], 1):
        story.start(trace, 2)
        story.end(at, trace, f"child {trace}")
    story.start(5, 3)
    story.end(9.0, 5, "child 5")
    story.end(26.0, 5, "root 5", None)  # whose other child is waited for
    story.start(6)  # nothing of which has ended
    assert story.taken(HOLD) == ["child 1", "child 2", "child 3"]
    assert story.taken(31.0) == ["child 5", "root 5"]
    assert story.taken(HOLD + 10.0) == []
    assert story.taken(HOLD + 10.1) == ["child 4"]


def test_open_trace_is_not_popped_early_with_complete_traces() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "child")
    story.start(2)
    story.end(27.0, 2, "root 2", None)
    story.start(3, 1)
    story.end(27.0, 3, "orphan")
    assert story.taken(29.9) == ["root 2", "orphan"]
    assert story.taken(HOLD) == ["child"]


def test_span_with_remote_parent_is_local_root() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "child")
    story.end(0.0, 1, "server span", REMOTE)
    assert story.taken(LINGER) == ["child", "server span"]


def test_trace_with_two_roots_waits_for_both() -> None:
    story = Story()
    story.start(1, 2)
    story.end(0.0, 1, "root a", REMOTE)
    story.end(2.0, 1, "root b", REMOTE)
    assert story.taken(3.0) == ["root a", "root b"]
    story.start(1)
    story.end(10.0, 1, "root c", REMOTE)
    assert story.taken(11.0) == ["root c"]


def test_span_start_during_linger_delays_trace() -> None:
    story = Story()
    story.start(1)
    story.end(0.0, 1, "root a", REMOTE)
    story.start(1)
    assert story.taken(2.0) == []
    story.end(2.0, 1, "root b", REMOTE)
    assert story.taken(3.0) == ["root a", "root b"]


def test_orphan_without_start_is_ready() -> None:
    story = Story()
    story.end(0.0, 1, "orphan")
    assert story.taken(LINGER) == ["orphan"]


@pytest.mark.parametrize(
    ("parent", "due"), [(None, LINGER), (REMOTE, LINGER), (LOCAL, HOLD)], ids=["root", "local root", "child"]
)
def test_root_completes_trace_without_start_events(parent: SpanContext | None, due: float) -> None:
    story = Story(has_start_events=False)
    story.end(0.0, 1, "child")
    story.end(0.0, 1, "last", parent)
    assert story.taken(due - 0.1) == []
    assert story.taken(due) == ["child", "last"]


def test_late_child_does_not_wait_for_root_without_start_events() -> None:
    story = Story(has_start_events=False)
    story.end(0.0, 1, "root", None)
    story.taken(LINGER)
    story.end(2.0, 1, "late child")
    assert story.taken(2.0 + LINGER) == ["late child"]


def test_pop_all_returns_open_traces() -> None:
    story = Story()
    story.start(1, 2)
    story.start(2)
    story.end(0.0, 1, "child")
    assert [span.name for span in story.buffer.pop_all()] == ["child"]
    assert story.buffer.pop_all() == []
    story.end(1.0, 1, "root", None)
    assert story.taken(2.0) == ["root"]


def test_open_traces_without_ended_spans_are_bounded() -> None:
    story = Story()
    for trace in range(1, 30_000):
        story.start(trace)
    assert len(story.buffer._traces) <= 10_002
    story.end(0.0, 29_999, "root", None)
    story.end(0.0, 1, "forgotten", None)
    assert sorted(story.taken(LINGER)) == ["forgotten", "root"]


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
    taken: Counter[str] = Counter()
    now = 0.0
    for number, (what, trace, passed) in enumerate(events):
        now += passed
        if what == "start":
            buffer.record_start(trace)
        elif what.startswith("end"):
            name = f"{trace}/{number}"
            buffer.add(span(trace, name, None if what == "end root" else LOCAL), now)
            ended[name] = now
        else:
            taken.update(span.name for span in (buffer.pop_ready(now) if what == "take" else buffer.pop_all()))
            held = [name for name in ended if not taken[name]]
            assert buffer.span_count == len(held)
            assert what == "take" or not held
            assert all(now - ended[name] <= HOLD for name in held)
    taken.update(span.name for span in buffer.pop_ready(now + HOLD))
    assert taken == Counter(ended.keys())
    assert (buffer.span_count, buffer.byte_count, buffer.next_due()) == (0, 0, None)
