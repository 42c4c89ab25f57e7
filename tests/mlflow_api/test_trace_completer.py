"""Traces whose root MLflow does not get: when their local root is sent again without its parent."""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.encoding.request_decoder import decode_request
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api import trace_completer
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_completer import CompletionTask, TraceCompleter
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse
from support.transport import json_response

DESTINATION = Destination("team-a", experiment_id="7")
WAIT = 60.0
START = 1_764_000_000_000  # milliseconds since 1970
USAGE: dict[str, Any] = {"llm.token_count.total": 3, "mlflow.chat.tokenUsage": '{"total_tokens": 3}'}


def encode(trace: int, name: str, *, parent: int | None = 99, start: int = START, **attributes: Any) -> EncodedSpan:
    """A span with a remote parent, or a root."""
    context = SpanContext(trace, hash(name) % 2**60 + 1, False)
    parent_context = SpanContext(trace, parent, is_remote=True) if parent is not None else None
    start_time, end_time = start * 1_000_000, (start + 1) * 1_000_000
    span = ReadableSpan(
        name, context, parent_context, Resource({}), attributes=attributes, start_time=start_time, end_time=end_time
    )
    return SpanEncoder().encode(span)


class Story:
    """TraceCompleter with a server and a clock that the test controls."""

    def __init__(self, *, wait: float = WAIT, version: str = "3.17.2") -> None:
        self.now, self.version = 0.0, version
        self.records: dict[int, Mapping[str, Any]] = {}  # by trace
        self.outcome = ExportOutcome(Disposition.SUCCESS)
        self.rest_status = 200
        self.sent: list[EncodedSpan] = []
        self.completed: list[EncodedSpan] = []
        self.requests: list[HttpRequest] = []
        self.problem_log = ProblemLog()
        self.completer = TraceCompleter(
            self,
            self.send_spans,
            ServerInfo(self, self.problem_log, lambda: self.now),
            self.problem_log,
            wait_seconds=wait,
            on_completed=lambda _destination, spans: self.completed.extend(spans),
            clock=lambda: self.now,
        )
        self.task: CompletionTask | None = None

    def send(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/version":
            return HttpResponse(200, body=self.version.encode())
        self.requests.append(request)
        assert request.headers["x-mlflow-workspace"] == "team-a"
        record = self.records.get(int(request.path.rpartition("tr-")[2], 16))
        if self.rest_status != 200 or record is None:
            return HttpResponse(self.rest_status if self.rest_status != 200 else 404)
        return json_response(200, {"trace": {"trace_info": record}})

    def send_spans(self, destination: Destination, body: bytes, _timeout_seconds: float) -> ExportOutcome:
        assert destination == DESTINATION
        if self.outcome.disposition is Disposition.SUCCESS:
            self.sent += decode_request(body)
        return self.outcome

    def deliver(self, *spans: EncodedSpan, state: str = "IN_PROGRESS", start: int = START) -> None:
        time = datetime.fromtimestamp(start / 1000, timezone.utc).isoformat(timespec="milliseconds")
        for span in spans:
            self.records[span.trace_id] = {"state": state, "request_time": time.replace("+00:00", "Z")}
        self.task = self.completer.add_delivered(DESTINATION, spans) or self.task

    def run(self, at: float) -> SendResult:
        assert self.task is not None
        self.now = at
        return self.task.run(1.0)

    @property
    def sent_names(self) -> list[str]:
        return [parse_span(span).name for span in self.sent]


def test_local_root_is_sent_without_parent_after_the_wait() -> None:
    story = Story()
    story.deliver(encode(1, "request", **USAGE))
    assert story.run(59.0).destination_delay == pytest.approx(1.0)
    assert (story.sent, story.requests) == ([], [])
    assert story.run(60.0) == SendResult()
    span = parse_span(story.sent[0])
    attributes = {item.key: item.value for item in span.attributes}
    assert (span.name, span.parent_span_id, story.sent[0].is_root) == ("request", b"", True)
    assert not story.sent[0].has_remote_parent
    assert attributes["mlflow_otlp.parent_span_id"].string_value == f"{99:016x}"
    assert attributes["llm.token_count.total"].int_value == 3
    assert [span.span_id for span in story.completed] == [story.sent[0].span_id]
    assert story.problem_log.stats.snapshot().metadata_updates == 1


def test_usage_is_not_counted_twice_before_3_17() -> None:
    story = Story(version="3.16.0")
    story.deliver(encode(1, "request", **USAGE, text="kept"))
    story.run(60.0)
    keys = {item.key for item in parse_span(story.sent[0]).attributes}
    assert keys == {"text", "mlflow_otlp.parent_span_id", "mlflow.traceTag.mlflow.otlp.localRoot"}


@pytest.mark.parametrize("delivers_root_first", [True, False])
def test_root_of_this_process_cancels_the_wait(*, delivers_root_first: bool) -> None:
    story = Story()
    spans = [encode(1, "root", parent=None), encode(1, "request to itself")]
    for span in spans if delivers_root_first else reversed(spans):
        story.deliver(span)
    if story.task is not None:
        assert story.run(60.0) == SendResult()
    assert story.requests == []


@pytest.mark.parametrize("state", ["OK", "ERROR"])
def test_root_of_another_process_wins(state: str) -> None:
    story = Story()
    story.deliver(encode(1, "request"), state=state)
    assert story.run(60.0) == SendResult()
    assert story.sent == []


def test_caller_whose_spans_arrive_gets_more_time() -> None:
    story = Story()
    story.deliver(encode(1, "request"), start=START - 1)
    assert story.run(60.0).destination_delay == WAIT
    assert story.run(trace_completer._MAX_AGE_SECONDS - 1).remaining == (story.task,)
    assert story.sent == []
    story.run(trace_completer._MAX_AGE_SECONDS + 60.0)  # the process of the caller was killed
    assert story.sent_names == ["request"]


def test_earliest_of_several_requests_completes_the_trace() -> None:
    story = Story()
    story.deliver(encode(1, "second", start=START + 5))
    story.deliver(encode(1, "first"))
    story.deliver(encode(1, "third", start=START + 9), encode(2, "other trace"))
    assert story.run(60.0) == SendResult()
    assert story.sent_names == ["first", "other trace"]


def test_root_that_is_sent_again_replaces_the_earlier_one() -> None:
    story = Story()
    story.deliver(encode(1, "request"))
    story.now = 30.0
    story.deliver(encode(1, "request", text="complete"))
    story.run(60.0)
    assert "text" in {item.key for item in parse_span(story.sent[0]).attributes}


def test_many_traces_are_completed_in_batches() -> None:
    story = Story()
    story.deliver(*(encode(number, f"request {number}") for number in range(1, 46)))
    results = [story.run(60.0) for _ in range(3)]
    assert [result.destination_delay for result in results] == [0.0, 0.0, 0.0]
    assert [len(result.remaining) for result in results] == [1, 1, 0]
    assert len(story.sent) == 45


def test_end_of_the_process_ends_the_wait() -> None:
    story = Story()
    story.deliver(encode(1, "request"), encode(2, "not stored"))
    story.deliver(encode(3, "caller is here"), start=START - 1)
    del story.records[2]
    story.completer.is_closing = True
    assert story.run(1.0) == SendResult()
    assert story.sent_names == ["request"]


def test_trace_that_is_not_stored_yet_is_asked_for_again() -> None:
    story = Story()
    story.deliver(encode(1, "request"))
    record = story.records.pop(1)
    assert story.run(60.0).destination_delay == 2.0
    story.records[1] = record
    story.run(62.0)
    assert story.sent_names == ["request"]


def test_unavailable_server_is_retried_and_then_given_up(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.deliver(encode(1, "request"))
    story.rest_status = 503
    assert story.run(60.0).remaining == (story.task,)
    story.rest_status = 200
    story.outcome = ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER, "down")
    for minutes in range(1, 16):
        assert story.run(60.0 * minutes).remaining == (story.task,)
    assert story.run(WAIT + 15 * 60.0) == SendResult()
    assert story.problem_log.stats.snapshot().metadata_updates_dropped == 1
    assert "stay in progress: down" in caplog.text


def test_rejected_root_is_dropped_once(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.deliver(encode(1, "request"))
    story.outcome = ExportOutcome(Disposition.PERMANENT, FailureKind.CONTENT, "no")
    assert story.run(60.0) == SendResult()
    assert story.problem_log.stats.snapshot().metadata_updates_dropped == 1
    assert "MLO-" in caplog.text


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(trace_completer, "_MAX_PENDING", 3)
    monkeypatch.setattr(trace_completer, "_MAX_PENDING_BYTES", 2000)
    story = Story()
    story.deliver(*(encode(number, "request") for number in range(1, 6)))
    story.deliver(encode(9, "large", text="x" * 2000))
    assert story.problem_log.stats.snapshot().metadata_updates_dropped == 3
    assert "faster than the server" in caplog.text
    story.run(60.0)
    assert len(story.sent) == 3
    story.deliver(encode(10, "request"))
    story.run(120.0)
    assert len(story.sent) == 4


@pytest.mark.parametrize(("wait", "expected"), [(60.0, False), (0.0, True)])
def test_flush_waits_only_without_wait(wait: float, *, expected: bool) -> None:
    story = Story(wait=wait)
    story.deliver(encode(1, "request"))
    assert story.task is not None
    assert story.task.is_awaited is expected


@pytest.mark.parametrize(
    "record", [{}, {"state": None, "request_time": 5}, {"state": "IN_PROGRESS", "request_time": "?"}]
)
def test_odd_records_are_no_failure(record: dict[str, Any]) -> None:
    story = Story()
    story.deliver(encode(1, "request"))
    story.records[1] = record
    story.run(60.0)
    assert len(story.sent) == (record.get("state") == "IN_PROGRESS")
