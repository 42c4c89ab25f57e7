"""Real instrumentations against a stub of OpenAI's API: what MLflow shows of the traces that they make now.

Each app runs in a process of its own, and its traces are judged like the recorded ones (tests/support/trace_checks.py).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from support.corpus import run_module
from support.environments import ROOT, environment, read_lock
from support.ground_truth import LANGGRAPH, PYDANTIC, Truth, openai_truths
from support.mlflow_server import MLflowServer
from support.openai_stub import OpenAIStub
from support.trace_checks import CheckResult

pytestmark = pytest.mark.needs("node")

RUN_SECONDS = 300


class Source(NamedTuple):
    """An app with an instrumentation.

    Attributes:
        app: One of `instrumented.APPS`.
        instrumentor: `module:Class`, or `none` for an app that has spans of its own.
        truths: What must be seen of its traces.
        results: How many results that makes.
        variables: What must be set, that content is on the spans.
    """

    app: str
    instrumentor: str
    truths: Sequence[Truth]
    results: int
    variables: Mapping[str, str] = MappingProxyType({})


SOURCES = {
    "OpenInference openai": Source(
        "openai", "openinference.instrumentation.openai:OpenAIInstrumentor", openai_truths(), 117
    ),
    "OpenInference langchain": Source(
        "langgraph", "openinference.instrumentation.langchain:LangChainInstrumentor", LANGGRAPH, 52
    ),
}
OTHERS = {
    "OpenTelemetry GenAI openai": Source(
        "openai",
        "opentelemetry.instrumentation.genai.openai:OpenAIInstrumentor",
        openai_truths(),
        117,
        {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only"},
    ),
    "OpenLLMetry openai": Source(
        "openai", "opentelemetry.instrumentation.openai:OpenAIInstrumentor", openai_truths(), 117
    ),
    "pydantic-ai": Source("pydantic-ai", "none", PYDANTIC, 35),
}


@pytest.fixture(scope="module")
def stub() -> Iterator[OpenAIStub]:
    running = OpenAIStub()
    yield running
    running.stop()


def seen(source: Source, python: Path, stub: OpenAIStub, server: MLflowServer, folder: Path) -> list[CheckResult]:
    """Runs an app, and looks at its traces."""
    variables = {
        **os.environ,
        **source.variables,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": folder.name,
    }
    command = [str(python), "-m", "support.instrumented", source.app, source.instrumentor, stub.url]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    truths = folder / "truths.json"
    truths.write_text(json.dumps(source.truths))
    words = ["--tracking-uri", server.uri, "--experiment", folder.name, "--truths", str(truths)]
    return [CheckResult(*result) for result in run_module("support.experiment_check", *words)]


def check(source: Source, python: Path, stub: OpenAIStub, server: MLflowServer, folder: Path) -> None:
    results = seen(source, python, stub, server, folder)
    assert not [result for result in results if not result.passed]
    assert len(results) == source.results


@pytest.mark.parametrize("name", SOURCES)
def test_instrumentation(name: str, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    check(SOURCES[name], Path(sys.executable), stub, mlflow_server, tmp_path)


def test_the_judge_tells_right_from_wrong(stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """The same without enrichment: what MLflow makes of the spans as they are."""
    source = SOURCES["OpenInference openai"]
    plain = source._replace(variables={"MLFLOW_OTLP_ENRICH": "false"})
    wrong = {
        result.column
        for result in seen(plain, Path(sys.executable), stub, mlflow_server, tmp_path)
        if not result.passed
    }
    assert wrong >= {"trace_name", "search_type", "chats", "tools", "provider"}


@pytest.mark.matrix
@pytest.mark.parametrize("name", OTHERS)
def test_other_instrumentation(name: str, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    python = environment("instrumentations", read_lock("instrumentations"))
    check(OTHERS[name], python, stub, mlflow_server, tmp_path)
