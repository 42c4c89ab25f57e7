"""Images, sound and files in messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Part
from mlflow_otlp_exporter._internal.enrichment.values import select_text

# What such a part says of itself, in any convention.
MEDIA_TYPES = frozenset(
    {
        "image",
        "image_url",
        "input_image",
        "image-url",
        "audio",
        "input_audio",
        "audio-url",
        "video",
        "video-url",
        "file",
        "input_file",
        "document",
        "document-url",
        "blob",
        "uri",
        "binary",
        "media",
    }
)


def read_media(part: Mapping[str, Any], kind: str) -> Part | None:
    """The image, sound or file that a part of a message is; None if it is none.

    Args:
        part: The part: OpenAI's, Anthropic's, OTel GenAI's, Vercel's, pydantic-ai's, Bedrock's or OpenInference's.
        kind: Its type, as far as it has one.
    """
    if kind not in MEDIA_TYPES:
        kind = next((key for key in ("image", "inline_data", "inlineData", "file_data", "fileData") if key in part), "")
        if not kind or not isinstance(part.get(kind), dict):
            return None
    inner = part.get(kind)
    if isinstance(inner, str):
        inner = {"url": inner}
    source = part.get("source")
    found: dict[str, Any] = {**part}
    for each in (inner, source, (inner or {}).get("source") if isinstance(inner, dict) else None):
        if isinstance(each, dict):
            found.update(each)
    if isinstance(deeper := found.get("image"), dict):  # OpenInference: image.image.url
        found.update(deeper)
    return _build_part(found, kind)


def _build_part(found: Mapping[str, Any], kind: str) -> Part:
    mime = select_text(*(found.get(key) for key in ("mime_type", "media_type", "mediaType", "mimeType"))) or ""
    url = select_text(
        *(found.get(key) for key in ("url", "uri", "image_url", "file_uri", "fileUri", "image", "file_url"))
    )
    data: str | None = select_text(*(found.get(key) for key in ("data", "content", "bytes", "base64", "file_data")))
    if url is None and isinstance(data, str) and data.startswith(("data:", "http://", "https://", ATTACHMENT)):
        url = data
        data = None
    uploaded = url if url is not None and url.startswith(ATTACHMENT) else ""
    if uploaded and not mime:
        mime = parse_qs(urlsplit(uploaded).query).get("content_type", [""])[0]
    modality = found.get("modality")
    audio = "audio" in kind or modality == "audio" or mime.startswith("audio/")
    picture = "image" in kind or modality == "image" or mime.startswith("image/")
    if audio:
        form = select_text(found.get("format")) or mime.rpartition("/")[2] or "wav"
        form = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}.get(form, form)
        return Part("audio", url=url or "", data=data or uploaded, format=form)
    if data is not None and url is None:
        kind_of_image = select_text(found.get("format")) or "png"
        url = f"data:{mime or (f'image/{kind_of_image}' if picture else 'application/octet-stream')};base64,{data}"
    if picture:
        return Part("image", url=url or "", format=mime)
    name = select_text(*(found.get(key) for key in ("filename", "name", "title", "file_id")))
    return Part("file", text=name or "", url=url or "", format=mime)
