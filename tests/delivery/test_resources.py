"""Towards a Collector, resources say where traces go; towards MLflow they are left as they are."""

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, trace_context
from support.scripted_server import ScriptedServer

Came = tuple[dict[str, str], dict[str, str]]


def sent(server: ScriptedServer, resource: dict[str, Any], **arguments: Any) -> list[Came]:
    """Resource attributes and headers of what came."""
    provider = TracerProvider(resource=Resource(resource), shutdown_on_exit=False)
    provider.add_span_processor(MLflowSpanProcessor(MLflowSpanExporter(**arguments)))
    tracer = provider.get_tracer("tests")
    tracer.start_span("by default").end()
    with trace_context(workspace="team-b", experiment_id=9):
        tracer.start_span("elsewhere").end()
    provider.shutdown()
    found = [
        (
            {each.key: each.value.string_value for each in came.resource.attributes},
            {name: value for name, value in request.headers.items() if name.startswith("x-mlflow-")},
        )
        for request in server.to("/v1/traces")
        for came in request.export_request().resource_spans
    ]
    return sorted(found, key=lambda each: each[1].get("x-mlflow-workspace", ""))


def test_towards_a_collector_headers_and_attributes_say_the_same(scripted_server: ScriptedServer) -> None:
    chosen: dict[str, Any] = {"workspace": "team-a", "experiment_id": 7}
    found = sent(scripted_server, {"service.name": "bot"}, endpoint=scripted_server.traces_url, **chosen)
    assert found == [
        (
            {"service.name": "bot", "mlflow.workspace": "team-a", "mlflow.experiment_id": "7"},
            {"x-mlflow-workspace": "team-a", "x-mlflow-experiment-id": "7"},
        ),
        (
            {"service.name": "bot", "mlflow.workspace": "team-b", "mlflow.experiment_id": "9"},
            {"x-mlflow-workspace": "team-b", "x-mlflow-experiment-id": "9"},
        ),
    ]


def test_what_a_trace_says_beats_its_resource(scripted_server: ScriptedServer) -> None:
    resource = {"mlflow.workspace": "team-a", "mlflow.experiment_id": "7", "service.name": "bot"}
    found = sent(scripted_server, resource, endpoint=scripted_server.traces_url)
    assert [attributes["mlflow.workspace"] for attributes, _ in found] == ["team-a", "team-b"]
    assert all(len(attributes) == 3 for attributes, _ in found)


@pytest.mark.parametrize("name", ["endpoint", "tracking_uri"])
def test_nothing_is_added_where_nothing_was_said_or_mlflow_itself_reads_it(
    name: str, scripted_server: ScriptedServer
) -> None:
    chosen: dict[str, Any] = {"endpoint": scripted_server.traces_url}
    if name == "tracking_uri":
        chosen = {"tracking_uri": scripted_server.url, "workspace": "team-a", "experiment_id": 7}
    found = [attributes for attributes, _ in sent(scripted_server, {"service.name": "bot"}, **chosen)]
    assert found[0] == {"service.name": "bot"}
    assert (len(found[1]) == 1) == (name == "tracking_uri")
