"""What is uploaded before spans, and what is done where that is not possible; without an MLflow at hand."""

import base64
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.mlflow_api.attachment_uploader import AttachmentUploader
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor
from mlflow_otlp_exporter._internal.transport.http_types import (
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
SMALL_URL, LARGE_URL = (f"data:image/png;base64,{base64.b64encode(content).decode()}" for content in (SMALL, LARGE))
PLACEHOLDER = "[image/png, 30.0 kB, not kept]"
MESSAGE = (
    "images, audio and files cannot be uploaded to MLflow: spans contain small ones, and name type and size of others: "
)


def location_response(location: str) -> HttpResponse:
    return json_response(200, {"experiment": {"experiment_id": "7", "artifact_location": location}})


class FakeMLflow:
    """MLflow's requests about artifacts: responses by kind of request, and the uploaded files by path."""

    def __init__(self) -> None:
        self.version: HttpResponse | TransportError = HttpResponse(200, body=b"3.17.2")
        self.location: HttpResponse | TransportError = location_response("mlflow-artifacts:/7")
        self.respond_to_upload: Callable[[bytes], HttpResponse | TransportError] = lambda _: HttpResponse(200)
        self.calls: list[tuple[str, str]] = []
        self.files: dict[str, bytes] = {}

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        self.calls.append((request.method, request.path))
        if request.path == "/version":
            return self.version
        assert workspace_of(request) == "team-a"
        if request.path == "/api/2.0/mlflow/experiments/get?experiment_id=7":
            assert request.max_response_bytes > MAX_RESPONSE_BYTES
            return self.location
        assert (request.method, request.headers["content-type"]) == ("PUT", "application/octet-stream")
        body = bytes(request.body)
        answer = self.respond_to_upload(body)
        if answer == HttpResponse(200):
            self.files[request.path] = body
        return answer

    def count(self, method: str) -> int:
        return sum(item == method for item, _ in self.calls)


@dataclass
class Request:
    """Spans of one destination."""

    spans: list[EncodedSpan]
    destination: Destination = TEAM_A


class Story:
    """AttachmentUploader with a clock that the test controls."""

    def __init__(self, *, same_server: bool = True) -> None:
        self.now = 100.0
        self.api, self.problem_log = FakeMLflow(), ProblemLog()
        self.experiment: str | ExportOutcome | None = "7"
        self.uploader = AttachmentUploader(
            self.api,
            lambda _destination, _seconds: self.experiment,
            ServerInfo(self.api, self.problem_log, lambda: self.now),
            self.problem_log,
            max_inline_length=LIMIT,
            same_server=same_server,
            clock=lambda: self.now,
        )

    def step(self, request: Request, *, is_last_attempt: bool = False) -> ExportOutcome | bool:
        """Upload once; whether the spans can be sent, or the failure."""
        result = self.uploader.upload_next(request.spans, request.destination, 5.0, is_last_attempt=is_last_attempt)
        if isinstance(result, ExportOutcome):
            return result
        request.spans = result
        return not any(span.attachments for span in result)

    def run(self, request: Request) -> list[ExportOutcome | bool]:
        """Take steps until the spans can be sent, or have to wait."""
        results: list[ExportOutcome | bool] = []
        for _ in range(20):
            results.append(self.step(request))
            if results[-1] is not False:
                return results
        raise AssertionError("the uploader does not end")

    def counts(self) -> tuple[int, int]:
        stats = self.problem_log.stats.snapshot()
        return stats.attachments_uploaded, stats.attachments_failed


def encode_span(number: int, attributes: Mapping[str, Any], trace_id: int = 7) -> EncodedSpan:
    context = SpanContext(trace_id, number, is_remote=False)
    extraction = AttachmentExtractor(LIMIT)
    (span,) = extraction.extract([ReadableSpan("a", context, None, Resource({}), attributes)])
    return SpanEncoder().encode(span)._replace(attachments=extraction.attachments_of(span))


def make_request(*attributes: Mapping[str, Any], trace_id: int = 7) -> Request:
    return Request([encode_span(number, values, trace_id) for number, values in enumerate(attributes, 1)])


def attributes_of(request: Request) -> list[dict[str, str]]:
    return [{item.key: item.value.string_value for item in parse_span(span).attributes} for span in request.spans]


def upload_path(request: Request, number: int = 0) -> str:
    (attachment,) = request.spans[number].attachments
    return f"{FILES}7/traces/tr-{7:032x}/artifacts/attachments/{attachment.id}"


def test_upload_next_with_several_files_uploads_one_per_call_and_each_once() -> None:
    story = Story()
    request = make_request({"a": SMALL_URL}, {"a": SMALL_URL, "b": "x"}, {"c": LARGE_URL}, {"d": "none"})
    paths, before = [upload_path(request), upload_path(request, 2)], attributes_of(request)
    assert story.run(request) == [False, True]
    assert story.api.files == {paths[0]: SMALL, paths[1]: LARGE}
    assert attributes_of(request) == before
    assert not any(span.attachments for span in request.spans)
    assert [method for method, _ in story.api.calls] == ["GET", "GET", "PUT", "PUT"]
    assert story.counts() == (2, 0)
    # Another request of the same trace.
    again = make_request({"a": SMALL_URL})
    assert story.run(again) == [True]
    assert (len(story.api.calls), again.spans[0].attachments, story.counts()) == (4, (), (2, 0))


def test_upload_next_without_files_sends_no_request() -> None:
    story = Story()
    assert story.run(make_request({"a": "b"})) == [True]
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
def test_upload_next_with_artifact_location_uses_path_of_mlflow(location: str, folder: str) -> None:
    story = Story()
    story.api.location = location_response(location)
    request = make_request({"a": SMALL_URL})
    (attachment,) = request.spans[0].attachments
    story.run(request)
    file = f"traces/tr-{7:032x}/artifacts/attachments/{attachment.id}"
    assert list(story.api.files) == [FILES + (f"{folder}/{file}" if folder else file)]


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("version", HttpResponse(200, body=b"3.10.1"), "attachments need MLflow 3.11 or newer, and the server has 3.10.1"),
    ("version", HttpResponse(200, body=b"a page"), "attachments need MLflow 3.11 or newer, and its version is unknown"),
    ("version", HttpResponse(404), "attachments need MLflow 3.11 or newer, and its version is unknown"),
    (
        "location",
        location_response("s3://bucket/7"),
        "the artifacts of experiment 7 are not kept by the MLflow server itself",
    ),
    (
        "location",
        location_response("/var/mlruns/7"),
        "the artifacts of experiment 7 are not kept by the MLflow server itself",
    ),
    (
        "location",
        location_response("mlflow-artifacts://elsewhere:5000/7"),
        "the artifacts of experiment 7 are not kept by",
    ),
    ("location", json_response(200, {}), "the artifacts of experiment 7 are not kept by the MLflow server itself"),
    ("location", json_response(403, {"message": "Permission denied"}), "403: Permission denied"),
    ("respond_to_upload", json_response(403, {"message": "Permission denied"}), "403: Permission denied"),
    (
        "respond_to_upload",
        json_response(
            403,
            {
                "error_code": "PERMISSION_DENIED",
                "message": "Upgrade the MLflow client.",
                "artifacts_presigned_only": True,
            },
        ),
        "403: the server takes files only by signed URLs (`mlflow server --artifacts-presigned-only`)",
    ),
    ("respond_to_upload", json_response(404, {"detail": "Not Found"}), "404: Not Found"),
    ("respond_to_upload", HttpResponse(405), "405"),
    (
        "respond_to_upload",
        HttpResponse(302, {"location": "https://login.example/?a=b"}),
        "302: the server redirects to https://login",
    ),
    (
        "respond_to_upload",
        HttpResponse(200, {"content-type": "text/html"}, b"<html>login</html>"),
        "200 with an HTML page",
    ),
    ("respond_to_upload", json_response(400, {"message": "no"}), "400: no"),
    (
        "respond_to_upload",
        json_response(503, {"detail": "Artifact serving is disabled."}),
        "503: Artifact serving is disabled.",
    ),
]


@pytest.mark.parametrize(("kind", "answer", "reason"), IMPOSSIBLE, ids=str)
def test_upload_next_with_permanent_failure_inlines_files_and_pauses(
    kind: str, answer: HttpResponse, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()
    setattr(story.api, kind, (lambda _: answer) if kind == "respond_to_upload" else answer)
    request = make_request({"a": SMALL_URL, "b": "x"}, {"c": LARGE_URL})
    assert story.run(request) == [True]
    assert attributes_of(request) == [{"a": SMALL_URL, "b": "x"}, {"c": PLACEHOLDER}]
    assert (story.api.files, story.counts()) == ({}, (0, 2))
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(MESSAGE + reason)
    assert line.getMessage().endswith("[MLO-516]")
    # Nothing is requested or logged again for ten minutes.
    calls = len(story.api.calls)
    assert story.run(make_request({"a": SMALL_URL})) == [True]
    assert (len(story.api.calls), len(caplog.records)) == (calls, 1)
    story.now += 601
    if kind != "version":
        story.api.location, story.api.respond_to_upload = (
            location_response("mlflow-artifacts:/7"),
            lambda _: HttpResponse(200),
        )
        story.run(make_request({"a": SMALL_URL}))
        assert list(story.api.files.values()) == [SMALL]


@pytest.mark.parametrize(
    "answer", [HttpResponse(401), HttpResponse(403), HttpResponse(302), HttpResponse(200, body=b"a page")], ids=str
)
def test_upload_next_after_version_becomes_known_uploads_within_minute(answer: HttpResponse) -> None:
    story = Story()
    version, story.api.version = story.api.version, answer
    for _ in range(3):
        assert story.run(make_request({"a": SMALL_URL})) == [True]
    assert (story.api.calls, story.api.files) == ([("GET", "/version")], {})
    story.api.version = version
    story.now += 61
    story.run(make_request({"a": SMALL_URL}))
    assert list(story.api.files.values()) == [SMALL]


def test_upload_next_with_other_experiment_is_not_paused(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    story.api.location = location_response("s3://bucket/7")
    story.run(make_request({"a": SMALL_URL}))
    story.api.location = location_response("mlflow-artifacts:/7")
    other = make_request({"a": SMALL_URL})
    other.destination = Destination("team-a", "another")
    assert story.run(other) == [True]
    assert list(story.api.files.values()) == [SMALL]
    assert len(caplog.records) == 1


def test_upload_next_without_mlflow_inlines_files() -> None:
    story = Story()
    story.experiment = None
    request = make_request({"a": SMALL_URL})
    assert story.run(request) == [True]
    assert attributes_of(request) == [{"a": SMALL_URL}]


def test_upload_next_with_file_too_large_for_proxy_inlines_only_large_files() -> None:
    story = Story()
    story.api.respond_to_upload = lambda body: HttpResponse(413) if len(body) >= len(LARGE) else HttpResponse(200)
    request = make_request({"c": LARGE_URL}, {"a": SMALL_URL})
    assert story.run(request) == [False, True]
    assert (list(story.api.files.values()), attributes_of(request)[0], story.counts()) == (
        [SMALL],
        {"c": PLACEHOLDER},
        (1, 1),
    )
    calls = story.api.count("PUT")
    story.run(make_request({"c": LARGE_URL}, trace_id=8))
    assert story.api.count("PUT") == calls


OUTAGES: list[tuple[str, Any]] = [
    ("version", DOWN),
    ("version", HttpResponse(503)),
    ("location", DOWN),
    ("location", HttpResponse(503)),
    ("location", HttpResponse(401)),
    ("respond_to_upload", HttpResponse(401)),
]


@pytest.mark.parametrize(("kind", "answer"), OUTAGES, ids=str)
def test_upload_next_during_outage_keeps_files_and_returns_failure(kind: str, answer: Any) -> None:
    story = Story()
    working = getattr(story.api, kind)
    setattr(story.api, kind, (lambda _: answer) if kind == "respond_to_upload" else answer)
    if kind == "respond_to_upload":
        story.api.location = HttpResponse(401)
    request = make_request({"a": SMALL_URL}, {"c": LARGE_URL})
    for _ in range(10):
        outcome = story.step(request)
        assert isinstance(outcome, ExportOutcome)
        assert (outcome.disposition, outcome.status, outcome.may_have_arrived) == (Disposition.RETRYABLE, None, False)
    assert (attributes_of(request), len(request.spans[0].attachments), story.counts()) == (
        attributes_of(request),
        1,
        (0, 0),
    )
    setattr(story.api, kind, working)
    story.api.location = location_response("mlflow-artifacts:/7")
    assert story.run(request) == [False, True]
    assert story.counts() == (2, 0)


@pytest.mark.parametrize("answer", [DOWN, HttpResponse(500), HttpResponse(503), HttpResponse(504)], ids=str)
def test_upload_next_with_failing_uploads_only_inlines_after_three_attempts(answer: Any) -> None:
    """The store behind MLflow may be away for days."""
    story = Story()
    story.api.respond_to_upload = lambda _: answer
    request = make_request({"a": SMALL_URL}, {"c": LARGE_URL})
    steps = [story.step(request) for _ in range(3)]
    assert [isinstance(result, ExportOutcome) for result in steps] == [True, True, False]
    assert attributes_of(request) == [{"a": SMALL_URL}, {"c": PLACEHOLDER}]
    puts = story.api.count("PUT")
    assert story.run(make_request({"a": SMALL_URL})) == [True]
    assert story.api.count("PUT") == puts
    story.now += 61
    story.api.respond_to_upload = lambda _: HttpResponse(200)
    story.run(make_request({"a": SMALL_URL}))
    assert list(story.api.files.values()) == [SMALL]


def test_upload_next_after_one_failure_uploads() -> None:
    story, answers = Story(), [HttpResponse(503), HttpResponse(200)]
    story.api.respond_to_upload = lambda _: answers.pop(0)
    request = make_request({"c": LARGE_URL})
    assert isinstance(story.step(request), ExportOutcome)
    assert story.run(request) == [True]
    assert story.counts() == (1, 0)


def test_upload_next_with_last_attempt_inlines_after_first_failure() -> None:
    story = Story()
    story.api.respond_to_upload = lambda _: HttpResponse(503)
    request = make_request({"a": SMALL_URL})
    assert story.step(request, is_last_attempt=True) is True
    assert attributes_of(request) == [{"a": SMALL_URL}]


def test_upload_next_with_unknown_experiment_returns_failure() -> None:
    story = Story()
    story.experiment = ExportOutcome(Disposition.RETRYABLE, FailureKind.DESTINATION, "there is no experiment 'a'")
    request = make_request({"a": SMALL_URL})
    assert [isinstance(story.step(request), ExportOutcome) for _ in range(5)] == [True] * 5


def test_upload_next_with_collector_inlines_after_three_failures() -> None:
    story = Story(same_server=False)
    story.api.version = DOWN
    request = make_request({"a": SMALL_URL}, {"c": LARGE_URL})
    steps = [story.step(request) for _ in range(3)]
    assert [isinstance(result, ExportOutcome) for result in steps] == [True, True, False]
    assert attributes_of(request) == [{"a": SMALL_URL}, {"c": PLACEHOLDER}]
