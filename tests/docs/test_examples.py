"""The examples run against a real MLflow server and store the traces that their texts describe."""

import http.client
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.apps import free_port, run_server
from support.environments import ROOT
from support.mlflow_server import MLflowServer

EXAMPLES = ROOT / "examples"


def run_example(server: MLflowServer, *command: str, **variables: str) -> str:
    """Run an example like a user does and return its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_OTLP_AUTO_INSTRUMENT"}
    done = subprocess.run(
        command,
        env={**environment, "PATH": path, "MLFLOW_TRACKING_URI": server.uri, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def search_traces(server: MLflowServer, experiment: str) -> list[dict[str, Any]]:
    record = server.experiment(experiment)
    assert record is not None, f"there is no experiment {experiment}"
    return server.search_traces(record["experiment_id"])


def wait_for_span_names(server: MLflowServer, info: dict[str, Any], *, min_count: int = 1) -> Sequence[str]:
    trace = server.wait_for_trace(info["trace_id"], until=lambda record: len(record["spans"]) >= min_count)
    return sorted(span["name"] for span in trace["spans"])


def test_chat_sessions_example_stores_sessions_and_users(mlflow_server: MLflowServer) -> None:
    output = run_example(mlflow_server, sys.executable, str(EXAMPLES / "chat_sessions.py"))
    assert "delivered=6" in output
    infos = search_traces(mlflow_server, "chat-sessions")
    assert sorted(info["trace_metadata"]["mlflow.trace.session"] for info in infos) == ["chat-ada"] * 2 + ["chat-grace"]
    assert {info["trace_metadata"]["mlflow.trace.user"] for info in infos} == {"ada", "grace"}
    assert all(info["tags"]["release"] == "2.3.1" for info in infos)
    assert all("total_tokens" in info["trace_metadata"]["mlflow.trace.tokenUsage"] for info in infos)
    assert wait_for_span_names(mlflow_server, infos[0]) == ["reply", "turn"]


def test_multi_tenant_fastapi_example_stores_traces_by_tenant(mlflow_server: MLflowServer) -> None:
    port = free_port()
    variables = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    app = ["uvicorn", "multi_tenant_fastapi:app", "--app-dir", str(EXAMPLES), "--port", str(port)]
    with run_server(app, variables, port):
        for tenant in ("acme", "initech", "acme"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
            connection.request("GET", "/ask?question=rain", headers={"x-tenant": tenant, "x-session": f"s-{tenant}"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'"rain? rain in Lyon"')
            connection.close()
    for tenant, count in (("acme", 2), ("initech", 1)):
        infos = search_traces(mlflow_server, f"tenant-{tenant}")
        assert [info["tags"]["tenant"] for info in infos] == [tenant] * count
        assert {info["trace_metadata"]["mlflow.trace.session"] for info in infos} == {f"s-{tenant}"}
        # FastAPI creates spans around those of the agent.
        assert {"answer", "get_weather"} < set(wait_for_span_names(mlflow_server, infos[0]))


def test_zero_code_example_stores_agent_trace(mlflow_server: MLflowServer) -> None:
    command = ("mlflow-otlp", "run", "python", str(EXAMPLES / "zero_code.py"))
    assert run_example(mlflow_server, *command, MLFLOW_EXPERIMENT_NAME="zero-code-example") == "Take an umbrella.\n"
    (info,) = search_traces(mlflow_server, "zero-code-example")
    assert info["tags"]["mlflow.traceName"] == "weather-agent"
    assert "get_weather" in wait_for_span_names(mlflow_server, info)


def test_mlflow_sdk_example_stores_spans_of_both_in_one_trace(mlflow_server: MLflowServer) -> None:
    output = run_example(mlflow_server, sys.executable, str(EXAMPLES / "mlflow_sdk.py"))
    assert "delivered=3" in output
    (info,) = search_traces(mlflow_server, "side-by-side")
    assert info["trace_metadata"]["mlflow.trace.session"] == "s-42"
    trace = mlflow_server.trace(info["trace_id"])
    assert trace is not None
    ids = {span["span_id"]: span["name"] for span in trace["spans"]}
    assert {span["name"]: ids.get(span.get("parent_span_id", "")) for span in trace["spans"]} == {
        "answer": None,
        "plan": "answer",
        "get_weather": "plan",
    }
    types = {
        span["name"]: [item["value"]["string_value"] for item in span["attributes"] if item["key"] == "mlflow.spanType"]
        for span in trace["spans"]
    }
    assert types == {"answer": ["AGENT"], "plan": ["CHAIN"], "get_weather": ["TOOL"]}


def test_examples_readme_links_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    links = [path.name for path in EXAMPLES.glob("*.py")]
    links += [f"{path.parent.name}/README.md" for path in EXAMPLES.glob("*/README.md")]
    assert [link for link in links if f"({link})" not in page] == []
