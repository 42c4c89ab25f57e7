"""`mlflow-otlp record` and `mlflow-otlp show`: what an application exports, in a file and as the console shows it."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.cli.main import main
from mlflow_otlp_exporter._internal.cli.record import RequestFile, select_variables
from mlflow_otlp_exporter._internal.cli.send import read_file
from support.markers import SECRET
from support.scripted_server import Answer, ScriptedServer

APP = """
import sys
from opentelemetry import trace
{setup}
tracer = trace.get_tracer("app")
with tracer.start_as_current_span("agent", attributes={{"openinference.span.kind": "AGENT", "session.id": "chat-7"}}):
    attributes = {{
        "openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini",
        "input.value": "Will it rain\\x1b[2J in Lyon?", "output.value": "Take an umbrella.",
        "llm.token_count.prompt": 12, "llm.token_count.completion": 5,
    }}
    tracer.start_span("ChatOpenAI", attributes=attributes).end()
    try:
        with tracer.start_as_current_span("get_weather", attributes={{"openinference.span.kind": "TOOL"}}):
            raise TimeoutError("no answer")
    except TimeoutError:
        pass
{teardown}
sys.exit(3)
"""
OWN = APP.format(setup="from mlflow_otlp_exporter import configure\nconfigure(experiment='agents')", teardown="")
PLAIN = APP.format(
    setup="""
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
""",
    teardown="trace.get_tracer_provider().shutdown()",
)


def record(path: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "record", str(path), "--", sys.executable, "-c", code]
    environment = {**os.environ, "MLFLOW_TRACKING_TOKEN": SECRET, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("code", [OWN, PLAIN], ids=["this library", "plain OTLP exporter"])
@pytest.mark.parametrize("name", ["traces.jsonl", "traces.pb"])
def test_record_keeps_what_show_prints(
    code: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    done = record(path, code, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:1/elsewhere")
    assert done.returncode == 3, done.stderr
    assert f"mlflow-otlp: recorded 3 spans of 1 trace in {path}\n" in done.stderr
    assert SECRET.encode() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {span.trace_id for span in read_file(path)} == {read_file(path)[0].trace_id}
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("agent  OK  ")
    assert "3 spans  12 + 5 tokens" in lines[0]
    assert lines[1].startswith("trace tr-")
    assert lines[1].endswith("session chat-7")
    tree = "\n".join(lines[3:])
    assert "├─ ChatOpenAI   LLM" in tree
    assert "gpt-4o-mini  12 + 5 tokens" in tree
    assert "in  Will it rain?[2J in Lyon?" in tree
    assert "out Take an umbrella." in tree
    assert "└─ get_weather  TOOL" in tree
    assert "ERROR TimeoutError: no answer" in tree
    assert "\x1b" not in "".join(lines)


def test_record_with_json_writes_what_a_collector_reads(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    record(path, PLAIN)
    [line] = path.read_text().splitlines()
    [span, *_] = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert len(bytes.fromhex(span["traceId"])) == 16
    assert len(bytes.fromhex(span["spanId"])) == 8


def test_recorded_protobuf_is_one_request(tmp_path: Path) -> None:
    path = tmp_path / "case.pb"
    file = RequestFile(path)
    for name in ("a", "b"):
        request = ExportTraceServiceRequest()
        request.resource_spans.add().scope_spans.add().spans.add(name=name, trace_id=b"t" * 16, span_id=b"s" * 8)
        file.append(request, {})
    file.close()
    content = ExportTraceServiceRequest.FromString(path.read_bytes())
    assert [group.scope_spans[0].spans[0].name for group in content.resource_spans] == ["a", "b"]
    assert (file.span_count, len(file.trace_ids)) == (2, 1)


def test_record_passes_signals_and_status_on(tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"
    command = [
        sys.executable,
        "-m",
        "mlflow_otlp_exporter",
        "record",
        str(tmp_path / "x.pb"),
        sys.executable,
        "-c",
        code,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors
    assert "recorded 0 spans of 0 traces" in errors
    killed = record(tmp_path / "y.pb", "import os; os.kill(os.getpid(), 9)")
    assert killed.returncode == 137


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [([], 2, "expected a command"), (["--", "no-such-command-here"], 127, "command 'no-such-command-here' not found")],
)
def test_record_without_command_fails(
    words: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(tmp_path / "x.jsonl"), *words]) == status
    assert message in capsys.readouterr().err


def test_select_variables_removes_credentials_and_other_targets() -> None:
    environment = {"MLFLOW_TRACKING_TOKEN": SECRET, "OTEL_EXPORTER_OTLP_HEADERS": f"a={SECRET}", "NO_PROXY": "x"}
    variables = select_variables(environment, "http://127.0.0.1:1")
    assert SECRET not in str(variables)
    assert variables["NO_PROXY"] == "x,127.0.0.1"
    assert variables["MLFLOW_TRACKING_URI"] == variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:1"


# show


def show(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["show", *words]) == status
    captured = capsys.readouterr()
    return captured.out + captured.err


def stored_trace(**span: object) -> bytes:
    item = {
        "trace_id": "AAAAAAAAAAAAAAAAAAAAAQ==",
        "span_id": "AAAAAAAAAAI=",
        "name": "answer",
        "start_time_unix_nano": 1_000_000_000,
        "end_time_unix_nano": 2_500_000_000,
        "attributes": [{"key": "mlflow.spanType", "value": {"string_value": '"AGENT"'}}],
        **span,
    }
    info = {"request_preview": "Will it rain?", "response_preview": "Yes\x1b[2J.\ud800"}
    return json.dumps({"trace": {"trace_info": info, "spans": [item, 7, {"trace_id": []}]}}).encode()


TRACE_ID = "tr-00000000000000000000000000000001"


def test_show_reads_a_trace_from_mlflow(
    scripted_server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    path = "/api/3.0/mlflow/traces/get"
    scripted_server.answer(Answer(headers={"Content-Type": "application/json"}, body=stored_trace()), path=path)
    output = show(capsys, TRACE_ID)
    assert output.splitlines() == [
        "answer  OK  1.50 s  1 span",
        f"trace {TRACE_ID}",
        "request Will it rain?",
        "response Yes?[2J.?",
        "",
        "answer  AGENT         1.50 s",
    ]
    assert SECRET not in output


def test_show_of_an_unknown_trace_says_why(
    scripted_server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    body = b'{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Trace not found"}'
    for path in ("/api/3.0/mlflow/traces/get", f"/api/3.0/mlflow/traces/{TRACE_ID}"):
        scripted_server.answer(Answer(404, headers={"Content-Type": "application/json"}, body=body), path=path)
    assert "Trace not found" in show(capsys, TRACE_ID, status=2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert show(capsys, "no-such-file", status=2).startswith("mlflow-otlp: no-such-file: No such file")


def test_show_as_json_has_all_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces.jsonl"
    record(path, PLAIN)
    [trace] = json.loads(show(capsys, str(path), "--json"))
    assert [span["name"] for span in trace["spans"]] == ["agent", "ChatOpenAI", "get_weather"]
    assert trace["spans"][1]["tokens"]["input_tokens"] == 12
    assert trace["spans"][2]["error"] == "TimeoutError: no answer"
