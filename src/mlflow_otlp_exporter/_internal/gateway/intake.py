"""Takes decoded requests: destination, journal, assembly of traces, pipeline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE
from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.problem_log import log_exception, pluralize
from mlflow_otlp_exporter._internal.common.suppression import suppress_instrumentation
from mlflow_otlp_exporter._internal.config import parsers
from mlflow_otlp_exporter._internal.delivery.pipeline import Pipeline
from mlflow_otlp_exporter._internal.encoding.span_decoder import decode_attributes, decode_scope, decode_span
from mlflow_otlp_exporter._internal.gateway.protocol import GATEWAY, Answer, AnswerKind
from mlflow_otlp_exporter._internal.gateway.trace_assembler import TraceAssembler
from mlflow_otlp_exporter._internal.model.destination import (
    EXPERIMENT_HEADER,
    EXPERIMENT_NAME_HEADER,
    ROUTE_ATTRIBUTES,
    RUN_HEADER,
    WORKSPACE_HEADER,
    Destination,
    Route,
    read_route,
)
from mlflow_otlp_exporter._internal.model.spans import SpanData, estimate_bytes
from mlflow_otlp_exporter._internal.spool import storage
from mlflow_otlp_exporter._internal.spool.journal import SpanKey
from mlflow_otlp_exporter._internal.tracing.trace_filter import TraceFilter

_PARSERS: Mapping[str, Callable[[Any], str]] = {
    WORKSPACE_HEADER: parsers.parse_workspace,
    EXPERIMENT_NAME_HEADER: parsers.parse_experiment_name,
    EXPERIMENT_HEADER: parsers.parse_experiment_id,
    RUN_HEADER: parsers.parse_text,
}
_ATTRIBUTES = (WORKSPACE, EXPERIMENT, EXPERIMENT_ID, RUN_ID)
_MAX_RUN_ID_LENGTH = 64
# Between two submissions, so that traces share requests: a request costs MLflow 11 to 35 ms whatever it holds.
_TICK_SECONDS = 0.25
_MAX_CACHED_OWNERS, _MAX_CACHED_BYTES = 1000, 16 * 1024
# Ids of spans that were taken, so that a request that a client sends again does not count twice. Two generations.
_MAX_TAKEN_SPANS = 200_000
_RETRY_AFTER_SECONDS = 5
# Of the spool: above it, clients keep what they have, because the oldest requests on disk would be dropped.
_MAX_SPOOL_SHARE = 0.9

_DENIED = "denied"
IsAllowed = Callable[[Destination], bool]


class _Origin(NamedTuple):
    """A resource with its destination, or the reason for which its spans are dropped, and its kind for metrics."""

    resource: Resource
    reason: str = ""
    kind: str = ""


@dataclass
class _Decoded:
    """The spans of a request, and how many are dropped for which reason, by text and by kind."""

    spans: list[SpanData] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def drop(self, count: int, reason: str, kind: str) -> None:
        self.reasons[reason] += count
        self.kinds[kind] += count


@dataclass
class IntakeCounts:
    """What is counted for metrics."""

    received: Counter[str] = field(default_factory=Counter)  # spans by destination
    rejected: Counter[str] = field(default_factory=Counter)  # spans by kind of reason
    duplicate_count: int = 0


class Intake:
    """Takes requests of many clients, and submits their traces in a thread of its own.

    A request is answered with success when its spans are in the journal, or in memory without one. `max_destinations`
    bounds how many workspaces and experiments clients may name.
    """

    def __init__(self, pipeline: Pipeline, trace_filter: TraceFilter | None, max_destinations: int) -> None:
        self._pipeline, self._max_destinations = pipeline, max_destinations
        settings = pipeline.settings
        self._buffer = settings.buffer
        self._default = Destination(settings.workspace, settings.experiment, settings.experiment_id, settings.run_id)
        self._write_journal = pipeline.span_recorder
        self._assembler = TraceAssembler(
            decision_wait_seconds=self._buffer.linger,
            max_age_seconds=self._buffer.hold,
            trace_filter=trace_filter,
        )
        pipeline.trace_buffer = self._assembler
        self._destinations: dict[str, None] = {}
        self._resources: dict[tuple[bytes, Route], _Origin] = {}
        self._scopes: dict[bytes, InstrumentationScope] = {}
        self._taken: set[tuple[int, int]] = set()
        self._previously_taken: set[tuple[int, int]] = set()
        self.counts = IntakeCounts()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="mlflow-otlp-gateway", daemon=True)
        self._thread.start()

    def share_counts(self, other: Intake) -> None:
        """Count with another intake, and share its limit of destinations."""
        self.counts, self._destinations = other.counts, other._destinations

    # In the threads of the receivers

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def queued_span_count(self) -> int:
        return self._assembler.span_count + self._pipeline.in_flight_span_count

    @property
    def queued_byte_count(self) -> int:
        return self._assembler.byte_count + self._pipeline.in_flight_byte_count

    @property
    def unavailable_reason(self) -> str:
        """Why no spans are taken now; empty if they are."""
        buffer, pipeline = self._buffer, self._pipeline
        if self._is_closed:
            return "the gateway is shutting down"
        if self.queued_span_count >= buffer.buffer_spans or self.queued_byte_count >= buffer.buffer_bytes:
            return "the buffer is full"
        queue = pipeline.persistent_queue
        if queue is not None:
            # What is in memory may have to go there, too.
            totals = queue.storage.totals()
            max_bytes = pipeline.settings.disk.spool_max_bytes * _MAX_SPOOL_SHARE
            has_room = totals.size_bytes + self.queued_byte_count < max_bytes
            if totals.size_bytes and not (has_room and totals.file_count < storage.MAX_FILES * _MAX_SPOOL_SHARE):
                return "the spool is full"
        return ""

    def take(
        self, request: ExportTraceServiceRequest, headers: Mapping[str, str], is_allowed: IsAllowed | None = None
    ) -> Answer:
        """Take the spans of a request; `is_allowed` says which destinations the client may write to."""
        try:
            route = read_header_route(headers)
        except ValueError as error:
            return Answer(AnswerKind.MALFORMED, str(error))
        if reason := self.unavailable_reason:
            return Answer(AnswerKind.UNAVAILABLE, reason, retry_after_seconds=_RETRY_AFTER_SECONDS)
        decoded = self._decode(request, route, is_allowed)
        reasons = decoded.reasons
        self.counts.rejected.update(decoded.kinds)
        has_denied = decoded.kinds[_DENIED] > 0
        if has_denied and not decoded.spans:
            return Answer(AnswerKind.DENIED, _join(reasons))
        if decoded.spans and not self._store(decoded.spans):
            message = "the journal cannot be written"
            return Answer(AnswerKind.UNAVAILABLE, message, retry_after_seconds=_RETRY_AFTER_SECONDS)
        return Answer(message=_join(reasons), rejected_count=sum(reasons.values()), has_denied=has_denied)

    def _decode(
        self, request: ExportTraceServiceRequest, route: Route | None, is_allowed: IsAllowed | None
    ) -> _Decoded:
        decoded = _Decoded()
        for resource_spans in request.resource_spans:
            scoped = [scope_spans for scope_spans in resource_spans.scope_spans if scope_spans.spans]
            if not scoped:
                continue  # a request of 8 MB can have 4 million of these
            origin = self._find_origin(resource_spans, route, is_allowed)
            if origin.reason:
                decoded.drop(sum(len(scope_spans.spans) for scope_spans in scoped), origin.reason, origin.kind)
                continue
            for scope_spans in scoped:
                scope = self._find_scope(scope_spans)
                for span in scope_spans.spans:
                    try:
                        # Attributes must not lead a trace elsewhere: its destination is that of the request.
                        decoded.spans.append(decode_span(span, origin.resource, scope, ROUTE_ATTRIBUTES))
                    except ValueError as error:
                        decoded.drop(1, str(error), "malformed")
        return decoded

    def _find_origin(self, resource_spans: Any, route: Route | None, is_allowed: IsAllowed | None) -> _Origin:
        """Return the resource of spans, whose attributes name the destination; cached, because encoders do so, too."""
        key = (resource_spans.resource.SerializeToString() + resource_spans.schema_url.encode(), route or Route())
        origin = self._resources.get(key)
        if origin is None:
            origin = self._build_origin(resource_spans, route)
            if len(key[0]) <= _MAX_CACHED_BYTES and not origin.reason:
                evict_oldest(self._resources, _MAX_CACHED_OWNERS)[key] = origin
        if is_allowed is not None and not origin.reason:
            destination = self._default.for_trace(origin.resource.attributes)
            destinations = [destination]
            if self._default.creation == "off" and destination.service_name and not destination.experiment:
                # Without an experiment of the service's name, spans go to Default.
                destinations.append(destination._replace(service_name=None))
            if not all(map(is_allowed, destinations)):
                reason = f"the tokens file of the {GATEWAY} does not allow {destination.label} for this token"
                return _Origin(origin.resource, reason, _DENIED)
        return origin

    def _build_origin(self, resource_spans: Any, route: Route | None) -> _Origin:
        attributes = decode_attributes(resource_spans.resource)
        try:
            route = _validate_route(merge_routes(route, read_route(attributes)))
        except ValueError as error:
            return _Origin(Resource({}), f"resource attributes: {error}", "malformed")
        own_attributes = {name: value for name, value in attributes.items() if name not in ROUTE_ATTRIBUTES}
        if route is not None:
            own_attributes |= {name: value for name, value in zip(_ATTRIBUTES, route, strict=True) if value}
        resource = Resource(own_attributes, resource_spans.schema_url or None)
        name = self._default.for_trace(own_attributes).label
        if name not in self._destinations:
            if len(self._destinations) >= self._max_destinations:
                reason = f"more than {pluralize(self._max_destinations, 'destination')}"
                return _Origin(resource, reason, "destination limit")
            self._destinations[name] = None
        return _Origin(resource)

    def _find_scope(self, scope_spans: Any) -> InstrumentationScope:
        key = scope_spans.scope.SerializeToString() + scope_spans.schema_url.encode()
        scope = self._scopes.get(key)
        if scope is None:
            scope = decode_scope(scope_spans)
            if len(key) <= _MAX_CACHED_BYTES:
                evict_oldest(self._scopes, _MAX_CACHED_OWNERS)[key] = scope
        return scope

    def _store(self, spans: Sequence[SpanData]) -> bool:
        """Write spans to the journal and hand them to the thread; False if the journal could not be written."""
        names: dict[int, str] = {}
        with self._changed:
            now, due = time.monotonic(), self._assembler.next_due()
            unique_spans: dict[SpanKey, SpanData] = {}
            for span in spans:
                key = (span.context.trace_id, span.context.span_id)
                if key not in self._taken and key not in self._previously_taken:
                    unique_spans.setdefault(key, span)
            self.counts.duplicate_count += len(spans) - len(unique_spans)
            if unique_spans and self._write_journal is not None and not self._write_journal(*unique_spans.values()):
                return False
            self._taken.update(unique_spans)
            for span in unique_spans.values():
                self._assembler.add(span, now)
                resource = span.resource
                if id(resource) not in names:
                    names[id(resource)] = self._default.for_trace(resource.attributes).label
                self.counts.received[names[id(resource)]] += 1
            if len(self._taken) >= _MAX_TAKEN_SPANS:
                self._taken, self._previously_taken = set(), self._taken
            if self._assembler.next_due() != due or self._is_crowded():
                self._changed.notify_all()
        return True

    # In the thread of this object

    def _run(self) -> None:
        with suppress_instrumentation():
            while not self._is_closed:
                try:
                    self._submit(self._wait_for_traces())
                except Exception as error:  # noqa: BLE001 - the thread survives every exception
                    log_exception(error, "submit spans")

    def _is_crowded(self) -> bool:
        """Whether traces in progress must be sent, so that no client is turned away."""
        buffer, assembler = self._buffer, self._assembler
        return 2 * assembler.span_count >= buffer.buffer_spans or 2 * assembler.byte_count >= buffer.buffer_bytes

    def _wait_for_traces(self) -> list[ReadableSpan]:
        with self._changed:
            while not self._is_closed:
                due, now = self._assembler.next_due(), time.monotonic()
                if self._is_crowded():
                    return self._assembler.pop_all()
                if due is not None and due <= now:
                    return self._assembler.pop_ready(now)
                self._changed.wait(None if due is None else max(_TICK_SECONDS, due - now))
        return []

    def _submit(self, spans: list[ReadableSpan]) -> None:
        pipeline, assembler = self._pipeline, self._assembler
        if assembler.filtered_spans:
            filtered_spans, assembler.filtered_spans = assembler.filtered_spans, []
            pipeline.record_filtered(filtered_spans)
        if not spans:
            return
        # Counted when they were sent first.
        pipeline.problem_log.stats.add(delivered=-assembler.resent_count)
        pipeline.submit(spans, sum(map(estimate_bytes, spans)))

    def close(self, timeout_seconds: float) -> None:
        """Take no more spans, send or spool those in memory, and close the pipeline."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds / 2)
        try:
            with self._changed:
                spans = self._assembler.pop_all()
            self._submit(spans)
        finally:
            self._pipeline.shutdown(max(0.0, deadline - time.monotonic()))


def _join(reasons: Mapping[str, int]) -> str:
    return "; ".join(f"{pluralize(count, 'span')} dropped: {reason}" for reason, count in sorted(reasons.items())[:5])


def read_header_route(headers: Mapping[str, str]) -> Route | None:
    """Read the route in headers, whose names are in lower case; raises ValueError, which names the header."""
    values = {name: headers.get(name, "").strip() for name in _PARSERS}
    if not any(values.values()):
        return None
    for name, value in values.items():
        try:
            values[name] = _PARSERS[name](value) if value else ""
        except ValueError as error:
            raise ValueError(f"header {name}: {error}") from None
    return _validate_route(
        Route(
            *(
                values[name] or None
                for name in (WORKSPACE_HEADER, EXPERIMENT_NAME_HEADER, EXPERIMENT_HEADER, RUN_HEADER)
            )
        )
    )


def merge_routes(headers: Route | None, resource: Route | None) -> Route | None:
    """Take each part from the headers if they name it, else from the resource.

    A resource that names no workspace means that of the headers. Otherwise ids of another workspace are dropped.
    """
    if headers is None or resource is None:
        return headers or resource
    return headers.merge_into(resource._replace(workspace=resource.workspace or headers.workspace))


def _validate_route(route: Route | None) -> Route | None:
    """Check the parts of a route; raises ValueError."""
    if route is not None:
        for value, parse in zip(route, _PARSERS.values(), strict=True):
            if value:
                parse(value)
        if route.run_id and len(route.run_id) > _MAX_RUN_ID_LENGTH:
            raise ValueError(f"expected a run id of at most {_MAX_RUN_ID_LENGTH} characters")
    return route
