"""What MLflow is told after spans, without an MLflow at hand: its answers are those that 3.10.1 was seen to give."""

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.background import BackgroundTasks, Task
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_updater import TraceUpdater, UpdateTask
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.scripted_server import Answer as Scripted
from support.scripted_server import Recorded, ScriptedServer
from support.traces import ended, until
from support.transport import json_of, json_response, workspace_of

DESTINATION = Destination("team-a", experiment_id="7")
SEARCH = "/api/3.0/mlflow/traces/search"
LINK = "/api/2.0/mlflow/traces/link-prompts"
PROMPT = {"mlflow.traceTag.mlflow.linkedPrompts": '[{"name": "greeting", "version": "2"}]'}
DOWN = TransportError("it is down")
# What stands between here and a server that would tell its version.
UNTOLD = [
    Scripted(401, body=b"expired"),
    Scripted(403, body=b"no"),
    Scripted(302, headers={"Location": "https://sso.invalid/start"}),
    Scripted(headers={"Content-Type": "text/html"}, body=b"<html>Sign in</html>"),
]


def record(trace_id: str) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "request_time": "2026-11-22T15:31:58.349Z",
        "execution_duration": "0.103s",
        "state": "OK",
    }


class FakeMLflow:
    """MLflow's calls about traces.

    Attributes:
        version: What it says of itself.
        always: One answer to all else.
        absent: Traces that it does not have.
        tells: What it answers to what it is told, by trace.
        calls: Method and path of each request.
        told: Tags by trace.
        links: What it answers to prompts that are linked.
        linked: Prompts by trace.
    """

    def __init__(self, version: str = "3.10.1") -> None:
        self.version: str | TransportError = version
        self.always: HttpResponse | TransportError | None = None
        self.absent: set[str] = set()
        self.tells: dict[str, HttpResponse | TransportError] = {}
        self.calls: list[tuple[str, str]] = []
        self.told: dict[str, dict[str, str]] = {}
        self.links: HttpResponse | TransportError = json_response(200, {})
        self.linked: dict[str, list[dict[str, str]]] = {}
        self.workspaces: set[str | None] = set()

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        method, path = asked.method, asked.path
        assert asked.max_response_bytes > MAX_RESPONSE_BYTES or path == "/version"
        self.calls.append((method, path))
        if path == "/version":
            return (
                self.version
                if isinstance(self.version, TransportError)
                else HttpResponse(200, body=self.version.encode())
            )
        self.workspaces.add(workspace_of(asked))
        if self.always is not None:
            return self.always
        wanted = json_of(asked)
        if path == SEARCH:
            assert wanted["locations"][0]["mlflow_experiment"]["experiment_id"] == "7"
            found = re.findall(r"'([^']+)'", wanted["filter"])
            assert wanted["max_results"] == len(found)
            return json_response(200, {"traces": [record(each) for each in found if each not in self.absent]})
        if path == LINK:
            if self.links == json_response(200, {}):
                self.linked[wanted["trace_id"]] = wanted["prompt_versions"]
            return self.links
        assert method == "PATCH"
        name = path.rpartition("/")[2]
        if (answer := self.tells.get(name)) is not None:
            return answer
        self.told[name] = {each["key"]: each["value"] for each in wanted["tags"]}
        return json_response(200, {})

    def count(self, method: str) -> int:
        return sum(each == method for each, _ in self.calls)


class Story:
    """Follow-ups on a clock of the test's."""

    def __init__(self, *, everything: bool = False, version: str = "3.10.1") -> None:
        self.now = 0.0
        self.api, self.report = FakeMLflow(version), ProblemLog()
        self.experiment: str | ExportOutcome | None = "7"
        self.follow_ups = TraceUpdater(
            self.api,
            lambda _destination, _seconds: self.experiment,
            ServerInfo(self.api, self.report, lambda: self.now),
            self.report,
            everything=everything,
            clock=lambda: self.now,
        )

    def delivered(self, spans: list[EncodedSpan], destination: Destination = DESTINATION) -> UpdateTask | None:
        return self.follow_ups.delivered(destination, spans)

    def runs(self, turn: UpdateTask | None, steps: int = 100) -> list[float]:
        """Runs a round to its end; the waits on the way."""
        assert turn is not None
        waits: list[float] = []
        for _ in range(steps):
            after = turn.run(1.0)
            if not after.remaining:
                return waits
            waits.append(after.retry_after)
            self.now += after.retry_after
        raise AssertionError("it does not end")

    def counts(self) -> tuple[int, int]:
        stats = self.report.stats()
        return stats.metadata_updates, stats.metadata_updates_dropped


def encoded(count: int = 1, *, children: int = 1, root: Mapping[str, str] | None = None) -> list[EncodedSpan]:
    found = root or {"mlflow.traceTag.mlflow.traceName": "agent"}
    spans = ended(count, children=children, attributes=lambda _, span: {} if span else found)
    return [SpanEncoder().encode(span) for span in spans]


def names(spans: list[EncodedSpan]) -> list[str]:
    return [f"tr-{span.trace_id:032x}" for span in spans if span.is_root]


def test_one_call_tells_of_a_trace_and_one_reads_many() -> None:
    story, spans = Story(), encoded(20)
    assert story.runs(story.delivered(spans)) == []
    assert story.api.told == {name: {"mlflow.traceName": "agent"} for name in names(spans)}
    assert (story.api.count("PATCH"), story.api.count("POST"), story.api.count("GET")) == (20, 1, 1)
    assert story.api.workspaces == {"team-a"}
    assert story.counts() == (20, 0)


def test_more_traces_take_more_rounds_and_the_version_is_asked_once() -> None:
    story, spans = Story(), encoded(45)
    story.runs(story.delivered(spans))
    assert (story.api.count("PATCH"), story.api.count("POST"), story.api.count("GET")) == (45, 3, 1)


def test_what_comes_meanwhile_joins_the_round_and_a_later_one_is_new() -> None:
    story, first, second = Story(), encoded(), encoded()
    turn = story.delivered(first)
    assert story.delivered(second) is None
    story.runs(turn)
    assert set(story.api.told) == {*names(first), *names(second)}
    assert story.delivered(encoded()) is not None


def test_children_and_roots_that_say_nothing_are_not_followed_up() -> None:
    story = Story()
    assert story.delivered([span for span in encoded(3, children=2) if not span.is_root]) is None
    assert story.delivered(encoded(root={"input.value": "hi"})) is None


@pytest.mark.parametrize("version", ["3.14.0", "3.17.2", "4.0"])
def test_servers_that_need_nothing_are_left_alone(version: str) -> None:
    story = Story(version=version)
    story.runs(story.delivered(encoded()))
    assert story.api.calls == [("GET", "/version")]
    assert story.delivered(encoded()) is None
    assert story.counts() == (0, 0)


@pytest.mark.parametrize("said", ["a page", ""])
def test_servers_that_do_not_tell_are_left_alone_until_they_do(said: str) -> None:
    story, early, late = Story(version=said), encoded(), encoded()
    for _ in range(3):
        story.runs(story.delivered(early))
    assert story.api.calls == [("GET", "/version")]
    story.api.version = "3.10.1"
    story.now += 61
    story.runs(story.delivered(late))
    assert set(story.api.told) == set(names(late))
    assert story.counts() == (1, 0)


def test_everything_is_told_to_any_server() -> None:
    story, spans = Story(everything=True, version="3.17.2"), encoded()
    story.runs(story.delivered(spans))
    assert set(story.api.told) == set(names(spans))


@pytest.mark.parametrize(("everything", "version"), [(False, "3.10.1"), (True, "3.17.2")])
def test_traces_are_linked_to_their_prompts(version: str, *, everything: bool) -> None:
    story, spans, others = Story(everything=everything, version=version), encoded(2, root=PROMPT), encoded(1)
    story.runs(story.delivered([*spans, *others]))
    assert story.api.linked == {name: [{"name": "greeting", "version": "2"}] for name in names(spans)}
    assert set(story.api.told) == {*names(spans), *names(others)}
    assert story.counts() == (3, 0)


def test_server_without_a_call_for_prompts_is_not_asked_for_it() -> None:
    story = Story(version="3.6.0")
    story.runs(story.delivered(encoded(root=PROMPT)))
    assert (story.api.linked, story.api.count("PATCH"), story.counts()) == ({}, 1, (1, 0))


@pytest.mark.parametrize("answer", [DOWN, json_response(503, {}), json_response(500, {})], ids=str)
def test_prompts_are_linked_later_where_that_fails_now(answer: HttpResponse | TransportError) -> None:
    story, spans = Story(), encoded(1, root=PROMPT)
    turn = story.delivered(spans)
    assert turn is not None
    story.api.links = answer
    assert turn.run(1.0).retry_after == 0.5
    story.api.links = json_response(200, {})
    story.runs(turn)
    assert set(story.api.linked) == set(names(spans))


def test_prompts_that_may_not_be_linked_keep_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encoded(3, root=PROMPT)
    story.api.links = json_response(403, {"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}})
    story.runs(story.delivered(spans))
    assert (set(story.api.told), story.counts()) == (set(names(spans)), (3, 0))
    assert [line.getMessage() for line in caplog.records] == [
        "traces are not linked to their prompts: 403: Permission denied [MLO-514]"
    ]


@pytest.mark.parametrize(
    "answer", [DOWN, json_response(503, {}), json_response(401, {}), json_response(500, {})], ids=str
)
def test_server_that_is_away_is_asked_again(answer: HttpResponse | TransportError) -> None:
    story, spans = Story(), encoded(3)
    turn = story.delivered(spans)
    assert turn is not None
    story.api.always = answer
    waits = [turn.run(1.0).retry_after for _ in range(3)]
    assert waits == [0.5, 1.0, 2.0]
    story.api.always = None
    story.runs(turn)
    assert set(story.api.told) == set(names(spans))
    assert story.counts() == (3, 0)
    assert turn.failures == 0


def test_unknown_version_and_experiment_are_asked_again() -> None:
    story, spans = Story(), encoded()
    turn = story.delivered(spans)
    assert turn is not None
    story.api.version = DOWN
    assert turn.run(1.0).retry_after == 0.5
    story.api.version = "3.10.1"
    story.experiment = ExportOutcome(Disposition.RETRY, FailureKind.SERVER, "away")
    assert turn.run(1.0).retry_after == 1.0
    story.experiment = "7"
    story.runs(turn)
    assert set(story.api.told) == set(names(spans))


def test_trace_that_fails_in_the_middle_is_told_later_and_none_twice() -> None:
    story, spans = Story(), encoded(5)
    turn, third = story.delivered(spans), names(spans)[2]
    assert turn is not None
    story.api.tells[third] = json_response(503, {})
    assert turn.run(1.0).retry_after == 0.5
    del story.api.tells[third]
    story.runs(turn)
    assert set(story.api.told) == set(names(spans))
    assert story.api.count("PATCH") == 6


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (422, 1), (500, 4)])
def test_trace_that_the_server_does_not_take_keeps_no_other_waiting(status: int, attempts: int) -> None:
    story, spans = Story(), encoded(5)
    bad = names(spans)[2]
    story.api.tells[bad] = json_response(status, {"message": "no"})
    story.runs(story.delivered(spans))
    assert set(story.api.told) == set(names(spans)) - {bad}
    assert story.api.count("PATCH") == 4 + attempts
    assert story.counts() == (4, 1)


def test_refusal_is_said_once_and_ends_it_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """A token that may only write."""
    story = Story()
    story.api.always = json_response(403, {"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}})
    story.runs(story.delivered(encoded(3)))
    assert story.delivered(encoded()) is None
    assert story.delivered(encoded(), Destination("team-b", experiment_id="7")) is not None
    assert story.counts() == (0, 3)
    assert [line.levelno for line in caplog.records] == [logging.WARNING]
    assert "403: Permission denied; spans are not affected" in caplog.text
    assert "MLFLOW_OTLP_TRACE_INFO=false" in caplog.text
    story.now += 601
    story.api.always = None
    spans = encoded()
    story.runs(story.delivered(spans))
    assert set(story.api.told) == set(names(spans))


def test_trace_that_was_deleted_meanwhile_is_left_alone() -> None:
    story, spans = Story(), encoded(2)
    story.api.tells[names(spans)[0]] = json_response(
        404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}
    )
    story.runs(story.delivered(spans))
    assert set(story.api.told) == {names(spans)[1]}
    assert story.counts() == (1, 0)


def test_trace_that_a_collector_still_has_is_waited_for() -> None:
    story, spans = Story(), encoded(2)
    late = names(spans)[0]
    story.api.absent = {late}
    turn = story.delivered(spans)
    assert turn is not None
    assert turn.run(1.0).retry_after == 2.0
    assert set(story.api.told) == {names(spans)[1]}
    story.api.absent = set()
    story.runs(turn)
    assert set(story.api.told) == set(names(spans))


def test_trace_that_never_comes_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encoded()
    story.api.absent = set(names(spans))
    waits = story.runs(story.delivered(spans))
    assert sum(waits) == pytest.approx(62)
    assert story.counts() == (0, 1)
    assert "MLflow does not have these traces" in caplog.text


def test_absent_traces_do_not_keep_others_waiting() -> None:
    story, absent, present = Story(), encoded(30), encoded(1)
    story.api.absent = set(names(absent))
    turn = story.delivered([*absent, *present])
    assert turn is not None
    turn.run(1.0)
    turn.run(1.0)
    assert set(story.api.told) == set(names(present))


def test_no_experiment_no_follow_up() -> None:
    story = Story()
    story.experiment = None
    story.runs(story.delivered(encoded()))
    assert story.counts() == (0, 1)


def test_memory_is_bounded() -> None:
    story = Story()
    turn = story.delivered(encoded(10_005, children=0))
    assert story.counts() == (0, 5)
    story.follow_ups.give_up(DESTINATION)
    assert turn is not None
    assert story.counts() == (0, 10_005)


# The desk


class Asked:
    """An errand that fails for as long as it is told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.not_before, self.failures = 0.0, 0
        self.ticket: Ticket | None = None
        self.waits = 0.01
        self.fails, self.given_up, self.ran = fails, False, threading.Event()

    def run(self, seconds: float) -> SendResult[Task]:
        assert seconds > 0
        self.ran.set()
        if self.fails:
            self.failures += 1
            return SendResult((self,), retry_after=self.waits if self.failures > 1 else 0.01, requeue_last=True)
        return SendResult()

    def give_up(self) -> None:
        self.given_up = True


def test_desk_waits_unless_somebody_hurries() -> None:
    desk, errand = BackgroundTasks(1.0), Asked()
    desk.put("a", errand, wait=60.0)
    assert not desk.wait(0.0)
    assert not errand.ran.is_set()
    assert desk.wait(30.0)
    assert errand.ran.is_set()
    desk.close(1.0)


def test_who_hurries_while_an_errand_runs_waits_for_one_more_try_at_most() -> None:
    """A minute would pass between the tries."""
    desk, errand = BackgroundTasks(60.0), Asked(fails=True)
    errand.failures, errand.waits = 1, 60.0
    begun, hurried = threading.Event(), threading.Event()
    run = errand.run

    def held(seconds: float) -> SendResult[Task]:
        if not begun.is_set():
            begun.set()
            assert hurried.wait(30.0)
            return run(seconds)
        errand.fails = False
        return run(seconds)

    errand.run = held  # type: ignore[method-assign]
    desk.put("a", errand)
    assert begun.wait(30.0)
    desk.hurry(60.0)
    hurried.set()
    assert desk._in_flight.wait(30.0)
    assert errand.failures == 2
    desk.close(1.0)


def test_nobody_waits_for_what_fails_again_and_again() -> None:
    desk, errand = BackgroundTasks(1.0), Asked(fails=True)
    desk.put("a", errand)
    assert not desk.wait(30.0)
    errand.fails = False
    until(lambda: desk.wait(0.0))
    desk.close(1.0)
    assert not errand.given_up


def test_each_flush_waits_for_another_try() -> None:
    """What failed as its trace was in progress succeeds when that has been sent."""
    desk, errand = BackgroundTasks(1.0), Asked(fails=True)
    errand.waits = 60.0
    desk.put("a", errand)
    assert not desk.wait(30.0)
    assert errand.failures >= 2
    errand.fails = False
    assert desk.wait(30.0)
    desk.close(1.0)


def test_end_gives_up_what_fails_and_does_what_does_not() -> None:
    desk, bad, good = BackgroundTasks(1.0), Asked(fails=True), Asked()
    desk.put("a", bad, wait=60.0)
    desk.put("b", good, wait=60.0)
    desk.close(30.0)
    assert (bad.given_up, good.given_up) == (True, False)
    assert good.ran.is_set()


# The exporter


def test_exporter_tells_at_the_latest_when_it_is_shut_down(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_OTLP_TRACE_INFO")
    monkeypatch.setattr("mlflow_otlp_exporter._internal.mlflow_api.rest_side._FOLLOW_UP_SECONDS", 60.0)
    told: list[str] = []

    def answer(request: Recorded) -> Scripted:
        if request.path == SEARCH:
            found = re.findall(r"'([^']+)'", json.loads(request.body)["filter"])
            content = json.dumps({"traces": [record(each) for each in found]}).encode()
            return Scripted(headers={"Content-Type": "application/json"}, body=content)
        told.append(request.path.rpartition("/")[2])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    spans = ended(2)
    ids = [f"tr-{span.context.trace_id:032x}" for span in spans if span.context]
    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    scripted_server.answer_with(SEARCH, answer)
    for each in ids:
        scripted_server.answer_with(f"/api/2.0/mlflow/traces/{each}", answer)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    exporter.export(spans)
    assert told == []
    exporter.shutdown()
    assert sorted(told) == sorted(ids)
    assert exporter.stats().metadata_updates == 2


def test_traces_that_waited_on_disk_are_followed_up_by_the_next_run(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_OTLP_TRACE_INFO")
    (span,) = ended(1)
    assert span.context is not None
    trace_id = f"tr-{span.context.trace_id:032x}"
    told: list[str] = []

    def answer(request: Recorded) -> Scripted:
        if request.path == SEARCH:
            content = json.dumps({"traces": [record(trace_id)]}).encode()
            return Scripted(headers={"Content-Type": "application/json"}, body=content)
        told.extend(each["value"] for each in json.loads(request.body)["tags"])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    scripted_server.answer_with(SEARCH, answer)
    scripted_server.answer_with(f"/api/2.0/mlflow/traces/{trace_id}", answer)
    scripted_server.answer_with("/v1/traces", lambda _: Scripted(503))
    first = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7, spool=True, spool_dir=tmp_path)
    first.export([span])
    first.shutdown()
    assert told == []
    scripted_server.answer_with("/v1/traces", lambda _: Scripted())
    second = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7, spool=True, spool_dir=tmp_path)
    until(lambda: second.stats().delivered)
    second.shutdown()
    assert told == ["root 0"]


@pytest.mark.parametrize("answer", UNTOLD, ids=lambda answer: str(answer.status))
def test_version_that_is_told_later_brings_what_older_servers_need(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, answer: Scripted
) -> None:
    monkeypatch.delenv("MLFLOW_OTLP_TRACE_INFO")
    mlflow = FakeMLflow()

    def asked(request: Recorded) -> Scripted:
        found = mlflow.send(
            HttpRequest(
                request.method,
                request.path,
                body=request.body,
                timeout_seconds=1.0,
                max_response_bytes=1 << 20,
            )
        )
        assert isinstance(found, HttpResponse)
        return Scripted(found.status, headers=dict(found.headers), body=found.body)

    spans = ended(4)
    ids = [f"tr-{span.context.trace_id:032x}" for span in spans if span.context]
    scripted_server.answer(path="/version", then=answer)
    for path in (SEARCH, *(f"/api/2.0/mlflow/traces/{each}" for each in ids)):
        scripted_server.answer_with(path, asked)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    for span in spans[:3]:
        exporter.export([span])
        assert exporter.force_flush()
    assert (len(scripted_server.to("/version")), mlflow.told) == (1, {})
    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    stored = exporter._pipeline.courier._stored  # type: ignore[union-attr]
    monkeypatch.setattr(stored, "_clock", lambda: time.monotonic() + 61)
    exporter.export(spans[3:])
    exporter.shutdown()
    assert (len(scripted_server.to("/version")), set(mlflow.told)) == (2, {ids[3]})
    assert exporter.stats().metadata_updates == 1


def test_collector_is_asked_nothing(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_OTLP_TRACE_INFO")
    exporter = MLflowSpanExporter(f"{scripted_server.url}/v1/traces", experiment_id=7)
    exporter.export(ended(1))
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]
