"""Delays of destinations, with a clock that only the tests move."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.common.backoff import (
    MAX_SECONDS_IN_MEMORY,
    BackoffState,
    compute_backoff,
)

State = BackoffState[str, str]
HERE, THERE = "here", "there"
NO_JITTER = 0.5


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> State:
    return BackoffState(clock, lambda: NO_JITTER, has_spool=True)


def record_failure(state: State, *, needs_user: bool = False, retry_after: float | None = None) -> float:
    return state.record_failure(HERE, "no", retry_after=retry_after, needs_user=needs_user)


GROWING = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
IN_MEMORY = [0.5, 1, 2, 4, 8, 16, 30, 30]
# What a user has to correct is retried more slowly, with and without a spool.
SLOW = [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("needs_user", "has_spool", "delays"),
    [(False, True, GROWING), (False, False, IN_MEMORY), (True, True, SLOW), (True, False, SLOW)],
)
def test_record_failure_consecutive_failures_double_delay(
    needs_user: bool, has_spool: bool, delays: list[float]
) -> None:
    clock = Clock()
    state: State = BackoffState(clock, lambda: NO_JITTER, has_spool=has_spool)
    results = []
    for _ in delays:
        results.append(record_failure(state, needs_user=needs_user))
        assert state.remaining_delay(HERE) == results[-1]
        clock.now += results[-1]
        assert state.remaining_delay(HERE) == 0.0
    assert results == delays


def test_record_success_resets_state(state: State, clock: Clock) -> None:
    for _ in range(5):
        clock.now += record_failure(state)
    assert (state.failure_count(HERE), state.failure_counts, state.last_failure(HERE)) == (5, {HERE: 5}, "no")
    state.record_success(HERE)
    assert (state.failure_count(HERE), state.remaining_delay(HERE), state.last_failure(HERE)) == (0, 0.0, None)
    assert not state.failure_counts
    assert record_failure(state) == GROWING[0]


def test_record_failure_jitter_spreads_delays(clock: Clock) -> None:
    spreads = iter((0.0, 0.25, 0.75, 1.0))
    delays = [record_failure(BackoffState(clock, lambda: next(spreads), has_spool=True)) for _ in range(4)]
    assert delays == sorted(set(delays))
    assert (delays[0], delays[-1]) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize(("retry_after", "expected"), [(None, 0.5), (0.0, 0.5), (0.2, 0.5), (7.0, 7.0), (600.0, 600.0)])
def test_record_failure_retry_after_is_minimum_delay(state: State, retry_after: float | None, expected: float) -> None:
    assert record_failure(state, retry_after=retry_after) == expected


def test_record_failure_of_early_attempt_keeps_delay(state: State, clock: Clock) -> None:
    """A flush makes an attempt before the delay is over."""
    for wait in GROWING[:4]:
        record_failure(state)
        clock.now += wait
    record_failure(state)  # waits 8 s
    clock.now += 3
    assert record_failure(state, retry_after=600) == 5.0
    assert state.remaining_delay(HERE) == 5.0
    assert state.failure_count(HERE) == 5
    clock.now += 5
    assert record_failure(state) == 16.0


@pytest.mark.parametrize(
    ("failure_count", "delay_count", "seconds", "expected"),
    [
        (0, 0, 0.0, False),
        (0, 1, 0.0, False),  # the short first retry
        (0, 2, 0.0, True),
        (1, 0, 0.0, True),  # known to fail
        (0, 0, MAX_SECONDS_IN_MEMORY, False),
        (0, 0, MAX_SECONDS_IN_MEMORY + 0.1, True),
        (3, 3, 60.0, True),
    ],
)
def test_should_spool_after_retry_or_known_failure(
    state: State, clock: Clock, failure_count: int, delay_count: int, seconds: float, expected: bool
) -> None:
    for _ in range(failure_count):
        clock.now += record_failure(state)
    since = clock.now
    clock.now += seconds
    assert state.should_spool(HERE, delay_count, since) is expected
    assert state.should_spool(THERE, delay_count, since) is (delay_count > 1 or seconds > MAX_SECONDS_IN_MEMORY)


@pytest.mark.parametrize(
    ("failure_count", "waited", "is_backing_off"), [(0, 0.0, False), (1, 0.0, False), (2, 0.0, True), (2, 1.0, False)]
)
def test_is_open_after_failed_retry_until_delay_ends(
    state: State, clock: Clock, failure_count: int, waited: float, is_backing_off: bool
) -> None:
    for number in range(failure_count):
        clock.now += GROWING[number - 1] if number else 0.0
        record_failure(state)
    clock.now += waited
    assert state.is_backing_off(HERE) is is_backing_off


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([HERE, THERE]),
            st.sampled_from(["failure", "success", "later"]),
            st.booleans(),
            st.floats(0, 1),
        ),
        max_size=60,
    )
)
def test_backoff_state_delays_are_bounded_and_independent(
    events: list[tuple[str, str, bool, float]],
) -> None:
    clock, spread = Clock(), [0.5]
    state: State = BackoffState(clock, lambda: spread[0], has_spool=True)
    failures, resume_at = {HERE: 0, THERE: 0}, {HERE: 0.0, THERE: 0.0}
    for destination, event, needs_user, number in events:
        other = THERE if destination == HERE else HERE
        before = state.remaining_delay(other), state.failure_count(other)
        spread[0] = number
        if event == "failure":
            is_early = clock.now < resume_at[destination]
            delay = state.record_failure(destination, "no", retry_after=None, needs_user=needs_user)
            assert 0 < delay <= 60 * 1.2
            assert delay == pytest.approx(state.remaining_delay(destination))
            resume_at[destination] = clock.now + delay
            failures[destination] += not is_early
        elif event == "success":
            state.record_success(destination)
            failures[destination], resume_at[destination] = 0, 0.0
            assert state.remaining_delay(destination) == 0.0
        else:
            clock.now += 100 * number
            continue
        assert (state.remaining_delay(other), state.failure_count(other)) == before
        assert state.failure_count(destination) == failures[destination]
    assert bool(state.failure_counts) is any(failures.values())
    clock.now += 60 * 1.2
    assert (state.remaining_delay(HERE), state.remaining_delay(THERE)) == (0.0, 0.0)


def test_compute_backoff_with_growing_attempt_doubles_up_to_maximum() -> None:
    assert [compute_backoff(attempt, 0.5) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [compute_backoff(attempt, 0.5, first_seconds=2, max_seconds=10) for attempt in range(4)] == [2, 4, 8, 10]
    assert [compute_backoff(0, 0), compute_backoff(0, 1)] == pytest.approx([0.4, 0.6])
    assert compute_backoff(10_000, 0.5) == 30
