"""Minutes of kills of the gateway and of MLflow: every span that was answered with success is stored exactly once."""

import json
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from support.chaos import query_sqlite
from support.gateway import JSON, GatewayProcess, export_over_grpc
from support.mlflow_server import MLflowServer
from support.otlp_bodies import encode_spans, to_json
from support.traces import make_traces, wait_until

pytestmark = pytest.mark.matrix
SECONDS = float(os.environ.get("CHAOS_SECONDS", "600"))
CLIENTS, CHILDREN = 3, 3
CALL = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 10, "llm.token_count.completion": 5}
USAGE = {"input_tokens": 10 * CHILDREN, "output_tokens": 5 * CHILDREN, "total_tokens": 15 * CHILDREN}


class Client:
    """Posts traces in two pieces, each until it is answered with success, over all protocols."""

    def __init__(self, gateway: GatewayProcess, seed: int) -> None:
        self._gateway, self._random = gateway, random.Random(seed)
        self.accepted: list[ReadableSpan] = []
        self.retry_count = 0

    def run(self, end: float) -> None:
        pause = threading.Event()
        while time.monotonic() < end:
            spans = make_traces(1, children=CHILDREN, attributes=lambda _, span: CALL if span else {})
            self._random.shuffle(spans)
            for piece in (spans[:2], spans[2:]):
                body, protocol = encode_spans(piece), self._random.choice(["protobuf", "json", "grpc"])
                while not self._post(body, protocol):
                    self.retry_count += 1
                    pause.wait(0.2)
                self.accepted += piece
            pause.wait(self._random.uniform(0, 0.1))

    def _post(self, body: bytes, protocol: str) -> bool:
        try:
            if protocol == "grpc":
                return not export_over_grpc(self._gateway, body).ByteSize()
            reply = self._gateway.post(to_json(body), JSON) if protocol == "json" else self._gateway.post(body)
        except (OSError, HTTPException, grpc.RpcError):
            return False
        assert reply.status in (200, 503), reply
        return reply.status == 200


def test_killed_gateway_and_server_store_accepted_spans_once(tmp_path: Path) -> None:
    server = MLflowServer.start(tmp_path / "mlflow")
    experiment = server.create_experiment("chaos")
    query, source, pause = query_sqlite(tmp_path / "mlflow" / "mlflow.db"), random.Random(1), threading.Event()
    event_counts = Counter[str]()
    end = time.monotonic() + SECONDS
    try:
        with GatewayProcess(tmp_path / "gateway", server.uri, ["--experiment-id", experiment]) as gateway:
            clients = [Client(gateway, number) for number in range(CLIENTS)]
            with ThreadPoolExecutor(CLIENTS) as pool:
                runs = [pool.submit(client.run, end) for client in clients]
                while time.monotonic() < end:
                    pause.wait(source.uniform(2, 6))
                    event = source.choice(["gateway killed", "gateway killed", "gateway stopped", "MLflow killed"])
                    if event == "MLflow killed":
                        server.kill()
                        pause.wait(source.uniform(1, 6))
                        server.restart()
                    else:
                        if event == "gateway killed":
                            gateway.kill()
                        else:
                            assert gateway.stop() == 0
                        gateway.start()
                    event_counts[event] += 1
                for run in runs:
                    run.result()
            accepted = {span.context.span_id: span for client in clients for span in client.accepted}
            trace_count = len({span.context.trace_id for span in accepted.values()})

            def count_stored() -> int:
                return int(query(f"SELECT COUNT(*) FROM spans WHERE experiment_id = {int(experiment)}")[0][0])

            # MLflow was away for a third of the time: what queued meanwhile takes as long again.
            wait_until(lambda: count_stored() >= len(accepted), 60 + 2 * SECONDS, f"{len(accepted)} spans stored")
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
        print(dict(event_counts), len(accepted), "spans", sum(client.retry_count for client in clients), "retries")
    finally:
        server.stop()
