"""Agents that are killed and started again, and what must have arrived of their spans in the end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from support.chaos_agent import COST, tokens
from support.mlflow_server import MLflowServer
from support.postgres import Postgres

HOLD, TIMEOUT = 2.0, 2.0
WINDOW = HOLD + 3.0 + TIMEOUT
"""What docs/guarantees.md states: what a kill may take without `every-span`, in seconds."""
Query = Callable[[str], Sequence[tuple[Any, ...]]]


class Agent:
    """An agent in a process of its own, run after run.

    Attributes:
        every_span: Whether it was promised that no kill takes anything.
        kills: When it was killed, by its runs.
    """

    def __init__(
        self, folder: Path, number: int, environment: Mapping[str, str], *, every_span: bool, pause: float = 0.05
    ) -> None:
        self.every_span, self.kills = every_span, dict[int, float]()
        self._folder, self._number, self._pause = folder, number, pause
        self._truth, self._stop = folder / f"truth-{number}", folder / "stop"
        self._run = self._log_before = 0
        self._environment = {
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT),
            "MLFLOW_OTLP_HOLD": str(HOLD),
            "MLFLOW_OTLP_DURABILITY": "every-span" if every_span else "request",
        }
        self._truth.touch()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "support.chaos_agent", str(self._truth), str(self.run), str(self._stop)]
        command.append(str(self._pause))
        with (self._folder / f"agent-{self._number}.log").open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    @property
    def run(self) -> int:
        """The number of this run, which no other run of any agent has."""
        return self._number * 1000 + self._run

    def kill(self) -> None:
        """Kills it with -9 and starts the next run."""
        self.kills[self.run] = time.time()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._run, self._log_before = self._run + 1, len(self.log())
        self.process = self._start()

    def end(self, seconds: float = 90.0) -> None:
        """Has it stop by itself."""
        self._stop.touch()
        self.process.wait(seconds)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ended_spans(self) -> dict[str, float]:
        """The spans that ended, and when; a last line that a kill has cut off tells none."""
        found = {}
        for line in self._truth.read_text().splitlines():
            when, _, name = line.partition(" ")
            if name.count(".") == 2:
                found[name] = float(when)
        return found

    def promised_spans(self) -> set[str]:
        """The spans that must have arrived."""
        found = set()
        for name, when in self.ended_spans().items():
            killed = self.kills.get(int(name.split(".")[0]))
            if killed is None or self.every_span or when < killed - WINDOW:
                found.add(name)
        return found

    def log(self) -> str:
        """What it has said."""
        return (self._folder / f"agent-{self._number}.log").read_text(errors="replace")

    def has_logged(self, *words: str) -> bool:
        """Whether each of these stands in what this run has said."""
        said = self.log()[self._log_before :]
        return all(each in said for each in words)


def query_sqlite(database: Path) -> Query:
    """Asks an MLflow server's SQLite file."""

    def ask(sql: str) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()

    return ask


def query_postgresql(database: Postgres) -> Query:
    """Asks an MLflow server's PostgreSQL."""
    return lambda sql: [tuple(row.split("|")) for row in database.query(sql)]


def check_spans(server: MLflowServer, query: Query, experiment: str, agents: Sequence[Agent]) -> dict[str, int]:
    """Compares what MLflow has with what must be there.

    Args:
        server: Asked for tokens and cost, as its users see them.
        query: Asks its database for all spans.
        experiment: The experiment's id.
        agents: Who made the spans.

    Returns:
        Counts, for people.
    """
    rows = query(f"SELECT trace_id, name FROM spans WHERE experiment_id = {int(experiment)}")
    names = Counter(str(name) for _, name in rows)
    ended = {name for agent in agents for name in agent.ended_spans()}
    promised = {name for agent in agents for name in agent.promised_spans()}
    missing = promised - names.keys()
    assert not missing, f"{len(missing)} of {len(promised)} promised spans are missing: {sorted(missing)[:20]}"
    assert {name for name, count in names.items() if count > 1} == set()
    # A span that ended just before a kill may be there though the truth has no line of it yet.
    assert len(names.keys() - ended) <= sum(len(agent.kills) for agent in agents)
    traces: dict[str, list[str]] = {}
    for trace, name in rows:
        traces.setdefault(str(trace), []).append(str(name))
    totals = {str(info["trace_id"]): info.get("trace_metadata", {}) for info in server.search_traces(experiment)}
    assert totals.keys() == traces.keys()
    for trace, found in traces.items():
        used = [each for each in map(tokens, found) if each]
        truth = {key: sum(each[key] for each in used) for key in (used[0] if used else ())}
        known = json.loads(totals[trace].get("mlflow.trace.tokenUsage", "{}"))
        assert known == truth, (trace, sorted(found))
        if used:
            cost = json.loads(totals[trace]["mlflow.trace.cost"])
            assert all(abs(cost[key] - len(used) * value) < 1e-9 for key, value in COST.items()), (trace, cost)
    return {
        "ended": len(ended),
        "promised": len(promised),
        "arrived": len(names),
        "traces": len(traces),
        "kills": sum(len(agent.kills) for agent in agents),
    }


def flush_spool(variables: Mapping[str, str], seconds: float = 120.0) -> None:
    """Sends by hand what is left, as a user would."""
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "spool", "flush", "--timeout", "20"]
    end = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            command,
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        left = list(Path(variables["MLFLOW_OTLP_SPOOL_DIR"]).glob("*/journal/*"))
        if done.returncode == 0 and not left:
            return
        assert time.monotonic() < end, (done.stdout, done.stderr, left)
