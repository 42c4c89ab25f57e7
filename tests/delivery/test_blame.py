"""Who is to blame for a 500: decisions by what came before."""

import random

import pytest

from mlflow_otlp_exporter._internal.delivery.blame import FailureEvidence, FailureSuspect

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
