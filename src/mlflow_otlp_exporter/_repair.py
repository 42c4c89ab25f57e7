"""Content that MLflow is known to refuse, made acceptable before it is sent: nothing is refused that could have landed.

Measured on MLflow 3.6.0 to 3.17.2, SQLite and PostgreSQL. What is changed is noted on the span, in
`mlflow_otlp.repaired`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData
from opentelemetry.sdk.trace import ReadableSpan

from mlflow_otlp_exporter._encoder import EncodedSpan, framed

NOTE = "mlflow_otlp.repaired"
_TRACE_NAME = "mlflow.traceTag.mlflow.traceName"
_COST = "mlflow.llm.cost"
# 3.17 refuses a request with a longer session, any version one with a longer trace name; PostgreSQL a user of 9,000.
_LONGEST = {"session.id": 250, _TRACE_NAME: 4096, "user.id": 4096, "gen_ai.conversation.id": 250}
_SHORTEST_CUT = 256
_WATCHED = (*_LONGEST, _COST)


def repaired_name(name: str) -> str | None:
    """A span's name without NUL characters, which PostgreSQL refuses with a 500; None if it has none."""
    return name.replace("\x00", "\ufffd") if "\x00" in name else None


def repaired_attributes(span: ReadableSpan) -> Mapping[str, Any] | None:
    """A span's attributes as MLflow takes them; None if they need no repair."""
    attributes = span.attributes
    if not attributes:
        return None
    found = attributes.copy() if hasattr(attributes, "copy") else dict(attributes)
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for key in _WATCHED:
        value = found.get(key)
        if value is None:
            continue
        if key == _COST:
            if not _is_json(value):
                notes.append(f"{key} left out: not JSON")
                changes[key] = None
        elif isinstance(value, str) and len(value) > _LONGEST[key]:
            changes[key] = value[: _LONGEST[key]]
            notes.append(f"{key} cut from {len(value)} characters")
    if not notes:
        return None
    merged = {**found, **changes, NOTE: "; ".join(notes)}
    return {key: value for key, value in merged.items() if not (value is None and key in changes)}


def _is_json(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def shortened(encoded: EncodedSpan, size: int) -> EncodedSpan | None:
    """A span that no proxy on the way takes, with its largest texts cut.

    Args:
        encoded: The span.
        size: Bytes that it may have.

    Returns:
        The smaller span; None if cutting texts does not make it small enough.
    """
    span = _parsed(encoded)
    values = [attribute.value for attribute in span.attributes]
    values += [attribute.value for event in span.events for attribute in event.attributes]
    texts = sorted(
        (value for value in values if len(value.string_value) > 256), key=lambda each: -len(each.string_value)
    )
    excess = span.ByteSize() - size + 200
    for value in texts:
        if excess <= 0:
            break
        text = value.string_value
        # Characters take up to four bytes: what is cut is measured in bytes, not guessed.
        keep = max(len(text.encode()) - excess, 200)
        head = text.encode()[:keep].decode("utf-8", "ignore")
        cut = f"{head}... [cut, {len(text)} characters originally]"
        excess -= len(text.encode()) - len(cut.encode())
        value.string_value = cut
    if excess > 0:
        return None
    note = span.attributes.add(key=NOTE)
    note.value.string_value = f"texts cut: the span had {len(encoded.body)} bytes, more than the way to MLflow takes"
    return encoded._replace(body=framed(span.SerializeToString()))


def described(encoded: EncodedSpan) -> str:
    """A span's name and its trace, for a log line."""
    return f"span {_parsed(encoded).name[:80]!r} of trace tr-{encoded.trace_id:032x}"


def _parsed(encoded: EncodedSpan) -> Span:
    # The body is the field of a ScopeSpans; wrapped so, it parses as one.
    data = TracesData()
    scope = data.resource_spans.add().scope_spans.add()
    scope.MergeFromString(encoded.body)
    return scope.spans[0]
