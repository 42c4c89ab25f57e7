"""The lines that configure() prints where a person is looking, and the warning about missing instrumentations."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.setup import instrumentation
from mlflow_otlp_exporter._internal.setup.instrumentation import (
    Instrumentation,
    find_missing_instrumentations,
    install_command,
)
from mlflow_otlp_exporter.testing import RecordingEndpoint
from support.environments import ROOT
from support.mlflow_server import MLflowServer
from support.terminals import run_in_terminal

APP = """
import os, sys
from mlflow_otlp_exporter import configure, span
telemetry = configure(experiment="agents", auto_instrument=False)
with span("answer", kind="AGENT"):
    pass
"""
FIRST_LINE = r"Sending traces to {url}, experiment 'agents' \(MLFLOW_OTLP_VERBOSE=false hides this line\)\n"
LINKS = (
    r"Experiment in MLflow: {url}/#/experiments/1/traces\n"
    r"First trace: {url}/#/experiments/1/traces\?selectedEvaluationId=tr-[0-9a-f]{{32}}&traceId=tr-[0-9a-f]{{32}}\n"
)


@pytest.fixture
def endpoint() -> Iterator[RecordingEndpoint]:
    with RecordingEndpoint() as server:
        yield server


def run(
    server: RecordingEndpoint | str,
    code: str,
    *,
    is_terminal: bool = True,
    is_stdout_shown: bool = False,
    **variables: str,
) -> str:
    """Run a program with a terminal, or a pipe, as stderr, and return what it wrote there."""
    url = server if isinstance(server, str) else server.url
    removed = ("CI", "KUBERNETES_SERVICE_HOST")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_OTLP_SPOOL": "false", **variables}
    command = [sys.executable, "-c", code]
    if not is_terminal:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stderr
    return run_in_terminal(command, environment, is_stdout_shown=is_stdout_shown)


def test_lines_in_a_terminal_are_target_experiment_and_first_trace(endpoint: RecordingEndpoint) -> None:
    code = APP + "telemetry.flush()\nwith span('second'):\n    pass\n"
    output = run(endpoint, code)
    assert re.fullmatch((FIRST_LINE + LINKS).format(url=re.escape(endpoint.url)), output)
    assert len(endpoint.traces) == 2


def test_lines_of_a_program_that_ends_at_once_have_the_links(endpoint: RecordingEndpoint) -> None:
    assert re.fullmatch((FIRST_LINE + LINKS).format(url=re.escape(endpoint.url)), run(endpoint, APP))


def test_links_are_those_of_the_apps_own_trace_if_spans_of_another_run_are_sent_first(
    endpoint: RecordingEndpoint, tmp_path: Path
) -> None:
    variables: dict[str, Any] = {"MLFLOW_OTLP_SPOOL": "true", "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path)}
    endpoint.status = 503
    run(endpoint, APP.replace("agents", "others"), is_terminal=False, **variables)
    assert list(tmp_path.glob("*/*.otlp"))
    endpoint.status = 200
    code = APP.replace("with span", "while not telemetry.stats().delivered: pass\nwith span")
    code += "    print('Own trace:', telemetry.trace_url(check=False), file=sys.stderr)\n"
    output = run(endpoint, code, **variables)
    assert output.partition("Own trace: ")[2].split()[0] in output.partition("First trace: ")[2]


def test_nothing_is_printed_in_a_terminal_of_ci_or_a_pod(endpoint: RecordingEndpoint) -> None:
    assert run(endpoint, APP, CI="true") == ""
    assert run(endpoint, APP, KUBERNETES_SERVICE_HOST="10.0.0.1") == ""


def test_nothing_is_printed_with_the_setting_or_into_a_pipe(endpoint: RecordingEndpoint) -> None:
    assert run(endpoint, APP, MLFLOW_OTLP_VERBOSE="false") == ""
    assert run(endpoint, APP, is_terminal=False) == ""
    assert run(endpoint, APP, is_terminal=False, MLFLOW_OTLP_VERBOSE="true").count("First trace: ") == 1


def test_lines_are_printed_once_by_a_process_and_its_children(endpoint: RecordingEndpoint) -> None:
    code = (
        "import multiprocessing, os\n"
        "barrier = multiprocessing.Barrier(4)\n"  # a process holds the terminal until it ends
        "children = [pid for _ in range(2) if (pid := os.fork()) == 0 or pid]\n"  # four processes
        f"{APP}"
        "telemetry.flush()\n"
        "barrier.wait(30)\n"
        "if os.fork() == 0:\n"
        "    with span('of a child'):\n"
        "        pass\n"
        "    telemetry.flush()\n"
        "    os._exit(0)\n"
        "while True:\n"
        "    try:\n"
        "        os.wait()\n"
        "    except ChildProcessError:\n"
        "        break\n"
    )
    output = run(endpoint, code)
    assert (output.count("Sending traces to"), output.count("First trace: ")) == (1, 1)
    assert len(endpoint.traces) == 8


def test_closed_stderr_does_not_affect_the_program(endpoint: RecordingEndpoint) -> None:
    code = f"import os, sys\n{APP}os.close(2)\n"
    assert run(endpoint, code).count("\n") == 1
    code = f"import os, sys\nsys.stderr = None\n{APP}"
    assert run(endpoint, code) == ""
    assert len(endpoint.traces) == 2


def are_installed(*names: str) -> Any:
    return lambda name: name in names


def instrumentation_of(library: str) -> Instrumentation:
    return Instrumentation(library, library, "module:Class", 0, EntryPoint(library, "module:Class", "group"))


def test_missing_instrumentations_are_reported_if_no_library_has_one() -> None:
    assert find_missing_instrumentations([], are_installed("openai", "groq", "requests")) == (
        ["groq", "openai"],
        ["openinference-instrumentation-groq", "openinference-instrumentation-openai"],
    )
    silent, missing = find_missing_instrumentations(
        [instrumentation_of("openai")], are_installed("openai", "anthropic")
    )
    assert (silent, missing) == ([], ["openinference-instrumentation-anthropic"])
    assert find_missing_instrumentations([], are_installed("openai", "pydantic-ai-slim"))[0] == []
    assert find_missing_instrumentations([], are_installed()) == ([], [])


def test_install_command_names_extras_and_packages() -> None:
    assert install_command(["openai"]) == "pip install 'mlflow-otlp-exporter[openai]'"
    assert install_command(["groq", "openai", "langchain"]) == (
        "pip install 'mlflow-otlp-exporter[langchain,openai]' openinference-instrumentation-groq"
    )


def test_configure_warns_about_a_library_without_instrumentation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instrumentation, "find_instrumentations", list)
    monkeypatch.setattr(instrumentation, "is_distribution_installed", are_installed("openai"))
    assert instrumentation.instrument(True, None) == []  # type: ignore[arg-type]
    (message,) = caplog.messages
    assert message.startswith("No instrumentation of openai is installed, so its calls create no spans. Run `pip inst")
    caplog.clear()
    assert instrumentation.instrument(False, None) == []  # type: ignore[arg-type]
    assert not caplog.messages


def test_first_run_on_the_page_is_the_output_of_its_code(mlflow_server: MLflowServer) -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0].replace("first-steps", f"first-steps-{os.getpid()}")
    expected = page.partition("<!-- first run")[2].partition("```text\n")[2].partition("```")[0]
    terminal_output = run(mlflow_server.uri, code, is_stdout_shown=True)
    shown = re.sub(r"tr-[0-9a-f]{32}", "tr-...", terminal_output.replace(mlflow_server.uri, "http://localhost:5000"))
    shown = re.sub(r"experiments/\d+", "experiments/1", re.sub(r"\(id \d+\)", "(id 1)", shown))
    lines = shown.replace(f"first-steps-{os.getpid()}", "first-steps").splitlines()
    # Threads write to stderr, the program to stdout: only the order of each is the same in each run.
    assert sorted(line.partition(". Did you mean")[0] for line in lines if "created the" in line) == [
        "created the experiment 'first-steps' (id 1), because there was none of this name"
        + ("" if "Did you mean" in shown else " [MLO-803]")
    ]
    others = [line for line in lines if "created the" not in line]
    assert sorted(others) == sorted(line for line in expected.splitlines() if "created the" not in line)
