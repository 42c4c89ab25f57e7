"""An outage of minutes at 500 spans a second: what the app feels of it, and how fast the server has all afterwards.

Time is simulated: what ten minutes bring comes at three times the rate, and is held for a third of the time.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from mlflow_otlp_exporter import MLflowSpanExporter
from mlflow_otlp_exporter._internal.model.encoded_span import encode_request
from mlflow_otlp_exporter._internal.spool import file_format
from support.mlflow_server import MLflowServer
from support.traces import stored_span_names, wait_until

RATE, HELD = 500, 5.0
"""Spans a second; and for how many seconds they are held in memory at that rate, before they share a request."""
FASTER = 3
ROUNDS = 3


@dataclass(frozen=True)
class Bounds:
    """What is asked for: in full on a machine that has nothing else to do, else only what tells right from wrong.

    Attributes:
        median: Seconds of the app's thread for the end of a span.
        p99: The same for the slowest hundredth. A thread that waits for a server, a disk or a lock of theirs takes more
            than 0.1 s; one whose core is taken by others may take some hundredths.
        rate: Of the drainer, as a part of the server's own.
    """

    median: float
    p99: float
    rate: float


AMONG_OTHERS, ALONE = Bounds(0.001, 0.1, 0.4), Bounds(0.0001, 0.001, 0.8)


@pytest.mark.parametrize(
    ("seconds", "bounds"),
    [pytest.param(20, AMONG_OTHERS, id="20"), pytest.param(600, ALONE, marks=pytest.mark.matrix, id="600")],
)
def test_outage_of_minutes(tmp_path: Path, seconds: int, bounds: Bounds) -> None:
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
        assert (found["dropped"], found["pending"]) == (0, 0), found
        assert found["spooled"] >= seconds * RATE
        assert found["grown"] < 50_000_000, found
        assert found["median"] < bounds.median, found
        assert found["p99"] < bounds.p99, found
        server.restart()
        ratio = catch_up(server, experiment, Path(variables["MLFLOW_OTLP_SPOOL_DIR"]))
        sys.stdout.write(json.dumps({**found, "catch up": ratio}) + "\n")
        assert len(stored_span_names(server.log.parent / "mlflow.db", experiment)) == found["spooled"]
        assert ratio >= bounds.rate
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
            bodies = [encode_request(file_format.decode_file(path.read_bytes())[2]) for path in one]
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
            wait_until(lambda: not list(folder.glob("*.otlp")), 300)
            drained += (time.monotonic() - begin) / size(other)
            exporter.shutdown(1000)
    return straight / drained


def size(files: list[Path]) -> int:
    """How many spans are in files of a spool."""
    return sum(int(path.name.split("-")[1]) for path in files)
