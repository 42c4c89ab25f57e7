"""Servers of applications, each in its own process."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def run_server(
    command: Sequence[str], variables: Mapping[str, str], port: int | None = None, folder: Path | None = None
) -> Iterator[None]:
    """Run a server in its own process, and stop it with SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        if port is not None:
            wait_for(port, process)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            output = process.communicate(timeout=100)[0].decode()
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "Traceback" not in output, output


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    pause, end = threading.Event(), time.monotonic() + 100
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            pause.wait(0.05)
        else:
            return
