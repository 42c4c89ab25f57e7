"""Commands that a user interrupts once or repeatedly, while they wait for a server that does not answer."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, ScriptedServer
from support.spans import make_spans

COMMANDS = {
    "doctor": "/version",
    "send --test": TRACES_PATH,
    "spool flush": TRACES_PATH,
    f"show tr-{1:032x}": "/api/3.0/mlflow/traces/get",
}


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def start(server: ScriptedServer, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow_otlp_exporter", *words],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_ID": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def queue_span(server: ScriptedServer) -> None:
    exporter = MLflowSpanExporter(tracking_uri=server.url, experiment_id=1, spool=True)
    server.answer(then=Answer(503))
    exporter.export(make_spans("a"))
    exporter.shutdown()


@pytest.mark.parametrize("is_repeated", [False, True], ids=["once", "repeatedly"])
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_ends_without_traceback_and_keeps_the_spool(
    scripted_server: ScriptedServer, release: threading.Event, command: str, is_repeated: bool
) -> None:
    queue_span(scripted_server)
    count = len(scripted_server.to(COMMANDS[command]))
    scripted_server.answer(then=Answer(hold=release), path=COMMANDS[command])
    process = start(scripted_server, *command.split())
    scripted_server.wait_for(count + 1, COMMANDS[command])
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        if is_repeated:
            process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGINT  # 130 in a shell
    assert len(list(Path(os.environ["XDG_STATE_HOME"]).rglob("*.otlp"))) == 1
    release.set()
    scripted_server.answer(then=ACCEPTED, path=COMMANDS[command])
    scripted_server.answer(then=ACCEPTED)
    process = start(scripted_server, "spool", "flush")
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, output) == (0, "1 span sent, 0 queued in 0 requests\n"), errors
