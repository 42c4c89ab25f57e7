"""Counters and log lines."""

import logging

import pytest

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.stats import Stats


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_export_stats_add_sums_counters() -> None:
    problem_log = ProblemLog()
    problem_log.stats.add(delivered=2, requests=1)
    problem_log.stats.add(delivered=1, dropped=4)
    assert problem_log.stats.snapshot() == Stats(delivered=3, dropped=4, requests=1)


def test_report_repeats_are_summed_up_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    for _ in range(10):
        problem_log.report("x", "refused", 2)
        clock.now += 10
    problem_log.resolve("x", "accepted again")
    problem_log.resolve("x", "accepted again")
    assert caplog.messages == [
        "refused [2 spans]",
        "refused [still so after 60 s; 12 more spans]",
        "accepted again, after 100 s of trouble",
    ]


def test_report_without_spans_names_no_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    problem_log.report("x", "the disk is full", 0)
    clock.now += 61
    problem_log.report("x", "the disk is full", 0)
    assert caplog.messages == ["the disk is full", "the disk is full [still so after 61 s]"]


def test_report_waiting_logs_total_of_waiting_spans(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    for number in range(1, 11):
        problem_log.report_waiting("x", "the server is away", number)
        clock.now += 30
    problem_log.resolve("x", "accepted again")
    assert caplog.messages == [
        "the server is away [1 span]",
        "the server is away [still so after 60 s; 3 spans now]",
        "the server is away [still so after 2 min; 5 spans now]",
        "the server is away [still so after 3 min; 7 spans now]",
        "the server is away [still so after 4 min; 9 spans now]",
        "accepted again, after 5 min of trouble",
    ]


def test_report_waiting_recurring_problem_is_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    for _ in range(200):
        problem_log.report_waiting("x", "500", 8)
        clock.now += 0.5
        problem_log.resolve("x", "accepted again")
        clock.now += 0.5
    assert caplog.messages == [
        "500 [8 spans]",
        "accepted again, after 0 s of trouble",
        "500 [on and off for 60 s; 8 spans now]",
        "accepted again, after 60 s of trouble",
        "500 [on and off for 2 min; 8 spans now]",
        "accepted again, after 2 min of trouble",
        "500 [on and off for 3 min; 8 spans now]",
        "accepted again, after 3 min of trouble",
    ]


def test_report_waiting_lasting_recurrence_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    problem_log.report_waiting("x", "500", 8)
    problem_log.resolve("x", "accepted again")
    for _ in range(15):
        clock.now += 1
        problem_log.report_waiting("x", "500", 9)
    problem_log.resolve("x", "accepted again")
    clock.now += 100
    problem_log.report_waiting("x", "500", 1)
    assert caplog.messages == [
        "500 [8 spans]",
        "accepted again, after 0 s of trouble",
        "500 [on and off for 11 s; 9 spans now]",
        "accepted again, after 15 s of trouble",
        "500 [1 span]",
    ]


def test_flush_logs_spans_that_are_not_logged_yet(caplog: pytest.LogCaptureFixture) -> None:
    problem_log = ProblemLog()
    for count in (8, 3, 4):
        problem_log.report("x", "lost", count)
    problem_log.report_waiting("y", "waiting", 5)
    problem_log.flush()
    problem_log.flush()
    assert caplog.messages == ["lost [8 spans]", "waiting [5 spans]", "lost [7 more spans]"]


def test_report_other_key_or_text_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    problem_log = ProblemLog()
    problem_log.report("x", "first", 1)
    problem_log.report("x", "second", 1)
    problem_log.report("y", "second", 1)
    assert len(caplog.messages) == 3


def test_report_alternating_texts_are_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    for _ in range(10):
        problem_log.report("x", "connection refused", 2)
        problem_log.report("x", "503", 2)
        clock.now += 10
    problem_log.resolve("x", "accepted again")
    assert caplog.messages == [
        "connection refused [2 spans]",
        "503 [2 spans]",
        "connection refused [still so after 60 s; 12 more spans]",
        "503 [still so after 60 s; 12 more spans]",
        "accepted again, after 100 s of trouble",
    ]


def test_report_ever_new_texts_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    problem_log = ProblemLog()
    words = [chr(ord("a") + number) for number in range(26)]
    for word in words * 2:
        problem_log.report("x", word, 1)
    problem_log.resolve("x", "over")
    assert len(caplog.messages) >= len(words) + 1
    assert len(problem_log._problems) == 1


def test_log_once_repeated_message_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    problem_log = ProblemLog()
    problem_log.log_once(logging.WARNING, "hint")
    problem_log.log_once(logging.WARNING, "hint")
    assert caplog.messages == ["hint"]


def test_report_code_stays_at_the_end_of_the_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    problem_log = ProblemLog(clock)
    problem_log.report_waiting("x", add_code(MessageCode.SERVER_UNAVAILABLE, "waiting"), 2)
    clock.now += 61
    problem_log.report_waiting("x", add_code(MessageCode.SERVER_UNAVAILABLE, "waiting"), 3)
    problem_log.report("y", add_code(MessageCode.SPANS_DROPPED, "lost"), 1)
    problem_log.report("y", add_code(MessageCode.SPANS_DROPPED, "lost"), 2)
    problem_log.resolve("x", add_code(MessageCode.RECOVERED, "accepted again"))
    problem_log.flush()
    assert caplog.messages == [
        "waiting [2 spans] [MLO-501]",
        "waiting [still so after 61 s; 3 spans now] [MLO-501]",
        "lost [1 span] [MLO-701]",
        "accepted again, after 61 s of trouble [MLO-804]",
        "lost [2 more spans] [MLO-701]",
    ]
