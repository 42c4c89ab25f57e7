"""Encoded spans on their way to one destination, with their retry state, and how a request is split."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from mlflow_otlp_exporter._internal.common.exporter_metrics import OnCounted
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.export_outcome import ExportOutcome
from mlflow_otlp_exporter._internal.model.spans import Attachment, EncodedSpan, body_bytes_of


class ExportFuture(Future[int]):
    """Completion of spans that were submitted together, shared by all requests with them; the result counts drops."""

    is_on_disk = False
    label = ""  # who left the spans on disk, for the log; empty for spans of this exporter

    def __init__(self, span_count: int, byte_count: int = 0) -> None:
        super().__init__()
        self.span_count, self.byte_count = span_count, byte_count
        self.remaining_count, self.dropped_count = span_count, 0  # spans without an outcome, dropped spans
        self.is_postponed = False  # whether `export` waits no longer, because retries may take long
        # Called with the reason when spans have to be retried.
        self.on_postponed: Callable[[ExportOutcome], None] | None = None
        self.on_counted: OnCounted | None = None

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
            self.on_counted(delivered_count, dropped_count, outcome.error_type if outcome is not None else None)
        self.dropped_count += dropped_count
        self.remaining_count -= delivered_count + dropped_count
        if self.remaining_count <= 0 and not self.done():
            self.set_result(self.dropped_count)


@dataclass(eq=False, repr=False)
class ExportRequest:
    """Encoded spans of one destination and their retry state; times are by the retry sender's clock."""

    destination: Destination
    spans: list[EncodedSpan]
    future: ExportFuture
    not_before: float = 0.0  # when the spans may be sent
    may_have_arrived: bool = False  # whether the server may have stored the spans already
    stored_ids: frozenset[tuple[int, int]] | None = None  # stored spans when the server was last asked
    # Of a bisection: what has the bad span if `spans` are delivered, and what is sent when the bad span is alone.
    other_half: list[EncodedSpan] = field(default_factory=list)
    deferred: list[EncodedSpan] = field(default_factory=list)
    others_may_have_arrived: bool = False  # whether the server may have stored spans of the two lists
    is_bisected_after_500: bool = False
    rejection_count: int = 0  # of a single span
    server_error_count: int = 0  # 500 responses, counted once until the destination accepts another request
    accepted_number: int = 0  # of the last request that the destination had accepted at the last counted 500
    exception_count: int = 0  # unexpected exceptions
    check_until: float = 0.0  # until then, missing spans may still be on their way into the server's database
    was_sent: bool = False
    was_posted: bool = False  # as a request: the look-up of the experiment may fail before
    delay_count: int = 0
    created_at: float = 0.0
    # Of the spans before the files were uploaded, by trace id and span id.
    attachments: dict[tuple[int, int], tuple[Attachment, ...]] = field(default_factory=dict)

    def part(self, spans: list[EncodedSpan]) -> "ExportRequest":
        """Return a request of some spans, with what is known about the whole."""
        return replace(self, spans=spans, stored_ids=None, other_half=[], deferred=[])

    def merge(self, spans: Sequence[EncodedSpan], other: ExportFuture, max_bytes: int) -> bool:
        """Add the spans of another future; False if this request is not unsent, or would be too large.

        While a server is slow or away, fewer requests wait: each costs it 11 to 35 ms, whatever it holds.
        """
        future = self.future
        is_full = self.destination.run_id is not None or 0 < max_bytes < future.byte_count + other.byte_count
        if is_full or not self.spans or self.was_sent or future.is_on_disk or future.on_postponed is not None:
            return False
        self.spans += spans
        future.span_count += other.span_count
        future.remaining_count += other.span_count
        future.byte_count += other.byte_count
        return True

    def split_off(self, trace_ids: Collection[int]) -> "ExportRequest":
        """Move the spans of some traces into a request of their own."""
        part = self.part([span for span in self.spans if span.trace_id in trace_ids])
        self.spans = [span for span in self.spans if span.trace_id not in trace_ids]
        return part

    def bisect(self, chance: float) -> None:
        """Keep one half of two or more spans, which hold a bad one; `chance` (0 to 1) decides which.

        The half that was set aside before is deferred: a bisection costs about as many requests as the spans can be
        halved, and two for the others.
        """
        self.deferred += self.other_half
        self.others_may_have_arrived = self.others_may_have_arrived or self.may_have_arrived
        first, second = split_spans(self.spans)
        # In random order: else a bad span at either end would delay all requests that are delivered in between.
        self.spans, self.other_half = (second, first) if chance < 0.5 else (first, second)

    def advance(self, chance: float) -> bool:
        """Continue a bisection after the spans were delivered; False if nothing is left to send."""
        if not self.other_half:
            self.gather()
            return bool(self.spans)
        self.spans, self.other_half = self.other_half, []
        self.may_have_arrived = self.others_may_have_arrived
        if len(self.spans) > 1:
            self.bisect(chance)  # unsent, because the bad span is among them
        return True

    def gather(self) -> None:
        """End a bisection: all spans belong together again."""
        self.spans, self.other_half, self.deferred = self.spans + self.other_half + self.deferred, [], []
        self.may_have_arrived = self.may_have_arrived or self.others_may_have_arrived
        self.others_may_have_arrived = self.is_bisected_after_500 = False

    def separate_others(self) -> "list[ExportRequest]":
        """Return the other spans of a bisection as a request, when the bad span is alone."""
        others = self.part(self.other_half + self.deferred)
        others.may_have_arrived, others.delay_count, others.exception_count = self.others_may_have_arrived, 0, 0
        # If the bisection delivered nothing, the server may be the cause of a 500: the next one waits for a success.
        others.server_error_count = int(self.is_bisected_after_500 and len(others.spans) > 1)
        self.other_half, self.deferred, self.others_may_have_arrived = [], [], False
        self.is_bisected_after_500 = others.is_bisected_after_500 = others.others_may_have_arrived = False
        return [others] if others.spans else []

    @property
    def byte_count(self) -> int:
        return body_bytes_of(self.spans)


def split_spans(spans: Sequence[EncodedSpan]) -> tuple[list[EncodedSpan], list[EncodedSpan]]:
    """Split two or more spans between traces, as near to the middle as possible; a single trace between its spans."""
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    if len(traces) == 1:
        return list(spans[: len(spans) // 2]), list(spans[len(spans) // 2 :])
    total_bytes, first_bytes = body_bytes_of(spans), 0
    first: list[EncodedSpan] = []
    second: list[EncodedSpan] = []
    for trace in traces.values():
        trace_bytes = body_bytes_of(trace)
        is_first = not first or (not second and first_bytes + trace_bytes / 2 < total_bytes / 2)
        (first if is_first else second).extend(trace)
        first_bytes += trace_bytes
    return first, second
