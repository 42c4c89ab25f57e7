"""@traced: a call becomes a span, whatever kind of function it is."""

import asyncio
import functools
import inspect
import json
from collections.abc import AsyncIterator, Generator, Iterator
from enum import Enum
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter import set_documents, set_inputs, set_outputs, set_usage, traced
from mlflow_otlp_exporter._internal.enrichment.kinds import Kind
from mlflow_otlp_exporter._internal.tracing import spans as spans_module
from mlflow_otlp_exporter._internal.tracing.spans import use_provider
from support.memory import Memory, provider


class Kinds(str, Enum):
    """As others have them, whose `str()` is not their value."""

    AGENT = "agent"


def inputs(span: ReadableSpan) -> Any:
    assert span.attributes is not None
    return json.loads(str(span.attributes["input.value"]))


def test_traced_function_records_inputs_and_outputs(memory: Memory) -> None:
    @traced
    def answer(question: str, style: str = "short") -> str:
        """Answers."""
        return f"{question}: {style}"

    assert answer("rain?") == "rain?: short"
    assert memory.only().name == answer.__name__ == "answer"
    assert memory.attributes() == {
        "openinference.span.kind": "CHAIN",
        "input.value": '{"question": "rain?", "style": "short"}',
        "input.mime_type": "application/json",
        "output.value": "rain?: short",
        "output.mime_type": "text/plain",
    }
    assert memory.only().status.status_code is StatusCode.UNSET


def test_result_is_recorded_as_json_and_none_is_not_recorded(memory: Memory) -> None:
    traced(lambda: {"a": (1, 2)})()
    traced(lambda: None)()
    first, second = (dict(span.attributes or {}) for span in memory.spans())
    assert (first["output.value"], first["output.mime_type"]) == ('{"a": [1, 2]}', "application/json")
    assert "output.value" not in second


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("AGENT", {"openinference.span.kind": "AGENT"}),
        ("agent", {"openinference.span.kind": "AGENT"}),
        ("CHAT_MODEL", {"openinference.span.kind": "LLM", "mlflow.spanType": "CHAT_MODEL"}),
        ("MEMORY", {"openinference.span.kind": "CHAIN", "mlflow.spanType": "MEMORY"}),
        ("", {"openinference.span.kind": "CHAIN"}),
        ("planner", {"openinference.span.kind": "CHAIN", "mlflow.spanType": "PLANNER"}),
        (Kinds.AGENT, {"openinference.span.kind": "AGENT"}),
    ],
)
def test_kind_sets_span_kind_and_span_type(memory: Memory, kind: str, expected: dict[str, str]) -> None:
    traced(kind=kind, capture_inputs=False)(lambda: None)()
    assert memory.attributes() == expected


def test_known_kinds_match_enrichment() -> None:
    assert sorted(spans_module._KNOWN_KINDS) == sorted(kind.value for kind in Kind)


# What is probably meant, if anything; the same in small letters.
MEANT: list[tuple[str, str | None]] = [
    *((kind.value, None) for kind in Kind),
    ("AGNET", "AGENT"),
    ("AGET", "AGENT"),
    ("AGENTS", "AGENT"),
    ("TOOLS", "TOOL"),
    ("TOOOL", "TOOL"),
    ("CHIAN", "CHAIN"),
    ("LLMS", "LLM"),
    ("RETREIVER", "RETRIEVER"),
    ("RETRIVER", "RETRIEVER"),
    ("RETRIEVAL", "RETRIEVER"),
    ("RERANK", "RERANKER"),
    ("RANKER", "RERANKER"),
    ("EMBEDING", "EMBEDDING"),
    ("EMBEDDINGS", "EMBEDDING"),
    ("EVALUATION", "EVALUATOR"),
    ("EVALUATER", "EVALUATOR"),
    ("GAURDRAIL", "GUARDRAIL"),
    ("CHATMODEL", "CHAT_MODEL"),
    ("CHAT-MODEL", "CHAT_MODEL"),
    ("CHAT MODEL", "CHAT_MODEL"),
    ("WORKFLOWS", "WORKFLOW"),
    ("MEMROY", "MEMORY"),
    *(
        (kind, None)
        for kind in (
            *("PLANNER", "ROUTER", "SCORER", "CRITIC", "WRITER", "SUPERVISOR", "ORCHESTRATOR", "HANDOFF", "SUBAGENT"),
            *("TALK", "ASK", "CHAT", "MASK", "LM", "VLM", "SLM", "TRAIN", "EVENT", "ACTION", "STEP", "QUERY"),
            *("READER", "LOADER", "SEARCH", "SUMMARIZER", "CLASSIFIER", "TRANSLATOR", "EXTRACTOR", "EMBEDDER"),
            *("GUARDIAN", "PARTNER", "REVIEWER", "RESOLVER", "TOOL_CALL", "AGENT_STEP", "LLM_CALL", "FUNCTION", "HTTP"),
        )
    ),
]


@pytest.mark.parametrize(("kind", "meant"), MEANT)
def test_mistyped_kind_is_logged_and_used_as_is(
    memory: Memory, caplog: pytest.LogCaptureFixture, kind: str, meant: str | None
) -> None:
    spans_module._warn_unknown_kind.cache_clear()

    def answer() -> None: ...

    for spelling in (kind, kind.lower(), f" {kind.title()} "):
        decorated = traced(kind=spelling)(answer)
    expected = (
        f"@traced(kind={kind!r}) of {answer.__qualname__}: unknown kind, used as it is. Did you mean {meant}? [MLO-714]"
    )
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert messages == ([] if meant is None else [("WARNING", expected)])
    decorated()
    attributes = memory.attributes()
    assert attributes.get("mlflow.spanType", attributes["openinference.span.kind"]) == kind


def test_mistyped_kind_is_logged_once_per_function(caplog: pytest.LogCaptureFixture) -> None:
    spans_module._warn_unknown_kind.cache_clear()

    def one() -> None: ...

    def other() -> None: ...

    for function in (one, other, one):
        traced(kind="AGNET", name="the same")(function)
    assert [line.split(":")[0].rpartition(".")[2] for line in caplog.messages] == ["one", "other"]


def test_tool_has_name_and_description(memory: Memory) -> None:
    @traced(kind="TOOL", name="get_weather", attributes={"team": "a"}, capture_inputs=False, capture_outputs=False)
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        return city

    weather("Lyon")
    assert memory.only().name == "get_weather"
    assert memory.attributes() == {
        "openinference.span.kind": "TOOL",
        "tool.name": "get_weather",
        "tool.description": "Tells the weather of a city.",
        "team": "a",
    }


class Agent:
    @traced
    def method(self, question: str) -> str:
        return question

    @classmethod
    @traced
    def below(cls, question: str) -> str:
        return question + cls.__name__

    @traced
    @classmethod
    def above(cls, question: str) -> str:
        return question + cls.__name__

    @traced
    @staticmethod
    def static(self_like: str) -> str:
        return self_like


def test_methods_omit_self_and_cls(memory: Memory) -> None:
    assert Agent().method("a") == "a"
    assert (Agent.below("b"), Agent.above("c"), Agent().above("c")) == ("bAgent", "cAgent", "cAgent")
    assert Agent.static("d") == "d"
    assert [inputs(span) for span in memory.spans()] == [
        {"question": "a"},
        {"question": "b"},
        {"question": "c"},
        {"question": "c"},
        {"self_like": "d"},
    ]


def several(first: int, /, second: int = 2, *others: int, key: str = "k", **more: Any) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1,), {}, {"first": 1, "second": 2, "others": [], "key": "k"}),
        ((1, 3, 4, 5), {"key": "x", "a": 1}, {"first": 1, "second": 3, "others": [4, 5], "key": "x", "a": 1}),
    ],
)
def test_arguments_are_recorded_by_name(
    memory: Memory, args: tuple[int, ...], kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    traced(several)(*args, **kwargs)
    assert inputs(memory.only()) == expected


def test_call_with_wrong_arguments_raises_type_error(memory: Memory) -> None:
    def one(question: str) -> str:
        return question

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        traced(several)()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        traced(one)("a", "b")  # type: ignore[call-arg]
    assert memory.spans()[0].status.status_code is StatusCode.ERROR


def test_function_without_signature_records_args_and_kwargs(memory: Memory) -> None:
    assert traced(max)(3, 4) == 4
    assert inputs(memory.only()) == {"args": [3, 4], "kwargs": {}}


def test_exception_is_recorded_and_raised(memory: Memory) -> None:
    @traced
    def fail() -> None:
        raise ValueError("no umbrella")

    with pytest.raises(ValueError, match="no umbrella"):
        fail()
    span = memory.only()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no umbrella")
    assert [event.name for event in span.events] == ["exception"]
    assert span.events[0].attributes is not None
    assert span.events[0].attributes["exception.message"] == "no umbrella"


def test_values_without_repr_do_not_change_the_call(memory: Memory) -> None:
    class Mean:
        def __repr__(self) -> str:
            raise RuntimeError

    mean = Mean()
    assert traced(lambda value: value)(mean) is mean
    assert inputs(memory.only()) == {"value": "<Mean: no repr (RuntimeError)>"}


def test_nested_calls_are_child_spans(memory: Memory) -> None:
    inner_function = traced(name="inner")(trace.get_current_span)
    traced(name="outer", capture_outputs=False)(inner_function)()
    child, parent = memory.spans()
    assert child.parent is not None
    assert parent.context is not None
    assert (child.name, child.parent.span_id) == ("inner", parent.context.span_id)


# Asynchronous ones and generators


def test_coroutine_span_lasts_until_result(memory: Memory) -> None:
    @traced(kind="AGENT")
    async def answer(question: str) -> str:
        await asyncio.sleep(0)
        trace.get_current_span().set_attribute("seen", True)
        return question.upper()

    async def main() -> list[str]:
        return list(await asyncio.gather(answer("a"), answer("b")))

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(main()) == ["A", "B"]
    assert sorted(str((span.attributes or {})["output.value"]) for span in memory.spans()) == ["A", "B"]
    assert all((span.attributes or {})["seen"] for span in memory.spans())


def test_cancelled_task_is_error(memory: Memory) -> None:
    @traced
    async def endless() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(endless(), 0.01)

    asyncio.run(main())
    assert memory.only().status.description == "CancelledError: "


def test_generator_span_lasts_to_its_end_and_joins_strings(memory: Memory) -> None:
    @traced(kind="LLM")
    def words(count: int) -> Generator[str, str | None, str]:
        for number in range(count):
            name = yield f"{number} "
            if name:
                traced(name=name)(lambda: None)()
        return "done"

    generator = words(3)
    assert inspect.isgeneratorfunction(words)
    assert next(generator) == "0 "
    assert memory.spans() == []
    assert not trace.get_current_span().is_recording()
    assert generator.send("below") == "1 "
    assert list(generator) == ["2 "]
    below, span = memory.spans()
    assert span.context is not None
    assert below.parent is not None
    assert below.parent.span_id == span.context.span_id
    assert (span.attributes or {})["output.value"] == "0 1 2 "


@pytest.mark.parametrize(
    ("items", "expected"), [(["a", 1], '["a", 1]'), ([], '"the result"'), ([{"delta": "x"}], '[{"delta": "x"}]')]
)
def test_generator_items_are_recorded_as_json(memory: Memory, items: list[Any], expected: str) -> None:
    @traced
    def things() -> Generator[Any, None, list[str] | str]:
        yield from items
        return "the result"

    list(things())
    assert memory.attributes()["output.value"] == expected.strip('"')


def test_generator_closed_or_dropped_ends_without_error(memory: Memory) -> None:
    @traced
    def words() -> Iterator[str]:
        while True:
            yield "a"

    first = words()
    next(first)
    assert isinstance(first, Generator)
    first.close()
    next(words())
    assert [(span.status.status_code, (span.attributes or {})["output.value"]) for span in memory.spans()] == [
        (StatusCode.UNSET, "a")
    ] * 2


def test_generator_exception_is_recorded(memory: Memory) -> None:
    @traced
    def words() -> Iterator[str]:
        yield "a"
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        list(words())
    assert memory.only().status.description == "ValueError: torn"
    assert memory.attributes()["output.value"] == "a"


def test_async_generator_joins_strings(memory: Memory) -> None:
    @traced
    async def words(count: int) -> AsyncIterator[str]:
        for number in range(count):
            await asyncio.sleep(0)
            yield str(number)

    async def main() -> list[str]:
        words_of_generator = [word async for word in words(3)]
        async for _ in words(9):
            break
        return words_of_generator

    assert inspect.isasyncgenfunction(words)
    assert asyncio.run(main()) == ["0", "1", "2"]
    assert [(span.attributes or {})["output.value"] for span in memory.spans()] == ["012", "0"]


# What goes without saying


def test_call_without_provider_reads_no_arguments() -> None:
    class Costly:
        def __repr__(self) -> str:
            raise AssertionError("looked at")

    assert traced(id)(Costly())


def test_unsampled_span_has_unsampled_children() -> None:
    exporter = InMemorySpanExporter()
    tracer_provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    trace.set_tracer_provider(tracer_provider)
    valid = traced(lambda: trace.get_current_span().get_span_context().is_valid)()
    assert valid
    assert exporter.get_finished_spans() == ()


def test_use_provider_replaces_global_provider(memory: Memory) -> None:
    exporter = InMemorySpanExporter()
    function = traced(name="moved")(lambda: None)
    with provider(exporter) as other:
        use_provider(other)
        try:
            function()
        finally:
            use_provider(None)
        function()
    assert [span.name for span in exporter.get_finished_spans()] == ["moved"]
    assert memory.only().name == "moved"


def test_partial_and_callable_object_are_traced(memory: Memory) -> None:
    class Tool:
        def __call__(self, city: str) -> str:
            return city

    traced(functools.partial(several, 1, key="p"))(second=5)
    traced(Tool())("Lyon")
    first, second = memory.spans()
    assert (inputs(first)["second"], first.name) == (5, "partial")
    assert (inputs(second), second.name) == ({"city": "Lyon"}, "Tool")


# Spans made by hand


def test_inputs_and_outputs_set_by_hand_win(memory: Memory) -> None:
    @traced
    def answer(question: str) -> str:
        set_inputs({"asked": question})
        set_outputs({"said": 1})
        return "not this"

    answer("a")
    assert (memory.attributes()["input.value"], memory.attributes()["output.value"]) == (
        '{"asked": "a"}',
        '{"said": 1}',
    )


def test_set_usage_writes_token_counts(memory: Memory) -> None:
    with trace.get_tracer("app").start_as_current_span("chat") as span:
        set_usage(
            input_tokens=10, output_tokens=5, cache_read_tokens=4, reasoning_tokens=2, model="m", provider="openai"
        )
    set_usage(input_tokens=1)  # no span: nothing happens
    set_usage(input_tokens=1, span=span)  # ended: nothing happens
    assert memory.attributes() == {
        "llm.token_count.prompt": 10,
        "llm.token_count.completion": 5,
        "llm.token_count.total": 15,
        "llm.token_count.prompt_details.cache_read": 4,
        "llm.token_count.completion_details.reasoning": 2,
        "llm.model_name": "m",
        "llm.provider": "openai",
    }


class Document:
    def __init__(self, page_content: str) -> None:
        self.page_content, self.metadata, self.id = page_content, {"source": "a.md"}, "d-1"


DOCUMENTS: list[Any] = ["plain", {"text": "mapped", "score": 1, "id": 7}, (Document("object"), 0.5), {"title": "odd"}]
EXPECTED = {
    "0.document.content": "plain",
    "1.document.content": "mapped",
    "1.document.id": "7",
    "1.document.score": 1.0,
    "2.document.content": "object",
    "2.document.id": "d-1",
    "2.document.score": 0.5,
    "2.document.metadata": '{"source": "a.md"}',
    "3.document.content": '{"title": "odd"}',
}


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("RETRIEVER", "retrieval.documents"), ("RERANKER", "reranker.output_documents"), ("CHAIN", "retrieval.documents")],
)
def test_set_documents_writes_documents(memory: Memory, kind: str, prefix: str) -> None:
    @traced(kind=kind, capture_inputs=False)
    def search() -> None:
        set_documents(DOCUMENTS)

    search()
    documents = {name: value for name, value in memory.attributes().items() if ".document." in name}
    assert documents == {f"{prefix}.{name}": value for name, value in EXPECTED.items()}


def test_retriever_result_is_recorded_as_documents(memory: Memory) -> None:
    traced(kind="RETRIEVER")(lambda: DOCUMENTS)()
    assert memory.attributes()["retrieval.documents.1.document.content"] == "mapped"


def test_set_documents_with_unusable_value_is_logged(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    traced(lambda: set_documents(5))()  # type: ignore[arg-type]
    assert "set_documents() ignores its argument" in caplog.text
    assert memory.only().status.status_code is StatusCode.UNSET
