"""Guides: the apps that their pages show answer requests, and their traces have session, user and tree."""

from typing import Any

import django
import pytest
from django.conf import settings
from django.test import RequestFactory
from fastapi.testclient import TestClient

from mlflow_otlp_exporter.testing import Recording, recording
from support.documents import blocks
from support.environments import ROOT

_QUERY = {"question": "Will it rain?", "session": "s-42", "user": "ada"}


def run_page(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(ROOT / "docs" / f"{name}.md", "python"):
        exec(compile(block.code, name, "exec", dont_inherit=True), names)
    return names


@pytest.fixture(scope="module", autouse=True)
def django_settings() -> None:
    settings.configure(ALLOWED_HOSTS=["*"])
    django.setup()


def check_agent_trace(recorded: Recording, name: str) -> None:
    trace = recorded.trace
    agent = trace.span(name)
    assert (trace.session, trace.user) == ("s-42", "ada")
    assert agent.inputs == {"question": "Will it rain?"}
    assert agent.outputs == "Take an umbrella."
    # FastAPI has spans of its own above the agent's; its root then has the answer as a chat.
    assert "Take an umbrella." in str(trace.root.outputs)


def test_fastapi_app_of_web_apps_page_traces_request() -> None:
    with recording() as recorded:
        client = TestClient(run_page("web-apps")["app"])
        assert client.get("/ask", params=_QUERY).json() == "Take an umbrella."
        check_agent_trace(recorded, "answer")


def test_flask_app_of_web_apps_page_traces_request() -> None:
    with recording() as recorded:
        client = run_page("web-apps")["flask_app"].test_client()
        assert client.get("/ask", query_string=_QUERY).text == "Take an umbrella."
        check_agent_trace(recorded, "answer_in_flask")


def test_django_view_of_web_apps_page_traces_request() -> None:
    with recording() as recorded:
        view = run_page("web-apps")["ask_in_django"]
        assert view(RequestFactory().get("/ask", _QUERY)).content == b"Take an umbrella."
        check_agent_trace(recorded, "answer_in_django")


def test_blocks_of_workers_page_deliver_report() -> None:
    with recording() as recorded:
        run_page("workers")
        assert recorded.trace.tags["run"] == "2026-11-29"
        assert recorded.trace.root.outputs == "A report about umbrellas."


def test_stream_of_streaming_page_is_output_of_its_span() -> None:
    with recording() as recorded:
        page = run_page("streaming")
        assert recorded.trace.root.outputs == "Take an umbrella."
        recorded.clear()
        response = TestClient(page["app"]).get("/ask", params=_QUERY)
        assert response.text == "Take an umbrella."
        assert response.headers["x-trace-id"] == f"tr-{recorded.trace.trace_id}"
        check_agent_trace(recorded, "answer_as_stream")


def test_services_of_distributed_traces_page_share_a_trace() -> None:
    with recording() as recorded:
        run_page("distributed-traces")
        assert recorded.trace.tree == ["answer", "  search"]


def test_tenants_of_multi_tenant_page_have_destinations() -> None:
    with recording() as recorded:
        run_page("multi-tenant")
        assert {span.workspace for span in recorded.spans} == {"team-a", "team-b"}
        assert {span.experiment for span in recorded.spans} == {"support"}


def test_feedback_page_sends_assessments_and_answers_a_wrong_id_with_400() -> None:
    with recording() as recorded:
        client = TestClient(run_page("feedback")["app"])
        trace_id = recorded.trace.trace_id
        right = {"trace_id": f"tr-{trace_id.removeprefix('tr-')}", "is_helpful": "true"}
        assert client.post("/feedback", params=right).status_code == 200
        assert client.post("/feedback", params={**right, "trace_id": "wrong"}).status_code == 400
        names = [assessment["assessment_name"] for assessment in recorded.assessments]
    assert sorted(names) == ["expected_response", "helpful", "helpful", "short"]
