"""Decisions about spans that are answered with 500, by the responses before."""

import random

import pytest

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.failure_evidence import FailureEvidence, FailureSuspect, SuspectRegistry
from mlflow_otlp_exporter._internal.model.destination import Destination

PAIR = "+x"  # another request is delivered at once, then the suspect is answered with 500
STORIES = [
    # events, one per second; is the suspect reported, is it dropped
    ("", False, False),
    ("x", False, False),  # its isolation
    ("xx", False, False),  # nothing else passes: the server is unavailable
    ("x+", False, False),  # no second 500
    ("x+x", True, False),
    ("xsx", True, False),  # a part of the bisection passes
    ("x" + 10 * PAIR, True, True),
    ("x" + 9 * PAIR, True, False),
    ("x" + 30 * "sx", True, False),  # successes during a bisection prove nothing
    ("x" + 30 * "+fx", True, False),  # others fail as well
    ("x" + 20 * "x" + "+x", True, False),
    ("x" + 5 * PAIR + 5 * "+y", True, True),  # pairs of another suspect count for the server, too
    ("x" + 4 * PAIR + 20 * "+y", True, False),  # too few own pairs
    ("x" + 10 * PAIR + "!", False, False),  # a request passes that had failed before
    ("!x" + 10 * PAIR, False, False),
    ("x" + 9 * PAIR + "!" + 60 * "." + PAIR, True, False),  # the count starts again
    ("!" + 60 * "." + "x" + 10 * PAIR, True, True),  # long ago
]


def replay(story: str, evidence: FailureEvidence) -> tuple[FailureSuspect, float]:
    suspect, other, now = FailureSuspect(0.0, 0), FailureSuspect(0.0, 0), 0.0
    for event in story:
        match event:
            case "+":
                evidence.record_success()
            case "s":
                evidence.record_bisection_success()
            case "f":
                evidence.record_failure()
            case "!":
                evidence.record_late_success(now)
            case "x":
                evidence.record_suspect_failure(suspect, now)
            case "y":
                evidence.record_suspect_failure(other, now)
        now += 1.0
    return suspect, now


@pytest.mark.parametrize(("story", "is_reported", "is_dropped"), STORIES)
def test_evidence_decides_about_suspect(story: str, is_reported: bool, is_dropped: bool) -> None:
    evidence = FailureEvidence()
    suspect, now = replay(story, evidence)
    assert (evidence.is_convincing(suspect, now), evidence.is_proven(suspect, now)) == (is_reported, is_dropped)


@pytest.mark.parametrize(
    ("story", "seconds"),
    [
        ("x", 1.0),  # confirms the isolation
        ("x+x", 2.0),
        ("x+x+x", 4.0),
        ("x" + 10 * PAIR, 30.0),
        ("xx", 30.0),  # nothing to compare with
        ("xx+x", 4.0),
        ("!xx", 2.0),
        ("!x" + 5 * PAIR, 2.0),
    ],
)
def test_pause_seconds_grows_with_server_errors(story: str, seconds: float) -> None:
    evidence = FailureEvidence()
    suspect, now = replay(story, evidence)
    assert evidence.pause_seconds(suspect, now) == seconds


def test_random_server_errors_never_prove_a_suspect() -> None:
    """For any share of failing requests, a late success clears the suspects in time."""
    chance = random.Random(3)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        for _ in range(2000):
            evidence, suspect, now = FailureEvidence(), FailureSuspect(0.0, 0), 0.0
            while chance.random() < part:  # until it is delivered
                evidence.record_suspect_failure(suspect, now)
                assert not evidence.is_proven(suspect, now)
                now += 1.0
                if chance.random() < part:
                    evidence.record_failure()
                    evidence.record_late_success(now)
                else:
                    evidence.record_success()


HERE, THERE = Destination(workspace="team-a", experiment="chat"), Destination(workspace="team-b", experiment="chat")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def export_request(
    destination: Destination = HERE, bisection: Bisection | None = None, previous_bisection: Bisection | None = None
) -> ExportRequest:
    return ExportRequest(destination, [], RequestOrigin(1), bisection=bisection, previous_bisection=previous_bisection)


@pytest.mark.parametrize(
    ("bisection", "previous_bisection", "others_pass", "is_unstable", "times"),
    [
        (None, None, False, False, 2),
        (None, None, True, False, 2),
        (None, None, False, True, 6),  # the server answers 500 now and then to what it takes later
        (Bisection(0, had_server_error=True), None, False, False, 1),  # a part of a bisection
        (Bisection(0, had_server_error=True), None, False, True, 6),
        (None, Bisection(0, had_server_error=True), True, False, 1),  # deferred by a bisection, and others pass
        (None, Bisection(0, had_server_error=True), False, False, 2),
        (None, Bisection(0, had_server_error=True, cancelled_count=1), False, False, 4),
        (None, Bisection(0, had_server_error=True, cancelled_count=4), False, False, 32),
        (None, Bisection(0, had_server_error=True, cancelled_count=5), False, False, 32),
    ],
)
def test_attempts_before_bisection(
    bisection: Bisection | None, previous_bisection: Bisection | None, others_pass: bool, is_unstable: bool, times: int
) -> None:
    clock = Clock()
    suspects = SuspectRegistry(clock)
    if is_unstable:
        suspects.evidence_at(HERE).record_late_success(clock.now)
    assert (
        suspects.attempts_before_bisection(
            export_request(bisection=bisection, previous_bisection=previous_bisection), others_pass=others_pass
        )
        == times
    )


def test_suspects_are_separate_by_destination() -> None:
    suspects = SuspectRegistry(Clock())
    here, there = export_request(), export_request(THERE)
    suspects.add(here, None)
    suspects.add(there, None)
    assert (suspects.count(HERE), suspects.count(THERE)) == (1, 1)
    suspects.remove(here)
    assert (suspects.count(HERE), suspects.count(THERE)) == (0, 1)
    assert here.suspect is None
    assert there.suspect is not None
    suspects.remove(here)  # it is not a suspect any more
    assert suspects.count(THERE) == 1


def test_delivered_suspect_releases_other_suspects_of_destination() -> None:
    clock = Clock()
    suspects = SuspectRegistry(clock)
    passes, waits, elsewhere = export_request(), export_request(), export_request(THERE)
    for event in (passes, waits, elsewhere):
        suspects.add(event, None)
        event.not_before = clock.now + 30
    suspects.record_success(passes)
    assert waits.not_before == clock.now
    assert elsewhere.not_before == clock.now + 30
    assert suspects.evidence_at(HERE).is_unstable(clock.now)
    assert not suspects.evidence_at(THERE).is_unstable(clock.now)


def test_record_success_without_evidence_stores_nothing() -> None:
    suspects = SuspectRegistry(Clock())
    suspects.record_success(export_request())
    assert suspects.evidence_at(HERE).delivered_count == 0
    suspects.record_success(export_request())
    assert suspects.evidence_at(HERE).delivered_count == 1


def test_evidence_of_destinations_with_suspects_is_never_evicted() -> None:
    suspects = SuspectRegistry(Clock())
    suspects.add(export_request(), None)
    suspects.evidence_at(HERE).record_success()
    suspects.evidence_at(THERE).record_success()
    for number in range(1000):
        suspects.evidence_at(Destination(experiment=str(number)))
    assert suspects.evidence_at(HERE).delivered_count == 1
    assert suspects.evidence_at(THERE).delivered_count == 0
