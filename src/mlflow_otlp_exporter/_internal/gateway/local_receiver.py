"""A receiver on 127.0.0.1 that answers like MLflow, for tests and for `mlflow-otlp record`; needs no extra."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.gateway.protocol import (
    PROTOBUF,
    Answer,
    Rejection,
    encode_http_answer,
    media_type,
    parse_body,
    read_format,
)

_TEXTS = {"/version": b"3.17.2", "/health": b"OK"}
_NOT_FOUND = {"error_code": "ENDPOINT_NOT_FOUND", "message": "a recording endpoint of a test"}
_POLL_SECONDS = 0.01
_MAX_BODY_BYTES = 256 * 1024 * 1024


class LocalReceiver(ThreadingHTTPServer):
    """Passes requests to `on_spans`, with the headers in lower case, and feedback to `on_assessment`.

    Attributes:
        status: HTTP status of the responses to spans.
    """

    daemon_threads = True

    def __init__(
        self,
        on_spans: Callable[[ExportTraceServiceRequest, Mapping[str, str]], None],
        on_assessment: Callable[[dict[str, Any]], object],
        *,
        ignores_other_signals: bool = False,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.on_spans, self.on_assessment = 200, on_spans, on_assessment
        # Metrics and logs that an application exports, too, are accepted: else it would log failures.
        self.ignores_other_signals = ignores_other_signals
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._lock = threading.Lock()
        self._experiment_ids: dict[tuple[str | None, str], str] = {}
        self.experiment_id_of_trace: dict[str, str] = {}
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="mlflow-otlp-endpoint", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def experiment_id(self, workspace: str | None, name: str) -> str:
        with self._lock:
            return self._experiment_ids.setdefault((workspace, name), str(len(self._experiment_ids) + 1))

    def remember_traces(self, request: ExportTraceServiceRequest, experiment_id: str) -> None:
        with self._lock:
            for span in (
                span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans
            ):
                self.experiment_id_of_trace.setdefault(f"tr-{span.trace_id.hex()}", experiment_id)

    def experiment_name(self, experiment_id: str) -> str:
        """The name of an experiment; the id itself if it was not looked up by name."""
        with self._lock:
            return {number: name for (_, name), number in self._experiment_ids.items()}.get(
                experiment_id, experiment_id
            )


class _Handler(BaseHTTPRequestHandler):
    server: LocalReceiver

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path in _TEXTS:
            self._respond(200, _TEXTS[path], "text/plain")
        elif path.endswith("/experiments/get-by-name"):
            name = query.get("experiment_name", [""])[0]
            # Every experiment is there: the log lines about created ones would fill the output of tests.
            number = self.server.experiment_id(self.headers.get("x-mlflow-workspace"), name)
            experiment = {"experiment_id": number, "name": name, "lifecycle_stage": "active"}
            self._respond_json(200, {"experiment": experiment})
        elif (trace_id := path.rpartition("/traces/")[2]) in self.server.experiment_id_of_trace:
            location = {"mlflow_experiment": {"experiment_id": self.server.experiment_id_of_trace[trace_id]}}
            self._respond_json(200, {"trace": {"trace_info": {"trace_id": trace_id, "trace_location": location}}})
        else:
            self._respond_json(404, {**_NOT_FOUND, "message": f"{_NOT_FOUND['message']}, which has no {trace_id}"})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if path.endswith("/v1/traces"):
            self._export(body)
        elif path.endswith(("/v1/metrics", "/v1/logs")) and self.server.ignores_other_signals:
            self._respond(200, b"", PROTOBUF)
        elif path.endswith("/assessments"):
            self.server.on_assessment(json.loads(body)["assessment"])
            self._respond_json(200, {})
        else:
            self._respond_json(404, _NOT_FOUND)

    def _export(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.server.status != 200:
            self._respond(self.server.status, b"", PROTOBUF)
            return
        answer = Answer()
        try:
            request = parse_body(body, read_format(headers), _MAX_BODY_BYTES)
            self.server.remember_traces(request, headers.get("x-mlflow-experiment-id") or "0")
            self.server.on_spans(request, headers)
        except Rejection as rejection:
            answer = rejection.answer
        answer_headers, content = encode_http_answer(answer, is_json=media_type(headers) != PROTOBUF)
        self._respond(answer.kind.http_status, content, answer_headers["content-type"])

    def _respond_json(self, status: int, content: Any) -> None:
        self._respond(status, json.dumps(content).encode(), "application/json")

    def _respond(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the lines would appear in the output of tests."""
