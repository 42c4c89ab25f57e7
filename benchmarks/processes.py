"""Processes for benchmarks: child processes, a trivial OTLP server, and the CPU time of a process group."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_CHILD_SECONDS = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")


def make_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child, without settings of exporters.

    Args:
        variables: Additional variables.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
    return {**inherited, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **(variables or {})}


def run_child(script: str, *arguments: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a benchmark's own script in a fresh process. Return the JSON object in its last line of output.

    Args:
        script: `__file__` of the benchmark.
        arguments: Arguments of the script.
        variables: Additional environment variables.

    Raises:
        RuntimeError: The script failed. The message contains its output.
    """
    process = subprocess.run(
        [sys.executable, script, *arguments],
        env=make_environment(variables),
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(f"{Path(script).name} {' '.join(arguments)} failed:\n{process.stdout}\n{process.stderr}")
    result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return result


@contextmanager
def start_sink(*, stalled: bool = False) -> Iterator[str]:
    """Run a trivial server in a separate process, so that its work is not measured. Yield its address.

    Args:
        stalled: Accept connections and never answer.
    """
    command = [sys.executable, __file__, *(["--stalled"] if stalled else [])]
    with subprocess.Popen(command, env=make_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def read_group_seconds(group: int) -> float:
    """Return the CPU seconds that a process group has used so far, including its ended children.

    Args:
        group: Process group id.
    """
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended meanwhile
            continue
        # Fields after the name: state, parent, group; 12 to 15 are user and system time, own and of ended children.
        if int(fields[2]) == group:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / _TICKS


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads the whole request and answers with an empty 200, like MLflow."""

    protocol_version = "HTTP/1.1"
    # Without these two lines, Nagle's algorithm delays every answer by 40 ms.
    disable_nagle_algorithm = True
    wbufsize = -1
    stalled = False

    def do_POST(self) -> None:
        """Answer, or wait forever."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.stalled:
            threading.Event().wait()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        """Answer with a version of MLflow: the gateway asks for it."""
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"3.17.2")

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing."""


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stalled", action="store_true")
    _Handler.stalled = parser.parse_args().stalled
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _main()
