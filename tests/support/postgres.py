"""A real PostgreSQL that a test can stop, restart or freeze."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from support.needs import executable

START_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.02
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """A running PostgreSQL on 127.0.0.1 with a new database, in its own folder, which is removed in the end.

    Attributes:
        uri: For `mlflow server --backend-store-uri`.
        process: The server's first process.
    """

    def __init__(self) -> None:
        # Not below pytest's folders, which the user `postgres` cannot read.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._programs = executable("postgresql").resolve().parent
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self._port = int(sock.getsockname()[1])
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{self._port}/postgres"
        self.process: subprocess.Popen[bytes]
        try:
            self._run("initdb", "-D", "data", "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
            self.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self._programs / program), *arguments]
        completed: subprocess.CompletedProcess[str] = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False, **self._as_user
        )
        if completed.returncode:
            raise RuntimeError(f"{program} ended with {completed.returncode}:\n{completed.stdout}{completed.stderr}")
        return completed.stdout

    def query(self, sql: str) -> list[str]:
        """Query the database, and return the first column of each row."""
        address = ["-h", "127.0.0.1", "-p", str(self._port), "-U", "mlflow", "-d", "postgres"]
        return self._run("psql", *address, "--no-psqlrc", "--tuples-only", "--no-align", "-c", sql).splitlines()

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        options = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [str(self._programs / "postgres"), "-D", "data"]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = self._folder / "postgres.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._as_user,
            )
        end = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(RuntimeError):
                self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self._port))
                return
            pause.wait(POLL_SECONDS)
        self.stop("immediate")
        raise RuntimeError("PostgreSQL did not start:\n" + log.read_text(errors="replace")[-3000:])

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and wait for its end: "fast" as an operator does, "immediate" like a crash."""
        with suppress(ProcessLookupError):
            self.process.send_signal(_SIGNALS[mode])
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def freeze(self) -> Iterator[None]:
        """Stop all its processes: connections stay open, without answers."""
        stopped: list[int] = []
        try:
            # The main process first, because it would start others.
            for process in [self.process.pid, *self._children()]:
                os.kill(process, signal.SIGSTOP)
                stopped.append(process)
            yield
        finally:
            for process in stopped:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def _children(self) -> list[int]:
        """Return its other processes, each in its own group, so that no signal reaches all of them."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
