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
    # The number of the active configuration, independent of the server below.
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
"""A server block that forwards everything."""


class Nginx:
    """A running nginx on 127.0.0.1.

    Attributes:
        uri: Its address.
        folder: Where its configuration and logs are.
        process: Its master process.
    """

    def __init__(self, folder: Path, server: str, upstream: str) -> None:
        """Start it and wait until it answers.

        Args:
            folder: For its configuration and logs.
            server: The content of the server block; {port} and {upstream} are replaced.
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
            self._wait_until_active()
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
            # Workers of an nginx that root starts cannot read the folders of tests without this.
            "user": "user root;" if self.folder.stat().st_uid == 0 else "",
        }
        text = _CONFIGURATION
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        (self.folder / "nginx.conf").write_text(text)

    def reload(self, server: str) -> None:
        """Activate another server block; afterwards, no connection is accepted under the old one."""
        self._write(server)
        with suppress(ProcessLookupError):
            self.process.send_signal(1)  # SIGHUP
        self._wait_until_active()

    def _wait_until_active(self) -> None:
        end = time.monotonic() + START_SECONDS
        pause = threading.Event()
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            # A worker of an older configuration accepts connections until it logs this.
            retired = self._log().count("gracefully shutting down")
            if self._active_generation() == self._generation and retired >= self._generation - 1:
                return
            pause.wait(POLL_SECONDS)
        output = (self.folder / "output.log").read_text(errors="replace")
        raise RuntimeError(f"nginx did not take its configuration:\n{output}\n{self._log()[-2000:]}")

    def _active_generation(self) -> int:
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
        """Return the status of every request to a path so far.

        nginx logs a request after its response, so a client that has the response may have to wait for the line.
        """
        text = (self.folder / "access.log").read_text(errors="replace")
        return [int(status) for status in re.findall(rf"^{method} {re.escape(path)} (\d+) ", text, re.MULTILINE)]

    def rejected_credentials(self) -> Counter[str]:
        """Count the 401 responses by Authorization header."""
        text = (self.folder / "access.log").read_text(errors="replace")
        return Counter(re.findall(r"^\S+ \S+ 401 (.*)$", text, re.MULTILINE))

    def counts(self) -> Counter[int]:
        """Count the responses of the OTLP endpoint by status."""
        return Counter(self.statuses())

    def stop(self) -> None:
        """Stop it and its workers."""
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
