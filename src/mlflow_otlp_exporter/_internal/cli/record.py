"""`mlflow-otlp record FILE -- COMMAND`: keep the OTLP requests of an application in a file, as they were sent."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlflow_otlp_exporter._internal.common.problem_log import pluralize
from mlflow_otlp_exporter._internal.gateway.local_receiver import LocalReceiver

_ID_FIELDS = frozenset({"traceId", "spanId", "parentSpanId"})
_PROTOBUF_SUFFIXES = frozenset({".pb", ".binpb", ".otlp"})
# They would lead spans elsewhere, or credentials to the receiver.
_REMOVED = (
    *("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS"),
    *("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_TOKEN_FILE", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_AUTH", "MLFLOW_OTLP_DURABILITY", "OTEL_SDK_DISABLED", "MLFLOW_OTLP_ENABLED"),
)
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def select_variables(environment: Mapping[str, str], url: str) -> dict[str, str]:
    """Return an environment in which this library and OpenTelemetry's OTLP exporters send to the receiver."""
    variables = {name: value for name, value in environment.items() if name not in _REMOVED}
    variables |= {"MLFLOW_TRACKING_URI": url, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "MLFLOW_OTLP_SPOOL": "false"}
    variables["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    for name in ("NO_PROXY", "no_proxy"):
        variables[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1")))
    return variables


class RequestFile:
    """A file of OTLP requests: one JSON object per line, or protobuf if its name ends with `.pb`.

    Requests are appended: the concatenation of messages in protobuf is the message with all their spans.
    """

    def __init__(self, path: Path) -> None:
        self._is_protobuf = path.suffix in _PROTOBUF_SUFFIXES
        # Prompts are in it: for this user only.
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        self._lock = threading.Lock()
        self.span_count, self.trace_ids = 0, set[bytes]()

    def append(self, request: ExportTraceServiceRequest, _headers: Mapping[str, str]) -> None:
        spans = [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
        content = request.SerializeToString() if self._is_protobuf else _to_json(request)
        with self._lock:
            self._file.write(content)
            self._file.flush()
            self.span_count += len(spans)
            self.trace_ids.update(span.trace_id for span in spans)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _to_json(request: ExportTraceServiceRequest) -> bytes:
    return json.dumps(_convert_ids(json_format.MessageToDict(request)), separators=(",", ":")).encode() + b"\n"


def _convert_ids(node: Any) -> Any:
    """Write ids in hexadecimal, as OTLP's JSON has them; protobuf's own has Base64."""
    if isinstance(node, list):
        return [_convert_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        name: base64.b64decode(value).hex() if name in _ID_FIELDS and isinstance(value, str) else _convert_ids(value)
        for name, value in node.items()
    }


def record(path: Path, command: Sequence[str]) -> int:
    """Run a command and write its OTLP requests; return its exit status, 128 and the number after a signal."""
    words = list(command[1:] if command[:1] == ["--"] else command)
    if words and words[0].endswith(".py"):
        words.insert(0, sys.executable)
    if not words:
        print("mlflow-otlp: expected a command: mlflow-otlp record FILE -- python app.py", file=sys.stderr)
        return 2
    file = RequestFile(path)
    receiver = LocalReceiver(file.append, lambda _: None, ignores_other_signals=True)
    try:
        with subprocess.Popen(words, env=select_variables(os.environ, receiver.url)) as child, _pass_signals(child):  # noqa: S603 - the user's command
            status = child.wait()
    except FileNotFoundError:
        print(f"mlflow-otlp: command {words[0]!r} not found", file=sys.stderr)
        return 127
    finally:
        receiver.stop()
        file.close()
    counts = f"{pluralize(file.span_count, 'span')} of {pluralize(len(file.trace_ids), 'trace')}"
    note = "" if file.span_count else ": does the application export over OTLP/HTTP, to the address in its environment?"
    print(f"mlflow-otlp: recorded {counts} in {path}{note}", file=sys.stderr)
    return status if status >= 0 else 128 - status


@contextmanager
def _pass_signals(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass signals on to the child, which alone decides what they mean."""

    def pass_on(number: int, _frame: object) -> None:
        # A terminal sends Ctrl-C to both.
        if number != signal.SIGINT or not os.isatty(0):
            child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
