"""@traced on functions that return streams of real libraries."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import flask
import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from opentelemetry.trace import StatusCode
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from mlflow_otlp_exporter import traced
from mlflow_otlp_exporter._internal.common.json_values import bounded_json
from support.memory import Memory


def chunk(text: str | None, **more: Any) -> str:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return f"data: {json.dumps(data)}\n\n"


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
EVENTS = chunk("It ") + chunk("rains.") + chunk(None, usage=USAGE) + "data: [DONE]\n\n"
ARGUMENTS: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True}


def respond(request: Any) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=EVENTS.encode())


def create_client() -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k", base_url="http://model", http_client=httpx2.Client(transport=httpx2.MockTransport(respond))
    )


def create_async_client() -> openai.AsyncOpenAI:
    transport = httpx2.MockTransport(respond)
    return openai.AsyncOpenAI(api_key="k", base_url="http://model", http_client=httpx2.AsyncClient(transport=transport))


def is_open(memory: Memory) -> bool:
    return "answer" not in memory.names()


def test_openai_stream_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> openai.Stream[Any]:
        stream: openai.Stream[Any] = create_client().chat.completions.create(**ARGUMENTS)
        return stream

    stream = answer()
    assert isinstance(stream, openai.Stream)
    assert stream.response.status_code == 200
    assert is_open(memory)
    assert len(list(stream)) == 3
    assert type(stream) is openai.Stream
    assert memory.output("answer") == "It rains."


@pytest.mark.parametrize("end", ["close", "with", "drop"])
def test_openai_stream_early_end_ends_span(memory: Memory, end: str) -> None:
    @traced
    def answer() -> Any:
        return create_client().chat.completions.create(**ARGUMENTS)

    stream = answer()
    if end == "with":
        with stream:
            next(stream)
    else:
        next(stream)
        if end == "close":
            stream.close()
        del stream
        gc.collect()
    assert memory.output("answer") == "It "
    assert memory.by_name("answer").status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("awaits", [True, False])
def test_openai_async_stream_is_followed(memory: Memory, awaits: bool) -> None:
    async def create() -> Any:
        return await create_async_client().chat.completions.create(**ARGUMENTS)

    def create_later() -> Any:
        return create()

    answer = traced(name="answer")(create if awaits else create_later)

    async def main() -> None:
        stream = await answer()
        assert isinstance(stream, openai.AsyncStream)
        assert is_open(memory)
        async with stream:
            assert len([item async for item in stream]) == 3

    asyncio.run(main())
    assert memory.output("answer") == "It rains."


def test_openai_stream_manager_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return create_client().chat.completions.stream(model="m", messages=ARGUMENTS["messages"])

    with answer() as stream:
        assert is_open(memory)
        assert len(list(stream)) > 3
        assert stream.get_final_completion().choices[0].message.content == "It rains."
    assert memory.output("answer") == "It rains."


class Event(SimpleNamespace):
    __module__ = "anthropic.types"


def delta(**fields: Any) -> Event:
    return Event(type="content_block_delta", delta=SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("events", "output"),
    [
        ([Event(type="message_start"), delta(thinking="t"), delta(text="It "), Event(type="text", text="It ")], "It "),
        ([delta(text="a"), Event(type="response.output_text.delta", delta="b")], "ab"),
        ([Event(type="response.function_call_arguments.delta", delta="{}")], None),
        ([delta(partial_json="{}")], None),
    ],
)
def test_stream_of_events_is_recorded_as_their_text(memory: Memory, events: list[Any], output: str | None) -> None:
    list(traced(name="answer")(lambda: iter(events))())
    assert memory.output("answer") == (output or bounded_json(events))


def test_openai_raw_response_manager_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return create_client().chat.completions.with_streaming_response.create(**ARGUMENTS)

    with answer() as response:
        assert is_open(memory)
        lines = list(response.iter_lines())
    assert lines
    assert memory.only().status.status_code is StatusCode.UNSET


def create_model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage("It will rain")]))


def test_langchain_stream_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> Iterator[Any]:
        return create_model().stream("a")

    assert len(list(answer())) > 2
    assert memory.output("answer") == "It will rain"


@pytest.mark.parametrize("create", [lambda: create_model().astream("a"), lambda: create_model().astream_events("a")])
def test_langchain_async_stream_is_followed(memory: Memory, create: Callable[[], AsyncIterator[Any]]) -> None:
    answer = traced(name="answer")(create)

    async def main() -> None:
        async for _ in answer():
            assert is_open(memory)

    asyncio.run(main())
    assert "rain" in memory.output("answer")


def words() -> Iterator[str]:
    for number in range(3):
        yield traced(name="model")(lambda number: f"word{number} ")(number)


async def awords() -> AsyncIterator[str]:
    for word in words():
        yield word


@pytest.mark.parametrize("create", [words, awords])
@pytest.mark.parametrize("is_async", [True, False])
def test_fastapi_streaming_response_is_followed(memory: Memory, create: Callable[[], Any], is_async: bool) -> None:
    app = FastAPI()

    @traced(name="answer")
    async def answer_async() -> StreamingResponse:
        return StreamingResponse(create(), media_type="text/event-stream")

    @traced
    def answer() -> StreamingResponse:
        return StreamingResponse(create(), media_type="text/event-stream")

    app.get("/")(answer_async if is_async else answer)
    response = TestClient(app).get("/")
    assert response.text == "word0 word1 word2 "
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [name for name in memory.names() if name in ("model", "answer")]  # FastAPI creates spans, too
    assert names == ["model", "model", "model", "answer"]
    parents = {span.parent.span_id for span in memory.spans() if span.name == "model" and span.parent}
    context = memory.by_name("answer").context
    assert context is not None
    assert parents == {context.span_id}
    assert memory.output("answer") == "word0 word1 word2 "


@pytest.mark.parametrize(
    "create",
    [
        lambda: flask.Response(words(), mimetype="text/event-stream"),
        lambda: flask.Response(flask.stream_with_context(words())),
        lambda: (words(), 200, {"X-Header": "1"}),
        words,
    ],
)
@pytest.mark.parametrize("closes", [True, False])
def test_flask_streaming_response_is_followed(memory: Memory, create: Callable[[], Any], closes: bool) -> None:
    app = flask.Flask("app")
    app.route("/")(traced(name="answer")(create))
    response = app.test_client().get("/", buffered=False)
    chunks = iter(response.iter_encoded())
    assert next(chunks) == b"word0 "
    assert is_open(memory)
    if not closes:
        list(chunks)
    response.close()
    del chunks, response
    gc.collect()
    assert memory.output("answer") == ("word0 " if closes else "word0 word1 word2 ")


def test_flask_complete_response_ends_span(memory: Memory) -> None:
    app = flask.Flask("app")
    app.route("/")(traced(name="answer")(lambda: flask.Response("all")))
    assert app.test_client().get("/").text == "all"
    assert memory.names() == ["answer"]


def transport() -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(200, content=iter([b"line 1\n", b"line 2\n"])))


def test_httpx_stream_is_followed(memory: Memory) -> None:
    client = httpx.Client(transport=transport())

    @traced
    def answer() -> httpx.Response:
        return client.send(client.build_request("GET", "http://a"), stream=True)

    response = answer()
    assert isinstance(response, httpx.Response)
    assert is_open(memory)
    assert list(response.iter_lines()) == ["line 1", "line 2"]
    assert memory.output("answer") == "line 1\nline 2\n"
    answer().close()
    assert memory.names() == ["answer", "answer"]


def test_httpx_stream_manager_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return httpx.Client(transport=transport()).stream("GET", "http://a")

    with answer() as response:
        assert is_open(memory)
        assert response.read() == b"line 1\nline 2\n"
    assert memory.output("answer") == "line 1\nline 2\n"


def test_httpx_complete_response_ends_span(memory: Memory) -> None:
    traced(name="answer")(httpx.Client(transport=transport()).get)("http://a")
    assert memory.names() == ["answer"]
