"""Checks of a recorded trace: the server's answer and the console's view against the ground truth."""

import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from support.recordings import RecordedTrace

LLM, NO_TYPE, USAGE = ("LLM", "CHAT_MODEL"), (None, "", "UNKNOWN"), "mlflow.chat.tokenUsage"
COLUMNS = (
    "trace_name",
    "request",
    "response",
    "session",
    "user",
    "tags",
    "metadata",
    "span_types",
    "search_type",
    "chats",
    "image",
    "tools",
    "tool_names",
    "tool_arguments",
    "tool_results",
    "documents",
    "usage",
    "cache",
    "usage_once",
    "cost",
    "cost_once",
    "model",
    "provider",
    "error_span",
)
_EMPTY_INFO = SimpleNamespace(tags={}, trace_metadata={}, request_preview=None, response_preview=None, token_usage=None)

Truth = Mapping[str, Any]
_Verdict = tuple[str, bool, Any, Any]
"""Column, whether the check passes, expected and actual value."""


class CheckResult(NamedTuple):
    """The result of one check of one trace; `unrecoverable` if it fails with any exporter."""

    trace: str
    column: str
    passed: bool
    unrecoverable: bool
    expected: Any
    actual: Any


@dataclass
class StoredTrace:
    """A trace as the server returns it, and as the console shows it.

    `views` holds the console's view of each span id, `searchable_types` the span types for which the server's search
    returns the trace. `has_counted_duplicate` is true if another trace with token usage holds the same call.
    """

    recorded: RecordedTrace
    info: Any
    spans: list[Any]
    views: Mapping[str, Any]
    searchable_types: set[str]
    has_counted_duplicate: bool

    def spans_of_type(self, *types: str) -> list[Any]:
        return [span for span in self.spans if span.span_type in types]

    def views_of_type(self, field: str, *types: str) -> list[Any]:
        """Return the chat, tools or documents that the console shows for spans of these types."""
        return [
            view[field] for span in self.spans_of_type(*types) if (view := self.views.get(span.span_id, {})).get(field)
        ]


def check_trace(trace: StoredTrace, truth: Truth) -> list[CheckResult]:
    checks = (
        _check_trace_list,
        _check_span_types,
        _check_chats,
        _check_tools,
        _check_errors,
        _check_usage,
        _check_cost,
    )
    return [
        CheckResult(
            trace.recorded.key, column, bool(passed), column in truth.get("unrecoverable", ()), expected, actual
        )
        for check in checks
        for column, passed, expected, actual in check(truth, trace)
    ]


def missing_trace(recorded: RecordedTrace) -> StoredTrace:
    """Make a trace that the server does not return."""
    return StoredTrace(recorded, _EMPTY_INFO, [], {}, set(), has_counted_duplicate=False)


def parse_json_or_text(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _is_same_text(actual: str | None, expected: str) -> bool:
    """Whether texts are equal, as text or as JSON; a preview may be a JSON string."""
    parsed = parse_json_or_text(actual)
    text = parsed if isinstance(parsed, str) else actual
    return bool(text) and (str(text).strip() == expected or parse_json_or_text(text) == parse_json_or_text(expected))


def count_roles(chat: list[dict[str, Any]]) -> tuple[str, ...]:
    counted = [(message["role"], len(message["tool_calls"])) for message in chat]
    return tuple(role + (f"({count} tool call{'s' * (count > 1)})" if count else "") for role, count in counted)


def _check_trace_list(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check the list of traces."""
    info, tags = trace.info, {key: parse_json_or_text(value) for key, value in trace.info.tags.items()}
    titles = trace.recorded.titles | {span.name for span in trace.spans if not span.parent_id}
    yield "trace_name", (actual := info.tags.get("mlflow.traceName")) in titles, sorted(titles), actual
    for name, actual in (("request", info.request_preview), ("response", info.response_preview)):
        if name in truth:
            yield name, _is_same_text(actual, truth[name]), truth[name], actual
    for name in ("session", "user"):
        if name in truth:
            yield name, (actual := info.trace_metadata.get(f"mlflow.trace.{name}")) == truth[name], truth[name], actual
    if expected := truth.get("tags"):
        names = {*tags, *(item for value in tags.values() if isinstance(value, list) for item in map(str, value))}
        yield "tags", set(expected) <= names, expected, sorted(set(expected) & names)
    if expected := truth.get("metadata"):
        actual = {key: value for key, value in {**info.trace_metadata, **info.tags}.items() if key in expected}
        yield "metadata", actual == expected, expected, actual


def _check_span_types(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check that each span with a kind has a type, by which the server's search returns the trace."""
    types, expected = {span.name: span.span_type for span in trace.spans}, truth.get("span_types", {})
    names = trace.recorded.span_names
    plain_spans = {name for pattern in truth.get("plain_spans", ()) for name in fnmatch.filter(names, pattern)}
    if plain_spans.issuperset(names):
        return
    wrong = {
        span.name: span.span_type for span in trace.spans if span.span_type in NO_TYPE and span.name not in plain_spans
    }
    wrong |= {name: types.get(name) for name in expected if types.get(name) not in expected[name]}
    yield "span_types", bool(trace.spans) and not wrong, expected or "a type on each", wrong
    kinds = set(types.values()) - set(NO_TYPE)
    kinds |= {kind for kind, key in (("TOOL", "tool_calls"), ("RETRIEVER", "documents")) if key in truth}
    yield "search_type", bool(kinds) and kinds <= trace.searchable_types, sorted(kinds), sorted(trace.searchable_types)


def _check_chats(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check chats and tool definitions."""
    views = trace.views_of_type("chat", *LLM)
    if expected := truth.get("chats"):
        missing = Counter(map(tuple, expected)) - Counter(map(count_roles, views))
        yield "chats", not missing, list(missing), list(map(count_roles, views))
    if truth.get("image"):
        yield "image", any("data:image" in (m.get("content") or "") for chat in views for m in chat), "an image", None
    if expected := truth.get("tools"):
        yield (
            "tools",
            set(expected) <= (actual := set().union(*trace.views_of_type("tools", *LLM))),
            expected,
            sorted(actual),
        )


def _check_tools(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check tool calls and retrieved documents."""
    spans, calls = trace.spans_of_type("TOOL"), truth.get("tool_calls", [])
    if expected := [call["name"] for call in calls]:
        names = [span.name for span in spans]
        yield "tool_names", not Counter(expected) - Counter(names), expected, names
    if expected := [call["arguments"] for call in calls if "arguments" in call]:
        actual = [span.inputs for span in spans]
        yield "tool_arguments", all(arguments in actual for arguments in expected), expected, actual
    if expected := [call["result"] for call in calls if "result" in call]:
        actual = [span.outputs for span in spans]
        yield (
            "tool_results",
            all(result in actual or {"result": result} in actual for result in expected),
            expected,
            actual,
        )
    if documents := truth.get("documents"):
        yield "documents", documents in (actual := trace.views_of_type("documents", "RETRIEVER")), documents, actual


def _check_errors(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    if expected := truth.get("error_span"):
        failed = [span for span in trace.spans if span.status.status_code.value == "ERROR"]
        actual = {span.name: any(event.name == "exception" for event in span.events) for span in failed}
        passed = all(actual.values()) and any(expected in name for name in actual)
        yield "error_span", passed, f"{expected}, and an exception on each failed span", actual


def _call_usages(trace: StoredTrace) -> list[dict[str, int]]:
    """Return token usage per call: of spans without usage below them, one per response."""
    usages = {span.span_id: usage for span in trace.spans if (usage := span.get_attribute(USAGE))}
    parents, ancestors = {span.span_id: span.parent_id for span in trace.spans}, set()
    for span_id in usages:
        parent = parents.get(span_id)
        while parent:
            ancestors.add(parent)
            parent = parents.get(parent)
    calls = {span.span_id: span.get_attribute("gen_ai.response.id") or span.span_id for span in trace.spans}
    return list({calls[span_id]: usage for span_id, usage in usages.items() if span_id not in ancestors}.values())


def _check_usage(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check models and tokens, and that no call is counted twice."""
    total, expected = trace.info.token_usage or {}, dict(truth.get("usage", {}))
    if cached := expected.pop("cache_read_input_tokens", None):
        yield "cache", total.get("cache_read_input_tokens") == cached, cached, total.get("cache_read_input_tokens")
    if expected:
        yield "usage", {key: total.get(key) for key in expected} == expected, expected, total
    spans = trace.spans_of_type(*LLM) or trace.spans_of_type("EMBEDDING")
    calls_with_content = [
        span for span in spans if span.get_attribute(USAGE) or trace.views.get(span.span_id, {}).get("chat")
    ]
    for name, spans_with_name in (("model", calls_with_content or spans), ("provider", spans)):
        if name in truth:
            actual = {span.get_attribute(f"mlflow.llm.{name}") for span in spans_with_name}
            yield name, actual == {truth[name]}, truth[name], sorted(actual - {None})
    if "model" in truth or expected:
        calls = [] if trace.has_counted_duplicate else _call_usages(trace)
        limit = {key: sum(call.get(key) or 0 for call in calls) for key in ("input_tokens", "output_tokens")}
        yield "usage_once", all((total.get(key) or 0) <= limit[key] for key in limit), f"at most {limit}", total


def _check_cost(truth: Truth, trace: StoredTrace) -> Iterator[_Verdict]:
    """Check the trace's cost, and that it equals the sum of the spans' costs, which the console's charts show."""
    cost = (parse_json_or_text(trace.info.trace_metadata.get("mlflow.trace.cost")) or {}).get("total_cost") or 0.0
    if "cost" in truth:
        yield "cost", math.isclose(cost, truth["cost"], rel_tol=1e-6), truth["cost"], cost
    if "model" in truth or truth.get("usage"):
        total = sum((span.get_attribute("mlflow.llm.cost") or {}).get("total_cost") or 0.0 for span in trace.spans)
        yield "cost_once", math.isclose(cost, total, rel_tol=1e-6), f"{cost}, that of the trace", f"{total} on spans"
