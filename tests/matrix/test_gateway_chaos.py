"""Minutes of kills of gateway, Collector, MLflow and database: spans answered with success are stored exactly once."""

import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from support.chaos import query_postgresql
from support.collector import Collector
from support.environments import mlflow_python
from support.gateway import JSON, PROTOBUF, GatewayProcess, export_over_grpc
from support.mlflow_server import MLflowServer
from support.otlp_bodies import encode_spans, to_json
from support.postgres import Postgres
from support.traces import make_traces, wait_until

pytestmark = [pytest.mark.matrix, pytest.mark.needs("go"), pytest.mark.needs("postgresql")]
SECONDS = float(os.environ.get("CHAOS_SECONDS", "600"))
CLIENTS, CHILDREN = 4, 3
CALL = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 10, "llm.token_count.completion": 5}
USAGE = {"input_tokens": 10 * CHILDREN, "output_tokens": 5 * CHILDREN, "total_tokens": 15 * CHILDREN}


class Client:
    """Posts traces in two pieces, each until it is answered with success, over all protocols and the Collector."""

    def __init__(self, gateway: GatewayProcess, collector: Collector, seed: int) -> None:
        self._gateway, self._random = gateway, random.Random(seed)
        self._collector_address = urlsplit(collector.http).netloc
        self.accepted: list[ReadableSpan] = []
        self.retry_count = 0

    def run(self, end: float) -> None:
        pause = threading.Event()
        while time.monotonic() < end:
            spans = make_traces(1, children=CHILDREN, attributes=lambda _, span: CALL if span else {})
            self._random.shuffle(spans)
            for piece in (spans[:2], spans[2:]):
                body, way = encode_spans(piece), self._random.choice(["protobuf", "json", "grpc", "collector"])
                while not self._post(body, way):
                    self.retry_count += 1
                    pause.wait(0.2)
                self.accepted += piece
            pause.wait(self._random.uniform(0, 0.1))

    def _post(self, body: bytes, way: str) -> bool:
        try:
            if way == "grpc":
                return not export_over_grpc(self._gateway, body).ByteSize()
            if way == "collector":
                return self._post_to_collector(body)
            reply = self._gateway.post(to_json(body), JSON) if way == "json" else self._gateway.post(body)
        except (OSError, http.client.HTTPException, grpc.RpcError):
            return False
        assert reply.status in (200, 503), reply
        return reply.status == 200

    def _post_to_collector(self, body: bytes) -> bool:
        connection = http.client.HTTPConnection(self._collector_address, timeout=30)
        try:
            connection.request("POST", "/v1/traces", body, {"content-type": PROTOBUF})
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 503), answer.status
            return answer.status == 200
        finally:
            connection.close()


class Story:
    """What happens to gateway, Collector, MLflow and database, at random times."""

    def __init__(self, gateway: GatewayProcess, collector: Collector, server: MLflowServer, database: Postgres) -> None:
        self._gateway, self._collector, self._server, self._database = gateway, collector, server, database
        self._random, self._pause = random.Random(1), threading.Event()
        self.counts = Counter[str]()

    def run(self, end: float) -> None:
        events: list[Callable[[], None]] = [
            self.kill_gateway,
            self.kill_gateway,
            self.stop_gateway,
            self.kill_collector,
            self.kill_server,
            self.stop_database,
        ]
        # Each kind at least once, also in a short run.
        queue = self._random.sample(events, len(events))
        while time.monotonic() < end:
            self._wait(2, 6)
            event = queue.pop() if queue else self._random.choice(events)
            event()
            self.counts[event.__name__] += 1

    def _wait(self, min_seconds: float, max_seconds: float) -> None:
        self._pause.wait(self._random.uniform(min_seconds, max_seconds))

    def kill_gateway(self) -> None:
        self._gateway.kill()
        self._gateway.start()

    def stop_gateway(self) -> None:
        assert self._gateway.stop() == 0
        self._gateway.start()

    def kill_collector(self) -> None:
        self._collector.kill()
        self._wait(0, 2)
        self._collector.start()

    def kill_server(self) -> None:
        self._server.kill()
        self._wait(1, 6)
        self._server.restart()

    def stop_database(self) -> None:
        self._database.stop(self._random.choice(["fast", "immediate"]))
        self._wait(1, 6)
        self._database.start()


def test_killed_gateway_collector_server_and_database_store_accepted_spans_once(tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS
    with ExitStack() as stack:
        database = stack.enter_context(Postgres())
        python = mlflow_python("3.17.2", "psycopg2-binary")
        server = MLflowServer.start(tmp_path / "mlflow", python=python, extra=["--backend-store-uri", database.uri])
        stack.callback(server.stop)
        experiment, query = server.create_experiment("chaos"), query_postgresql(database)
        gateway = stack.enter_context(GatewayProcess(tmp_path / "gateway", server.uri, ["--experiment-id", experiment]))
        variables = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{gateway.port}", "MLFLOW_EXPERIMENT_ID": experiment}
        changes = {"exporters": {"otlp_http/mlflow": {"retry_on_failure": {"max_interval": "2s"}}}}
        collector = stack.enter_context(Collector(tmp_path / "collector", "fixed-no-auth", variables, changes))
        clients = [Client(gateway, collector, number) for number in range(CLIENTS)]
        story = Story(gateway, collector, server, database)
        with ThreadPoolExecutor(CLIENTS) as pool:
            runs = [pool.submit(client.run, end) for client in clients]
            story.run(end)
            for run in runs:
                run.result()
        accepted = {span.context.span_id: span for client in clients for span in client.accepted}
        trace_count = len({span.context.trace_id for span in accepted.values()})

        def count_stored() -> int:
            return int(query(f"SELECT COUNT(*) FROM spans WHERE experiment_id = {int(experiment)}")[0][0])

        # MLflow was away for a third of the time: what queued meanwhile takes as long again.
        wait_until(lambda: count_stored() >= len(accepted), 60 + 2 * SECONDS, f"{len(accepted)} spans stored")
        assert collector.metric("otelcol_exporter_queue_size") == 0
        assert gateway.stop() == 0
        assert count_stored() == len(accepted)
        infos = server.search_traces(experiment)
        assert len(infos) == trace_count
        wrong = [
            info["trace_id"]
            for info in infos
            if json.loads(info["trace_metadata"].get("mlflow.trace.tokenUsage", "{}")) != USAGE or info["state"] != "OK"
        ]
        assert not wrong, f"{len(wrong)} of {trace_count} traces"
        print(dict(story.counts), len(accepted), "spans", sum(client.retry_count for client in clients), "retries")
