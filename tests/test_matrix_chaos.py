"""Ten minutes of all that goes wrong, at random: nothing that was promised is missing, nothing is there twice."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.chaos import Agent, check, drain, postgresql, sqlite
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.nginx import Nginx
from support.postgres import Postgres
from support.traces import until

pytestmark = pytest.mark.matrix
SECONDS = float(os.environ.get("CHAOS_SECONDS", "600"))
KILLS = 20
TOKEN = 'location / { if ($http_authorization != "Bearer {token}") { return 401; } {what} }'
PASS = "proxy_pass {upstream};"
ANSWERS = (502, 503, 504, 413, 302)
pause = threading.Event().wait


class Story:
    """What goes wrong, one after the other."""

    def __init__(self, server: MLflowServer, nginx: Nginx, token_file: Path, database: Postgres | None) -> None:
        self._server, self._nginx, self._token_file, self._database = server, nginx, token_file, database
        self._random = random.Random(7)
        self._token = 0
        self.rotate()

    def _behind(self, what: str) -> None:
        self._nginx.reload(TOKEN.replace("{token}", f"token-{self._token}").replace("{what}", what))

    def rotate(self) -> None:
        """The proxy wants another token, and a moment later the file has it."""
        self._token += 1
        self._behind(PASS)
        pause(1.0)
        self._token_file.write_text(f"token-{self._token}")

    def proxy(self) -> None:
        """The proxy answers for a while."""
        status = self._random.choice(ANSWERS)
        self._behind(f"return {status} /login;" if status == 302 else f"return {status};")
        pause(self._random.uniform(2, 6))
        self._behind(PASS)

    def server(self) -> None:
        """MLflow is killed, and comes back."""
        self._server.kill()
        pause(self._random.uniform(1, 6))
        self._server.restart()

    def database(self) -> None:
        """The database goes, and comes back."""
        if self._database is not None:
            self._database.stop("immediate")
            pause(self._random.uniform(1, 5))
            self._database.start()

    def next(self) -> Callable[[], None]:
        """What comes next."""
        return self._random.choice((self.rotate, self.proxy, self.proxy, self.server, self.database))


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk of its own, where one may be mounted; whether it is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, seconds: float) -> None:
    """Leaves no room on a disk for a while."""
    path = folder / "others"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            pass
    pause(seconds)
    path.unlink()


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("version", ["3.17.2", "3.10.1"])
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def test_everything_goes_wrong(tmp_path: Path, version: str, kind: str) -> None:
    with ExitStack() as stack:
        database = stack.enter_context(Postgres()) if kind == "postgresql" else None
        extra = ["--backend-store-uri", database.uri] if database is not None else []
        python = mlflow_python(version, *(["psycopg2-binary"] if database is not None else []))
        server = MLflowServer.start(tmp_path / "mlflow", python=python, extra=extra)
        stack.callback(server.stop)
        experiment = server.create_experiment("chaos")
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", f"location / {{ {PASS} }}", server.uri))
        mounted = stack.enter_context(disk(tmp_path / "spool"))
        token_file = tmp_path / "token"
        story = Story(server, nginx, token_file, database)
        variables = {
            "MLFLOW_TRACKING_URI": nginx.uri,
            "MLFLOW_TRACKING_TOKEN_FILE": str(token_file),
            "MLFLOW_EXPERIMENT_ID": experiment,
            "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path / "spool"),
        }
        agents = [
            stack.enter_context(Agent(tmp_path, number, variables, every_span=number == 1, pause=0.5))
            for number in (0, 1)
        ]
        until(lambda: all(len(agent.ended()) > 10 for agent in agents), 60)
        end, kills = time.monotonic() + SECONDS, 0
        next_kill = time.monotonic() + SECONDS / (KILLS + 1)
        while time.monotonic() < end:
            story.next()()
            pause(1.0)
            if time.monotonic() > next_kill and kills < KILLS:
                agents[kills % 2].kill()
                kills += 1
                next_kill += SECONDS / (KILLS + 1)
            if mounted and kills == KILLS // 2:
                mounted = False
                fill(tmp_path / "spool", 5.0)
                pause(15.0)  # until what waited in memory meanwhile is on the disk
        for agent in agents:
            agent.end(180)
            assert "Traceback" not in agent.log()
        drain(variables, 300)
        query = sqlite(server.log.parent / "mlflow.db") if database is None else postgresql(database)
        assert check(server, query, experiment, agents)["kills"] == kills
        assert kills >= KILLS // 2
