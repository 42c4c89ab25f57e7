"""Version and stored spans of a server: which responses are accepted, and when they are requested again."""

import base64
import json

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, Version
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, FailureKind
from mlflow_otlp_exporter._internal.transport.http_types import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)

HTML = {"content-type": "text/html; charset=utf-8"}
JSON = {"content-type": "application/json"}
PAGE = HttpResponse(200, HTML, b"<!doctype html><title>Sign in</title>")
BATCH = "/api/3.0/mlflow/traces/batchGet?trace_ids=tr-"


class Server:
    """Returns one response, and counts requests."""

    def __init__(self, response: HttpResponse | TransportError) -> None:
        self.response = response
        self.request_count = 0

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        assert (request.method, dict(request.headers), request.body) == ("GET", {}, b"")
        path, max_bytes = request.path, request.max_response_bytes
        assert (path, max_bytes) == ("/version", MAX_RESPONSE_BYTES) or (
            path.startswith(BATCH) and max_bytes > 1_000_000
        )
        self.request_count += 1
        return self.response


class Story:
    """A server, and a clock that the test controls."""

    def __init__(self, answer: HttpResponse | TransportError) -> None:
        self.now = 1000.0
        self.server = Server(answer)
        self.info = ServerInfo(self.server, ProblemLog(), lambda: self.now)

    def version(self) -> Version | None:
        return self.info.version(1.0)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (HttpResponse(200, HTML, b"3.10.1"), (3, 10, 1)),  # MLflow's own label
        (HttpResponse(200, {"content-type": "text/plain"}, b"3.17.2\n"), (3, 17, 2)),
        (HttpResponse(200, {}, b"3.18.0rc1"), (3, 18, 0)),
        (HttpResponse(200, {}, b"4.0"), (4, 0)),
    ],
    ids=str,
)
def test_version_with_valid_response_is_cached_for_ever(answer: HttpResponse, version: Version) -> None:
    story = Story(answer)
    assert story.version() == version
    story.server.response = PAGE
    for _ in range(5):
        story.now += 100_000
        assert story.version() == version
    assert story.server.request_count == 1


WITHOUT_VERSION = [
    HttpResponse(301, {"location": "https://sso.invalid/"}),
    HttpResponse(302, {"location": "https://sso.invalid/"}),
    HttpResponse(304),
    HttpResponse(307, {"location": "/login"}),
    HttpResponse(400),
    HttpResponse(401),
    HttpResponse(403),
    HttpResponse(404),
    HttpResponse(405),
    HttpResponse(407),
    HttpResponse(204),
    HttpResponse(200),
    PAGE,
    HttpResponse(200, {}, b"3.10.1 is what a long page with another beginning says, too"),
    HttpResponse(200, {}, b"ok"),
    HttpResponse(200, {"content-type": "application/json"}, b"{}"),
    # The body of an error is no version, whatever it contains.
    HttpResponse(401, {}, b"3.10.1"),
]


@pytest.mark.parametrize("answer", WITHOUT_VERSION, ids=str)
def test_version_with_unusable_response_is_requested_again_after_interval(answer: HttpResponse) -> None:
    story = Story(answer)
    request_times = []
    for half_minute in range(120):
        story.now = 1000.0 + 30 * half_minute
        before = story.server.request_count
        assert story.version() is None
        assert story.info.is_older_than((3, 17), 1.0)
        if story.server.request_count > before:
            assert story.server.request_count == before + 1
            request_times.append(story.now - 1000.0)
    # In seconds: after 1, 2, 4 and 8 minutes, then every 10 minutes.
    assert request_times == [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300]
    story.now += 601
    story.server.response = HttpResponse(200, HTML, b"3.10.1")
    assert story.version() == (3, 10, 1)
    story.now += 100_000
    assert not story.info.is_older_than((3, 10), 1.0)
    assert story.server.request_count == len(request_times) + 1


@pytest.mark.parametrize(
    "answer",
    [HttpResponse(500), HttpResponse(502), HttpResponse(503), HttpResponse(429), TransportError("refused")],
    ids=str,
)
def test_version_during_outage_raises_and_is_requested_by_each_use(answer: HttpResponse | TransportError) -> None:
    story = Story(answer)
    for _ in range(3):
        with pytest.raises(ServerUnavailableError):
            story.version()
    assert story.server.request_count == 3
    story.server.response = HttpResponse(200, HTML, b"3.10.1")
    assert story.version() == (3, 10, 1)


def test_version_that_another_thread_received_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(PAGE)
    send = story.server.send

    def send_after_other_thread(_: HttpRequest) -> HttpResponse | TransportError:
        monkeypatch.setattr(story.server, "send", send)
        story.server.response = HttpResponse(200, HTML, b"3.10.1")
        assert story.version() == (3, 10, 1)
        return PAGE

    monkeypatch.setattr(story.server, "send", send_after_other_thread)
    assert story.version() == (3, 10, 1)


def test_version_without_rest_api_is_none() -> None:
    info = ServerInfo(None, ProblemLog())
    assert info.version(1.0) is None
    assert info.is_older_than((3, 12), 1.0)


def stored_traces(*traces: object) -> HttpResponse:
    return HttpResponse(200, JSON, json.dumps({"traces": traces}).encode())


def span(trace_id: int, span_id: int) -> dict[str, str]:
    ids = {"trace_id": trace_id.to_bytes(16, "big"), "span_id": span_id.to_bytes(8, "big")}
    return {name: base64.b64encode(value).decode() for name, value in ids.items()}


@pytest.mark.parametrize(
    ("answer", "spans"),
    [
        (HttpResponse(200, JSON, b"{}"), frozenset()),  # MLflow's response if it has none of the traces
        (stored_traces(), frozenset()),
        (stored_traces({"trace_info": {}}), frozenset()),
        (stored_traces({"spans": []}, {"spans": [span(1, 2), span(1, 3)]}), frozenset({(1, 2), (1, 3)})),
        (stored_traces({"spans": [span(1, 2)]}, {"spans": [span(4, 5)]}), frozenset({(1, 2), (4, 5)})),
    ],
    ids=str,
)
def test_stored_spans_with_valid_response_returns_ids(answer: HttpResponse, spans: frozenset[tuple[int, int]]) -> None:
    assert Story(answer).info.stored_spans([1, 4], None, 1.0) == spans


NOT_STORED = [
    PAGE,
    HttpResponse(200, JSON, b"<html>"),  # despite its label
    HttpResponse(200),
    HttpResponse(200, {}, b"3.10.1"),
    HttpResponse(200, {}, b"ok"),
    HttpResponse(200, JSON, b"null"),
    HttpResponse(200, JSON, b"[]"),
    HttpResponse(200, JSON, b'["traces"]'),
    HttpResponse(200, JSON, b'"traces"'),
    HttpResponse(200, JSON, b'{"login":"https://sso.invalid/"}'),
    HttpResponse(200, JSON, b'{"traces":null}'),
    HttpResponse(200, JSON, b'{"traces":["one"]}'),
    HttpResponse(200, JSON, b'{"traces":[{"spans":[{}]}]}'),
    HttpResponse(200, JSON, b'{"traces":[{"spans":[{"trace_id":"?","span_id":"="}]}]}'),
    HttpResponse(200, JSON, b'{"traces":[{"spans"'),
]


@pytest.mark.parametrize("answer", NOT_STORED, ids=str)
def test_stored_spans_with_unusable_response_raises(answer: HttpResponse) -> None:
    story = Story(answer)
    for _ in range(2):
        with pytest.raises(ServerUnavailableError) as raised:
            story.info.stored_spans([1], None, 1.0)
        assert (raised.value.outcome.disposition, raised.value.outcome.cause) == (
            Disposition.RETRYABLE,
            FailureKind.NOT_MLFLOW,
        )
    assert story.server.request_count == 2


def test_stored_spans_with_unusable_response_of_guessed_server_is_none(caplog: pytest.LogCaptureFixture) -> None:
    info = ServerInfo(Server(PAGE), ProblemLog(), certain=False)
    assert info.stored_spans([1], None, 1.0) is None
    assert "sent again without checking whether they are stored (200 with an unexpected body" in caplog.text
