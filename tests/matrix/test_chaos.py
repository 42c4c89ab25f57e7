"""Ten minutes of random failures: every span that the guarantees cover is stored exactly once."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from support.chaos import WINDOW, Agent, check_spans, flush_spool, query_postgresql, query_sqlite
from support.environments import mlflow_python
from support.mlflow_server import MLflowServer
from support.nginx import Nginx
from support.postgres import Postgres
from support.traces import wait_until

pytestmark = pytest.mark.matrix
SECONDS = float(os.environ.get("CHAOS_SECONDS", "600"))
KILLS = 20
TOKEN = 'location / { if ($http_authorization != "Bearer {token}") { return 401; } {what} }'
PASS = "proxy_pass {upstream};"
ANSWERS = (502, 503, 504, 413, 302)
# Log messages of agents about a full disk and its recovery; an agent with `every-span` has a journal as well.
_FULL = {False: ("cannot be used",), True: ("cannot be used", "Journal cannot be written")}
_ROOM = {False: ("Spool recovered",), True: ("Spool recovered", "Journal recovered")}
pause = threading.Event().wait


class Story:
    """Runs failures one after the other and counts them in `event_counts`."""

    def __init__(self, server: MLflowServer, nginx: Nginx, token_file: Path, database: Postgres | None) -> None:
        self._server, self._nginx, self._token_file, self._database = server, nginx, token_file, database
        self._random = random.Random(7)
        self._token = 0
        self._coming: list[Callable[[], None]] = []
        self.event_counts = Counter[str]()
        self.rotate()
        self.event_counts.clear()  # the first token is no rotation

    def _behind(self, what: str) -> None:
        self._nginx.reload(TOKEN.replace("{token}", f"token-{self._token}").replace("{what}", what))

    def rotate(self) -> None:
        """Change the token that the proxy requires, and write it to the token file one second later."""
        self._token += 1
        self._behind(PASS)
        pause(1.0)
        self._token_file.write_text(f"token-{self._token}")
        self.event_counts["token rotated"] += 1

    @contextmanager
    def answering(self, status: int) -> Iterator[None]:
        """Let the proxy answer with this status; the event counts if an agent sent a request."""
        before = self._nginx.counts()[status]
        self._behind(f"return {status} /login;" if status == 302 else f"return {status};")
        yield
        self._behind(PASS)
        if self._nginx.counts()[status] > before:
            self.event_counts[f"proxy said {status}"] += 1

    def proxy(self, status: int) -> None:
        """Let the proxy answer with this status for 2 to 6 seconds."""
        with self.answering(status):
            pause(self._random.uniform(2, 6))

    def server(self) -> None:
        """Kill MLflow and restart it."""
        self._server.kill()
        pause(self._random.uniform(1, 6))
        self._server.restart()
        self.event_counts["MLflow killed"] += 1

    def database(self) -> None:
        """Stop the database and restart it."""
        if self._database is not None:
            self._database.stop("immediate")
            pause(self._random.uniform(1, 5))
            self._database.start()
            self.event_counts["database stopped"] += 1

    def fill(self, folder: Path, agents: Sequence[Agent]) -> None:
        """Fill the disk while the server is down until every agent logs it, then free it until every agent recovers."""
        path = folder / "others"
        with self.answering(503):
            with path.open("wb", buffering=0) as file:

                def full() -> bool:
                    with suppress(OSError):  # also fills space that agents free meanwhile
                        while file.write(bytes(4096)):
                            pass
                    return all(agent.has_logged(*_FULL[agent.every_span]) for agent in agents)

                wait_until(full, 120)
            path.unlink()
            wait_until(lambda: all(agent.has_logged(*_ROOM[agent.every_span]) for agent in agents), 120)
            pause(WINDOW)
        self.event_counts["disk filled"] += 1

    def next(self) -> Callable[[], None]:
        """Return the next failure: every failure once, in a new order each round."""
        if not self._coming:
            self._coming = [partial(self.proxy, status) for status in ANSWERS]
            self._coming += [self.rotate, self.server, self.server, self.database, self.database]
            self._random.shuffle(self._coming)
        return self._coming.pop()


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk if permitted, and yield whether it is mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def kill(agents: Sequence[Agent], calm: threading.Lock, over: threading.Event) -> None:
    """Kill the agents in turn at random moments, also during other failures."""
    chance, begin = random.Random(8), time.monotonic()
    for number in range(KILLS):
        due = begin + SECONDS * (number + chance.random()) / KILLS
        if over.wait(max(0.0, due - time.monotonic())):
            return
        with calm:
            agents[number % len(agents)].kill()


def play(story: Story, agents: Sequence[Agent], small_disk: Path | None, required_events: AbstractSet[str]) -> None:
    """Run failures until the time is over, all kills are done, and every required event has happened."""
    end = time.monotonic() + SECONDS
    # No kills while the disk is full: spans are then in memory only, and the guarantees do not cover a kill.
    calm, over, chance = threading.Lock(), threading.Event(), random.Random(9)
    with ThreadPoolExecutor(1) as executor:
        killing = executor.submit(kill, agents, calm, over)
        try:
            while time.monotonic() < end or not (killing.done() and story.event_counts.keys() >= required_events):
                story.next()()
                pause(chance.uniform(0.5, 6.0))  # sometimes long enough that queued spans are sent
                if small_disk is not None and time.monotonic() > end - SECONDS / 2:
                    with calm:
                        story.fill(small_disk, agents)
                    small_disk = None
        finally:
            over.set()
        killing.result()


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("version", ["3.17.2", "3.10.1"])
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def test_export_during_random_failures_stores_each_span_once(tmp_path: Path, version: str, kind: str) -> None:
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
        wait_until(lambda: all(len(agent.ended_spans()) > 10 for agent in agents), 60)
        required_events = {"token rotated", "MLflow killed", *(f"proxy said {status}" for status in ANSWERS)}
        required_events |= {"database stopped"} if database is not None else set()
        required_events |= {"disk filled"} if mounted else set()
        play(story, agents, tmp_path / "spool" if mounted else None, required_events)
        for agent in agents:
            agent.stop(180)
            assert "Traceback" not in agent.log()
        flush_spool(variables, 300)
        query = query_sqlite(server.log.parent / "mlflow.db") if database is None else query_postgresql(database)
        counts = check_spans(server, query, experiment, agents)
        sys.stdout.write(json.dumps({**counts, **story.event_counts, "answers": nginx.counts()}) + "\n")
        assert counts["kills"] == KILLS
        assert story.event_counts.keys() == required_events
        assert {200, 401} <= nginx.counts().keys()
