"""Tells MLflow of delivered traces what OTLP has no place for: one call a trace, some seconds after its root.

Servers before 3.14 take names, tags, sessions and users of traces this way only; newer ones the source and metadata.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_otlp_exporter._internal.common.backoff import compute_backoff
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.fork import register_fork_reset
from mlflow_otlp_exporter._internal.common.in_flight import Ticket
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.common.work_queue import SendResult
from mlflow_otlp_exporter._internal.mlflow_api.background import Task
from mlflow_otlp_exporter._internal.mlflow_api.rest_client import RestResult, request_json
from mlflow_otlp_exporter._internal.mlflow_api.server import ServerInfo, ServerUnavailableError, Version
from mlflow_otlp_exporter._internal.mlflow_api.trace_metadata import (
    CARRIED,
    TraceMetadata,
    diff_metadata,
    prompt_links,
    read_root,
)
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import Disposition, ExportOutcome, FailureKind
from mlflow_otlp_exporter._internal.transport.messages import Transport

# Traces whose records are read at a time, and are then told one after the other.
_AT_ONCE = 20
_MOST = 10_000
# A Collector in between may keep spans for a while.
_LONGEST_ABSENCE = 60.0
_PAUSE = 2.0
# How often a trace is told that is answered 500.
_MOST_ERRORS = 4
# After a refusal nothing is asked for so long: what is forbidden now may be allowed later.
_FORBIDDEN_SECONDS = 600.0
_SEARCH = "/api/3.0/mlflow/traces/search"
_LINK = "/api/2.0/mlflow/traces/link-prompts"
_LACKING = "names, tags, sessions and users of traces are lacking in MLflow"


@dataclass
class _Pending:
    told: TraceMetadata
    since: float
    errors: int = 0


class TraceUpdater:
    """What is still to be told, by destination.

    Args:
        api: MLflow's REST side.
        experiment: The id of a destination's experiment, within some seconds; or why there is none.
        stored: Tells the server's version.
        report: Where traces are counted.
        everything: True to tell servers of any version, and the source and the metadata, too; else older ones only.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        api: Transport,
        experiment: Callable[[Destination, float], str | ExportOutcome | None],
        stored: ServerInfo,
        report: ProblemLog,
        *,
        everything: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._experiment, self._stored, self._report = api, experiment, stored, report
        self._everything, self._clock = everything, clock
        self._off = False
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Also in a forked child: what the parent has sent, the parent follows up."""
        self._lock = threading.Lock()
        self._pending: dict[Destination, dict[int, _Pending]] = {}
        self._forbidden_until: dict[str | None, float] = {}

    def delivered(self, destination: Destination, spans: Sequence[EncodedSpan]) -> UpdateTask | None:
        """Takes note of spans that have arrived.

        Returns:
            What is to be done in some seconds; None if there is nothing to do, or it is to be done already.
        """
        if self._off or self._clock() < self._forbidden_until.get(destination.workspace, 0.0):
            return None
        run, now = destination.run_id, self._clock()
        told = [read_root(span, run_id=run, everything=self._everything) for span in spans if span.is_root]
        found = {each.trace_id: _Pending(each, now) for each in told if each.tags or each.metadata}
        if not found:
            return None
        with self._lock:
            waiting = self._pending.get(destination)
            if waiting is not None:
                waiting.update(found)
            else:
                self._pending[destination] = found
            too_many = sum(map(len, self._pending.values())) - _MOST
            if too_many > 0:
                oldest = self._pending[destination]
                for trace_id in list(oldest)[:too_many]:
                    del oldest[trace_id]
        if too_many > 0:
            self._lost(too_many, "the server takes them more slowly than they come")
        return UpdateTask(self, destination) if waiting is None else None

    def step(self, turn: UpdateTask, seconds: float) -> SendResult[Task]:
        """Reads what MLflow has of some traces, and tells it what is lacking."""
        try:
            version = self._stored.version(seconds)
        except ServerUnavailableError as error:
            return self._later(turn, error.outcome)
        if not self._everything and (version is None or version >= CARRIED):
            # Who does not tell its version may do so later: until then traces are left as they are.
            self._off = version is not None
            self._take(turn.destination)
            return SendResult()
        experiment = self._experiment(turn.destination, seconds)
        if isinstance(experiment, ExportOutcome):
            return self._later(turn, experiment)
        if experiment is None:
            self._lost(self._take(turn.destination), "no MLflow server answers beside the OTLP endpoint")
            return SendResult()
        with self._lock:
            batch = list(self._pending.get(turn.destination, {}).values())[:_AT_ONCE]
        reply = self._search(experiment, [each.told for each in batch], turn.destination, seconds)
        if not reply.fine:
            return self._failed(turn, reply.outcome)
        records = {str(each.get("trace_id")): each for each in _objects(reply.content.get("traces"))}
        present = [(each, records[each.told.name]) for each in batch if each.told.name in records]
        if (outcome := self._tell_all(present, version, turn.destination, seconds)) is not None:
            return self._failed(turn, outcome)
        if present:
            turn.failures = 0
        return self._rest(turn, [each for each in batch if each.told.name not in records])

    def _tell_all(
        self,
        present: Iterable[tuple[_Pending, Mapping[str, Any]]],
        version: Version | None,
        destination: Destination,
        seconds: float,
    ) -> ExportOutcome | None:
        """Tells what is lacking of each; returns what stands in the way of the rest."""
        for each, record in present:
            outcome = self._tell(each.told, record, version, destination, seconds)
            if outcome is not None:
                if not self._is_over(each, outcome):
                    return outcome
                self._lost(1, outcome.message)
            self._done(destination, each)
        return None

    def _search(
        self, experiment: str, told: Sequence[TraceMetadata], destination: Destination, seconds: float
    ) -> RestResult:
        location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        wanted = ", ".join(f"'{each.name}'" for each in told)
        body = {"locations": [location], "filter": f"trace.request_id IN ({wanted})", "max_results": len(told)}
        return request_json(self._api, "POST", _SEARCH, body, workspace=destination.workspace, seconds=seconds)

    def _tell(
        self,
        told: TraceMetadata,
        record: Mapping[str, Any],
        version: Version | None,
        destination: Destination,
        seconds: float,
    ) -> ExportOutcome | None:
        """Tells what is lacking of one trace; returns what stands in the way."""
        body = diff_metadata(told, record, version)
        if body is not None:
            path = f"/api/2.0/mlflow/traces/{told.name}"
            reply = request_json(self._api, "PATCH", path, body, workspace=destination.workspace, seconds=seconds)
            if not reply.fine:
                return None if reply.outcome.status == 404 else reply.outcome  # deleted in the meantime
            self._report.count(metadata_updates=1)
        return self._link(told, version, destination, seconds)

    def _link(
        self, told: TraceMetadata, version: Version | None, destination: Destination, seconds: float
    ) -> ExportOutcome | None:
        """Links a trace to its prompts; returns what stands in the way now, and says what always will."""
        body = prompt_links(told, version)
        if body is None:
            return None
        reply = request_json(self._api, "POST", _LINK, body, workspace=destination.workspace, seconds=seconds)
        if reply.fine or reply.outcome.status == 404:  # deleted in the meantime
            return None
        if reply.outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
            return reply.outcome
        said = f"traces are not linked to their prompts: {reply.outcome.message}"
        self._report.once(logging.WARNING, add_code(MessageCode.TRACE_METADATA, said))
        return None

    @staticmethod
    def _is_over(each: _Pending, outcome: ExportOutcome) -> bool:
        """Whether a trace itself is what the server does not take, so that others must not wait for it."""
        each.errors += outcome.status == 500  # any other error is the server's own
        return outcome.verdict is Disposition.REFUSED or each.errors >= _MOST_ERRORS

    def _done(self, destination: Destination, each: _Pending) -> None:
        with self._lock:
            waiting = self._pending.get(destination, {})
            if waiting.get(each.told.trace_id) is each:
                del waiting[each.told.trace_id]

    def _rest(self, turn: UpdateTask, absent: Sequence[_Pending]) -> SendResult[Task]:
        """What comes after a batch: the next one; those that MLflow does not have yet come last."""
        now = self._clock()
        for each in absent:
            self._done(turn.destination, each)
        late = [each for each in absent if now - each.since > _LONGEST_ABSENCE]
        if late:
            self._lost(len(late), "MLflow does not have these traces, or not in the experiment that they were sent to")
        with self._lock:
            waiting = self._pending.get(turn.destination, {})
            more = bool(waiting)
            for each in absent:
                if now - each.since <= _LONGEST_ABSENCE:
                    waiting.setdefault(each.told.trace_id, each)
            if not waiting:
                self._pending.pop(turn.destination, None)
                return SendResult()
        if not more:
            turn.failures += 1  # nothing but absent ones: no flush waits for long, and the end not at all
        return SendResult((turn,), retry_after=0.0 if more else _PAUSE, requeue_last=True)

    def _failed(self, turn: UpdateTask, outcome: ExportOutcome) -> SendResult[Task]:
        if outcome.cause in (FailureKind.SERVER, FailureKind.CREDENTIALS):
            return self._later(turn, outcome)
        lost = self._take(turn.destination)
        self._forbidden_until[turn.destination.workspace] = self._clock() + _FORBIDDEN_SECONDS
        self._lost(lost, f"{outcome.message}; spans are not affected. MLFLOW_OTLP_TRACE_INFO=false does without")
        return SendResult()

    def _later(self, turn: UpdateTask, outcome: ExportOutcome) -> SendResult[Task]:
        wait = max(compute_backoff(turn.failures, 0.5), outcome.retry_after or 0.0)
        turn.failures += 1
        return SendResult((turn,), retry_after=wait, requeue_last=True)

    def _take(self, destination: Destination) -> int:
        with self._lock:
            return len(self._pending.pop(destination, ()))

    def _lost(self, count: int, why: str) -> None:
        self._report.count(metadata_updates_dropped=count)
        self._report.once(logging.WARNING, add_code(MessageCode.TRACE_METADATA, f"{_LACKING}: {why}"))

    def give_up(self, destination: Destination) -> None:
        """Ends what is left for a destination undone."""
        if count := self._take(destination):
            self._lost(count, "they could not be told before the end")


@dataclass(eq=False)
class UpdateTask:
    """The traces of a destination that are to be followed up, some at a time.

    Attributes:
        owner: Has the traces.
        destination: Where they went.
        not_before: When its turn is.
        failures: How often in a row that was in vain.
        ticket: Counts it.
    """

    owner: TraceUpdater
    destination: Destination
    not_before: float = 0.0
    failures: int = 0
    ticket: Ticket | None = None

    def run(self, seconds: float) -> SendResult[Task]:
        """Reads and tells some."""
        return self.owner.step(self, seconds)

    def give_up(self) -> None:
        """Ends undone."""
        self.owner.give_up(self.destination)


def _objects(found: Any) -> Iterable[Mapping[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
