"""How long each destination waits, told with a clock that only waits move."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_otlp_exporter._destination import Destination
from mlflow_otlp_exporter._patience import LONGEST_IN_MEMORY, Patience
from mlflow_otlp_exporter._response import Cause, Outcome, Verdict

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
def patience(clock: Clock) -> Patience:
    return Patience(clock, lambda: NO_JITTER, on_disk=True)


def failed(patience: Patience, cause: Cause = Cause.SERVER, *, retry_after: float | None = None) -> float:
    outcome = Outcome(Verdict.RETRY, cause, "no", retry_after=retry_after)
    return patience.failed(HERE, outcome, cause, searching=False)


GROWING = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
IN_MEMORY = [0.5, 1, 2, 4, 8, 16, 30, 30]
# What a person has to mend is asked for more slowly, wherever the spans wait.
SLOWLY = [2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("cause", "on_disk", "waits"),
    [
        (Cause.SERVER, True, GROWING),
        (Cause.NOT_MLFLOW, True, GROWING),
        (Cause.SERVER, False, IN_MEMORY),
        (Cause.NOT_MLFLOW, False, IN_MEMORY),
        *(
            (cause, on_disk, SLOWLY)
            for cause in (Cause.CREDENTIALS, Cause.DESTINATION, Cause.SIZE)
            for on_disk in (0, 1)
        ),
    ],
)
def test_each_failure_in_a_row_waits_twice_as_long(cause: Cause, on_disk: bool, waits: list[float]) -> None:
    clock = Clock()
    patience = Patience(clock, lambda: NO_JITTER, on_disk=bool(on_disk))
    found = []
    for _ in waits:
        found.append(failed(patience, cause))
        assert patience.left(HERE) == found[-1]
        clock.now += found[-1]
        assert patience.left(HERE) == 0.0
    assert found == waits


def test_what_passes_ends_it(patience: Patience, clock: Clock) -> None:
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
    found = [failed(Patience(clock, lambda spread=spread: spread, on_disk=True)) for spread in (0.0, 0.25, 0.75, 1.0)]  # type: ignore[misc]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize(("said", "waits"), [(None, 0.5), (0.0, 0.5), (0.2, 0.5), (7.0, 7.0), (600.0, 600.0)])
def test_a_server_that_says_how_long_is_not_asked_before(patience: Patience, said: float | None, waits: float) -> None:
    assert failed(patience, retry_after=said) == waits


def test_a_search_ends_soon_and_says_nothing_of_the_server(patience: Patience, clock: Clock) -> None:
    outcome = Outcome(Verdict.RETRY, Cause.SERVER, "no")
    for _ in range(4):
        wait = patience.failed(HERE, outcome, Cause.SERVER, searching=True)
        assert wait == GROWING[0]
        clock.now += wait
    assert patience.failures(HERE) == 0
    assert not patience.troubled


def test_an_attempt_in_a_hurry_changes_nothing_of_the_wait(patience: Patience, clock: Clock) -> None:
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


def test_a_hurry_is_no_matter_of_those_that_need_not_wait(patience: Patience) -> None:
    patience.hurry()
    assert failed(patience) == GROWING[0]
    assert patience.left(HERE) == GROWING[0]


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
    patience: Patience, clock: Clock, failures: int, postponed: int, seconds: float, over: bool
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
    patience: Patience, clock: Clock, failures: int, waited: float, down: bool
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
            st.sampled_from(["failed", "passed", "hurry", "later"]),
            st.sampled_from([cause for cause in Cause if cause is not Cause.CONTENT]),  # that waits for nothing
            st.floats(0, 1),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_nobody_waits_for_ever_nor_for_another(
    events: list[tuple[Destination, str, Cause, float, bool]],
) -> None:
    clock, spread = Clock(), [0.5]
    patience = Patience(clock, lambda: spread[0], on_disk=True)
    failures, resume_at = {HERE: 0, THERE: 0}, {HERE: 0.0, THERE: 0.0}
    for destination, event, cause, number, searching in events:
        other = THERE if destination == HERE else HERE
        before = patience.left(other), patience.failures(other)
        spread[0] = number
        if event == "failed":
            early = clock.now < resume_at[destination]
            outcome = Outcome(Verdict.RETRY, cause, "no")
            wait = patience.failed(destination, outcome, cause, searching=searching)
            assert 0 < wait <= 60 * 1.2
            resume_at[destination] = clock.now + wait
            failures[destination] += not (searching or early)
        elif event == "passed":
            patience.passed(destination)
            failures[destination], resume_at[destination] = 0, 0.0
            assert patience.left(destination) == 0.0
        elif event == "hurry":
            patience.hurry()
            continue
        else:
            clock.now += 100 * number
            continue
        assert (patience.left(other), patience.failures(other)) == before
        assert patience.failures(destination) == failures[destination]
    assert patience.troubled is any(failures.values())
    clock.now += 60 * 1.2
    assert (patience.left(HERE), patience.left(THERE)) == (0.0, 0.0)
