"""Trace metadata that OTLP cannot carry: what a root span says of its trace, and what MLflow's record still lacks.

Pure functions. The request is `PATCH /api/2.0/mlflow/traces/{id}`, the end of a trace in MLflow's older API: from 3.6.0
to 3.17.2 it adds tags and metadata to the existing ones, and sets end and state, which are sent as they are stored. The
newer `POST /api/3.0/mlflow/traces` removes tags (3.6 to 3.10) and metadata (3.6, 3.8) that are not sent, empties
previews before 3.13, and from 3.13 on freezes tokens and cost.
"""

import calendar
import itertools
import json
import re
import sys
import time
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import PurePath
from typing import Any, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from mlflow_otlp_exporter._internal.common.attribute_names import (
    LINKED_PROMPTS,
    METADATA,
    SESSION_ID,
    TRACE_TAG,
    USER_ID,
)
from mlflow_otlp_exporter._internal.common.bounded import parse_json
from mlflow_otlp_exporter._internal.mlflow_api.server import Version
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan

# From this version on MLflow reads names, tags, sessions, users and runs from OTLP.
READS_METADATA_SINCE: Version = (3, 14)
_CONFUSES_TAGS_SINCE: Version = (3, 13)
# Older servers have no request for it (seen on 3.6.0 and 3.8.1).
_LINKS_PROMPTS_SINCE: Version = (3, 8)
_SESSION, _USER, _RUN = "mlflow.trace.session", "mlflow.trace.user", "mlflow.sourceRun"
_SOURCE, _SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
_CONVERSATION_ID = "gen_ai.conversation.id"
_STATES = {"OK": "OK", "ERROR": "ERROR", "IN_PROGRESS": "IN_PROGRESS"}
# Limits of the columns in MLflow's databases.
_MAX_KEY_LENGTH, _MAX_ID_LENGTH, _MAX_VALUE_LENGTH = 250, 250, 4096
_MAX_COUNT = 100
_PROMPT_VERSION = r"[1-9][0-9]{0,8}"
_TIMESTAMP = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z"


class TraceMetadata(NamedTuple):
    """What a root span says of its trace."""

    trace_id: int
    tags: Mapping[str, str]  # the trace's name, too
    metadata: Mapping[str, str]  # session, user, run and others
    prompts: tuple[tuple[str, str], ...] = ()  # names and versions in MLflow's registry

    @property
    def mlflow_id(self) -> str:
        """MLflow's id of the trace."""
        return f"tr-{self.trace_id:032x}"


def read_root(root: EncodedSpan, *, run_id: str | None, everything: bool) -> TraceMetadata:
    """Read what a root span says of its trace; `everything` adds what MLflow reads from OTLP in no version."""
    tags: dict[str, str] = {}
    metadata: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    prompts: tuple[tuple[str, str], ...] = ()
    for attribute in ScopeSpans.FromString(bytes(root.body)).spans[0].attributes:
        key, value = attribute.key, attribute.value
        if key.startswith(TRACE_TAG):
            tags[key[len(TRACE_TAG) :]] = _to_text(value)
            if key == LINKED_PROMPTS:
                prompts = _parse_prompts(_to_text(value))
        elif key == SESSION_ID or (key == _CONVERSATION_ID and _SESSION not in metadata):
            metadata[_SESSION] = _to_text(value)[:_MAX_ID_LENGTH]
        elif key == USER_ID:
            metadata[_USER] = _to_text(value)[:_MAX_ID_LENGTH]
        elif key == METADATA and everything:
            user_metadata = _parse_metadata(_to_text(value))
    if run_id:
        metadata[_RUN] = run_id
    if everything:
        metadata |= {_SOURCE: _program_name(), _SOURCE_TYPE: "LOCAL"}
        metadata = {**user_metadata, **metadata}
    return TraceMetadata(root.trace_id, _truncate(tags), _truncate(metadata), prompts)


def prompt_links(metadata: TraceMetadata, version: Version | None) -> dict[str, Any] | None:
    """The body of `POST /api/2.0/mlflow/traces/link-prompts`; None without prompts, or if the server cannot link them.

    The search `prompt = 'name/1'` needs these links; a tag is not enough. The request may be repeated.
    """
    if not metadata.prompts or (version is not None and version < _LINKS_PROMPTS_SINCE):
        return None
    versions = [{"name": name, "version": prompt_version} for name, prompt_version in metadata.prompts]
    return {"trace_id": metadata.mlflow_id, "prompt_versions": versions}


def diff_metadata(metadata: TraceMetadata, record: Mapping[str, Any], version: Version | None) -> dict[str, Any] | None:
    """The body that adds missing tags and metadata; None if none are, or if the record does not tell the trace's end.

    Existing tags and metadata are not changed; end and state are sent as stored, because the request needs them. Two
    faults of servers are corrected: before 3.14 sessions and users are stored with quotes, and 3.13 gives all traces of
    a request the tags of the last one.
    """
    end = _parse_end(record)
    if end is None:
        return None
    stored_tags, stored_metadata = _to_object(record.get("tags")), _to_object(record.get("trace_metadata"))
    new_metadata = {key: value for key, value in metadata.metadata.items() if key not in stored_metadata}
    if version is not None and version < READS_METADATA_SINCE:
        for key in (_SESSION, _USER):
            stored = stored_metadata.get(key)
            if isinstance(stored, str) and (unquoted := _unquote(stored)) != stored:
                new_metadata[key] = unquoted
    may_be_confused = version is not None and _CONFUSES_TAGS_SINCE <= version < READS_METADATA_SINCE
    new_tags = {
        key: value
        for key, value in metadata.tags.items()
        if key not in stored_tags or (may_be_confused and stored_tags[key] != value)
    }
    if not new_metadata and not new_tags:
        return None
    return {
        "request_id": metadata.mlflow_id,
        "timestamp_ms": end,
        "status": _STATES.get(str(record.get("state")), "TRACE_STATUS_UNSPECIFIED"),
        "request_metadata": _to_pairs(new_metadata),
        "tags": _to_pairs(new_tags),
    }


def _parse_end(record: Mapping[str, Any]) -> int | None:
    """When a stored trace has ended, in milliseconds since 1970; None if the record does not say."""
    start, duration = _parse_start_seconds(record), str(record.get("execution_duration"))
    try:
        return None if start is None else int((start + Decimal(duration.removesuffix("s"))) * 1000)
    except (ValueError, InvalidOperation):
        return None


def parse_start(record: Mapping[str, Any]) -> int | None:
    """When a stored trace has started, in milliseconds since 1970; None if the record does not say."""
    start = _parse_start_seconds(record)
    return None if start is None else int(start * 1000)


def _parse_start_seconds(record: Mapping[str, Any]) -> Decimal | None:
    start = re.fullmatch(_TIMESTAMP, str(record.get("request_time"))[:40])
    try:
        epoch_seconds = calendar.timegm(time.strptime(start[1], "%Y-%m-%dT%H:%M:%S")) if start is not None else None
        return None if start is None or epoch_seconds is None else epoch_seconds + Decimal(start[2] or 0)
    except (ValueError, InvalidOperation):
        return None


def _to_pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _to_object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _unquote(text: str) -> str:
    """The string in a JSON text that is one; other texts unchanged."""
    value = parse_json(text) if text.startswith('"') else None
    return value if isinstance(value, str) and value else text


def _to_text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    return value.string_value if kind == "string_value" else "" if kind is None else str(getattr(value, kind))


def _parse_prompts(text: str) -> tuple[tuple[str, str], ...]:
    """Names and versions of prompts; MLflow's registry answers 500 to a version that is not a positive number."""
    content = parse_json(text)
    items = [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []
    pairs = ((item.get("name"), str(item.get("version"))) for item in items)
    prompts = (
        (name, version)
        for name, version in pairs
        if isinstance(name, str) and name and re.fullmatch(_PROMPT_VERSION, version)
    )
    return tuple(dict.fromkeys(itertools.islice(prompts, _MAX_COUNT)))


def _parse_metadata(text: str) -> dict[str, str]:
    """OpenInference's metadata, a JSON object, as MLflow's: strings by name. Names of MLflow's own are left out."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in _to_object(parse_json(text)).items()
        if not key.startswith("mlflow.")
    }


def _truncate(values: Mapping[str, str]) -> dict[str, str]:
    valid = ((key, value) for key, value in values.items() if key and value and len(key) <= _MAX_KEY_LENGTH)
    return {key: value[:_MAX_VALUE_LENGTH] for key, value in itertools.islice(valid, _MAX_COUNT)}


def _program_name() -> str:
    """The program's name as in MLflow's SDK, but without the directory, which may contain a person's name."""
    path = PurePath(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    return name if name and name != "-c" else "<console>"
