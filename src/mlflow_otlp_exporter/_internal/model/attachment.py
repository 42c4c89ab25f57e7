"""An image, a sound or a file of a trace that MLflow stores as a file, and the reference to it in the trace's spans."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from urllib.parse import urlencode

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT


@dataclass(frozen=True)
class Attachment:
    """A file of a trace.

    Attributes:
        id: A UUID made of trace id and content: the same content is uploaded once per trace, and uploading it again
            changes nothing.
        ref: The reference that replaces the content in spans, as MLflow's SDK writes it and its console reads it.
        is_url: True if spans had the content as a data URL, False for base64 alone.
    """

    id: str
    ref: str
    content_type: str
    data: bytes = field(repr=False)
    is_url: bool = True


def create_attachment(trace_id: int, content_type: str, data: bytes, *, is_url: bool = True) -> Attachment:
    name = f"tr-{trace_id:032x}"
    digest = hashlib.sha256(f"{name} {content_type} ".encode() + data).digest()
    attachment_id = str(uuid.UUID(bytes=digest[:16], version=5))
    # Readers ignore the order; it records `is_url`, because the content may have to replace the reference again.
    trace, size = ("trace_id", name), ("size", str(len(data)))
    query = urlencode([("content_type", content_type), *((trace, size) if is_url else (size, trace))])
    return Attachment(attachment_id, f"{ATTACHMENT}{attachment_id}?{query}", content_type, data, is_url)
