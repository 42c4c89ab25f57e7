"""Real instrumentations with a simulated OpenAI API: MLflow's console shows their traces.

Each application runs in its own process; its traces are checked like the recorded ones (tests/support/trace_checks.py).
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
    """An application with an instrumentation.

    Attributes:
        app: One of `instrumented.APPS`.
        instrumentor: `module:Class`, or `none` for an application with its own spans.
        truths: The ground truth of its traces.
        check_count: The number of checks.
        variables: Environment variables that turn on the capture of content.
    """

    app: str
    instrumentor: str
    truths: Sequence[Truth]
    check_count: int
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
    server = OpenAIStub()
    yield server
    server.stop()


def run_and_check(
    source: Source, python: Path, stub: OpenAIStub, server: MLflowServer, folder: Path
) -> list[CheckResult]:
    """Run an application, and check its traces."""
    variables = {
        **os.environ,
        **source.variables,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": folder.name,
    }
    command = [str(python), "-m", "support.instrumented", source.app, source.instrumentor, stub.url]
    completed = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert completed.returncode == 0, completed.stderr
    truths = folder / "truths.json"
    truths.write_text(json.dumps(source.truths))
    arguments = ["--tracking-uri", server.uri, "--experiment", folder.name, "--truths", str(truths)]
    return [CheckResult(*result) for result in run_module("support.experiment_check", *arguments)]


def assert_all_checks_pass(source: Source, python: Path, stub: OpenAIStub, server: MLflowServer, folder: Path) -> None:
    results = run_and_check(source, python, stub, server, folder)
    assert not [result for result in results if not result.passed]
    assert len(results) == source.check_count


@pytest.mark.parametrize("name", SOURCES)
def test_instrumentation_of_the_environment_passes_all_checks(
    name: str, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    assert_all_checks_pass(SOURCES[name], Path(sys.executable), stub, mlflow_server, tmp_path)


def test_checks_without_enrichment_fail(stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """Shows that the checks detect missing content."""
    source = SOURCES["OpenInference openai"]
    plain = source._replace(variables={"MLFLOW_OTLP_ENRICH": "false"})
    failing = {
        result.column
        for result in run_and_check(plain, Path(sys.executable), stub, mlflow_server, tmp_path)
        if not result.passed
    }
    assert failing >= {"trace_name", "search_type", "chats", "tools", "provider"}


@pytest.mark.matrix
@pytest.mark.parametrize("name", OTHERS)
def test_other_instrumentation_passes_all_checks(
    name: str, stub: OpenAIStub, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    python = environment("instrumentations", read_lock("instrumentations"))
    assert_all_checks_pass(OTHERS[name], python, stub, mlflow_server, tmp_path)
