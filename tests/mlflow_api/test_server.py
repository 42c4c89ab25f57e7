"""The version of a server, and what it has: what counts as one, and when it is asked for again."""

import base64
import json

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, Version
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import (
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
    """Answers as it is told, and counts.

    Attributes:
        says: What it says.
        asked: How often it was asked.
    """

    def __init__(self, says: HttpResponse | TransportError) -> None:
        self.says = says
        self.asked = 0

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        assert (asked.method, dict(asked.headers), asked.body) == ("GET", {}, b"")
        path, max_bytes = asked.path, asked.max_response_bytes
        assert (path, max_bytes) == ("/version", MAX_RESPONSE_BYTES) or (
            path.startswith(BATCH) and max_bytes > 1_000_000
        )
        self.asked += 1
        return self.says


class Story:
    """A server, and a clock of the test's."""

    def __init__(self, answer: HttpResponse | TransportError) -> None:
        self.now = 1000.0
        self.server = Server(answer)
        self.stored = ServerInfo(self.server, ProblemLog(), lambda: self.now)

    def version(self) -> Version | None:
        return self.stored.version(1.0)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (HttpResponse(200, HTML, b"3.10.1"), (3, 10, 1)),  # as MLflow labels it
        (HttpResponse(200, {"content-type": "text/plain"}, b"3.17.2\n"), (3, 17, 2)),
        (HttpResponse(200, {}, b"3.18.0rc1"), (3, 18, 0)),
        (HttpResponse(200, {}, b"4.0"), (4, 0)),
    ],
    ids=str,
)
def test_version_that_is_told_is_kept_for_ever(answer: HttpResponse, version: Version) -> None:
    story = Story(answer)
    assert story.version() == version
    story.server.says = PAGE
    for _ in range(5):
        story.now += 100_000
        assert story.version() == version
    assert story.server.asked == 1


UNTOLD = [
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
    # The body of an error is none, whatever it looks like.
    HttpResponse(401, {}, b"3.10.1"),
]


@pytest.mark.parametrize("answer", UNTOLD, ids=str)
def test_answer_that_tells_none_counts_for_a_while(answer: HttpResponse) -> None:
    story = Story(answer)
    asked = []
    for half_minute in range(120):
        story.now = 1000.0 + 30 * half_minute
        before = story.server.asked
        assert story.version() is None
        assert story.stored.is_older_than((3, 17), 1.0)
        if story.server.asked > before:
            assert story.server.asked == before + 1
            asked.append(story.now - 1000.0)
    # In seconds: after one minute, two, four, eight, then every ten.
    assert asked == [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300]
    story.now += 601
    story.server.says = HttpResponse(200, HTML, b"3.10.1")
    assert story.version() == (3, 10, 1)
    story.now += 100_000
    assert not story.stored.is_older_than((3, 10), 1.0)
    assert story.server.asked == len(asked) + 1


@pytest.mark.parametrize(
    "answer",
    [HttpResponse(500), HttpResponse(502), HttpResponse(503), HttpResponse(429), TransportError("refused")],
    ids=str,
)
def test_server_that_is_away_is_asked_by_each_use(answer: HttpResponse | TransportError) -> None:
    """Each of them waits before it comes again."""
    story = Story(answer)
    for _ in range(3):
        with pytest.raises(ServerUnavailableError):
            story.version()
    assert story.server.asked == 3
    story.server.says = HttpResponse(200, HTML, b"3.10.1")
    assert story.version() == (3, 10, 1)


def test_version_that_another_thread_was_told_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(PAGE)
    send = story.server.send

    def crossed(_: HttpRequest) -> HttpResponse | TransportError:
        monkeypatch.setattr(story.server, "send", send)
        story.server.says = HttpResponse(200, HTML, b"3.10.1")
        assert story.version() == (3, 10, 1)
        return PAGE

    monkeypatch.setattr(story.server, "send", crossed)
    assert story.version() == (3, 10, 1)


def test_where_there_is_no_server_nobody_is_asked() -> None:
    stored = ServerInfo(None, ProblemLog())
    assert stored.version(1.0) is None
    assert stored.is_older_than((3, 12), 1.0)


def stored(*traces: object) -> HttpResponse:
    return HttpResponse(200, JSON, json.dumps({"traces": traces}).encode())


def span(trace_id: int, span_id: int) -> dict[str, str]:
    ids = {"trace_id": trace_id.to_bytes(16, "big"), "span_id": span_id.to_bytes(8, "big")}
    return {name: base64.b64encode(value).decode() for name, value in ids.items()}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (HttpResponse(200, JSON, b"{}"), frozenset()),  # what MLflow says where it has none of the traces
        (stored(), frozenset()),
        (stored({"trace_info": {}}), frozenset()),
        (stored({"spans": []}, {"spans": [span(1, 2), span(1, 3)]}), frozenset({(1, 2), (1, 3)})),
        (stored({"spans": [span(1, 2)]}, {"spans": [span(4, 5)]}), frozenset({(1, 2), (4, 5)})),
    ],
    ids=str,
)
def test_what_is_stored(answer: HttpResponse, found: frozenset[tuple[int, int]]) -> None:
    assert Story(answer).stored.stored_spans([1, 4], None, 1.0) == found


NOT_STORED = [
    PAGE,
    HttpResponse(200, JSON, b"<html>"),  # whatever it is labelled as
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
def test_answer_that_does_not_say_what_is_stored_is_none(answer: HttpResponse) -> None:
    story = Story(answer)
    for _ in range(2):
        with pytest.raises(ServerUnavailableError) as unanswered:
            story.stored.stored_spans([1], None, 1.0)
        assert (unanswered.value.outcome.verdict, unanswered.value.outcome.cause) == (
            Disposition.RETRY,
            FailureKind.NOT_MLFLOW,
        )
    assert story.server.asked == 2


def test_behind_a_guessed_address_such_an_answer_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    stored = ServerInfo(Server(PAGE), ProblemLog(), certain=False)
    assert stored.stored_spans([1], None, 1.0) is None
    assert "sent again without asking whether they did (200 with something else" in caplog.text
