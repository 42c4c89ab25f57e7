"""Resolution of experiment names to ids, with the responses of MLflow from docs/answers.md."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.common.codes import MessageCode
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.mlflow_api import experiments as experiments_module
from mlflow_otlp_exporter._internal.mlflow_api.experiments import ExperimentResolver
from mlflow_otlp_exporter._internal.model.destination import Destination, Route
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.tracing.routing import find_destinations
from mlflow_otlp_exporter._internal.transport.http_types import (
    MAX_RESPONSE_BYTES,
    HttpRequest,
    HttpResponse,
    TransportError,
)
from support.spans import provider
from support.transport import json_of, json_response, workspace_of

DELETED, ACTIVE = "deleted", "active"


class FakeMLflow:
    """MLflow's two experiment requests as 3.17.2 answers them, or one response to everything."""

    def __init__(self, *names: str, always: HttpResponse | TransportError | None = None) -> None:
        self.experiments = {name: (str(number), ACTIVE) for number, name in enumerate(names)}
        self.always = always
        self.calls: list[tuple[str, str, str | None]] = []
        self.concurrently_created: set[str] = set()

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        if request.path == "/version":
            return HttpResponse(200, {}, b"3.17.2")
        assert request.max_response_bytes == MAX_RESPONSE_BYTES
        if request.path.endswith("/search"):
            return json_response(200, {"experiments": [{"name": name} for name in self.experiments]})
        name = (
            json_of(request)["name"] if request.body else parse_qs(urlsplit(request.path).query)["experiment_name"][0]
        )
        self.calls.append((request.method, name, workspace_of(request)))
        if self.always is not None:
            return self.always
        if request.method == "POST":
            if name in self.concurrently_created:
                self.experiments[name] = ("77", ACTIVE)
                return json_response(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"})
            self.experiments[name] = (str(len(self.experiments)), ACTIVE)
            return json_response(200, {"experiment_id": self.experiments[name][0]})
        if name not in self.experiments:
            return json_response(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Could not find {name}"})
        number, stage = self.experiments[name]
        return json_response(200, {"experiment": {"experiment_id": number, "lifecycle_stage": stage}})


def make_resolver(
    api: FakeMLflow | None,
    *,
    certain: bool = True,
    create: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ExperimentResolver:
    return ExperimentResolver(api, certain=certain, create=create, problem_log=ProblemLog(), clock=clock)


def test_resolve_with_id_sends_no_request() -> None:
    api = FakeMLflow()
    assert make_resolver(api).resolve(Destination(experiment_id="7"), 1) == "7"
    assert not api.calls


def test_resolve_with_name_looks_it_up_once_in_its_workspace() -> None:
    api = FakeMLflow("Default", "agents")
    resolver = make_resolver(api)
    for _ in range(3):
        assert resolver.resolve(Destination("team-a", "agents"), 1) == "1"
    assert api.calls == [("GET", "agents", "team-a")]


def test_resolve_with_missing_experiment_creates_it_only_if_configured() -> None:
    api = FakeMLflow("Default")
    outcome = make_resolver(api).resolve(Destination(experiment="agents"), 1)
    assert isinstance(outcome, ExportOutcome)
    assert outcome.cause is FailureKind.DESTINATION
    assert "there is no experiment 'agents'" in outcome.message
    assert make_resolver(api, create=True).resolve(Destination(experiment="agents"), 1) == "1"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (("support-agent", "Default"), ", because there was none of this name. Did you mean 'support-agent'?"),
        (("Default", "x" * 10_000, "support\nagent"), ", because there was none of this name"),
    ],
)
def test_created_experiment_is_logged_with_the_most_similar_name(
    caplog: pytest.LogCaptureFixture, existing: tuple[str, ...], expected: str
) -> None:
    number = str(len(existing))
    resolver = make_resolver(FakeMLflow(*existing), create=True)
    assert resolver.resolve(Destination(experiment="supprot-agent"), 1) == number
    assert caplog.messages == [f"created the experiment 'supprot-agent' (id {number}){expected} [MLO-803]"]


@pytest.mark.parametrize("create", [False, True])
def test_missing_experiment_is_reported_with_the_most_similar_name(*, create: bool) -> None:
    api = FakeMLflow("support-agent", "Default")
    resolver = make_resolver(api, create=create)
    resolver.creates_similar = False
    outcome = resolver.resolve(Destination(experiment="supprot-agent"), 1)
    assert isinstance(outcome, ExportOutcome)
    expected = "there is no experiment 'supprot-agent': create it, or give another. Did you mean 'support-agent'?"
    assert (outcome.code, outcome.message) == (MessageCode.EXPERIMENT_NOT_FOUND, expected)
    assert list(api.experiments) == ["support-agent", "Default"]


def test_new_experiment_is_created_even_if_similar_ones_are_not() -> None:
    resolver = make_resolver(FakeMLflow("support-agent", "Default"), create=True)
    resolver.creates_similar = False
    assert resolver.resolve(Destination(experiment="weather"), 1) == "2"
    assert resolver.resolve(Destination(service_name="supprot-agent"), 1) == "3"  # not given, so not mistyped


@pytest.mark.parametrize("content", [{}, {"experiments": None}, {"experiments": [None, 7, {"name": 7}, {}]}])
def test_odd_list_of_experiments_does_not_affect_the_creation(
    caplog: pytest.LogCaptureFixture, content: dict[str, Any]
) -> None:
    class OddMLflow(FakeMLflow):
        def send(self, request: HttpRequest) -> HttpResponse | TransportError:
            return json_response(200, content) if request.path.endswith("/search") else super().send(request)

    assert make_resolver(OddMLflow(), create=True).resolve(Destination(experiment="agents"), 1) == "0"
    assert "Did you mean" not in caplog.text


def test_resolve_after_concurrent_creation_returns_existing_id() -> None:
    api = FakeMLflow("Default")
    api.concurrently_created.add("agents")
    assert make_resolver(api, create=True).resolve(Destination(experiment="agents"), 1) == "77"


def test_resolve_with_deleted_experiment_returns_failure_with_name_and_workspace() -> None:
    api = FakeMLflow("agents")
    api.experiments["agents"] = ("0", DELETED)
    outcome = make_resolver(api, create=True).resolve(Destination("team-a", "agents"), 1)
    assert isinstance(outcome, ExportOutcome)
    assert outcome.message.startswith("the experiment 'agents' in workspace 'team-a' is deleted")


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
def test_resolve_without_experiment_uses_service_name_or_default(
    existing: tuple[str, ...], service: str | None, create: bool, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    destination = Destination().for_trace({"service.name": service} if service else {})
    resolver = make_resolver(FakeMLflow(*existing), create=create)
    for _ in range(2):
        assert resolver.resolve(destination, 1) == expected
    assert caplog.text.count("no experiment is configured") == 1


def test_resolve_without_experiment_and_default_returns_failure() -> None:
    outcome = make_resolver(FakeMLflow()).resolve(Destination("team-a", service_name="bot"), 1)
    assert isinstance(outcome, ExportOutcome)
    assert "'Default' in workspace 'team-a'" in outcome.message


def test_for_trace_with_experiment_ignores_service_name() -> None:
    destination = Destination(experiment="agents")
    assert destination.for_trace({"service.name": "bot"}) == destination
    assert Destination().for_trace({"service.name": "bot"}, Route(experiment="agents")) == destination


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
def test_for_trace_with_route_and_resource_prefers_route(
    resource: dict[str, str], route: Route | None, expected: Destination
) -> None:
    assert DEFAULT.for_trace(resource, route) == expected


def test_find_destinations_with_route_on_one_span_routes_whole_trace() -> None:
    memory = InMemorySpanExporter()
    with provider(memory) as tracer_provider:
        tracer = tracer_provider.get_tracer("tests")
        with tracer.start_as_current_span("root", attributes={"mlflow.experiment": "of the root"}):
            tracer.start_span("child", attributes={"mlflow.experiment": "of a child"}).end()
        with tracer.start_as_current_span("plain root"):
            tracer.start_span("child", attributes={"mlflow.workspace": "team-b", "mlflow.experiment_id": 8}).end()
            tracer.start_span("sibling").end()
        tracer.start_span("elsewhere").end()
    spans = list(memory.get_finished_spans())
    default = Destination(experiment="agents")
    destinations = [Destination(experiment="of the root")] * 2 + [Destination("team-b", None, "8")] * 3 + [default]
    assert find_destinations(spans, default, {}) == destinations
    assert [span.name for span in spans] == ["child", "root", "child", "sibling", "plain root", "elsewhere"]
    # Also later spans of the trace, without the span that has the route.
    assert find_destinations(spans[3:4], default, {}) == [Destination("team-b", None, "8")]


def test_headers_with_unencodable_name_quotes_it() -> None:
    assert Destination("team\n\u2603").headers("1")["x-mlflow-workspace"] == "team%5Cn%E2%98%83"


class SlowMLflow(FakeMLflow):
    """Answers for one experiment only after `resume` is set."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.has_request, self.resume = threading.Event(), threading.Event()

    def send(self, request: HttpRequest) -> HttpResponse | TransportError:
        if "slow" in request.path:
            self.has_request.set()
            assert self.resume.wait(60)
        return super().send(request)


def test_resolve_during_slow_lookup_of_another_experiment_does_not_wait() -> None:
    api = SlowMLflow("slow", "quick")
    resolver = make_resolver(api)
    waiting = threading.Thread(target=resolver.resolve, args=(Destination(experiment="slow"), 5))
    waiting.start()
    assert api.has_request.wait(30)
    assert resolver.resolve(Destination(experiment="quick"), 5) == "1"
    api.resume.set()
    waiting.join()


def test_resolve_with_many_experiments_caches_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments_module, "_MAX_CACHED", 3)
    api = FakeMLflow(*map(str, range(10)))
    resolver = make_resolver(api)
    for number in [*range(10), 9, 8, 0]:
        assert resolver.resolve(Destination(experiment=str(number)), 1) == str(number)
    assert len(api.calls) == 11
    assert len(resolver._ids) == len(resolver._lookup_locks) == 3


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
        (
            HttpResponse(200, {}, b'{"experi', is_complete=False),
            FailureKind.SERVER,
            "did not arrive completely in time",
        ),
    ],
)
def test_resolve_with_failed_lookup_returns_cause_and_message(
    answer: HttpResponse | TransportError, cause: FailureKind, words: str
) -> None:
    outcome = make_resolver(FakeMLflow(always=answer), create=True).resolve(Destination("x", "agents"), 1)
    assert isinstance(outcome, ExportOutcome)
    assert outcome.cause is cause
    assert words in outcome.message
    assert not outcome.may_have_arrived
    assert outcome.status is None
    error_type = str(answer.status) if isinstance(answer, HttpResponse) and answer.is_complete else "no_answer"
    assert outcome.error_type == error_type


@pytest.mark.parametrize("answer", [LOGIN_PAGE, NOT_FOUND, HttpResponse(405), HttpResponse(200, {}, b"ok")])
def test_resolve_with_guessed_address_of_other_server_returns_none(
    answer: HttpResponse, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeMLflow(always=answer)
    resolver = make_resolver(api, certain=False)
    for _ in range(2):
        assert resolver.resolve(Destination(experiment="agents"), 1) is None
    assert len(api.calls) == 1
    assert caplog.text.count("MLFLOW_TRACKING_URI") == 1


def test_resolve_without_rest_api_returns_none() -> None:
    assert make_resolver(None, certain=False).resolve(Destination(), 1) is None


def test_resolve_with_guessed_address_without_answer_returns_none_and_asks_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, api = 0.0, FakeMLflow("agents", always=TransportError("refused"))
    resolver = make_resolver(api, certain=False, clock=lambda: now)
    for _ in range(2):
        assert resolver.resolve(Destination(experiment="agents"), 1) is None
    assert len(api.calls) == 1
    assert not resolver.has_api()
    api.always, now = None, 60.0
    assert resolver.has_api()
    assert resolver.resolve(Destination(experiment="agents"), 1) == "0"
    assert not caplog.records


def test_resolve_after_mlflow_missed_the_experiment_asks_at_once() -> None:
    api = FakeMLflow("agents", always=TransportError("refused"))
    resolver, destination = make_resolver(api, certain=False, clock=lambda: 0.0), Destination(experiment="agents")
    assert resolver.resolve(destination, 1) is None
    api.always = None
    resolver.invalidate(destination)
    assert resolver.resolve(destination, 1) == "0"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (HttpResponse(503), FailureKind.SERVER),
        (HttpResponse(401), FailureKind.CREDENTIALS),
        (TransportError("no token", is_credential_error=True), FailureKind.CREDENTIALS),
    ],
)
def test_resolve_with_unavailable_guessed_server_returns_retryable_failure(
    answer: HttpResponse | TransportError, cause: FailureKind
) -> None:
    outcome = make_resolver(FakeMLflow(always=answer), certain=False).resolve(Destination(), 1)
    assert isinstance(outcome, ExportOutcome)
    assert outcome.cause is cause


def test_headers_with_empty_values_omits_them() -> None:
    assert Destination(workspace="", run_id="").headers("") == {}
    assert Destination("w", run_id="r").headers("1") == {
        "x-mlflow-experiment-id": "1",
        "x-mlflow-workspace": "w",
        "x-mlflow-run-id": "r",
    }
