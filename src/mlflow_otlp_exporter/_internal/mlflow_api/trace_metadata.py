"""What OTLP has no place for: what a root says of its trace, and what MLflow's record of the trace still lacks.

Decisions only. What is asked of MLflow is `PATCH /api/2.0/mlflow/traces/{id}`, the end of a trace in its older API:
from 3.6.0 to 3.17.2 it adds tags and metadata to those that are there, and sets end and state, which are said as they
stand.
The newer `POST /api/3.0/mlflow/traces` takes away tags (3.6 to 3.10) and metadata (3.6, 3.8) that it is not told,
empties previews before 3.13, and from 3.13 on freezes tokens and cost.
"""

from __future__ import annotations

import calendar
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
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
from mlflow_otlp_exporter._internal.mlflow_api.server import Version
from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan

# From this version on OTLP carries names, tags, sessions, users and runs.
CARRIED: Version = (3, 14)
_TAGS_MIXED_UP: Version = (3, 13)
# Older ones have no call for it (seen on 3.6.0 and 3.8.1).
_LINKS_PROMPTS: Version = (3, 8)
_SESSION, _USER, _RUN = "mlflow.trace.session", "mlflow.trace.user", "mlflow.sourceRun"
_SOURCE, _SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
_CONVERSATION_ID = "gen_ai.conversation.id"
_STATES = {"OK": "OK", "ERROR": "ERROR", "IN_PROGRESS": "IN_PROGRESS"}
# What the columns of MLflow's databases hold.
_LONGEST_KEY, _LONGEST_ID, _LONGEST_VALUE = 250, 250, 4096
_MOST = 100
_COUNTED = re.compile(r"[1-9][0-9]{0,8}")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z")


class TraceMetadata(NamedTuple):
    """What a root says of its trace.

    Attributes:
        trace_id: OpenTelemetry's trace id.
        tags: Tags, the trace's name among them.
        metadata: What MLflow calls the metadata of a trace: session, user, run and more.
        prompts: Name and version of the prompts of MLflow's registry that were used.
    """

    trace_id: int
    tags: Mapping[str, str]
    metadata: Mapping[str, str]
    prompts: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The trace's id in MLflow."""
        return f"tr-{self.trace_id:032x}"


def read_root(root: EncodedSpan, *, run_id: str | None, everything: bool) -> TraceMetadata:
    """Reads what a root says of its trace.

    Args:
        root: The root, encoded.
        run_id: The run that the trace belongs to.
        everything: Whether the source and the metadata are told, too, which OTLP carries to no MLflow.

    Raises:
        google.protobuf.message.DecodeError: It is no span.
    """
    tags: dict[str, str] = {}
    metadata: dict[str, str] = {}
    own: dict[str, str] = {}
    prompts: tuple[tuple[str, str], ...] = ()
    for attribute in ScopeSpans.FromString(root.body).spans[0].attributes:
        key, value = attribute.key, attribute.value
        if key.startswith(TRACE_TAG):
            tags[key[len(TRACE_TAG) :]] = _text(value)
            if key == LINKED_PROMPTS:
                prompts = _prompts(_text(value))
        elif key == SESSION_ID or (key == _CONVERSATION_ID and _SESSION not in metadata):
            metadata[_SESSION] = _text(value)[:_LONGEST_ID]
        elif key == USER_ID:
            metadata[_USER] = _text(value)[:_LONGEST_ID]
        elif key == METADATA and everything:
            own = _flat(_text(value))
    if run_id:
        metadata[_RUN] = run_id
    if everything:
        metadata |= {_SOURCE: _program(), _SOURCE_TYPE: "LOCAL"}
        metadata = {**own, **metadata}
    return TraceMetadata(root.trace_id, _fitting(tags), _fitting(metadata), prompts)


def prompt_links(told: TraceMetadata, version: Version | None) -> dict[str, Any] | None:
    """What links a trace to its prompts, which `prompt = 'name/1'` in MLflow's search looks at; a tag does not.

    Args:
        told: What its root says.
        version: The server's version; None if it does not tell.

    Returns:
        The body of `POST /api/2.0/mlflow/traces/link-prompts`, which may be sent again; None if there is nothing to
        link, or if the server cannot.
    """
    if not told.prompts or (version is not None and version < _LINKS_PROMPTS):
        return None
    return {"trace_id": told.name, "prompt_versions": [{"name": name, "version": each} for name, each in told.prompts]}


def diff_metadata(told: TraceMetadata, stored: Mapping[str, Any], version: Version | None) -> dict[str, Any] | None:
    """What MLflow is to be asked for a trace.

    What is there stays as it is: tags and metadata are added only where there are none, and end and state are those
    that are stored, as the call cannot do without them. Two mistakes of servers are mended: before 3.14 there are
    quotes around sessions and users, and 3.13 gives all traces of a request the tags of the last one.

    Args:
        told: What its root says.
        stored: MLflow's `trace_info` of it.
        version: The server's version.

    Returns:
        The body of the request; None if nothing is lacking, or if nobody can say what has to stay.
    """
    end = _end(stored)
    if end is None:
        return None
    tags, metadata = _object(stored.get("tags")), _object(stored.get("trace_metadata"))
    added = {key: value for key, value in told.metadata.items() if key not in metadata}
    if version is not None and version < CARRIED:
        for key in (_SESSION, _USER):
            found = metadata.get(key)
            if isinstance(found, str) and (plain := _unquoted(found)) != found:
                added[key] = plain
    mixed_up = version is not None and _TAGS_MIXED_UP <= version < CARRIED
    new = {key: said for key, said in told.tags.items() if key not in tags or (mixed_up and tags[key] != said)}
    if not added and not new:
        return None
    return {
        "request_id": told.name,
        "timestamp_ms": end,
        "status": _STATES.get(str(stored.get("state")), "TRACE_STATUS_UNSPECIFIED"),
        "request_metadata": _pairs(added),
        "tags": _pairs(new),
    }


def _end(stored: Mapping[str, Any]) -> int | None:
    """When a stored trace has ended, in milliseconds since 1970; None if it does not say."""
    moment, duration = _MOMENT.fullmatch(str(stored.get("request_time"))), str(stored.get("execution_duration"))
    if moment is None:
        return None
    try:
        seconds = calendar.timegm(time.strptime(moment[1], "%Y-%m-%dT%H:%M:%S"))
        return int((seconds + Decimal(moment[2] or 0) + Decimal(duration.removesuffix("s"))) * 1000)
    except (ValueError, InvalidOperation):
        return None


def _pairs(found: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in found.items()]


def _object(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _unquoted(text: str) -> str:
    """A text out of JSON's quotes."""
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        try:
            found = json.loads(text)
        except ValueError:
            return text
        return found if isinstance(found, str) and found else text
    return text


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    return value.string_value if kind == "string_value" else "" if kind is None else str(getattr(value, kind))


def _prompts(text: str) -> tuple[tuple[str, str], ...]:
    """Names and versions in the tag that has them; MLflow's registry counts versions, and answers 500 to another."""
    try:
        found = json.loads(text)
    except ValueError:
        return ()
    listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    pairs = ((each.get("name"), str(each.get("version"))) for each in listed)
    kept = ((name, each) for name, each in pairs if isinstance(name, str) and name and _COUNTED.fullmatch(each))
    return tuple(dict.fromkeys(itertools.islice(kept, _MOST)))


def _flat(text: str) -> dict[str, str]:
    """OpenInference's metadata, a JSON object, as MLflow's: texts by name."""
    try:
        found = _object(json.loads(text))
    except ValueError:
        return {}
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
    # Names of MLflow's own are nobody else's.
    return {key: value for key, value in values.items() if not key.startswith("mlflow.")}


def _fitting(found: Mapping[str, str]) -> dict[str, str]:
    kept = ((key, value) for key, value in found.items() if key and value and len(key) <= _LONGEST_KEY)
    return {key: value[:_LONGEST_VALUE] for key, value in _first(kept)}


def _first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair, _ in zip(pairs, range(_MOST), strict=False)]


def _program() -> str:
    """What runs here, as MLflow's SDK names it, but without the folder, which may hold a person's name."""
    path = PurePath(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    return name if name and name != "-c" else "<console>"
