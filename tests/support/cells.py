"""What must be seen of a recorded trace, cell by cell: MLflow's answer and its console's view against the truth."""

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
_NOTHING = SimpleNamespace(tags={}, trace_metadata={}, request_preview=None, response_preview=None, token_usage=None)

Truth = Mapping[str, Any]
_Verdict = tuple[str, bool, Any, Any]
"""The column, whether it is right, what was expected, what was found."""


class Cell(NamedTuple):
    """A verdict.

    Attributes:
        trace: The trace's key.
        column: One of COLUMNS.
        right: Whether it is.
        apart: Whether no exporter could make it right.
        expected: What was expected.
        found: What was found.
    """

    trace: str
    column: str
    right: bool
    apart: bool
    expected: Any
    found: Any


@dataclass
class Seen:
    """A trace as the server returns it, and as the console shows it.

    Attributes:
        recorded: What was sent.
        info: The server's `TraceInfo`.
        spans: The server's spans.
        views: What the console shows, by span id.
        found_types: The span types for which the server's search finds this trace.
        twin_counts: Whether it repeats a call of another trace, which was stored with token usage.
    """

    recorded: RecordedTrace
    info: Any
    spans: list[Any]
    views: Mapping[str, Any]
    found_types: set[str]
    twin_counts: bool

    def of_type(self, *types: str) -> list[Any]:
        """The spans of these types."""
        return [span for span in self.spans if span.span_type in types]

    def shown(self, what: str, *types: str) -> list[Any]:
        """The chat, tools or documents of all spans of these types for which the console shows some."""
        return [view[what] for span in self.of_type(*types) if (view := self.views.get(span.span_id, {})).get(what)]


def judge(seen: Seen, truth: Truth) -> list[Cell]:
    """All cells of a trace."""
    makers = (_trace_cells, _type_cells, _chat_cells, _tool_cells, _failure_cells, _call_cells, _cost_cells)
    return [
        Cell(seen.recorded.key, column, bool(right), column in truth.get("unrecoverable", ()), expected, found)
        for make in makers
        for column, right, expected, found in make(truth, seen)
    ]


def unseen(recorded: RecordedTrace) -> Seen:
    """A trace that the server does not have."""
    return Seen(recorded, _NOTHING, [], {}, set(), twin_counts=False)


def parsed(text: Any) -> Any:
    """JSON as what it says, all else as it is."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _same_text(shown: str | None, expected: str) -> bool:
    """Equal as texts or as JSON; a preview may be a JSON string."""
    text = parsed(shown) if isinstance(parsed(shown), str) else shown
    return bool(text) and (str(text).strip() == expected or parsed(text) == parsed(expected))


def _roles(chat: list[dict[str, Any]]) -> tuple[str, ...]:
    counted = [(message["role"], len(message["tool_calls"])) for message in chat]
    return tuple(role + (f"({count} tool call{'s' * (count > 1)})" if count else "") for role, count in counted)


def _trace_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """What the list of traces shows."""
    info, tags = seen.info, {key: parsed(value) for key, value in seen.info.tags.items()}
    titles = seen.recorded.titles | {span.name for span in seen.spans if not span.parent_id}
    yield "trace_name", (got := info.tags.get("mlflow.traceName")) in titles, sorted(titles), got
    for name, got in (("request", info.request_preview), ("response", info.response_preview)):
        if name in truth:
            yield name, _same_text(got, truth[name]), truth[name], got
    for name in ("session", "user"):
        if name in truth:
            yield name, (got := info.trace_metadata.get(f"mlflow.trace.{name}")) == truth[name], truth[name], got
    if wanted := truth.get("tags"):
        there = {*tags, *(item for value in tags.values() if isinstance(value, list) for item in map(str, value))}
        yield "tags", set(wanted) <= there, wanted, sorted(set(wanted) & there)
    if wanted := truth.get("metadata"):
        held = {key: value for key, value in {**info.trace_metadata, **info.tags}.items() if key in wanted}
        yield "metadata", held == wanted, wanted, held


def _type_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """Each span that has a kind has a type, and the server's search finds the trace by it."""
    types, wanted = {span.name: span.span_type for span in seen.spans}, truth.get("span_types", {})
    names = seen.recorded.span_names
    plumbing = {name for pattern in truth.get("plain_spans", ()) for name in fnmatch.filter(names, pattern)}
    if plumbing.issuperset(names):
        return
    bad = {x.name: x.span_type for x in seen.spans if x.span_type in NO_TYPE and x.name not in plumbing}
    bad |= {name: types.get(name) for name in wanted if types.get(name) not in wanted[name]}
    yield "span_types", bool(seen.spans) and not bad, wanted or "a type on each", bad
    kinds = set(types.values()) - set(NO_TYPE)
    kinds |= {kind for kind, sign in (("TOOL", "tool_calls"), ("RETRIEVER", "documents")) if sign in truth}
    yield "search_type", bool(kinds) and kinds <= seen.found_types, sorted(kinds), sorted(seen.found_types)


def _chat_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """Chat views, and the tools that a model was offered."""
    views = seen.shown("chat", *LLM)
    if wanted := truth.get("chats"):
        lacking = Counter(map(tuple, wanted)) - Counter(map(_roles, views))
        yield "chats", not lacking, list(lacking), list(map(_roles, views))
    if truth.get("image"):
        yield "image", any("data:image" in (m.get("content") or "") for chat in views for m in chat), "an image", None
    if wanted := truth.get("tools"):
        yield "tools", set(wanted) <= (got := set().union(*seen.shown("tools", *LLM))), wanted, sorted(got)


def _tool_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """Tools that ran, and documents that were found."""
    spans, calls = seen.of_type("TOOL"), truth.get("tool_calls", [])
    if wanted := [call["name"] for call in calls]:
        names = [span.name for span in spans]
        yield "tool_names", not Counter(wanted) - Counter(names), wanted, names
    if wanted := [call["arguments"] for call in calls if "arguments" in call]:
        got = [span.inputs for span in spans]
        yield "tool_arguments", all(each in got for each in wanted), wanted, got
    if wanted := [call["result"] for call in calls if "result" in call]:
        got = [span.outputs for span in spans]
        yield "tool_results", all(each in got or {"result": each} in got for each in wanted), wanted, got
    if documents := truth.get("documents"):
        yield "documents", documents in (got := seen.shown("documents", "RETRIEVER")), documents, got


def _failure_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    if wanted := truth.get("error_span"):
        failed = [span for span in seen.spans if span.status.status_code.value == "ERROR"]
        got = {span.name: any(event.name == "exception" for event in span.events) for span in failed}
        good = all(got.values()) and any(wanted in name for name in got)
        yield "error_span", good, f"{wanted}, and an exception on each failed span", got


def _call_usages(seen: Seen) -> list[dict[str, int]]:
    """Token usage by call: of spans that have no such span below them, those of one response taken once."""
    usages = {x.span_id: usage for x in seen.spans if (usage := x.get_attribute(USAGE))}
    parents, above = {span.span_id: span.parent_id for span in seen.spans}, set()
    for span_id in usages:
        parent = parents.get(span_id)
        while parent:
            above.add(parent)
            parent = parents.get(parent)
    calls = {x.span_id: x.get_attribute("gen_ai.response.id") or x.span_id for x in seen.spans}
    return list({calls[span_id]: usage for span_id, usage in usages.items() if span_id not in above}.values())


def _call_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """Models and tokens; no call counted twice."""
    total, wanted = seen.info.token_usage or {}, dict(truth.get("usage", {}))
    if cached := wanted.pop("cache_read_input_tokens", None):
        yield "cache", total.get("cache_read_input_tokens") == cached, cached, total.get("cache_read_input_tokens")
    if wanted:
        yield "usage", {key: total.get(key) for key in wanted} == wanted, wanted, total
    spans = seen.of_type(*LLM) or seen.of_type("EMBEDDING")
    telling = [x for x in spans if x.get_attribute(USAGE) or seen.views.get(x.span_id, {}).get("chat")] or spans
    for name, having in (("model", telling), ("provider", spans)):
        if name in truth:
            got = {span.get_attribute(f"mlflow.llm.{name}") for span in having}
            yield name, got == {truth[name]}, truth[name], sorted(got - {None})
    if "model" in truth or wanted:
        calls = [] if seen.twin_counts else _call_usages(seen)
        most = {key: sum(call.get(key) or 0 for call in calls) for key in ("input_tokens", "output_tokens")}
        yield "usage_once", all((total.get(key) or 0) <= most[key] for key in most), f"at most {most}", total


def _cost_cells(truth: Truth, seen: Seen) -> Iterator[_Verdict]:
    """The trace's cost, and whether the spans' costs, which the console's charts add up, are together that."""
    cost = (parsed(seen.info.trace_metadata.get("mlflow.trace.cost")) or {}).get("total_cost") or 0.0
    if "cost" in truth:
        yield "cost", math.isclose(cost, truth["cost"], rel_tol=1e-6), truth["cost"], cost
    if "model" in truth or truth.get("usage"):
        summed = sum((span.get_attribute("mlflow.llm.cost") or {}).get("total_cost") or 0.0 for span in seen.spans)
        yield "cost_once", math.isclose(cost, summed, rel_tol=1e-6), f"{cost}, that of the trace", f"{summed} on spans"
