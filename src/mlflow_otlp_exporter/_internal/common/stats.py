"""Counters of one exporter."""

import threading
from collections import Counter
from typing import NamedTuple

from mlflow_otlp_exporter._internal.common.fork import register_fork_reset


class Stats(NamedTuple):
    """Counters of an exporter since its start, as returned by `stats()`.

    Attributes:
        delivered: Spans that the server accepted.
        dropped: Spans that were dropped. The log says why.
        spooled: Spans that were written to disk because the server did not accept them. Spans that are sent later
            are counted in `delivered`, too.
        requests: Requests to the OTLP endpoint, with the retries. Look-ups of experiments are not counted.
        retries: Those of the requests that repeated an earlier one.
        filtered: Spans of traces that the trace filter (`noise`, `MLFLOW_OTLP_NOISE`) left out.
        unsampled: Calls whose spans OpenTelemetry's sampler did not record, because the caller had not sampled its
            trace (`ignore_caller_sampling`, `MLFLOW_OTLP_IGNORE_CALLER_SAMPLING`). Counted with `configure()` and
            without code changes.
        values_repaired: Attribute values that were changed so that they can be encoded: surrogate characters,
            integers beyond 64 bits.
        values_dropped: Attribute values that OTLP cannot represent: unknown types, values nested too deeply.
        metadata_updates: Traces whose name, tags, session or user were sent over MLflow's REST API
            (`docs/compatibility.md`).
        metadata_updates_dropped: Traces for which this update failed.
        attachments_uploaded: Images, audio and other files that were uploaded (`attachments`,
            `MLFLOW_OTLP_ATTACHMENTS`).
        attachments_failed: Files whose upload failed; they were sent inside their span.
        feedback: Feedback and expectations that the server accepted.
        feedback_dropped: Feedback and expectations that were dropped. The log says why.
    """

    delivered: int = 0
    dropped: int = 0
    spooled: int = 0
    requests: int = 0
    retries: int = 0
    filtered: int = 0
    unsampled: int = 0
    values_repaired: int = 0
    values_dropped: int = 0
    metadata_updates: int = 0
    metadata_updates_dropped: int = 0
    attachments_uploaded: int = 0
    attachments_failed: int = 0
    feedback: int = 0
    feedback_dropped: int = 0


class ExportStats:
    """The counters while they grow; `Stats` is a snapshot of them."""

    def __init__(self) -> None:
        self._reset_after_fork()
        register_fork_reset(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        # Re-entrant: a signal handler or a finalizer may end a span while its own thread holds the lock.
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(Stats._fields, 0)
        self._drop_reasons: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        """Add to counters, which are named as in `Stats`."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def add_dropped(self, span_count: int, reason: str) -> None:
        """Count dropped spans; the reason is one of few words, for metrics."""
        with self._lock:
            self._counts["dropped"] += span_count
            self._drop_reasons[reason] += span_count

    def drop_reasons(self) -> dict[str, int]:
        with self._lock:
            return dict(self._drop_reasons)

    def snapshot(self) -> Stats:
        with self._lock:
            return Stats(**self._counts)
