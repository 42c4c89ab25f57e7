"""Updates of trace metadata in MLflow: one request per delivered trace, some seconds after its root was delivered.

Servers before 3.14 get names, tags, sessions and users of traces only in this way; newer ones source and metadata.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.mlflow_api.background import retry_later
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    RestResult,
    ServerInfo,
    ServerUnavailableError,
    Version,
    request_json,
)
from mlflow_otlp_exporter._internal.mlflow_api.trace_metadata import (
    READS_METADATA_SINCE,
    TraceMetadata,
    diff_metadata,
    prompt_links,
    read_root,
)
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan
from mlflow_otlp_exporter._internal.transport.http_types import Transport

# Traces whose records are read with one search.
_BATCH_SIZE = 20
_MAX_PENDING = 10_000
# A Collector in between may hold spans for a while.
_MAX_ABSENT_SECONDS = 60.0
_ABSENT_DELAY_SECONDS = 2.0
# Attempts for a trace whose update is answered with 500.
_MAX_SERVER_ERRORS = 4
# Pause after a rejection; the permission may be granted later.
_REJECTED_PAUSE_SECONDS = 600.0
_SEARCH_PATH = "/api/3.0/mlflow/traces/search"
_LINK_PATH = "/api/2.0/mlflow/traces/link-prompts"


class _PendingUpdate:
    server_error_count = 0

    def __init__(self, metadata: TraceMetadata, since: float) -> None:
        self.metadata, self.since = metadata, since


class TraceUpdater:
    """Pending updates by destination; `everything` updates servers of any version, with source and metadata, too."""

    def __init__(
        self,
        api: Transport,
        resolve_experiment: Callable[[Destination, float], str | ExportOutcome | None],
        server: ServerInfo,
        problem_log: ProblemLog,
        *,
        everything: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._resolve_experiment, self._server = api, resolve_experiment, server
        self._problem_log = problem_log
        self._everything, self._clock = everything, clock
        self._is_off = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent process updates the traces that it has sent.
        self._lock = threading.RLock()
        self._pending: dict[Destination, dict[int, _PendingUpdate]] = {}
        self._rejected_until: dict[str | None, float] = {}

    def add_delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> UpdateTask | None:
        """Add the traces whose roots were delivered; a task if the destination has none yet."""
        if self._is_off or self._clock() < self._rejected_until.get(destination.workspace, 0.0):
            return None
        run_id, now = destination.run_id, self._clock()
        roots = [read_root(span, run_id=run_id, everything=self._everything) for span in spans if span.is_root]
        updates = {root.trace_id: _PendingUpdate(root, now) for root in roots if root.tags or root.metadata}
        if not updates:
            return None
        with self._lock:
            pending = self._pending.get(destination)
            if pending is not None:
                pending.update(updates)
            else:
                self._pending[destination] = updates
            excess = sum(map(len, self._pending.values())) - _MAX_PENDING
            if excess > 0:
                own_updates = self._pending[destination]
                for trace_id in list(own_updates)[:excess]:
                    del own_updates[trace_id]
        if excess > 0:
            self._drop(excess, "traces arrive faster than the server accepts updates")
        return UpdateTask(self, destination) if pending is None else None

    def update_batch(self, task: UpdateTask, timeout_seconds: float) -> SendResult:
        """Read MLflow's records of some traces, and send what the records lack."""
        destination = task.destination
        try:
            version = self._server.version(timeout_seconds)
        except ServerUnavailableError as error:
            return retry_later(task, error.outcome)
        if not self._everything and (version is None or version >= READS_METADATA_SINCE):
            # A server that does not tell its version may do so later; until then its traces stay unchanged.
            self._is_off = version is not None
            self._discard(destination)
            return SendResult()
        experiment = self._resolve_experiment(destination, timeout_seconds)
        if isinstance(experiment, ExportOutcome):
            return retry_later(task, experiment)
        if experiment is None:
            self._drop(self._discard(destination), "no MLflow server answers next to the OTLP endpoint")
            return SendResult()
        with self._lock:
            batch = list(self._pending.get(destination, {}).values())[:_BATCH_SIZE]
        result = self._search(experiment, [update.metadata for update in batch], destination, timeout_seconds)
        if not result.is_ok:
            return self._on_failure(task, result.outcome)
        records = {str(record.get("trace_id")): record for record in _objects_in(result.content.get("traces"))}
        for update in batch:
            name = update.metadata.mlflow_id
            if name not in records and (record := self._read_record(name, destination, timeout_seconds)):
                records[name] = record
        present = [
            (update, records[update.metadata.mlflow_id]) for update in batch if update.metadata.mlflow_id in records
        ]
        if (outcome := self._update_all(present, version, destination, timeout_seconds)) is not None:
            return self._on_failure(task, outcome)
        if present:
            task.failures = 0
        return self._remaining(task, [update for update in batch if update.metadata.mlflow_id not in records])

    def _read_record(self, name: str, destination: Destination, timeout_seconds: float) -> Any:
        """The record of a trace that another service's experiment may have; None if MLflow does not have the trace."""
        result = self._request("GET", f"/api/3.0/mlflow/traces/{name}", None, destination, timeout_seconds)
        trace = result.content.get("trace")
        return next(iter(_objects_in([trace.get("trace_info")])), None) if isinstance(trace, dict) else None

    def _update_all(
        self,
        present: Iterable[tuple[_PendingUpdate, Mapping[str, Any]]],
        version: Version | None,
        destination: Destination,
        timeout_seconds: float,
    ) -> ExportOutcome | None:
        """Update traces; return the failure that stops the others."""
        for update, record in present:
            outcome = self._update(update.metadata, record, version, destination, timeout_seconds)
            if outcome is not None:
                if not self._is_permanent(update, outcome):
                    return outcome
                self._drop(1, outcome.message)
            self._remove(destination, update)
        return None

    def _search(
        self, experiment: str, traces: Sequence[TraceMetadata], destination: Destination, timeout_seconds: float
    ) -> RestResult:
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        ids = ", ".join(f"'{metadata.mlflow_id}'" for metadata in traces)
        body = {"locations": [location], "filter": f"trace.request_id IN ({ids})", "max_results": len(traces)}
        return self._request("POST", _SEARCH_PATH, body, destination, timeout_seconds)

    def _update(
        self,
        metadata: TraceMetadata,
        record: Mapping[str, Any],
        version: Version | None,
        destination: Destination,
        timeout_seconds: float,
    ) -> ExportOutcome | None:
        """Send what a trace's record lacks; return the failure."""
        body = diff_metadata(metadata, record, version)
        if body is not None:
            path = f"/api/2.0/mlflow/traces/{metadata.mlflow_id}"
            result = self._request("PATCH", path, body, destination, timeout_seconds)
            if not result.is_ok:
                return None if result.outcome.status == 404 else result.outcome  # 404: deleted in the meantime
            self._problem_log.stats.add(metadata_updates=1)
        return self._link_prompts(metadata, version, destination, timeout_seconds)

    def _link_prompts(
        self, metadata: TraceMetadata, version: Version | None, destination: Destination, timeout_seconds: float
    ) -> ExportOutcome | None:
        """Link a trace to its prompts; return a temporary failure, and log a permanent one."""
        body = prompt_links(metadata, version)
        if body is None:
            return None
        result = self._request("POST", _LINK_PATH, body, destination, timeout_seconds)
        if result.is_ok or result.outcome.status == 404:  # deleted in the meantime
            return None
        if result.outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
            return result.outcome
        message = f"traces are not linked to their prompts: {result.outcome.message}"
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.TRACE_METADATA, message))
        return None

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, destination: Destination, timeout_seconds: float
    ) -> RestResult:
        return request_json(
            self._api, method, path, body, workspace=destination.workspace, timeout_seconds=timeout_seconds
        )

    @staticmethod
    def _is_permanent(update: _PendingUpdate, outcome: ExportOutcome) -> bool:
        """Whether the server rejects this trace, so that others must not wait for it."""
        update.server_error_count += outcome.status == 500  # other errors concern the whole server
        return outcome.disposition is Disposition.PERMANENT or update.server_error_count >= _MAX_SERVER_ERRORS

    def _remove(self, destination: Destination, update: _PendingUpdate) -> None:
        with self._lock:
            pending = self._pending.get(destination, {})
            if pending.get(update.metadata.trace_id) is update:
                del pending[update.metadata.trace_id]

    def _remaining(self, task: UpdateTask, absent: Sequence[_PendingUpdate]) -> SendResult:
        """Continue with the next batch; traces that MLflow does not have yet go last."""
        now = self._clock()
        for update in absent:
            self._remove(task.destination, update)
        expired = [update for update in absent if now - update.since > _MAX_ABSENT_SECONDS]
        if expired:
            reason = "MLflow does not have these traces, or not in the experiment that they were sent to"
            self._drop(len(expired), reason)
        with self._lock:
            pending = self._pending.get(task.destination, {})
            has_others = bool(pending)
            for update in absent:
                if now - update.since <= _MAX_ABSENT_SECONDS:
                    pending.setdefault(update.metadata.trace_id, update)
            if not pending:
                self._pending.pop(task.destination, None)
                return SendResult()
        if not has_others:
            # Only absent traces remain: no flush waits for long, and shutdown not at all.
            task.failures += 1
        delay = 0.0 if has_others else _ABSENT_DELAY_SECONDS
        return SendResult((task,), destination_delay=delay, requeue_last=True)

    def _on_failure(self, task: UpdateTask, outcome: ExportOutcome) -> SendResult:
        if outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
            return retry_later(task, outcome)
        count = self._discard(task.destination)
        self._rejected_until[task.destination.workspace] = self._clock() + _REJECTED_PAUSE_SECONDS
        self._drop(count, f"{outcome.message}; spans are not affected")
        return SendResult()

    def _discard(self, destination: Destination) -> int:
        with self._lock:
            return len(self._pending.pop(destination, ()))

    def _drop(self, count: int, reason: str) -> None:
        self._problem_log.stats.add(metadata_updates_dropped=count)
        message = f"names, tags, sessions and users of traces are missing in MLflow: {reason}"
        self._problem_log.log_once(logging.WARNING, add_code(MessageCode.TRACE_METADATA, message))

    def give_up(self, destination: Destination) -> None:
        """Drop the pending updates of a destination."""
        if count := self._discard(destination):
            self._drop(count, "the updates could not be sent before shutdown")


class UpdateTask:
    """The pending updates of a destination, some at a time."""

    not_before = 0.0
    failures = 0  # consecutive

    def __init__(self, updater: TraceUpdater, destination: Destination) -> None:
        self.updater, self.destination = updater, destination

    def run(self, timeout_seconds: float) -> SendResult:
        return self.updater.update_batch(self, timeout_seconds)

    def give_up(self) -> None:
        self.updater.give_up(self.destination)


def _objects_in(value: Any) -> Iterable[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
