"""Where a trace goes whose headers, resource and gateway name workspace, experiment and run, or some of them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.gateway.intake import merge_routes, read_header_route
from mlflow_otlp_exporter._internal.model.destination import Destination, read_route
from support.gateway import GatewayProcess
from support.scripted_server import Answer, RecordedRequest, ScriptedServer

A, B = {"workspace": "team-a"}, {"workspace": "team-b"}
NAME, ID, RUN = {"experiment": "one"}, {"experiment_id": "1"}, {"run_id": "r1"}
OTHER_NAME, OTHER_ID, OTHER_RUN = {"experiment": "two"}, {"experiment_id": "2"}, {"run_id": "r2"}
_HEADERS = {
    "workspace": "x-mlflow-workspace",
    "experiment": "x-mlflow-experiment",
    "experiment_id": "x-mlflow-experiment-id",
    "run_id": "x-mlflow-run-id",
}
Parts = Mapping[str, str]

# Headers, resource, settings of the gateway; the destination and the run.
CASES: list[tuple[Parts, Parts, Parts, str, str | None]] = [
    ({}, {}, {}, "/service", None),
    (A, {}, {}, "team-a/service", None),
    ({}, A, {}, "team-a/service", None),
    ({}, {}, A, "team-a/service", None),
    # Each part from the first source that names it.
    (A, NAME, {}, "team-a/one", None),
    (NAME, A, {}, "team-a/one", None),
    (A, {}, NAME, "team-a/one", None),
    ({}, A, NAME, "team-a/one", None),
    (NAME, {}, A, "team-a/one", None),
    (A, NAME, {**B, **OTHER_NAME, **OTHER_RUN}, "team-a/one", None),
    ({**A, **NAME}, {**B, **OTHER_NAME}, {}, "team-a/one", None),
    (A, {**B, **OTHER_NAME}, {}, "team-a/two", None),
    (NAME, {**B, **OTHER_NAME}, {}, "team-b/one", None),
    (NAME, OTHER_ID, {}, "/one", None),
    (ID, OTHER_NAME, {}, "/1", None),
    (A, {**A, **ID, **RUN}, {}, "team-a/1", "r1"),
    # A source of the client that names no workspace means that of the client.
    (A, ID, {}, "team-a/1", None),
    (A, {**ID, **RUN}, {}, "team-a/1", "r1"),
    (ID, A, {}, "team-a/1", None),
    (ID, {}, A, "team-a/1", None),
    ({}, ID, A, "team-a/1", None),
    # An id belongs to the workspace of its source, or to none.
    (A, {**B, **OTHER_ID}, {}, "team-a/service", None),
    (A, {**B, **OTHER_ID}, NAME, "team-a/one", None),
    (A, {}, ID, "team-a/service", None),
    ({}, A, ID, "team-a/service", None),
    (A, {}, {**B, **ID, **RUN}, "team-a/service", None),
    (A, {}, {**A, **ID, **RUN}, "team-a/1", "r1"),
    # A run belongs to the experiment of its source.
    (RUN, {**A, **ID}, {}, "team-a/1", "r1"),
    (ID, {**A, **OTHER_ID, **OTHER_RUN}, {}, "team-a/1", None),
    (NAME, OTHER_RUN, {}, "/one", None),
    ({**A, **NAME}, {}, {**A, **OTHER_NAME, **OTHER_RUN}, "team-a/one", None),
    (RUN, OTHER_RUN, {**A, **ID}, "team-a/1", "r1"),
]


@pytest.mark.parametrize(("headers", "resource", "settings", "label", "run_id"), CASES)
def test_route_takes_each_part_from_the_first_source_that_names_it(
    headers: Parts, resource: Parts, settings: Parts, label: str, run_id: str | None
) -> None:
    attributes = {f"mlflow.{name}": value for name, value in resource.items()}
    route = merge_routes(
        read_header_route({_HEADERS[name]: value for name, value in headers.items()}), read_route(attributes)
    )
    destination = Destination(**settings).for_trace({"service.name": "service"}, route)
    assert (destination.label, destination.run_id) == (label, run_id)


APP = """
import sys
from mlflow_otlp_exporter import configure, traced

telemetry = configure()

@traced
def work():
    pass

work()
assert telemetry.flush(30)
"""


def look_up(request: RecordedRequest) -> Answer:
    experiment = {"experiment_id": "77", "name": request.query.partition("=")[2], "lifecycle_stage": "active"}
    return Answer(body=json.dumps({"experiment": experiment}).encode())


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({"MLFLOW_EXPERIMENT_NAME": "support-agent"}, 1),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment=support-agent"}, 0),
    ],
)
def test_library_without_tracking_uri_reaches_the_named_experiment_through_a_gateway(
    scripted_server: ScriptedServer, tmp_path: Path, variables: Mapping[str, str], lines: int
) -> None:
    """One line says that the app itself cannot look the experiment up, unless a header names it."""
    scripted_server.answer_with("/api/2.0/mlflow/experiments/get-by-name", look_up)
    file = tmp_path / "tokens.json"
    file.write_text('{"secret": ["team-a/support-agent"]}')
    arguments = ["--tokens-file", str(file)]
    with GatewayProcess(tmp_path, scripted_server.url, arguments, {"MLFLOW_OTLP_LINGER": "0.1"}) as gateway:
        headers = ["authorization=Bearer%20secret", *variables.get("OTEL_EXPORTER_OTLP_HEADERS", "").split()]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{gateway.port}/v1/traces",
            "MLFLOW_WORKSPACE": "team-a",
            "OTEL_SERVICE_NAME": "svc",
            **variables,
            "OTEL_EXPORTER_OTLP_HEADERS": ",".join(headers),
        }
        done = subprocess.run(
            [sys.executable, "-c", APP], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("[MLO-414]") == lines
        (request,) = scripted_server.wait_for(1)
    assert (request.headers["x-mlflow-workspace"], request.headers["x-mlflow-experiment-id"]) == ("team-a", "77")
    lookups = scripted_server.to("/api/2.0/mlflow/experiments/get-by-name")
    assert {request.query for request in lookups} == {"experiment_name=support-agent"}
