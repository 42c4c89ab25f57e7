"""Updates of trace metadata, with the responses of MLflow 3.10.1."""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.mlflow_api.trace_updater import TraceUpdater, UpdateTask
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.scripted_server import Answer as Scripted
from support.scripted_server import RecordedRequest, ScriptedServer
from support.traces import make_traces, wait_until
from support.transport import json_of, json_response, workspace_of

DESTINATION = Destination("team-a", experiment_id="7")
SEARCH = "/api/3.0/mlflow/traces/search"
LINK = "/api/2.0/mlflow/traces/link-prompts"
PROMPT = {"mlflow.traceTag.mlflow.linkedPrompts": '[{"name": "greeting", "version": "2"}]'}
DOWN = TransportError("it is down")
# Responses of proxies in front of a server, which hide its version.
WITHOUT_VERSION = [
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
    """MLflow's requests about traces.

    Attributes:
        version: Its version.
        always: One response to all other requests.
        absent: Traces that it does not have.
        elsewhere: Traces that another experiment has.
        update_responses: Responses to updates, by trace.
        calls: Method and path of each request.
        tags: Tags by trace.
        link_response: Response to linked prompts.
        prompts: Linked prompts by trace.
    """

    def __init__(self, version: str = "3.10.1") -> None:
        self.version: str | TransportError = version
        self.always: HttpResponse | TransportError | None = None
        self.absent: set[str] = set()
        self.elsewhere: set[str] = set()
        self.update_responses: dict[str, HttpResponse | TransportError] = {}
        self.calls: list[tuple[str, str]] = []
        self.tags: dict[str, dict[str, str]] = {}
        self.link_response: HttpResponse | TransportError = json_response(200, {})
        self.prompts: dict[str, list[dict[str, str]]] = {}
        self.workspaces: set[str | None] = set()

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        method, path = request.method, request.path
        assert request.max_response_bytes > MAX_RESPONSE_BYTES or path == "/version"
        self.calls.append((method, path))
        if path == "/version":
            return (
                self.version
                if isinstance(self.version, TransportError)
                else HttpResponse(200, body=self.version.encode())
            )
        self.workspaces.add(workspace_of(request))
        if self.always is not None:
            return self.always
        if method == "GET":
            trace_id = path.rpartition("/")[2]
            has_trace = trace_id in self.elsewhere
            return json_response(200, {"trace": {"trace_info": record(trace_id)}}) if has_trace else HttpResponse(404)
        body = json_of(request)
        if path == SEARCH:
            assert body["locations"][0]["mlflow_experiment"]["experiment_id"] == "7"
            trace_ids = re.findall(r"'([^']+)'", body["filter"])
            assert body["max_results"] == len(trace_ids)
            return json_response(
                200,
                {
                    "traces": [
                        record(trace_id) for trace_id in trace_ids if trace_id not in self.absent | self.elsewhere
                    ]
                },
            )
        if path == LINK:
            if self.link_response == json_response(200, {}):
                self.prompts[body["trace_id"]] = body["prompt_versions"]
            return self.link_response
        assert method == "PATCH"
        name = path.rpartition("/")[2]
        if (answer := self.update_responses.get(name)) is not None:
            return answer
        self.tags[name] = {tag["key"]: tag["value"] for tag in body["tags"]}
        return json_response(200, {})

    def count(self, method: str) -> int:
        return sum(item == method for item, _ in self.calls)


class Story:
    """TraceUpdater with a clock that the test controls."""

    def __init__(self, *, everything: bool = False, version: str = "3.10.1") -> None:
        self.now = 0.0
        self.api, self.problem_log = FakeMLflow(version), ProblemLog()
        self.experiment: str | ExportOutcome | None = "7"
        self.updater = TraceUpdater(
            self.api,
            lambda _destination, _seconds: self.experiment,
            ServerInfo(self.api, self.problem_log, lambda: self.now),
            self.problem_log,
            everything=everything,
            clock=lambda: self.now,
        )

    def deliver(self, spans: list[EncodedSpan], destination: Destination = DESTINATION) -> UpdateTask | None:
        return self.updater.add_delivered(destination, spans)

    def run(self, task: UpdateTask | None, steps: int = 100) -> list[float]:
        """Run a task to its end, and return its delays."""
        assert task is not None
        delays: list[float] = []
        for _ in range(steps):
            result = task.run(1.0)
            if not result.remaining:
                return delays
            delays.append(result.destination_delay)
            self.now += result.destination_delay
        raise AssertionError("the task does not end")

    def counts(self) -> tuple[int, int]:
        stats = self.problem_log.stats.snapshot()
        return stats.metadata_updates, stats.metadata_updates_dropped


def encode_traces(count: int = 1, *, children: int = 1, root: Mapping[str, str] | None = None) -> list[EncodedSpan]:
    attributes = root or {"mlflow.traceTag.mlflow.traceName": "agent"}
    spans = make_traces(count, children=children, attributes=lambda _, span: {} if span else attributes)
    return [SpanEncoder().encode(span) for span in spans]


def names(spans: list[EncodedSpan]) -> list[str]:
    return [f"tr-{span.trace_id:032x}" for span in spans if span.is_root]


def test_update_with_many_traces_sends_one_search_and_one_update_each() -> None:
    story, spans = Story(), encode_traces(20)
    assert story.run(story.deliver(spans)) == []
    assert story.api.tags == {name: {"mlflow.traceName": "agent"} for name in names(spans)}
    assert (story.api.count("PATCH"), story.api.count("POST"), story.api.count("GET")) == (20, 1, 1)
    assert story.api.workspaces == {"team-a"}
    assert story.counts() == (20, 0)


def test_update_with_more_than_one_batch_requests_version_once() -> None:
    story, spans = Story(), encode_traces(45)
    story.run(story.deliver(spans))
    assert (story.api.count("PATCH"), story.api.count("POST"), story.api.count("GET")) == (45, 3, 1)


def test_add_delivered_with_pending_task_adds_to_it() -> None:
    story, first, second = Story(), encode_traces(), encode_traces()
    task = story.deliver(first)
    assert story.deliver(second) is None
    story.run(task)
    assert set(story.api.tags) == {*names(first), *names(second)}
    assert story.deliver(encode_traces()) is not None


def test_add_delivered_without_metadata_returns_no_task() -> None:
    story = Story()
    assert story.deliver([span for span in encode_traces(3, children=2) if not span.is_root]) is None
    assert story.deliver(encode_traces(root={"input.value": "hi"})) is None


@pytest.mark.parametrize("version", ["3.14.0", "3.17.2", "4.0"])
def test_update_of_newer_server_is_switched_off(version: str) -> None:
    story = Story(version=version)
    story.run(story.deliver(encode_traces()))
    assert story.api.calls == [("GET", "/version")]
    assert story.deliver(encode_traces()) is None
    assert story.counts() == (0, 0)


@pytest.mark.parametrize("text", ["a page", ""])
def test_update_of_server_without_version_waits_until_it_is_known(text: str) -> None:
    story, early, late = Story(version=text), encode_traces(), encode_traces()
    for _ in range(3):
        story.run(story.deliver(early))
    assert story.api.calls == [("GET", "/version")]
    story.api.version = "3.10.1"
    story.now += 61
    story.run(story.deliver(late))
    assert set(story.api.tags) == set(names(late))
    assert story.counts() == (1, 0)


def test_update_with_everything_is_sent_to_newer_server() -> None:
    story, spans = Story(everything=True, version="3.17.2"), encode_traces()
    story.run(story.deliver(spans))
    assert set(story.api.tags) == set(names(spans))


@pytest.mark.parametrize(("everything", "version"), [(False, "3.10.1"), (True, "3.17.2")])
def test_update_with_prompts_links_them(version: str, *, everything: bool) -> None:
    story, spans, others = (
        Story(everything=everything, version=version),
        encode_traces(2, root=PROMPT),
        encode_traces(1),
    )
    story.run(story.deliver([*spans, *others]))
    assert story.api.prompts == {name: [{"name": "greeting", "version": "2"}] for name in names(spans)}
    assert set(story.api.tags) == {*names(spans), *names(others)}
    assert story.counts() == (3, 0)


def test_update_of_server_without_prompt_links_skips_them() -> None:
    story = Story(version="3.6.0")
    story.run(story.deliver(encode_traces(root=PROMPT)))
    assert (story.api.prompts, story.api.count("PATCH"), story.counts()) == ({}, 1, (1, 0))


@pytest.mark.parametrize("answer", [DOWN, json_response(503, {}), json_response(500, {})], ids=str)
def test_update_with_temporary_link_failure_links_prompts_later(answer: HttpResponse | TransportError) -> None:
    story, spans = Story(), encode_traces(1, root=PROMPT)
    task = story.deliver(spans)
    assert task is not None
    story.api.link_response = answer
    assert task.run(1.0).destination_delay == 0.5
    story.api.link_response = json_response(200, {})
    story.run(task)
    assert set(story.api.prompts) == set(names(spans))


def test_update_with_rejected_link_still_updates_traces(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encode_traces(3, root=PROMPT)
    story.api.link_response = json_response(
        403, {"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}}
    )
    story.run(story.deliver(spans))
    assert (set(story.api.tags), story.counts()) == (set(names(spans)), (3, 0))
    assert [line.getMessage() for line in caplog.records] == [
        "traces are not linked to their prompts: 403: Permission denied [MLO-514]"
    ]


@pytest.mark.parametrize(
    "answer", [DOWN, json_response(503, {}), json_response(401, {}), json_response(500, {})], ids=str
)
def test_update_during_outage_is_retried_with_backoff(answer: HttpResponse | TransportError) -> None:
    story, spans = Story(), encode_traces(3)
    task = story.deliver(spans)
    assert task is not None
    story.api.always = answer
    delays = [task.run(1.0).destination_delay for _ in range(3)]
    assert delays == [0.5, 1.0, 2.0]
    story.api.always = None
    story.run(task)
    assert set(story.api.tags) == set(names(spans))
    assert story.counts() == (3, 0)
    assert task.failures == 0


def test_update_with_unknown_version_or_experiment_is_retried() -> None:
    story, spans = Story(), encode_traces()
    task = story.deliver(spans)
    assert task is not None
    story.api.version = DOWN
    assert task.run(1.0).destination_delay == 0.5
    story.api.version = "3.10.1"
    story.experiment = ExportOutcome(Disposition.RETRYABLE, FailureKind.SERVER, "away")
    assert task.run(1.0).destination_delay == 1.0
    story.experiment = "7"
    story.run(task)
    assert set(story.api.tags) == set(names(spans))


def test_update_with_failure_of_one_trace_repeats_only_remaining_ones() -> None:
    story, spans = Story(), encode_traces(5)
    task, third = story.deliver(spans), names(spans)[2]
    assert task is not None
    story.api.update_responses[third] = json_response(503, {})
    assert task.run(1.0).destination_delay == 0.5
    del story.api.update_responses[third]
    story.run(task)
    assert set(story.api.tags) == set(names(spans))
    assert story.api.count("PATCH") == 6


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (422, 1), (500, 4)])
def test_update_with_permanently_rejected_trace_updates_others(status: int, attempts: int) -> None:
    story, spans = Story(), encode_traces(5)
    bad = names(spans)[2]
    story.api.update_responses[bad] = json_response(status, {"message": "no"})
    story.run(story.deliver(spans))
    assert set(story.api.tags) == set(names(spans)) - {bad}
    assert story.api.count("PATCH") == 4 + attempts
    assert story.counts() == (4, 1)


def test_update_after_rejection_is_logged_once_and_pauses(caplog: pytest.LogCaptureFixture) -> None:
    """As with a token that may only write."""
    story = Story()
    story.api.always = json_response(403, {"error": {"code": "PERMISSION_DENIED", "message": "Permission denied"}})
    story.run(story.deliver(encode_traces(3)))
    assert story.deliver(encode_traces()) is None
    assert story.deliver(encode_traces(), Destination("team-b", experiment_id="7")) is not None
    assert story.counts() == (0, 3)
    assert [line.levelno for line in caplog.records] == [logging.WARNING]
    assert "403: Permission denied; spans are not affected" in caplog.text
    story.now += 601
    story.api.always = None
    spans = encode_traces()
    story.run(story.deliver(spans))
    assert set(story.api.tags) == set(names(spans))


def test_update_with_deleted_trace_ignores_it() -> None:
    story, spans = Story(), encode_traces(2)
    story.api.update_responses[names(spans)[0]] = json_response(
        404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}
    )
    story.run(story.deliver(spans))
    assert set(story.api.tags) == {names(spans)[1]}
    assert story.counts() == (1, 0)


def test_update_with_absent_trace_waits_for_it() -> None:
    story, spans = Story(), encode_traces(2)
    late = names(spans)[0]
    story.api.absent = {late}
    task = story.deliver(spans)
    assert task is not None
    assert task.run(1.0).destination_delay == 2.0
    assert set(story.api.tags) == {names(spans)[1]}
    story.api.absent = set()
    story.run(task)
    assert set(story.api.tags) == set(names(spans))


def test_update_with_trace_absent_for_long_drops_it(caplog: pytest.LogCaptureFixture) -> None:
    story, spans = Story(), encode_traces()
    story.api.absent = set(names(spans))
    delays = story.run(story.deliver(spans))
    assert sum(delays) == pytest.approx(62)
    assert story.counts() == (0, 1)
    assert "MLflow does not have these traces" in caplog.text


def test_update_of_trace_of_another_experiment_updates_it() -> None:
    """The service that sent first decides about the experiment of a trace."""
    story, spans = Story(), encode_traces(2)
    story.api.elsewhere = {names(spans)[0]}
    assert story.run(story.deliver(spans)) == []
    assert set(story.api.tags) == set(names(spans))
    assert story.counts() == (2, 0)


def test_update_with_absent_traces_updates_others() -> None:
    story, absent, present = Story(), encode_traces(30), encode_traces(1)
    story.api.absent = set(names(absent))
    task = story.deliver([*absent, *present])
    assert task is not None
    task.run(1.0)
    task.run(1.0)
    assert set(story.api.tags) == set(names(present))


def test_update_without_experiment_drops_traces() -> None:
    story = Story()
    story.experiment = None
    story.run(story.deliver(encode_traces()))
    assert story.counts() == (0, 1)


def test_add_delivered_with_too_many_traces_drops_excess() -> None:
    story = Story()
    task = story.deliver(encode_traces(10_005, children=0))
    assert story.counts() == (0, 5)
    story.updater.give_up(DESTINATION)
    assert task is not None
    assert story.counts() == (0, 10_005)


# The exporter


@pytest.mark.usefixtures("trace_updates")
def test_shutdown_of_exporter_sends_pending_updates(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_otlp_exporter._internal.mlflow_api.client._UPDATE_DELAY_SECONDS", 60.0)
    updates: list[str] = []

    def answer(request: RecordedRequest) -> Scripted:
        if request.path == SEARCH:
            trace_ids = re.findall(r"'([^']+)'", json.loads(request.body)["filter"])
            content = json.dumps({"traces": [record(trace_id) for trace_id in trace_ids]}).encode()
            return Scripted(headers={"Content-Type": "application/json"}, body=content)
        updates.append(request.path.rpartition("/")[2])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    spans = make_traces(2)
    ids = [f"tr-{span.context.trace_id:032x}" for span in spans if span.context]
    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    scripted_server.answer_with(SEARCH, answer)
    for trace_id in ids:
        scripted_server.answer_with(f"/api/2.0/mlflow/traces/{trace_id}", answer)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    exporter.export(spans)
    assert updates == []
    exporter.shutdown()
    assert sorted(updates) == sorted(ids)
    assert exporter.stats().metadata_updates == 2


@pytest.mark.usefixtures("trace_updates")
def test_next_run_after_spooling_updates_traces(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (span,) = make_traces(1)
    assert span.context is not None
    trace_id = f"tr-{span.context.trace_id:032x}"
    updates: list[str] = []

    def answer(request: RecordedRequest) -> Scripted:
        if request.path == SEARCH:
            content = json.dumps({"traces": [record(trace_id)]}).encode()
            return Scripted(headers={"Content-Type": "application/json"}, body=content)
        updates.extend(tag["value"] for tag in json.loads(request.body)["tags"])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    scripted_server.answer_with(SEARCH, answer)
    scripted_server.answer_with(f"/api/2.0/mlflow/traces/{trace_id}", answer)
    scripted_server.answer_with("/v1/traces", lambda _: Scripted(503))
    first = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7, spool=True, spool_dir=tmp_path)
    first.export([span])
    first.shutdown()
    assert updates == []
    scripted_server.answer_with("/v1/traces", lambda _: Scripted())
    second = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7, spool=True, spool_dir=tmp_path)
    wait_until(lambda: second.stats().delivered)
    second.shutdown()
    assert updates == ["root 0"]


@pytest.mark.usefixtures("trace_updates")
@pytest.mark.parametrize("answer", WITHOUT_VERSION, ids=lambda answer: str(answer.status))
def test_update_after_version_becomes_known_is_sent(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, answer: Scripted
) -> None:
    mlflow = FakeMLflow()

    def forward(request: RecordedRequest) -> Scripted:
        response = mlflow.send(
            HttpRequest(
                request.method,
                request.path,
                body=request.body,
                timeout_seconds=1.0,
                max_response_bytes=1 << 20,
            )
        )
        assert isinstance(response, HttpResponse)
        return Scripted(response.status, headers=dict(response.headers), body=response.body)

    spans = make_traces(4)
    ids = [f"tr-{span.context.trace_id:032x}" for span in spans if span.context]
    scripted_server.answer(path="/version", then=answer)
    for path in (SEARCH, *(f"/api/2.0/mlflow/traces/{trace_id}" for trace_id in ids)):
        scripted_server.answer_with(path, forward)
    exporter = MLflowSpanExporter(tracking_uri=scripted_server.url, experiment_id=7)
    for span in spans[:3]:
        exporter.export([span])
        assert exporter.force_flush()
    assert (len(scripted_server.to("/version")), mlflow.tags) == (1, {})
    scripted_server.answer_with("/version", lambda _: Scripted(body=b"3.10.1"))
    stored = exporter._pipeline.retry_sender._server_info  # type: ignore[union-attr]
    monkeypatch.setattr(stored, "_clock", lambda: time.monotonic() + 61)
    exporter.export(spans[3:])
    exporter.shutdown()
    assert (len(scripted_server.to("/version")), set(mlflow.tags)) == (2, {ids[3]})
    assert exporter.stats().metadata_updates == 1


@pytest.mark.usefixtures("trace_updates")
def test_export_to_collector_sends_no_update(scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = MLflowSpanExporter(f"{scripted_server.url}/v1/traces", experiment_id=7)
    exporter.export(make_traces(1))
    exporter.shutdown()
    assert [request.path for request in scripted_server.requests] == ["/v1/traces"]
