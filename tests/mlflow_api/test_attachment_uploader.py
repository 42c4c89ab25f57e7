"""What is uploaded before spans, and what is done where that is not possible; without an MLflow at hand."""

import base64
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.delivery.export_request import ExportRequest, RequestOrigin
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor
from mlflow_otlp_exporter._internal.transport.messages import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.transport import json_response, workspace_of

LIMIT = 20_000
TEAM_A = Destination("team-a", experiment_id="7")
DOWN = TransportError("it is down")
NOISE = random.Random(6).randbytes(30_000)
FILES = "/api/2.0/mlflow-artifacts/artifacts/"
SMALL, LARGE = NOISE[:9_000], NOISE
SMALL_URL, LARGE_URL = (f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in (SMALL, LARGE))
KEPT_OUT = "[image/png, 30.0 kB, not kept]"
SAID = (
    "images, sound and files cannot be uploaded to MLflow: spans hold them where they are small enough, and name type "
    "and size where not: "
)


def located(where: str) -> HttpResponse:
    return json_response(200, {"experiment": {"experiment_id": "7", "artifact_location": where}})


class FakeMLflow:
    """MLflow's calls about artifacts.

    Attributes:
        version: What it says of itself.
        location: What it answers about the experiment.
        takes: What it answers to a file.
        calls: Method and path of each request.
        files: What was uploaded, by path.
    """

    def __init__(self) -> None:
        self.version: HttpResponse | TransportError = HttpResponse(200, body=b"3.17.2")
        self.location: HttpResponse | TransportError = located("mlflow-artifacts:/7")
        self.takes: Callable[[bytes], HttpResponse | TransportError] = lambda _: HttpResponse(200)
        self.calls: list[tuple[str, str]] = []
        self.files: dict[str, bytes] = {}

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        self.calls.append((asked.method, asked.path))
        if asked.path == "/version":
            return self.version
        assert workspace_of(asked) == "team-a"
        if asked.path == "/api/2.0/mlflow/experiments/get?experiment_id=7":
            assert asked.max_response_bytes > MAX_RESPONSE_BYTES
            return self.location
        assert (asked.method, asked.headers["content-type"]) == ("PUT", "application/octet-stream")
        answer = self.takes(asked.body)
        if answer == HttpResponse(200):
            self.files[asked.path] = asked.body
        return answer

    def count(self, method: str) -> int:
        return sum(each == method for each, _ in self.calls)


class Story:
    """AttachmentUploader on a clock of the test's."""

    def __init__(self, *, same_server: bool = True) -> None:
        self.now = 100.0
        self.api, self.report = FakeMLflow(), ProblemLog()
        self.experiment: str | ExportOutcome | None = "7"
        self.uploads = AttachmentUploader(
            self.api,
            lambda _destination, _seconds: self.experiment,
            ServerInfo(self.api, self.report, lambda: self.now),
            self.report,
            longest=LIMIT,
            same_server=same_server,
            clock=lambda: self.now,
        )

    def step(self, shipment: ExportRequest, *, hurried: bool = False) -> ExportOutcome | bool:
        return self.uploads.step(shipment, 5.0, hurried=hurried)

    def runs(self, shipment: ExportRequest) -> list[ExportOutcome | bool]:
        """Takes steps until the spans can be sent, or wait."""
        done: list[ExportOutcome | bool] = []
        for _ in range(20):
            done.append(self.step(shipment))
            if done[-1] is not False:
                return done
        raise AssertionError("it does not end")

    def counts(self) -> tuple[int, int]:
        stats = self.report.stats()
        return stats.attachments_uploaded, stats.attachments_failed


def encoded(number: int, attributes: Mapping[str, Any], trace_id: int = 7) -> EncodedSpan:
    context = SpanContext(trace_id, number, is_remote=False)
    extraction = AttachmentExtractor(LIMIT)
    (made,) = extraction.extracted([ReadableSpan("a", context, None, Resource({}), attributes)])
    return SpanEncoder().encode(made)._replace(attachments=extraction.attachments(made))


def shipment(*attributes: Mapping[str, Any], trace_id: int = 7) -> ExportRequest:
    spans = [encoded(number, each, trace_id) for number, each in enumerate(attributes, 1)]
    return ExportRequest(TEAM_A, spans, RequestOrigin(len(spans)))


def shown(found: ExportRequest) -> list[dict[str, str]]:
    return [{each.key: each.value.string_value for each in parse_span(span).attributes} for span in found.spans]


def place(found: ExportRequest, number: int = 0) -> str:
    (each,) = found.spans[number].attachments
    return f"{FILES}7/traces/tr-{7:032x}/artifacts/attachments/{each.id}"


def test_files_are_uploaded_one_a_step_and_each_once() -> None:
    story = Story()
    found = shipment({"a": SMALL_URL}, {"a": SMALL_URL, "b": "x"}, {"c": LARGE_URL}, {"d": "none"})
    paths, before = [place(found), place(found, 2)], shown(found)
    assert story.runs(found) == [False, True]
    assert story.api.files == {paths[0]: SMALL, paths[1]: LARGE}
    assert shown(found) == before
    assert not any(span.attachments for span in found.spans)
    assert [method for method, _ in story.api.calls] == ["GET", "GET", "PUT", "PUT"]
    assert story.counts() == (2, 0)
    # Another part of the same trace.
    again = shipment({"a": SMALL_URL})
    assert story.runs(again) == [True]
    assert (len(story.api.calls), again.spans[0].attachments, story.counts()) == (4, (), (2, 0))


def test_spans_without_files_ask_nothing() -> None:
    story = Story()
    assert story.runs(shipment({"a": "b"})) == [True]
    assert story.api.calls == []


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        ("mlflow-artifacts:/7", "7"),
        ("mlflow-artifacts:/workspaces/team-a/7", "workspaces/team-a/7"),
        ("mlflow-artifacts:///7", "7"),
        ("mlflow-artifacts:/", ""),
        ("mlflow-artifacts:/own folder", quote("own folder")),
    ],
)
def test_files_lie_where_mlflow_looks_for_them(location: str, folder: str) -> None:
    story = Story()
    story.api.location = located(location)
    found = shipment({"a": SMALL_URL})
    (each,) = found.spans[0].attachments
    story.runs(found)
    rest = f"traces/tr-{7:032x}/artifacts/attachments/{each.id}"
    assert list(story.api.files) == [FILES + (f"{folder}/{rest}" if folder else rest)]


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("version", HttpResponse(200, body=b"3.10.1"), "MLflow 3.10.1 shows none; 3.11 and newer do"),
    ("version", HttpResponse(200, body=b"a page"), "an unknown version of MLflow shows none; 3.11 and newer do"),
    ("version", HttpResponse(404), "an unknown version of MLflow shows none; 3.11 and newer do"),
    ("location", located("s3://bucket/7"), "the artifacts of experiment 7 are not kept by the MLflow server itself"),
    ("location", located("/var/mlruns/7"), "the artifacts of experiment 7 are not kept by the MLflow server itself"),
    ("location", located("mlflow-artifacts://elsewhere:5000/7"), "the artifacts of experiment 7 are not kept by"),
    ("location", json_response(200, {}), "the artifacts of experiment 7 are not kept by the MLflow server itself"),
    ("location", json_response(403, {"message": "Permission denied"}), "403: Permission denied"),
    ("takes", json_response(403, {"message": "Permission denied"}), "403: Permission denied"),
    ("takes", json_response(404, {"detail": "Not Found"}), "404: Not Found"),
    ("takes", HttpResponse(405), "405"),
    (
        "takes",
        HttpResponse(302, {"location": "https://login.example/?a=b"}),
        "302: the server redirects to https://login",
    ),
    ("takes", HttpResponse(200, {"content-type": "text/html"}, b"<html>login</html>"), "200 with an HTML page"),
    ("takes", json_response(400, {"message": "no"}), "400: no"),
    ("takes", json_response(503, {"detail": "Artifact serving is disabled."}), "503: Artifact serving is disabled."),
]


@pytest.mark.parametrize(("what", "answer", "why"), IMPOSSIBLE, ids=str)
def test_where_nothing_can_be_uploaded_spans_hold_what_they_would_have(
    what: str, answer: HttpResponse, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()
    setattr(story.api, what, (lambda _: answer) if what == "takes" else answer)
    found = shipment({"a": SMALL_URL, "b": "x"}, {"c": LARGE_URL})
    assert story.runs(found) == [True]
    assert shown(found) == [{"a": SMALL_URL, "b": "x"}, {"c": KEPT_OUT}]
    assert (story.api.files, story.counts()) == ({}, (0, 2))
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(SAID + why)
    assert line.getMessage().endswith("[MLO-516]")
    # Nothing is asked again for ten minutes, nor said.
    calls = len(story.api.calls)
    assert story.runs(shipment({"a": SMALL_URL})) == [True]
    assert (len(story.api.calls), len(caplog.records)) == (calls, 1)
    story.now += 601
    if what != "version":
        story.api.location, story.api.takes = located("mlflow-artifacts:/7"), lambda _: HttpResponse(200)
        story.runs(shipment({"a": SMALL_URL}))
        assert list(story.api.files.values()) == [SMALL]


@pytest.mark.parametrize(
    "answer", [HttpResponse(401), HttpResponse(403), HttpResponse(302), HttpResponse(200, body=b"a page")], ids=str
)
def test_version_that_is_told_later_ends_it_a_minute_later(answer: HttpResponse) -> None:
    story = Story()
    told, story.api.version = story.api.version, answer
    for _ in range(3):
        assert story.runs(shipment({"a": SMALL_URL})) == [True]
    assert (story.api.calls, story.api.files) == ([("GET", "/version")], {})
    story.api.version = told
    story.now += 61
    story.runs(shipment({"a": SMALL_URL}))
    assert list(story.api.files.values()) == [SMALL]


def test_other_experiments_are_not_done_without(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.api.location = located("s3://bucket/7")
    story.runs(shipment({"a": SMALL_URL}))
    story.api.location = located("mlflow-artifacts:/7")
    other = shipment({"a": SMALL_URL})
    other.destination = Destination("team-a", "another")
    assert story.runs(other) == [True]
    assert list(story.api.files.values()) == [SMALL]
    assert len(caplog.records) == 1


def test_no_mlflow_no_upload() -> None:
    story = Story()
    story.experiment = None
    found = shipment({"a": SMALL_URL})
    assert story.runs(found) == [True]
    assert shown(found) == [{"a": SMALL_URL}]


def test_what_is_too_large_for_a_proxy_does_without_and_smaller_files_do_not() -> None:
    story = Story()
    story.api.takes = lambda body: HttpResponse(413) if len(body) >= len(LARGE) else HttpResponse(200)
    found = shipment({"c": LARGE_URL}, {"a": SMALL_URL})
    assert story.runs(found) == [False, True]
    assert (list(story.api.files.values()), shown(found)[0], story.counts()) == ([SMALL], {"c": KEPT_OUT}, (1, 1))
    calls = story.api.count("PUT")
    story.runs(shipment({"c": LARGE_URL}, trace_id=8))
    assert story.api.count("PUT") == calls


WAYS: list[tuple[str, Any]] = [
    ("version", DOWN),
    ("version", HttpResponse(503)),
    ("location", DOWN),
    ("location", HttpResponse(503)),
    ("location", HttpResponse(401)),
    ("takes", HttpResponse(401)),
]


@pytest.mark.parametrize(("what", "answer"), WAYS, ids=str)
def test_in_an_outage_spans_wait_with_their_files(what: str, answer: Any) -> None:
    story = Story()
    working = getattr(story.api, what)
    setattr(story.api, what, (lambda _: answer) if what == "takes" else answer)
    if what == "takes":
        story.api.location = HttpResponse(401)
    found = shipment({"a": SMALL_URL}, {"c": LARGE_URL})
    for _ in range(10):
        outcome = story.step(found)
        assert isinstance(outcome, ExportOutcome)
        assert (outcome.verdict, outcome.status, outcome.ambiguous) == (Disposition.RETRY, None, False)
    assert (shown(found), len(found.spans[0].attachments), story.counts()) == (shown(found), 1, (0, 0))
    setattr(story.api, what, working)
    story.api.location = located("mlflow-artifacts:/7")
    assert story.runs(found) == [False, True]
    assert story.counts() == (2, 0)


@pytest.mark.parametrize("answer", [DOWN, HttpResponse(500), HttpResponse(503), HttpResponse(504)], ids=str)
def test_where_uploading_alone_fails_spans_do_not_wait_for_long(answer: Any) -> None:
    """The store behind MLflow may be away for days."""
    story = Story()
    story.api.takes = lambda _: answer
    found = shipment({"a": SMALL_URL}, {"c": LARGE_URL})
    steps = [story.step(found) for _ in range(3)]
    assert [isinstance(each, ExportOutcome) for each in steps] == [True, True, False]
    assert shown(found) == [{"a": SMALL_URL}, {"c": KEPT_OUT}]
    puts = story.api.count("PUT")
    assert story.runs(shipment({"a": SMALL_URL})) == [True]
    assert story.api.count("PUT") == puts
    story.now += 61
    story.api.takes = lambda _: HttpResponse(200)
    story.runs(shipment({"a": SMALL_URL}))
    assert list(story.api.files.values()) == [SMALL]


def test_one_failure_is_no_trouble() -> None:
    story, answers = Story(), [HttpResponse(503), HttpResponse(200)]
    story.api.takes = lambda _: answers.pop(0)
    found = shipment({"c": LARGE_URL})
    assert isinstance(story.step(found), ExportOutcome)
    assert story.runs(found) == [True]
    assert story.counts() == (1, 0)


def test_at_the_end_there_is_no_time_for_more() -> None:
    story = Story()
    story.api.takes = lambda _: HttpResponse(503)
    found = shipment({"a": SMALL_URL})
    assert story.step(found, hurried=True) is True
    assert shown(found) == [{"a": SMALL_URL}]


def test_unknown_experiment_is_what_spans_wait_for_too() -> None:
    story = Story()
    story.experiment = ExportOutcome(Disposition.RETRY, FailureKind.DESTINATION, "there is no experiment 'a'")
    found = shipment({"a": SMALL_URL})
    assert [isinstance(story.step(found), ExportOutcome) for _ in range(5)] == [True] * 5


def test_beside_a_collector_spans_do_not_wait_for_mlflow_for_long() -> None:
    story = Story(same_server=False)
    story.api.version = DOWN
    found = shipment({"a": SMALL_URL}, {"c": LARGE_URL})
    steps = [story.step(found) for _ in range(3)]
    assert [isinstance(each, ExportOutcome) for each in steps] == [True, True, False]
    assert shown(found) == [{"a": SMALL_URL}, {"c": KEPT_OUT}]
