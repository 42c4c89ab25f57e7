"""Real processes: a prefork server, a pool, an exit with work in flight."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from support.scripted_server import Answer, ScriptedServer

APP = """
import os
from opentelemetry import trace
from mlflow_otlp_exporter import configure

configure(experiment_id=1)
tracer = trace.get_tracer("app")
tracer.start_span("import").end()

def app(environ, start_response):
    with tracer.start_as_current_span("request " + environ["QUERY_STRING"]):
        tracer.start_span("work").end()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


def names(server: ScriptedServer) -> Counter[str]:
    return Counter(span.name for request in server.to("/v1/traces") for span in request.spans())


def environment(server: ScriptedServer) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": server.url}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no preload"])
def test_gunicorn_sends_each_span_once(scripted_server: ScriptedServer, tmp_path: Path, preload: bool) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", f"127.0.0.1:{port}", "--workers", "2"]
    command += ["--preload"] * preload
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(scripted_server), stderr=subprocess.PIPE)
    try:
        pids = {ask(port, f"n={number}") for number in range(30)}
        assert pids
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=30)[1].decode()
    assert "Traceback" not in said
    found = names(scripted_server)
    assert {name: count for name, count in found.items() if name.startswith("request")} == {
        f"request n={number}": 1 for number in range(30)
    }
    assert found["work"] == 30
    assert found["import"] == (1 if preload else 2)
    for request in scripted_server.to("/v1/traces"):
        traces = Counter(span.trace_id for span in request.spans() if span.name != "import")
        assert set(traces.values()) <= {2}


def ask(port: int, query: str) -> str:
    pause, end = threading.Event(), time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{query}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:  # not up yet
            assert time.monotonic() < end
            pause.wait(0.05)


def run(server: ScriptedServer, code: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(server), **more},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


START = "from mlflow_otlp_exporter import configure; from opentelemetry import trace; import os, sys, threading\n"


def test_exit_with_a_trace_in_progress_in_another_thread(scripted_server: ScriptedServer) -> None:
    code = START + (
        "configure(experiment_id=1)\n"
        "tracer = trace.get_tracer('x')\n"
        "def agent():\n"
        "    with tracer.start_as_current_span('open'):\n"
        "        tracer.start_span('ended').end()\n"
        "        ready.set(); threading.Event().wait(60)\n"
        "ready = threading.Event()\n"
        "threading.Thread(target=agent, daemon=True).start()\n"
        "ready.wait()\n"
    )
    done = run(scripted_server, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(scripted_server) == {"ended": 1}


def test_exit_is_bounded_with_a_dead_server_and_says_what_was_lost(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503))
    code = START + (
        "telemetry = configure(experiment_id=1)\n"
        "trace.get_tracer('x').start_span('lost').end()\n"
        "import time; begin = time.monotonic()\n"
        "telemetry.shutdown(timeout=1)\n"
        "print(time.monotonic() - begin, telemetry.stats().refused)"
    )
    done = run(scripted_server, code)
    seconds, refused = done.stdout.split()
    assert float(seconds) < 3
    assert refused == "1"
    assert "503" in done.stderr


def test_multiprocessing_child_sends_its_traces(scripted_server: ScriptedServer) -> None:
    code = START + (
        "import multiprocessing\n"
        "telemetry = configure(experiment_id=1)\n"
        "def work(number):\n"
        "    trace.get_tracer('x').start_span(f'child {number}').end()\n"
        "    assert telemetry.flush()\n"
        "trace.get_tracer('x').start_span('parent').end()\n"
        "context = multiprocessing.get_context('fork')\n"
        "children = [context.Process(target=work, args=(number,)) for number in range(3)]\n"
        "[child.start() for child in children]; [child.join() for child in children]\n"
        "sys.exit(any(child.exitcode for child in children))\n"
    )
    done = run(scripted_server, code)
    assert done.returncode == 0, done.stderr
    assert names(scripted_server) == {"child 0": 1, "child 1": 1, "child 2": 1, "parent": 1}
