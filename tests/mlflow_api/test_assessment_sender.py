"""AssessmentSender and expectations: from arguments to MLflow, whatever happens on the way."""

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import (
    ConfigurationError,
    MLflowSpanExporter,
    Telemetry,
    configure,
    log_expectation,
    log_feedback,
    shutdown,
    trace_context,
    traced,
)
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api.assessment_files import AssessmentFiles
from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import AssessmentSender, AssessmentTask
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment, build_assessment, trace_name
from mlflow_otlp_exporter._internal.transport.messages import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from mlflow_otlp_exporter.testing import recording
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer as Scripted
from support.scripted_server import Recorded, ScriptedServer
from support.traces import until
from support.transport import ScriptedTransport, json_of, json_response, workspace_of

TRACE = "tr-" + "0" * 30 + "ab"
NO_TRACE = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Trace with ID '{TRACE}' not found."}
FOREIGN_KEY = {
    "error_code": "BAD_REQUEST",
    "message": "(sqlite3.IntegrityError) FOREIGN KEY constraint failed\n[SQL: INSERT INTO assessments (assessment_id",
}
THERE = {
    "error_code": "BAD_REQUEST",
    "message": "(sqlite3.IntegrityError) UNIQUE constraint failed: assessments.assessment_id\n[SQL: INSERT",
}
VIOLATION = {
    "error_code": "INTERNAL_ERROR",
    "message": f"Failed to create assessment for trace '{TRACE}' due to a constraint violation.",
}


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Nothing is left running."""
    yield
    shutdown()


# From arguments to a body


@pytest.mark.parametrize(
    "given", [0xAB, TRACE, TRACE.upper().replace("TR-", "tr-"), TRACE.removeprefix("tr-"), f" {TRACE} "], ids=str
)
def test_trace_is_named_in_any_form(given: int | str) -> None:
    assert trace_name(given) == TRACE


@pytest.mark.parametrize(
    "given", [0, -1, 1 << 128, True, "", "tr-", "ab", "tr-" + "x" * 32, "0" * 32, 1.5, b"a"], ids=str
)
def test_trace_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"trace_id is .*: expected OpenTelemetry's"):
        trace_name(given)


def body(kind: str = "feedback", value: Any = True, **more: Any) -> Mapping[str, Any]:
    arguments = {
        "workspace": None,
        "rationale": None,
        "source": None,
        "source_type": "HUMAN",
        "metadata": None,
        "span_id": None,
        **more,
    }
    return build_assessment(kind, TRACE, "helpful", value, **arguments).body


def test_feedback_has_all_that_was_said() -> None:
    found = dict(
        body(
            value={"stars": 4},
            rationale="short",
            source="ada",
            source_type="LLM_JUDGE",
            metadata={"channel": "web", "n": 3},
            span_id=7,
        )
    )
    assert found.pop("assessment_id").startswith("a-")
    assert found.pop("create_time") == found.pop("last_update_time")
    assert found == {
        "assessment_name": "helpful",
        "trace_id": TRACE,
        "source": {"source_type": "LLM_JUDGE", "source_id": "ada"},
        "feedback": {"value": {"stars": 4}},
        "rationale": "short",
        "metadata": {"channel": "web", "n": "3"},
        "span_id": "0000000000000007",
    }


def test_each_has_an_id_of_its_own() -> None:
    assert body()["assessment_id"] != body()["assessment_id"]


@pytest.mark.parametrize(
    ("value", "expectation"),
    [
        ("Paris", {"value": "Paris"}),
        (0.5, {"value": 0.5}),
        (["a"], {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '["a"]'}}),
    ],
)
def test_expectation(value: Any, expectation: Any) -> None:
    assert body("expectation", value)["expectation"] == expectation


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"value": None}, "value is None"),
        ({"value": math.nan}, "value is or holds nan"),
        ({"value": {"a": [object()]}}, "value is or holds object"),
        ({"metadata": {"a": object()}}, "value is or holds object"),
        ({"metadata": ["a"]}, "metadata is list"),
        ({"source_type": "PERSON"}, "source_type is 'PERSON'"),
        ({"rationale": 3}, "rationale is 3"),
        ({"span_id": "x"}, "span_id is 'x'"),
        ({"span_id": 1 << 64}, "span_id is 184467"),
    ],
)
def test_wrong_argument_is_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        body(**arguments)


@pytest.mark.parametrize("name", ["", "n" * 251, 3, None])
def test_wrong_name_is_told(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"name is .*expected 1 to 250 characters"):
        Telemetry.log_feedback(configure(enabled=False), TRACE, name, value=True)


def test_what_cannot_be_looked_at_is_not_raised(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("odd")

    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(TRACE, "helpful", Odd(a=1)) is None
    assert "it could not be made (RuntimeError)" in caplog.text


def test_value_that_holds_itself_is_told() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ConfigurationError, match="value is or holds list"):
        body(value=value)


# One step


class Assessments(ScriptedTransport):
    """MLflow's calls about feedback."""

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        calls = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
        assert asked.max_response_bytes > MAX_RESPONSE_BYTES
        if asked.method == "GET":
            assert not asked.body
            assert asked.path.startswith(f"{calls}/a-")
        else:
            assert (asked.method, asked.path) == ("POST", calls)
        return super().send(asked)

    @property
    def looked(self) -> int:
        """How often it was asked whether it has some."""
        return sum(asked.method == "GET" for asked in self.requests)

    @property
    def told(self) -> list[tuple[str, str | None]]:
        """What it was sent: ids and workspaces."""
        posted = [asked for asked in self.requests if asked.method == "POST"]
        return [(json_of(asked)["assessment"]["assessment_id"], workspace_of(asked)) for asked in posted]


class Story:
    def __init__(self, *answers: HttpResponse | TransportError, folder: Path | None = None) -> None:
        self.now, self.api, self.report = 0.0, Assessments(*answers), ProblemLog()
        self.files = AssessmentFiles(lambda: folder, lambda: folder, 60.0) if folder is not None else None
        self.note = AssessmentTask(AssessmentSender(self.api, self.report, self.files, clock=lambda: self.now), one())

    def run(self, steps: int = 100) -> int:
        """Runs to the end; how many steps it took."""
        for step in range(1, steps + 1):
            after = self.note.run(1.0)
            if not after.remaining:
                return step
            self.now += after.retry_after
        return 0

    def counts(self) -> tuple[int, int]:
        stats = self.report.stats()
        return stats.feedback, stats.feedback_dropped


def one(workspace: str | None = "team-a") -> Assessment:
    return Assessment(workspace, TRACE, body())


OK = json_response(200, {"assessment": {}})


def test_assessment_is_sent_with_its_workspace() -> None:
    story = Story(OK)
    assert story.run() == 1
    assert story.api.told == [(story.note.assessment.id, "team-a")]
    assert story.counts() == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        TransportError("it is down"),
        json_response(503, {}),
        json_response(401, {}),
        json_response(403, {}),
        json_response(404, NO_TRACE),
        json_response(400, FOREIGN_KEY),
    ],
    ids=str,
)
def test_what_may_end_is_waited_for(answer: HttpResponse | TransportError) -> None:
    story = Story(answer, answer, OK)
    assert story.run() == 3
    assert len(set(story.api.told)) == 1
    assert story.counts() == (1, 0)


@pytest.mark.parametrize("answer", [json_response(400, THERE), json_response(500, VIOLATION)], ids=str)
def test_what_has_arrived_before_is_not_there_twice(answer: HttpResponse) -> None:
    story = Story(TransportError("no answer", may_have_arrived=True), answer, OK)
    assert story.run() == 2
    assert (len(story.api.told), story.api.looked) == (2, 1)
    assert story.counts() == (1, 0)


def test_violation_of_something_else_is_an_error_like_others() -> None:
    story = Story(json_response(500, VIOLATION), json_response(404, {"message": "no such assessment"}), OK)
    assert story.run() == 2
    assert story.counts() == (1, 0)


@pytest.mark.parametrize(
    "answer", [json_response(404, NO_TRACE), json_response(400, FOREIGN_KEY), json_response(403, {})], ids=str
)
def test_trace_that_never_comes_is_waited_for_five_minutes(
    answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(answer)
    assert 10 < story.run() < 30
    assert 300 < story.now < 340
    assert story.counts() == (0, 1)
    assert "feedback is lost: 40" in caplog.text


def test_outage_is_waited_for_longer_and_a_new_refusal_begins_anew() -> None:
    down, refusal = json_response(503, {}), json_response(404, NO_TRACE)
    story = Story(*[refusal] * 5, *[down] * 50, *[refusal] * 5, OK)
    assert story.run() == 61
    assert story.now > 600
    assert story.counts() == (1, 0)


def test_content_that_is_refused_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    story = Story(json_response(400, {"message": "Assessment name is odd"}))
    assert story.run() == 1
    assert story.counts() == (0, 1)
    assert "feedback is lost: 400: Assessment name is odd [MLO-515]" in caplog.text


# On disk


def test_what_waits_is_on_disk_until_it_is_sent(tmp_path: Path) -> None:
    story = Story(json_response(503, {}), json_response(503, {}), OK, folder=tmp_path)
    story.note.run(1.0)
    assert story.files is not None
    assert list(story.files.left()) == [story.note.assessment]
    (path,) = (tmp_path / "feedback").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    story.run()
    assert not list(story.files.left())
    assert story.counts() == (1, 0)


def test_end_leaves_it_on_disk(tmp_path: Path) -> None:
    story = Story(OK, folder=tmp_path)
    story.note.give_up()
    assert story.files is not None
    assert list(story.files.left()) == [story.note.assessment]
    assert story.counts() == (0, 0)


def test_end_without_a_disk_loses_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(OK)
    story.note.give_up()
    blocked = tmp_path / "file"
    blocked.touch()
    other = Story(OK, folder=blocked)
    other.note.give_up()
    assert story.counts() == other.counts() == (0, 1)
    assert "could not be sent before the end" in caplog.text


def test_damaged_and_old_files_are_taken_away(tmp_path: Path) -> None:
    now = 0.0
    files = AssessmentFiles(lambda: tmp_path, lambda: tmp_path, 60.0, clock=lambda: now)
    kept = one()
    assert files.put(kept)
    (tmp_path / "feedback" / "a-1.json").write_text("{")
    (tmp_path / "feedback" / "a-2.json").write_text('{"workspace": null, "assessment": {"assessment_id": "a-3"}}')
    assert list(files.left()) == [kept]
    assert [path.name for path in (tmp_path / "feedback").iterdir()] == [f"{kept.id}.json"]
    now = (tmp_path / "feedback" / f"{kept.id}.json").stat().st_mtime + 61
    assert not list(files.left())
    assert not list((tmp_path / "feedback").iterdir())


# With a server


def test_nothing_happens_before_configure_and_when_switched_off() -> None:
    assert log_feedback(TRACE, "helpful", value=True) is None
    assert log_expectation(TRACE, "answer", "Paris") is None
    telemetry = configure(enabled=False)
    assert telemetry.log_feedback(TRACE, "helpful", value=True) is None
    assert telemetry.log_feedback(None, "helpful", value=True) is None


def test_no_trace_is_told_and_not_raised(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(None, "helpful", value=True) is None
    assert telemetry.stats().feedback_dropped == 1
    assert "no trace_id is given, and no span is current [MLO-515]" in caplog.text


def test_collector_without_mlflow_is_told(scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    telemetry = configure(exporter=MLflowSpanExporter(f"{scripted_server.url}/v1/traces?key=x", experiment_id=0))
    assert telemetry.log_feedback(TRACE, "helpful", value=True) is None
    assert "no MLflow is known beside the OTLP endpoint" in caplog.text


def test_texts_are_masked(scripted_server: ScriptedServer) -> None:
    bodies: list[Any] = []

    def answer(request: Recorded) -> Scripted:
        bodies.append(json.loads(request.body)["assessment"])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    scripted_server.answer_with(f"/api/3.0/mlflow/traces/{TRACE}/assessments", answer)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0, mask=["email"])
    telemetry.log_feedback(
        TRACE, "helpful", "ask a@b.org", rationale="a@b.org said", metadata={"from": "a@b.org", "n": 1}, source="ada"
    )
    assert telemetry.flush()
    assert "a@b.org" not in json.dumps(bodies)
    assert bodies[0]["source"]["source_id"] == "ada"


def test_recording_has_feedback() -> None:
    with recording(experiment="agents") as recorded:
        answer_to("Why?")
        assert recorded.trace.root.name == "answer_to"
        (found,) = recorded.assessments
        recorded.clear()
        assert recorded.assessments == []
    assert (found["assessment_name"], found["feedback"]) == ("automatic", {"value": 4})
    assert found["trace_id"].startswith("tr-")


def test_nobody_waits_for_a_server_that_stalls(scripted_server: ScriptedServer) -> None:
    stalled = threading.Event()
    path = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
    scripted_server.answer_with(path, lambda _: Scripted(body=b"{}", hold=stalled))
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(TRACE, "helpful", value=True)
    until(lambda: any(request.path == path for request in scripted_server.requests))
    assert telemetry.stats().feedback == 0
    stalled.set()
    telemetry.flush()
    assert telemetry.stats().feedback == 1


def test_what_one_run_leaves_the_next_sends(scripted_server: ScriptedServer) -> None:
    path = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
    scripted_server.answer_with(path, lambda _: Scripted(503))
    configure(tracking_uri=scripted_server.url, experiment_id=0).log_feedback(TRACE, "helpful", value=True)
    shutdown(30.0)
    sent: list[str] = []

    def answer(request: Recorded) -> Scripted:
        sent.append(json.loads(request.body)["assessment"]["assessment_name"])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    scripted_server.answer_with(path, answer)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    telemetry.log_feedback(TRACE, "second", value=True)
    telemetry.flush()
    assert sorted(sent) == ["helpful", "second"]


@traced(kind="AGENT")
def answer_to(question: str) -> str:
    log_feedback(None, "automatic", len(question), source="length", source_type="CODE")
    return "Paris"


def assessments(server: MLflowServer, trace_id: str, count: int, workspace: str | None = None) -> dict[str, Any]:
    found = server.wait_for_trace(
        trace_id, workspace, until=lambda trace: len(trace["trace_info"].get("assessments", [])) >= count
    )
    return {each["assessment_name"]: each for each in found["trace_info"]["assessments"]}


def test_feedback_lands_after_its_trace(mlflow_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=mlflow_server.uri, experiment="feedback")
    answer_to("What is the capital of France?")
    url = telemetry.trace_url()
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    given = log_feedback(trace_id, "helpful", value=True, rationale="to the point", source="ada", metadata={"a": 1})
    assert log_expectation(trace_id, "expected_response", {"city": "Paris"})
    telemetry.flush()
    found = assessments(mlflow_server, trace_id, 3)
    assert found["automatic"]["feedback"]["value"] == 30
    assert found["automatic"]["source"] == {"source_type": "CODE", "source_id": "length"}
    assert (found["helpful"]["assessment_id"], found["helpful"]["feedback"]["value"]) == (given, True)
    assert (found["helpful"]["rationale"], found["helpful"]["metadata"]) == ("to the point", {"a": "1"})
    assert found["helpful"]["source"] == {"source_type": "HUMAN", "source_id": "ada"}
    assert json.loads(found["expected_response"]["expectation"]["serialized_value"]["value"]) == {"city": "Paris"}
    assert telemetry.stats().feedback == 3


def test_page_says_what_works(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "feedback.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    found: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), found)
    telemetry = found["configure"](experiment="support-agent")
    telemetry.flush()
    url = telemetry.trace_url()
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    assert assessments(mlflow_server, trace_id, 1)["short"]["source"]["source_id"] == "length check"


def test_feedback_goes_to_the_workspace_of_its_trace(workspace_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=workspace_server.uri, experiment="feedback", workspace="team-a")
    with trace_context(workspace="team-b"):
        answer_to("What?")
    url = telemetry.trace_url()
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    telemetry.flush()
    log_feedback(trace_id, "helpful", value=False)
    telemetry.flush()
    assert set(assessments(workspace_server, trace_id, 2, "team-b")) == {"automatic", "helpful"}
