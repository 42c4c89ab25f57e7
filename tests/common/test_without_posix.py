"""Windows: what can be shown of it on another system; docs/spool.md says what cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer

APP = """
import support.windows
import os, sys, threading, time
from opentelemetry.sdk.trace import TracerProvider
from mlflow_otlp_exporter import configure, trace_context
from mlflow_otlp_exporter._internal.delivery import spool_consumer
from mlflow_otlp_exporter._internal.common import process_end
spool_consumer._SWEEP_SECONDS = 0.5
telemetry = configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
tracer = telemetry.tracer_provider.get_tracer("app")
assert not process_end.install_sigterm_handler(print, print)
def say(*results):
    print(*(count for each in results for count in (each.delivered, each.spooled, each.dropped)))
"""
ENDS = (
    APP
    + """
for name in sys.argv[1:]:
    tracer.start_span(name).end()
say(telemetry.flush(20), telemetry.shutdown(20))
"""
)
KILLED = (
    APP
    + """
with trace_context(workspace="team-a", experiment_id="7"):
    tracer.start_span("killed").end()
os.kill(os.getpid(), 9)
"""
)
RECOVERS = (
    APP
    + """
end = time.monotonic() + 90
while telemetry.stats().delivered < int(sys.argv[1]) and time.monotonic() < end:
    threading.Event().wait(0.05)
say(telemetry.shutdown(20))
"""
)
IMPORTS = """
import support.windows
import importlib, pkgutil
import mlflow_otlp_exporter
for found in pkgutil.walk_packages(mlflow_otlp_exporter.__path__, "mlflow_otlp_exporter."):
    # The packages of the gateway's extra see which system this is, and import what Windows lacks.
    if not found.name.endswith("__main__") and ".gateway." not in found.name:
        importlib.import_module(found.name)
"""


def run(url: str, code: str, *arguments: str, **extra_variables: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_EXPERIMENT_ID": "1",
        "LOCALAPPDATA": os.environ["XDG_STATE_HOME"],
        "USERNAME": "ada",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, **variables, **extra_variables},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )


def on_disk(pattern: str) -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").glob(pattern))


@pytest.fixture
def server(scripted_server: ScriptedServer) -> ScriptedServer:
    scripted_server.answer_with("/version", lambda _: Answer(200, body=b"3.17.2"))
    return scripted_server


def test_every_module_without_posix_is_importable() -> None:
    process = run("http://127.0.0.1:9", IMPORTS)
    assert (process.returncode, process.stderr) == (0, "")


def test_spool_without_posix_survives_outage(server: ScriptedServer) -> None:
    def answer(request: RecordedRequest) -> Answer:
        received.extend(span.name for span in request.spans() if not down)
        return Answer(503) if down else ACCEPTED

    received, down = list[str](), [True]
    server.answer_with(TRACES_PATH, answer)
    process = run(server.url, ENDS, "a", "b")
    assert process.stdout.split() == ["0", "2", "0"] * 2, process.stderr
    assert on_disk("*/*.otlp")
    down.clear()
    process = run(server.url, RECOVERS, "2")
    assert (process.returncode, process.stdout.split()) == (0, ["2", "0", "0"]), process.stderr
    assert sorted(received) == ["a", "b"]
    assert "Traceback" not in process.stderr
    assert on_disk("*/*.otlp") == []


def test_journal_without_posix_is_sent_after_kill(server: ScriptedServer) -> None:
    every_span = {"MLFLOW_OTLP_DURABILITY": "every-span", "MLFLOW_OTLP_LINGER": "600"}
    killed = run(server.url, KILLED, **every_span)
    assert killed.returncode == -9, killed.stderr
    assert len(on_disk("*/journal/*")) == 1
    process = run(server.url, RECOVERS, "1", **every_span)
    assert (process.returncode, process.stdout.split()) == (0, ["1", "0", "0"]), process.stderr
    [request] = server.to(TRACES_PATH)
    assert request.headers["x-mlflow-workspace"] == "team-a"
    assert [span.name for span in request.spans()] == ["killed"]
    assert on_disk("*/*.otlp") + on_disk("*/journal/*") == []


def test_journal_without_posix_is_removed_after_delivery(server: ScriptedServer) -> None:
    process = run(server.url, ENDS, "a", "b", MLFLOW_OTLP_DURABILITY="every-span")
    assert process.stdout.split() == ["2", "0", "0", "0", "0", "0"], process.stderr
    assert on_disk("*/journal/*") == []
