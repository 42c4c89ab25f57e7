"""Decodes OTLP, in protobuf or JSON, into spans: what other processes and files send is processed like own spans."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from mlflow_otlp_exporter._internal.model.spans import DroppedCounts, EventData, LinkData, SpanData

_ID_FIELDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_REMOTE_FLAG, _FLAGS_MASK = 0x200, 0xFF
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_MAX_STATE_LENGTH = 8192  # longer than any header with it
_KINDS = {2: SpanKind.SERVER, 3: SpanKind.CLIENT, 4: SpanKind.PRODUCER, 5: SpanKind.CONSUMER}
_STATUS_CODES = {1: StatusCode.OK, 2: StatusCode.ERROR}


def parse_protobuf(content: bytes) -> ExportTraceServiceRequest:
    """Parse a request; raises ValueError for other content."""
    try:
        return ExportTraceServiceRequest.FromString(content)
    except DecodeError:  # its text is different in each version of protobuf
        raise ValueError("not an export request in protobuf") from None


def parse_json(content: bytes) -> ExportTraceServiceRequest:
    """Parse a request in OTLP's JSON; raises ValueError for other content."""
    try:
        message, request = json.loads(content), ExportTraceServiceRequest()
        # Ids are hexadecimal in OTLP's JSON, but Base64 in protobuf's own JSON mapping.
        json_format.ParseDict(_convert_ids(dict(message.items())), request, ignore_unknown_fields=True)
        request.SerializeToString()  # what the parser accepts may have lone surrogates
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise ValueError(f"not an export request in JSON ({type(error).__name__})") from None
    return request


def _convert_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_convert_ids(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {
        name: base64.b64encode(bytes.fromhex(value)).decode()
        if name in _ID_FIELDS and isinstance(value, str)
        else _convert_ids(value)
        for name, value in node.items()
    }


def decode_spans(request: ExportTraceServiceRequest) -> list[SpanData]:
    """Decode all spans of a request, in its order; raises ValueError if one has no ids."""
    spans: list[SpanData] = []
    for resource_spans in request.resource_spans:
        resource = Resource(decode_attributes(resource_spans.resource), resource_spans.schema_url or None)
        for scope_spans in resource_spans.scope_spans:
            scope = decode_scope(scope_spans)
            spans += [decode_span(span, resource, scope) for span in scope_spans.spans]
    return spans


def decode_scope(scope_spans: Any) -> InstrumentationScope:
    scope = scope_spans.scope
    return InstrumentationScope(
        scope.name, scope.version or None, scope_spans.schema_url or None, decode_attributes(scope)
    )


def decode_span(
    span: Any, resource: Resource, scope: InstrumentationScope, excluded_attributes: frozenset[str] = frozenset()
) -> SpanData:
    """Decode a span; raises ValueError if it has no ids."""
    trace_id, flags = int.from_bytes(span.trace_id, "big"), span.flags
    has_ids = len(span.trace_id) == _TRACE_ID_BYTES and len(span.span_id) == _SPAN_ID_BYTES
    if not (has_ids and trace_id and any(span.span_id)) or len(span.parent_span_id) not in (0, _SPAN_ID_BYTES):
        raise ValueError("a span without ids, or with malformed ones")
    attributes = decode_attributes(span)
    for name in excluded_attributes.intersection(attributes):
        del attributes[name]
    code = _STATUS_CODES.get(span.status.code, StatusCode.UNSET)
    return SpanData(
        DroppedCounts(span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
        name=span.name,
        context=_decode_context(trace_id, span.span_id, flags & ~_REMOTE_FLAG, span.trace_state),
        # Eight zeros are an id of no span.
        parent=_decode_context(trace_id, span.parent_span_id, flags) if any(span.parent_span_id) else None,
        resource=resource,
        attributes=attributes,
        events=[
            EventData(event.name, decode_attributes(event), event.time_unix_nano, event.dropped_attributes_count)
            for event in span.events
        ],
        links=[
            LinkData(
                _decode_context(int.from_bytes(link.trace_id, "big"), link.span_id, link.flags, link.trace_state),
                decode_attributes(link),
                link.dropped_attributes_count,
            )
            for link in span.links
            if len(link.trace_id) == _TRACE_ID_BYTES and len(link.span_id) == _SPAN_ID_BYTES
        ],
        kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
        instrumentation_scope=scope,
        status=Status(code, (span.status.message or None) if code is StatusCode.ERROR else None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
    )


def _decode_context(trace_id: int, span_id: bytes, flags: int, state: str = "") -> SpanContext:
    return SpanContext(
        trace_id,
        int.from_bytes(span_id, "big"),
        bool(flags & _REMOTE_FLAG),
        # A client that did not sample a span does not send it.
        TraceFlags(flags & _FLAGS_MASK | TraceFlags.SAMPLED),
        TraceState.from_header([state]) if state and len(state) <= _MAX_STATE_LENGTH else None,
    )


def decode_attributes(message: Any) -> dict[str, Any]:
    return {attribute.key: _decode_value(attribute.value) for attribute in message.attributes}


def _decode_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple([_decode_value(item) for item in value.array_value.values])
    if kind == "kvlist_value":
        return {pair.key: _decode_value(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind) if kind else None
