"""Lookup of the experiments of traces: what an answer means, and how often the server is asked."""

import json
from collections.abc import Callable

import pytest

from mlflow_otlp_exporter._internal.mlflow_api import trace_location
from mlflow_otlp_exporter._internal.mlflow_api.trace_location import TraceLocator
from mlflow_otlp_exporter._internal.transport.http_types import HttpRequest, HttpResponse, TransportError

JSON = {"content-type": "application/json"}
Reply = HttpResponse | TransportError


def name_of(trace_id: int) -> str:
    return f"tr-{trace_id:032x}"


def info_of(trace_id: int, experiment_id: object) -> dict[str, object]:
    location = {"mlflow_experiment": {"experiment_id": experiment_id}}
    return {"trace_id": name_of(trace_id), "trace_location": location}


def json_response(status: int, content: object) -> HttpResponse:
    return HttpResponse(status, JSON, json.dumps(content).encode())


def missing_response(trace_id: int) -> HttpResponse:
    message = f"Trace with ID '{name_of(trace_id)}' not found."
    return json_response(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": message})


class Server:
    """Answers with a function of the request, and records the requests."""

    def __init__(self, answer: Callable[[HttpRequest], Reply]) -> None:
        self.answer = answer
        self.requests: list[HttpRequest] = []

    def send(self, request: HttpRequest) -> Reply:
        self.requests.append(request)
        return self.answer(request)


NO_INFOS: list[object] = [None, 1, [], {}, {"trace_info": []}]
UNUSABLE: list[Reply] = [
    TransportError("away"),
    HttpResponse(503),
    HttpResponse(401, JSON, b"{}"),
    HttpResponse(404, {"content-type": "text/html"}, b"<html>no such page</html>"),
    HttpResponse(200),
    HttpResponse(200, {"content-type": "text/html"}, b"<html>log in</html>"),
    HttpResponse(200, JSON, b"[" * 5000),
    HttpResponse(200, JSON, b'{"trace": {"trace_info": 1}}', is_complete=False),
    *(json_response(200, {"trace": content}) for content in NO_INFOS),
    *(
        json_response(200, {"trace": {"trace_info": info}})
        for info in (
            {"trace_id": name_of(5)},
            {"trace_id": name_of(5), "trace_location": 7},
            {"trace_id": name_of(5), "trace_location": {"mlflow_experiment": None}},
            info_of(5, None),
            info_of(5, "7\r\nx-admin: 1"),
            info_of(5, "7" * 200),
            info_of(6, "7"),
        )
    ),
]


@pytest.mark.parametrize("response", UNUSABLE, ids=str)
def test_look_up_with_unusable_response_names_no_experiment(response: Reply) -> None:
    server = Server(lambda _: response)
    located = TraceLocator(server).look_up([5], None, 1.0)
    assert not isinstance(located[5], str)
    assert len(server.requests) == 1


@pytest.mark.parametrize("response", UNUSABLE, ids=str)
def test_find_missing_with_unusable_response_finds_none(response: Reply) -> None:
    locator = TraceLocator(Server(lambda _: response), checks_workspaces=True)
    assert locator.find_missing({5}, "team-a", 1.0) == set()


def test_look_up_of_many_with_hostile_infos_ignores_them() -> None:
    infos: list[object] = [1, None, {}, {"trace_id": []}, info_of(9, "9"), info_of(6, ["7"]), info_of(5, "7")]

    def answer(request: HttpRequest) -> Reply:
        return json_response(200, {"trace_infos": infos}) if request.method == "POST" else missing_response(6)

    server = Server(answer)
    assert TraceLocator(server).look_up([5, 6], "team-a", 1.0)[5] == "7"
    assert [dict(request.headers)["x-mlflow-workspace"] for request in server.requests] == ["team-a"]


def test_look_up_with_unavailable_server_asks_for_one_trace_only() -> None:
    server = Server(lambda _: TransportError("away"))
    located = TraceLocator(server).look_up(list(range(1, 50)), None, 1.0)
    assert list(located) == [1]
    assert len(server.requests) == 2


def test_look_up_without_rest_api_says_so() -> None:
    located = TraceLocator(None).look_up([5], None, 1.0)
    assert not isinstance(located[5], str)
    assert "no MLflow server" in located[5].message


def test_experiment_of_forgets_after_some_time_and_keeps_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_location, "_MAX_TRACES", 3)
    now = [0.0]
    locator = TraceLocator(None, clock=lambda: now[0])
    for trace_id in range(5):
        locator.remember(None, trace_id, "7")
    assert [locator.experiment_of(None, trace_id) for trace_id in range(5)] == [None, None, "7", "7", "7"]
    assert locator.experiment_of("team-a", 4) is None
    locator.forget(None, {4})
    assert locator.experiment_of(None, 4) is None
    now[0] = 601.0
    assert locator.experiment_of(None, 3) is None


def test_find_missing_returns_traces_that_mlflow_does_not_have() -> None:
    def answer(request: HttpRequest) -> Reply:
        if request.method == "POST":
            return json_response(200, {"trace_infos": [info_of(5, "7")]})
        return missing_response(int(request.path.rpartition("tr-")[2], 16))

    server = Server(answer)
    locator = TraceLocator(server, checks_workspaces=True)
    assert locator.find_missing({5, 6}, "team-a", 1.0) == {6}
    assert locator.find_missing({5}, "team-a", 1.0) == set()
    assert len(server.requests) == 2
