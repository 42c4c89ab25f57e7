"""Counters and log lines."""

import logging

import pytest

from mlflow_otlp_exporter._report import Report, Stats


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_counts() -> None:
    report = Report()
    report.count(delivered=2, requests=1)
    report.count(delivered=1, refused=4)
    assert report.stats() == Stats(delivered=3, refused=4, requests=1)


def test_problem_is_told_in_full_then_summed_up_each_minute_then_solved(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    report = Report(clock)
    for _ in range(10):
        report.problem("x", "the server is away", 2)
        clock.now += 10
    report.solved("x", "accepted again")
    report.solved("x", "accepted again")
    assert caplog.messages == [
        "the server is away [2 spans]",
        "the server is away [still so after 60 s; 12 more spans]",
        "accepted again, after 100 s of trouble",
    ]


def test_other_problem_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    report = Report()
    report.problem("x", "first", 1)
    report.problem("x", "second", 1)
    report.problem("y", "second", 1)
    assert len(caplog.messages) == 3


def test_problem_that_changes_its_face_to_and_fro_does_not_flood(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    report = Report(clock)
    for _ in range(10):
        report.problem("x", "connection refused", 2)
        report.problem("x", "503", 2)
        clock.now += 10
    report.solved("x", "accepted again")
    assert caplog.messages == [
        "connection refused [2 spans]",
        "503 [2 spans]",
        "connection refused [still so after 60 s; 12 more spans]",
        "503 [still so after 60 s; 12 more spans]",
        "accepted again, after 100 s of trouble",
    ]


def test_problem_with_ever_new_texts_does_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    report = Report()
    words = [chr(ord("a") + number) for number in range(26)]
    for word in words * 2:
        report.problem("x", word, 1)
    report.solved("x", "over")
    assert len(caplog.messages) >= len(words) + 1
    assert not report._problems


def test_said_once(caplog: pytest.LogCaptureFixture) -> None:
    report = Report()
    report.once(logging.WARNING, "hint")
    report.once(logging.WARNING, "hint")
    assert caplog.messages == ["hint"]
