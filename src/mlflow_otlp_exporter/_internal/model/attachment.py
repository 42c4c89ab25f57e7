"""An image, a sound or a file of a trace that MLflow keeps as a file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Attachment:
    """A file of a trace.

    Attributes:
        id: Its id, a UUID made of the trace's id and the content: the same content is uploaded once a trace, and
            uploading it again changes nothing.
        ref: What stands in spans instead, as MLflow's SDK writes it and its console reads it.
        content_type: Its media type.
        data: Its bytes.
        is_url: Whether it stood in spans as a data URL; else as base64 alone.
    """

    id: str
    ref: str
    content_type: str
    data: bytes = field(repr=False)
    is_url: bool = True
