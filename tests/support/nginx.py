"""A real nginx in front of a server, with a configuration that each test writes."""

import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from support.needs import executable

START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02

_CONFIGURATION = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
{user}
events {}
http {
    log_format plain "$request_method $uri $status $http_authorization";
    access_log {folder}/access.log plain;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # Which configuration is in force, whatever the server below answers.
    server {
        listen 127.0.0.1:{control};
        access_log off;
        location / { return 200 "{generation}"; }
    }
    server {
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        {server}
    }
}
"""
PASS = "location / { proxy_pass {upstream}; }"
"""A server block that hands everything on."""


class Nginx:
    """A running nginx on 127.0.0.1.

    Attributes:
        uri: Its address.
        folder: Where its configuration and logs are.
        process: Its master process.
    """

    def __init__(self, folder: Path, server: str, upstream: str) -> None:
        """Starts it and waits until it answers.

        Args:
            folder: For its configuration and logs; made if missing.
            server: What stands in the server block; {port} and {upstream} are filled in.
            upstream: The address of the server behind it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._upstream = upstream
        self._port, self._control = _free_ports(2)
        self.uri = f"http://127.0.0.1:{self._port}"
        self._generation = 0
        self._write(server)
        command = [str(executable("nginx")), "-e", str(folder / "error.log"), "-p", str(folder), "-c", "nginx.conf"]
        with (folder / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "-g", "daemon off;"], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_in_force()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Nginx":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write(self, server: str) -> None:
        self._generation += 1
        values = {
            "server": server,  # first, as it may hold the others
            "folder": str(self.folder),
            "port": str(self._port),
            "control": str(self._control),
            "upstream": self._upstream,
            "generation": str(self._generation),
            # Workers of a root's nginx would be nobody's, who may not look into a test's folder.
            "user": "user root;" if self.folder.stat().st_uid == 0 else "",
        }
        text = _CONFIGURATION
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        (self.folder / "nginx.conf").write_text(text)

    def reload(self, server: str) -> None:
        """Puts another server block in force; when this returns, no connection is accepted under the old one."""
        self._write(server)
        with suppress(ProcessLookupError):
            self.process.send_signal(1)  # SIGHUP
        self._wait_until_in_force()

    def _wait_until_in_force(self) -> None:
        end = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            # A worker of an older configuration accepts until it says this.
            retired = self._log().count("gracefully shutting down")
            if self._generation_in_force() == self._generation and retired >= self._generation - 1:
                return
            pause.wait(POLL_SECONDS)
        output = (self.folder / "output.log").read_text(errors="replace")
        raise RuntimeError(f"nginx did not take its configuration:\n{output}\n{self._log()[-2000:]}")

    def _generation_in_force(self) -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._control}/", timeout=1.0) as answer:
                return int(answer.read())
        except (urllib.error.URLError, OSError, ValueError):
            return 0

    def _log(self) -> str:
        path = self.folder / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def statuses(self, method: str = "POST", path: str = "/v1/traces") -> list[int]:
        """The status of every request to a path so far.

        nginx writes the line of a request when its answer is sent: whoever has the answer may have to wait for it.
        """
        text = (self.folder / "access.log").read_text(errors="replace")
        return [int(status) for status in re.findall(rf"^{method} {re.escape(path)} (\d+) ", text, re.MULTILINE)]

    def rejected_credentials(self) -> Counter[str]:
        """How often each Authorization header got a 401, for any path."""
        text = (self.folder / "access.log").read_text(errors="replace")
        return Counter(re.findall(r"^\S+ \S+ 401 (.*)$", text, re.MULTILINE))

    def counts(self) -> Counter[int]:
        """How many requests to the OTLP endpoint got which status."""
        return Counter(self.statuses())

    def stop(self) -> None:
        """Ends it with its workers."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
