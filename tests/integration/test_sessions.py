"""Which session a trace has: that of `update_trace()`, else of `trace_context()`, else the framework's own."""

import json
import os
import subprocess
import sys

import pytest

from mlflow_otlp_exporter._internal.cli.main import main
from support.mlflow_server import MLflowServer

APP = """
import json
from contextlib import nullcontext
from langgraph.graph import END, START, MessagesState, StateGraph
from mlflow_otlp_exporter import configure, current_trace_id, shutdown, trace_context, traced, update_trace

configure()
ids = []


@traced
def look_up():
    return "rain"


def build(has_helper, session):
    def answer(state):
        if has_helper:
            look_up()
        if session:
            update_trace(session=session)
        ids.append(current_trace_id())
        return {"messages": [{"role": "assistant", "content": "rain"}]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").add_edge("answer", END)
    return graph.compile(name="agent")


traces = {}
for has_context in (False, True):
    for has_thread in (False, True):
        for is_updated in (False, True):
            for has_helper in (False, True):
                for has_root in (False, True):
                    graph = build(has_helper, "updated" if is_updated else None)
                    config = {"configurable": {"thread_id": "thread"}} if has_thread else None
                    run = traced(graph.invoke) if has_root else graph.invoke
                    with trace_context(session="context") if has_context else nullcontext():
                        run({"messages": [{"role": "user", "content": "Lyon?"}]}, config)
                    order = {"updated": is_updated, "context": has_context, "thread": has_thread}
                    session = next((name for name, is_set in order.items() if is_set), None)
                    label = f"helper {has_helper}, root {has_root}, " + ", ".join(n for n in order if order[n])
                    traces[label] = ids.pop(), session
result = shutdown()
assert result.delivered and not result.spooled, result
print(json.dumps(traces))
"""


@pytest.fixture(scope="module")
def traces(mlflow_server: MLflowServer) -> dict[str, tuple[str, str | None]]:
    variables = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_EXPERIMENT_NAME": "sessions"}
    command = [sys.executable, "-W", "ignore", "-c", APP]
    done = subprocess.run(
        command, check=False, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_session_of_a_langgraph_trace_is_the_most_explicit_one_whatever_helpers_are_traced(
    traces: dict[str, tuple[str, str | None]], mlflow_server: MLflowServer
) -> None:
    assert len(traces) == 32
    sessions = {}
    for label, (trace_id, _) in traces.items():
        trace = mlflow_server.trace(trace_id.removeprefix("tr-"))
        assert trace is not None
        sessions[label] = trace["trace_info"].get("trace_metadata", {}).get("mlflow.trace.session")
    assert sessions == {label: session for label, (_, session) in traces.items()}


def test_show_prints_the_session_that_mlflow_has(
    traces: dict[str, tuple[str, str | None]],
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    trace_id, session = traces["helper True, root False, context, thread"]
    assert main(["show", trace_id]) == 0
    assert f"session {session}" in capsys.readouterr().out
