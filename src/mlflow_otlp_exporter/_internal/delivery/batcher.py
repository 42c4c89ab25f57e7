"""Turns spans into batches: redacts, enriches and encodes them, and groups them by destination and size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._internal.common.bounded import evict_oldest
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.errors import must_propagate
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SettingGroup, Settings
from mlflow_otlp_exporter._internal.encoding.sanitizer import sanitize_attributes, sanitize_name
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.spans import IS_REMOTE, EncodedSpan, apply_trace_sessions, body_bytes_of
from mlflow_otlp_exporter._internal.tracing.routing import DestinationCache, find_destinations

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.enrichment.enricher import Enricher
    from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor
    from mlflow_otlp_exporter._internal.spool.persistent_queue import RecoveredSpans

# MLflow links a request's root traces to a run only up to this many, and answers 200 beyond (3.17.2).
_MAX_ROOTS_PER_RUN = 100
# Spans that are read and encoded at once. With 64, the garbage collector runs for each chunk, 2 to 5 us per span.
_CHUNK_SPANS = 32
_MAX_CACHED_RESOURCES = 1000
_ATTRIBUTES_DROPPED = add_code(
    MessageCode.ATTRIBUTES_DROPPED,
    "The tracer provider's limit dropped the first attributes of spans: set OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000, "
    "because OpenTelemetry's default of 128 is too few for a conversation",
)
_VALUES_DROPPED = "Attribute values of types that OpenTelemetry does not support are dropped; stats() counts them"
Batch = tuple[Destination, list[EncodedSpan]]


class Batcher:
    """Builds batches of encoded spans.

    `destination` is that of traces that name none, `max_bytes` returns the target size of a request (0 for no limit),
    `on_dropped` is called with count, spans (if known), failure kind and message.
    """

    def __init__(
        self,
        settings: Settings,
        destination: Destination,
        problem_log: ProblemLog,
        *,
        max_bytes: Callable[[], int],
        on_dropped: Callable[[int, Sequence[ReadableSpan], str, str], None],
    ) -> None:
        # Imports here shorten the start of applications that do not use them.
        from mlflow_otlp_exporter._internal.privacy import Redactor, make_resource_filter

        self._enricher: Enricher | None = None
        if settings.enrichment.enrich:
            from mlflow_otlp_exporter._internal.installed_readers import ExtensibleEnricher

            self._enricher = ExtensibleEnricher(compact=settings.enrichment.compact)
        self._destination, self._problem_log = destination, problem_log
        self._max_bytes, self._on_dropped = max_bytes, on_dropped
        self.redactor = Redactor(settings.privacy, problem_log, base64_max_length=settings.base64_max_length)
        self._extractor: AttachmentExtractor | None = None
        if settings.uploads_attachments:
            from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor

            self._extractor = AttachmentExtractor(settings.privacy.base64_max_length)
        dropped_resource_attributes = settings.privacy.drop_resource if settings.enrichment.compact else ()
        self.encoder = SpanEncoder(make_resource_filter(dropped_resource_attributes))
        # Towards an OTLP endpoint, behind which a Collector may route by the resource.
        self._adds_destination = settings.traces.group is not SettingGroup.MLFLOW
        self._destinations: DestinationCache = {}
        # Keyed by identity, as in the encoder; the resource is kept so that its id is not reused.
        self._routed_resources: dict[tuple[int, Destination], tuple[Resource, Resource]] = {}

    def build(self, spans: Sequence[ReadableSpan]) -> tuple[list[Batch], int]:
        """Return the batches and the number of spans that could not be encoded."""
        return self._build((spans,))

    def build_and_clear(self, spans: list[ReadableSpan], max_span_bytes: float = math.inf) -> list[Batch]:
        """Return the batches of spans that are grouped by trace, and empty the list meanwhile.

        An SDK span takes six times its encoded size, so only one chunk is in that form at a time.
        """
        return self._build(iter_chunks(spans), max_span_bytes)[0]

    def _build(
        self, chunks: Iterable[Sequence[ReadableSpan]], max_span_bytes: float = math.inf
    ) -> tuple[list[Batch], int]:
        # Spans that are smaller than the limit of a value have no value that exceeds it.
        must_redact = not self.redactor.is_idle or max_span_bytes > self.redactor.max_value_length
        groups: dict[Destination, list[EncodedSpan]] = {}
        failed_count = 0
        for chunk in chunks:
            try:
                failed_count += self._add_chunk(chunk, groups, must_redact)
            except BaseException as error:  # values may have methods that raise anything
                if must_propagate(error):
                    raise
                for span in chunk:  # a bad span must not affect others
                    try:
                        failed_count += self._add_chunk([span], groups, must_redact)
                    except BaseException as reason:  # noqa: BLE001 - as above
                        failed_count += 1
                        self._on_dropped(1, (), "encoding", f"a span could not be read ({type(reason).__name__})")
        return self._to_batches(groups), failed_count

    def _add_chunk(
        self, chunk: Sequence[ReadableSpan], groups: dict[Destination, list[EncodedSpan]], must_redact: bool
    ) -> int:
        spans, failed_count = self._redact(chunk) if must_redact else (chunk, 0)
        destinations = find_destinations(spans, self._destination, self._destinations)
        return failed_count + self._encode(spans, destinations, groups)

    def _redact(self, spans: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
        spans, failed_count = self.redactor.redact_spans(spans)
        if failed_count:
            self._on_dropped(failed_count, (), "masking", "hidden content could not be removed from them")
        return spans, failed_count

    def build_recovered(self, recovered: RecoveredSpans) -> list[Batch]:
        """Return the batches of spans from the journal of a killed process, for the destination that it had chosen."""
        spans = recovered.spans if recovered.is_redacted else self._redact(recovered.spans)[0]
        groups: dict[Destination, list[EncodedSpan]] = {}
        self._encode(spans, [recovered.destination] * len(spans), groups)
        return self._to_batches(groups)

    def _encode(
        self,
        spans: Sequence[ReadableSpan],
        destinations: Sequence[Destination],
        groups: dict[Destination, list[EncodedSpan]],
    ) -> int:
        """Add the encoded spans to the groups, and return how many could not be encoded."""
        failed_count, extractor = 0, self._extractor
        if self._enricher is None:
            spans = apply_trace_sessions(spans)
        sources = spans if extractor is None else extractor.extract(spans)
        enriched_spans = self._enricher.enrich(sources) if self._enricher is not None else sources
        last_destination: Destination | None = None
        encoded_spans: list[EncodedSpan] = []
        for span, destination, enriched in zip(spans, destinations, enriched_spans, strict=True):
            if destination is not last_destination:
                last_destination, encoded_spans = destination, groups.setdefault(destination, [])
            if span.dropped_attributes:
                self._problem_log.log_once(logging.WARNING, _ATTRIBUTES_DROPPED)
            try:
                source = enriched if isinstance(enriched, ReadableSpan) else enriched.span
                attributes, resource, parent = enriched.attributes, span.resource, source.parent
                if self._adds_destination:
                    resource = self._add_destination(resource, destination)
                encoded = self.encoder.encode(
                    source,
                    sanitize_attributes(attributes, is_root=parent is None or bool(parent[IS_REMOTE])) or attributes,
                    name=sanitize_name(enriched.name),
                    events=enriched.events,
                    status=enriched.status,
                    resource=resource,
                )
                if extractor is not None:
                    encoded = encoded._replace(attachments=extractor.attachments_of(enriched))
                encoded_spans.append(encoded)
            except BaseException as error:  # a bad span must not affect others
                if must_propagate(error):
                    raise
                failed_count += 1
                self._on_dropped(1, (span,), "encoding", f"a span could not be encoded ({type(error).__name__})")
        return failed_count

    def _to_batches(self, groups: Mapping[Destination, Sequence[EncodedSpan]]) -> list[Batch]:
        batches: list[Batch] = []
        for destination, spans in groups.items():
            max_bytes, has_run = self._max_bytes(), destination.run_id is not None
            is_large = 0 < max_bytes < body_bytes_of(spans)
            if spans and not (is_large or (has_run and len(spans) > _MAX_ROOTS_PER_RUN)):
                batches.append((destination, list(spans)))
            else:
                batches += [(destination, batch) for batch in batch_by_size(spans, max_bytes, has_run=has_run)]
        if self.encoder.repairs.left_out:
            self._problem_log.log_once(logging.WARNING, add_code(MessageCode.VALUES_DROPPED, _VALUES_DROPPED))
        return batches

    def _add_destination(self, resource: Resource, destination: Destination) -> Resource:
        cached = self._routed_resources.get((id(resource), destination))
        if cached is None:
            added = destination.attributes
            routed = Resource({**resource.attributes, **added}, resource.schema_url) if added else resource
            entries = evict_oldest(self._routed_resources, _MAX_CACHED_RESOURCES)
            cached = entries[id(resource), destination] = (resource, routed)
        return cached[1]


def batch_by_size(
    spans: Sequence[EncodedSpan], max_bytes: int, *, has_run: bool = False
) -> Iterator[list[EncodedSpan]]:
    """Group spans into requests of at most `max_bytes` (0: no limit); a larger span is a request of its own.

    A trace in pieces costs MLflow up to three times as much, so a trace is split only if it is larger than a
    request. `has_run` limits the root spans of a request.
    """
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    batch: list[EncodedSpan] = []
    batch_bytes = root_count = 0
    for trace in traces.values():
        trace_bytes = body_bytes_of(trace)
        has_root = has_run and any(span.is_root for span in trace)
        is_full = max_bytes and batch_bytes + trace_bytes > max_bytes
        if batch and (is_full or (has_root and root_count == _MAX_ROOTS_PER_RUN)):
            yield batch
            batch, batch_bytes, root_count = [], 0, 0
        root_count += has_root
        for span in trace:
            if max_bytes and batch and batch_bytes + len(span.body) > max_bytes:
                yield batch
                batch, batch_bytes, root_count = [], 0, int(has_root)
            batch.append(span)
            batch_bytes += len(span.body)
    if batch:
        yield batch


def iter_chunks(spans: list[ReadableSpan], min_count: int = _CHUNK_SPANS) -> Iterator[list[ReadableSpan]]:
    """Pop a few whole traces at a time from spans that are grouped by trace, so that processed spans are freed."""
    while spans:
        end = min(min_count, len(spans))
        while end < len(spans) and spans[end].context.trace_id == spans[end - 1].context.trace_id:
            end += 1
        chunk = spans[:end]
        del spans[:end]
        yield chunk
