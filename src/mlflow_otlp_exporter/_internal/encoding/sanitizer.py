"""Content that MLflow is known to refuse, made acceptable before it is sent: nothing is refused that could have landed.

Measured on MLflow 3.6.0 to 3.17.2, SQLite and PostgreSQL. What is changed is noted on the span, in
`mlflow_otlp.repaired`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from mlflow_otlp_exporter._internal.model.encoded_span import EncodedSpan, frame_span

REPAIRED_ATTRIBUTE = "mlflow_otlp.repaired"
_TRACE_NAME = "mlflow.traceTag.mlflow.traceName"
_TRACE_TAG, _SPAN_TYPE, _COST, _USAGE = (
    "mlflow.traceTag.",
    "mlflow.spanType",
    "mlflow.llm.cost",
    "mlflow.chat.tokenUsage",
)
# 3.17 refuses a request with a longer session, any version one with a longer trace name; PostgreSQL a user of 9,000
# characters and a type of over 500.
_MAX_LENGTHS = {"session.id": 250, "gen_ai.conversation.id": 250, "user.id": 4096, _TRACE_NAME: 4096, _SPAN_TYPE: 500}
# What MLflow puts into columns of its own, where PostgreSQL takes no NUL, neither plain nor as JSON's escape.
_COLUMN_KEYS = frozenset(_MAX_LENGTHS) | {
    "embedding.model_name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.system",
    "llm.model_name",
    "llm.provider",
    "mlflow.llm.model",
    "mlflow.llm.provider",
}
# What tells MLflow a span's kind: it looks each up in a table, where a list or an object, as value or as JSON text,
# costs the whole request (422 on 3.17.2).
_KIND_KEYS = frozenset(
    {
        "ai.operationId",
        "entity.type",
        "gen_ai.operation.name",
        "langfuse.observation.type",
        "lmnr.span.type",
        "openinference.span.kind",
        "span.type",
        "traceloop.span.kind",
    }
)
_SHORTEST_CUT, _LONGEST_MARK = 256, 64


def replace_nul(text: str) -> str:
    """A text without NUL characters, which PostgreSQL refuses with a 500, in itself and in JSON."""
    return text.replace("\x00", "\ufffd").replace("\\u0000", "\\ufffd")


def sanitize_name(name: str) -> str | None:
    """A span's name without NUL characters; None if it has none."""
    return name.replace("\x00", "\ufffd") if "\x00" in name else None


def sanitize_attributes(attributes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A span's attributes as MLflow takes them; None if they need no repair."""
    if not attributes:
        return None
    found = attributes.copy() if hasattr(attributes, "copy") else dict(attributes)
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in found.items():
        if key in _COLUMN_KEYS or key.startswith(_TRACE_TAG):
            changed, note = _sanitize_column(key, value)
        elif key in (_COST, _USAGE):
            changed, note = _sanitize_numbers(key, value)
        elif key in _KIND_KEYS and _is_structured(value):
            changed, note = None, f"{key} left out: no text"
        else:
            continue
        if note:
            changes[key] = changed
            notes.append(note)
    if not notes:
        return None
    merged = {**found, **changes, REPAIRED_ATTRIBUTE: "; ".join(notes)}
    return {key: value for key, value in merged.items() if not (value is None and key in changes)}


def _sanitize_column(key: str, value: Any) -> tuple[Any, str]:
    """The value for a column of MLflow's, and what was changed; None to leave it out."""
    if key == _SPAN_TYPE and _is_structured(value):
        return None, f"{key} left out: no text"
    if not isinstance(value, str):
        return value, ""
    changed, notes = replace_nul(value), []
    if changed != value:
        notes.append(f"{key}: NUL characters replaced")
    longest = _MAX_LENGTHS.get(key)
    if longest and len(changed) > longest:
        changed = changed[:longest]
        notes.append(f"{key} cut from {len(value)} characters")
    return changed, "; ".join(notes)


def _is_structured(value: Any) -> bool:
    return value.lstrip()[:1] in ("[", "{") if isinstance(value, str) else isinstance(value, (Sequence, Mapping))


def _sanitize_numbers(key: str, value: Any) -> tuple[Any, str]:
    """Cost and usage must be JSON objects of numbers: 3.10 to 3.17 refuse the request for anything else."""
    found: Any = None
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    if isinstance(found, dict) and all(isinstance(each, (int, float)) for each in found.values()):
        return value, ""
    return None, f"{key} left out: no JSON object of numbers"


def truncate_span(encoded: EncodedSpan, size: int) -> EncodedSpan | None:
    """A span that no proxy on the way takes, with its largest texts cut.

    Args:
        encoded: The span.
        size: Bytes that it may have.

    Returns:
        The smaller span; None if cutting texts does not make it small enough.
    """
    span = parse_span(encoded)
    values = [attribute.value for attribute in span.attributes]
    values += [attribute.value for event in span.events for attribute in event.attributes]
    texts = sorted(
        (each for each in values if len(each.string_value) > _SHORTEST_CUT), key=lambda each: -len(each.string_value)
    )
    excess = span.ByteSize() - size + 200
    for value in texts:
        if excess <= 0:
            break
        text = value.string_value
        # Characters take up to four bytes: what is cut is measured in bytes, not guessed.
        whole = text.encode()
        keep = max(len(whole) - excess - _LONGEST_MARK, _SHORTEST_CUT - _LONGEST_MARK)
        head = whole[:keep].decode("utf-8", "ignore")
        cut = f"{head}... [cut, {len(text)} characters originally]"
        excess -= len(whole) - len(cut.encode())
        value.string_value = cut
    if excess > 0:
        return None
    note = span.attributes.add(key=REPAIRED_ATTRIBUTE)
    note.value.string_value = f"texts cut: the span had {len(encoded.body)} bytes, more than the way to MLflow takes"
    return encoded._replace(body=frame_span(span.SerializeToString()))


def describe_span(encoded: EncodedSpan) -> str:
    """A span's name and its trace, for a log line."""
    return f"span {parse_span(encoded).name[:80]!r} of trace tr-{encoded.trace_id:032x}"


def parse_span(encoded: EncodedSpan) -> Span:
    """An encoded span as protobuf's."""
    # The body is the field of a ScopeSpans; wrapped so, it parses as one.
    data = TracesData()
    scope = data.resource_spans.add().scope_spans.add()
    scope.MergeFromString(encoded.body)
    return scope.spans[0]
