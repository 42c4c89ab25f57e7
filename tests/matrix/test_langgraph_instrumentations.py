"""All instrumentations of LangChain, OpenAI, Anthropic and LiteLLM in one environment: each model call counts once."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.environments import ROOT, environment, read_lock
from support.mlflow_server import MLflowServer
from support.openai_stub import CACHED, INPUT, MODEL, OUTPUT, OpenAIStub

pytestmark = pytest.mark.matrix

RUN_SECONDS = 300
# US dollars per token, in MLflow's price catalog.
INPUT_PRICE, CACHED_PRICE, OUTPUT_PRICE = 0.15e-6, 0.075e-6, 0.6e-6
# The clients that the three nodes of the graph call, and the number of traces. OpenInference's spans of LangChain are
# never current, so a client that a node calls without LangChain begins a trace of its own.
GRAPHS = {"LangChain": (["langchain"] * 3, 1), "all clients": (["langchain", "openai", "litellm"], 3)}
APP = """
import json, sys
from mlflow_otlp_exporter import configure, shutdown

configure()
import litellm, openai
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

url, model, *clients = sys.argv[1:]
user = [{"role": "user", "content": "hello"}]


def call_langchain():
    return ChatOpenAI(model=model, base_url=url, api_key="none", max_retries=0).invoke(user).content


def call_openai():
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    return client.chat.completions.create(model=model, messages=user).choices[0].message.content


def call_litellm():
    answer = litellm.completion(model=f"openai/{model}", api_base=url, api_key="none", messages=user, max_retries=0)
    return answer.choices[0].message.content


graph = StateGraph(MessagesState)
names = [f"step{number}" for number in range(len(clients))]
for name, client in zip(names, clients, strict=True):
    call = {"langchain": call_langchain, "openai": call_openai, "litellm": call_litellm}[client]
    graph.add_node(name, lambda state, call=call: {"messages": [{"role": "assistant", "content": call()}]})
for before, after in zip([START, *names], [*names, END], strict=True):
    graph.add_edge(before, after)
graph.compile(name="agent").invoke({"messages": user})
result = shutdown()
assert (result.dropped, result.pending) == (0, 0), result
"""


@pytest.fixture(scope="module")
def stub() -> Iterator[OpenAIStub]:
    server = OpenAIStub()
    yield server
    server.stop()


def run_graph(clients: Sequence[str], url: str, server: MLflowServer, experiment: str) -> None:
    python = environment("langgraph-instrumentations", read_lock("langgraph-instrumentations"))
    variables = {
        **{name: value for name, value in os.environ.items() if name != "MLFLOW_OTLP_AUTO_INSTRUMENT"},
        "PYTHONPATH": str(ROOT / "src"),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = [str(python), "-c", APP, url, MODEL, *clients]
    completed = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert completed.returncode == 0, completed.stderr


def span_type(span: dict[str, Any]) -> str:
    for attribute in span["attributes"]:
        if attribute["key"] == "mlflow.spanType":
            return str(attribute["value"]["string_value"])
    return ""


def add_up(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(value[name] for value in values) for name in values[0]}


@pytest.mark.parametrize(("clients", "trace_count"), GRAPHS.values(), ids=GRAPHS)
def test_graph_with_all_instrumentations_counts_each_model_call_once(
    clients: Sequence[str], trace_count: int, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    run_graph(clients, stub.url, mlflow_server, tmp_path.name)
    experiment = mlflow_server.experiment(tmp_path.name)
    assert experiment is not None
    traces = mlflow_server.search_traces(experiment["experiment_id"])
    assert len(traces) == trace_count
    stored = [mlflow_server.trace(trace["trace_id"].removeprefix("tr-")) for trace in traces]
    types = Counter(span_type(span) for trace in stored if trace is not None for span in trace["spans"])
    assert (types["CHAT_MODEL"] + types["LLM"], types["UNKNOWN"]) == (3, 0), types
    metadata = [trace["trace_metadata"] for trace in traces]
    usage = add_up([json.loads(values["mlflow.trace.tokenUsage"]) for values in metadata])
    cost = add_up([json.loads(values["mlflow.trace.cost"]) for values in metadata])
    counts = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    assert usage == {name: 3 * count for name, count in {**counts, "cache_read_input_tokens": CACHED}.items()}
    price = (INPUT - CACHED) * INPUT_PRICE + CACHED * CACHED_PRICE + OUTPUT * OUTPUT_PRICE
    assert cost["total_cost"] == pytest.approx(3 * price)
