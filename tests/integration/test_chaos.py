"""Agents and servers are killed at work: in the end nothing that was promised is missing, and nothing there twice."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.spool.persistent_queue import open_queue
from support.chaos import Agent, check_spans, flush_spool, query_sqlite
from support.mlflow_server import MLflowServer
from support.scripted_server import ACCEPTED, TRACES_PATH, Answer, RecordedRequest, ScriptedServer
from support.spans import make_spans
from support.traces import wait_until

pause = threading.Event().wait


def environment(tmp_path: Path, uri: str, experiment: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_ID": experiment,
        "MLFLOW_OTLP_SPOOL_DIR": str(tmp_path / "spool"),
    }


SHARING = """
import sys, threading
from mlflow_otlp_exporter import MLflowSpanExporter
exporter = MLflowSpanExporter(experiment_id=1, spool=True, timeout=5)
threading.Event().wait(300)
"""


class OldServer:
    """Accepts spans and tells which it has, as MLflow before 3.17 does, which counts what comes twice twice."""

    def __init__(self, server: ScriptedServer) -> None:
        self.names: Counter[str] = Counter()
        self._ids: dict[str, list[dict[str, str]]] = {}
        self._lock = threading.Lock()
        server.answer_with("/version", lambda _: Answer(200, body=b"3.10.1"))
        server.answer_with("/api/3.0/mlflow/traces/batchGet", self._stored)
        server.answer_with(TRACES_PATH, self._take)

    def _take(self, request: RecordedRequest) -> Answer:
        with self._lock:
            for span in request.spans():
                self.names[span.name] += 1
                ids = {name: base64.b64encode(getattr(span, name)).decode() for name in ("trace_id", "span_id")}
                self._ids.setdefault(f"tr-{span.trace_id.hex()}", []).append(ids)
        return ACCEPTED

    def _stored(self, request: RecordedRequest) -> Answer:
        wanted = parse_qs(request.query)["trace_ids"]
        with self._lock:
            found = [{"spans": self._ids[trace]} for trace in wanted if trace in self._ids]
        return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps({"traces": found}).encode())


def test_four_processes_share_a_spool_while_they_are_killed(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = OldServer(scripted_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    settings = resolve({"spool": True})
    depot = open_queue(settings, "none", ProblemLog())
    encoder = SpanEncoder()
    for span in make_spans(*map(str, range(2000))):
        assert depot.append(Destination(experiment_id="1"), [encoder.encode(span)], attempted=False, uncertain=False)
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SHARING], env=variables)

    processes, kills = [start() for _ in range(4)], 0
    try:
        end = time.monotonic() + 150
        while left := len(list(folder.glob("*.otlp"))):
            assert time.monotonic() < end, left
            pause(0.1)
            if len(old.names) > 200 * kills and kills < 8:
                # Most of the time the one that drains.
                holder = (folder / "lock").read_text()
                victim = next((each for each in processes if str(each.pid) == holder), processes[0])
                victim.kill()
                victim.wait()
                processes[processes.index(victim)] = start()
                kills += 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert kills >= 5
    assert set(old.names) == set(map(str, range(2000)))
    assert old.names.total() == 2000  # what may have arrived was asked for


def test_agents_and_the_server_are_killed(tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path / "mlflow")
    try:
        experiment = server.create_experiment("chaos")
        variables = environment(tmp_path, server.uri, experiment)
        with (
            Agent(tmp_path, 0, variables, every_span=False) as first,
            Agent(tmp_path, 1, variables, every_span=True) as second,
        ):
            wait_until(lambda: len(second.ended_spans()) > 50, 30)
            pause(6)
            first.kill()
            second.kill()
            pause(4)
            server.kill()
            pause(3)
            second.kill()
            pause(3)
            server.restart()
            pause(5)
            first.kill()
            second.kill()
            pause(3)
            for agent in (first, second):
                agent.stop()
                assert "Traceback" not in agent.log()
        flush_spool(variables)
        counts = check_spans(server, query_sqlite(server.log.parent / "mlflow.db"), experiment, (first, second))
        assert counts["kills"] == 5
        assert counts["promised"] > 500, counts
    finally:
        server.stop()
