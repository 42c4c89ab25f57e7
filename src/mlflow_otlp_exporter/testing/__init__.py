"""For your own tests: an endpoint that answers like MLflow and remembers what your agent sent.

```python
from mlflow_otlp_exporter.testing import recording

def test_agent():
    with recording() as recorded:
        answer("Will it rain in Lyon?")
    (trace,) = recorded.traces
    assert trace.tree == ["answer", "  get_weather"]
```
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow_otlp_exporter._internal.setup.configure import configure, flush, shutdown
from mlflow_otlp_exporter._internal.setup.telemetry import Telemetry
from mlflow_otlp_exporter.testing.recorded import RecordedSpan, RecordedTrace, recorded_spans

__all__ = ["RecordedSpan", "RecordedTrace", "Recording", "RecordingEndpoint", "recording"]

_VERSION = "3.17.2"
_POLL = 0.01


class RecordingEndpoint:
    """A server on the loopback that takes spans and experiments as MLflow does, and keeps them in memory.

    A context manager. For `MLflowSpanExporter`, or an app in another process; in one's own, `recording()` does more.

    Attributes:
        url: Its address, a tracking URI.
    """

    def __init__(self) -> None:
        self._server = _Server()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": _POLL}, daemon=True)
        self._thread.start()

    def __enter__(self) -> RecordingEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; what it recorded stays."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def status(self) -> int:
        """What `/v1/traces` answers; set it to 503 to see what an outage does."""
        return self._server.status

    @status.setter
    def status(self, status: int) -> None:
        self._server.status = status

    @property
    def spans(self) -> list[RecordedSpan]:
        """All spans so far, as they came."""
        with self._server.lock:
            return list(self._server.spans)

    @property
    def traces(self) -> list[RecordedTrace]:
        """All traces so far, by the start of their first span."""
        found: dict[str, list[RecordedSpan]] = {}
        for span in sorted(self.spans, key=lambda each: each.start):
            found.setdefault(span.trace_id, []).append(span)
        return [RecordedTrace(spans) for spans in found.values()]

    @property
    def assessments(self) -> list[dict[str, Any]]:
        """Feedback and expectations so far, as MLflow gets them."""
        with self._server.lock:
            return list(self._server.assessments)

    def clear(self) -> None:
        """Forgets all spans, feedback and expectations."""
        with self._server.lock:
            self._server.spans.clear()
            self._server.assessments.clear()

    def wait_for(self, count: int, *, seconds: float = 10.0) -> list[RecordedTrace]:
        """Waits until so many traces have their root.

        Args:
            count: How many.
            seconds: How long to wait at most.

        Returns:
            All traces so far.

        Raises:
            TimeoutError: They did not come in time.
        """
        end = time.monotonic() + seconds
        pause = threading.Event()
        while True:
            found = self.traces
            whole = sum(any(not span.parent_id for span in trace.spans) for trace in found)
            if whole >= count:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{whole} whole traces within {seconds} s, not {count}")
            pause.wait(_POLL)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.lock = threading.Lock()
        self.spans: list[RecordedSpan] = []
        self.assessments: list[dict[str, Any]] = []
        self._ids: dict[tuple[str | None, str], str] = {}

    def take(self, body: bytes, headers: Mapping[str, str]) -> None:
        workspace = headers.get("x-mlflow-workspace")
        number = headers.get("x-mlflow-experiment-id")
        with self.lock:
            known = {each: name for (_, name), each in self._ids.items()}
            destination = {
                "experiment": known.get(number, number) if number else None,
                "workspace": workspace,
                "run_id": headers.get("x-mlflow-run-id"),
            }
            self.spans += recorded_spans(body, destination)

    def experiment(self, workspace: str | None, name: str, *, create: bool) -> str | None:
        with self.lock:
            if create and (workspace, name) not in self._ids:
                self._ids[workspace, name] = str(len(self._ids) + 1)
            return self._ids.get((workspace, name))


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == "/version":
            self._answer(200, _VERSION.encode(), "text/plain")
        elif path == "/health":
            self._answer(200, b"OK", "text/plain")
        elif path.endswith("/experiments/get-by-name"):
            name = query.get("experiment_name", [""])[0]
            number = self.server.experiment(self.headers.get("x-mlflow-workspace"), name, create=False)
            if number is None:
                said = f"Could not find experiment with name '{name}'"
                self._json(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": said})
            else:
                found = {"experiment_id": number, "name": name, "lifecycle_stage": "active"}
                self._json(200, {"experiment": found})
        else:
            self._json(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "a recording endpoint of a test"})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        encoding = self.headers.get("content-encoding", "")
        body = gzip.decompress(body) if encoding == "gzip" else body
        body = zlib.decompress(body) if encoding == "deflate" else body
        if path.endswith("/v1/traces"):
            if self.server.status == 200:
                self.server.take(body, {name.lower(): value for name, value in self.headers.items()})
            self._answer(self.server.status, b"", "application/x-protobuf")
        elif path.endswith("/experiments/create"):
            name = str(json.loads(body)["name"])
            number = self.server.experiment(self.headers.get("x-mlflow-workspace"), name, create=True)
            self._json(200, {"experiment_id": number})
        elif path.endswith("/assessments"):
            with self.server.lock:
                self.server.assessments.append(json.loads(body)["assessment"])
            self._json(200, {})
        else:
            self._json(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "a recording endpoint of a test"})

    def _json(self, status: int, content: Any) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing: a test's output is not the place."""


@dataclass
class Recording:
    """What an agent sent while it was recorded.

    Attributes:
        endpoint: The server; its `status` can be set.
        telemetry: What `configure()` returned at the beginning.
    """

    endpoint: RecordingEndpoint
    telemetry: Telemetry
    _open: bool = field(default=True, repr=False)

    def _flush(self) -> None:
        if self._open:
            flush(10)

    @property
    def spans(self) -> list[RecordedSpan]:
        """All spans that have ended so far."""
        self._flush()
        return self.endpoint.spans

    @property
    def traces(self) -> list[RecordedTrace]:
        """All traces so far, by the start of their first span."""
        self._flush()
        return self.endpoint.traces

    @property
    def assessments(self) -> list[dict[str, Any]]:
        """Feedback and expectations so far, as MLflow gets them."""
        self._flush()
        return self.endpoint.assessments

    @property
    def trace(self) -> RecordedTrace:
        """The only trace.

        Raises:
            LookupError: There is none, or several; the message shows them.
        """
        found = self.traces
        if len(found) != 1:
            raise LookupError(f"{len(found)} traces, not one: {[trace.tree for trace in found]}")
        return found[0]

    def clear(self) -> None:
        """Forgets what was sent so far."""
        self._flush()
        self.endpoint.clear()


_OTHER_TARGETS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def recording(**arguments: Any) -> Iterator[Recording]:
    """Records what the code inside would send to MLflow; the network is not touched beyond the loopback.

    Calls `configure()`, and lets the app's own calls of it lead here as well, as long as they take the address from
    the environment (`MLFLOW_TRACKING_URI` is set meanwhile). What was configured before ends with it.

    Args:
        **arguments: Those of `configure()`, but for the target.
    """
    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", *_OTHER_TARGETS)}
    with RecordingEndpoint() as endpoint:
        os.environ["MLFLOW_TRACKING_URI"] = endpoint.url
        for name in _OTHER_TARGETS:
            os.environ.pop(name, None)
        try:
            recorded = Recording(endpoint, configure(**arguments))
            try:
                yield recorded
            finally:
                recorded._flush()  # noqa: SLF001 - of this module
                recorded._open = False  # noqa: SLF001
                shutdown()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
