"""How long each destination waits, told with a clock that only waits move."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_otlp_exporter._internal.common.backoff import LONGEST_IN_MEMORY, BackoffState, compute_backoff, hurried
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind

HERE, THERE = Destination(experiment_id="1"), Destination(experiment_id="2")
# The middle of the spread.
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
def patience(clock: Clock) -> BackoffState:
    return BackoffState(clock, lambda: NO_JITTER, on_disk=True)


def failed(
    patience: BackoffState,
    cause: FailureKind = FailureKind.SERVER,
    *,
    retry_after: float | None = None,
    began: float = math.inf,
) -> float:
    """An attempt fails, which has begun just now, or when is said."""
    outcome = ExportOutcome(Disposition.RETRYABLE, cause, "no", retry_after=retry_after)
    return patience.failed(HERE, outcome, cause, searching=False, began=began)


GROWING = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
IN_MEMORY = [0.5, 1, 2, 4, 8, 16, 30, 30]
# What a person has to mend is asked for more slowly, wherever the spans wait.
SLOWLY = [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("cause", "on_disk", "waits"),
    [
        (FailureKind.SERVER, True, GROWING),
        (FailureKind.NOT_MLFLOW, True, GROWING),
        (FailureKind.SERVER, False, IN_MEMORY),
        (FailureKind.NOT_MLFLOW, False, IN_MEMORY),
        *(
            (cause, on_disk, SLOWLY)
            for cause in (FailureKind.CREDENTIALS, FailureKind.DESTINATION, FailureKind.SIZE)
            for on_disk in (0, 1)
        ),
    ],
)
def test_each_failure_in_a_row_waits_twice_as_long(cause: FailureKind, on_disk: bool, waits: list[float]) -> None:
    clock = Clock()
    patience = BackoffState(clock, lambda: NO_JITTER, on_disk=bool(on_disk))
    found = []
    for _ in waits:
        found.append(failed(patience, cause))
        assert patience.left(HERE) == found[-1]
        clock.now += found[-1]
        assert patience.left(HERE) == 0.0
    assert found == waits


def test_what_passes_ends_it(patience: BackoffState, clock: Clock) -> None:
    for _ in range(5):
        clock.now += failed(patience)
    trouble = patience.trouble(HERE)
    assert trouble is not None
    assert (patience.failures(HERE), patience.troubled, trouble.message) == (5, True, "no")
    patience.passed(HERE)
    assert (patience.failures(HERE), patience.left(HERE), patience.trouble(HERE)) == (0, 0.0, None)
    assert patience.troubled is False
    assert failed(patience) == GROWING[0]


def test_clients_of_one_outage_come_back_one_after_another(clock: Clock) -> None:
    spreads = iter((0.0, 0.25, 0.75, 1.0))
    delays = [failed(BackoffState(clock, lambda: next(spreads), on_disk=True)) for _ in range(4)]
    assert delays == sorted(set(delays))
    assert (delays[0], delays[-1]) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize(("said", "waits"), [(None, 0.5), (0.0, 0.5), (0.2, 0.5), (7.0, 7.0), (600.0, 600.0)])
def test_a_server_that_says_how_long_is_not_asked_before(
    patience: BackoffState, said: float | None, waits: float
) -> None:
    assert failed(patience, retry_after=said) == waits


def test_a_search_ends_soon_and_says_nothing_of_the_server(patience: BackoffState, clock: Clock) -> None:
    outcome = ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER, "no")
    for _ in range(4):
        wait = patience.failed(HERE, outcome, FailureKind.SERVER, searching=True, began=clock.now)
        assert wait == GROWING[0]
        clock.now += wait
    assert patience.failures(HERE) == 0
    assert not patience.troubled


def test_an_attempt_in_a_hurry_changes_nothing_of_the_wait(patience: BackoffState, clock: Clock) -> None:
    for wait in GROWING[:4]:
        failed(patience)
        clock.now += wait
    failed(patience)  # waits 8 s
    clock.now += 3
    patience.hurry()
    assert patience.left(HERE) == 0.0
    assert not patience.is_down(HERE)
    assert failed(patience) == 5.0
    assert patience.left(HERE) == 5.0  # the hurry is for one attempt
    assert patience.failures(HERE) == 5
    clock.now += 5
    assert failed(patience) == 16.0


def test_a_hurry_is_no_matter_of_those_that_need_not_wait(patience: BackoffState) -> None:
    patience.hurry()
    assert failed(patience) == GROWING[0]
    assert patience.left(HERE) == GROWING[0]


NOBODY = -math.inf
SHORT = 0.5


@pytest.mark.parametrize(
    ("wait", "began", "hurry", "waits"),
    [
        (60.0, 10.0, NOBODY, 60.0),
        (60.0, 10.0, 11.0, SHORT),  # in the middle of the attempt
        (600.0, 10.0, 11.0, SHORT),
        (60.0, 10.0, 10.0, 60.0),  # the attempt that was made for who hurries
        (60.0, 10.0, 9.0, 60.0),
        (1.1, 10.0, 11.0, SHORT),
        (1.0, 10.0, 11.0, 1.0),  # another attempt just before its time would be one too many
        (0.4, 10.0, 11.0, 0.4),
        (0.0, 10.0, 11.0, 0.0),
    ],
)
def test_who_hurries_in_the_middle_of_an_attempt_waits_shortly(
    wait: float, began: float, hurry: float, waits: float
) -> None:
    assert hurried(wait, began, hurry) == waits


def test_hurry_in_the_middle_of_an_attempt_is_for_the_next_one(patience: BackoffState, clock: Clock) -> None:
    for wait in GROWING[:4]:
        failed(patience)
        clock.now += wait
    began = clock.now
    clock.now += 3
    patience.hurry()
    clock.now += 2
    assert failed(patience, began=began) == SHORT  # else 8 s
    assert patience.left(HERE) == SHORT
    clock.now += SHORT
    assert patience.left(HERE) == 0.0
    # It is for one attempt, and changes nothing of the wait.
    assert failed(patience, began=clock.now) == patience.left(HERE) == 8 - SHORT
    assert patience.failures(HERE) == 5
    clock.now += 8 - SHORT
    assert failed(patience, began=clock.now) == 16.0


def test_hurry_that_is_over_before_the_attempt_is_shortens_nothing(patience: BackoffState, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    patience.hurry()
    patience.relax()
    assert failed(patience, FailureKind.CREDENTIALS, began=began) == patience.left(HERE) == SLOWLY[0]


def test_server_that_says_how_long_is_asked_once_more_for_who_hurries(patience: BackoffState, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    patience.hurry()
    assert failed(patience, retry_after=600, began=began) == SHORT
    clock.now += SHORT
    assert failed(patience, retry_after=600, began=clock.now) == 600 - SHORT


@pytest.mark.parametrize(
    ("failures", "postponed", "seconds", "over"),
    [
        (0, 0, 0.0, False),
        (0, 1, 0.0, False),  # the short first repetition
        (0, 2, 0.0, True),
        (1, 0, 0.0, True),  # known to be in vain
        (0, 0, LONGEST_IN_MEMORY, False),
        (0, 0, LONGEST_IN_MEMORY + 0.1, True),
        (3, 3, 60.0, True),
    ],
)
def test_when_something_goes_to_disk(
    patience: BackoffState, clock: Clock, failures: int, postponed: int, seconds: float, over: bool
) -> None:
    for _ in range(failures):
        clock.now += failed(patience)
    since = clock.now
    clock.now += seconds
    assert patience.is_over(HERE, postponed, since) is over
    assert patience.is_over(THERE, postponed, since) is (postponed > 1 or seconds > LONGEST_IN_MEMORY)


@pytest.mark.parametrize(
    ("failures", "waited", "down"), [(0, 0.0, False), (1, 0.0, False), (2, 0.0, True), (2, 1.0, False)]
)
def test_known_to_be_down_is_what_failed_again_and_waits(
    patience: BackoffState, clock: Clock, failures: int, waited: float, down: bool
) -> None:
    for number in range(failures):
        clock.now += GROWING[number - 1] if number else 0.0
        failed(patience)
    clock.now += waited
    assert patience.is_down(HERE) is down


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([HERE, THERE]),
            st.sampled_from(["failed", "passed", "hurry", "relax", "later"]),
            st.sampled_from(
                [cause for cause in FailureKind if cause is not FailureKind.CONTENT]
            ),  # that waits for nothing
            st.floats(0, 1),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_nobody_waits_for_ever_nor_for_another(
    events: list[tuple[Destination, str, FailureKind, float, bool]],
) -> None:
    clock, spread = Clock(), [0.5]
    patience = BackoffState(clock, lambda: spread[0], on_disk=True)
    failures, resume_at, hurry = {HERE: 0, THERE: 0}, {HERE: 0.0, THERE: 0.0}, NOBODY
    for destination, event, cause, number, searching in events:
        other = THERE if destination == HERE else HERE
        before = patience.left(other), patience.failures(other)
        spread[0] = number
        if event == "failed":
            early, began = clock.now < resume_at[destination], clock.now - 200 * number
            outcome = ExportOutcome(Disposition.RETRYABLE, cause, "no")
            wait = patience.failed(destination, outcome, cause, searching=searching, began=began)
            assert 0 < wait <= 60 * 1.2
            assert wait == pytest.approx(patience.left(destination))
            if not (began < hurry and wait == SHORT):
                resume_at[destination] = clock.now + wait
            elif not early:
                resume_at[destination] = patience._resume_at[destination]
            failures[destination] += not (searching or early)
        elif event == "passed":
            patience.passed(destination)
            failures[destination], resume_at[destination] = 0, 0.0
            assert patience.left(destination) == 0.0
        elif event == "hurry":
            patience.hurry()
            hurry = clock.now
            continue
        elif event == "relax":
            patience.relax()
            hurry = NOBODY
            continue
        else:
            clock.now += 100 * number
            continue
        assert (patience.left(other), patience.failures(other)) == before
        assert patience.failures(destination) == failures[destination]
    assert patience.troubled is any(failures.values())
    clock.now += 60 * 1.2
    assert (patience.left(HERE), patience.left(THERE)) == (0.0, 0.0)


def test_compute_backoff_with_growing_attempt_doubles_up_to_maximum() -> None:
    assert [compute_backoff(attempt, 0.5) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [compute_backoff(attempt, 0.5, first_seconds=2, max_seconds=10) for attempt in range(4)] == [2, 4, 8, 10]
    assert [compute_backoff(0, 0), compute_backoff(0, 1)] == pytest.approx([0.4, 0.6])
    assert compute_backoff(10_000, 0.5) == 30
