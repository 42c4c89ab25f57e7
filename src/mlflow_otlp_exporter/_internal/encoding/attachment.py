"""An image, a sound or a file of a trace that MLflow keeps as a file, and what stands for it in the trace's spans."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.encoding.request_decoder import parts_without_spans
from mlflow_otlp_exporter._internal.model.attachment import Attachment

if TYPE_CHECKING:
    from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan


def create_attachment(trace_id: int, content_type: str, data: bytes, *, is_url: bool = True) -> Attachment:
    """Makes a file of a trace.

    Args:
        trace_id: OpenTelemetry's trace id.
        content_type: Its media type.
        data: Its bytes.
        is_url: Whether it stood in spans as a data URL.
    """
    name = f"tr-{trace_id:032x}"
    digest = hashlib.sha256(f"{name} {content_type} ".encode() + data).digest()
    identity = str(uuid.UUID(bytes=digest[:16], version=5))
    more: dict[str, Any] = {"trace_id": name, "size": len(data)}
    # The order, which means nothing to readers, tells how it stood: it may have to stand there again.
    query = urlencode({"content_type": content_type, **(more if is_url else dict(reversed(more.items())))})
    return Attachment(identity, f"{ATTACHMENT}{identity}?{query}", content_type, data, is_url)


def encode_attachments(spans: Iterable[EncodedSpan]) -> bytes:
    """The files that spans refer to, as a part of a request on disk that has no spans; each once.

    Args:
        spans: The spans.
    """
    made = ResourceSpans()
    for ref, data in {each.ref: each.data for span in spans for each in span.attachments}.items():
        made.resource.attributes.add(key=ref).value.bytes_value = data
    return TracesData(resource_spans=[made]).SerializeToString() if made.resource.attributes else b""


def restore_attachments(spans: list[EncodedSpan], body: bytes) -> list[EncodedSpan]:
    """Spans of a request on disk with the files that they refer to.

    Args:
        spans: The spans.
        body: The request.

    Raises:
        ValueError: It is no such request.
    """
    if ATTACHMENT.encode() not in body:
        return spans
    found: list[Attachment] = []
    for part in parts_without_spans(body):
        try:
            attributes = ResourceSpans.FromString(part).resource.attributes
        except DecodeError:
            raise ValueError("not a group of files") from None
        found += [_read(each.key, each.value.bytes_value) for each in attributes if each.key.startswith(ATTACHMENT)]
    if not found:
        return spans
    return [
        span._replace(attachments=tuple(each for each in found if each.ref.encode() in span.body)) for span in spans
    ]


def _read(ref: str, data: bytes) -> Attachment:
    parts = urlsplit(ref)
    kinds = parse_qs(parts.query).get("content_type", ["application/octet-stream"])
    return Attachment(parts.netloc, ref, kinds[0], data, parts.query.find("trace_id=") < parts.query.find("size="))
