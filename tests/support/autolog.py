"""Compare `mlflow.<flavor>.autolog()` with an instrumentation and this library on the same applications.

    python -m support.autolog                   # compare, and write the tables of docs/parity.md
    python -m support.autolog APP FLAVOR URL    # run one application with MLflow's autolog

The second form needs an environment with the applications' libraries and `mlflow-tracing`.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from support import instrumented
from support.conventions import FEATURES, format_share
from support.corpus import run_module
from support.environments import ROOT, environment, read_lock
from support.ground_truth import LANGGRAPH, PYDANTIC, Truth, openai_truths
from support.mlflow_server import MLflowServer
from support.openai_stub import OpenAIStub
from support.trace_checks import CheckResult

PAGE = ROOT / "docs" / "parity.md"
_BEGIN, _END = "<!-- Made by `make parity`; tests/matrix/test_autolog.py -->\n", "<!-- end of comparison -->\n"
_TIMEOUT_SECONDS = 240


class Program(NamedTuple):
    """An application: the MLflow module with `autolog()`, and the `module:Class` of its instrumentation, or `none`."""

    flavor: str
    instrumentor: str


_OPENINFERENCE = "openinference.instrumentation."
PROGRAMS = {
    "openai": Program("openai", _OPENINFERENCE + "openai:OpenAIInstrumentor"),
    "langgraph": Program("langchain", _OPENINFERENCE + "langchain:LangChainInstrumentor"),
    "openai-agents": Program("openai", _OPENINFERENCE + "openai_agents:OpenAIAgentsInstrumentor"),
    "pydantic-ai": Program("pydantic_ai", "none"),
}
TRUTHS: Mapping[str, Sequence[Truth]] = {
    "openai": openai_truths(),
    "langgraph": LANGGRAPH,
    "openai-agents": PYDANTIC,  # the same questions
    "pydantic-ai": PYDANTIC,
}


class ProgramResult(NamedTuple):
    """The checks of a program's traces, and the MLflow fields that some trace fills, by span type."""

    results: list[CheckResult]
    fields: set[str]


# Fields that only the SDK sets, as patterns, and why this library does not need them.
REASONS: Mapping[str, str] = {
    "trace: mlflow.source.*": "the name of the script; `trace_info=True` sets it "
    "([compatibility.md](compatibility.md))",
    "trace: mlflow.user": "the user of the operating system; the column User shows the app's user",
    "trace: mlflow.trace.infoFinalized": "an internal marker of the SDK for the server; "
    "because of it, late spans count no tokens",
    "trace: mlflow.trace.size*": "statistics of the SDK that the console does not show",
    "trace: mlflow.trace_schema.version": "an internal marker of the SDK",
    "trace: mlflow.traceInputs": "same content as the preview, which is set",
    "trace: mlflow.traceOutputs": "same content as the preview, which is set",
    "*: mlflow.message.format": "the format of the messages; this library uses the format that needs no marker",
    "*: mlflow.spanFunctionName": "the name of a decorated function; the span has the same name",
    "CHAIN: mlflow.spanLogLevel": "DEBUG; MLflow treats a span without a level as DEBUG",
    "CHAT_MODEL: event mlflow.chunk.item": "chunks of a streamed answer; the instrumentation records the time "
    "of the first chunk",
    "AGENT: mlflow.chat.tokenUsage": "the sum of the calls below it; the total of the trace is the same without it",
    "AGENT: mlflow.openai.agent_run_root": "an internal marker of the SDK",
}


def run_with_autolog(app: str, flavor: str, url: str) -> None:
    """Run an application in this process; the SDK sends its traces to the server of the environment."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    getattr(mlflow, flavor).autolog()
    # The SDK's decorator replaces `@traced`.
    for name, kind in (("get_weather", "TOOL"), ("_agent", "AGENT")):
        plain = getattr(instrumented, name).__wrapped__
        span_name = "travel-agent" if kind == "AGENT" else name
        setattr(instrumented, name, mlflow.trace(plain, name=span_name, span_type=kind))
    with mlflow.tracing.context(session_id="s-7", user="ada", tags={"release": "2.3.1"}):
        instrumented.APPS[app](url)
    mlflow.flush_trace_async_logging(terminate=True)


def compare_programs(server: MLflowServer) -> dict[str, dict[str, ProgramResult]]:
    """Run all programs in both ways on a new server; return the results by program and way (`sdk`, `ours`)."""
    python, stub = environment("autolog", read_lock("autolog")), OpenAIStub()
    results: dict[str, dict[str, ProgramResult]] = {}
    try:
        for name, program in PROGRAMS.items():
            commands = {
                "sdk": ["support.autolog", name, program.flavor, stub.url],
                "ours": ["support.instrumented", name, program.instrumentor, stub.url],
            }
            results[name] = {
                way: _run_program(server, python, f"{name} {way}", name, commands[way]) for way in commands
            }
    finally:
        stub.stop()
    return results


def _run_program(
    server: MLflowServer, python: Path, experiment: str, program: str, command: Sequence[str]
) -> ProgramResult:
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OPENAI_AGENTS_DISABLE_TRACING": "0",
        "OPENAI_API_KEY": "none",
    }
    completed = subprocess.run(
        [str(python), "-m", *command],
        env=variables,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    with tempfile.TemporaryDirectory() as folder:
        truths_file = Path(folder, "truths.json")
        truths_file.write_text(json.dumps(TRUTHS[program]))
        arguments = ["--tracking-uri", server.uri, "--experiment", experiment, "--truths", str(truths_file)]
        results = [CheckResult(*result) for result in run_module("support.experiment_check", *arguments)]
    stored_experiment = server.experiment(experiment)
    assert stored_experiment is not None
    return ProgramResult(results, set(_fields(server, str(stored_experiment["experiment_id"]))))


def _fields(server: MLflowServer, experiment_id: str) -> Iterator[str]:
    """Iterate over the MLflow fields that some trace of an experiment fills."""
    for info in server.search_traces(experiment_id):
        yield from (f"trace: {key}" for key in (*info.get("trace_metadata", {}), *info.get("tags", {})))
        yield from (f"trace: {key}" for key in ("request_preview", "response_preview") if info.get(key))
        trace = server.trace(info["trace_id"])
        assert trace is not None
        for span in trace["spans"]:
            filled = {
                attribute["key"]: attribute["value"] for attribute in span["attributes"] if attribute.get("value")
            }
            kind = filled.get("mlflow.spanType", {}).get("string_value", "none").replace("LLM", "CHAT_MODEL")
            yield from (f"{kind}: {key}" for key in filled if key.startswith("mlflow."))
            # Chunks of a stream are numbered.
            yield from (f"{kind}: event {event['name'].rstrip('.0123456789')}" for event in span.get("events", []))


def list_sdk_only_fields(results: Mapping[str, Mapping[str, ProgramResult]]) -> dict[str, list[str]]:
    """Return the fields that only the SDK fills, with their programs."""
    fields: dict[str, list[str]] = {}
    for program, by_way in results.items():
        for field in sorted(by_way["sdk"].fields - by_way["ours"].fields):
            fields.setdefault(field, []).append(program)
    return fields


def format_tables(results: Mapping[str, Mapping[str, ProgramResult]]) -> str:
    """Return both tables as Markdown."""
    rows = [f"| field | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    rows += [f"| {name} | {' | '.join(_shares(results, set(columns)))} |" for name, columns in FEATURES.items()]
    rows.append(f"| all | {' | '.join(_shares(results, {c for columns in FEATURES.values() for c in columns}))} |")
    rows += ["", "| set only by the SDK | programs | reason |", "|---|---|---|"]
    programs: dict[str, dict[str, None]] = {}
    for field, field_programs in list_sdk_only_fields(results).items():
        pattern = next((pattern for pattern in REASONS if fnmatchcase(field, pattern)), field)
        programs.setdefault(pattern, {}).update(dict.fromkeys(field_programs))
    rows += [f"| `{name}` | {', '.join(names)} | {REASONS.get(name, '')} |" for name, names in sorted(programs.items())]
    return "\n".join(rows) + "\n"


def _shares(results_by_program: Mapping[str, Mapping[str, ProgramResult]], columns: set[str]) -> Iterator[str]:
    for by_way in results_by_program.values():
        sdk, ours = (
            [result.passed for result in by_way[way].results if result.column in columns] for way in ("sdk", "ours")
        )
        yield format_share(sum(sdk), sum(ours), len(ours))


def read_tables() -> str:
    """Read the tables of the page."""
    text = PAGE.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


def main() -> None:
    if len(sys.argv) > 1:
        run_with_autolog(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            results = compare_programs(server)
        finally:
            server.stop()
    text = PAGE.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    PAGE.write_text(text[:begin] + format_tables(results) + text[end:])


if __name__ == "__main__":
    main()
