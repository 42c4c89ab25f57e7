"""Static prefixes: below or outside of which path a server has its OTLP endpoint and its REST API."""

import json
import logging
from collections.abc import Iterator

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.config.urls import TRACES_PATH
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.scripted_server import ACCEPTED, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans

PREFIX = "/mlf"
JSON = {"Content-Type": "application/json"}
PAGE = Answer(404, headers={"Content-Type": "text/html"}, body=b"<!doctype html><title>404 Not Found</title>")
EXPERIMENT = Answer(headers=JSON, body=b'{"experiment":{"experiment_id":"7","lifecycle_stage":"active"}}')
BY_NAME = "/api/2.0/mlflow/experiments/get-by-name"


def version(text: str) -> Answer:
    return Answer(headers={"Content-Type": "text/html"}, body=text.encode())


def answer_not_found(server: ScriptedServer, *paths: str) -> None:
    for path in paths:
        server.answer(path=path, then=PAGE)


def export_spans(server: ScriptedServer, **arguments: str) -> MLflowSpanExporter:
    uri = server.url + PREFIX
    exporter = MLflowSpanExporter(tracking_uri=uri, timeout=5, **arguments)  # type: ignore[arg-type]
    exporter.export(make_spans("first"))
    exporter.export(make_spans("second"))
    exporter.shutdown(100)
    return exporter


def count_posts(server: ScriptedServer) -> dict[str, int]:
    paths = (TRACES_PATH, PREFIX + TRACES_PATH)
    return {path: len(server.to(path)) for path in paths}


def test_export_to_older_server_sends_traces_to_root(
    scripted_server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer_not_found(scripted_server, PREFIX + TRACES_PATH)
    scripted_server.answer(path=PREFIX + "/version", then=version("3.13.0"))
    scripted_server.answer(then=ACCEPTED)
    assert export_spans(scripted_server, experiment_id="1").stats().delivered == 2
    # One request below the prefix; the result is remembered.
    assert count_posts(scripted_server) == {PREFIX + TRACES_PATH: 1, TRACES_PATH: 2}
    assert "OTLP endpoint at http://127.0.0.1" in caplog.text


@pytest.mark.parametrize("version_answer", [version("3.16.0"), PAGE, Answer(401), Answer(503), version("welcome")])
def test_export_with_unknown_version_does_not_send_to_root(
    version_answer: Answer, scripted_server: ScriptedServer
) -> None:
    answer_not_found(scripted_server, PREFIX + TRACES_PATH)
    scripted_server.answer(path=PREFIX + "/version", then=version_answer)
    scripted_server.answer(path="/version", then=PAGE)
    scripted_server.answer(then=ACCEPTED)
    assert export_spans(scripted_server, experiment_id="1").stats().delivered == 0
    assert count_posts(scripted_server)[TRACES_PATH] == 0


def test_export_after_server_update_follows_moved_endpoint(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(PAGE, path=PREFIX + TRACES_PATH, then=ACCEPTED)
    scripted_server.answer(ACCEPTED, then=PAGE)
    scripted_server.answer(version("3.15.0"), path=PREFIX + "/version", then=version("3.16.0"))
    assert export_spans(scripted_server, experiment_id="1").stats().delivered == 2
    assert count_posts(scripted_server) == {PREFIX + TRACES_PATH: 2, TRACES_PATH: 2}


def test_export_with_rest_api_at_root_finds_experiment(scripted_server: ScriptedServer) -> None:
    answer_not_found(scripted_server, PREFIX + BY_NAME, PREFIX + TRACES_PATH, PREFIX + "/version")
    scripted_server.answer(path=BY_NAME, then=EXPERIMENT)
    scripted_server.answer(path="/version", then=version("3.6.0"))
    scripted_server.answer(then=ACCEPTED)
    assert export_spans(scripted_server, experiment="agents").stats().delivered == 2
    assert [request.headers["x-mlflow-experiment-id"] for request in scripted_server.to(TRACES_PATH)] == ["7", "7"]


def test_export_with_page_at_root_ignores_it(scripted_server: ScriptedServer) -> None:
    answer_not_found(scripted_server, PREFIX + BY_NAME)
    scripted_server.answer(path=BY_NAME, then=Answer(headers={"Content-Type": "text/html"}, body=b"<html>Hello</html>"))
    assert export_spans(scripted_server, experiment="agents").stats().delivered == 0
    assert count_posts(scripted_server) == {PREFIX + TRACES_PATH: 0, TRACES_PATH: 0}


def test_export_with_missing_experiment_does_not_ask_root(scripted_server: ScriptedServer) -> None:
    def missing(_: RecordedRequest) -> Answer:
        body = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment"}).encode()
        return Answer(404, headers=JSON, body=body)

    scripted_server.answer_with(PREFIX + BY_NAME, missing)
    assert export_spans(scripted_server, experiment="agents").stats().delivered == 0
    assert scripted_server.to(BY_NAME) == []


@pytest.mark.matrix
@pytest.mark.parametrize("release", ["3.6.0", "3.8.1", "3.10.1", "3.13.0", "3.17.2", "3.18.0"])
@pytest.mark.parametrize("end", ["", "/", TRACES_PATH])
def test_export_to_real_server_with_prefix_is_delivered(
    release: str, end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = _start_prefixed_server(release, tmp_path_factory)
    exporter = MLflowSpanExporter(
        timeout=60, tracking_uri=server.uri + PREFIX + end, experiment="agents", create_experiment=True
    )
    exporter.export(make_spans("first"))
    assert exporter.stats().delivered == 1
    exporter.shutdown(1000)


_SERVERS: dict[str, MLflowServer] = {}


def _start_prefixed_server(release: str, folders: pytest.TempPathFactory) -> MLflowServer:
    if release not in _SERVERS:
        folder = folders.mktemp(f"prefixed-{release}")
        extra = ["--static-prefix", PREFIX]
        _SERVERS[release] = MLflowServer.start(folder, python=mlflow_python(release), extra=extra)
    return _SERVERS[release]


@pytest.fixture(scope="module", autouse=True)
def _stop() -> Iterator[None]:
    yield
    for server in _SERVERS.values():
        server.stop()
    _SERVERS.clear()
