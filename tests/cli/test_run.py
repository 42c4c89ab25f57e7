"""`mlflow-otlp run`, `opentelemetry-instrument` and `configure()` send the same trace."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.cli import run as run_module
from mlflow_otlp_exporter._internal.cli.main import main
from mlflow_otlp_exporter._internal.cli.run import select_variables, warn_duplicates, warn_missing
from mlflow_otlp_exporter._internal.setup.instrumentation import Instrumentation
from mlflow_otlp_exporter.testing import RecordedSpan, RecordedTrace, RecordingEndpoint
from support.documents import blocks
from support.environments import ROOT
from support.scripted_server import Answer, RecordedRequest, ScriptedServer

SCRIPTS = Path(__file__).resolve().parents[1] / "apps"
NONE = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
ALL = {"OTEL_TRACES_EXPORTER": "mlflow", **NONE, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "10000"}


@pytest.mark.parametrize(
    ("environment", "missing", "text"),
    [
        ({}, [], ""),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, ["OTEL_METRICS_EXPORTER"], ""),
        ({"OTEL_METRICS_EXPORTER": " "}, [], ""),
        ({"OTEL_TRACES_EXPORTER": "console,mlflow"}, ["OTEL_TRACES_EXPORTER"], ""),
        ({"OTEL_TRACES_EXPORTER": "console"}, ["OTEL_TRACES_EXPORTER"], "expected mlflow or console,mlflow"),
        ({"OTEL_TRACES_EXPORTER": "mlfow"}, ["OTEL_TRACES_EXPORTER"], "no exporter 'mlfow' is installed: expected"),
        ({"OTEL_TRACES_EXPORTER": "mlflow,zipkin"}, ["OTEL_TRACES_EXPORTER"], "no exporter 'zipkin' is installed"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp,mlflow", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            ["OTEL_TRACES_EXPORTER"],
            "",
        ),
        ({"OTEL_ATTRIBUTE_COUNT_LIMIT": "9"}, ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"], ""),
        ({"OTEL_CONFIG_FILE": "otel.yaml"}, list(ALL), "OTEL_CONFIG_FILE is otel.yaml"),
    ],
)
def test_select_variables_adds_missing_ones(environment: Mapping[str, str], missing: Sequence[str], text: str) -> None:
    variables, warnings = select_variables(environment)
    assert variables == {name: value for name, value in ALL.items() if name not in missing}
    assert text in " ".join(warnings)
    assert bool(warnings) is bool(text)


def test_two_instrumentations_of_one_library_cause_a_warning() -> None:
    candidates = [
        Instrumentation("openai", "openai", value, 2, EntryPoint("openai", value, "opentelemetry_instrumentor"))
        for value in ("b.openai:X", "a.openai:X")
    ]
    assert warn_duplicates(candidates[:1]) == []
    (warning,) = warn_duplicates(candidates)
    assert warning.startswith("openai has several instrumentations (a.openai, b.openai), so each call")


def test_no_instrumentation_causes_a_warning() -> None:
    (warning,) = warn_missing([])
    assert warning.startswith("no instrumentation is installed")
    assert warn_missing([Instrumentation("x", "x", "x", 2, EntryPoint("x", "x:X", "opentelemetry_instrumentor"))]) == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "expected a command"),
        (["no-such-command-here"], 127, "command 'no-such-command-here' not found"),
    ],
)
def test_run_with_missing_command_fails(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == status
    assert message in capsys.readouterr().err


def test_run_with_broken_stderr_starts_the_command() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as broken:
        words = [sys.executable, "-m", "mlflow_otlp_exporter", "run", sys.executable, "-c", "print('started')"]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=broken, text=True, timeout=60, check=False)
    assert done.stdout == "started\n"


def test_run_without_activated_environment_uses_its_own_python(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 9\n")  # like one without this library
    other.chmod(0o755)
    words = [sys.executable, "-m", "mlflow_otlp_exporter", "run", "python", "-c", "import sys; print(sys.prefix)"]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.defpath}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{sys.prefix}\n"), done.stderr
    assert f"mlflow-otlp: using {Path(sys.executable).parent / 'python'}, of the environment" in done.stderr
    assert "sitecustomize" not in done.stderr


def test_find_command_prefers_path_if_it_has_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder = Path(sys.executable).parent
    other = tmp_path / "python"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    assert run_module.find_command("python") == str(own_folder / "python")
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    assert run_module.find_command("python") == str(other)
    assert run_module.find_command(str(other)) == str(other)
    assert run_module.find_command("ls") == shutil.which("ls")
    assert run_module.find_command("pytest") == str(own_folder / "pytest")
    assert run_module.find_command("no-such-command-here") is None


def test_run_with_wrong_setting_does_not_start_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert main(["run", sys.executable, "-c", "raise SystemExit(5)"]) == 2
    assert "MLFLOW_TRACKING_URI is 'databricks'" in capsys.readouterr().err


def test_run_without_the_distro_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "entry_points", lambda **_: ())
    assert main(["run", sys.executable, "-V"]) == 2
    assert "pip install 'mlflow-otlp-exporter[auto]'" in capsys.readouterr().err


# The same trace from all ways of instrumentation


def model(request: RecordedRequest) -> Answer:
    """A minimal server of OpenAI's chat completions."""
    messages = json.loads(request.body)["messages"]
    message: dict[str, Any] = {"role": "assistant", "content": "Take an umbrella."}
    if messages[-1]["role"] == "user":
        call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Lyon"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }
    return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps(body).encode())


@pytest.fixture
def api(scripted_server: ScriptedServer) -> ScriptedServer:
    scripted_server.answer_with("/v1/chat/completions", model)
    return scripted_server


def record_traces(command: Sequence[str], api: ScriptedServer, **variables: str) -> tuple[list[RecordedTrace], str]:
    """Run an app; return its traces and its stderr."""
    with RecordingEndpoint() as endpoint:
        own = {
            "MLFLOW_TRACKING_URI": endpoint.url,
            "MLFLOW_EXPERIMENT_NAME": "agents",
            "OPENAI_BASE_URL": f"{api.url}/v1",
            "OPENAI_API_KEY": "planted-key",
            "LANGSMITH_TRACING": "false",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_OTLP_AUTO_INSTRUMENT"}
        done = subprocess.run(
            command, env={**inherited, **own, **variables}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return endpoint.traces, done.stderr


# Random ids, and the address of the model.
VARYING = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|127\.0\.0\.1:\d+")


def normalize(traces: Sequence[RecordedTrace]) -> Any:
    """Return the content of the traces without what differs from run to run."""

    def normalize_span(span: RecordedSpan) -> tuple[Any, ...]:
        attributes = {name: VARYING.sub("", str(value)) for name, value in span.attributes.items()}
        return span.name, span.kind, span.status, span.experiment, len(span.events), attributes

    return [(trace.tree, [normalize_span(span) for span in trace.spans]) for trace in traces]


(BLOCK,) = blocks(ROOT / "docs" / "zero-code.md", "yaml")
FILE = BLOCK.code.replace("experiment: support-agent", "experiment: agents")


@pytest.mark.parametrize(("script", "spans"), [("openai_script.py", 1), ("langgraph_script.py", 4)])
def test_all_ways_of_instrumentation_send_the_same_trace(
    api: ScriptedServer, script: str, spans: int, tmp_path: Path
) -> None:
    path = str(SCRIPTS / script)
    configured = tmp_path / "configured.py"
    lines = ["import runpy", "from mlflow_otlp_exporter import configure", "configure()"]
    configured.write_text("\n".join([*lines, f"runpy.run_path({path!r}, run_name='__main__')"]))
    (tmp_path / "otel.yaml").write_text(FILE)

    expected, errors = record_traces([sys.executable, str(configured)], api)
    assert errors == ""
    (trace,) = expected
    assert len(trace.spans) >= spans
    assert trace.tags == {}
    assert all("mlflow.spanType" in span.attributes for span in trace.spans)
    assert trace.root.inputs
    assert trace.root.outputs

    instrumented = ["opentelemetry-instrument", sys.executable, path]
    by_variables, _ = record_traces(instrumented, api, OTEL_TRACES_EXPORTER="mlflow", **NONE)
    by_file, _ = record_traces(instrumented, api, OTEL_CONFIG_FILE=str(tmp_path / "otel.yaml"))
    run, announced = record_traces(["mlflow-otlp", "run", path], api)
    assert normalize(by_variables) == normalize(by_file) == normalize(run) == normalize(expected)
    assert "added environment variables: OTEL_TRACES_EXPORTER=mlflow OTEL_METRICS_EXPORTER=none" in announced
    assert "experiment agents (environment variable MLFLOW_EXPERIMENT_NAME)" in announced
