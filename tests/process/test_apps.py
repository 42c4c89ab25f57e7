"""Apps of every kind, as real processes, against a real MLflow: each trace whole, and where it belongs."""

import http.client
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.apps import free_port, run_server, wait_for
from support.mlflow_server import MLflowServer

# Above a minute, which the default lane has not.
pytestmark = pytest.mark.matrix

APPS = Path(__file__).resolve().parents[1] / "apps"
TENANTS = 5
AGENT = ("answer", "get_weather")


def environment(server: MLflowServer, kind: str, folder: Path) -> dict[str, str]:
    for name in ("queue", "results", "control"):
        (folder / name).mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(APPS), os.environ.get("PYTHONPATH", "")]))
    own = {"MLFLOW_TRACKING_URI": server.uri, "APP_KIND": kind, "APP_FOLDER": str(folder), "PYTHONPATH": path}
    return {**os.environ, **own}


def landed(server: MLflowServer, kind: str) -> set[tuple[Any, ...]]:
    """Number, user, session, workspace, experiment, spans of all traces of an app."""
    found = set()
    for workspace in ("team-a", "team-b"):
        for tenant in range(TENANTS):
            name = f"{kind}-{tenant}"
            experiment = server.experiment(name, workspace)
            for info in server.search_traces(experiment["experiment_id"], workspace) if experiment else ():
                trace = server.trace(info["trace_id"], workspace)
                assert trace is not None
                metadata = info["trace_metadata"]
                found.add(
                    (
                        int(info["tags"]["number"]),
                        metadata["mlflow.trace.user"],
                        metadata["mlflow.trace.session"],
                        workspace,
                        name,
                        info["state"],
                        # A web framework's own spans are there as well, or not.
                        tuple(sorted(span["name"] for span in trace["spans"] if span["name"] in AGENT)),
                    )
                )
    return found


def expected(kind: str, count: int) -> set[tuple[Any, ...]]:
    return {
        (
            number,
            f"user-{number % 3}",
            f"session-{number}",
            "team-a" if number % 2 else "team-b",
            f"{kind}-{number % TENANTS}",
            "OK",
            AGENT,
        )
        for number in range(count)
    }


def asked(port: int, count: int) -> list[str]:
    """All at once, each over a connection of its own."""

    def ask(number: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
        connection.request("GET", f"/?number={number}")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, text
        return text

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_fastapi_with_uvicorn_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    port = free_port()
    variables = environment(workspace_server, "fastapi", tmp_path)
    with run_server(["uvicorn", "fastapi_app:app", "--port", str(port)], variables, port, APPS):
        asked(port, 50)
    assert landed(workspace_server, "fastapi") == expected("fastapi", 50)


def test_flask_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    port = free_port()
    variables = environment(workspace_server, "flask", tmp_path)
    code = [sys.executable, str(APPS / "flask_app.py"), str(port)]
    process = subprocess.Popen(code, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        asked(port, 10)
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C ends the development server
        process.wait(100)
    assert landed(workspace_server, "flask") == expected("flask", 10)


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no-preload"])
def test_gunicorn_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path, preload: bool) -> None:
    port, kind = free_port(), f"gunicorn-{preload}"
    command = ["gunicorn", "flask_app:app", "-b", f"127.0.0.1:{port}", "--workers", "4", *["--preload"] * preload]
    with run_server(command, environment(workspace_server, kind, tmp_path), port, APPS):
        asked(port, 40)
    assert landed(workspace_server, kind) == expected(kind, 40)


def test_celery_prefork_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    variables = environment(workspace_server, "celery", tmp_path)
    with run_server(
        ["celery", "-A", "celery_app", "worker", "-P", "prefork", "-c", "2", "-l", "warning"], variables, None, APPS
    ):
        command = [sys.executable, str(APPS / "celery_asks.py"), "30"]
        subprocess.run(command, env=variables, check=True, timeout=300)
    assert landed(workspace_server, "celery") == expected("celery", 30)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_pool_exports_each_trace_whole(
    workspace_server: MLflowServer, tmp_path: Path, method: str
) -> None:
    kind = f"pool-{method}"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(APPS / "pool_app.py"), method, "12"]
    subprocess.run(command, env=environment(workspace_server, kind, tmp_path), check=True, timeout=300)
    assert landed(workspace_server, kind) == expected(kind, 12)


def test_asyncio_gather_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    variables = environment(workspace_server, "asyncio", tmp_path)
    subprocess.run([sys.executable, str(APPS / "asyncio_app.py"), "200"], env=variables, check=True, timeout=300)
    assert landed(workspace_server, "asyncio") == expected("asyncio", 200)


CELLS = (
    "from mlflow_otlp_exporter import configure, flush; telemetry = configure(); from agent import serve",
    "first = [serve(number) for number in range({begin}, {end})]",
    "again = configure(); assert again is telemetry",
    "result = telemetry.flush(); assert result, result",
)


def test_notebook_executed_twice_exports_each_trace_once(
    workspace_server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(workspace_server, "notebook", tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    cells = [nbformat.v4.new_code_cell(code.format(begin=0, end=3)) for code in CELLS]  # type: ignore[no-untyped-call]
    cells += [nbformat.v4.new_code_cell(code.format(begin=3, end=6)) for code in CELLS]  # type: ignore[no-untyped-call]
    book = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    client = NotebookClient(book, timeout=200, kernel_name="python3")
    client.execute()
    assert landed(workspace_server, "notebook") == expected("notebook", 6)
