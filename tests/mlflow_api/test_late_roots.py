"""Roots that arrive after a local root of another process has completed their trace."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api import late_roots
from mlflow_otlp_exporter._internal.mlflow_api.late_roots import LOCAL_ROOT_TAG, LateRootCorrector, LateRootTask
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse
from support.transport import json_of, json_response

DESTINATION = Destination(experiment_id="7")
CREATE = "/api/3.0/mlflow/traces"
SEARCH, INFOS = f"{CREATE}/search", f"{CREATE}/batchGetInfos"
CHAT = {
    "mlflow.traceTag.mlflow.traceName": "agent",
    "mlflow.spanInputs": json.dumps({"messages": [{"role": "user", "content": "Will it rain?"}]}),
    "mlflow.spanOutputs": json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "No."}}]}),
}


def encode(
    trace: int,
    attributes: Mapping[str, Any],
    *,
    code: StatusCode = StatusCode.UNSET,
    parent: SpanContext | None = None,
) -> EncodedSpan:
    span = ReadableSpan(
        "agent",
        SpanContext(trace, 5, False),
        parent,
        Resource({}),
        attributes=attributes,
        status=Status(code),
        start_time=10**18,
        end_time=10**18 + 1,
    )
    return SpanEncoder().encode(span)


class Story:
    """LateRootCorrector with a server that has the roots' traces, some of them completed by a local root."""

    def __init__(self, version: str = "3.17.2") -> None:
        self.version, self.status = version, 200
        self.traces: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.searches: list[dict[str, Any]] = []
        self.replaced: list[dict[str, Any]] = []
        self.corrector = LateRootCorrector(
            self, lambda _destination, _seconds: "7", ServerInfo(self, ProblemLog(), lambda: 0.0)
        )
        self.task: LateRootTask | None = None

    def send(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/version":
            return HttpResponse(200, body=self.version.encode())
        self.requests.append(request.path.removeprefix(CREATE))
        if self.status != 200:
            return HttpResponse(self.status)
        if request.method == "GET":
            info = self.traces.get(request.path.rpartition("/")[2])
            return json_response(200, {"trace": {"trace_info": info}}) if info else HttpResponse(404)
        body = json_of(request)
        if request.path == INFOS:
            infos = [self.traces[name] for name in body["trace_ids"] if name in self.traces]
            return json_response(200, {"trace_infos": infos}) if self.version >= "3.17" else HttpResponse(404)
        if request.path == SEARCH:
            self.searches.append(body)
            infos = [info for name, info in self.traces.items() if name in body["filter"]]
            matches = [info for info in infos if info["trace_location"] in body["locations"]]
            return json_response(200, {"traces": matches})
        assert request.path == CREATE
        self.replaced.append(body["trace"]["trace_info"])
        return json_response(200, {})

    def store(self, trace: int, experiment: str = "7", *, is_completed: bool = False) -> None:
        name = f"tr-{trace:032x}"
        self.traces[name] = {
            "trace_id": name,
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
            "request_time": "2026-11-22T15:31:58.349Z",
            "execution_duration": "9s",
            "state": "OK",
            "request_preview": "callee",
            "response_preview": "callee",
            "tags": {**({LOCAL_ROOT_TAG: "1"} if is_completed else {}), "a": "b"},
            "trace_metadata": {"c": "d"},
        }

    def deliver(self, *spans: EncodedSpan) -> None:
        self.task = self.corrector.add_delivered(DESTINATION, spans) or self.task

    def run(self) -> SendResult:
        assert self.task is not None
        return self.task.run(1.0)


@pytest.mark.parametrize(
    ("attributes", "code", "expected"),
    [
        (CHAT, StatusCode.UNSET, ("OK", "Will it rain?", "No.")),
        (CHAT, StatusCode.ERROR, ("ERROR", "Will it rain?", "No.")),
        ({"input.value": "plain", "output.value": '{"a": 1}'}, StatusCode.OK, ("OK", "plain", '{"a": 1}')),
        (
            {"mlflow.spanInputs": '"quoted"', "mlflow.spanOutputs": "x" * 2000},
            StatusCode.OK,
            ("OK", "quoted", "x" * 1000),
        ),
        ({"mlflow.spanInputs": '{"messages": [1]}'}, StatusCode.OK, ("OK", '{"messages": [1]}', "")),
        ({"mlflow.spanInputs": '{"messages": {}}'}, StatusCode.OK, ("OK", '{"messages": {}}', "")),
        # The encoder marks JSON that is nested too deeply as text.
        (
            {"mlflow.spanInputs": "{" * 5000, "mlflow.spanOutputs": 5},
            StatusCode.OK,
            ("OK", "\u200b" + "{" * 999, ""),
        ),
        ({}, StatusCode.ERROR, ("ERROR", "", "")),
    ],
)
def test_late_root_replaces_values_of_local_root(
    attributes: Mapping[str, Any], code: StatusCode, expected: tuple[str, str, str]
) -> None:
    story = Story()
    story.store(1, is_completed=True)
    story.store(2)
    story.deliver(encode(1, attributes, code=code), encode(2, CHAT))
    assert story.run() == SendResult()
    (info,) = story.replaced
    assert (info["state"], info["request_preview"], info["response_preview"]) == expected
    tags = {"mlflow.traceName": "agent"} if "mlflow.traceTag.mlflow.traceName" in attributes else {}
    assert info["tags"] == {LOCAL_ROOT_TAG: "", "a": "b", **tags}
    assert (info["request_time"], info["execution_duration"]) == ("2026-11-22T15:31:58.349Z", "9s")
    assert "trace_metadata" not in info  # it would freeze the tokens
    assert story.searches[0]["max_results"] == 2


def test_servers_before_3_13_get_the_metadata_again() -> None:
    story = Story("3.10.1")
    story.store(1, is_completed=True)
    story.deliver(encode(1, CHAT))
    story.run()
    assert story.replaced[0]["trace_metadata"] == {"c": "d"}


@pytest.mark.parametrize(
    ("version", "requests"),
    [
        ("3.17.2", ["/search", "/batchGetInfos", "/search", ""]),
        ("3.10.1", ["/search", "/batchGetInfos", *["GET"] * 2, "/search", ""]),
    ],
)
def test_root_of_trace_in_another_experiment_replaces_values(version: str, requests: list[str]) -> None:
    story = Story(version)
    story.store(1)
    story.store(2, "8", is_completed=True)
    story.store(3, "8")
    story.deliver(encode(1, CHAT), encode(2, CHAT), encode(3, CHAT))
    assert story.run() == SendResult()
    (info,) = story.replaced
    assert (info["trace_id"], info["request_preview"]) == (f"tr-{2:032x}", "Will it rain?")
    assert info["trace_location"]["mlflow_experiment"] == {"experiment_id": "8"}
    assert ["GET" if path.startswith("/tr-") else path for path in story.requests] == requests


def test_root_that_was_corrected_before_is_not_corrected_again() -> None:
    story = Story()
    story.store(1)
    story.traces[f"tr-{1:032x}"]["tags"][LOCAL_ROOT_TAG] = ""
    story.deliver(encode(1, CHAT))
    story.run()
    assert story.requests == ["/search"]


def test_local_roots_replace_nothing() -> None:
    story = Story()
    story.store(2, is_completed=True)
    story.deliver(encode(2, {"mlflow.traceTag." + LOCAL_ROOT_TAG: "5"}))
    story.run()
    assert not story.replaced


def test_span_with_remote_parent_is_not_checked() -> None:
    story = Story()
    story.deliver(encode(3, CHAT, parent=SpanContext(3, 9, is_remote=True)))
    assert story.task is None


def test_roots_above_the_limit_of_bytes_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    root = encode(1, CHAT)
    monkeypatch.setattr(late_roots, "_MAX_PENDING_BYTES", len(root.body))
    story = Story()
    for trace in (1, 2):
        story.store(trace)
    for _ in range(2):
        story.deliver(root, encode(2, CHAT))
        assert story.run() == SendResult()
    assert [search["max_results"] for search in story.searches] == [1, 1]


def test_many_roots_are_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_roots, "_MAX_PENDING", 210)
    story = Story()
    for number in range(1, 300):
        story.store(number)
    for number in range(1, 260, 30):
        story.deliver(*(encode(number + offset, CHAT) for offset in range(30)))
    results = [story.run() for _ in range(3)]
    assert [len(result.remaining) for result in results] == [1, 1, 0]
    assert [search["max_results"] for search in story.searches] == [100, 100, 10]


def test_unavailable_server_is_retried_and_rejection_is_not() -> None:
    story = Story()
    story.deliver(encode(1, CHAT))
    story.status = 503
    for _ in range(3):
        assert story.run().remaining == (story.task,)
    assert story.run() == SendResult()
    story.deliver(encode(2, CHAT))
    story.status = 400
    assert story.run() == SendResult()
