"""Parents that OpenInference's instrumentation knows, because it does not make its spans current."""

import asyncio
import concurrent.futures
import contextvars
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace

from mlflow_otlp_exporter import set_usage, trace_context, traced
from support.memory import Memory


@pytest.fixture
def instrumented_memory(memory: Memory) -> Iterator[Memory]:
    LangChainInstrumentor().instrument(tracer_provider=trace.get_tracer_provider())
    yield memory
    LangChainInstrumentor().uninstrument()


@traced
def lookup(city: str) -> str:
    return f"rain in {city}"


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    set_usage(input_tokens=3)
    return lookup(city)


@pytest.mark.parametrize("has_root", [False, True])
def test_traced_inside_a_tool_is_its_child(instrumented_memory: Memory, has_root: bool) -> None:
    run = RunnableLambda(lambda city: get_weather.invoke({"city": city}))
    (traced(name="answer")(run.invoke) if has_root else run.invoke)("Lyon")
    assert instrumented_memory.is_child("lookup", "get_weather")
    assert (instrumented_memory.by_name("get_weather").attributes or {})["llm.token_count.prompt"] == 3
    trace_ids = {span.context.trace_id for span in instrumented_memory.spans() if span.context}
    assert len(trace_ids) == 1


def test_traced_inside_a_nearer_current_span_is_its_child(instrumented_memory: Memory) -> None:
    def run(city: str) -> str:
        with trace.get_tracer("app").start_as_current_span("nearer"):
            return lookup(city)

    RunnableLambda(run, name="outer").invoke("Lyon")
    assert instrumented_memory.is_child("lookup", "nearer")
    lookup("Nice")
    assert instrumented_memory.spans()[-1].parent is None


def test_async_tool_and_threads_with_context_have_the_parent(instrumented_memory: Memory) -> None:
    async def run(city: str) -> str:
        await asyncio.to_thread(lookup, city)
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return executor.submit(contextvars.copy_context().run, lookup, city).result()

    asyncio.run(RunnableLambda(run, name="outer").ainvoke("Lyon"))
    parents = {span.parent.span_id for span in instrumented_memory.spans() if span.name == "lookup" and span.parent}
    context = instrumented_memory.by_name("outer").context
    assert context is not None
    assert parents == {context.span_id}


@pytest.mark.parametrize("error", [AttributeError, BaseException])
def test_instrumentation_that_fails_is_ignored(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def get_current_span() -> Any:
        raise error

    module: Any = types.ModuleType("broken")
    if error is BaseException:
        module.get_current_span = get_current_span
    monkeypatch.setitem(sys.modules, "openinference.instrumentation.langchain", module)
    assert lookup("Lyon") == "rain in Lyon"
    assert memory.only().parent is None


def test_trace_context_inside_a_node_sets_tags_on_the_root(instrumented_memory: Memory) -> None:
    def run(city: str) -> str:
        with trace_context(session="s-1"):
            return lookup(city)

    RunnableLambda(run, name="outer").invoke("Lyon")
    assert instrumented_memory.is_child("lookup", "outer")
