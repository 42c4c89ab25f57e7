"""Decorated functions keep their signatures: checked by mypy, never run.

Mypy reports an ignored error that does not occur, so each ignore comment proves that mypy rejects the wrong call.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from opentelemetry.trace import Span
from typing_extensions import assert_type

from mlflow_otlp_exporter import (
    current_trace_id,
    set_documents,
    set_inputs,
    set_outputs,
    set_usage,
    span,
    trace_context,
    traced,
    update_trace,
)
from mlflow_otlp_exporter.types import SpanKind


@traced
def plain(question: str, *, style: int = 1) -> list[str]:
    return [question] * style


@traced(kind="TOOL", name="weather", capture_inputs=False, capture_outputs=True)
def with_arguments(city: str) -> float:
    return len(city)


@traced(
    capture_inputs=["city"], capture_outputs=["-raw"], redact={"city": str.upper}, sampled=callable, output_reducer=sum
)
def with_options(city: str) -> float:
    return len(city)


@trace_context(session="s-42", user="ada")
@traced(kind="AGENT", redact=["question"], sampled=True)
async def coroutine(question: str) -> bytes:
    return question.encode()


@traced
def generator(count: int) -> Iterator[int]:
    yield count


@trace_context(tags={"release": "2.3.1"})
@traced
async def async_generator(count: int) -> AsyncIterator[str]:
    yield str(count)


class Agent:
    @traced(kind="AGENT")
    def answer(self, question: str) -> str:
        return question

    @classmethod
    @traced
    def create(cls, name: str) -> "Agent":
        return cls() if name else Agent()

    @staticmethod
    @traced
    def check(value: int) -> bool:
        return value > 0


assert_type(plain("a", style=2), list[str])
assert_type(with_arguments("Lyon"), float)
assert_type(with_options("Lyon"), float)
own_kind = "PLANNER"
kind: SpanKind = "TOOL"
to_await: Coroutine[Any, Any, bytes] = coroutine("a")
assert_type(generator(1), Iterator[int])
assert_type(async_generator(1), AsyncIterator[str])
assert_type(Agent().answer("a"), str)
assert_type(Agent.create("a"), Agent)
assert_type(Agent.check(1), bool)

plain(1)  # type: ignore[arg-type]
plain("a", 2)  # type: ignore[call-arg]
with_arguments()  # type: ignore[call-arg]
coroutine(question=1)  # type: ignore[arg-type,unused-coroutine]
Agent().answer(1)  # type: ignore[arg-type]
traced(kind=5)  # type: ignore[call-overload]
trace_context(sesion="s")  # type: ignore[call-arg]


async def helpers() -> None:
    with span("a", kind=kind, inputs={"a": 1}, attributes={"b": 2}) as current:
        assert_type(current, Span)
    async with span("a", kind=own_kind) as current:
        assert_type(current, Span)
    assert_type(current_trace_id(), str | None)
    update_trace(tags={"a": 1}, session="s", user="u", name="n")
    with trace_context(session="s", metadata={"a": 1}, tags=["a"], prompt="p/1", baggage=("session",)) as inside:
        assert_type(inside, trace_context)
    async with trace_context(experiment="e", workspace="w", experiment_id=7, run_id="r"):
        set_inputs({"a": 1})
        set_outputs("a")
        set_documents([{"page_content": "a"}])
        set_usage(input_tokens=1, output_tokens=2, model="m")
