"""Who is to blame for a 500: decisions by what came before."""

import random

import pytest

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.failure_evidence import FailureEvidence, FailureSuspect, SuspectRegistry
from mlflow_otlp_exporter._internal.model.destination import Destination

PAIR = "+x"  # another request is delivered at once, then the suspect is answered 500
STORIES = [
    # what happens, a second apart; may it be named, is it proven
    ("", False, False),
    ("x", False, False),  # that is how it was found
    ("xx", False, False),  # nothing else passes: the server is away
    ("x+", False, False),  # not answered 500 again
    ("x+x", True, False),
    ("xsx", True, False),  # a part of the search passes
    ("x" + 10 * PAIR, True, True),
    ("x" + 9 * PAIR, True, False),
    ("x" + 30 * "sx", True, False),  # what passes in a search fits any culprit
    ("x" + 30 * "+fx", True, False),  # others are answered 500 as well
    ("x" + 20 * "x" + "+x", True, False),
    ("x" + 5 * PAIR + 5 * "+y", True, True),  # another suspect's speak for the server as well
    ("x" + 4 * PAIR + 20 * "+y", True, False),  # too few of its own
    ("x" + 10 * PAIR + "!", False, False),  # something passes that had a 500 before
    ("!x" + 10 * PAIR, False, False),
    ("x" + 9 * PAIR + "!" + 60 * "." + PAIR, True, False),  # it begins anew
    ("!" + 60 * "." + "x" + 10 * PAIR, True, True),  # that is long ago
]


def told(story: str, evidence: FailureEvidence) -> tuple[FailureSuspect, float]:
    suspect, other, now = FailureSuspect(0.0, 0), FailureSuspect(0.0, 0), 0.0
    for each in story:
        match each:
            case "+":
                evidence.passed()
            case "s":
                evidence.passed_in_search()
            case "f":
                evidence.failed()
            case "!":
                evidence.passed_after_all(now)
            case "x":
                evidence.failed_again(suspect, now)
            case "y":
                evidence.failed_again(other, now)
        now += 1.0
    return suspect, now


@pytest.mark.parametrize(("story", "named", "lost"), STORIES)
def test_what_is_said_of_a_suspect(story: str, named: bool, lost: bool) -> None:
    evidence = FailureEvidence()
    suspect, now = told(story, evidence)
    assert (evidence.convincing(suspect, now), evidence.proven(suspect, now)) == (named, lost)


@pytest.mark.parametrize(
    ("story", "seconds"),
    [
        ("x", 1.0),  # to confirm what was found
        ("x+x", 2.0),
        ("x+x+x", 4.0),
        ("x" + 10 * PAIR, 30.0),
        ("xx", 30.0),  # nothing to compare with
        ("xx+x", 4.0),
        ("!xx", 2.0),
        ("!x" + 5 * PAIR, 2.0),
    ],
)
def test_when_a_suspect_is_sent_again(story: str, seconds: float) -> None:
    evidence = FailureEvidence()
    suspect, now = told(story, evidence)
    assert evidence.pause(suspect, now) == seconds


def test_server_that_answers_500_at_random_proves_nothing() -> None:
    """Whatever part of the requests it is: what has a 500 and is delivered later shows it, before it is too late."""
    chance = random.Random(3)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        for _ in range(2000):
            evidence, suspect, now = FailureEvidence(), FailureSuspect(0.0, 0), 0.0
            while chance.random() < part:  # until it is delivered
                evidence.failed_again(suspect, now)
                assert not evidence.proven(suspect, now)
                now += 1.0
                if chance.random() < part:
                    evidence.failed()
                    evidence.passed_after_all(now)
                else:
                    evidence.passed()


HERE, THERE = Destination(workspace="team-a", experiment="chat"), Destination(workspace="team-b", experiment="chat")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def shipment(
    destination: Destination = HERE, search: Bisection | None = None, found_in: Bisection | None = None
) -> ExportRequest:
    return ExportRequest(destination, [], RequestOrigin(1), search=search, found_in=found_in)


@pytest.mark.parametrize(
    ("search", "found_in", "others_pass", "moody", "times"),
    [
        (None, None, False, False, 2),
        (None, None, True, False, 2),
        (None, None, False, True, 6),  # the server answers 500 now and then to what it takes later
        (Bisection(0, after_500=True), None, False, False, 1),  # a part of a search
        (Bisection(0, after_500=True), None, False, True, 6),
        (None, Bisection(0, after_500=True), True, False, 1),  # what a search has left, and others pass
        (None, Bisection(0, after_500=True), False, False, 2),
        (None, Bisection(0, after_500=True, called_off=1), False, False, 4),
        (None, Bisection(0, after_500=True, called_off=4), False, False, 32),
        (None, Bisection(0, after_500=True, called_off=5), False, False, 32),
    ],
)
def test_times_that_something_is_sent_before_it_is_searched(
    search: Bisection | None, found_in: Bisection | None, others_pass: bool, moody: bool, times: int
) -> None:
    clock = Clock()
    suspects = SuspectRegistry(clock)
    if moody:
        suspects.evidence_at(HERE).passed_after_all(clock.now)
    assert suspects.tries(shipment(search=search, found_in=found_in), others_pass=others_pass) == times


def test_suspects_of_one_destination_say_nothing_about_another() -> None:
    suspects = SuspectRegistry(Clock())
    here, there = shipment(), shipment(THERE)
    suspects.add(here, None)
    suspects.add(there, None)
    assert (suspects.count(HERE), suspects.count(THERE)) == (1, 1)
    suspects.remove(here)
    assert (suspects.count(HERE), suspects.count(THERE)) == (0, 1)
    assert here.suspect is None
    assert there.suspect is not None
    suspects.remove(here)  # it is none any more
    assert suspects.count(THERE) == 1


def test_when_one_passes_after_all_the_others_are_tried_at_once() -> None:
    clock = Clock()
    suspects = SuspectRegistry(clock)
    passes, waits, elsewhere = shipment(), shipment(), shipment(THERE)
    for each in (passes, waits, elsewhere):
        suspects.add(each, None)
        each.not_before = clock.now + 30
    suspects.passed(passes)
    assert waits.not_before == clock.now
    assert elsewhere.not_before == clock.now + 30
    assert suspects.evidence_at(HERE).moody(clock.now)
    assert not suspects.evidence_at(THERE).moody(clock.now)


def test_a_delivery_where_nothing_is_suspected_is_not_kept_in_mind() -> None:
    suspects = SuspectRegistry(Clock())
    suspects.passed(shipment())
    assert suspects.evidence_at(HERE).delivered == 0
    suspects.passed(shipment())
    assert suspects.evidence_at(HERE).delivered == 1


def test_destinations_with_suspects_are_kept_however_many_others_come() -> None:
    suspects = SuspectRegistry(Clock())
    suspects.add(shipment(), None)
    suspects.evidence_at(HERE).passed()
    suspects.evidence_at(THERE).passed()
    for number in range(1000):
        suspects.evidence_at(Destination(experiment=str(number)))
    assert suspects.evidence_at(HERE).delivered == 1
    assert suspects.evidence_at(THERE).delivered == 0
