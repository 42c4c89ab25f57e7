"""One trace of components in Java, JavaScript and Python, through OpenTelemetry's Collector and the gateway."""

import base64
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.chaos import query_sqlite
from support.collector import Collector
from support.gateway import GatewayProcess
from support.mlflow_server import MLflowServer
from support.needs import executable
from support.openai_stub import CITIES, INPUT, OUTPUT, OpenAIStub
from support.polyglot import SOURCES, install_agent, install_java_libraries
from support.traces import wait_until

pytestmark = [pytest.mark.matrix, *(pytest.mark.needs(program) for program in ("go", "java", "mvn", "node", "npm"))]
QUESTION = "What is the weather in Paris and London?"
MODEL_CALLS = 2
TREE = {
    "ask": None,
    "POST": "ask",
    "agent": "POST",
    "OpenAI Chat Completions": "agent",
    "get_weather": "agent",
}


@contextmanager
def running(command: Sequence[str], cwd: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a component; yield it with the port that is its first line."""
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def read_attributes(server: MLflowServer, experiment: str) -> list[dict[str, Any]]:
    """Return MLflow's attributes of each stored span."""
    query = query_sqlite(server.log.parent / "mlflow.db")
    contents = [json.loads(row[0]) for row in query(f"SELECT content FROM spans WHERE experiment_id = {experiment}")]
    return [
        {name: json.loads(value) for name, value in content["attributes"].items() if name.startswith("mlflow.")}
        for content in contents
    ]


def test_trace_of_java_javascript_and_python_components_is_complete(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    jars, agent_folder = install_java_libraries(), install_agent()
    experiment = mlflow_server.create_experiment("polyglot")
    stub = OpenAIStub()
    with ExitStack() as stack:
        stack.callback(stub.stop)
        gateway = stack.enter_context(GatewayProcess(tmp_path / "gateway", mlflow_server.uri))
        resolver = {"dns": None, "static": {"hostnames": [f"127.0.0.1:{gateway.grpc_port}"]}}
        changes: dict[str, Any] = {"exporters": {"load_balancing/mlflow": {"resolver": resolver}}}
        variables = {"GATEWAY_HOST": "localhost", "GATEWAY_INSECURE": "true"}
        collector = stack.enter_context(Collector(tmp_path / "collector", "gateway", variables, changes))
        tool, tool_port = stack.enter_context(
            running([sys.executable, "tool.py", collector.http, experiment], cwd=SOURCES)
        )
        node = [str(executable("node")), "agent.mjs", collector.http, experiment]
        agent, agent_port = stack.enter_context(
            running([*node, stub.url, f"http://127.0.0.1:{tool_port}"], cwd=agent_folder)
        )
        assert tool.stdin is not None
        tool.stdin.write("request\n" * len(CITIES))
        front = [str(executable("java")), "-cp", f"{jars}/*", str(SOURCES / "Front.java"), collector.http, experiment]
        answer = subprocess.run(
            [*front, f"http://127.0.0.1:{agent_port}", QUESTION],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        tool.stdin.close()
        agent.terminate()
        assert [tool.wait(60), agent.wait(60)] == [0, 0]
        wait_until(lambda: len(mlflow_server.search_traces(experiment)) == 1, 60)
        (info,) = mlflow_server.search_traces(experiment)
        trace_id = info["trace_id"].removeprefix("tr-")
        expected_count = 3 + MODEL_CALLS + len(CITIES)
        wait_until(lambda: len((mlflow_server.trace(trace_id) or {"spans": ()})["spans"]) == expected_count, 60)
        assert gateway.stop() == 0
    trace = mlflow_server.trace(trace_id)
    assert trace is not None
    names = {base64.b64decode(span["span_id"]): span["name"] for span in trace["spans"]}
    parents = {(span["name"], names.get(base64.b64decode(span.get("parent_span_id", "")))) for span in trace["spans"]}
    assert parents == set(TREE.items())
    info = trace["trace_info"]
    assert (info["state"], info["tags"]["mlflow.traceName"]) == ("OK", "ask")
    assert (info["request_preview"], info["response_preview"]) == (QUESTION, answer.strip())
    usage = json.loads(info["trace_metadata"]["mlflow.trace.tokenUsage"])
    assert (usage["input_tokens"], usage["output_tokens"]) == (MODEL_CALLS * INPUT, MODEL_CALLS * OUTPUT)
    assert info["trace_metadata"]["mlflow.trace.session"] == "session-1"
    attributes = read_attributes(mlflow_server, experiment)
    types = Counter(values.get("mlflow.spanType") for values in attributes)
    assert {kind: types[kind] for kind in ("AGENT", "CHAT_MODEL", "TOOL")} == {
        "AGENT": 1,
        "CHAT_MODEL": MODEL_CALLS,
        "TOOL": len(CITIES),
    }
    calls = [values for values in attributes if values.get("mlflow.spanType") == "CHAT_MODEL"]
    chats = [values["mlflow.spanInputs"]["messages"] for values in calls]
    assert sorted([message["role"] for message in chat] for chat in chats) == [
        ["user"],
        ["user", "assistant", "tool", "tool"],
    ]
    for values in calls:
        assert values["mlflow.spanOutputs"]["choices"][0]["message"]["role"] == "assistant"
    tools = [values["mlflow.chat.tools"] for values in attributes if "mlflow.chat.tools" in values]
    assert [tool["function"]["name"] for chat_tools in tools for tool in chat_tools] == ["get_weather"] * MODEL_CALLS
