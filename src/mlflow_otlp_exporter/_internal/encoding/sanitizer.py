"""Repairs content that MLflow is known to reject, before it is sent.

Measured with MLflow 3.6.0 to 3.17.2, SQLite and PostgreSQL. Each repair is noted on the span: `mlflow_otlp.repaired`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from mlflow_otlp_exporter._internal.common.bounded import cache_by_keys, parse_json
from mlflow_otlp_exporter._internal.model.spans import EncodedSpan, Utf8Text, frame_span

REPAIRED_ATTRIBUTE = "mlflow_otlp.repaired"
_TRACE_NAME, _SPAN_TYPE = "mlflow.traceTag.mlflow.traceName", "mlflow.spanType"
_TRACE_TAG_PREFIX = "mlflow.traceTag."
# MLflow 3.10 to 3.17 reject a request in which these are anything but JSON objects of numbers.
_NUMBER_KEYS = frozenset({"mlflow.llm.cost", "mlflow.chat.tokenUsage"})
# MLflow 3.17 rejects a request with a longer session, every version one with a longer trace name; PostgreSQL rejects a
# user of 9,000 characters and a type of over 500.
_MAX_LENGTHS = {"session.id": 250, "gen_ai.conversation.id": 250, "user.id": 4096, _TRACE_NAME: 4096, _SPAN_TYPE: 500}
# MLflow stores these in columns, where PostgreSQL accepts no NUL, neither plain nor as a JSON escape.
_COLUMN_KEYS = frozenset(_MAX_LENGTHS) | {
    *("embedding.model_name", "llm.model_name", "llm.provider", "mlflow.llm.model", "mlflow.llm.provider"),
    *("gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model", "gen_ai.system"),
}
# MLflow looks the kind of a span up in a table by these; a list or an object, as value or as JSON text, costs the whole
# request (422 on 3.17.2).
_KIND_KEYS = frozenset(
    {
        *("ai.operationId", "entity.type", "gen_ai.operation.name", "langfuse.observation.type", "lmnr.span.type"),
        *("openinference.span.kind", "span.type", "traceloop.span.kind"),
    }
)
# A text in a column that needs no repair, as nearly all.
_SHORT_TEXT = re.compile(rf"[A-Za-z][^\x00\\]{{0,{min(_MAX_LENGTHS.values()) - 1}}}")
# Counts as enrichment writes them: JSON of numbers without a parser, which takes three times as long.
_NUMBER = r'"\w{1,32}": (?:0|[1-9][0-9]{0,9})'
_PLAIN_NUMBERS = re.compile(rf"\{{{_NUMBER}(?:, {_NUMBER}){{0,8}}\}}", re.ASCII)
# Those of recent spans: kinds, models and sessions are repeated.
_short_texts: set[str] = set()
_MAX_SHORT_TEXTS = 1024
# MLflow parses each text that may be JSON, and answers 422 to 1,000 nested levels, or 1,000 brackets in a row.
MAX_NESTING = 500
_MAX_COPIED_BYTES = 1 << 20
_BRACKETS = r"[\[{]+|[\]}]+"
_ZERO_WIDTH_SPACE = "\u200b"
_MIN_CUT_CHARACTERS, _MAX_MARK_BYTES = 256, 64


def replace_nul(text: str) -> str:
    """Replace NUL characters, plain and JSON-escaped: PostgreSQL answers them with 500."""
    return text.replace("\x00", "\ufffd").replace("\\u0000", "\\ufffd")


def sanitize_name(name: str) -> str:
    """Replace NUL characters."""
    return name.replace("\x00", "\ufffd")


def sanitize_attributes(attributes: Mapping[str, Any] | None, *, is_root: bool) -> Mapping[str, Any] | None:
    """Repair attributes; None if they need no repair."""
    if not attributes:
        return None
    original: Any = attributes
    if original.__class__ is not dict:
        original = attributes.copy() if hasattr(attributes, "copy") else dict(attributes)
    number_keys, column_keys = _find_special_keys(tuple(original))
    checked_keys = [key for key in number_keys if not _is_plain_numbers(original[key])] if number_keys else []
    try:
        is_known = _short_texts.issuperset(map(original.get, column_keys))
    except TypeError:  # a list
        is_known = False
    if not is_known:
        checked_keys += [key for key in column_keys if not _is_short_text(original[key])]
    if is_root:
        checked_keys += [key for key, value in original.items() if _has_escaped_nul(value)]
    if not checked_keys or _repair(original, frozenset(checked_keys), column_keys, is_root=is_root) is None:
        return None
    # Texts that are nested too deeply are marked as well, so that notes have the order of the attributes.
    return _repair(original, original, column_keys, is_root=is_root)


def _repair(
    original: Mapping[str, Any], checked_keys: Collection[str], column_keys: Sequence[str], *, is_root: bool
) -> Mapping[str, Any] | None:
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for key in filter(checked_keys.__contains__, original):
        value = original[key]
        if value.__class__ is Utf8Text:
            value = value.decode()
        changed, note = _sanitize_value(key, value, is_column=key in column_keys, is_root=is_root)
        if note:
            changes[key] = changed
            notes.append(note)
    if not notes:
        return None
    merged = {**original, **changes, REPAIRED_ATTRIBUTE: "; ".join(notes)}
    return {key: value for key, value in merged.items() if not (value is None and key in changes)}


def mark_nested_texts(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Mark JSON that is nested too deeply as text; None if there is none."""
    return _repair(attributes, attributes, (), is_root=False)


def has_many_brackets(content: bytes) -> bool:
    """Return whether JSON may be nested too deeply."""
    if len(content) > _MAX_COPIED_BYTES:
        return content.count(b"[") + content.count(b"{") > MAX_NESTING
    # Removal finds the brackets ten times faster than `count` does.
    return len(content) - len(content.replace(b"[", b"").replace(b"{", b"")) > MAX_NESTING


@cache_by_keys
def _find_special_keys(keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
    number_keys = [key for key in keys if key in _NUMBER_KEYS]
    column_keys = _COLUMN_KEYS | _KIND_KEYS
    return number_keys, [key for key in keys if key in column_keys or key.startswith(_TRACE_TAG_PREFIX)]


def _is_short_text(value: Any) -> bool:
    if value.__class__ is not str:
        return False
    if value not in _short_texts:
        if not _SHORT_TEXT.fullmatch(value):
            return False
        if len(_short_texts) >= _MAX_SHORT_TEXTS:
            _short_texts.clear()
        _short_texts.add(value)
    return True


def _is_plain_numbers(value: Any) -> bool:
    return value.__class__ is str and _PLAIN_NUMBERS.fullmatch(value) is not None


def _has_escaped_nul(value: Any) -> bool:
    if value.__class__ is Utf8Text:
        return bool(value.find(b"\\u0000") >= 0)
    return isinstance(value, str) and not value[:1].isalnum() and "\\u0000" in value


def _sanitize_value(key: str, value: Any, *, is_column: bool, is_root: bool) -> tuple[Any, str]:
    changed, note = value, ""
    if key in _NUMBER_KEYS:
        changed, note = _sanitize_numbers(key, value)
    elif is_column:
        changed, note = _sanitize_column(key, value)
    elif is_root and isinstance(value, str) and "\\u0000" in value and _is_structured(value):
        # MLflow before 3.18 stores the last message in it as a preview, which is a column.
        changed, note = replace_nul(value), f"{key}: NUL characters replaced"
    if changed.__class__ is str and len(changed) > MAX_NESTING and _is_nested_too_deeply(changed):
        return _ZERO_WIDTH_SPACE + changed, f"{key}: marked as text, because it is nested too deeply"
    return changed, note


def _sanitize_column(key: str, value: Any) -> tuple[Any, str]:
    """Return the value and a note on its changes; the value None drops the attribute."""
    if (key == _SPAN_TYPE or key in _KIND_KEYS) and _is_structured(value):
        return None, f"{key} left out: no text"
    if not isinstance(value, str) or key in _KIND_KEYS:
        return value, ""
    changed, notes = replace_nul(value), []
    if changed != value:
        notes.append(f"{key}: NUL characters replaced")
    max_length = _MAX_LENGTHS.get(key)
    if max_length and len(changed) > max_length:
        changed = changed[:max_length]
        notes.append(f"{key} cut from {len(value)} characters")
    return changed, "; ".join(notes)


def _is_structured(value: Any) -> bool:
    return value.lstrip()[:1] in ("[", "{") if isinstance(value, str) else isinstance(value, (Sequence, Mapping))


def _is_nested_too_deeply(text: str) -> bool:
    if text[:64].lstrip()[:1] not in ("[", "{") or text.count("[") + text.count("{") <= MAX_NESTING:
        return False
    depth = 0
    for match in re.finditer(_BRACKETS, text):
        brackets = match.group()
        depth += len(brackets) if brackets[0] in "[{" else -len(brackets)
        if depth > MAX_NESTING:
            return True
    return False


def _sanitize_numbers(key: str, value: Any) -> tuple[Any, str]:
    numbers = parse_json(value) if isinstance(value, str) else None
    if isinstance(numbers, dict) and all(isinstance(number, (int, float)) for number in numbers.values()):
        return value, ""
    return None, f"{key} left out: no JSON object of numbers"


def truncate_span(encoded: EncodedSpan, max_bytes: int) -> EncodedSpan | None:
    """Cut the largest texts of a span that a proxy rejects as too large; None if that is not enough."""
    span = parse_span(encoded)
    values = [attribute.value for attribute in span.attributes]
    values += [attribute.value for event in span.events for attribute in event.attributes]
    texts = [value for value in values if len(value.string_value) > _MIN_CUT_CHARACTERS]
    excess_bytes = span.ByteSize() - max_bytes + 200
    for value in sorted(texts, key=lambda value: -len(value.string_value)):
        if excess_bytes <= 0:
            break
        text = value.string_value
        # In bytes, because a character takes up to four.
        content = text.encode()
        head_bytes = max(len(content) - excess_bytes - _MAX_MARK_BYTES, _MIN_CUT_CHARACTERS - _MAX_MARK_BYTES)
        head = content[:head_bytes].decode("utf-8", "ignore")
        cut = f"{head}... [cut, {len(text)} characters originally]"
        excess_bytes -= len(content) - len(cut.encode())
        value.string_value = cut
    if excess_bytes > 0:
        return None
    note = f"texts cut: the span had {len(encoded.body)} bytes, more than a proxy accepts"
    span.attributes.add(key=REPAIRED_ATTRIBUTE).value.string_value = note
    return encoded._replace(body=frame_span(span.SerializeToString()))


def describe_span(encoded: EncodedSpan) -> str:
    """Return name and trace of a span for a log line."""
    return f"span {parse_span(encoded).name[:80]!r} of trace tr-{encoded.trace_id:032x}"


def parse_span(encoded: EncodedSpan) -> Span:
    # The body is the field of a ScopeSpans, and parses as one.
    scope_spans = ScopeSpans()
    scope_spans.MergeFromString(bytes(encoded.body))
    return scope_spans.spans[0]
