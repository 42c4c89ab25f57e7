"""What is done about an outcome, told step by step with a clock that only waits move."""

import base64
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import cast
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common import problem_log as problem_log_module
from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.hints import HINTS, LEFTOVERS_FIX, add_fix
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.credentials import CredentialSource
from mlflow_otlp_exporter._internal.delivery import retry_sender
from mlflow_otlp_exporter._internal.delivery.export_request import ExportFuture, ExportRequest
from mlflow_otlp_exporter._internal.delivery.otlp_client import OTLPClient
from mlflow_otlp_exporter._internal.delivery.retry_sender import RetrySender
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.client import HttpClient
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError

JSON = {"content-type": "application/json"}
Pair = tuple[int, int]
Judge = Callable[[list[str]], HttpResponse | TransportError]


class FakeMLflow:
    """Stores spans like a version of MLflow; `judge` chooses the response."""

    def __init__(self, version: str = "3.17.2") -> None:
        self.version = version
        self.clock = 0.0
        self.judge: Judge = lambda _: HttpResponse(200)
        self.stores_anyway = False
        self.stored: Counter[Pair] = Counter()
        self.names: list[list[str]] = []
        self.times: list[float] = []
        self.sizes: list[int] = []
        self.request = 0
        self.lookup_response: HttpResponse | None = None
        self.credentials: CredentialSource = FakeCredentials()
        self.new_credential = False

    def has_new_credential(self) -> bool:
        has_changed, self.new_credential = self.new_credential, False
        return has_changed

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        assert "authorization" not in request.headers
        if request.path == "/version":
            return HttpResponse(200, {"content-type": "text/html"}, self.version.encode())
        if request.path.startswith("/api/3.0/mlflow/traces/batchGet"):
            return self._read_back(parse_qs(urlsplit(request.path).query)["trace_ids"], request.max_response_bytes)
        assert (request.method, request.path) == ("POST", "")
        spans = [
            span
            for resource in ExportTraceServiceRequest.FromString(bytes(request.body)).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.names.append([span.name for span in spans])
        self.times.append(self.clock)
        self.sizes.append(len(request.body))
        answer = self.judge([span.name for span in spans])
        accepted = isinstance(answer, HttpResponse) and answer.status == 200
        if accepted or self.stores_anyway:
            self.stored.update(
                (int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")) for span in spans
            )
        return answer

    def _read_back(self, trace_ids: list[str], longest: int) -> HttpResponse:
        self.request += 1
        assert longest > 1_000_000
        if self.lookup_response is not None:
            return self.lookup_response
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

    def header_value(self) -> str | None:
        return None

    def __str__(self) -> str:
        return "none"


class Fixture:
    """A retry sender and a fake MLflow, driven like the work queue drives them."""

    def __init__(self, version: str = "3.17.2", jitter: float = 0.5, *, certain: bool = True) -> None:
        self.server = FakeMLflow(version)
        self.problem_log = ProblemLog(lambda: self.server.clock)
        self.experiments = ExperimentResolver(None, certain=False, create=False, problem_log=self.problem_log)
        self.sender = RetrySender(
            cast("HttpClient", self.server),
            OTLPClient(self.server, self.experiments, compression="none", problem_log=self.problem_log),
            ServerInfo(self.server, self.problem_log, certain=certain),
            self.problem_log,
            explain=lambda outcome: outcome.message,
            clock=lambda: self.server.clock,
            jitter=lambda: jitter,
        )
        self.settled_count = 0
        self.delay_messages: list[str] = []
        self.pending: list[ExportRequest] = []

    def send(self, spans: list[EncodedSpan], *, until: float = 1e9, label: str = "") -> None:
        """Send the spans and pending requests until all are settled or the time is over."""

        def count_settled(_: Future[int]) -> None:
            self.settled_count += 1

        future = ExportFuture(len(spans))
        future.add_done_callback(count_settled)
        future.on_postponed = lambda outcome: self.delay_messages.append(outcome.message)
        future.label = label
        queue = [*self.pending, ExportRequest(Destination(experiment_id="1"), spans, future)]
        while queue and self.server.clock < until:
            now = self.server.clock
            ready = next((request for request in queue if request.not_before <= now), None)
            if ready is None:
                self.server.clock = min(until, *(request.not_before for request in queue))
                continue
            queue.remove(ready)
            result = self.sender.send(ready, 5.0)
            queue = [*queue, *result.remaining] if result.requeue_last else [*result.remaining, *queue]
            self.server.clock += result.destination_delay
        self.pending = queue

    @property
    def dropped_count(self) -> int:
        return self.problem_log.stats.snapshot().dropped

    def lands_once(self, spans: list[EncodedSpan]) -> bool:
        return self.server.stored == Counter((span.trace_id, span.span_id) for span in spans)


def encode_spans(*names: str, children: int = 0, text: int = 0, base: int = 0) -> list[EncodedSpan]:
    """Traces of a root and children, numbered from `base + 1`; `text` characters on each span."""
    encoder, spans = SpanEncoder(), []
    for number, name in enumerate(names, base + 1):
        for child in range(children + 1):
            context = SpanContext(number, child + 1, False)
            parent = SpanContext(number, 1, False) if child else None
            title = f"{name}/{child}" if child else name
            attributes = {"text": "x" * text} if text else None
            span = ReadableSpan(title, context, parent, Resource({}), attributes)
            spans.append(encoder.encode(span))
    return spans


def fail_times(times: int, answer: HttpResponse | TransportError) -> Judge:
    """Answer with this a few times, then accept."""
    answers = [answer] * times
    return lambda _: answers.pop() if answers else HttpResponse(200)


def reject_spans_named(status: int, *bad_numbers: str) -> Judge:
    """Reject requests that hold a span of these names."""
    return lambda names: HttpResponse(status) if set(bad_numbers) & set(names) else HttpResponse(200)


def test_send_delivers_at_once() -> None:
    fixture, spans = Fixture(), encode_spans("a", "b")
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert (fixture.settled_count, fixture.delay_messages, fixture.server.request) == (1, [], 0)
    assert (fixture.problem_log.stats.snapshot().delivered, fixture.sender.failure_count) == (2, 0)


AWAY = [
    # response, times of the attempts
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
    fixture, spans = Fixture(), encode_spans("a")
    fixture.server.judge = fail_times(3, answer)
    fixture.send(spans)
    assert fixture.server.times == times
    assert (fixture.settled_count, fixture.dropped_count, fixture.problem_log.stats.snapshot().retries) == (1, 0, 3)
    assert len(fixture.delay_messages) == fixture.sender.failure_count == 3
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Export failing, spans are queued in memory for experiment 1",
        "Export recovered for experiment 1, after " + f"{times[3]:.0f} s of trouble [MLO-804]",
    ]


def test_retry_sender_failures_that_users_correct_are_retried_slowly() -> None:
    # 404, 403 and 401 above; a request that is too large is the third kind.
    assert {FailureKind.DESTINATION, FailureKind.CREDENTIALS, FailureKind.SIZE} == retry_sender._USER_FAILURES


def test_backoff_delay_is_bounded() -> None:
    fixture = Fixture()
    fixture.server.judge = lambda _: HttpResponse(503)
    fixture.send(encode_spans("a"), until=200)
    delays = [later - earlier for earlier, later in zip(fixture.server.times, fixture.server.times[1:], strict=False)]
    assert delays == [0.5, 1, 2, 4, 8, 16] + [30] * (len(delays) - 6)
    assert len(fixture.pending) == 1
    assert fixture.settled_count == fixture.dropped_count == 0


def test_unexpected_exception_is_retried_and_does_not_stop_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixture, export = Fixture(), OTLPClient.export

    def export_or_raise(client: OTLPClient, destination: Destination, body: bytes, seconds: float) -> ExportOutcome:
        if b"bad" in body:
            raise RecursionError
        return export(client, destination, body, seconds)

    monkeypatch.setattr(OTLPClient, "export", export_or_raise)
    monkeypatch.setattr(problem_log_module, "_exceptions_logged_at", {})
    fixture.pending = [ExportRequest(AT_ONE, encode_spans("bad"), ExportFuture(1))]
    others = encode_spans("a", base=7)
    fixture.send(others, until=0.1)
    assert fixture.lands_once(others)
    assert len(fixture.pending) == 1
    fixture.send(encode_spans("b", base=8))
    assert (fixture.pending, fixture.dropped_count) == ([], 1)
    assert 5 < fixture.server.clock < 60
    lines = [line.partition(":")[0] for line in caplog.messages]
    assert lines == ["Internal error", f"Dropped span 'bad' of trace tr-{1:032x}"]


# Content


@pytest.mark.parametrize("status", [400, 422, 415])
def test_bad_span_is_isolated_confirmed_and_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    fixture, spans = Fixture(), encode_spans("a", "b", "culprit", "d", children=2)
    fixture.server.judge = reject_spans_named(status, "culprit/1")
    fixture.send(spans)
    assert sum(fixture.server.stored.values()) == len(spans) - 1
    assert (fixture.settled_count, fixture.dropped_count, fixture.problem_log.stats.snapshot().delivered) == (
        1,
        1,
        len(spans) - 1,
    )
    assert caplog.text.count("Dropped span 'culprit/1' of trace tr-00000000000000000000000000000003: ") == 1
    assert f"{status}" in caplog.text


@pytest.mark.parametrize("bad_numbers", [(3,), (0, 199), (0, 100, 199), (66, 67, 133), (1, 2, 3), (50, 125, 126)])
def test_bisection_delivers_197_of_200_traces_in_at_most_40_requests(bad_numbers: tuple[int, ...]) -> None:
    fixture, spans = Fixture(), encode_spans(*map(str, range(200)), children=2)
    fixture.server.judge = reject_spans_named(400, *map(str, bad_numbers))
    fixture.send(spans)
    assert sum(fixture.server.stored.values()) == len(spans) - len(bad_numbers)
    assert fixture.dropped_count == len(bad_numbers)
    assert len(fixture.server.names) <= 40


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 39), max_size=40), st.integers(0, 2), st.sampled_from([400, 422]))
def test_bisection_delivers_all_accepted_spans_once(bad_names: set[int], children: int, status: int) -> None:
    fixture, spans = Fixture(), encode_spans("accepted", *map(str, range(40)), children=children)
    fixture.server.judge = reject_spans_named(status, *map(str, bad_names))
    fixture.send(spans)
    assert set(fixture.server.stored.values()) <= {1}
    assert (fixture.dropped_count, fixture.settled_count) == (len(bad_names), 1)
    assert fixture.problem_log.stats.snapshot().delivered == len(spans) - len(bad_names)


def test_transient_rejection_drops_nothing() -> None:
    # UniqueViolation when two batches of one trace arrive at once, before 3.16.
    for times in (1, 2):
        fixture, spans = Fixture(), encode_spans("a", "b", "c", children=1)
        fixture.server.judge = fail_times(times, HttpResponse(400))
        fixture.send(spans)
        assert fixture.lands_once(spans)
        assert fixture.dropped_count == 0


def test_single_span_is_dropped_after_second_rejection() -> None:
    fixture, spans = Fixture(), encode_spans("a")
    fixture.server.judge = fail_times(1, HttpResponse(422))
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert fixture.server.times == [0, 1]


# Leftover spans of other runs

LEFTOVER_LABEL = "left by an earlier run"
AT_ONE = Destination(experiment_id="1")
TOO_OLD = b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'
FATES: list[tuple[Callable[[], Judge], str]] = [
    (lambda: reject_spans_named(422, "a"), "Dropped span 'a' of trace tr-00000000000000000000000000000001"),
    (lambda: lambda _: HttpResponse(200, JSON, TOO_OLD), "Spans rejected"),
    (lambda: fail_times(1, HttpResponse(503)), "Export failing, spans are queued in memory for experiment 1"),
]


@pytest.mark.parametrize(("judge", "expected"), FATES, ids=["refused", "rejected", "waiting"])
@pytest.mark.parametrize("label", [LEFTOVER_LABEL, ""])
def test_messages_name_origin_of_leftover_spans(
    judge: Callable[[], Judge], expected: str, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    fixture = Fixture()
    fixture.server.judge = judge()
    fixture.send(encode_spans("a"), label=label)
    assert caplog.messages[0].partition(": ")[0] == (f"{expected} ({label})" if label else expected)


@pytest.mark.parametrize("label", [LEFTOVER_LABEL, ""])
def test_fix_for_leftover_spans_of_a_missing_workspace_names_purge(
    label: str, caplog: pytest.LogCaptureFixture
) -> None:
    fixture = Fixture()
    fixture.sender._explain = lambda outcome: add_fix(outcome.code, outcome.message)
    body = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Workspace 'gone' not found"}).encode()
    fixture.server.judge = fail_times(1, HttpResponse(404, JSON, body))
    fixture.send(encode_spans("a"), label=label)
    fix = LEFTOVERS_FIX if label else HINTS[MessageCode.WORKSPACE_NOT_FOUND].fix
    assert caplog.messages[0].endswith(f". {fix} [1 span] [MLO-407]")


def test_message_names_origin_of_leftover_span_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture()
    fixture.server.judge = reject_spans_named(500, "c")
    fixture.send(encode_spans("a", "b", "c", "d"), until=10, label=LEFTOVER_LABEL)
    send_other_spans(fixture, seconds=60)
    lines = [line for line in caplog.messages if line.startswith("Dropped")]
    assert [line.partition(": ")[0] for line in lines] == [f"Dropped {SPAN_C} ({LEFTOVER_LABEL})"]


def test_outage_message_omits_origin_once_own_spans_are_queued(caplog: pytest.LogCaptureFixture) -> None:
    """One outage is one problem: own spans and leftover spans do not repeat its message."""
    fixture, theirs, ours = (
        Fixture(),
        *(ExportRequest(AT_ONE, encode_spans(name), ExportFuture(1)) for name in ("a", "b")),
    )
    theirs.future.label = LEFTOVER_LABEL

    def send_and_read_log(*requests: ExportRequest, answer: HttpResponse) -> list[str]:
        caplog.clear()
        fixture.server.judge = lambda _: answer
        for request in requests:
            fixture.server.clock += 61
            fixture.sender.send(request, 5.0)
        return [line.partition(": ")[0].partition(", after")[0] for line in caplog.messages]

    down = HttpResponse(503)
    assert send_and_read_log(theirs, theirs, ours, theirs, ours, theirs, answer=down) == [
        *[f"Export failing, spans are queued in memory for experiment 1 ({LEFTOVER_LABEL})"] * 2,
        *["Export failing, spans are queued in memory for experiment 1"] * 4,
    ]
    assert send_and_read_log(ours, answer=HttpResponse(200)) == ["Export recovered for experiment 1"]
    fixture.server.clock += 61
    expected = f"Export failing, spans are queued in memory for experiment 1 ({LEFTOVER_LABEL})"
    assert send_and_read_log(theirs, answer=down) == [expected]


# 500: a server in trouble, or a span that it cannot process


def test_persistent_server_errors_drop_nothing() -> None:
    fixture, spans = Fixture(), encode_spans("a", "b", children=1)
    fixture.server.judge = fail_times(30, HttpResponse(500))
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert fixture.dropped_count == 0


SPAN_C = "span 'c' of trace tr-00000000000000000000000000000003"


def send_other_spans(fixture: Fixture, seconds: int) -> None:
    """Send a trace of its own each second."""
    for _ in range(seconds):
        until = fixture.server.clock + 1
        fixture.send(encode_spans("other", base=1000 + len(fixture.server.names)), until=until)
        fixture.server.clock = max(fixture.server.clock, until)


@pytest.mark.parametrize(
    ("names", "story", "expected"),
    [
        # story of attempts of the request (5: a 500) and of accepted other requests (a); what the last attempt causes
        ("ab", "5", "retry"),
        ("ab", "55555555", "retry"),
        ("ab", "a5", "retry"),
        ("ab", "a555", "retry"),
        ("ab", "5a5", "bisect"),
        ("ab", "55a5", "bisect"),
        ("a", "55555555", "retry"),
        ("a", "a5a5a5a5", "retry"),
        ("a", "5aaaa5555", "retry"),
        ("a", "5a5a5a5a", "retry"),
        ("a", "5a5a5a5a5", "drop"),
        ("a", "55a5a55a5a5", "drop"),
    ],
)
def test_server_error_decides_by_other_accepted_requests(names: str, story: str, expected: str) -> None:
    fixture = Fixture()
    requests = [ExportRequest(AT_ONE, encode_spans(*names), ExportFuture(len(names)))]
    for event in story:
        assert len(requests) == 1
        fixture.server.clock += 60
        if event == "a":
            fixture.server.judge = lambda _: HttpResponse(200)
            other = encode_spans("other", base=int(fixture.server.clock))
            assert not fixture.sender.send(ExportRequest(AT_ONE, other, ExportFuture(1)), 5.0).remaining
        else:
            fixture.server.judge = lambda _: HttpResponse(500)
            requests = list(fixture.sender.send(requests[0], 5.0).remaining)
    decision = "drop" if not requests else "bisect" if requests[0].other_half else "retry"
    assert decision == expected
    assert fixture.dropped_count == int(expected == "drop")


def test_accepted_requests_of_other_destinations_do_not_count() -> None:
    fixture, request = Fixture(), ExportRequest(AT_ONE, encode_spans("a", "b"), ExportFuture(2))
    fixture.server.judge = reject_spans_named(500, "a")
    for number in range(10):
        assert fixture.sender.send(request, 5.0).remaining == (request,)
        other = ExportRequest(Destination(experiment_id="2"), encode_spans("c", base=10 + number), ExportFuture(1))
        assert not fixture.sender.send(other, 5.0).remaining


def test_span_answered_500_five_times_is_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture()
    fixture.server.judge = reject_spans_named(500, "c")
    fixture.send(encode_spans("a", "b", "c", "d"), until=10)
    assert not fixture.server.stored
    send_other_spans(fixture, seconds=60)
    assert (fixture.dropped_count, fixture.settled_count, fixture.pending) == (1, 61, [])
    assert sum(fixture.server.stored.values()) == 60 + 3
    assert caplog.text.count(f"Dropped {SPAN_C}: ") == 1
    assert sum(names == ["c"] for names in fixture.server.names) == 5


def test_rejected_span_and_span_answered_500_of_one_request_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    fixture, spans = Fixture(), encode_spans(*"abcdefgh")

    def judge(names: list[str]) -> HttpResponse:
        return HttpResponse(500 if "c" in names else 400 if "f" in names else 200)

    fixture.server.judge = judge
    fixture.send(spans, until=10)
    send_other_spans(fixture, seconds=90)
    assert (fixture.dropped_count, fixture.pending) == (2, [])
    assert sum(fixture.server.stored.values()) == 90 + 6
    assert set(fixture.server.stored.values()) == {1}
    assert caplog.text.count("Dropped span 'c' of") == caplog.text.count("Dropped span 'f' of") == 1


def test_span_answered_500_is_sent_when_server_recovers() -> None:
    fixture = Fixture()
    fixture.server.judge = reject_spans_named(500, "c")
    fixture.send(encode_spans("a", "b", "c", "d"), until=10)
    while sum(names == ["c"] for names in fixture.server.names) < 4:
        send_other_spans(fixture, seconds=1)
    fixture.server.judge = lambda _: HttpResponse(200)
    send_other_spans(fixture, seconds=30)
    assert (fixture.dropped_count, fixture.pending) == (0, [])
    assert set(fixture.server.stored.values()) == {1}


def test_span_answered_500_is_dropped_at_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture()
    fixture.server.judge = reject_spans_named(500, "c")
    fixture.send(encode_spans("a", "b", "c", "d"), until=10)
    while sum(names == ["c"] for names in fixture.server.names) < 3:
        send_other_spans(fixture, seconds=1)
    fixture.sender.is_closing = True
    fixture.send(encode_spans("e", base=10))
    assert (fixture.dropped_count, fixture.pending) == (1, [])
    assert sum(names == ["c"] for names in fixture.server.names) == 4
    assert "Spans dropped: not delivered before shutdown" in caplog.text


def test_request_answered_500_is_neither_bisected_nor_dropped_while_nothing_else_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for names in ("c", "abcd"):
        caplog.clear()
        fixture = Fixture()
        fixture.server.judge = reject_spans_named(500, "c")
        fixture.send(encode_spans(*names), until=300)
        assert (fixture.dropped_count, len(fixture.pending)) == (0, 1)
        assert {tuple(sent) for sent in fixture.server.names} == {tuple(names)}
        count = caplog.text.count("Export failing, spans are queued in memory")
        assert count == 1 + 300 // 61  # the first, and one per minute


@pytest.mark.parametrize("bad_numbers", [(3,), (0, 199), (0, 100, 199), (66, 67, 133), (1, 2, 3), (50, 125, 126)])
@pytest.mark.parametrize("jitter", [0.0, 0.9])
def test_spans_answered_500_are_isolated_while_other_requests_pass(
    bad_numbers: tuple[int, ...], jitter: float, caplog: pytest.LogCaptureFixture
) -> None:
    fixture, spans = Fixture(jitter=jitter), encode_spans(*map(str, range(200)), children=2)
    fixture.server.judge = reject_spans_named(500, *(f"{number}/1" for number in bad_numbers))
    fixture.send(spans, until=10)
    send_other_spans(fixture, seconds=90)
    assert set(fixture.server.stored.values()) == {1}
    assert sum(fixture.server.stored.values()) == 90 + len(spans) - len(bad_numbers)
    assert (fixture.dropped_count, fixture.pending) == (len(bad_numbers), [])
    # Five for each bad span, five before another request is accepted, and the bisections.
    assert sum(names != ["other"] for names in fixture.server.names) <= 40 + 5 * len(bad_numbers) + 5
    for number in bad_numbers:
        assert caplog.text.count(f"Dropped span '{number}/1' of trace") == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.7, 0.9]), st.integers(1, 12))
def test_random_server_errors_drop_spans_only_after_five(seed: int, share: float, traces: int) -> None:
    fixture, chance = Fixture(), random.Random(seed)
    failures: Counter[str] = Counter()

    def judge(names: list[str]) -> HttpResponse:
        if chance.random() >= share:
            return HttpResponse(200)
        failures.update(names if len(names) == 1 else ())
        return HttpResponse(500)

    fixture.server.judge = judge
    batches = [
        encode_spans(*(f"{batch}.{trace}" for trace in range(traces)), children=1, base=1000 * batch)
        for batch in range(20)
    ]
    for batch in batches:
        fixture.send(batch, until=fixture.server.clock + 2)
    fixture.send(encode_spans("last", base=10**6))
    assert fixture.pending == []
    assert set(fixture.server.stored.values()) == {1}
    stored_count = sum(fixture.server.stored.values())
    assert fixture.dropped_count == sum(map(len, batches)) + 1 - stored_count
    assert fixture.dropped_count <= sum(count >= 5 for count in failures.values())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_random_outcomes_settle_every_span_once(seed: int, traces: int) -> None:
    """Rejections, 413, server errors and exceptions, also in the middle of a bisection that another of them began."""
    fixture, chance = Fixture(), random.Random(seed)
    statuses = [200, 200, 400, 413, 500]

    def judge(_: list[str]) -> HttpResponse:
        status = chance.choice([*statuses, 0])
        if not status:
            raise ArithmeticError
        return HttpResponse(status)

    fixture.server.judge = judge
    spans = encode_spans(*(str(trace) for trace in range(traces)), children=1)
    fixture.send(spans, until=1000)
    fixture.server.judge = lambda _: HttpResponse(200)
    fixture.send(encode_spans("last", base=10**6))
    assert fixture.pending == []
    assert fixture.settled_count == 2
    assert set(fixture.server.stored.values()) == {1}
    assert sum(fixture.server.stored.values()) + fixture.dropped_count == len(spans) + 1


# Size


def test_too_large_request_is_split_and_later_requests_are_smaller() -> None:
    fixture, spans = Fixture(), encode_spans(*"abcdefgh", text=40_000)
    fixture.server.judge = lambda names: HttpResponse(413) if len(names) > 2 else HttpResponse(200)
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert fixture.dropped_count == 0
    assert fixture.sender.max_request_bytes is not None
    assert 80_000 < fixture.sender.max_request_bytes < 90_000


def test_too_large_span_is_truncated_and_marked() -> None:
    fixture, spans = Fixture(), encode_spans("a", text=500_000)
    fixture.server.judge = lambda _: HttpResponse(413) if fixture.server.sizes[-1] > 100_000 else HttpResponse(200)
    fixture.send(spans)
    assert fixture.lands_once(spans), fixture.server.sizes
    assert fixture.dropped_count == 0
    assert 50_000 < fixture.server.sizes[-1] <= 100_000


def test_too_large_span_that_cannot_be_truncated_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture()
    fixture.server.judge = lambda _: HttpResponse(413)
    fixture.send(encode_spans("a", text=500_000))
    assert (fixture.dropped_count, fixture.settled_count) == (1, 1)
    assert "span 'a'" in caplog.text


# Exactly once to MLflow's eyes

MAY_HAVE_ARRIVED = [
    HttpResponse(504),
    HttpResponse(502),
    HttpResponse(500),
    TransportError("reset", may_have_arrived=True),
]


@pytest.mark.parametrize("answer", MAY_HAVE_ARRIVED)
@pytest.mark.parametrize(("version", "asks"), [("3.10.1", True), ("3.13.0", True), ("3.16.1", True), ("3.17.0", False)])
def test_retry_looks_up_stored_spans_on_older_servers(
    answer: HttpResponse | TransportError, version: str, asks: bool
) -> None:
    fixture, spans = Fixture(version), encode_spans("a", "b", children=1)

    def judge(_: list[str]) -> HttpResponse | TransportError:
        fixture.server.stores_anyway = len(fixture.server.names) == 1
        return answer if len(fixture.server.names) == 1 else HttpResponse(200)

    fixture.server.judge = judge
    fixture.send(spans)
    assert bool(fixture.server.request) is asks
    assert set(fixture.server.stored.values()) == {1 if asks else 2}
    assert (fixture.settled_count, fixture.problem_log.stats.snapshot().delivered, fixture.dropped_count) == (1, 4, 0)


def test_retry_sends_only_missing_spans() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b", "c")
    fixture.server.judge = fail_times(1, HttpResponse(504))
    fixture.server.stored[spans[1].trace_id, spans[1].span_id] = 1
    fixture.send(spans)
    assert fixture.server.names == [["a", "b", "c"], ["a", "c"]]
    assert fixture.lands_once(spans)
    assert fixture.problem_log.stats.snapshot().delivered == 3


def test_lookup_repeats_until_stored_spans_stay_the_same() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b", "c")
    fixture.server.judge = fail_times(1, HttpResponse(504))
    arriving = list(spans)
    real = fixture.server._read_back

    def write_one_span(trace_ids: list[str], longest: int) -> HttpResponse:
        if arriving:
            span = arriving.pop()
            fixture.server.stored[span.trace_id, span.span_id] += 1
        return real(trace_ids, longest)

    fixture.server._read_back = write_one_span  # type: ignore[method-assign]
    fixture.send(spans)
    assert fixture.server.names == [["a", "b", "c"]]
    assert fixture.lands_once(spans)
    assert fixture.server.request == 3  # all spans are stored


def test_lookup_after_504_waits_for_database_lock() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b")
    fixture.server.judge = fail_times(1, HttpResponse(504))
    real = fixture.server._read_back

    def write_late(trace_ids: list[str], longest: int) -> HttpResponse:
        if fixture.server.clock > 19 and not fixture.server.stored:
            fixture.server.stored.update((span.trace_id, span.span_id) for span in spans)
        return real(trace_ids, longest)

    fixture.server._read_back = write_late  # type: ignore[method-assign]
    fixture.send(spans)
    assert fixture.server.names == [["a", "b"]]
    assert fixture.lands_once(spans)


@pytest.mark.parametrize("status", [403, 404])
def test_retry_without_lookup_logs_once_and_sends_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    fixture, spans = Fixture("3.6.0"), encode_spans("a")
    fixture.server.lookup_response = HttpResponse(status)
    fixture.server.judge = fail_times(2, HttpResponse(504))
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert caplog.text.count("sent again without checking") == 1


def test_retry_waits_until_lookup_succeeds() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a")
    fixture.server.judge = fail_times(1, HttpResponse(504))
    fixture.server.lookup_response = HttpResponse(503)
    fixture.send(spans, until=60)
    assert len(fixture.server.names) == 1
    fixture.server.lookup_response = None
    fixture.send(spans, until=61)
    assert fixture.dropped_count == 0


PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<!doctype html><title>Sign in</title>")


def test_lookup_does_not_accept_login_page(caplog: pytest.LogCaptureFixture) -> None:
    """The spans are stored, and would be sent twice if the page counted as an empty result."""
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b")
    fixture.server.judge, fixture.server.stores_anyway, fixture.server.lookup_response = (
        lambda _: HttpResponse(504),
        True,
        PAGE,
    )
    fixture.send(spans, until=120)
    assert len(fixture.server.names) == 1
    assert fixture.server.request > 1
    assert (
        "queued in memory for experiment 1: 200 with an unexpected body (a login page?) instead of stored traces"
        in caplog.text
    )
    fixture.server.lookup_response = None
    fixture.send([], until=180)
    assert len(fixture.server.names) == 1
    assert fixture.lands_once(spans)
    assert (fixture.settled_count, fixture.problem_log.stats.snapshot().delivered) == (1, 2)


def test_lookup_at_guessed_server_does_not_delay_spans(caplog: pytest.LogCaptureFixture) -> None:
    fixture, spans = Fixture("a page", certain=False), encode_spans("a")
    fixture.server.lookup_response = PAGE
    fixture.server.judge = fail_times(2, HttpResponse(504))
    fixture.send(spans)
    assert fixture.lands_once(spans)
    assert caplog.text.count("sent again without checking") == 1


def test_rejected_request_may_be_partly_stored_before_3_12() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b", "culprit", "d")

    def judge(names: list[str]) -> HttpResponse:
        fixture.server.stores_anyway = False
        if "culprit" not in names:
            return HttpResponse(200)
        for span in spans[:2]:
            if names == ["a", "b", "culprit", "d"]:
                fixture.server.stored[span.trace_id, span.span_id] += 1
        return HttpResponse(400)

    fixture.server.judge = judge
    fixture.send(spans)
    assert set(fixture.server.stored.values()) == {1}
    assert sum(fixture.server.stored.values()) == 3
    assert (fixture.dropped_count, fixture.problem_log.stats.snapshot().delivered) == (1, 3)


def test_failed_database_may_have_partly_stored_request_before_3_12() -> None:
    fixture, spans = Fixture("3.10.1"), encode_spans("a", "b", "c", "d")

    def judge(_: list[str]) -> HttpResponse:
        if len(fixture.server.names) > 1:
            return HttpResponse(200)
        for span in spans[:2]:
            fixture.server.stored[span.trace_id, span.span_id] += 1
        body = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "server closed the connection unexpectedly"}
        return HttpResponse(503, JSON, json.dumps(body).encode())

    fixture.server.judge = judge
    fixture.send(spans)
    assert fixture.server.names == [["a", "b", "c", "d"], ["c", "d"]]
    assert fixture.lands_once(spans)


# Authorization, destination, shutdown


def test_new_credential_is_used_at_once() -> None:
    fixture, spans = Fixture(), encode_spans("a")
    fixture.server.judge = fail_times(1, HttpResponse(401))
    fixture.server.new_credential = True
    fixture.send(spans)
    assert fixture.server.times == [0, 0]


def test_rejected_token_is_not_sent_again_until_file_changes() -> None:
    fixture, spans = Fixture(), encode_spans("a")
    fixture.server.judge = fail_times(1, HttpResponse(401))
    fixture.server.credentials.can_watch = True  # type: ignore[misc]
    polled_at: list[float] = []

    def has_rotated() -> bool:
        polled_at.append(fixture.server.clock)
        return fixture.server.clock >= 1.2

    fixture.server.has_new_credential = has_rotated  # type: ignore[method-assign]
    fixture.send(spans)
    assert fixture.server.times == [0, 1.25]
    assert len(polled_at) >= 5


def test_rejected_destination_is_looked_up_again() -> None:
    fixture = Fixture()
    invalidated: list[Destination] = []
    fixture.experiments.invalidate = invalidated.append  # type: ignore[method-assign,assignment]
    fixture.server.judge = fail_times(2, HttpResponse(404))
    fixture.send(encode_spans("a"))
    assert len(invalidated) == 2


def test_partial_success_counts_rejected_spans(caplog: pytest.LogCaptureFixture) -> None:
    fixture = Fixture()
    body = b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'
    fixture.server.judge = lambda _: HttpResponse(200, JSON, body)
    fixture.send(encode_spans("a", "b"))
    assert (fixture.problem_log.stats.snapshot().delivered, fixture.dropped_count, fixture.settled_count) == (1, 1, 1)
    assert "too old" in caplog.text


def test_drop_on_shutdown_counts_deferred_spans() -> None:
    fixture, spans = Fixture(), encode_spans(*map(str, range(16)))
    fixture.server.judge = reject_spans_named(400, "0")
    future = ExportFuture(len(spans))
    queue = [ExportRequest(Destination(experiment_id="1"), spans, future)]
    for _ in range(3):
        queue = [*fixture.sender.send(queue.pop(0), 5.0).remaining, *queue]
    for request in queue:
        fixture.sender.spool_or_drop(request)
    assert (fixture.dropped_count, future.remaining_count) == (16, 0)


def test_closing_sender_does_not_wait_for_unavailable_server() -> None:
    fixture = Fixture()
    fixture.server.judge = lambda _: HttpResponse(503)
    fixture.send(encode_spans("a"), until=10)
    fixture.sender.is_closing = True
    for request in fixture.pending:
        fixture.server.clock += 100
        assert not fixture.sender.send(request, 1).remaining
    assert (fixture.settled_count, fixture.dropped_count) == (1, 1)


def test_message_of_accepting_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    fixture = Fixture()
    fixture.server.judge = lambda _: HttpResponse(200, JSON, b'{"partialSuccess":{"errorMessage":"be brief"}}')
    fixture.send(encode_spans("a"))
    fixture.send(encode_spans("b"))
    assert caplog.messages == ["Server message: be brief [MLO-509]"]
