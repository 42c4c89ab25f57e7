"""A call of a model that a framework's instrumentation observes makes no second span of the provider's client."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlflow_otlp_exporter._internal.setup.observed_calls import ClientTracerProvider, mark_langchain_calls


class Application:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clients = ClientTracerProvider(self.provider)
        mark_langchain_calls()

    def call_client(self, scope: str = "client") -> None:
        with self.clients.get_tracer(scope).start_as_current_span("call of the client"):
            pass

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.exporter.get_finished_spans()]


@pytest.fixture
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.provider.shutdown()


class Model(BaseChatModel):
    """A model that calls a client, and fails if it is asked to."""

    call_client: Callable[..., None]

    @property
    def _llm_type(self) -> str:
        return "test"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.call_client("other client")
        self.call_client()
        if messages[0].content == "fail":
            raise ValueError("no such model")
        return ChatResult(generations=[ChatGeneration(message=AIMessage("Yes."))])

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        return self._generate(messages)

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self.call_client()
        yield ChatGenerationChunk(message=AIMessageChunk(content="Yes."))


def _stream(model: Model) -> None:
    assert list(model.stream("hi"))


def _fail(model: Model) -> None:
    with pytest.raises(ValueError, match="no such model"):
        model.invoke("fail")


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.invoke("hi"),
        lambda model: asyncio.run(model.ainvoke("hi")),
        lambda model: model.batch(["hi", "hello"]),
        lambda model: model.generate([[HumanMessage("hi")], [HumanMessage("hello")]]),
        lambda model: asyncio.run(model.agenerate([[HumanMessage("hi")], [HumanMessage("hello")]])),
        _stream,
        _fail,
    ],
)
def test_client_within_call_of_langchain_starts_no_span(application: Application, ask: Callable[[Model], Any]) -> None:
    ask(Model(call_client=application.call_client))
    assert application.names == []
    application.call_client()
    assert application.names == ["call of the client"]


@pytest.mark.parametrize("attribute", ["openinference.span.kind", "gen_ai.operation.name"])
def test_client_within_span_of_model_call_starts_no_span(application: Application, attribute: str) -> None:
    kinds = {"openinference.span.kind": "LLM", "gen_ai.operation.name": "chat"}
    tracer = application.provider.get_tracer("framework")
    with tracer.start_as_current_span("call of the framework", attributes={attribute: kinds[attribute]}) as span:
        application.call_client()
        client = application.clients.get_tracer("client").start_span("call of the client")
        assert client.get_span_context() == span.get_span_context()
    assert application.names == ["call of the framework"]


def test_client_within_other_span_starts_span_below(application: Application) -> None:
    tracer = application.provider.get_tracer("framework")
    with tracer.start_as_current_span("agent", attributes={"openinference.span.kind": "AGENT"}) as span:
        application.call_client()
    client = application.exporter.get_finished_spans()[0]
    assert client.parent == span.get_span_context()
    assert isinstance(trace.get_current_span(), trace.NonRecordingSpan)


def test_client_within_span_of_dspy_starts_span_with_the_tokens(application: Application) -> None:
    tracer = application.provider.get_tracer("openinference.instrumentation.dspy")
    with tracer.start_as_current_span("LM.__call__", attributes={"openinference.span.kind": "LLM"}):
        application.call_client()
    assert application.names == ["call of the client", "LM.__call__"]
