"""SuspectRegistry by destination: how often something is tried, and what a delivery says about the others."""

import pytest

from mlflow_otlp_exporter._internal.delivery.export_request import Bisection, ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.suspects import SuspectRegistry
from mlflow_otlp_exporter._internal.model.destination import Destination

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
