"""Processes for benchmarks: a benchmark's own child, a trivial OTLP server, the CPU time of a group of processes."""

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


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: nothing of this one's that points an exporter anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OTEL_"))}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **(more or {})}


def child(script: str, *arguments: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a benchmark's own script in a fresh process, and returns what it prints as its last line, as JSON.

    Args:
        script: `__file__` of the benchmark.
        arguments: Its arguments.
        more: Variables of its environment.

    Raises:
        RuntimeError: It failed; the message has what it said.
    """
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment(more),
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(script).name} {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@contextmanager
def sink(*, stalled: bool = False) -> Iterator[str]:
    """A trivial server in a process of its own, so that its work is not counted; yields its address.

    Args:
        stalled: It takes connections and never answers.
    """
    command = [sys.executable, __file__, *(["--stalled"] if stalled else [])]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def group_seconds(group: int) -> float:
    """CPU seconds that a process group has used so far, with its ended children.

    Args:
        group: The id of the group.
    """
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        # After the name: state, parent, group; user, system, and those of waited-for children are fields 12 to 15.
        if int(fields[2]) == group:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / _TICKS


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads a request whole and answers it with an empty 200, as MLflow does."""

    protocol_version = "HTTP/1.1"
    # Two writes and Nagle's algorithm would make every answer 40 ms late.
    disable_nagle_algorithm = True
    wbufsize = -1
    stalled = False

    def do_POST(self) -> None:
        """Answers, or waits for ever."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.stalled:
            threading.Event().wait()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name is the base class's
        """Says nothing."""


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
