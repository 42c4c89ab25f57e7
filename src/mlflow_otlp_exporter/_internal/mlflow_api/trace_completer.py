"""Completes traces whose root MLflow does not get, because the caller sends its spans elsewhere, or none.

MLflow takes state, name, request, response and tags of a trace from a span without parent. Without one, the trace stays
in progress for ever. The first local root of this process is therefore sent again without its parent, after a time in
which the root could have come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_otlp_exporter._internal.common.attribute_names import TRACE_TAG
from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.encoding.sanitizer import parse_span
from mlflow_otlp_exporter._internal.mlflow_api.background import retry_later
from mlflow_otlp_exporter._internal.mlflow_api.late_roots import LOCAL_ROOT_TAG
from mlflow_otlp_exporter._internal.mlflow_api.server import (
    COUNTS_ONCE_SINCE,
    ServerInfo,
    ServerUnavailableError,
    request_json,
)
from mlflow_otlp_exporter._internal.mlflow_api.trace_metadata import parse_start
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, encode_request, frame_span
from mlflow_otlp_exporter._internal.transport.http_types import Transport

PARENT_ATTRIBUTE = "mlflow_otlp.parent_span_id"
_BATCH_SIZE = 20
_MAX_PENDING, _MAX_PENDING_BYTES = 10_000, 32 * 1024 * 1024
_MAX_ROOTS = 10_000
# The caller's spans are in MLflow: its root may take that long. Afterwards its process was probably killed.
_MAX_AGE_SECONDS = 900.0
# A Collector in between may hold spans for a while.
_ABSENT_DELAY_SECONDS = 2.0
_REMOTE_PARENT_FLAG = 0x200
# MLflow before 3.17 would add these to the trace's totals once more.
_USAGE_ATTRIBUTES = ("mlflow.chat.tokenUsage", "mlflow.llm.cost", "llm.token_count.", "gen_ai.usage.")


class _PendingTrace:
    def __init__(self, root: EncodedSpan, start_time: int, since: float, due: float) -> None:
        self.root, self.start_time = root, start_time  # nanoseconds
        self.since, self.due = since, due


class TraceCompleter:
    """Local roots by destination, until the root of their trace is delivered or they are due.

    `send` sends an encoded request once.
    """

    def __init__(
        self,
        api: Transport,
        send: Callable[[Destination, bytes, float], ExportOutcome],
        server: ServerInfo,
        problem_log: ProblemLog,
        *,
        wait_seconds: float,
        on_completed: Callable[[Destination, Sequence[EncodedSpan]], None] = lambda _destination, _spans: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._send, self._server, self._problem_log = api, send, server, problem_log
        self._wait_seconds, self._on_completed, self._clock = wait_seconds, on_completed, clock
        self.is_closing = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # The parent process completes the traces that it has sent.
        self._lock = threading.RLock()
        self._pending: dict[Destination, dict[int, _PendingTrace]] = {}
        self._byte_count = self._count = 0
        self._roots: dict[int, None] = {}  # traces whose root was delivered

    def add_delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> CompletionTask | None:
        """Add the traces of delivered local roots; a task if the destination has none yet."""
        local_roots = [span for span in spans if span.is_root or span.has_remote_parent]
        if not local_roots:
            return None
        now, is_new = self._clock(), False
        with self._lock:
            for span in local_roots:
                if span.is_root:
                    evict_oldest(self._roots, _MAX_ROOTS)[span.trace_id] = None
                    for traces in list(self._pending.values()) if self._count else ():
                        self._remove(traces, span.trace_id)
            for span in local_roots:
                if span.has_remote_parent and span.trace_id not in self._roots:
                    is_new = is_new or destination not in self._pending
                    self._add(self._pending.setdefault(destination, {}), span, now)
        return CompletionTask(self, destination, is_awaited=not self._wait_seconds) if is_new else None

    def _add(self, traces: dict[int, _PendingTrace], span: EncodedSpan, now: float) -> None:
        if self._count >= _MAX_PENDING or self._byte_count + len(span.body) > _MAX_PENDING_BYTES:
            self._drop(1, "traces whose root is elsewhere arrive faster than the server accepts updates")
            return
        start_time, earlier = parse_span(span).start_time_unix_nano, traces.get(span.trace_id)
        if earlier is not None:
            if earlier.root.span_id != span.span_id and earlier.start_time <= start_time:
                return
            self._remove(traces, span.trace_id)
        since = now if earlier is None else earlier.since
        traces[span.trace_id] = _PendingTrace(span, start_time, since, since + self._wait_seconds)
        self._count += 1
        self._byte_count += len(span.body)

    def _remove(self, traces: dict[int, _PendingTrace], trace_id: int) -> None:
        trace = traces.pop(trace_id, None)
        if trace is not None:
            self._count -= 1
            self._byte_count -= len(trace.root.body)

    def complete_batch(self, task: CompletionTask, timeout_seconds: float) -> SendResult:
        """Complete some of the traces that are due."""
        destination, now = task.destination, self._clock()
        with self._lock:
            traces = self._pending.get(destination, {})
            is_due = [trace for trace in traces.values() if trace.due <= now or self.is_closing]
        batch = is_due[:_BATCH_SIZE]
        outcome = self._complete(destination, batch, timeout_seconds) if batch else None
        if outcome is not None:
            is_permanent = outcome.cause not in (FailureKind.SERVER, FailureKind.CREDENTIALS)
            if not is_permanent and now < batch[0].since + self._wait_seconds + _MAX_AGE_SECONDS:
                return retry_later(task, outcome)
            self._end(destination, batch)
            self._drop(len(batch), outcome.message)
        task.failures = 0
        with self._lock:
            if not traces:
                self._pending.pop(destination, None)
                return SendResult()
            due = 0.0 if self.is_closing else min(trace.due for trace in list(traces.values()))
        return SendResult((task,), destination_delay=max(0.0, due - self._clock()), requeue_last=True)

    def _complete(
        self, destination: Destination, batch: Sequence[_PendingTrace], timeout_seconds: float
    ) -> ExportOutcome | None:
        """Send the roots of those traces that have none; return the failure."""
        roots: list[EncodedSpan] = []
        done: list[_PendingTrace] = []
        for trace in batch:
            path = f"/api/3.0/mlflow/traces/tr-{trace.root.trace_id:032x}"
            result = request_json(
                self._api, "GET", path, None, workspace=destination.workspace, timeout_seconds=timeout_seconds
            )
            if not result.is_ok and result.outcome.status != 404:
                return result.outcome
            delay = self._next_delay(trace, result.content.get("trace"))
            if delay:
                trace.due = self._clock() + delay
                continue
            done.append(trace)
            if delay is not None:
                roots.append(trace.root)
        if roots:
            try:
                counts_again = self._server.is_older_than(COUNTS_ONCE_SINCE, timeout_seconds)
            except ServerUnavailableError as error:
                return error.outcome
            sent = [without_parent(root, drops_usage=counts_again) for root in roots]
            outcome = self._send(destination, encode_request(sent), timeout_seconds)
            if outcome.disposition not in (Disposition.SUCCESS, Disposition.PARTIAL_SUCCESS):
                return outcome
            self._problem_log.stats.add(metadata_updates=len(roots))
            self._on_completed(destination, sent)
        self._end(destination, done)
        return None

    def _next_delay(self, trace: _PendingTrace, record: Any) -> float | None:
        """How long a trace has to wait still; 0 if its local root has to complete it, None if nothing must be done."""
        info, age = record.get("trace_info") if isinstance(record, dict) else None, self._clock() - trace.since
        if not isinstance(info, dict):
            # Not stored yet, or deleted.
            has_time = not self.is_closing and age < self._wait_seconds + _MAX_AGE_SECONDS
            return _ABSENT_DELAY_SECONDS if has_time else None
        if info.get("state") != "IN_PROGRESS":
            return None  # MLflow has the root, or the local root of another process
        start_milliseconds = parse_start(info)
        if start_milliseconds is None or start_milliseconds >= trace.start_time // 1_000_000 or age >= _MAX_AGE_SECONDS:
            return 0.0
        # The caller sends its spans here, and its root when that has ended.
        return None if self.is_closing else max(self._wait_seconds, _ABSENT_DELAY_SECONDS)

    def _end(self, destination: Destination, batch: Sequence[_PendingTrace]) -> None:
        with self._lock:
            traces = self._pending.get(destination, {})
            for trace in batch:
                if traces.get(trace.root.trace_id) is trace:
                    self._remove(traces, trace.root.trace_id)

    def give_up(self, destination: Destination) -> None:
        """Drop the pending traces of a destination."""
        with self._lock:
            batch = list(self._pending.get(destination, {}).values())
        self._end(destination, batch)
        self._drop(len(batch), "their local root could not be sent again before shutdown")

    def _drop(self, count: int, reason: str) -> None:
        if count:
            self._problem_log.stats.add(metadata_updates_dropped=count)
            message = f"traces without a root in MLflow stay in progress: {reason}"
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.TRACE_METADATA, message))


class CompletionTask:
    """The pending traces of a destination, some at a time."""

    not_before = 0.0
    failures = 0  # consecutive

    def __init__(self, completer: TraceCompleter, destination: Destination, *, is_awaited: bool) -> None:
        self.completer, self.destination = completer, destination
        self.is_awaited = is_awaited  # whether a flush waits for it

    def run(self, timeout_seconds: float) -> SendResult:
        return self.completer.complete_batch(self, timeout_seconds)

    def give_up(self) -> None:
        self.completer.give_up(self.destination)


def without_parent(root: EncodedSpan, *, drops_usage: bool) -> EncodedSpan:
    """A local root as the root of its trace, with the id of its parent as an attribute."""
    span = parse_span(root)
    parent_id = span.parent_span_id.hex()
    span.ClearField("parent_span_id")
    span.flags &= ~_REMOTE_PARENT_FLAG
    if drops_usage:
        attributes = [item for item in span.attributes if not item.key.startswith(_USAGE_ATTRIBUTES)]
        del span.attributes[:]
        span.attributes.extend(attributes)
    span.attributes.add(key=PARENT_ATTRIBUTE).value.string_value = parent_id
    span.attributes.add(key=TRACE_TAG + LOCAL_ROOT_TAG).value.string_value = span.span_id.hex()
    body = frame_span(span.SerializeToString())
    return root._replace(is_root=True, has_remote_parent=False, attachments=(), body=body)
