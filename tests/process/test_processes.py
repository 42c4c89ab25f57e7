"""Real processes: prefork servers, multiprocessing, exits with spans in flight, SIGTERM."""

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
from support.traces import wait_until

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


def imports(server: ScriptedServer) -> int:
    """Return the number of processes that imported the application, without repeated spans."""
    spans = [span for request in server.to("/v1/traces") for span in request.spans()]
    return len({span.span_id for span in spans if span.name == "import"})


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
    workers = 1 if preload else 2
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(scripted_server), stderr=subprocess.PIPE)
    try:
        pids = {ask(port, f"n={number}") for number in range(30)}
        assert pids
        wait_until(lambda: imports(scripted_server) == workers, 60)  # workers start at different times
    finally:
        server.send_signal(signal.SIGTERM)
        output = server.communicate(timeout=100)[1].decode()
    assert "Traceback" not in output
    counts = names(scripted_server)
    assert {name: count for name, count in counts.items() if name.startswith("request")} == {
        f"request n={number}": 1 for number in range(30)
    }
    assert counts["work"] == 30
    assert counts["import"] == workers
    for request in scripted_server.to("/v1/traces"):
        traces = Counter(span.trace_id for span in request.spans() if span.name != "import")
        assert set(traces.values()) <= {2}


def ask(port: int, query: str) -> str:
    pause, end = threading.Event(), time.monotonic() + 100
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?{query}", timeout=60) as answer:
                return str(answer.read().decode())
        except OSError:  # the server is not ready yet
            assert time.monotonic() < end
            pause.wait(0.05)


def run(server: ScriptedServer, code: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(server), **more},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


START = "from mlflow_otlp_exporter import configure; from opentelemetry import trace; import os, sys, threading\n"


def test_exit_with_an_open_trace_sends_its_ended_spans(scripted_server: ScriptedServer) -> None:
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
    completed = run(scripted_server, code)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert names(scripted_server) == {"ended": 1}


@pytest.mark.parametrize("spool", ["true", "false"])
def test_exit_with_failing_server_is_bounded_and_logged(scripted_server: ScriptedServer, spool: str) -> None:
    scripted_server.answer(Answer(503))
    code = START + (
        "telemetry = configure(experiment_id=1)\n"
        "trace.get_tracer('x').start_span('lost').end()\n"
        "import time; begin = time.monotonic()\n"
        "telemetry.shutdown(timeout=5)\n"
        "print(time.monotonic() - begin, telemetry.stats().dropped, telemetry.stats().spooled)"
    )
    completed = run(scripted_server, code, MLFLOW_OTLP_SPOOL=spool)
    seconds, dropped, spooled = completed.stdout.split()
    assert float(seconds) < 20  # not the 30 s of a flush
    assert (dropped, spooled) == (("0", "1") if spool == "true" else ("1", "0"))
    assert "503" in completed.stderr


def test_exit_with_spool_does_not_wait_for_a_stalled_server(scripted_server: ScriptedServer) -> None:
    release = threading.Event()
    scripted_server.answer(Answer(200, hold=release))
    code = START + (
        "configure(experiment_id=1)\n"
        "for number in range(50): trace.get_tracer('x').start_span(str(number)).end()\n"
        "import time; print(time.time())"
    )
    completed = run(scripted_server, code, MLFLOW_OTLP_SPOOL="true")
    assert time.time() - float(completed.stdout) < 9  # not the 10 s of a request, which are those of a shutdown, too
    release.set()
    before = names(scripted_server)
    completed = run(scripted_server, START + "print(configure(experiment_id=1).flush())", MLFLOW_OTLP_SPOOL="true")
    assert completed.returncode == 0, completed.stderr
    assert set(names(scripted_server) - before) == {str(number) for number in range(50)}


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
    completed = run(scripted_server, code)
    assert completed.returncode == 0, completed.stderr
    assert names(scripted_server) == {"child 0": 1, "child 1": 1, "child 2": 1, "parent": 1}


def start_app(server: ScriptedServer, code: str, **more: str) -> subprocess.Popen[str]:
    """Start an application, and wait until it prints `ready`."""
    app = subprocess.Popen(
        [sys.executable, "-c", START + code],
        env={**environment(server), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert app.stdout is not None
    assert app.stdout.readline() == "ready\n"
    return app


def terminate(app: subprocess.Popen[str]) -> tuple[int, str]:
    app.send_signal(signal.SIGTERM)
    output = app.communicate(timeout=100)[1]
    return app.returncode, output


def spooled_span_count() -> int:
    files = Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/*.otlp")
    return sum(int(path.name.split("-")[1]) for path in files)


WAIT_FOR_SIGNAL = (
    "configure(experiment_id=1)\n"
    "trace.get_tracer('x').start_span('a').end()\n"
    "print('ready', flush=True); threading.Event().wait(60)\n"
)


@pytest.mark.parametrize("down", [False, True])
def test_sigterm_saves_spans_and_ends_the_process(scripted_server: ScriptedServer, down: bool) -> None:
    if down:
        scripted_server.answer(then=Answer(503))
    app = start_app(scripted_server, WAIT_FOR_SIGNAL)
    status, output = terminate(app)
    assert status == -signal.SIGTERM
    assert "Traceback" not in output
    if down:
        assert spooled_span_count() == 1
    else:
        assert names(scripted_server) == {"a": 1}


# Interrupts the main thread up to `count` times, each time while it waits.
INTERRUPT_WAITS = """
import signal, time
def interrupt_waits(count):
    main = threading.main_thread().ident
    sys.setswitchinterval(1000)  # the main thread is seen only where it waits, and goes on only after the signal
    for _ in range(count):
        while True:
            time.sleep(0.02)
            frames = [sys._current_frames()[main]]
            while frames[-1].f_back: frames.append(frames[-1].f_back)
            is_closing = any("mlflow_otlp_exporter" in frame.f_code.co_filename for frame in frames)
            if is_closing and frames[0].f_code.co_filename == threading.__file__: break
        os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("interrupt_count", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("held", ["spans", "feedback"])
def test_repeated_interrupts_during_exit_keep_what_was_not_sent(
    scripted_server: ScriptedServer, held: str, interrupt_count: int
) -> None:
    release = threading.Event()
    trace_id = "0" * 31 + "1"
    path = "/v1/traces" if held == "spans" else f"/api/3.0/mlflow/traces/tr-{trace_id}/assessments"
    scripted_server.answer(Answer(hold=release), path=path)
    code = (
        START
        + INTERRUPT_WAITS
        + (
            "telemetry = configure(experiment_id=1)\n"
            "trace.get_tracer('x').start_span('a').end()\n"
            f"telemetry.log_feedback({trace_id!r}, 'helpful', True)\n"
            "pipeline = telemetry._pipeline\n"
            f"queue = pipeline.work_queue if {held!r} == 'spans' else pipeline.rest_client._tasks._queue\n"
            "while not queue.in_progress(): time.sleep(0.01)\n"
            f"threading.Thread(target=interrupt_waits, args=({interrupt_count},), daemon=True).start()\n"
        )
    )
    try:
        completed = run(scripted_server, code)
    finally:
        release.set()
    assert "Traceback" not in completed.stderr
    files = list(Path(os.environ["XDG_STATE_HOME"]).rglob("*.json" if held == "feedback" else "*.otlp"))
    assert len(files) == 1, completed.stderr


def test_sigterm_without_handler_saves_nothing(scripted_server: ScriptedServer) -> None:
    app = start_app(scripted_server, WAIT_FOR_SIGNAL, MLFLOW_OTLP_HANDLE_SIGTERM="false", MLFLOW_OTLP_LINGER="30")
    assert terminate(app)[0] == -signal.SIGTERM
    assert (names(scripted_server), spooled_span_count()) == ({}, 0)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_sigterm_calls_the_applications_handler(scripted_server: ScriptedServer, first: bool) -> None:
    handler = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    app = start_app(
        scripted_server,
        handler + WAIT_FOR_SIGNAL if first else WAIT_FOR_SIGNAL.replace("trace.get", handler + "trace.get"),
    )
    assert terminate(app)[0] == 7
    assert names(scripted_server) == {"a": 1}


def test_sigterm_with_held_locks_ends_the_process(scripted_server: ScriptedServer) -> None:
    code = WAIT_FOR_SIGNAL.replace(
        "print(", "import mlflow_otlp_exporter._internal.setup.configure as c; c._lock.acquire()\nprint("
    )
    assert terminate(start_app(scripted_server, code))[0] == -signal.SIGTERM


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_child_without_flush_sends_its_spans(
    scripted_server: ScriptedServer, tmp_path: Path, method: str
) -> None:
    (tmp_path / "app.py").write_text(
        "import multiprocessing, os, sys\n"
        "from opentelemetry import trace\n"
        "from mlflow_otlp_exporter import configure\n"
        "configure(experiment_id=1)\n"
        "def work(number):\n"
        "    configure(experiment_id=1)\n"
        "    trace.get_tracer('x').start_span(f'child {number}').end()\n"
        "if __name__ == '__main__':\n"
        "    trace.get_tracer('x').start_span('parent').end()\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    children = [context.Process(target=work, args=(number,)) for number in range(3)]\n"
        "    [child.start() for child in children]; [child.join() for child in children]\n"
        "    sys.exit(any(child.exitcode for child in children))\n"
    )
    completed = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, env=environment(scripted_server), timeout=200, check=False
    )
    assert completed.returncode == 0
    assert names(scripted_server) == {"child 0": 1, "child 1": 1, "child 2": 1, "parent": 1}


def test_terminated_multiprocessing_child_spools_its_spans(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(then=Answer(503))
    code = START + (
        "import multiprocessing, time\n"
        "configure(experiment_id=1)\n"
        "context = multiprocessing.get_context('fork')\n"
        "ready = context.Event()\n"
        "def work():\n"
        "    trace.get_tracer('x').start_span('child').end()\n"
        "    ready.set(); time.sleep(60)\n"
        "child = context.Process(target=work); child.start(); ready.wait()\n"
        "child.terminate(); child.join()\n"
        "sys.exit(child.exitcode != -15)\n"
    )
    assert run(scripted_server, code).returncode == 0
    assert spooled_span_count() == 1


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no preload"])
def test_gunicorn_workers_with_failing_server_spool_all_spans(
    scripted_server: ScriptedServer, tmp_path: Path, preload: bool
) -> None:
    scripted_server.answer(then=Answer(503))
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", f"127.0.0.1:{port}", "--workers", "2"]
    command += ["--preload"] * preload
    workers = 1 if preload else 2
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(scripted_server), stderr=subprocess.PIPE)
    try:
        for number in range(10):
            ask(port, f"n={number}")
        wait_until(lambda: imports(scripted_server) == workers, 60)
    finally:
        server.send_signal(signal.SIGTERM)
        output = server.communicate(timeout=100)[1].decode()
    assert "Traceback" not in output
    assert spooled_span_count() == 20 + workers


@pytest.mark.parametrize("down", [False, True])
def test_frozen_process_after_flush_has_no_pending_spans(scripted_server: ScriptedServer, down: bool) -> None:
    """Like AWS Lambda: between two calls nothing runs, and there may be no next call."""
    if down:
        scripted_server.answer(then=Answer(503))
    code = (
        "telemetry = configure(experiment_id=1)\n"
        "def handler(event):\n"
        "    with trace.get_tracer('x').start_as_current_span(event):\n"
        "        trace.get_tracer('x').start_span('work').end()\n"
        "    return bool(telemetry.flush(20))\n"
        "assert handler('first') and handler('second')\n"
        "print('ready', flush=True); os.kill(os.getpid(), 19)\n"  # SIGSTOP
    )
    app = start_app(scripted_server, code)
    app.kill()
    app.communicate(timeout=100)
    assert (names(scripted_server) if not down else {}) == ({} if down else {"first": 1, "second": 1, "work": 2})
    assert spooled_span_count() == (4 if down else 0)


REENTRANT_HANDLER = """
import os, signal, sys
from mlflow_otlp_exporter import configure

telemetry = configure(experiment_id=1)
tracer = telemetry.tracer_provider.get_tracer("app")
trace_id = "tr-" + "1" * 32
calls = {"flush": lambda: telemetry.flush(0.01), "feedback": lambda: telemetry.log_feedback(trace_id, "x", True)}
call, state = calls[sys.argv[1]], {"signal_count": 0, "is_busy": False}

def handle(*_):
    # One handler at a time: handlers that interrupt each other on a slow machine would nest without end.
    if not state["is_busy"]:
        state["is_busy"] = True
        call()
        state["signal_count"] += 1
        state["is_busy"] = False

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
while state["signal_count"] < 400:
    tracer.start_span("outside").end()
    telemetry.flush(0.02)
    call()
signal.setitimer(signal.ITIMER_REAL, 0)
os._exit(0)
"""


@pytest.mark.parametrize("call", ["flush", "feedback"])
def test_call_in_a_signal_handler_during_a_flush_never_hangs(scripted_server: ScriptedServer, call: str) -> None:
    """With plain locks or `concurrent.futures.wait`, it hung after 3 to 230 signals."""
    scripted_server.answer(then=Answer(200))
    command = [sys.executable, "-c", REENTRANT_HANDLER, call]
    subprocess.run(command, env=environment(scripted_server), check=True, timeout=120)
