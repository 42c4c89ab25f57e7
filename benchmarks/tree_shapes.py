"""Measure whether the enrichment of a span costs the same in large traces as in small ones, for ten shapes of traces.

The first value is the time per span of a trace of 10,000 spans, the second that of a trace of 100 spans.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from mlflow_otlp_exporter._internal.enrichment.enricher import Enricher

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.rows import HEADING, format_rows, row

SMALL, LARGE = 100, 10_000
ROUNDS = 4
# A large trace leaves the caches of the processor; more would mean that the cost grows with the trace.
BOUND = 1.3
_KIND = "openinference.span.kind"
_RESOURCE = Resource({})
_Attributes: TypeAlias = dict[str, str | int]


def _span(number: int, parent: int, attributes: _Attributes) -> ReadableSpan:
    start = 10**18 + number * 1000
    context, above = SpanContext(1, number, False), SpanContext(1, parent, False) if parent else None
    return ReadableSpan(
        "span", context, above, _RESOURCE, attributes=attributes, start_time=start, end_time=start + 500
    )


def _call(number: int, *, tool: str = "", tool_count: int = 0) -> _Attributes:
    question, answer = "llm.input_messages.0.message", "llm.output_messages.0.message"
    attributes: _Attributes = {
        _KIND: "LLM",
        "llm.model_name": "gpt-4o",
        f"{question}.role": "user",
        f"{question}.content": f"question {number}",
        f"{answer}.role": "assistant",
        f"{answer}.content": f"answer {number}",
        "llm.token_count.prompt": 10 + number % 7,
        "llm.token_count.completion": 5,
    }
    if tool:
        request = f"{answer}.tool_calls.0.tool_call"
        attributes[f"{request}.id"] = f"call-{number}"
        attributes[f"{request}.function.name"] = tool
        attributes[f"{request}.function.arguments"] = json.dumps({"query": f"q{number}"})
    for index in range(tool_count):
        schema = {"type": "object", "properties": {"query": {"type": "string"}}}
        function = {"type": "function", "function": {"name": f"tool-{index}", "parameters": schema}}
        attributes[f"llm.tools.{index}.tool.json_schema"] = json.dumps(function)
    return attributes


def _tool(name: str, argument: str) -> _Attributes:
    return {_KIND: "TOOL", "tool.name": name, "input.value": argument, "output.value": "found"}


def _below_agent(count: int, make: Callable[[int], _Attributes]) -> list[ReadableSpan]:
    """Return the children of an agent, which ends last."""
    children = [_span(number, 1, make(number)) for number in range(2, count + 1)]
    return [*children, _span(1, 0, {_KIND: "AGENT", "input.value": "hello"})]


def _chain(count: int, make: Callable[[int], _Attributes]) -> list[ReadableSpan]:
    """Return spans each of which is the parent of the next one."""
    return [_span(number, number - 1, make(number)) for number in range(count, 0, -1)]


def _shapes(count: int) -> Iterator[tuple[str, list[ReadableSpan]]]:
    def alternate(argument: Callable[[int], str]) -> Callable[[int], _Attributes]:
        return lambda number: _call(number, tool="search") if number % 2 else _tool("search", argument(number - 1))

    yield "agent, model calls", _below_agent(count, _call)
    yield "agent, calls that declare tools", _below_agent(count, lambda number: _call(number, tool_count=5))
    yield "agent, calls and tools", _below_agent(count, alternate(lambda number: json.dumps({"query": f"q{number}"})))
    yield "agent, calls and tools, bare arguments", _below_agent(count, alternate(lambda number: f"q{number}"))
    yield (
        "agent, a tool for each call",
        _below_agent(
            count,
            lambda number: (
                _call(number, tool=f"t{number}") if number % 2 else _tool(f"t{number - 1}", f"q{number - 1}")
            ),
        ),
    )
    yield "chain of calls", _chain(count, _call)
    yield "chain of agents", _chain(count, lambda _: {_KIND: "AGENT"})
    yield "chain of agents and calls", _chain(count, lambda number: {_KIND: "AGENT"} if number % 2 else _call(number))
    yield (
        "agents of nine calls each",
        [
            _span(
                number,
                max(1, number - number % 10) if number > 1 else 0,
                {_KIND: "AGENT"} if number % 10 == 0 or number == 1 else _call(number),
            )
            for number in range(count, 0, -1)
        ],
    )
    yield "spans without attributes", _below_agent(count, lambda _: {})


def _microseconds(spans: list[ReadableSpan]) -> float:
    enricher = Enricher()
    begin = time.thread_time()
    enricher.enrich(spans)
    return (time.thread_time() - begin) / len(spans) * 1e6


def measure() -> dict[str, object]:
    """Return the rows of the table: microseconds per span, for each shape."""
    rows = []
    for (name, large), (_, small) in zip(_shapes(LARGE), _shapes(SMALL), strict=True):
        _microseconds(small)
        small_runs = [_microseconds(small) for _ in range(ROUNDS * LARGE // SMALL // 4)]
        rows.append(
            row(name, "us/span", [_microseconds(large) for _ in range(ROUNDS)], small_runs, bound=BOUND, best=True)
        )
    return {"rows": rows}


if __name__ == "__main__":
    result = measure()
    print(HEADING, format_rows("tree_shapes", result), json.dumps(result), sep="\n")
