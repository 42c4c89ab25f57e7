"""Kinds of processes and their ends: each span that ended is in MLflow, some after the next start, and none twice."""

import base64
import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from support.apps import free_port
from support.environments import ROOT, environment, read_lock
from support.mlflow_server import MLflowServer
from support.scripted_server import Answer, RecordedRequest, ScriptedServer
from support.traces import wait_until

pytestmark = pytest.mark.matrix

APPS = ROOT / "tests" / "apps"
REQUESTS = 5
END_SECONDS = 60.0
WORKER_ENDS = ("open", "reload", "worker kill", "SIGHUP", "max-requests")
_HOP_HEADERS = ("connection", "transfer-encoding", "content-length", "date", "server")
_OWN_TRACEBACK = re.compile(r'File "[^"]*mlflow_otlp_exporter/|Logging error')


@dataclass(frozen=True)
class App:
    """An application.

    Attributes:
        command: Arguments of Python, with {port}, {folder}, {end} and {bin}.
        ends: How it ends. Names of signals are sent to its first process; `kill` kills all of its processes; `worker`
            in the name means a process that has worked. After all others, it ends without help.
        more: Arguments for an end.
        spans: How many spans have ended before it is ended; with 0, it ends without help.
        requests: How many requests it gets.
        environment: The name of its environment.
    """

    command: str
    ends: Sequence[str]
    spans: int = 0
    requests: int = 0
    more: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: str = "process-ends"


def web(command: str, *ends: str, **options: Any) -> App:
    return App(command, ends, spans=2 * REQUESTS, requests=REQUESTS, **options)


UVICORN = "-m uvicorn ends_asgi:app --port {port}"
HYPERCORN = "-m hypercorn ends_asgi:app --bind 127.0.0.1:{port} --graceful-timeout 2"
GUNICORN = "-m gunicorn ends_wsgi:app --bind 127.0.0.1:{port} --workers 2 --timeout 20 --graceful-timeout 3"
ASGI_GUNICORN = "-m gunicorn ends_asgi:app --bind 127.0.0.1:{port} --workers 2 --graceful-timeout 3"
UWSGI = "{bin}/uwsgi --http-socket 127.0.0.1:{port} --module ends_wsgi:app --master --processes 2 --die-on-term"
FLASK = "-m flask --app ends_flask run --port {port}"
CELERY = "-m celery -A ends_celery worker -c 2 --without-gossip --without-mingle --without-heartbeat -l info -P "
GUNICORN_ENDS = ("SIGTERM", "SIGINT", "SIGQUIT", "max-requests", "worker kill")
GUNICORN_MAX = {"max-requests": f"--workers 1 --max-requests {REQUESTS}"}
UWSGI_MAX = {"max-requests": f"--processes 1 --max-requests {REQUESTS} --min-worker-lifetime 0"}

MATRIX = {
    "uvicorn": web(
        UVICORN,
        *("SIGTERM", "SIGINT", "max-requests", "kill", "open SIGTERM"),
        more={
            "max-requests": f"--limit-max-requests {REQUESTS}",
            "open SIGTERM": "--timeout-graceful-shutdown 1",
        },
    ),
    "uvicorn-lifespan": web(UVICORN, "SIGTERM", "SIGINT", variables={"CONFIGURE": "lifespan"}),
    "uvicorn-workers": web(f"{UVICORN} --workers 2", "SIGTERM", "SIGINT", "worker kill"),
    "uvicorn-reload": web(f"{UVICORN} --reload --reload-dir {{folder}}", "SIGTERM", "SIGINT", "reload"),
    "hypercorn": web(
        HYPERCORN,
        *("SIGTERM", "SIGINT", "max-requests", "kill"),
        more={"max-requests": f"--max-requests {REQUESTS - 1}"},
    ),
    "hypercorn-workers": web(f"{HYPERCORN} --workers 2", "SIGTERM", "SIGINT"),
    "granian": web("-m granian --interface asgi ends_asgi:app --port {port}", "SIGTERM", "SIGINT"),
    "gunicorn-sync": web(GUNICORN, *GUNICORN_ENDS, "SIGHUP", more=GUNICORN_MAX),
    "gunicorn-sync-preload": web(f"{GUNICORN} --preload", "SIGTERM", "SIGINT", "max-requests", more=GUNICORN_MAX),
    "gunicorn-sync-timeout": web(f"{GUNICORN} --timeout 2", "open"),
    "gunicorn-gthread": web(
        f"{GUNICORN} -k gthread --threads 4", "SIGTERM", "SIGQUIT", "max-requests", more=GUNICORN_MAX
    ),
    "gunicorn-gthread-preload": web(f"{GUNICORN} -k gthread --threads 4 --preload", "SIGTERM"),
    "gunicorn-gevent": web(f"{GUNICORN} -k gevent", *GUNICORN_ENDS, more=GUNICORN_MAX),
    "gunicorn-gevent-preload": web(f"{GUNICORN} -k gevent --preload", "SIGTERM", "SIGINT", "worker kill"),
    "gunicorn-eventlet": web(
        f"{GUNICORN} -k eventlet", *("SIGTERM", "max-requests"), more=GUNICORN_MAX, environment="process-ends-older"
    ),
    "gunicorn-eventlet-preload": web(
        f"{GUNICORN} -k eventlet --preload", *("SIGTERM", "SIGINT"), environment="process-ends-older"
    ),
    "gunicorn-uvicorn": web(
        f"{ASGI_GUNICORN} -k uvicorn_worker.UvicornWorker", *("SIGTERM", "SIGINT", "max-requests"), more=GUNICORN_MAX
    ),
    "gunicorn-uvicorn-preload": web(f"{ASGI_GUNICORN} -k uvicorn_worker.UvicornWorker --preload", "SIGTERM"),
    "gunicorn-asgi": web(f"{ASGI_GUNICORN} -k asgi", "SIGTERM"),
    "uwsgi": web(f"{UWSGI} --enable-threads", "SIGTERM", "SIGINT", "max-requests", "worker kill", more=UWSGI_MAX),
    "uwsgi-lazy": web(f"{UWSGI} --lazy-apps --processes 1 --enable-threads", "SIGTERM", "max-requests", more=UWSGI_MAX),
    "uwsgi-no-threads": web(
        UWSGI, *("SIGTERM", "SIGINT", "max-requests"), more=UWSGI_MAX, environment="process-ends-older"
    ),
    "uwsgi-no-threads-lazy": web(f"{UWSGI} --lazy-apps --processes 1", "SIGTERM", environment="process-ends-older"),
    "flask": web(FLASK, "SIGTERM", "SIGINT", "kill"),
    "flask-debug": web(f"{FLASK} --debug", "SIGTERM", "SIGINT"),
    "celery-prefork": App(
        f"{CELERY} prefork",
        ("SIGTERM", "SIGINT", "SIGQUIT", "max-requests", "kill"),  # celery hangs after a kill of a child
        spans=8,
        more={"max-requests": "--max-tasks-per-child 1"},
    ),
    "celery-threads": App(f"{CELERY} threads", ("SIGTERM", "kill"), spans=8),
    "celery-gevent": App(f"{CELERY} gevent", ("SIGTERM",), spans=8),
    "celery-eventlet": App(f"{CELERY} eventlet", ("SIGTERM",), spans=8),
    "celery-solo": App(f"{CELERY} solo", ("SIGTERM",), spans=8),
    "process-fork": App("ends_pools.py process fork {end}", ("return", "sys.exit", "exception", "terminate", "kill")),
    "process-spawn": App("ends_pools.py process spawn {end}", ("return", "terminate", "kill")),
    "process-forkserver": App("ends_pools.py process forkserver {end}", ("return", "exception", "terminate")),
    "pool-fork": App("ends_pools.py pool fork {end}", ("return", "max-tasks", "terminate")),
    "pool-spawn": App("ends_pools.py pool spawn {end}", ("return", "terminate")),
    "pool-forkserver": App("ends_pools.py pool forkserver {end}", ("max-tasks", "terminate")),
    "executor-fork": App("ends_pools.py executor fork {end}", ("return", "exception")),
    "executor-spawn": App("ends_pools.py executor spawn {end}", ("return",)),
    "joblib-loky": App("ends_pools.py joblib loky {end}", ("return", "exception")),
    "joblib-multiprocessing": App("ends_pools.py joblib multiprocessing {end}", ("return",)),
    "ray-task": App("ends_pools.py ray task {end}", ("return",)),
    "ray-actor": App("ends_pools.py ray actor {end}", ("exit_actor", "kill")),
    "frozen": App("ends_frozen.py", ("SIGTERM", "kill", "return"), spans=2),
    "jupyter": App("ends_notebook.py {end}", ("return", "exception", "kill")),
    "pytest": App(
        "-m pytest -c {folder}/pytest.ini --confcutdir . -p no:cacheprovider ends_user_tests.py",
        ("return", "exception", "pytest.exit"),
    ),
    "pytest-signal": App(
        "-m pytest -c {folder}/pytest.ini --confcutdir . -p no:cacheprovider ends_user_tests.py",
        ("SIGTERM", "SIGINT"),
        spans=10,
    ),
    "pytest-xdist": App(
        "-m pytest -c {folder}/pytest.ini --confcutdir . -p no:cacheprovider -n 2 ends_user_tests.py",
        ("return", "exception"),
    ),
    "script": App("ends_script.py {end}", ("return", "sys.exit", "exception", "os._exit", "fork", "daemon-thread")),
    "script-signal": App("ends_script.py signal", ("SIGTERM", "SIGINT", "kill"), spans=6),
    "script-open-trace": App("ends_script.py open-trace", ("SIGTERM", "SIGINT", "kill"), spans=7),
    "script-asyncio": App("ends_script.py asyncio", ("SIGTERM", "SIGINT"), spans=2),
}
COMBINATIONS = [(name, end) for name, app in MATRIX.items() for end in app.ends]
# Ends after which no code of the process runs: its last spans are on disk only with `durability="every-span"`.
ABRUPT_ENDS = {(name, end) for name, end in COMBINATIONS if end in ("kill", "worker kill", "os._exit")} | {
    ("flask-debug", "SIGTERM"),  # the first process kills the second one
    ("joblib-loky", "exception"),  # joblib kills its processes
    ("gunicorn-sync-timeout", "open"),  # gunicorn kills a worker that has not ended a second after its time-out
    # Ray kills a worker that has not ended after 0.1 s.
    ("ray-task", "return"),
    ("ray-actor", "exit_actor"),
}
# The topmost span of a trace whose root never ends is sent again as its root, if it was sent before.
OPEN_ENDS = {("script-open-trace", "SIGINT")}


class EndedSpan(NamedTuple):
    pid: int
    trace_id: str
    span_id: str
    is_root: bool


class Proxy(ScriptedServer):
    """Forwards all requests to MLflow, and counts the accepted copies of each span."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.accepted: Counter[str] = Counter()
        self._port = urlsplit(uri).port or 80

    def _take(self, path: str) -> Any:
        return self._forward

    def _forward(self, request: RecordedRequest) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name not in ("host", *_HOP_HEADERS)}
        connection.request(request.method, request.target, request.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if request.path.endswith("/v1/traces") and answer.status == 200:
            self.accepted.update(span.span_id.hex() for span in request.spans())
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_HEADERS}
        return Answer(answer.status, headers=headers, body=body)


class Run:
    """A run of an application."""

    def __init__(self, name: str, end: str, proxy: Proxy, folder: Path) -> None:
        self.app, self.end, self.folder = MATRIX[name], end, folder
        self.experiment = f"{name} {end}"
        self.record, self.log, self.state = folder / "ended", folder / "log", folder / "state"
        self.python = environment(self.app.environment, read_lock(self.app.environment), editable=ROOT)
        self.port = free_port()
        for subfolder in ("queue", "control"):
            (folder / subfolder).mkdir()
        for file_name in ("reloaded.py", "pytest.ini"):
            (folder / file_name).touch()
        self.variables = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.python.parent), os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": str(self.python.parent.parent),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(APPS), os.environ.get("PYTHONPATH", "")])),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_TRACKING_URI": proxy.url,
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
            "XDG_STATE_HOME": str(self.state),
            "ENDED_SPANS": str(self.record),
            "APP_FOLDER": str(folder),
            "APP_TASKS": str(self.app.spans // 2),
            "APP_END": end if name != "pytest-signal" else "signal",
            "RAY_USAGE_STATS_ENABLED": "0",
            "JUPYTER_PLATFORM_DIRS": "1",
            **self.app.variables,
        }
        if (name, end) in ABRUPT_ENDS:
            self.variables["MLFLOW_OTLP_DURABILITY"] = "every-span"

    @contextmanager
    def start(self) -> Iterator[subprocess.Popen[bytes]]:
        words = f"{self.app.command} {self.app.more.get(self.end, '')}".split()
        values = {"port": self.port, "folder": self.folder, "end": self.end, "bin": self.python.parent}
        command = [word.format(**values) for word in words]
        if not command[0].startswith("/"):
            command.insert(0, str(self.python))
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.variables,
                cwd=APPS,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                print(self.log.read_text(errors="replace"))  # shown when the test fails

    def ended_spans(self) -> list[EndedSpan]:
        if not self.record.exists():
            return []
        rows = [line.split() for line in self.record.read_text().splitlines()]
        return [EndedSpan(int(pid), trace_id, span_id, is_root == "1") for pid, trace_id, span_id, is_root in rows]

    def get(self, path: str) -> int | None:
        """Return the status of a request, or None without an answer; wait until the server accepts connections."""
        pause, end = threading.Event(), time.monotonic() + END_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=END_SECONDS)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
            except ConnectionRefusedError:
                assert time.monotonic() < end, self.log.read_text()
                pause.wait(0.02)
            except (OSError, http.client.HTTPException):
                return None
            else:
                return answer.status
            finally:
                connection.close()

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Let the application work, and end it in its way."""
        for _number in range(self.app.requests):
            assert self.get("/work") == 200
        if self.app.spans:
            wait_until(lambda: len(self.ended_spans()) >= self.app.spans, END_SECONDS, "spans have ended")
        if "uwsgi" in self.app.command:
            # uWSGI runs no exit handlers in a worker that it ends during a request, of which the log is the last part.
            wait_until(lambda: self.log.read_text().count("GET /work") == self.app.requests, END_SECONDS)
        # Without the first process, in which spans may have ended while it imported the application.
        workers = {span.pid for span in self.ended_spans()} - {process.pid}
        if self.end in WORKER_ENDS:
            self._end_workers(process, workers)
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        if self.end == "open SIGTERM":
            count = len(self.ended_spans())
            connection.request("GET", "/open")
            wait_until(lambda: len(self.ended_spans()) > count, END_SECONDS, "a span has ended")
        if self.end == "kill" and self.app.spans:
            os.killpg(process.pid, signal.SIGKILL)
        elif self.app.spans:
            name = re.search(r"SIG(TERM|INT|QUIT)$", self.end)
            process.send_signal(signal.Signals[name[0]] if name else signal.SIGTERM)
        process.wait(END_SECONDS)
        connection.close()
        # Children that outlive the first process may still send.
        wait_until(lambda: not group_members(process.pid), END_SECONDS, "all processes have ended")

    def _end_workers(self, process: subprocess.Popen[bytes], workers: set[int]) -> None:
        """End processes that have worked, and wait until they have ended and others have taken their place."""
        count = len(group_members(process.pid))
        if self.end == "open":
            self.get("/open")
        elif self.end == "reload":
            wait_until(self._is_reloading, END_SECONDS, "uvicorn reloads")
        elif self.end == "worker kill":
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        elif self.end == "SIGHUP":
            process.send_signal(signal.SIGHUP)
        are_all = self.end in ("reload", "worker kill", "SIGHUP")

        def is_over() -> bool:
            members = group_members(process.pid)
            has_ended = not workers & members if are_all else not (workers or {process.pid}) <= members
            # A server that is ended before it has replaced its workers may wait for them.
            return has_ended and (len(members) >= count or self.end in ("max-requests", "open"))

        wait_until(is_over, END_SECONDS, "workers have been replaced")

    def _is_reloading(self) -> bool:
        """Change a file until uvicorn notices: a change before it first reads the times of the files has no effect."""
        is_reloading = "Reloading" in self.log.read_text()
        if not is_reloading:
            (self.folder / "reloaded.py").write_text("x = 1\n")
        return is_reloading

    def start_again(self) -> None:
        """Start an application with the same settings, which sends what is on disk."""
        command = [str(self.python), "ends_script.py", "next-start"]
        subprocess.run(command, env=self.variables, cwd=APPS, check=True, timeout=2 * END_SECONDS)

    def files(self) -> list[Path]:
        return [path for path in self.state.rglob("*") if path.suffix in (".otlp", ".journal")]


def group_members(group: int) -> set[int]:
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return {int(folder.name) for folder in folders if _process_group(folder) == group}


def _process_group(folder: Path) -> int | None:
    """Return the process group of a running process; a zombie has ended."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[2])


def run_frozen(run: Run, process: subprocess.Popen[bytes]) -> None:
    """Call the handler, and freeze the process between the calls."""
    assert process.stdin is not None
    for number in range(1, 4):
        process.send_signal(signal.SIGCONT)
        process.stdin.write(b"call\n")
        process.stdin.flush()
        wait_until(lambda number=number: run.log.read_bytes().count(b"done") == number, END_SECONDS)  # type: ignore[misc]
        process.send_signal(signal.SIGSTOP)
    if run.end == "kill":
        process.kill()
    else:
        process.send_signal(signal.SIGCONT)
        if run.end == "SIGTERM":
            process.terminate()
        process.stdin.close()
    process.wait(END_SECONDS)


def stored_traces(server: MLflowServer, experiment: str) -> dict[str, dict[str, Any]]:
    stored = server.experiment(experiment)
    infos = server.search_traces(stored["experiment_id"]) if stored else ()
    traces = [server.trace(info["trace_id"]) for info in infos]
    return {trace["trace_info"]["trace_id"].removeprefix("tr-"): trace for trace in traces if trace}


@pytest.fixture
def proxy(mlflow_server: MLflowServer) -> Iterator[Proxy]:
    proxy = Proxy(mlflow_server.uri)
    with proxy:
        yield proxy


@pytest.mark.parametrize(("name", "end"), COMBINATIONS, ids=lambda value: value.replace(" ", "-"))
def test_process_end_keeps_each_ended_span_once(
    mlflow_server: MLflowServer, proxy: Proxy, tmp_path: Path, name: str, end: str
) -> None:
    run = Run(name, end, proxy, tmp_path)
    with run.start() as process:
        if name == "frozen":
            run_frozen(run, process)
        else:
            run.finish(process)
    ended = run.ended_spans()
    assert len(ended) >= max(run.app.spans, 2), run.log.read_text()
    if run.files():
        run.start_again()
    assert not run.files()
    log = run.log.read_text(errors="replace")
    assert not _OWN_TRACEBACK.search(log), log
    traces = stored_traces(mlflow_server, run.experiment)
    stored = [
        (trace_id, base64.b64decode(span["span_id"]).hex())
        for trace_id, trace in traces.items()
        for span in trace["spans"]
    ]
    lost = [span for span in ended if (span.trace_id, span.span_id) not in stored]
    assert not lost, f"{len(lost)} of {len(ended)} spans are lost:\n{lost}\n{log}"
    assert len(set(stored)) == len(stored)
    assert {traces[span.trace_id]["trace_info"]["state"] for span in ended if span.is_root} == {"OK"}
    # What was answered too late for the end of a process, or not before it ended, is rightly sent again. MLflow stores
    # it once.
    # uWSGI may end a worker before it has removed from the disk what it sent.
    may_repeat = (name, end) in ABRUPT_ENDS | OPEN_ENDS or (name.startswith("uwsgi") and end in ("SIGTERM", "SIGINT"))
    if not may_repeat and not re.search("MLO-(210|512)", log):
        assert {span_id: count for span_id, count in proxy.accepted.items() if count > 1} == {}
