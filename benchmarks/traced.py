"""Measure the cost of a call of a `@traced` function, compared with a hand-written span of the same content."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from mlflow_otlp_exporter import traced

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.rows import HEADING, format_rows, row

CALLS, ROUNDS = 4000, 15
QUESTION = "Will it rain in Lyon tomorrow, and should I take an umbrella? " * 4


def plain(question: str, style: str = "short") -> str:
    """Return the question: the function to trace."""
    return question if style else ""


def trace_by_hand(tracer: trace.Tracer) -> Callable[[str], str]:
    """Return the function with a span as in OpenTelemetry's documentation, with OpenInference's attributes."""

    def answer(question: str, style: str = "short") -> str:
        with tracer.start_as_current_span(
            "answer",
            attributes={
                "openinference.span.kind": "AGENT",
                "input.value": json.dumps({"question": question, "style": style}),
                "input.mime_type": "application/json",
            },
        ) as span:
            result = plain(question, style)
            span.set_attribute("output.value", result)
            span.set_attribute("output.mime_type", "text/plain")
            return result

    return answer


def measure_microseconds(function: Callable[[str], str]) -> float:
    """Return the mean time of one call."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        function(QUESTION)
    return (time.perf_counter() - begin) / CALLS * 1e6


def measure() -> dict[str, Any]:
    """Return one row of the table. The functions alternate."""
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    hand = trace_by_hand(trace.get_tracer("app"))
    ours = traced(kind="AGENT", name="answer")(plain)
    pairs = [(measure_microseconds(ours), measure_microseconds(hand)) for _ in range(ROUNDS)]
    first, second = zip(*pairs, strict=True)
    return {"rows": [row("a traced call, a hand-written span", "us/call", first, second, bound=1.5)]}


if __name__ == "__main__":
    print(HEADING)
    print(format_rows("traced", measure()))
