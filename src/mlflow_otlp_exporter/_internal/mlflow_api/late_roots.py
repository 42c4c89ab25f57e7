"""Roots that arrive after a local root of another process has completed their trace.

MLflow keeps the first state, request and response of a trace. The process that sends the root therefore looks for
traces that a local root has completed before (`trace_completer`), and replaces these values over the REST API. A trace
belongs to the experiment of its first span, which another service may have sent.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Status

from mlflow_otlp_exporter._internal.common.attribute_names import TRACE_TAG
from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.mlflow_api.background import retry_later
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    RestResult,
    ServerInfo,
    ServerUnavailableError,
    Version,
    request_json,
)
from mlflow_otlp_exporter._internal.mlflow_api.trace_location import TraceLocator
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import Transport

# A tag of traces that a local root has completed; the console does not show tags that begin with `mlflow.`.
LOCAL_ROOT_TAG = "mlflow.otlp.localRoot"
DELAY_SECONDS = 20.0
_BATCH_SIZE, _MAX_PENDING, _MAX_PENDING_BYTES = 100, 10_000, 32 * 1024 * 1024
_MAX_FAILURES = 3
_MAX_PREVIEW_LENGTH = 1000
# Before, the request removes tags and metadata that it does not name; since then, it freezes tokens that it names.
_KEEPS_METADATA_SINCE: Version = (3, 13)


class _Root(NamedTuple):
    state: str
    request: str
    response: str
    tags: Mapping[str, str]  # with the trace's name


class LateRootCorrector:
    """Delivered roots by destination, until it is checked whether another span has completed their trace."""

    def __init__(
        self,
        api: Transport,
        resolve_experiment: Callable[[Destination, float], str | ExportOutcome | None],
        server: ServerInfo,
    ) -> None:
        self._api, self._resolve_experiment, self._server = api, resolve_experiment, server
        self._locator = TraceLocator(api)
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._pending: dict[Destination, dict[str, EncodedSpan]] = {}
        self._byte_count = 0

    def add_delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> "LateRootTask | None":
        """Add delivered roots; a task if the destination has none yet."""
        roots = [span for span in spans if span.is_root]
        if not roots:
            return None
        with self._lock:
            is_new = destination not in self._pending
            pending = self._pending.setdefault(destination, {})
            for root in roots:
                if len(pending) < _MAX_PENDING and self._byte_count + len(root.body) <= _MAX_PENDING_BYTES:
                    self._remove(pending, (name := f"tr-{root.trace_id:032x}",))
                    pending[name] = root
                    self._byte_count += len(root.body)
        return LateRootTask(self, destination) if is_new else None

    def _remove(self, pending: dict[str, EncodedSpan], names: Iterable[str]) -> None:
        for name in names:
            if (root := pending.pop(name, None)) is not None:
                self._byte_count -= len(root.body)

    def correct_batch(self, task: "LateRootTask", timeout_seconds: float) -> SendResult:
        """Check some roots, and correct the traces that another span has completed."""
        destination = task.destination
        with self._lock:
            roots = dict(list(self._pending.get(destination, {}).items())[:_BATCH_SIZE])
        try:
            outcome = self._correct(destination, roots, timeout_seconds) if roots else None
        except ServerUnavailableError as error:
            outcome = error.outcome
        if outcome is not None and outcome.cause is FailureKind.SERVER and task.failures < _MAX_FAILURES:
            return retry_later(task, outcome)
        task.failures = 0
        with self._lock:
            pending = self._pending.get(destination, {})
            self._remove(pending, roots)
            if not pending:
                self._pending.pop(destination, None)
        return SendResult((task,) if pending else ())

    def _correct(
        self, destination: Destination, roots: Mapping[str, EncodedSpan], timeout_seconds: float
    ) -> ExportOutcome | None:
        experiment = self._resolve_experiment(destination, timeout_seconds)
        if not isinstance(experiment, str):
            return experiment
        result, records = self._search((experiment,), roots, destination, timeout_seconds)
        missing = [span.trace_id for name, span in roots.items() if name not in records]
        if result.is_ok and missing:
            located = self._locator.look_up(missing, destination.workspace, timeout_seconds)
            others = {location for location in located.values() if isinstance(location, str)} - {experiment}
            if others:
                result, elsewhere = self._search(sorted(others), roots, destination, timeout_seconds)
                records.update(elsewhere)
        for name, record in records.items():
            root = _read_root(roots[name]) if _to_object(record.get("tags")).get(LOCAL_ROOT_TAG) else None
            if root is not None:
                version = self._server.version(timeout_seconds)
                info = _replace_values(record, root, keeps_metadata=bool(version and version >= _KEEPS_METADATA_SINCE))
                body = {"trace": {"trace_info": info}}
                result = self._request("/api/3.0/mlflow/traces", body, destination, timeout_seconds)
        return None if result.is_ok else result.outcome

    def _search(
        self, experiments: Sequence[str], roots: Iterable[str], destination: Destination, timeout_seconds: float
    ) -> tuple[RestResult, dict[str, Mapping[str, Any]]]:
        """The traces of roots in some experiments, by name."""
        names = list(roots)
        body = {
            "locations": [
                {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
                for experiment in experiments
            ],
            "filter": "trace.request_id IN ({})".format(", ".join(f"'{name}'" for name in names)),
            "max_results": len(names),
        }
        result = self._request("/api/3.0/mlflow/traces/search", body, destination, timeout_seconds)
        records = result.content.get("traces")
        infos = [info for info in records if isinstance(info, dict)] if isinstance(records, list) else []
        return result, {str(info["trace_id"]): info for info in infos if info.get("trace_id") in names}

    def _request(
        self, path: str, body: Mapping[str, Any], destination: Destination, timeout_seconds: float
    ) -> RestResult:
        workspace = destination.workspace
        return request_json(self._api, "POST", path, body, workspace=workspace, timeout_seconds=timeout_seconds)

    def give_up(self, destination: Destination) -> None:
        """Forget the roots of a destination; their spans are delivered."""
        with self._lock:
            pending = self._pending.pop(destination, {})
            self._remove(pending, list(pending))


class LateRootTask:
    """The unchecked roots of a destination, some at a time."""

    not_before = 0.0
    failures = 0  # consecutive
    is_awaited = False

    def __init__(self, corrector: LateRootCorrector, destination: Destination) -> None:
        self.corrector, self.destination = corrector, destination

    def run(self, timeout_seconds: float) -> SendResult:
        return self.corrector.correct_batch(self, timeout_seconds)

    def give_up(self) -> None:
        self.corrector.give_up(self.destination)


def _read_root(encoded: EncodedSpan) -> _Root | None:
    """What the root says of its trace; None if it is a local root itself."""
    span = parse_span(encoded)
    attributes = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    if TRACE_TAG + LOCAL_ROOT_TAG in attributes:
        return None
    request = attributes.get("mlflow.spanInputs") or attributes.get("input.value")
    response = attributes.get("mlflow.spanOutputs") or attributes.get("output.value")
    state = "ERROR" if span.status.code == Status.STATUS_CODE_ERROR else "OK"
    tags = {key[len(TRACE_TAG) :]: value for key, value in attributes.items() if key.startswith(TRACE_TAG) and value}
    return _Root(state, _preview(request, "messages"), _preview(response, "choices"), tags)


def _preview(text: str | None, key: str) -> str:
    """The text that MLflow shows for inputs or outputs: the last message of a chat, otherwise all of it."""
    content = parse_json(text) if text and text.startswith(("{", '"')) else None
    if isinstance(content, dict):
        messages = content.get(key)
        message = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(message, dict) and isinstance(message.get("message"), dict):
            message = message["message"]
        content = message.get("content") if isinstance(message, dict) else None
    preview = content if isinstance(content, str) and content else text
    return preview[:_MAX_PREVIEW_LENGTH] if preview else ""


def _replace_values(record: Mapping[str, Any], root: _Root, *, keeps_metadata: bool) -> dict[str, Any]:
    """A stored trace with the values of its root."""
    info = {**record, "state": root.state, "request_preview": root.request, "response_preview": root.response}
    info["tags"] = {**_to_object(record.get("tags")), **root.tags, LOCAL_ROOT_TAG: ""}
    if keeps_metadata:
        info.pop("trace_metadata", None)
    return {key: value for key, value in info.items() if value is not None and key != "assessments"}


def _to_object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
