"""An outage of minutes at 500 spans a second: what the app feels of it, and how fast the server has all afterwards.

Time is simulated: what ten minutes bring comes at three times the rate, and is held for a third of the time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from mlflow_otlp_exporter import MLflowSpanExporter, _spool_file
from mlflow_otlp_exporter._encoder import assemble
from support.mlflow_server import MLflowServer
from support.traces import stored, until

RATE, HELD = 500, 5.0
"""Spans a second; and for how many seconds they are held in memory at that rate, before they share a request."""
FASTER = 3
ROUNDS = 3


@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.matrix)])
def test_outage_of_minutes(tmp_path: Path, seconds: int) -> None:
    server = MLflowServer.start(tmp_path / "mlflow")
    try:
        experiment = server.create_experiment("outage")
        server.kill()
        variables = {
            "MLFLOW_TRACKING_URI": server.uri,
            "MLFLOW_EXPERIMENT_ID": experiment,
            "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path / "spool"),
            "MLFLOW_OTLP_HOLD": str(HELD / FASTER),
            "MLFLOW_OTLP_MAX_REQUEST_SIZE": "262144",
        }
        done = subprocess.run(
            [sys.executable, "-m", "support.outage_app", str(seconds * RATE), str(RATE * FASTER)],
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=seconds * 2 + 60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["refused"], found["pending"]) == (0, 0), found
        assert found["spooled"] >= seconds * RATE
        assert found["grown"] < 50_000_000, found
        assert found["median"] < 0.0001, found
        assert found["p99"] < 0.001, found
        server.restart()
        ratio = catch_up(server, experiment, Path(variables["MLFLOW_OTLP_SPOOL_DIR"]))
        assert len(stored(server.log.parent / "mlflow.db", experiment)) == found["spooled"]
        assert ratio >= 0.8
    finally:
        server.stop()


def catch_up(server: MLflowServer, experiment: str, root: Path) -> float:
    """Sends one part of what lies on disk straight to the server, and has the other one drained, in turns.

    Returns:
        The rate of the drainer as a part of the server's own.
    """
    [folder] = [path for path in root.iterdir() if path.is_dir()]
    files = sorted(folder.glob("*.otlp"))
    aside = root / "aside"
    aside.mkdir()
    parts: list[list[Path]] = [[] for _ in range(2 * ROUNDS)]
    for number, path in enumerate(files):
        parts[number % len(parts)].append(path.rename(aside / path.name))
    straight = drained = 0.0
    headers = {"content-type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    with requests.Session() as session:
        for one, other in zip(parts[::2], parts[1::2], strict=True):
            bodies = [assemble(_spool_file.from_bytes(path.read_bytes())[2]) for path in one]
            begin = time.monotonic()
            for body in bodies:
                session.post(f"{server.uri}/v1/traces", data=body, headers=headers, timeout=60).raise_for_status()
            straight += (time.monotonic() - begin) / size(one)
            for path in other:
                path.rename(folder / path.name)
            begin = time.monotonic()
            exporter = MLflowSpanExporter(
                tracking_uri=server.uri, experiment_id=experiment, spool=True, spool_dir=root, timeout=30
            )
            until(lambda: not list(folder.glob("*.otlp")), 300)
            drained += (time.monotonic() - begin) / size(other)
            exporter.shutdown(1000)
    return straight / drained


def size(files: list[Path]) -> int:
    """How many spans are in files of a spool."""
    return sum(int(path.name.split("-")[1]) for path in files)
