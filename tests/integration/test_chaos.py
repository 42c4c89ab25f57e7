"""Agents and servers are killed: in the end no promised span is missing, and none is stored twice."""

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


EXPORTER_SCRIPT = """
import sys, threading
from mlflow_otlp_exporter import MLflowSpanExporter
exporter = MLflowSpanExporter(experiment_id=1, spool=True, timeout=5)
threading.Event().wait(300)
"""


class OldServer:
    """Accepts spans and returns the stored ones, like MLflow before 3.17, which stores a repeated span twice."""

    def __init__(self, server: ScriptedServer) -> None:
        self.names: Counter[str] = Counter()
        self._ids: dict[str, list[dict[str, str]]] = {}
        self._lock = threading.Lock()
        server.answer_with("/version", lambda _: Answer(200, body=b"3.10.1"))
        server.answer_with("/api/3.0/mlflow/traces/batchGet", self._get_stored)
        server.answer_with(TRACES_PATH, self._store)

    def _store(self, request: RecordedRequest) -> Answer:
        with self._lock:
            for span in request.spans():
                self.names[span.name] += 1
                ids = {name: base64.b64encode(getattr(span, name)).decode() for name in ("trace_id", "span_id")}
                self._ids.setdefault(f"tr-{span.trace_id.hex()}", []).append(ids)
        return ACCEPTED

    def _get_stored(self, request: RecordedRequest) -> Answer:
        trace_ids = parse_qs(request.query)["trace_ids"]
        with self._lock:
            traces = [{"spans": self._ids[trace]} for trace in trace_ids if trace in self._ids]
        return Answer(200, headers={"Content-Type": "application/json"}, body=json.dumps({"traces": traces}).encode())


def test_spool_of_killed_processes_is_delivered_exactly_once(
    scripted_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = OldServer(scripted_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scripted_server.url)
    settings = resolve({"spool": True})
    queue = open_queue(settings, "none", ProblemLog())
    encoder = SpanEncoder()
    for span in make_spans(*map(str, range(2000))):
        assert queue.append(
            Destination(experiment_id="1"), [encoder.encode(span)], attempted=False, may_have_arrived=False
        )
    [folder] = Path(os.environ["XDG_STATE_HOME"], "mlflow-otlp-exporter").iterdir()
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", EXPORTER_SCRIPT], env=variables)

    processes, kills = [start() for _ in range(4)], 0
    try:
        end = time.monotonic() + 150
        while remaining := len(list(folder.glob("*.otlp"))):
            assert time.monotonic() < end, remaining
            pause(0.1)
            if len(old.names) > 200 * kills and kills < 8:
                # Mostly the process that sends the spool.
                holder = (folder / "lock").read_text()
                victim = next((process for process in processes if str(process.pid) == holder), processes[0])
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
    assert old.names.total() == 2000  # the exporter asked which spans are stored


def test_killed_agents_and_server_lose_no_promised_span(tmp_path: Path) -> None:
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
