"""Ends of processes that arrive at bad moments: what had ended is sent, or on disk."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from support.apps import free_port, wait_for
from support.scripted_server import ACCEPTED, Answer, ScriptedServer
from support.traces import wait_until

START = """
import atexit, os, signal, sys, threading, time
from opentelemetry import trace
from mlflow_otlp_exporter import configure
"""
WORK = """
tracer = trace.get_tracer("app")
def work(name):
    tracer.start_span(str(name)).end()
"""


def start(server: ScriptedServer, code: str, *command: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command or [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_ID": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ready(server: ScriptedServer, code: str, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start an application, and wait until it prints `ready`."""
    process = start(server, code, *command, **variables)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def end(process: subprocess.Popen[str], *numbers: int) -> tuple[int, str]:
    for number in numbers:
        process.send_signal(number)
    output = process.communicate(timeout=100)[1]
    return process.returncode, output


def names(server: ScriptedServer) -> Counter[str]:
    return Counter(span.name for request in server.to("/v1/traces") for span in request.spans())


def spooled_span_count() -> int:
    files = Path(os.environ["XDG_STATE_HOME"]).glob("mlflow-otlp-exporter/*/*.otlp")
    return sum(int(path.name.split("-")[1]) for path in files)


# A signal during a flush or a shutdown


@pytest.mark.parametrize(
    "last_line", ["sys.exit()", "telemetry.flush()", "telemetry.shutdown()"], ids=["exit", "flush", "shutdown"]
)
def test_sigterm_while_the_main_thread_sends_lets_it_finish(scripted_server: ScriptedServer, last_line: str) -> None:
    hold = threading.Event()
    scripted_server.answer(Answer(200, hold=hold), then=ACCEPTED)
    wait = "" if last_line == "sys.exit()" else "\nthreading.Event().wait(60)"
    code = START + "telemetry = configure()" + WORK + "work(1); print('ready', flush=True)\n" + last_line + wait
    process = start_ready(scripted_server, code, MLFLOW_OTLP_LINGER="30")
    wait_until(lambda: scripted_server.requests)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    hold.set()
    status, output = end(process)
    assert status in (0, -signal.SIGTERM) if last_line == "sys.exit()" else status == -signal.SIGTERM
    assert "Traceback" not in output
    assert (names(scripted_server), spooled_span_count()) == ({"1": 1}, 0)


def test_second_sigterm_lets_the_first_ones_shutdown_finish(scripted_server: ScriptedServer) -> None:
    hold = threading.Event()
    scripted_server.answer(Answer(503, hold=hold), then=Answer(503))
    code = START + "configure()" + WORK + "work(1); print('ready', flush=True)\nthreading.Event().wait(60)"
    process = start_ready(scripted_server, code, MLFLOW_OTLP_LINGER="30")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: scripted_server.requests)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    hold.set()
    assert end(process)[0] == -signal.SIGTERM
    assert spooled_span_count() == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool_in_a_with_block_delivers_each_span(scripted_server: ScriptedServer, tmp_path: Path, method: str) -> None:
    """At its end, the block terminates the workers with SIGTERM."""
    (tmp_path / "app.py").write_text(
        START + "import multiprocessing\nconfigure()" + WORK + "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context({method!r}).Pool(4) as pool:\n"
        "        pool.map(work, range(8), chunksize=1)\n"
    )
    process = start(scripted_server, "", sys.executable, str(tmp_path / "app.py"), MLFLOW_OTLP_LINGER="30")
    assert end(process)[0] == 0
    assert names(scripted_server) == {str(number): 1 for number in range(8)}


def test_process_pool_executor_delivers_each_span(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "from concurrent.futures import ProcessPoolExecutor\nimport multiprocessing\nconfigure()"
        + WORK
        + (
            "with ProcessPoolExecutor(4, multiprocessing.get_context('fork')) as pool:\n"
            "    list(pool.map(work, range(8)))\n"
        )
    )
    assert end(start(scripted_server, code, MLFLOW_OTLP_LINGER="30"))[0] == 0
    assert names(scripted_server) == {str(number): 1 for number in range(8)}


# Spans that end late


def test_sigterm_in_a_trace_ends_its_open_spans(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "configure()"
        + WORK
        + (
            "with tracer.start_as_current_span('root'), tracer.start_as_current_span('child'):\n"
            "    work('ended'); print('ready', flush=True); threading.Event().wait(60)\n"
        )
    )
    process = start_ready(scripted_server, code)
    assert end(process, signal.SIGTERM) == (-signal.SIGTERM, "")
    spans = {span.name: span for request in scripted_server.to("/v1/traces") for span in request.spans()}
    assert spans.keys() == {"root", "child", "ended"}
    assert not spans["root"].parent_span_id
    assert [spans[name].status.code for name in ("root", "child", "ended")] == [2, 2, 0]
    assert "signal" in spans["root"].status.message


def test_span_of_an_exit_handler_registered_first_is_on_disk(scripted_server: ScriptedServer) -> None:
    code = "import atexit\natexit.register(lambda: work('late'))" + START + "configure()" + WORK + "work('early')\n"
    status, errors = end(start(scripted_server, code))
    assert (status, "[1 span] [MLO-512]" in errors, errors.count("\n")) == (0, True, 1)
    assert (names(scripted_server), spooled_span_count()) == ({"early": 1}, 1)
    wait = "while telemetry.stats().delivered < 2: time.sleep(0.01)"
    code = START + "telemetry = configure()" + WORK + "work('next')\n" + wait
    assert end(start(scripted_server, code)) == (0, "")
    assert names(scripted_server) == {"early": 1, "late": 1, "next": 1}


def test_thread_that_outlives_a_childs_main_thread_delivers_its_span(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "import multiprocessing\nconfigure()"
        + WORK
        + (
            "def child():\n"
            "    def later():\n"
            "        threading.main_thread().join(); time.sleep(0.3); work('late')\n"
            "    threading.Thread(target=later).start()\n"
            "    work('early')\n"
            "process = multiprocessing.get_context('fork').Process(target=child)\n"
            "process.start(); process.join(); sys.exit(process.exitcode)\n"
        ).replace("threading.main_thread().join(); ", "")
    )
    assert end(start(scripted_server, code)) == (0, "")
    assert names(scripted_server) == {"early": 1, "late": 1}


def test_daemon_thread_that_ends_spans_until_the_exit_causes_no_error(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "configure()"
        + WORK
        + (
            "def loop():\n    while True: work('loop')\n"
            "threading.Thread(target=loop, daemon=True).start(); time.sleep(0.2)\n"
        )
    )
    status, output = end(start(scripted_server, code))
    assert status == 0
    assert "Traceback" not in output


def test_exit_in_a_thread_ends_nothing_else(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "configure()"
        + WORK
        + (
            "def leave():\n    with tracer.start_as_current_span('leaves'): sys.exit(3)\n"
            "thread = threading.Thread(target=leave); thread.start(); thread.join(); work('after')\n"
        )
    )
    assert end(start(scripted_server, code)) == (0, "")
    assert names(scripted_server) == {"leaves": 1, "after": 1}


def test_log_at_exit_with_closed_stream_is_silent(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(then=Answer(503))
    code = (
        START
        + (
            "import io, logging\nstream = io.StringIO()\n"
            "logging.basicConfig(stream=stream, level=logging.DEBUG); logging.getLogger('urllib3').disabled = True\n"
            "configure()"
        )
        + WORK
        + "work(1); stream.close()\n"
    )
    assert end(start(scripted_server, code, MLFLOW_OTLP_LINGER="30")) == (0, "")
    assert spooled_span_count() == 1


# Handlers and entry points


def test_sighup_saves_spans(scripted_server: ScriptedServer) -> None:
    code = START + "configure()" + WORK + "work(1); print('ready', flush=True)\nthreading.Event().wait(60)"
    assert end(start_ready(scripted_server, code, MLFLOW_OTLP_LINGER="30"), signal.SIGHUP) == (-signal.SIGHUP, "")
    assert names(scripted_server) == {"1": 1}


def test_interrupted_script_sends_its_spans(scripted_server: ScriptedServer) -> None:
    code = (
        START
        + "configure()"
        + WORK
        + ("with tracer.start_as_current_span('root'):\n    print('ready', flush=True); threading.Event().wait(60)\n")
    )
    status, output = end(start_ready(scripted_server, code, MLFLOW_OTLP_LINGER="30"), signal.SIGINT)
    assert status == -signal.SIGINT
    assert output.endswith("KeyboardInterrupt\n")
    assert names(scripted_server) == {"root": 1}


PLAIN = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor
provider = TracerProvider()
provider.add_span_processor({}(MLflowSpanExporter()))
trace.set_tracer_provider(provider)
"""


@pytest.mark.parametrize("processor", ["BatchSpanProcessor", "MLflowSpanProcessor"])
def test_sigterm_with_a_plain_exporter_saves_spans(scripted_server: ScriptedServer, processor: str) -> None:
    code = START + PLAIN.format(processor) + WORK + ("work(1); print('ready', flush=True)\nthreading.Event().wait(60)")
    variables = {"MLFLOW_OTLP_HANDLE_SIGTERM": "true", "MLFLOW_OTLP_SPOOL": "true"}
    assert end(start_ready(scripted_server, code, **variables), signal.SIGTERM) == (-signal.SIGTERM, "")
    assert names(scripted_server) == {"1": 1}


def test_sigterm_without_code_changes_saves_spans(scripted_server: ScriptedServer, tmp_path: Path) -> None:
    code = (
        START.replace("from mlflow_otlp_exporter import configure", "")
        + WORK
        + (
            "with tracer.start_as_current_span('root'):\n"
            "    work(1); print('ready', flush=True); threading.Event().wait(60)\n"
        )
    )
    (tmp_path / "app.py").write_text(code)
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "run", sys.executable, str(tmp_path / "app.py")]
    status, output = end(start_ready(scripted_server, "", *command), signal.SIGTERM)
    assert status == -signal.SIGTERM, output
    assert names(scripted_server) == {"root": 1, "1": 1}


ASGI = """
import os
from opentelemetry import trace
from mlflow_otlp_exporter import configure

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup" and os.environ["WHERE"] == "lifespan":
                configure()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    trace.get_tracer("app").start_span("request").end()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})

if os.environ["WHERE"] == "module":
    configure()
"""


@pytest.mark.parametrize(
    ("where", "arguments"),
    [("module", ["--workers", "2"]), ("module", ["--reload"]), ("lifespan", [])],
    ids=["workers", "reload", "lifespan"],
)
def test_uvicorn_that_restores_the_default_action_loses_no_span(
    scripted_server: ScriptedServer, tmp_path: Path, where: str, arguments: list[str]
) -> None:
    (tmp_path / "app.py").write_text(ASGI)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--app-dir", str(tmp_path)]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": scripted_server.url, "MLFLOW_EXPERIMENT_ID": "1"}
    process = subprocess.Popen(
        [*command, "--log-level", "error", *arguments],
        cwd=tmp_path,
        env={**variables, "WHERE": where, "MLFLOW_OTLP_LINGER": "30"},
    )
    try:
        wait_for(port, process)
        for _ in range(20):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(100)
    assert names(scripted_server) == {"request": 20}


@pytest.mark.parametrize(
    ("timeout", "flush_seconds", "max_seconds"), [("1", 1.5, 4.9), ("4", 0.5, 7.5)], ids=["failed", "in flight"]
)
def test_exit_without_spool_counts_the_time_of_a_flush(
    scripted_server: ScriptedServer, timeout: str, flush_seconds: float, max_seconds: float
) -> None:
    """The exit waits for the request in flight, and for a server that has failed 2.5 s; it does not begin anew."""
    hold = threading.Event()
    scripted_server.answer(Answer(200, hold=hold))
    code = (
        f"{START}begin = time.monotonic()\natexit.register(lambda: print(time.monotonic() - begin))\n"
        f"telemetry = configure(spool=False)\n{WORK}work('a')\ntelemetry.flush({flush_seconds})\n"
    )
    process = start(scripted_server, code, MLFLOW_HTTP_REQUEST_TIMEOUT=timeout)
    output, errors = process.communicate(timeout=100)
    hold.set()
    assert float(output) < max_seconds, errors
    assert "Spans dropped: not delivered before shutdown" in errors
    assert "did not answer in time" in errors


SEND = f"{START}telemetry = configure(auto_instrument=False)\n{WORK}work('a')\n"
QUEUED = (
    "Spans are queued on disk: not delivered before shutdown. The next run sends them; `mlflow-otlp spool flush` sends"
)


def test_end_without_an_answer_says_once_that_spans_are_on_disk(scripted_server: ScriptedServer) -> None:
    hold = threading.Event()
    scripted_server.answer(Answer(200, hold=hold))
    for run in (1, 2):
        status, errors = end(start(scripted_server, SEND))
        assert (status, errors.count(QUEUED), errors.count("[1 span] [MLO-512]")) == (0, 1, 1), errors
        assert spooled_span_count() == run
    hold.set()


def test_end_with_a_slow_server_says_once_that_spans_are_on_disk(scripted_server: ScriptedServer) -> None:
    """The lookup of the experiment leaves too little time for the request with the spans."""
    experiment = b'{"experiment": {"experiment_id": "1", "name": "agents", "lifecycle_stage": "active"}}'
    path = "/api/2.0/mlflow/experiments/get-by-name"
    scripted_server.answer(
        Answer(200, headers={"Content-Type": "application/json"}, body=experiment, delay=1.5), path=path
    )
    scripted_server.answer(Answer(200, delay=60.0))
    code = SEND.replace("configure(", "configure(experiment='agents', experiment_id=None, ")
    status, errors = end(start(scripted_server, code))
    assert (status, errors.count("queued on disk"), errors.count("[1 span]")) == (0, 1, 1), errors
    assert len(scripted_server.to(path)) == 1


def test_end_after_delivery_says_nothing(scripted_server: ScriptedServer) -> None:
    assert end(start(scripted_server, SEND)) == (0, "")


def test_end_after_a_logged_outage_does_not_repeat_that_spans_are_on_disk(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503))
    _, errors = end(start(scripted_server, SEND))
    assert errors.count("queued on disk") == 1, errors


def test_message_of_an_outage_counts_only_spans_of_this_run(scripted_server: ScriptedServer) -> None:
    scripted_server.answer(Answer(503))
    end(start(scripted_server, f"{SEND}work('b')\nwork('c')\n"))
    assert spooled_span_count() == 3
    _, errors = end(start(scripted_server, f"{SEND}telemetry.flush()\n"))
    own = [line for line in errors.splitlines() if "queued on disk for experiment 1: " in line]
    leftover = [line for line in errors.splitlines() if "for experiment 1 (left by an earlier run): " in line]
    assert [line.rpartition(" [MLO")[0].rpartition("[")[2] for line in own] == ["1 span]"], errors
    assert all("[3 spans]" in line for line in leftover), errors
