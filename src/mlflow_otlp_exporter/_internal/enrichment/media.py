"""Images, audio and files in messages."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow_otlp_exporter._internal.common.attribute_names import ATTACHMENT
from mlflow_otlp_exporter._internal.enrichment.normalized_span import Part
from mlflow_otlp_exporter._internal.enrichment.values import select_text

# Types of such parts, in any convention.
MEDIA_TYPES = frozenset(
    {"image", "image_url", "input_image", "image-url", "audio", "input_audio", "audio-url", "video", "video-url"}
    | {"file", "input_file", "document", "document-url", "blob", "uri", "binary", "media"}
)


def read_media(part: Mapping[str, Any], kind: str) -> Part | None:
    """The image, audio or file that a part of a message holds, of type `kind` in any provider's shape."""
    if kind not in MEDIA_TYPES:
        kind = next((key for key in ("image", "inline_data", "inlineData", "file_data", "fileData") if key in part), "")
        if not kind or not isinstance(part.get(kind), dict):
            return None
    nested = part.get(kind)
    if isinstance(nested, str):
        nested = {"url": nested}
    source = part.get("source")
    fields: dict[str, Any] = {**part}
    for source_fields in (nested, source, (nested or {}).get("source") if isinstance(nested, dict) else None):
        if isinstance(source_fields, dict):
            fields.update(source_fields)
    if isinstance(image := fields.get("image"), dict):  # OpenInference: image.image.url
        fields.update(image)
    return _build_part(fields, kind)


def _build_part(fields: Mapping[str, Any], kind: str) -> Part:
    mime = select_text(*(fields.get(key) for key in ("mime_type", "media_type", "mediaType", "mimeType"))) or ""
    url = select_text(
        *(fields.get(key) for key in ("url", "uri", "image_url", "file_uri", "fileUri", "image", "file_url"))
    )
    data: str | None = select_text(*(fields.get(key) for key in ("data", "content", "bytes", "base64", "file_data")))
    if url is None and isinstance(data, str) and data.startswith(("data:", "http://", "https://", ATTACHMENT)):
        url = data
        data = None
    attachment = url if url is not None and url.startswith(ATTACHMENT) else ""
    if attachment and not mime:
        mime = parse_qs(urlsplit(attachment).query).get("content_type", [""])[0]
    modality = fields.get("modality")
    is_audio = "audio" in kind or modality == "audio" or mime.startswith("audio/")
    is_image = "image" in kind or modality == "image" or mime.startswith("image/")
    if is_audio:
        audio_format = select_text(fields.get("format")) or mime.rpartition("/")[2] or "wav"
        audio_format = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}.get(audio_format, audio_format)
        return Part("audio", url=url or "", data=data or attachment, format=audio_format)
    if data is not None and url is None:
        image_format = select_text(fields.get("format")) or "png"
        url = f"data:{mime or (f'image/{image_format}' if is_image else 'application/octet-stream')};base64,{data}"
    if is_image:
        return Part("image", url=url or "", format=mime)
    name = select_text(*(fields.get(key) for key in ("filename", "name", "title", "file_id")))
    return Part("file", text=name or "", url=url or "", format=mime)
