"""What a call of a `@traced` function costs beside a span of the same content that is written by hand."""

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
from benchmarks.rows import HEADING, row, shown

CALLS, ROUNDS = 4000, 15
QUESTION = "Will it rain in Lyon tomorrow, and should I take an umbrella? " * 4


def plain(question: str, style: str = "short") -> str:
    """What is traced."""
    return question if style else ""


def by_hand(tracer: trace.Tracer) -> Callable[[str], str]:
    """The same as OpenTelemetry's documentation has it, with OpenInference's attributes."""

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


def microseconds(function: Callable[[str], str]) -> float:
    """The mean of one call."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        function(QUESTION)
    return (time.perf_counter() - begin) / CALLS * 1e6


def measure() -> dict[str, Any]:
    """Alternating rounds, as a row of the table."""
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    hand = by_hand(trace.get_tracer("app"))
    ours = traced(kind="AGENT", name="answer")(plain)
    pairs = [(microseconds(ours), microseconds(hand)) for _ in range(ROUNDS)]
    first, second = zip(*pairs, strict=True)
    return {"rows": [row("a traced call, a span by hand", "us/call", first, second, bound=1.5)]}


if __name__ == "__main__":
    print(HEADING)
    print(shown("traced", measure()))
