"""From spans to batches: cleaned, enriched and encoded, grouped by where they go, and packed to requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode

from mlflow_otlp_exporter._internal.common.attribute_names import EXPERIMENT, EXPERIMENT_ID, RUN_ID, WORKSPACE
from mlflow_otlp_exporter._internal.common.codes import MessageCode, add_code
from mlflow_otlp_exporter._internal.common.problem_log import ProblemLog
from mlflow_otlp_exporter._internal.config.models import SettingGroup, Settings
from mlflow_otlp_exporter._internal.encoding.sanitizer import sanitize_attributes, sanitize_name
from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.model.destination import Destination
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan
from mlflow_otlp_exporter._internal.tracing.routing import group_by_destination

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan, Enricher
    from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor
    from mlflow_otlp_exporter._internal.spool.persistent_queue import RecoveredSpans

_OK = Status(StatusCode.OK)
_TOO_FEW_ATTRIBUTES = (
    "spans have lost their first attributes to the limit of the app's tracer provider: set "
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000, as OpenTelemetry's default of 128 is too few for a conversation"
)
Batch = tuple[Destination, list[EncodedSpan]]


class Batcher:
    """Makes batches of spans.

    Args:
        settings: All settings.
        destination: Where traces go that say nothing else.
        report: Where to say what is lost or left out.
        size: How many bytes a request aims at; 0 for no limit.
        give_up: Called with what cannot be sent: how many spans, the spans where they are known, the kind of failure in
            a word, and in words what follows "spans are lost: ".

    Attributes:
        cleaner: Takes out what must not leave the app.
        encoder: Makes the bytes.
    """

    def __init__(
        self,
        settings: Settings,
        destination: Destination,
        report: ProblemLog,
        *,
        size: Callable[[], int],
        give_up: Callable[[int, Sequence[ReadableSpan], str, str], None],
    ) -> None:
        # Here, not at the top: an app that only imports, or does without, should not pay for them.
        from mlflow_otlp_exporter._internal.privacy import Redactor, resource_filter

        self._enricher: Enricher | None = None
        if settings.enrichment.enrich:
            from mlflow_otlp_exporter._internal.enrichment import Enricher

            self._enricher = Enricher(compact=settings.enrichment.compact)
        self._destination, self._report = destination, report
        self._size, self._give_up = size, give_up
        self.cleaner = Redactor(settings.privacy, report, base64_max_length=settings.base64_max_length)
        self._extraction: AttachmentExtractor | None = None
        if settings.uploads_attachments:
            # Few apps need it.
            from mlflow_otlp_exporter._internal.privacy.attachment_extractor import AttachmentExtractor

            self._extraction = AttachmentExtractor(settings.privacy.base64_max_length)
        noisy = settings.privacy.drop_resource if settings.enrichment.compact else ()
        self.encoder = SpanEncoder(resource_filter(noisy))
        # What has resources say where traces go, towards what may be a Collector.
        self._resources: DestinationResources | None = None
        if settings.traces.group is not SettingGroup.MLFLOW:
            self._resources = DestinationResources(self.encoder)

    def batches(self, spans: Sequence[ReadableSpan]) -> tuple[list[Batch], int]:
        """Encodes spans and says which of them share a request.

        Returns:
            The batches, and how many spans could not be encoded at all.
        """
        return self._batches((spans,))

    def batches_out_of(self, spans: list[ReadableSpan]) -> list[Batch]:
        """The same of spans in the order of their traces; empties the list meanwhile.

        A span of the SDK takes six times the memory of its bytes, and what is read from it as much again: only for a
        portion at a time all of that is there.
        """
        return self._batches(iter_chunks(spans))[0]

    def _batches(self, taken: Iterable[Sequence[ReadableSpan]]) -> tuple[list[Batch], int]:
        groups: dict[Destination, list[EncodedSpan]] = {}
        broken = 0
        for portion in taken:
            spans, lost = self._cleaned(portion)
            broken += lost + self._encode(spans, group_by_destination(spans, self._destination), groups)
        return self._packed(groups), broken

    def _cleaned(self, spans: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
        spans, broken = self.cleaner.cleaned(spans)
        if broken:
            self._give_up(broken, (), "masking", "what must not leave the app could not be taken out of them")
        return spans, broken

    def recovered(self, left: RecoveredSpans) -> list[Batch]:
        """What a killed process has left: it goes where that would have sent it, and is not masked once more."""
        spans = left.spans if left.is_redacted else self._cleaned(left.spans)[0]
        groups: dict[Destination, list[EncodedSpan]] = {}
        self._encode(spans, {left.destination: spans}, groups)
        return self._packed(groups)

    def _encode(
        self,
        spans: Sequence[ReadableSpan],
        going: Mapping[Destination, Sequence[ReadableSpan]],
        groups: dict[Destination, list[EncodedSpan]],
    ) -> int:
        """Encodes spans into the group of where they go; how many could not be encoded."""
        lost = 0
        taken = spans if self._extraction is None else self._extraction.extracted(spans)
        enriched = self._enricher.enrich(taken) if self._enricher is not None else taken
        sent = dict(zip(map(id, spans), enriched, strict=True))
        for destination, group in going.items():
            encoded = groups.setdefault(destination, [])
            for span in group:
                if span.dropped_attributes:
                    self._report.once(logging.WARNING, add_code(MessageCode.ATTRIBUTES_DROPPED, _TOO_FEW_ATTRIBUTES))
                try:
                    one = self._encoded(found := sent[id(span)])
                    if self._extraction is not None:
                        one = one._replace(attachments=self._extraction.attachments(found))
                    told = one if self._resources is None else self._resources.telling(one, span.resource, destination)
                    encoded.append(told)
                except Exception as error:  # noqa: BLE001 - one span of an odd make must not take the others with it
                    lost += 1
                    why = f"a span could not be encoded ({type(error).__name__})"
                    self._give_up(1, (span,), "encoding", why)
        return lost

    def _packed(self, groups: Mapping[Destination, Sequence[EncodedSpan]]) -> list[Batch]:
        made: list[Batch] = []
        for destination, encoded in groups.items():
            linked = destination.run_id is not None
            made += [(destination, batch) for batch in batch_by_size(encoded, self._size(), linked_to_run=linked)]
        if self.encoder.repairs.left_out:
            said = "attribute values of types that OpenTelemetry does not have are left out; stats() counts them"
            self._report.once(logging.WARNING, add_code(MessageCode.VALUES_DROPPED, said))
        return made

    def _encoded(self, sent: ReadableSpan | EnrichedSpan) -> EncodedSpan:
        if isinstance(sent, ReadableSpan):
            return self.encoder.encode(sent, sanitize_attributes(sent.attributes), name=sanitize_name(sent.name))
        attributes = sanitize_attributes(sent.attributes) or sent.attributes
        name = sanitize_name(sent.name) or sent.name
        status = _OK if sent.ok else None
        return self.encoder.encode(sent.span, attributes, name=name, events=sent.events, status=status)


# MLflow links a request's root traces to a run only up to this many, and answers 200 beyond (3.17.2).
_ROOTS_PER_RUN = 100
# Spans that are read and encoded at once; more only if a trace has more.
_PORTION = 64


def batch_by_size(
    spans: Sequence[EncodedSpan], size: int, *, linked_to_run: bool = False
) -> Iterator[list[EncodedSpan]]:
    """Groups spans into requests.

    MLflow pays 1.7 to 30 times more for a trace that arrives in pieces, so a trace is cut only if it is larger than a
    request may be.

    Args:
        spans: In the order in which they ended.
        size: Bytes that a request aims at; 0 for no limit. A single larger span is a request of its own.
        linked_to_run: Whether the requests name a run.
    """
    traces: dict[int, list[EncodedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    batch: list[EncodedSpan] = []
    length = roots = 0
    for trace in traces.values():
        needed = sum(len(span.body) for span in trace)
        rooted = linked_to_run and any(span.is_root for span in trace)
        if batch and ((size and length + needed > size) or (rooted and roots == _ROOTS_PER_RUN)):
            yield batch
            batch, length, roots = [], 0, 0
        roots += rooted
        for span in trace:
            if size and batch and length + len(span.body) > size:
                yield batch
                batch, length, roots = [], 0, int(rooted)
            batch.append(span)
            length += len(span.body)
    if batch:
        yield batch


def iter_chunks(spans: list[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    """Takes spans out of a list, a few whole traces at a time, so that what has been dealt with is not kept.

    Args:
        spans: In the order of their traces; empty at the end.
    """
    while spans:
        end = min(_PORTION, len(spans))
        while end < len(spans) and spans[end].context.trace_id == spans[end - 1].context.trace_id:
            end += 1
        taken = spans[:end]
        del spans[:end]
        yield taken


_CACHED = 1000


class DestinationResources:
    """Puts destinations into encoded resources.

    Args:
        encoder: Encodes them.
    """

    def __init__(self, encoder: SpanEncoder) -> None:
        self._encoder = encoder
        # By identity, as the encoder keeps them; the object is kept so that its id stays its own.
        self._told: dict[tuple[int, Destination], tuple[Resource, Resource]] = {}

    def telling(self, span: EncodedSpan, resource: Resource, destination: Destination) -> EncodedSpan:
        """A span whose resource says where it goes.

        Args:
            span: The span.
            resource: Its resource.
            destination: Where it goes.
        """
        found = self._told.get((id(resource), destination))
        if found is None:
            said = _said(destination)
            made = Resource({**resource.attributes, **said}, resource.schema_url) if said else resource
            if len(self._told) >= _CACHED:
                self._told.clear()
            found = self._told[id(resource), destination] = (resource, made)
        return span if found[1] is resource else span._replace(resource=self._encoder.encode_resource(found[1]))


def _said(destination: Destination) -> dict[str, Any]:
    found = {
        WORKSPACE: destination.workspace,
        EXPERIMENT: destination.experiment,
        EXPERIMENT_ID: destination.experiment_id,
        RUN_ID: destination.run_id,
    }
    return {name: value for name, value in found.items() if value}
