"""When a request is tried again, and when not."""

import gzip
import zlib
from collections.abc import Mapping

import pytest

from mlflow_otlp_exporter._delivery import Delivery, Request, backoff, compressed
from mlflow_otlp_exporter._destination import Destination, Experiments
from mlflow_otlp_exporter._report import Report
from mlflow_otlp_exporter._response import Cause, Verdict
from mlflow_otlp_exporter._transport import Answer, Failure

LARGE = b"body" * 1000
REQUEST = Request(Destination(experiment_id="1"), b"body", 1)


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Script:
    """Answers in turn; the last one repeats. Each takes a second."""

    def __init__(self, clock: Clock, *answers: Answer | Failure) -> None:
        self.clock, self.answers, self.seen = clock, list(answers), list[tuple[float, Mapping[str, str]]]()

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None, seconds: float
    ) -> Answer | Failure:
        assert (method, path) == ("POST", "")
        assert body
        assert seconds > 0
        self.seen.append((self.clock.now, headers))
        self.clock.now += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class Event:
        def wait(self, seconds: float) -> bool:
            clock.now += seconds
            return False

        def set(self) -> None: ...

    monkeypatch.setattr("mlflow_otlp_exporter._delivery.threading.Event", Event)
    return clock


def delivery(clock: Clock, script: Script, compression: str = "none") -> tuple[Delivery, Report]:
    report = Report()
    experiments = Experiments(None, certain=False, create=False, report=report)
    return Delivery(
        script, experiments, compression=compression, report=report, clock=clock, jitter=lambda: 0.5
    ), report


def test_backoff_doubles_to_a_limit_and_is_spread() -> None:
    assert [backoff(attempt, 0.5) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [backoff(0, 0), backoff(0, 1)] == pytest.approx([0.4, 0.6])
    assert backoff(1000, 0.5) == 30


@pytest.mark.parametrize("away", [Answer(503), Answer(429), Answer(500), Failure("refused"), Failure("reset", True)])
def test_server_that_comes_back_is_tried_until_then(clock: Clock, away: Answer | Failure) -> None:
    script = Script(clock, away, away, Answer(200))
    sender, report = delivery(clock, script)
    assert sender.deliver(REQUEST, 10).verdict is Verdict.DELIVERED
    assert [at for at, _ in script.seen] == [0, 1.5, 3.5]
    assert (report.stats().requests, report.stats().retries) == (3, 2)


def test_time_is_kept(clock: Clock) -> None:
    script = Script(clock, Answer(503))
    sender, _ = delivery(clock, script)
    outcome = sender.deliver(REQUEST, 10)
    assert (outcome.verdict, outcome.cause) == (Verdict.RETRY, Cause.SERVER)
    assert clock.now <= 10


def test_retry_after_is_honoured_and_never_undercut(clock: Clock) -> None:
    script = Script(clock, Answer(503, {"retry-after": "5"}), Answer(200))
    sender, _ = delivery(clock, script)
    assert sender.deliver(REQUEST, 10).verdict is Verdict.DELIVERED
    assert [at for at, _ in script.seen] == [0, 6]
    script = Script(clock, Answer(503, {"retry-after": "100"}))
    sender, _ = delivery(clock, script)
    assert sender.deliver(REQUEST, 10).retry_after == 100
    assert len(script.seen) == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 413, 422, 501])
def test_what_the_same_bytes_will_not_change_is_not_tried_again(clock: Clock, status: int) -> None:
    script = Script(clock, Answer(status))
    sender, _ = delivery(clock, script)
    assert sender.deliver(REQUEST, 10).verdict is not Verdict.DELIVERED
    assert len(script.seen) == 1


def test_headers(clock: Clock) -> None:
    script = Script(clock, Answer(200))
    sender, _ = delivery(clock, script, "gzip")
    sender.deliver(Request(Destination("w", experiment_id="1", run_id="r"), LARGE, 1), 10)
    assert script.seen[0][1] == {
        "content-type": "application/x-protobuf",
        "content-encoding": "gzip",
        "x-mlflow-experiment-id": "1",
        "x-mlflow-workspace": "w",
        "x-mlflow-run-id": "r",
    }


def test_small_body_is_not_compressed(clock: Clock) -> None:
    script = Script(clock, Answer(200))
    sender, _ = delivery(clock, script, "gzip")
    sender.deliver(REQUEST, 10)
    assert "content-encoding" not in script.seen[0][1]


@pytest.mark.parametrize("status", [400, 415])
def test_server_that_takes_no_compressed_body_is_sent_plain_ones_from_then_on(
    clock: Clock, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(clock, Answer(status), Answer(200))
    sender, _ = delivery(clock, script, "gzip")
    for _ in range(2):
        assert sender.deliver(Request(REQUEST.destination, LARGE, 1), 10).verdict is Verdict.DELIVERED
    assert ["content-encoding" in headers for _, headers in script.seen] == [True, False, False]
    assert caplog.text.count("sent plain from now on") == 1


def test_content_that_is_refused_plain_too_says_nothing_of_compression(clock: Clock) -> None:
    script = Script(clock, Answer(400))
    sender, _ = delivery(clock, script, "gzip")
    for _ in range(2):
        assert sender.deliver(Request(REQUEST.destination, LARGE, 1), 10).verdict is Verdict.REFUSED
    assert ["content-encoding" in headers for _, headers in script.seen] == [True, False, True, False]


def test_closing_ends_the_wait_between_attempts() -> None:
    script = Script(Clock(), Answer(503))
    report = Report()
    sender = Delivery(
        script, Experiments(None, certain=False, create=False, report=report), compression="none", report=report
    )
    sender.close()
    assert sender.deliver(REQUEST, 1000).verdict is Verdict.RETRY
    assert len(script.seen) == 1


def test_compression_keeps_the_body() -> None:
    assert compressed(b"body", "none") == b"body"
    assert gzip.decompress(compressed(b"body", "gzip")) == b"body"
    assert zlib.decompress(compressed(b"body", "deflate")) == b"body"
