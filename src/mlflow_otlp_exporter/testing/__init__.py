"""For your own tests: an endpoint that answers like MLflow and records what your agent sends.

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

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.config.resolver import overrides
from mlflow_otlp_exporter._internal.gateway.local_receiver import LocalReceiver
from mlflow_otlp_exporter._internal.installed_readers import InstalledReaders, load_readers, read_span, to_readers
from mlflow_otlp_exporter._internal.setup.configure import configure, flush, shutdown
from mlflow_otlp_exporter._internal.setup.telemetry import Telemetry
from mlflow_otlp_exporter.readers import Dialect, EventView, NormalizedSpan, Reader, SpanView, table_reader
from mlflow_otlp_exporter.testing.recorded import (
    RecordedDocument,
    RecordedSpan,
    RecordedToolCall,
    RecordedTrace,
    RecordedUsage,
    parse_spans,
)

__all__ = [
    "RecordedDocument",
    "RecordedSpan",
    "RecordedToolCall",
    "RecordedTrace",
    "RecordedUsage",
    "Recording",
    "RecordingEndpoint",
    "read_attributes",
    "recording",
    "using_readers",
]

_POLL_SECONDS = 0.01


class RecordingEndpoint:
    """A context manager: an HTTP server on 127.0.0.1 that accepts spans like MLflow, and keeps them in memory.

    For tests of `MLflowSpanExporter` and of applications in other processes and languages: it reads OTLP/HTTP in
    protobuf and JSON. For the test's own process, `recording()`
    also calls `configure()`.

    Attributes:
        url: The server's address, which is a tracking URI.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[RecordedSpan] = []
        self._assessments: list[dict[str, Any]] = []
        self._server = LocalReceiver(self._record_spans, self._record_assessment)
        self.url = self._server.url

    def _record_spans(self, request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> None:
        experiment_id = headers.get("x-mlflow-experiment-id")
        destination = {
            "experiment": self._server.experiment_name(experiment_id) if experiment_id else None,
            "workspace": headers.get("x-mlflow-workspace"),
            "run_id": headers.get("x-mlflow-run-id"),
        }
        with self._lock:
            self._spans += parse_spans(request, destination)

    def _record_assessment(self, assessment: dict[str, Any]) -> None:
        with self._lock:
            self._assessments.append(assessment)

    def __enter__(self) -> RecordingEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; its records remain."""
        self._server.stop()

    @property
    def status(self) -> int:
        """HTTP status of the responses to spans: 200, or such as 503 to simulate an outage."""
        return self._server.status

    @status.setter
    def status(self, status: int) -> None:
        self._server.status = status

    @property
    def spans(self) -> list[RecordedSpan]:
        """All spans so far, in order of arrival."""
        with self._lock:
            return list(self._spans)

    @property
    def traces(self) -> list[RecordedTrace]:
        """All traces so far, ordered by the start of their first span."""
        traces: dict[str, list[RecordedSpan]] = {}
        for span in sorted(self.spans, key=lambda span: span.start):
            traces.setdefault(span.trace_id, []).append(span)
        return [RecordedTrace(spans) for spans in traces.values()]

    @property
    def assessments(self) -> list[dict[str, Any]]:
        """All feedback and expectations so far, in MLflow's JSON format."""
        with self._lock:
            return list(self._assessments)

    def clear(self) -> None:
        """Delete all recorded spans, feedback and expectations."""
        with self._lock:
            self._spans.clear()
            self._assessments.clear()

    def wait_for(self, count: int, *, timeout: float = 10.0) -> list[RecordedTrace]:
        """Wait until this number of traces have their root span.

        Args:
            count: Number of traces.
            timeout: Maximum time to wait, in seconds.

        Returns:
            All traces so far.

        Raises:
            TimeoutError: There are fewer such traces after the timeout.
        """
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while True:
            traces = self.traces
            complete_count = sum(any(not span.parent_id for span in trace.spans) for trace in traces)
            if complete_count >= count:
                return traces
            if time.monotonic() > deadline:
                complete = pluralize(complete_count, "trace")
                raise TimeoutError(f"{complete} with a root after {timeout} s, expected {count}")
            pause.wait(_POLL_SECONDS)


@dataclass
class Recording:
    """The spans of the code inside `recording()`. Reading an attribute flushes the pipeline first.

    Attributes:
        endpoint: The server; its `status` can be set.
        telemetry: The pipeline, which `configure()` returned.
    """

    endpoint: RecordingEndpoint
    telemetry: Telemetry
    _is_open: bool = field(default=True, repr=False)

    def _flush(self) -> None:
        if self._is_open:
            flush(10)

    @property
    def spans(self) -> list[RecordedSpan]:
        """All spans that have ended so far."""
        self._flush()
        return self.endpoint.spans

    @property
    def traces(self) -> list[RecordedTrace]:
        """All traces so far, ordered by the start of their first span."""
        self._flush()
        return self.endpoint.traces

    @property
    def assessments(self) -> list[dict[str, Any]]:
        """All feedback and expectations so far, in MLflow's JSON format."""
        self._flush()
        return self.endpoint.assessments

    @property
    def trace(self) -> RecordedTrace:
        """The only trace.

        Raises:
            LookupError: There is no trace, or more than one; the message contains their span names.
        """
        traces = self.traces
        if len(traces) != 1:
            raise LookupError(f"{len(traces)} traces, not one: {[trace.tree for trace in traces]}")
        return traces[0]

    def clear(self) -> None:
        """Flush, then delete all records."""
        self._flush()
        self.endpoint.clear()


_TARGET_VARIABLES = ("MLFLOW_TRACKING_URI", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def recording(**arguments: Any) -> Iterator[Recording]:
    """Record the spans of the code inside the `with` block, without any connection to another machine.

    Sets `MLFLOW_TRACKING_URI` for the time of the block and calls `configure()`. Calls of `configure()` and new
    exporters in the application also send to the recording, whatever address and credentials they pass. A pipeline that
    was configured before is replaced.

    Args:
        **arguments: Arguments of `configure()`; those of the target have no effect.

    Yields:
        The recording.
    """
    with RecordingEndpoint() as endpoint:
        previous = {name: os.environ.pop(name, None) for name in _TARGET_VARIABLES}
        os.environ["MLFLOW_TRACKING_URI"] = endpoint.url
        previous_overrides = dict(overrides)
        overrides.update(tracking_uri=endpoint.url, endpoint=None, credentials=None, verbose=False)
        try:
            recorded = Recording(endpoint, configure(**arguments))
            try:
                yield recorded
            finally:
                try:
                    recorded._flush()  # noqa: SLF001 - of this module
                finally:
                    recorded._is_open = False  # noqa: SLF001
                    shutdown()
        finally:
            overrides.clear()
            overrides.update(previous_overrides)
            for name, value in previous.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def read_attributes(
    reader: Reader | Dialect,
    attributes: Mapping[str, Any],
    *,
    name: str = "",
    scope: str = "",
    events: Sequence[EventView] = (),
) -> NormalizedSpan | None:
    """Read a span with one reader (experimental; see `mlflow_otlp_exporter.readers`).

    Args:
        reader: The reader.
        attributes: The span's attributes.
        name: The span's name.
        scope: The name of the span's instrumentation scope.
        events: The span's events.

    Returns:
        What the reader says of the span; None if it is not of its convention.

    Raises:
        TypeError: The result is malformed: in an application, it would be ignored.
    """
    reader = table_reader(reader) if isinstance(reader, Dialect) else reader
    return read_span(reader, SpanView(name, scope, attributes, events))


@contextmanager
def using_readers(*readers: Reader | Dialect) -> Iterator[None]:
    """Read all spans of the block with these readers, too, as if their package were the only installed one.

    Experimental; see `mlflow_otlp_exporter.readers`.

    Args:
        readers: Readers that no entry point names yet.
    """
    were_loaded, InstalledReaders.are_loaded = InstalledReaders.are_loaded, True
    InstalledReaders.use(to_readers(readers, "of a test"))
    try:
        yield
    finally:
        InstalledReaders.use(list(load_readers()) if were_loaded else ())
        InstalledReaders.are_loaded = were_loaded
