"""Attachments in a spool file: a `ResourceSpans` without spans whose attributes are the files, by reference."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.model.encoded_span import Attachment, EncodedSpan


def encode_attachments(spans: Iterable[EncodedSpan]) -> bytes:
    section = ResourceSpans()
    contents = {attachment.ref: attachment.data for span in spans for attachment in span.attachments}
    for ref, data in contents.items():
        section.resource.attributes.add(key=ref).value.bytes_value = data
    return TracesData(resource_spans=[section]).SerializeToString() if contents else b""


def restore_attachments(spans: list[EncodedSpan], body: bytes) -> list[EncodedSpan]:
    """Return the spans with the attachments to which they refer; raises ValueError for a damaged body."""
    try:
        sections = [group for group in TracesData.FromString(body).resource_spans if not group.scope_spans]
    except DecodeError as error:
        raise ValueError(str(error)) from None
    attachments = [
        _parse_attachment(attribute.key, attribute.value.bytes_value)
        for section in sections
        for attribute in section.resource.attributes
        if attribute.key.startswith(ATTACHMENT)
    ]
    return [
        span._replace(attachments=tuple(item for item in attachments if item.ref.encode() in span.body))
        for span in spans
    ]


def _parse_attachment(ref: str, data: bytes) -> Attachment:
    parts = urlsplit(ref)
    content_types = parse_qs(parts.query).get("content_type", ["application/octet-stream"])
    is_url = parts.query.find("trace_id=") < parts.query.find("size=")
    return Attachment(parts.netloc, ref, content_types[0], data, is_url)
