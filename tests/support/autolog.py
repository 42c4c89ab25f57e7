"""The same apps once with `mlflow.<flavor>.autolog()` and once with an instrumentation and this library.

    python -m support.autolog                   # compares, and writes the tables of docs/parity.md
    python -m support.autolog APP FLAVOR URL    # runs one app with MLflow's autolog

The second form needs an environment with the apps' libraries and `mlflow-tracing`, but not this library's spans.
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
_SECONDS = 240


class Program(NamedTuple):
    """An app, and what traces it in each way.

    Attributes:
        flavor: The module of MLflow's with the `autolog()`.
        instrumentor: `module:Class` of the instrumentation, or `none` for an app with spans of its own.
    """

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
    """What is seen of a program's traces.

    Attributes:
        results: The verdicts.
        fields: The places of MLflow's that some trace fills, by the type of the span.
    """

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
    """Runs an app in this process, traced by the SDK to the server of the environment."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    getattr(mlflow, flavor).autolog()
    # What is decorated with `@traced` there is decorated with what the SDK has for it.
    for name, kind in (("get_weather", "TOOL"), ("_agent", "AGENT")):
        plain = getattr(instrumented, name).__wrapped__
        named = "travel-agent" if kind == "AGENT" else name
        setattr(instrumented, name, mlflow.trace(plain, name=named, span_type=kind))
    with mlflow.tracing.context(session_id="s-7", user="ada", tags={"release": "2.3.1"}):
        instrumented.APPS[app](url)
    mlflow.flush_trace_async_logging(terminate=True)


def compare_programs(server: MLflowServer) -> dict[str, dict[str, ProgramResult]]:
    """Runs all programs in both ways, and judges them by the same truths.

    Args:
        server: A server without these experiments.

    Returns:
        By program and way (`sdk`, `ours`), what is seen.
    """
    python, stub = environment("autolog", read_lock("autolog")), OpenAIStub()
    found: dict[str, dict[str, ProgramResult]] = {}
    try:
        for name, each in PROGRAMS.items():
            commands = {
                "sdk": ["support.autolog", name, each.flavor, stub.url],
                "ours": ["support.instrumented", name, each.instrumentor, stub.url],
            }
            found[name] = {way: _seen(server, python, f"{name} {way}", name, commands[way]) for way in commands}
    finally:
        stub.stop()
    return found


def _seen(server: MLflowServer, python: Path, experiment: str, program: str, command: Sequence[str]) -> ProgramResult:
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OPENAI_AGENTS_DISABLE_TRACING": "0",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(
        [str(python), "-m", *command], env=variables, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "truths.json")
        given.write_text(json.dumps(TRUTHS[program]))
        words = ["--tracking-uri", server.uri, "--experiment", experiment, "--truths", str(given)]
        results = [CheckResult(*result) for result in run_module("support.experiment_check", *words)]
    found = server.experiment(experiment)
    assert found is not None
    return ProgramResult(results, set(_fields(server, str(found["experiment_id"]))))


def _fields(server: MLflowServer, experiment_id: str) -> Iterator[str]:
    """The places of MLflow's that some trace of an experiment fills."""
    for info in server.search_traces(experiment_id):
        yield from (f"trace: {key}" for key in (*info.get("trace_metadata", {}), *info.get("tags", {})))
        yield from (f"trace: {key}" for key in ("request_preview", "response_preview") if info.get(key))
        trace = server.trace(info["trace_id"])
        assert trace is not None
        for span in trace["spans"]:
            filled = {each["key"]: each["value"] for each in span["attributes"] if each.get("value")}
            kind = filled.get("mlflow.spanType", {}).get("string_value", "none").replace("LLM", "CHAT_MODEL")
            yield from (f"{kind}: {key}" for key in filled if key.startswith("mlflow."))
            # The pieces of a stream are numbered.
            yield from (f"{kind}: event {event['name'].rstrip('.0123456789')}" for event in span.get("events", []))


def list_sdk_only_fields(found: Mapping[str, Mapping[str, ProgramResult]]) -> dict[str, list[str]]:
    """The fields that the SDK alone fills, each with its programs."""
    fields: dict[str, list[str]] = {}
    for program, by in found.items():
        for field in sorted(by["sdk"].fields - by["ours"].fields):
            fields.setdefault(field, []).append(program)
    return fields


def format_tables(found: Mapping[str, Mapping[str, ProgramResult]]) -> str:
    """Both tables as Markdown."""
    rows = [f"| field | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    rows += [f"| {name} | {' | '.join(_shares(found, set(columns)))} |" for name, columns in FEATURES.items()]
    rows.append(f"| all | {' | '.join(_shares(found, {c for columns in FEATURES.values() for c in columns}))} |")
    rows += ["", "| set only by the SDK | programs | reason |", "|---|---|---|"]
    programs: dict[str, dict[str, None]] = {}
    for field, of in list_sdk_only_fields(found).items():
        pattern = next((each for each in REASONS if fnmatchcase(field, each)), field)
        programs.setdefault(pattern, {}).update(dict.fromkeys(of))
    rows += [f"| `{name}` | {', '.join(of)} | {REASONS.get(name, '')} |" for name, of in sorted(programs.items())]
    return "\n".join(rows) + "\n"


def _shares(found: Mapping[str, Mapping[str, ProgramResult]], columns: set[str]) -> Iterator[str]:
    for by in found.values():
        sdk, ours = (
            [result.passed for result in by[way].results if result.column in columns] for way in ("sdk", "ours")
        )
        yield format_share(sum(sdk), sum(ours), len(ours))


def read_tables() -> str:
    """The tables as they stand in the page."""
    text = PAGE.read_text()
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]


def main() -> None:
    """See the module."""
    if len(sys.argv) > 1:
        run_with_autolog(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        server = MLflowServer.start(Path(folder))
        try:
            found = compare_programs(server)
        finally:
            server.stop()
    text = PAGE.read_text()
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    PAGE.write_text(text[:begin] + format_tables(found) + text[end:])


if __name__ == "__main__":
    main()
