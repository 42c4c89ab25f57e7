"""Experiment names become ids, without an MLflow at hand: its answers are those of docs/answers.md."""

import logging
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api import experiments as experiments_module
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.model.destination import Destination, Route
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.tracing.routing import group_by_destination
from mlflow_otlp_exporter._internal.transport.messages import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.spans import provider
from support.transport import json_of, json_response, workspace_of

DELETED, ACTIVE = "deleted", "active"


class FakeMLflow:
    """MLflow's two experiment calls, as 3.17.2 answers them; or one answer to everything."""

    def __init__(self, *names: str, always: HttpResponse | TransportError | None = None) -> None:
        self.experiments = {name: (str(number), ACTIVE) for number, name in enumerate(names)}
        self.always = always
        self.calls: list[tuple[str, str, str | None]] = []
        self.created_by_others: set[str] = set()

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        assert asked.max_response_bytes == MAX_RESPONSE_BYTES
        name = json_of(asked)["name"] if asked.body else parse_qs(urlsplit(asked.path).query)["experiment_name"][0]
        self.calls.append((asked.method, name, workspace_of(asked)))
        if self.always is not None:
            return self.always
        if asked.method == "POST":
            if name in self.created_by_others:
                self.experiments[name] = ("77", ACTIVE)
                return json_response(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"})
            self.experiments[name] = (str(len(self.experiments)), ACTIVE)
            return json_response(200, {"experiment_id": self.experiments[name][0]})
        if name not in self.experiments:
            return json_response(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Could not find {name}"})
        number, stage = self.experiments[name]
        return json_response(200, {"experiment": {"experiment_id": number, "lifecycle_stage": stage}})


def experiments(api: FakeMLflow | None, *, certain: bool = True, create: bool = False) -> ExperimentResolver:
    return ExperimentResolver(api, certain=certain, create=create, report=ProblemLog())


def test_id_needs_no_look_up() -> None:
    api = FakeMLflow()
    assert experiments(api).id_of(Destination(experiment_id="7"), 1) == "7"
    assert not api.calls


def test_name_is_looked_up_once_in_its_workspace() -> None:
    api = FakeMLflow("Default", "agents")
    found = experiments(api)
    for _ in range(3):
        assert found.id_of(Destination("team-a", "agents"), 1) == "1"
    assert api.calls == [("GET", "agents", "team-a")]


def test_missing_one_is_created_only_when_asked() -> None:
    api = FakeMLflow("Default")
    refused = experiments(api).id_of(Destination(experiment="agents"), 1)
    assert isinstance(refused, ExportOutcome)
    assert refused.cause is FailureKind.DESTINATION
    assert "there is no experiment 'agents'" in refused.message
    assert experiments(api, create=True).id_of(Destination(experiment="agents"), 1) == "1"


def test_create_that_comes_second_takes_the_first_ones() -> None:
    api = FakeMLflow("Default")
    api.created_by_others.add("agents")
    assert experiments(api, create=True).id_of(Destination(experiment="agents"), 1) == "77"


def test_deleted_one_is_refused_in_words() -> None:
    api = FakeMLflow("agents")
    api.experiments["agents"] = ("0", DELETED)
    refused = experiments(api, create=True).id_of(Destination("team-a", "agents"), 1)
    assert isinstance(refused, ExportOutcome)
    assert refused.message.startswith("the experiment 'agents' in workspace 'team-a' is deleted")


@pytest.mark.parametrize(
    ("existing", "service", "create", "expected"),
    [
        (("Default", "bot"), "bot", False, "1"),
        (("Default",), "bot", False, "0"),
        (("Default",), "bot", True, "1"),
        (("Default",), None, False, "0"),
        (("Default", "unknown_service"), "unknown_service", False, "0"),
        ((), None, True, "0"),
    ],
)
def test_without_one_it_is_named_like_the_service_else_default(
    existing: tuple[str, ...], service: str | None, create: bool, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    destination = Destination().for_trace({"service.name": service} if service else {})
    found = experiments(FakeMLflow(*existing), create=create)
    for _ in range(2):
        assert found.id_of(destination, 1) == expected
    assert caplog.text.count("no experiment was given") == 1


def test_without_one_and_nothing_to_fall_back_to() -> None:
    refused = experiments(FakeMLflow()).id_of(Destination("team-a", service_name="bot"), 1)
    assert isinstance(refused, ExportOutcome)
    assert "'Default' in workspace 'team-a'" in refused.message


def test_service_name_does_not_matter_where_an_experiment_is_given() -> None:
    given = Destination(experiment="agents")
    assert given.for_trace({"service.name": "bot"}) == given
    assert Destination().for_trace({"service.name": "bot"}, Route(experiment="agents")) == given


DEFAULT = Destination("team-a", None, "7", "run")
IN_TEAM_B = {"mlflow.workspace": "team-b"}


@pytest.mark.parametrize(
    ("resource", "route", "expected"),
    [
        ({}, None, DEFAULT),
        ({}, Route("team-a"), DEFAULT),
        ({}, Route("team-b"), Destination("team-b")),
        ({}, Route(None, "mail"), Destination("team-a", "mail")),
        ({}, Route(None, None, "8"), Destination("team-a", None, "8")),
        ({}, Route(None, None, None, "other"), Destination("team-a", None, "7", "other")),
        (IN_TEAM_B, None, Destination("team-b")),
        (IN_TEAM_B, Route(None, "mail"), Destination("team-b", "mail")),
        ({**IN_TEAM_B, "mlflow.experiment": "mail"}, Route("team-c"), Destination("team-c", "mail")),
        ({**IN_TEAM_B, "service.name": "bot"}, None, Destination("team-b", service_name="bot")),
    ],
)
def test_route_beats_resource_beats_default(
    resource: dict[str, str], route: Route | None, expected: Destination
) -> None:
    assert DEFAULT.for_trace(resource, route) == expected


def test_all_of_a_trace_goes_where_its_root_tells_or_any_span_of_it() -> None:
    memory = InMemorySpanExporter()
    with provider(memory) as made:
        tracer = made.get_tracer("tests")
        with tracer.start_as_current_span("root", attributes={"mlflow.experiment": "of the root"}):
            tracer.start_span("child", attributes={"mlflow.experiment": "of a child"}).end()
        with tracer.start_as_current_span("plain root"):
            tracer.start_span("child", attributes={"mlflow.workspace": "team-b", "mlflow.experiment_id": 8}).end()
            tracer.start_span("sibling").end()
        tracer.start_span("elsewhere").end()
    spans = list(memory.get_finished_spans())
    default = Destination(experiment="agents")
    groups = group_by_destination(spans, default)
    assert {destination: [span.name for span in group] for destination, group in groups.items()} == {
        Destination(experiment="of the root"): ["child", "root"],
        Destination("team-b", None, "8"): ["child", "sibling", "plain root"],
        default: ["elsewhere"],
    }
    # Also what comes later, without the span that told it.
    assert list(group_by_destination(spans[3:4], default)) == [Destination("team-b", None, "8")]


def test_name_that_no_header_can_hold_is_not_taken_for_the_default() -> None:
    assert Destination("team\n\u2603").headers("1")["x-mlflow-workspace"] == "team%0A%E2%98%83"


class Slow(FakeMLflow):
    """Never answers for one experiment, until told to."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def send(self, asked: HttpRequest) -> HttpResponse | TransportError:
        if "slow" in asked.path:
            self.asked.set()
            assert self.go_on.wait(60)
        return super().send(asked)


def test_look_up_that_hangs_delays_no_other() -> None:
    api = Slow("slow", "quick")
    found = experiments(api)
    waiting = threading.Thread(target=found.id_of, args=(Destination(experiment="slow"), 5))
    waiting.start()
    assert api.asked.wait(30)
    assert found.id_of(Destination(experiment="quick"), 5) == "1"
    api.go_on.set()
    waiting.join()


def test_ids_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments_module, "_KEPT", 3)
    api = FakeMLflow(*map(str, range(10)))
    found = experiments(api)
    for number in [*range(10), 9, 8, 0]:
        assert found.id_of(Destination(experiment=str(number)), 1) == str(number)
    assert len(api.calls) == 11
    assert len(found._ids) == len(found._asking) == 3


UNKNOWN_WORKSPACE = json_response(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Workspace 'x' not found"})
LOGIN_PAGE = HttpResponse(200, {"content-type": "text/html"}, b"<html>")
NOT_FOUND = HttpResponse(404, {"content-type": "text/html"}, b"<!doctype html>")


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        (TransportError("refused"), FailureKind.SERVER, "refused"),
        (HttpResponse(503), FailureKind.SERVER, "503"),
        (HttpResponse(401), FailureKind.CREDENTIALS, "401"),
        (HttpResponse(403), FailureKind.DESTINATION, "cannot be looked up: 403"),
        (UNKNOWN_WORKSPACE, FailureKind.DESTINATION, "Workspace 'x' not found"),
        (LOGIN_PAGE, FailureKind.NOT_MLFLOW, "HTML"),
        (NOT_FOUND, FailureKind.NOT_MLFLOW, "HTML"),
        (HttpResponse(302, {"location": "/login"}), FailureKind.NOT_MLFLOW, "redirects"),
        (HttpResponse(200, {}, b"{}"), FailureKind.NOT_MLFLOW, "not MLflow's"),
    ],
)
def test_what_stands_in_the_way(answer: HttpResponse | TransportError, cause: FailureKind, words: str) -> None:
    found = experiments(FakeMLflow(always=answer), create=True).id_of(Destination("x", "agents"), 1)
    assert isinstance(found, ExportOutcome)
    assert found.cause is cause
    assert words in found.message
    assert not found.ambiguous


@pytest.mark.parametrize("answer", [LOGIN_PAGE, NOT_FOUND, HttpResponse(405), HttpResponse(200, {}, b"ok")])
def test_where_a_guess_is_no_mlflow_spans_go_on_without_an_experiment(
    answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeMLflow(always=answer)
    found = experiments(api, certain=False)
    for _ in range(2):
        assert found.id_of(Destination(experiment="agents"), 1) is None
    assert len(api.calls) == 1
    assert caplog.text.count("MLFLOW_TRACKING_URI") == 1


def test_where_there_is_nobody_to_ask() -> None:
    assert experiments(None, certain=False).id_of(Destination(), 1) is None


def test_a_guess_that_is_away_is_asked_again() -> None:
    found = experiments(FakeMLflow(always=TransportError("refused")), certain=False).id_of(Destination(), 1)
    assert isinstance(found, ExportOutcome)
    assert found.cause is FailureKind.SERVER


def test_an_empty_header_is_never_made() -> None:
    assert Destination(workspace="", run_id="").headers("") == {}
    assert Destination("w", run_id="r").headers("1") == {
        "x-mlflow-experiment-id": "1",
        "x-mlflow-workspace": "w",
        "x-mlflow-run-id": "r",
    }
