"""Feedback and expectations, from arguments to MLflow."""

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
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
from mlflow_otlp_exporter._internal.common.files import read_regular_file
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.delivery.exporter import pipeline_of
from mlflow_otlp_exporter._internal.mlflow_api import assessment_sender
from mlflow_otlp_exporter._internal.mlflow_api.assessment_sender import (
    AssessmentFiles,
    AssessmentSender,
    AssessmentTask,
)
from mlflow_otlp_exporter._internal.mlflow_api.assessments import Assessment, build_assessment, mlflow_trace_id
from mlflow_otlp_exporter._internal.transport.http_types import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from mlflow_otlp_exporter.testing import recording
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer as Scripted
from support.scripted_server import RecordedRequest, ScriptedServer
from support.special_files import SPECIAL_FILES
from support.traces import wait_until
from support.transport import ScriptedTransport, json_of, json_response, workspace_of

TRACE = "tr-" + "0" * 30 + "ab"
NO_TRACE = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Trace with ID '{TRACE}' not found."}
FOREIGN_KEY = {
    "error_code": "BAD_REQUEST",
    "message": "(sqlite3.IntegrityError) FOREIGN KEY constraint failed\n[SQL: INSERT INTO assessments (assessment_id",
}
ALREADY_STORED = {
    "error_code": "BAD_REQUEST",
    "message": "(sqlite3.IntegrityError) UNIQUE constraint failed: assessments.assessment_id\n[SQL: INSERT",
}
VIOLATION = {
    "error_code": "INTERNAL_ERROR",
    "message": f"Failed to create assessment for trace '{TRACE}' due to a constraint violation.",
}


@pytest.fixture(autouse=True)
def shut_down() -> Iterator[None]:
    """Shut down the exporters of each test."""
    yield
    shutdown()


# From arguments to a body


@pytest.mark.parametrize(
    "value", [0xAB, TRACE, TRACE.upper().replace("TR-", "tr-"), TRACE.removeprefix("tr-"), f" {TRACE} "], ids=str
)
def test_mlflow_trace_id_with_any_form_returns_it(value: int | str) -> None:
    assert mlflow_trace_id(value) == TRACE


@pytest.mark.parametrize(
    "value", [0, -1, 1 << 128, True, "", "tr-", "ab", "tr-" + "x" * 32, "0" * 32, 1.5, b"a"], ids=str
)
def test_mlflow_trace_id_with_invalid_value_raises(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"trace_id is .*: expected an id of OpenTelemetry"):
        mlflow_trace_id(value)


def body(kind: str = "feedback", value: Any = True, **changes: Any) -> Mapping[str, Any]:
    arguments = {
        "workspace": None,
        "rationale": None,
        "source": None,
        "source_type": "HUMAN",
        "metadata": None,
        "span_id": None,
        **changes,
    }
    return build_assessment(kind, TRACE, "helpful", value, **arguments).body


def test_build_assessment_with_all_arguments_contains_them() -> None:
    assessment = dict(
        body(
            value={"stars": 4},
            rationale="short",
            source="ada",
            source_type="LLM_JUDGE",
            metadata={"channel": "web", "n": 3},
            span_id=7,
        )
    )
    assert assessment.pop("assessment_id").startswith("a-")
    assert assessment.pop("create_time") == assessment.pop("last_update_time")
    assert assessment == {
        "assessment_name": "helpful",
        "trace_id": TRACE,
        "source": {"source_type": "LLM_JUDGE", "source_id": "ada"},
        "feedback": {"value": {"stars": 4}},
        "rationale": "short",
        "metadata": {"channel": "web", "n": "3"},
        "span_id": "0000000000000007",
    }


def test_build_assessment_twice_creates_different_ids() -> None:
    assert body()["assessment_id"] != body()["assessment_id"]


@pytest.mark.parametrize(
    ("value", "expectation"),
    [
        ("Paris", {"value": "Paris"}),
        (0.5, {"value": 0.5}),
        (["a"], {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '["a"]'}}),
    ],
)
def test_build_assessment_with_expectation_serializes_lists(value: Any, expectation: Any) -> None:
    assert body("expectation", value)["expectation"] == expectation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": None}, "value is None"),
        ({"value": math.nan}, "value is or contains nan"),
        ({"value": {"a": [object()]}}, "value is or contains object"),
        ({"metadata": {"a": object()}}, "value is or contains object"),
        ({"metadata": ["a"]}, "metadata is list"),
        ({"source_type": "PERSON"}, "source_type is 'PERSON'"),
        ({"rationale": 3}, "rationale is 3"),
        ({"span_id": "x"}, "span_id is 'x'"),
        ({"span_id": 1 << 64}, "span_id is 184467"),
    ],
)
def test_build_assessment_with_invalid_argument_raises(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        body(**arguments)


@pytest.mark.parametrize("name", ["", "n" * 251, 3, None])
def test_log_feedback_with_invalid_name_raises(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"name is .*expected 1 to 250 characters"):
        Telemetry.log_feedback(configure(enabled=False), TRACE, name, value=True)


def test_log_feedback_with_failing_value_logs_and_returns_none(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingMapping(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("failure")

    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(TRACE, "helpful", FailingMapping(a=1)) is None
    assert "it could not be built (RuntimeError)" in caplog.text


def test_build_assessment_with_recursive_value_raises() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ConfigurationError, match="value is or contains list"):
        body(value=value)


# One step


class Assessments(ScriptedTransport):
    """MLflow's requests about feedback."""

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        path = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
        assert request.max_response_bytes > MAX_RESPONSE_BYTES
        if request.method == "GET":
            assert not request.body
            assert request.path.startswith(f"{path}/a-")
        else:
            assert (request.method, request.path) == ("POST", path)
        return super().send(request)

    @property
    def lookup_count(self) -> int:
        """Number of requests for a stored assessment."""
        return sum(request.method == "GET" for request in self.requests)

    @property
    def sent_assessments(self) -> list[tuple[str, str | None]]:
        """Ids and workspaces of the assessments that were sent."""
        posts = [request for request in self.requests if request.method == "POST"]
        return [(json_of(request)["assessment"]["assessment_id"], workspace_of(request)) for request in posts]


class Story:
    def __init__(self, *answers: HttpResponse | TransportError, folder: Path | None = None) -> None:
        self.now, self.api, self.problem_log = 0.0, Assessments(*answers), ProblemLog()
        self.files = AssessmentFiles(lambda: folder, lambda: folder, 60.0) if folder is not None else None
        self.task = AssessmentTask(
            AssessmentSender(self.api, self.problem_log, self.files, clock=lambda: self.now), make_assessment()
        )

    def run(self, steps: int = 100) -> int:
        """Run to the end, and return the number of steps."""
        for step in range(1, steps + 1):
            result = self.task.run(1.0)
            if not result.remaining:
                return step
            self.now += result.destination_delay
        return 0

    def counts(self) -> tuple[int, int]:
        stats = self.problem_log.stats.snapshot()
        return stats.feedback, stats.feedback_dropped


def make_assessment(workspace: str | None = "team-a") -> Assessment:
    return Assessment(workspace, TRACE, body())


OK = json_response(200, {"assessment": {}})


def test_send_with_workspace_names_it() -> None:
    story = Story(OK)
    assert story.run() == 1
    assert story.api.sent_assessments == [(story.task.assessment.id, "team-a")]
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
def test_send_with_temporary_failure_is_retried(answer: HttpResponse | TransportError) -> None:
    story = Story(answer, answer, OK)
    assert story.run() == 3
    assert len(set(story.api.sent_assessments)) == 1
    assert story.counts() == (1, 0)


@pytest.mark.parametrize("answer", [json_response(400, ALREADY_STORED), json_response(500, VIOLATION)], ids=str)
def test_send_after_lost_response_accepts_stored_assessment(answer: HttpResponse) -> None:
    story = Story(TransportError("no answer", may_have_arrived=True), answer, OK)
    assert story.run() == 2
    assert (len(story.api.sent_assessments), story.api.lookup_count) == (2, 1)
    assert story.counts() == (1, 0)


def test_send_with_other_constraint_violation_is_retried() -> None:
    story = Story(json_response(500, VIOLATION), json_response(404, {"message": "no such assessment"}), OK)
    assert story.run() == 2
    assert story.counts() == (1, 0)


@pytest.mark.parametrize(
    "answer", [json_response(404, NO_TRACE), json_response(400, FOREIGN_KEY), json_response(403, {})], ids=str
)
def test_send_with_missing_trace_is_dropped_after_five_minutes(
    answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(answer)
    assert 10 < story.run() < 30
    assert 300 < story.now < 340
    assert story.counts() == (0, 1)
    assert "Feedback dropped: 40" in caplog.text


def test_send_with_outage_between_rejections_restarts_waiting_time() -> None:
    outage, rejection = json_response(503, {}), json_response(404, NO_TRACE)
    story = Story(*[rejection] * 5, *[outage] * 50, *[rejection] * 5, OK)
    assert story.run() == 61
    assert story.now > 600
    assert story.counts() == (1, 0)


def test_send_with_rejected_content_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    story = Story(json_response(400, {"message": "Assessment name is odd"}))
    assert story.run() == 1
    assert story.counts() == (0, 1)
    assert "Feedback dropped: 400: Assessment name is odd [MLO-515]" in caplog.text


# On disk


def test_send_with_failure_stores_assessment_until_it_is_sent(tmp_path: Path) -> None:
    story = Story(json_response(503, {}), json_response(503, {}), OK, folder=tmp_path)
    story.task.run(1.0)
    assert story.files is not None
    assert list(story.files.read()) == [story.task.assessment]
    (path,) = (tmp_path / "feedback").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    story.run()
    assert not list(story.files.read())
    assert story.counts() == (1, 0)


def test_give_up_with_files_keeps_assessment(tmp_path: Path) -> None:
    story = Story(OK, folder=tmp_path)
    story.task.give_up()
    assert story.files is not None
    assert list(story.files.read()) == [story.task.assessment]
    assert story.counts() == (0, 0)


def test_give_up_without_files_drops_assessment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(OK)
    story.task.give_up()
    blocked = tmp_path / "file"
    blocked.touch()
    other = Story(OK, folder=blocked)
    other.task.give_up()
    assert story.counts() == other.counts() == (0, 1)
    assert "could not be sent before shutdown" in caplog.text


def test_read_with_damaged_and_old_files_deletes_them(tmp_path: Path) -> None:
    now = 0.0
    files = AssessmentFiles(lambda: tmp_path, lambda: tmp_path, 60.0, clock=lambda: now)
    assessment = make_assessment()
    assert files.write(assessment)
    (tmp_path / "feedback" / "a-1.json").write_text("{")
    (tmp_path / "feedback" / "a-2.json").write_text('{"workspace": null, "assessment": {"assessment_id": "a-3"}}')
    assert list(files.read()) == [assessment]
    assert [path.name for path in (tmp_path / "feedback").iterdir()] == [f"{assessment.id}.json"]
    now = (tmp_path / "feedback" / f"{assessment.id}.json").stat().st_mtime + 61
    assert not list(files.read())
    assert not list((tmp_path / "feedback").iterdir())


@pytest.mark.parametrize(("create", "reason"), SPECIAL_FILES)
def test_read_deletes_special_files_and_logs_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    create: Callable[[Path], object],
    reason: str,
) -> None:
    files, assessment = AssessmentFiles(lambda: tmp_path, lambda: tmp_path, 60.0), make_assessment()
    assert files.write(assessment)
    monkeypatch.chdir(tmp_path / "feedback")
    create(tmp_path / "feedback" / "a-1.json")
    (tmp_path / "feedback" / "a-2.json").write_text("[" * 100_000)
    assert list(files.read()) == [assessment]
    assert caplog.messages == [f"Feedback dropped: 2 stored files deleted (damaged, {reason}). [MLO-515]"]
    victim = tmp_path / "feedback" / "victim"
    assert not victim.exists() or victim.read_text() == "precious"
    assert (tmp_path / "feedback" / "a-1.json").exists() == (create is Path.mkdir)


@pytest.mark.parametrize(
    "changes",
    [
        {"trace_id": 7},
        {"trace_id": "tr-\ud800"},
        {"trace_id": "../../admin"},
        {"trace_id": None},
        {"assessment_id": ["a-1"]},
    ],
)
def test_read_with_crafted_content_deletes_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    files, assessment = AssessmentFiles(lambda: tmp_path, lambda: tmp_path, 60.0), make_assessment()
    assert files.write(assessment)
    path = tmp_path / "feedback" / f"{assessment.id}.json"
    path.write_text(json.dumps({"workspace": None, "assessment": {**assessment.body, **changes}}))
    assert list(files.read()) == []
    assert not path.exists()
    assert "1 stored file deleted (damaged)" in caplog.text


def test_feedback_folder_that_is_a_link_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, assessment = AssessmentFiles(lambda: tmp_path, lambda: tmp_path, 60.0), make_assessment()
    assert files.write(assessment)
    (tmp_path / "feedback").chmod(0o777)
    assert list(files.read()) == [assessment]
    assert (tmp_path / "feedback").stat().st_mode & 0o777 == 0o700
    (tmp_path / "feedback").rename(tmp_path / "elsewhere")
    (tmp_path / "feedback").symlink_to(tmp_path / "elsewhere")
    assert list(files.read()) == []
    assert not files.write(make_assessment())
    assert "the stored feedback cannot be read" in caplog.text
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


# With a server


def test_log_feedback_without_configure_or_when_disabled_returns_none() -> None:
    assert log_feedback(TRACE, "helpful", value=True) is None
    assert log_expectation(TRACE, "answer", "Paris") is None
    telemetry = configure(enabled=False)
    assert telemetry.log_feedback(TRACE, "helpful", value=True) is None
    assert telemetry.log_feedback(None, "helpful", value=True) is None


def test_log_feedback_without_trace_logs_and_returns_none(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(None, "helpful", value=True) is None
    assert telemetry.stats().feedback_dropped == 1
    assert "no trace_id was passed, and no span is current [MLO-515]" in caplog.text


def test_log_feedback_with_collector_only_logs_and_returns_none(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = configure(exporter=MLflowSpanExporter(f"{scripted_server.url}/v1/traces?key=x", experiment_id=0))
    assert telemetry.log_feedback(TRACE, "helpful", value=True) is None
    assert "no MLflow server is known beside the OTLP endpoint" in caplog.text


def test_log_feedback_with_mask_masks_texts(scripted_server: ScriptedServer) -> None:
    bodies: list[Any] = []

    def answer(request: RecordedRequest) -> Scripted:
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


def test_recording_with_feedback_contains_it() -> None:
    with recording(experiment="agents") as recorded:
        answer_to("Why?")
        assert recorded.trace.root.name == "answer_to"
        (assessment,) = recorded.assessments
        recorded.clear()
        assert recorded.assessments == []
    assert (assessment["assessment_name"], assessment["feedback"]) == ("automatic", {"value": 4})
    assert assessment["trace_id"].startswith("tr-")


def test_log_feedback_with_stalled_server_does_not_wait(scripted_server: ScriptedServer) -> None:
    stalled = threading.Event()
    path = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
    scripted_server.answer_with(path, lambda _: Scripted(body=b"{}", hold=stalled))
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    assert telemetry.log_feedback(TRACE, "helpful", value=True)
    wait_until(lambda: any(request.path == path for request in scripted_server.requests))
    assert telemetry.stats().feedback == 0
    stalled.set()
    telemetry.flush()
    assert telemetry.stats().feedback == 1


def test_next_run_after_outage_sends_stored_feedback(scripted_server: ScriptedServer) -> None:
    path = f"/api/3.0/mlflow/traces/{TRACE}/assessments"
    scripted_server.answer_with(path, lambda _: Scripted(503))
    configure(tracking_uri=scripted_server.url, experiment_id=0).log_feedback(TRACE, "helpful", value=True)
    shutdown(30.0)
    sent: list[str] = []

    def answer(request: RecordedRequest) -> Scripted:
        sent.append(json.loads(request.body)["assessment"]["assessment_name"])
        return Scripted(headers={"Content-Type": "application/json"}, body=b"{}")

    scripted_server.answer_with(path, answer)
    telemetry = configure(tracking_uri=scripted_server.url, experiment_id=0)
    telemetry.log_feedback(TRACE, "second", value=True)
    telemetry.flush()
    assert sorted(sent) == ["helpful", "second"]


def test_run_during_outage_reads_stored_feedback_once(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_server.answer_with(f"/api/3.0/mlflow/traces/{TRACE}/assessments", lambda _: Scripted(503))
    configure(tracking_uri=scripted_server.url, experiment_id=0).log_feedback(TRACE, "helpful", value=True)
    shutdown(30.0)
    read: list[str] = []

    def count(path: Path, *arguments: Any) -> bytes:
        read.append(path.name)
        return read_regular_file(path, *arguments)

    monkeypatch.setattr(assessment_sender, "read_regular_file", count)
    pipeline = pipeline_of(configure(tracking_uri=scripted_server.url, experiment_id=0).exporter)
    assert pipeline is not None
    assert pipeline.rest_client is not None
    for _ in range(3):  # as the spool consumer does it every 10 s
        pipeline.rest_client.load_stored_assessments()
    assert len(read) == 1


@traced(kind="AGENT")
def answer_to(question: str) -> str:
    log_feedback(None, "automatic", len(question), source="length", source_type="CODE")
    return "Paris"


def assessments(server: MLflowServer, trace_id: str, count: int, workspace: str | None = None) -> dict[str, Any]:
    trace = server.wait_for_trace(
        trace_id, workspace, until=lambda trace: len(trace["trace_info"].get("assessments", [])) >= count
    )
    return {item["assessment_name"]: item for item in trace["trace_info"]["assessments"]}


def test_log_feedback_on_trace_is_stored_by_mlflow(mlflow_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=mlflow_server.uri, experiment="feedback")
    answer_to("What is the capital of France?")
    url = telemetry.trace_url(check=False)
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    assessment_id = log_feedback(
        trace_id, "helpful", value=True, rationale="to the point", source="ada", metadata={"a": 1}
    )
    assert log_expectation(trace_id, "expected_response", {"city": "Paris"})
    telemetry.flush()
    stored = assessments(mlflow_server, trace_id, 3)
    assert stored["automatic"]["feedback"]["value"] == 30
    assert stored["automatic"]["source"] == {"source_type": "CODE", "source_id": "length"}
    assert (stored["helpful"]["assessment_id"], stored["helpful"]["feedback"]["value"]) == (assessment_id, True)
    assert (stored["helpful"]["rationale"], stored["helpful"]["metadata"]) == ("to the point", {"a": "1"})
    assert stored["helpful"]["source"] == {"source_type": "HUMAN", "source_id": "ada"}
    assert json.loads(stored["expected_response"]["expectation"]["serialized_value"]["value"]) == {"city": "Paris"}
    assert telemetry.stats().feedback == 3


def test_feedback_page_code_works(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "feedback.md"
    code, *_ = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    namespace: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), namespace)
    telemetry = namespace["configure"](experiment="support-agent")
    telemetry.flush()
    url = telemetry.trace_url(check=False)
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    assert assessments(mlflow_server, trace_id, 1)["short"]["source"]["source_id"] == "length check"


def test_log_feedback_on_trace_of_other_workspace_is_stored_there(workspace_server: MLflowServer) -> None:
    telemetry = configure(tracking_uri=workspace_server.uri, experiment="feedback", workspace="team-a")
    with trace_context(workspace="team-b"):
        answer_to("What?")
    url = telemetry.trace_url(check=False)
    assert url is not None
    trace_id = url.partition("tr-")[2][:32]
    telemetry.flush()
    log_feedback(trace_id, "helpful", value=False)
    telemetry.flush()
    assert set(assessments(workspace_server, trace_id, 2, "team-b")) == {"automatic", "helpful"}
