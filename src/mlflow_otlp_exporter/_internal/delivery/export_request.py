"""Encoded spans on their way to one destination, with their retry state, and how a request is split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import Attachment, EncodedSpan
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome


class ExportFuture(Future[int]):
    """Completion of spans that were submitted together, shared by all requests with them; the result counts drops."""

    is_on_disk = False
    label = ""  # who left the spans on disk, for the log; empty for spans of this exporter

    def __init__(self, span_count: int, byte_count: int = 0) -> None:
        super().__init__()
        self.span_count, self.byte_count = span_count, byte_count
        self.remaining_count, self.dropped_count = span_count, 0  # spans without an outcome, dropped spans
        self.is_waiting_for_user = False  # whether the spans wait for something that a user has to correct
        # Called with the reason when spans have to be retried.
        self.on_postponed: Callable[[ExportOutcome], None] | None = None
        # Called with the spans that were delivered and dropped, and the outcome; None at shutdown.
        self.on_counted: Callable[[int, int, ExportOutcome | None], None] | None = None

    def record_attempt(self) -> None:
        """Called before spans are sent."""

    def record_failure(self, *, may_have_arrived: bool) -> None:
        """Called after an attempt failed."""

    def yield_slot(self) -> None:
        """Called when the spans are delayed for long, so that other requests may be sent meanwhile."""

    def release(self) -> None:
        """Called when the spans are given back unsent: on disk, they stay for later."""

    def settle(self, delivered_count: int, dropped_count: int, outcome: ExportOutcome | None = None) -> None:
        if self.on_counted is not None:
            self.on_counted(delivered_count, dropped_count, outcome)
        self.dropped_count += dropped_count
        self.remaining_count -= delivered_count + dropped_count
        if self.remaining_count <= 0 and not self.done():
            self.set_result(self.dropped_count)


@dataclass(eq=False)
class ExportRequest:
    """Encoded spans of one destination and their retry state; times are by the retry sender's clock."""

    destination: Destination
    spans: list[EncodedSpan]
    future: ExportFuture
    not_before: float = 0.0  # when the spans may be sent
    may_have_arrived: bool = False  # whether the server may have stored the spans already
    stored_ids: frozenset[tuple[int, int]] | None = None  # stored spans when the server was last asked
    has_bad_span: bool = False  # whether a bad span must be among these spans, because the other half was delivered
    other_half: ExportRequest | None = field(default=None, repr=False)  # of a bisection
    rejection_count: int = 0  # of a single span
    server_error_count: int = 0  # 500 responses, counted once until the destination accepts another request
    accepted_number: int = 0  # of the last request that the destination had accepted at the last counted 500
    exception_count: int = 0  # unexpected exceptions
    check_until: float = 0.0  # until then, missing spans may still be on their way into the server's database
    was_sent: bool = False
    delay_count: int = 0
    created_at: float = 0.0
    # Of the spans before the files were uploaded, by trace id and span id.
    attachments: dict[tuple[int, int], tuple[Attachment, ...]] = field(default_factory=dict, repr=False)

    def split_off(self, trace_ids: Collection[int]) -> ExportRequest:
        """Move the spans of some traces into a request of their own."""
        spans = [span for span in self.spans if span.trace_id in trace_ids]
        self.spans = [span for span in self.spans if span.trace_id not in trace_ids]
        return self.part(spans)

    def part(self, spans: list[EncodedSpan]) -> ExportRequest:
        """Return a request of some spans, with what is known about the whole."""
        return replace(self, spans=spans, stored_ids=None, has_bad_span=False, other_half=None)

    @property
    def byte_count(self) -> int:
        return sum(len(span.body) for span in self.spans)


def split_spans(spans: Sequence[EncodedSpan]) -> tuple[list[EncodedSpan], list[EncodedSpan]]:
    """Split two or more spans between traces, as near to the middle as possible; a single trace between its spans."""
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    if len(traces) == 1:
        return list(spans[: len(spans) // 2]), list(spans[len(spans) // 2 :])
    total_bytes, first_bytes = sum(len(span.body) for span in spans), 0
    first: list[EncodedSpan] = []
    second: list[EncodedSpan] = []
    for trace in traces.values():
        trace_bytes = sum(len(span.body) for span in trace)
        is_first = not first or (not second and first_bytes + trace_bytes / 2 < total_bytes / 2)
        (first if is_first else second).extend(trace)
        first_bytes += trace_bytes
    return first, second


def bisect(request: ExportRequest, chance: float) -> tuple[ExportRequest, ExportRequest]:
    """Split a failing request of two or more spans; `chance` (0 to 1) orders the halves.

    If one half is delivered, the other holds a bad span and is halved at once, unsent: a bad span costs one or two
    requests per halving.
    """
    first, second = map(request.part, split_spans(request.spans))
    for half in (first, second):
        # A half is split only after another failure while the destination accepts others; a span has five attempts.
        half.delay_count, half.server_error_count = 0, min(request.server_error_count, 1) if len(half.spans) > 1 else 0
    if chance < 0.5:
        # In random order: else a bad span at either end would delay all requests that are delivered in between.
        first, second = second, first
    first.other_half, second.other_half = second, first
    return first, second
