"""An outage of minutes at 500 spans a second: its costs in the application, and the rate of the delivery afterwards.

Time is compressed: the spans come at three times the rate, and are buffered for a third of the time.
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
from mlflow_otlp_exporter._internal.model.spans import encode_request
from mlflow_otlp_exporter._internal.spool import file_format
from support.mlflow_server import MLflowServer
from support.traces import stored_span_names, wait_until

RATE, BUFFER_SECONDS = 500, 5.0
"""Spans a second, and the seconds for which they are buffered at that rate before they share a request."""
TIME_FACTOR = 3
ROUNDS = 3


@dataclass(frozen=True)
class Bounds:
    """Limits: strict on an idle machine, otherwise loose enough for a busy one, but tight enough to detect faults.

    Attributes:
        median: Seconds of the application's thread for the end of a span.
        p99: The same for the slowest hundredth. A thread that waits for a server, a disk or one of their locks takes
            more than 0.1 s; a thread without a free core may take some hundredths.
        rate: Minimum rate of the spool consumer, relative to direct requests.
    """

    median: float
    p99: float
    rate: float


ON_BUSY_MACHINE, ON_IDLE_MACHINE = Bounds(0.001, 0.1, 0.4), Bounds(0.0001, 0.001, 0.8)


@pytest.mark.parametrize(
    ("seconds", "bounds"),
    [
        pytest.param(20, ON_BUSY_MACHINE, id="20"),
        pytest.param(600, ON_IDLE_MACHINE, marks=pytest.mark.matrix, id="600"),
    ],
)
def test_outage_of_minutes_keeps_spans_and_delivers_them_at_the_servers_rate(
    tmp_path: Path, seconds: int, bounds: Bounds
) -> None:
    server = MLflowServer.start(tmp_path / "mlflow")
    try:
        experiment = server.create_experiment("outage")
        server.kill()
        variables = {
            "MLFLOW_TRACKING_URI": server.uri,
            "MLFLOW_EXPERIMENT_ID": experiment,
            "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path / "spool"),
            "MLFLOW_OTLP_HOLD": str(BUFFER_SECONDS / TIME_FACTOR),
            "MLFLOW_OTLP_MAX_REQUEST_SIZE": "262144",
        }
        completed = subprocess.run(
            [sys.executable, "-m", "support.outage_app", str(seconds * RATE), str(RATE * TIME_FACTOR)],
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=seconds * 2 + 60,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        measurements = json.loads(completed.stdout)
        assert (measurements["dropped"], measurements["pending"]) == (0, 0), measurements
        assert measurements["spooled"] >= seconds * RATE
        assert measurements["grown"] < 50_000_000, measurements
        assert measurements["median"] < bounds.median, measurements
        assert measurements["p99"] < bounds.p99, measurements
        server.restart()
        ratio = catch_up(server, experiment, Path(variables["MLFLOW_OTLP_SPOOL_DIR"]))
        sys.stdout.write(json.dumps({**measurements, "catch up": ratio}) + "\n")
        assert len(stored_span_names(server.log.parent / "mlflow.db", experiment)) == measurements["spooled"]
        assert ratio >= bounds.rate
    finally:
        server.stop()


def catch_up(server: MLflowServer, experiment: str, root: Path) -> float:
    """Send parts of the spool directly to the server and by an exporter, in turns.

    Returns:
        The rate of the exporter, relative to direct requests.
    """
    [folder] = [path for path in root.iterdir() if path.is_dir()]
    files = sorted(folder.glob("*.otlp"))
    other_folder = root / "aside"
    other_folder.mkdir()
    parts: list[list[Path]] = [[] for _ in range(2 * ROUNDS)]
    for number, path in enumerate(files):
        parts[number % len(parts)].append(path.rename(other_folder / path.name))
    direct_seconds = exporter_seconds = 0.0
    headers = {"content-type": "application/x-protobuf", "x-mlflow-experiment-id": experiment}
    with requests.Session() as session:
        for one, other in zip(parts[::2], parts[1::2], strict=True):
            bodies = [encode_request(file_format.decode_file(path.read_bytes())[2]) for path in one]
            begin = time.monotonic()
            for body in bodies:
                session.post(f"{server.uri}/v1/traces", data=body, headers=headers, timeout=60).raise_for_status()
            direct_seconds += (time.monotonic() - begin) / span_count(one)
            for path in other:
                path.rename(folder / path.name)
            begin = time.monotonic()
            exporter = MLflowSpanExporter(
                tracking_uri=server.uri, experiment_id=experiment, spool=True, spool_dir=root, timeout=30
            )
            wait_until(lambda: not list(folder.glob("*.otlp")), 300)
            exporter_seconds += (time.monotonic() - begin) / span_count(other)
            exporter.shutdown(1000)
    return direct_seconds / exporter_seconds


def span_count(files: list[Path]) -> int:
    """Return the number of spans in files of a spool."""
    return sum(int(path.name.split("-")[1]) for path in files)
