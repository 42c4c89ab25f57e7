"""The pytest plugin: test runs of their own, as users have them."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

APP = """
from mlflow_otlp_exporter import MLflowSpanExporter, configure, set_documents, set_usage, span, traced, types

@traced(kind="TOOL")
def get_weather(city: str) -> str:
    if city == "Nowhere":
        raise ValueError(city)
    return "rain"

@traced(kind="AGENT")
def answer(question: str) -> str:
    with span("search", kind="RETRIEVER", inputs=question):
        set_documents([{"page_content": "It rains.", "id": "d-1", "score": 0.5, "metadata": {"page": 3}}, "No id."])
    with span("model", kind="LLM"):
        set_usage(input_tokens=30, output_tokens=12)
    return get_weather("Lyon")

def start() -> None:
    configure(tracking_uri="https://mlflow.example.com", credentials="token", experiment="production")
"""
HEADER = "import asyncio, pytest\nimport app\n"


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP)
    (folder / "test_app.py").write_text(HEADER + code)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    # An environment that was installed before the plugin has no entry point of it.
    plugin = () if entry_points(group="pytest11", name="mlflow_otlp") else ("-p", "pytest_mlflow_otlp")
    command = [sys.executable, "-m", "pytest", "-q", *plugin, "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=120)


def test_fixture_records_traces_with_tools_documents_and_tokens(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        """
def test_answer(mlflow_traces):
    app.answer("rain?")
    trace = mlflow_traces.trace
    assert trace.tree == ["answer", "  search", "  model", "  get_weather"]
    call = trace.assert_tool_called("get_weather", {"city": "Lyon"}, times=1)
    assert (call.result, call.is_error) == ("rain", False)
    assert trace.documents[0].id == "d-1"
    assert (trace.documents[0].score, trace.documents[0].metadata) == (0.5, {"page": 3})
    trace.assert_documents("d-1", "No id.")
    assert trace.assert_tokens(at_most=42).input_tokens == 30
    trace.assert_tool_called("send_mail", times=0)

def test_tool_of_langchain(mlflow_traces):
    result = '{"type": "tool", "data": {"content": "rain", "type": "tool", "tool_call_id": "call_1"}}'
    with app.span("get_weather", kind="TOOL", inputs="{'city': 'Lyon'}") as tool:
        tool.set_attributes({"output.value": result, "output.mime_type": "application/json"})
    assert mlflow_traces.trace.assert_tool_called("get_weather", {"city": "Lyon"}).result == "rain"

def test_failed_tool(mlflow_traces):
    with pytest.raises(ValueError):
        app.get_weather("Nowhere")
    assert mlflow_traces.trace.tool_calls[0].is_error

def test_application_that_configures_itself(mlflow_traces):
    app.start()
    app.MLflowSpanExporter("https://collector.example.com/v1/traces", credentials="token").shutdown()
    app.answer("rain?")
    assert mlflow_traces.trace.root.experiment == "production"

@pytest.mark.mlflow_traces(experiment="tests", workspace="team-a")
def test_arguments(mlflow_traces):
    app.answer("rain?")
    assert (mlflow_traces.trace.root.experiment, mlflow_traces.trace.root.workspace) == ("tests", "team-a")

def test_asyncio(mlflow_traces):
    async def main():
        async with app.span("one"):
            await asyncio.sleep(0)
    asyncio.run(main())
    assert mlflow_traces.trace.tree == ["one"]
""",
        *("-n", "2"),
    )
    assert "5 passed" in result.stdout, result.stdout + result.stderr
    assert "Error" not in result.stderr


@pytest.mark.parametrize(
    ("assertion", "message"),
    [
        (
            "assert_tool_called('send_mail')",
            "send_mail was called 0 times, not once or more; [Recorded",
        ),
        (
            "assert_tool_called('get_weather', {'city': 'Paris'})",
            "with {'city': 'Paris'} was called 0 times",
        ),
        ("assert_tool_called('get_weather', times=2)", "get_weather was called 1 times, not 2 times"),
        ("assert_documents('d-1', 'd-2')", "missing documents: ['d-2'], others: [RecordedDocument(content='No id.'"),
        ("assert_tokens(at_most=41)", "42 tokens, expected at least 1 and at most 41"),
        ("assert_tokens(at_least=100)", "42 tokens, expected at least 100"),
    ],
)
def test_assertion_that_fails_says_what_was_recorded(
    monkeypatch: pytest.MonkeyPatch, assertion: str, message: str
) -> None:
    from mlflow_otlp_exporter.testing import recording

    namespace: dict[str, object] = {}
    exec(APP, namespace)
    with recording() as recorded:
        exec("answer('rain?')", namespace)
        trace = recorded.trace
    with pytest.raises(AssertionError) as error:
        eval(f"trace.{assertion}", {"trace": trace})
    assert message in str(error.value)


def test_plugin_imports_nothing_of_the_library_until_it_is_used(tmp_path: Path) -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_mlflow_otlp\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new <= {'pytest_mlflow_otlp'}, new\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
