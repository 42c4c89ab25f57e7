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
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse
from support.transport import json_of, json_response

DESTINATION = Destination(experiment_id="7")
SEARCH, CREATE = "/api/3.0/mlflow/traces/search", "/api/3.0/mlflow/traces"
CHAT = {
    "mlflow.traceTag.mlflow.traceName": "agent",
    "mlflow.spanInputs": json.dumps({"messages": [{"role": "user", "content": "Will it rain?"}]}),
    "mlflow.spanOutputs": json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "No."}}]}),
}


def encode(
    trace: int,
    attributes: Mapping[str, Any],
    *,
    seconds: float = 5.0,
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
        end_time=10**18 + int(seconds * 1e9),
    )
    return SpanEncoder().encode(span)


class Story:
    """LateRootCorrector with a server that has traces which a local root completed."""

    def __init__(self, version: str = "3.17.2") -> None:
        self.version, self.status = version, 200
        self.completed: dict[str, dict[str, Any]] = {}
        self.searches: list[dict[str, Any]] = []
        self.replaced: list[dict[str, Any]] = []
        self.corrector = LateRootCorrector(
            self, lambda _destination, _seconds: "7", ServerInfo(self, ProblemLog(), lambda: 0.0)
        )
        self.task: LateRootTask | None = None

    def send(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/version":
            return HttpResponse(200, body=self.version.encode())
        body = json_of(request)
        if self.status != 200:
            return HttpResponse(self.status)
        if request.path == SEARCH:
            self.searches.append(body)
            return json_response(
                200, {"traces": [info for name, info in self.completed.items() if name in body["filter"]]}
            )
        assert request.path == CREATE
        self.replaced.append(body["trace"]["trace_info"])
        return json_response(200, {})

    def complete(self, trace: int) -> None:
        name = f"tr-{trace:032x}"
        self.completed[name] = {
            "trace_id": name,
            "trace_location": {"type": "MLFLOW_EXPERIMENT"},
            "request_time": "2026-11-22T15:31:58.349Z",
            "execution_duration": "9s",
            "state": "OK",
            "request_preview": "callee",
            "response_preview": "callee",
            "tags": {LOCAL_ROOT_TAG: "1", "a": "b"},
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
        ({"mlflow.spanInputs": "{" * 5000, "mlflow.spanOutputs": 5}, StatusCode.OK, ("OK", "{" * 1000, "")),
        ({}, StatusCode.ERROR, ("ERROR", "", "")),
    ],
)
def test_late_root_replaces_values_of_local_root(
    attributes: Mapping[str, Any], code: StatusCode, expected: tuple[str, str, str]
) -> None:
    story = Story()
    story.complete(1)
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
    story.complete(1)
    story.deliver(encode(1, CHAT))
    story.run()
    assert story.replaced[0]["trace_metadata"] == {"c": "d"}


def test_short_and_local_roots_are_not_checked() -> None:
    story = Story()
    story.deliver(
        encode(1, CHAT, seconds=0.9),
        encode(2, {"mlflow.traceTag." + LOCAL_ROOT_TAG: "5"}),
        encode(3, CHAT, parent=SpanContext(3, 9, is_remote=True)),
    )
    assert story.task is None


def test_many_roots_are_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_roots, "_MAX_PENDING", 210)
    story = Story()
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
