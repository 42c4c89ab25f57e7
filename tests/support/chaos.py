"""Agents that are killed and restarted, and the spans that must have arrived in the end."""

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
"""Seconds: the window of docs/guarantees.md, in which a kill may lose spans without `every-span`."""
Query = Callable[[str], Sequence[tuple[Any, ...]]]


class Agent:
    """An agent in its own process, restarted after each kill; `kills` are the times of the kills by run.

    With `every_span`, no kill may lose a span.
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
        """The number of this run, unique among all agents."""
        return self._number * 1000 + self._run

    def kill(self) -> None:
        """Kill it with SIGKILL and start the next run."""
        self.kills[self.run] = time.time()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._run, self._log_before = self._run + 1, len(self.log())
        self.process = self._start()

    def stop(self, timeout_seconds: float = 90.0) -> None:
        """Let it end by itself."""
        self._stop.touch()
        self.process.wait(timeout_seconds)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ended_spans(self) -> dict[str, float]:
        """Return the times at which spans ended, without a last line that a kill truncated."""
        end_times = {}
        for line in self._truth.read_text().splitlines():
            end_time, _, name = line.partition(" ")
            if name.count(".") == 2:
                end_times[name] = float(end_time)
        return end_times

    def promised_spans(self) -> set[str]:
        """Return the spans that must have arrived."""
        promised = set()
        for name, end_time in self.ended_spans().items():
            killed = self.kills.get(int(name.split(".")[0]))
            if killed is None or self.every_span or end_time < killed - WINDOW:
                promised.add(name)
        return promised

    def log(self) -> str:
        return (self._folder / f"agent-{self._number}.log").read_text(errors="replace")

    def has_logged(self, *words: str) -> bool:
        """Whether the log of this run has all of these words."""
        log = self.log()[self._log_before :]
        return all(word in log for word in words)


def query_sqlite(database: Path) -> Query:
    """Return a function that queries an MLflow server's SQLite file."""

    def query(sql: str) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()

    return query


def query_postgresql(database: Postgres) -> Query:
    """Return a function that queries an MLflow server's PostgreSQL."""
    return lambda sql: [tuple(row.split("|")) for row in database.query(sql)]


def check_spans(server: MLflowServer, query: Query, experiment: str, agents: Sequence[Agent]) -> dict[str, int]:
    """Compare the spans, tokens and costs in MLflow with those of the agents; return counts for the log.

    `query` reads all spans from the database, `server` returns tokens and costs as for its users.
    """
    rows = query(f"SELECT trace_id, name FROM spans WHERE experiment_id = {int(experiment)}")
    names = Counter(str(name) for _, name in rows)
    ended = {name for agent in agents for name in agent.ended_spans()}
    promised = {name for agent in agents for name in agent.promised_spans()}
    missing = promised - names.keys()
    assert not missing, f"{len(missing)} of {len(promised)} promised spans are missing: {sorted(missing)[:20]}"
    assert {name for name, count in names.items() if count > 1} == set()
    # A span that ended just before a kill may have arrived before the agent recorded its end.
    assert len(names.keys() - ended) <= sum(len(agent.kills) for agent in agents)
    traces: dict[str, list[str]] = {}
    for trace, name in rows:
        traces.setdefault(str(trace), []).append(str(name))
    totals = {str(info["trace_id"]): info.get("trace_metadata", {}) for info in server.search_traces(experiment)}
    assert totals.keys() == traces.keys()
    for trace, span_names in traces.items():
        usages = [usage for usage in map(tokens, span_names) if usage]
        total = {key: sum(usage[key] for usage in usages) for key in (usages[0] if usages else ())}
        stored_usage = json.loads(totals[trace].get("mlflow.trace.tokenUsage", "{}"))
        assert stored_usage == total, (trace, sorted(span_names))
        if usages:
            cost = json.loads(totals[trace]["mlflow.trace.cost"])
            assert all(abs(cost[key] - len(usages) * value) < 1e-9 for key, value in COST.items()), (trace, cost)
    return {
        "ended": len(ended),
        "promised": len(promised),
        "arrived": len(names),
        "traces": len(traces),
        "kills": sum(len(agent.kills) for agent in agents),
    }


def flush_spool(variables: Mapping[str, str], timeout_seconds: float = 120.0) -> None:
    """Send the remaining spans with the command line."""
    command = [sys.executable, "-m", "mlflow_otlp_exporter", "spool", "flush", "--timeout", "20"]
    end = time.monotonic() + timeout_seconds
    while True:
        completed = subprocess.run(
            command,
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        journals = list(Path(variables["MLFLOW_OTLP_SPOOL_DIR"]).glob("*/journal/*"))
        if completed.returncode == 0 and not journals:
            return
        assert time.monotonic() < end, (completed.stdout, completed.stderr, journals)
