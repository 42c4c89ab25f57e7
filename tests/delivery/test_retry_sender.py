"""What is done about an outcome, told step by step with a clock that only waits move."""

import base64
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.transport.authorization import Authorization
from mlflow_otlp_exporter._internal.transport.messages import HttpRequest, HttpResponse, TransportError

JSON = {"content-type": "application/json"}
Pair = tuple[int, int]
Judge = Callable[[list[str]], HttpResponse | TransportError]


class FakeMLflow:
    """Stores spans as a version of MLflow does, and answers as it is told."""

    def __init__(self, version: str = "3.17.2") -> None:
        self.version = version
        self.clock = 0.0
        self.judge: Judge = lambda _: HttpResponse(200)
        self.stores_anyway = False
        self.stored: Counter[Pair] = Counter()
        self.names: list[list[str]] = []
        self.times: list[float] = []
        self.sizes: list[int] = []
        self.asked = 0
        self.may_ask: HttpResponse | None = None
        self.credentials: Authorization = FakeCredentials()
        self.new_credential = False

    def has_new_credential(self) -> bool:
        found, self.new_credential = self.new_credential, False
        return found

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        assert "authorization" not in asked.headers
        if asked.path == "/version":
            return HttpResponse(200, {"content-type": "text/html"}, self.version.encode())
        if asked.path.startswith("/api/3.0/mlflow/traces/batchGet"):
            return self._read_back(parse_qs(urlsplit(asked.path).query)["trace_ids"], asked.max_response_bytes)
        assert (asked.method, asked.path) == ("POST", "")
        spans = [
            span
            for resource in ExportTraceServiceRequest.FromString(asked.body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.names.append([span.name for span in spans])
        self.times.append(self.clock)
        self.sizes.append(len(asked.body))
        answer = self.judge([span.name for span in spans])
        accepted = isinstance(answer, HttpResponse) and answer.status == 200
        if accepted or self.stores_anyway:
            self.stored.update(
                (int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")) for span in spans
            )
        return answer

    def _read_back(self, trace_ids: list[str], longest: int) -> HttpResponse:
        self.asked += 1
        assert longest > 1_000_000
        if self.may_ask is not None:
            return self.may_ask
        traces: dict[str, list[dict[str, str]]] = {}
        for trace, span in self.stored:
            key = f"tr-{trace:032x}"
            if key in trace_ids:
                ids = {"trace_id": trace.to_bytes(16, "big"), "span_id": span.to_bytes(8, "big")}
                traces.setdefault(key, []).append(
                    {name: base64.b64encode(value).decode() for name, value in ids.items()}
                )
        return HttpResponse(200, JSON, json.dumps({"traces": [{"spans": spans} for spans in traces.values()]}).encode())


class FakeCredentials:
    can_watch = False

    def authorization(self) -> str | None:
        return None

    def __str__(self) -> str:
        return "none"


class Story:
    """A courier and a fake MLflow, driven as the senders drive them."""

    def __init__(self, version: str = "3.17.2", jitter: float = 0.5, *, certain: bool = True) -> None:
        self.server = FakeMLflow(version)
        self.report = ProblemLog(lambda: self.server.clock)
        self.experiments = ExperimentResolver(None, certain=False, create=False, report=self.report)
        self.sender = RetrySender(
            self.server,
            OTLPClient(self.server, self.experiments, compression="none", report=self.report),
            ServerInfo(self.server, self.report, certain=certain),
            self.report,
            explain=lambda outcome: outcome.message,
            clock=lambda: self.server.clock,
            jitter=lambda: jitter,
        )
        self.settled = 0
        self.postponed: list[str] = []
        self.suspects: list[tuple[int, int]] = []
        self.left: list[ExportRequest] = []

    def send(self, spans: list[EncodedSpan], *, until: float = 1e9, left: str = "") -> None:
        """Takes the shipment, and what is left of those before it, further until they are settled or the time is up."""

        def settled() -> None:
            self.settled += 1

        def suspected(count: int, size: int) -> None:
            self.suspects.append((count, size))

        origin = RequestOrigin(len(spans), settled, lambda outcome: self.postponed.append(outcome.message), suspected)
        origin.label = left
        queue = [*self.left, ExportRequest(Destination(experiment_id="1"), spans, origin)]
        while queue and self.server.clock < until:
            now = self.server.clock
            ready = next((each for each in queue if each.not_before <= now), None)
            if ready is None:
                self.server.clock = min(until, *(each.not_before for each in queue))
                continue
            queue.remove(ready)
            step = self.sender.send(ready, 5.0)
            queue = [*queue, *step.remaining] if step.requeue_last else [*step.remaining, *queue]
            self.server.clock += step.retry_after
        self.left = queue

    @property
    def refused(self) -> int:
        return self.report.stats().dropped

    def lands_once(self, spans: list[EncodedSpan]) -> bool:
        return self.server.stored == Counter((span.trace_id, span.span_id) for span in spans)


def encoded(*names: str, children: int = 0, text: int = 0, base: int = 0) -> list[EncodedSpan]:
    """Traces of a root and children, numbered from `base + 1`; `text` characters on each span."""
    encoder, spans = SpanEncoder(), []
    for number, name in enumerate(names, base + 1):
        for child in range(children + 1):
            context = SpanContext(number, child + 1, False)
            parent = SpanContext(number, 1, False) if child else None
            title = f"{name}/{child}" if child else name
            attributes = {"text": "x" * text} if text else None
            made = ReadableSpan(title, context, parent, Resource({}), attributes)
            spans.append(encoder.encode(made))
    return spans


def failing(times: int, answer: HttpResponse | TransportError) -> Judge:
    """Answers so a few times, then accepts."""
    left = [answer] * times
    return lambda _: left.pop() if left else HttpResponse(200)


def refusing(status: int, *marks: str) -> Judge:
    """Refuses what holds a marked span."""
    return lambda names: HttpResponse(status) if set(marks) & set(names) else HttpResponse(200)


def test_send_delivers_at_once() -> None:
    story, spans = Story(), encoded("a", "b")
    story.send(spans)
    assert story.lands_once(spans)
    assert (story.settled, story.postponed, story.server.asked) == (1, [], 0)
    assert (story.report.stats().delivered, story.sender.failure_count) == (2, 0)


AWAY = [
    # answer, and when it is sent again
    (HttpResponse(503), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(429), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(408), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(503, {"retry-after": "7"}), [0, 7, 14, 21]),
    (TransportError("refused"), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(302, {"location": "/login"}), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(200, {"content-type": "text/html"}, b"<html>"), [0, 0.5, 1.5, 3.5]),
    (HttpResponse(404), [0, 2, 6, 14]),
    (HttpResponse(403), [0, 2, 6, 14]),
    (HttpResponse(401), [0, 2, 6, 14]),
]


@pytest.mark.parametrize(("answer", "times"), AWAY)
def test_retryable_request_is_retried_with_backoff(
    answer: HttpResponse | TransportError, times: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    story, spans = Story(), encoded("a")
    # An HTML page with 200 is not stored: the fake goes by the status.
    story.server.judge = failing(3, answer)
    story.send(spans)
    assert story.server.times == times
    assert (story.settled, story.refused, story.report.stats().retries) == (1, 0, 3)
    assert len(story.postponed) == story.sender.failure_count == 3
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Export failing, spans are queued in memory",
        "Export recovered, after " + f"{times[3]:.0f} s of trouble [MLO-804]",
    ]


def test_backoff_delay_is_bounded() -> None:
    story = Story()
    story.server.judge = lambda _: HttpResponse(503)
    story.send(encoded("a"), until=200)
    gaps = [later - earlier for earlier, later in zip(story.server.times, story.server.times[1:], strict=False)]
    assert gaps == [0.5, 1, 2, 4, 8, 16] + [30] * (len(gaps) - 6)
    assert len(story.left) == 1
    assert story.settled == story.refused == 0


@pytest.mark.parametrize(
    ("answer", "times"),
    [
        (HttpResponse(503), [0, 0.5, 1.5, 2.5, 4, 8]),
        (HttpResponse(503, {"retry-after": "7"}), [0, 7, 14, 15, 21.5, 28.5]),
        (HttpResponse(404), [0, 2, 6, 7, 14.5, 30.5]),
    ],
)
def test_flush_during_attempt_shortens_next_delay(answer: HttpResponse, times: list[float]) -> None:
    """It is the third; after the one for who hurries the wait goes on as it was."""
    story, spans = Story(), encoded("a")
    accepts = failing(5, answer)

    def judge(names: list[str]) -> HttpResponse | TransportError:
        if len(story.server.names) == 3:
            story.server.clock += 0.5  # the request takes a while
            story.sender.backoff.hurry()
        return accepts(names)

    story.server.judge = judge
    story.send(spans)
    assert story.server.times == times
    assert story.lands_once(spans)


# Content


@pytest.mark.parametrize("status", [400, 422, 415])
def test_bad_span_is_isolated_confirmed_and_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encoded("a", "b", "culprit", "d", children=2)
    story.server.judge = refusing(status, "culprit/1")
    story.send(spans)
    assert sum(story.server.stored.values()) == len(spans) - 1
    assert (story.settled, story.refused, story.report.stats().delivered) == (1, 1, len(spans) - 1)
    assert caplog.text.count("Dropped span 'culprit/1' of trace tr-00000000000000000000000000000003: ") == 1
    assert f"{status}" in caplog.text


@pytest.mark.parametrize("marks", [(3,), (0, 199), (0, 100, 199), (66, 67, 133), (1, 2, 3), (50, 125, 126)])
def test_bisection_delivers_197_of_200_traces_in_at_most_40_requests(marks: tuple[int, ...]) -> None:
    story, spans = Story(), encoded(*map(str, range(200)), children=2)
    story.server.judge = refusing(400, *map(str, marks))
    story.send(spans)
    assert sum(story.server.stored.values()) == len(spans) - len(marks)
    assert story.refused == len(marks)
    assert len(story.server.names) <= 40


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 39), max_size=40), st.integers(0, 2), st.sampled_from([400, 422]))
def test_bisection_delivers_all_accepted_spans_once(marked: set[int], children: int, status: int) -> None:
    story, spans = Story(), encoded("accepted", *map(str, range(40)), children=children)
    story.server.judge = refusing(status, *map(str, marked))
    story.send(spans)
    assert set(story.server.stored.values()) <= {1}
    assert (story.refused, story.settled) == (len(marked), 1)
    assert story.report.stats().delivered == len(spans) - len(marked)


def test_transient_rejection_drops_nothing() -> None:
    # UniqueViolation when two batches of one trace arrive at once, before 3.16.
    for times in (1, 2):
        story, spans = Story(), encoded("a", "b", "c", children=1)
        story.server.judge = failing(times, HttpResponse(400))
        story.send(spans)
        assert story.lands_once(spans)
        assert story.refused == 0


def test_single_span_is_dropped_after_second_rejection() -> None:
    story, spans = Story(), encoded("a")
    story.server.judge = failing(1, HttpResponse(422))
    story.send(spans)
    assert story.lands_once(spans)
    assert story.server.times == [0, 1]


# What others have left on disk

LEFT = "left by an earlier run"
AT_ONE = Destination(experiment_id="1")
TOO_OLD = b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'
FATES: list[tuple[Callable[[], Judge], str]] = [
    (lambda: refusing(422, "a"), "Dropped span 'a' of trace tr-00000000000000000000000000000001"),
    (lambda: lambda _: HttpResponse(200, JSON, TOO_OLD), "Spans rejected"),
    (lambda: failing(1, HttpResponse(503)), "Export failing, spans are queued in memory"),
]


@pytest.mark.parametrize(("judge", "expected"), FATES, ids=["refused", "rejected", "waiting"])
@pytest.mark.parametrize("left", [LEFT, ""])
def test_messages_name_origin_of_leftover_spans(
    judge: Callable[[], Judge], expected: str, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()
    story.server.judge = judge()
    story.send(encoded("a"), left=left)
    assert caplog.messages[0].partition(": ")[0] == (f"{expected} ({left})" if left else expected)


def test_message_names_origin_of_leftover_suspect(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.server.judge = refusing(500, "c")
    story.send(encoded("a", "b", "c", "d"), until=600, left=LEFT)
    lines = [line for line in caplog.messages if line.startswith("Export of span 'c'")]
    assert [re.sub("tr-[0-9a-f]+", "tr", line).split(";")[0] for line in lines] == [
        f"Export of span 'c' of trace tr ({LEFT}) failing, it is queued in memory and retried"
    ]


def test_outage_message_omits_origin_once_own_spans_are_queued(caplog: pytest.LogCaptureFixture) -> None:
    """One outage is one problem: its repetitions are not told twice, once for each of whom the spans are."""
    story, theirs, ours = Story(), *(ExportRequest(AT_ONE, encoded(name), RequestOrigin(1)) for name in ("a", "b"))
    theirs.origin.label = LEFT

    def told(*shipments: ExportRequest, answer: HttpResponse) -> list[str]:
        caplog.clear()
        story.server.judge = lambda _: answer
        for request in shipments:
            story.server.clock += 61
            story.sender.send(request, 5.0)
        return [line.partition(": ")[0].partition(", after")[0] for line in caplog.messages]

    down = HttpResponse(503)
    assert told(theirs, theirs, ours, theirs, ours, theirs, answer=down) == [
        *[f"Export failing, spans are queued in memory ({LEFT})"] * 2,
        *["Export failing, spans are queued in memory"] * 4,
    ]
    assert told(ours, answer=HttpResponse(200)) == ["Export recovered"]
    story.server.clock += 61
    assert told(theirs, answer=down) == [f"Export failing, spans are queued in memory ({LEFT})"]


# 500: a server in trouble, or a span that it trips over


def test_persistent_server_errors_drop_nothing() -> None:
    story, spans = Story(), encoded("a", "b", children=1)
    story.server.judge = failing(30, HttpResponse(500))
    story.send(spans)
    assert story.lands_once(spans)
    assert story.refused == 0


def test_suspect_is_kept_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encoded("a", "b", "c", "d")
    story.server.judge = refusing(500, "c")
    story.send(spans, until=600)
    assert sum(story.server.stored.values()) == 3
    assert (story.refused, story.settled, len(story.left)) == (0, 0, 1)
    assert story.suspects == [(1, len(spans[2].body))]
    assert (
        caplog.text.count("Export of span 'c' of trace tr-00000000000000000000000000000003 failing, it is queued") == 1
    )
    assert "Dropped" not in caplog.text
    assert "dropped" not in caplog.text
    assert len(story.server.names) < 40  # in ten minutes
    story.server.judge = lambda _: HttpResponse(200)
    story.send(encoded("e", base=10))
    assert set(story.server.stored.values()) == {1}
    assert story.settled == 2
    assert "Export recovered: span 'c' of trace tr-00000000000000000000000000000003 was accepted" in caplog.text


def test_suspect_is_dropped_when_many_others_pass(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.server.judge = refusing(500, "c")
    story.send(encoded("a", "b", "c", "d"), until=10)
    for second in range(11, 400):
        story.send(encoded("other", base=second), until=second)
    assert (story.refused, story.settled, story.left) == (1, 390, [])
    assert caplog.text.count("Dropped span 'c' of trace tr-00000000000000000000000000000003: ") == 1
    assert len(story.server.names) < 389 + 40


def test_reported_suspect_is_dropped_by_name_at_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.server.judge = refusing(500, "c")
    story.send(encoded("a", "b", "c", "d"), until=60)
    sent = len(story.server.names)
    story.sender.is_closing = True
    story.send(encoded("e", base=10))
    assert (story.refused, story.settled, story.left) == (1, 2, [])
    assert len(story.server.names) == sent + 1
    assert "Dropped span 'c' of trace tr-00000000000000000000000000000003: " in caplog.text


def test_suspect_is_kept_while_nothing_else_passes(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.server.judge = refusing(500, "c")
    story.send(encoded("c"), until=300)
    assert (story.refused, len(story.left), story.suspects) == (0, 1, [])
    assert (
        caplog.text.count("Export failing, spans are queued in memory") == 1 + 300 // 61
    )  # the first, and one a minute


@pytest.mark.parametrize("marks", [(3,), (0, 199), (0, 100, 199), (66, 67, 133), (1, 2, 3), (50, 125, 126)])
@pytest.mark.parametrize("turn", [0.0, 0.9])
def test_three_suspects_of_200_traces_are_isolated_in_at_most_40_requests(
    marks: tuple[int, ...], turn: float, caplog: pytest.LogCaptureFixture
) -> None:
    story, spans = Story(jitter=turn), encoded(*map(str, range(200)), children=2)
    story.server.judge = refusing(500, *(f"{mark}/1" for mark in marks))
    story.send(spans, until=30)
    assert set(story.server.stored.values()) == {1}
    assert sum(story.server.stored.values()) == len(spans) - len(marks)
    assert [count for count, _ in story.suspects] == [len(marks)]
    assert len(story.server.names) <= 40
    for mark in marks:
        assert caplog.text.count(f"span '{mark}/1' of trace") == 1
    assert story.refused == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.7, 0.9]), st.integers(1, 12))
def test_random_server_errors_drop_nothing(seed: int, part: float, traces: int) -> None:
    story, chance = Story(), random.Random(seed)
    story.server.judge = lambda _: HttpResponse(500 if chance.random() < part else 200)
    batches = [
        encoded(*(f"{batch}.{trace}" for trace in range(traces)), children=1, base=1000 * batch) for batch in range(20)
    ]
    for batch in batches:
        story.send(batch, until=story.server.clock + 2)
    story.send(encoded("last", base=10**6))
    assert story.refused == 0
    assert story.left == []
    assert set(story.server.stored.values()) == {1}


# Size


def test_too_large_request_is_split_and_later_requests_are_smaller() -> None:
    story, spans = Story(), encoded(*"abcdefgh", text=40_000)
    story.server.judge = lambda names: HttpResponse(413) if len(names) > 2 else HttpResponse(200)
    story.send(spans)
    assert story.lands_once(spans)
    assert story.refused == 0
    assert story.sender.max_request_bytes is not None
    assert 80_000 < story.sender.max_request_bytes < 90_000


def test_too_large_span_is_truncated_and_marked() -> None:
    story, spans = Story(), encoded("a", text=500_000)
    story.server.judge = lambda _: HttpResponse(413) if story.server.sizes[-1] > 100_000 else HttpResponse(200)
    story.send(spans)
    assert story.lands_once(spans), story.server.sizes
    assert story.refused == 0
    assert 50_000 < story.server.sizes[-1] <= 100_000


def test_too_large_span_that_cannot_be_truncated_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.server.judge = lambda _: HttpResponse(413)
    story.send(encoded("a", text=500_000))
    assert (story.refused, story.settled) == (1, 1)
    assert "span 'a'" in caplog.text


# Exactly once to MLflow's eyes

AMBIGUOUS = [HttpResponse(504), HttpResponse(502), HttpResponse(500), TransportError("reset", may_have_arrived=True)]


@pytest.mark.parametrize("answer", AMBIGUOUS)
@pytest.mark.parametrize(("version", "asks"), [("3.10.1", True), ("3.13.0", True), ("3.16.1", True), ("3.17.0", False)])
def test_retry_looks_up_stored_spans_on_older_servers(
    answer: HttpResponse | TransportError, version: str, asks: bool
) -> None:
    story, spans = Story(version), encoded("a", "b", children=1)

    def judge(_: list[str]) -> HttpResponse | TransportError:
        story.server.stores_anyway = len(story.server.names) == 1
        return answer if len(story.server.names) == 1 else HttpResponse(200)

    story.server.judge = judge
    story.send(spans)
    assert bool(story.server.asked) is asks
    assert set(story.server.stored.values()) == {1 if asks else 2}
    assert (story.settled, story.report.stats().delivered, story.refused) == (1, 4, 0)


def test_retry_sends_only_missing_spans() -> None:
    story, spans = Story("3.10.1"), encoded("a", "b", "c")
    story.server.judge = failing(1, HttpResponse(504))
    story.server.stored[spans[1].trace_id, spans[1].span_id] = 1
    story.send(spans)
    assert story.server.names == [["a", "b", "c"], ["a", "c"]]
    assert story.lands_once(spans)
    assert story.report.stats().delivered == 3


def test_lookup_repeats_until_stored_spans_stay_the_same() -> None:
    story, spans = Story("3.10.1"), encoded("a", "b", "c")
    story.server.judge = failing(1, HttpResponse(504))
    arriving = list(spans)
    real = story.server._read_back

    def writing(trace_ids: list[str], longest: int) -> HttpResponse:
        if arriving:
            span = arriving.pop()
            story.server.stored[span.trace_id, span.span_id] += 1
        return real(trace_ids, longest)

    story.server._read_back = writing  # type: ignore[method-assign]
    story.send(spans)
    assert story.server.names == [["a", "b", "c"]]
    assert story.lands_once(spans)
    assert story.server.asked == 3  # nothing is missing any more


def test_lookup_after_504_waits_for_database_lock() -> None:
    story, spans = Story("3.10.1"), encoded("a", "b")
    story.server.judge = failing(1, HttpResponse(504))
    real = story.server._read_back

    def slow(trace_ids: list[str], longest: int) -> HttpResponse:
        if story.server.clock > 19 and not story.server.stored:
            story.server.stored.update((span.trace_id, span.span_id) for span in spans)
        return real(trace_ids, longest)

    story.server._read_back = slow  # type: ignore[method-assign]
    story.send(spans)
    assert story.server.names == [["a", "b"]]
    assert story.lands_once(spans)


@pytest.mark.parametrize("status", [403, 404])
def test_retry_without_lookup_logs_once_and_sends_again(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    story, spans = Story("3.6.0"), encoded("a")
    story.server.may_ask = HttpResponse(status)
    story.server.judge = failing(2, HttpResponse(504))
    story.send(spans)
    assert story.lands_once(spans)
    assert caplog.text.count("sent again without checking") == 1


def test_retry_waits_until_lookup_succeeds() -> None:
    story, spans = Story("3.10.1"), encoded("a")
    story.server.judge = failing(1, HttpResponse(504))
    story.server.may_ask = HttpResponse(503)
    story.send(spans, until=60)
    assert len(story.server.names) == 1
    story.server.may_ask = None
    story.send(spans, until=61)
    assert story.refused == 0


PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<!doctype html><title>Sign in</title>")


def test_lookup_does_not_accept_login_page(caplog: pytest.LogCaptureFixture) -> None:
    """The spans have arrived, and would be sent a second time if the page were taken for "nothing is stored"."""
    story, spans = Story("3.10.1"), encoded("a", "b")
    story.server.judge, story.server.stores_anyway, story.server.may_ask = lambda _: HttpResponse(504), True, PAGE
    story.send(spans, until=120)
    assert len(story.server.names) == 1
    assert story.server.asked > 1
    assert "queued in memory: 200 with an unexpected body (a login page?) instead of stored traces" in caplog.text
    story.server.may_ask = None
    story.send([], until=180)
    assert len(story.server.names) == 1
    assert story.lands_once(spans)
    assert (story.settled, story.report.stats().delivered) == (1, 2)


def test_lookup_at_guessed_server_does_not_delay_spans(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story("a page", certain=False), encoded("a")
    story.server.may_ask = PAGE
    story.server.judge = failing(2, HttpResponse(504))
    story.send(spans)
    assert story.lands_once(spans)
    assert caplog.text.count("sent again without checking") == 1


def test_rejected_request_may_be_partly_stored_before_3_12() -> None:
    story, spans = Story("3.10.1"), encoded("a", "b", "culprit", "d")

    def judge(names: list[str]) -> HttpResponse:
        story.server.stores_anyway = False
        if "culprit" not in names:
            return HttpResponse(200)
        for span in spans[:2]:
            if names == ["a", "b", "culprit", "d"]:
                story.server.stored[span.trace_id, span.span_id] += 1
        return HttpResponse(400)

    story.server.judge = judge
    story.send(spans)
    assert set(story.server.stored.values()) == {1}
    assert sum(story.server.stored.values()) == 3
    assert (story.refused, story.report.stats().delivered) == (1, 3)


def test_failed_database_may_have_partly_stored_request_before_3_12() -> None:
    story, spans = Story("3.10.1"), encoded("a", "b", "c", "d")

    def judge(_: list[str]) -> HttpResponse:
        if len(story.server.names) > 1:
            return HttpResponse(200)
        for span in spans[:2]:
            story.server.stored[span.trace_id, span.span_id] += 1
        said = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "server closed the connection unexpectedly"}
        return HttpResponse(503, JSON, json.dumps(said).encode())

    story.server.judge = judge
    story.send(spans)
    assert story.server.names == [["a", "b", "c", "d"], ["c", "d"]]
    assert story.lands_once(spans)


# Authorization, destination, the end


def test_new_credential_is_used_at_once() -> None:
    story, spans = Story(), encoded("a")
    story.server.judge = failing(1, HttpResponse(401))
    story.server.new_credential = True
    story.send(spans)
    assert story.server.times == [0, 0]


def test_rejected_token_is_not_sent_again_until_file_changes() -> None:
    story, spans = Story(), encoded("a")
    story.server.judge = failing(1, HttpResponse(401))
    story.server.credentials.can_watch = True  # type: ignore[misc]
    looked: list[float] = []

    def rotated() -> bool:
        looked.append(story.server.clock)
        return story.server.clock >= 1.2

    story.server.has_new_credential = rotated  # type: ignore[method-assign]
    story.send(spans)
    assert story.server.times == [0, 1.25]
    assert len(looked) >= 5


def test_rejected_destination_is_looked_up_again() -> None:
    story = Story()
    forgotten: list[Destination] = []
    story.experiments.invalidate = forgotten.append  # type: ignore[method-assign,assignment]
    story.server.judge = failing(2, HttpResponse(404))
    story.send(encoded("a"))
    assert len(forgotten) == 2


def test_partial_success_counts_rejected_spans(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    body = b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'
    story.server.judge = lambda _: HttpResponse(200, JSON, body)
    story.send(encoded("a", "b"))
    assert (story.report.stats().delivered, story.refused, story.settled) == (1, 1, 1)
    assert "too old" in caplog.text


def test_drop_on_shutdown_counts_deferred_spans() -> None:
    story, spans = Story(), encoded(*map(str, range(16)))
    story.server.judge = refusing(400, "0")
    origin = RequestOrigin(len(spans))
    queue = [ExportRequest(Destination(experiment_id="1"), spans, origin)]
    for _ in range(3):
        queue = [*story.sender.send(queue.pop(0), 5.0).remaining, *queue]
    for each in queue:
        story.sender.drop_on_shutdown(each)
    assert (story.refused, origin.remaining_count) == (16, 0)


def test_closing_sender_does_not_wait_for_unavailable_server() -> None:
    story = Story()
    story.server.judge = lambda _: HttpResponse(503)
    story.send(encoded("a"), until=10)
    story.sender.is_closing = True
    for each in story.left:
        story.server.clock += 100
        assert not story.sender.send(each, 1).remaining
    assert (story.settled, story.refused) == (1, 1)


def test_message_of_accepting_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    story = Story()
    story.server.judge = lambda _: HttpResponse(200, JSON, b'{"partialSuccess":{"errorMessage":"be brief"}}')
    story.send(encoded("a"))
    story.send(encoded("b"))
    assert caplog.messages == ["Server message: be brief [MLO-509]"]
