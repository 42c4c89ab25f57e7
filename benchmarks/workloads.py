"""Spans for measurements: seeded, with natural text, as instrumentations of LLM agents create them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, Tracer

Value = str | bool | int | float | Sequence[str]

SPANS_OF_A_TRACE = 30
_STEPS = (5, 5, 5, 5, 4)  # number of leaves per step; with the steps and the root, 30 spans


@functools.cache
def _prose() -> str:
    # Python's own manual: natural text on every machine. Random words would compress far worse.
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def text(source: random.Random, size: int) -> str:
    """Return a passage of natural text of this many characters."""
    prose = _prose()
    begin = source.randrange(len(prose) - size)
    return prose[begin : begin + size]


def small(source: random.Random) -> dict[str, Value]:
    """Return 8 attributes, about 250 bytes: a tool span."""
    return {
        "openinference.span.kind": "TOOL",
        "tool.name": "search",
        "session.id": f"s-{source.randrange(10**6)}",
        "user.id": f"u-{source.randrange(1000)}",
        "retry": False,
        "attempt": 1,
        "score": source.random(),
        "input.value": text(source, 40),
    }


def medium(source: random.Random) -> dict[str, Value]:
    """Return 20 attributes, about 1.2 kB: texts, numbers, a list."""
    attributes: dict[str, Value] = {
        "openinference.span.kind": "CHAIN",
        "session.id": f"s-{source.randrange(10**6)}",
        "input.value": text(source, 300),
        "output.value": text(source, 300),
        "tag.tags": ("production", "eu", "v2"),
    }
    attributes |= {f"app.count.{number}": source.randrange(10**6) for number in range(5)}
    attributes |= {f"app.text.{number}": text(source, 24) for number in range(7)}
    attributes |= {"app.ratio.0": source.random(), "app.ratio.1": source.random(), "app.cached": True}
    return attributes


def llm(source: random.Random, size: int = 19_000) -> dict[str, Value]:
    """Return 44 attributes: an LLM call with a history of 15 messages, tokens and parameters.

    Args:
        source: Random number generator.
        size: Approximate number of bytes of all texts.
    """
    share = size // 20
    messages = [text(source, share) for _ in range(15)]
    attributes: dict[str, Value] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-4o-mini",
        "llm.system": "openai",
        "llm.provider": "openai",
        "llm.invocation_parameters": '{"temperature": 0.2, "max_tokens": 1024}',
        "llm.token_count.prompt": source.randrange(4000),
        "llm.token_count.completion": source.randrange(800),
        "llm.token_count.total": source.randrange(4800),
        "session.id": f"s-{source.randrange(10**6)}",
        "input.value": text(source, 3 * share),
        "input.mime_type": "text/plain",
        "output.value": messages[-1],
        "output.mime_type": "text/plain",
        "llm.output_messages.0.message.content": messages[-1],
    }
    for number, message in enumerate(messages):
        attributes[f"llm.input_messages.{number}.message.role"] = "user" if number % 2 else "assistant"
        attributes[f"llm.input_messages.{number}.message.content"] = message
    return attributes


KINDS: dict[str, Callable[[random.Random], dict[str, Value]]] = {"small": small, "medium": medium, "LLM": llm}


def make_spans(kind: Callable[[random.Random], dict[str, Value]], count: int, seed: int = 7) -> list[ReadableSpan]:
    """Return ended spans of one kind, in traces of 30."""
    source = random.Random(seed)
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("bench", "1.0")
    span_count = 0
    while span_count < count:
        with tracer.start_as_current_span("root", attributes=kind(source)):
            span_count += 1
            for number in range(min(SPANS_OF_A_TRACE - 1, count - span_count)):
                with tracer.start_as_current_span(f"step {number}", attributes=kind(source)) as span:
                    span.set_status(Status(StatusCode.OK))
                span_count += 1
    return list(memory.get_finished_spans())


def make_agent_trace(tracer: Tracer, source: random.Random, wait: Callable[[float], object], seconds: float) -> int:
    """Create the trace of an agent: 30 spans, a root with five steps of LLM calls, tools and retrievals.

    Args:
        tracer: Creates the spans.
        source: Random number generator.
        wait: Called inside each leaf span with the duration of the span in seconds.
        seconds: Duration of the trace.

    Returns:
        Trace id.
    """
    leaves = sum(_STEPS)
    session, question = f"s-{source.randrange(10**6)}", text(source, 200)
    history = [question]
    root = {"openinference.span.kind": "AGENT", "session.id": session, "input.value": question}
    with tracer.start_as_current_span("agent", attributes=root) as span:
        for step, count in enumerate(_STEPS):
            with tracer.start_as_current_span(f"step {step}", attributes={"openinference.span.kind": "CHAIN"}):
                for number in range(count):
                    with tracer.start_as_current_span(
                        f"leaf {number}", attributes=_leaf(source, number, session, history)
                    ) as leaf:
                        wait(seconds / leaves * source.uniform(0.6, 1.4))
                        leaf.set_status(Status(StatusCode.OK))
        span.set_attribute("output.value", history[-1])
        span.set_status(Status(StatusCode.OK))
        return span.get_span_context().trace_id


def _leaf(source: random.Random, number: int, session: str, history: list[str]) -> dict[str, Value]:
    if number in (0, 3):
        prompt, completion = source.randrange(200, 4000), source.randrange(20, 800)
        answer = text(source, 300)
        attributes: dict[str, Value] = {
            "openinference.span.kind": "LLM",
            "session.id": session,
            "llm.model_name": "gpt-4o-mini",
            "llm.provider": "openai",
            "llm.token_count.prompt": prompt,
            "llm.token_count.completion": completion,
            "llm.token_count.total": prompt + completion,
            "input.value": history[-1],
            "output.value": answer,
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": answer,
        }
        for position, message in enumerate(history[-4:]):
            attributes[f"llm.input_messages.{position}.message.role"] = "user"
            attributes[f"llm.input_messages.{position}.message.content"] = message
        history.append(answer)
        return attributes
    kind = "RETRIEVER" if number == 4 else "TOOL"
    return {
        "openinference.span.kind": kind,
        "session.id": session,
        "tool.name": "search",
        "input.value": text(source, 80),
        "output.value": text(source, 300),
    }
