"""Agents and servers are killed at work: in the end nothing that was promised is missing, and nothing there twice."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from support.chaos import Agent, check, sqlite
from support.mlflow_server import MLflowServer
from support.traces import until

pause = threading.Event().wait


def environment(tmp_path: Path, uri: str, experiment: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_ID": experiment,
        "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path / "spool"),
    }


def drain(variables: dict[str, str], seconds: float = 120.0) -> None:
    """Sends by hand what is left, as a user would."""
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "spool", "flush", "--timeout", "20"]
    end = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            command,
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        left = list(Path(variables["MLFLOW_OTLP_SPOOL_DIR"]).glob("*/journal/*"))
        if done.returncode == 0 and not left:
            return
        assert time.monotonic() < end, (done.stdout, done.stderr, left)


def test_agents_and_the_server_are_killed(tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path / "mlflow")
    try:
        experiment = server.create_experiment("chaos")
        variables = environment(tmp_path, server.uri, experiment)
        with (
            Agent(tmp_path, 0, variables, every_span=False) as first,
            Agent(tmp_path, 1, variables, every_span=True) as second,
        ):
            until(lambda: len(second.ended()) > 50, 30)
            pause(6)
            first.kill()
            second.kill()
            pause(4)
            server.kill()
            pause(3)
            second.kill()
            pause(3)
            server.restart()
            pause(5)
            first.kill()
            second.kill()
            pause(3)
            for agent in (first, second):
                agent.end()
                assert "Traceback" not in agent.log()
        drain(variables)
        counts = check(server, sqlite(server.log.parent / "mlflow.db"), experiment, (first, second))
        assert counts["kills"] == 5
        assert counts["promised"] > 500, counts
    finally:
        server.stop()
