"""Applications as real processes with a real MLflow: each trace is whole, and in its experiment."""

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

# They take more than a minute, too long for the default lane.
pytestmark = pytest.mark.matrix

APPS = Path(__file__).resolve().parents[1] / "apps"
TENANTS = 5
AGENT = ("answer", "get_weather")


def environment(server: MLflowServer, kind: str, folder: Path) -> dict[str, str]:
    for name in ("queue", "results", "control"):
        (folder / name).mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(APPS), os.environ.get("PYTHONPATH", "")]))
    variables = {"MLFLOW_TRACKING_URI": server.uri, "APP_KIND": kind, "APP_FOLDER": str(folder), "PYTHONPATH": path}
    return {**os.environ, **variables}


def stored_traces(server: MLflowServer, kind: str) -> set[tuple[Any, ...]]:
    """Return number, user, session, workspace, experiment, state and spans of all traces of an application."""
    rows = set()
    for workspace in ("team-a", "team-b"):
        for tenant in range(TENANTS):
            name = f"{kind}-{tenant}"
            experiment = server.experiment(name, workspace)
            for info in server.search_traces(experiment["experiment_id"], workspace) if experiment else ():
                trace = server.trace(info["trace_id"], workspace)
                assert trace is not None
                metadata = info["trace_metadata"]
                rows.add(
                    (
                        int(info["tags"]["number"]),
                        metadata["mlflow.trace.user"],
                        metadata["mlflow.trace.session"],
                        workspace,
                        name,
                        info["state"],
                        # Without the spans of web frameworks, which only some traces have.
                        tuple(sorted(span["name"] for span in trace["spans"] if span["name"] in AGENT)),
                    )
                )
    return rows


def expected_traces(kind: str, count: int) -> set[tuple[Any, ...]]:
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


def send_questions(port: int, count: int) -> list[str]:
    """Send all questions at the same time, each over its own connection."""

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
        send_questions(port, 50)
    assert stored_traces(workspace_server, "fastapi") == expected_traces("fastapi", 50)


def test_flask_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    port = free_port()
    variables = environment(workspace_server, "flask", tmp_path)
    code = [sys.executable, str(APPS / "flask_app.py"), str(port)]
    process = subprocess.Popen(code, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        send_questions(port, 10)
    finally:
        process.send_signal(signal.SIGINT)  # like Ctrl-C, which stops the development server
        process.wait(100)
    assert stored_traces(workspace_server, "flask") == expected_traces("flask", 10)


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "no-preload"])
def test_gunicorn_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path, preload: bool) -> None:
    port, kind = free_port(), f"gunicorn-{preload}"
    command = ["gunicorn", "flask_app:app", "-b", f"127.0.0.1:{port}", "--workers", "4", *["--preload"] * preload]
    with run_server(command, environment(workspace_server, kind, tmp_path), port, APPS):
        send_questions(port, 40)
    assert stored_traces(workspace_server, kind) == expected_traces(kind, 40)


def test_celery_prefork_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    variables = environment(workspace_server, "celery", tmp_path)
    with run_server(
        ["celery", "-A", "celery_app", "worker", "-P", "prefork", "-c", "2", "-l", "warning"], variables, None, APPS
    ):
        command = [sys.executable, str(APPS / "celery_asks.py"), "30"]
        subprocess.run(command, env=variables, check=True, timeout=300)
    assert stored_traces(workspace_server, "celery") == expected_traces("celery", 30)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_pool_exports_each_trace_whole(
    workspace_server: MLflowServer, tmp_path: Path, method: str
) -> None:
    kind = f"pool-{method}"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(APPS / "pool_app.py"), method, "12"]
    subprocess.run(command, env=environment(workspace_server, kind, tmp_path), check=True, timeout=300)
    assert stored_traces(workspace_server, kind) == expected_traces(kind, 12)


def test_asyncio_gather_exports_each_trace_whole(workspace_server: MLflowServer, tmp_path: Path) -> None:
    variables = environment(workspace_server, "asyncio", tmp_path)
    subprocess.run([sys.executable, str(APPS / "asyncio_app.py"), "200"], env=variables, check=True, timeout=300)
    assert stored_traces(workspace_server, "asyncio") == expected_traces("asyncio", 200)


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
    assert stored_traces(workspace_server, "notebook") == expected_traces("notebook", 6)
