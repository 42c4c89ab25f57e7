"""@traced on functions whose result is work still to be done: one span, open until the work is."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter import trace_context, traced
from support.memory import Memory


@traced(kind="LLM")
def model(number: int) -> str:
    return f"word{number} "


def words(count: int = 3) -> Generator[str, Any, str]:
    for number in range(count):
        yield model(number)
    return "done"


async def awords(count: int = 3) -> AsyncIterator[str]:
    for number in range(count):
        await asyncio.sleep(0)
        yield model(number)


def is_current() -> bool:
    return trace.get_current_span().is_recording()


def check_stream(memory: Memory, name: str, output: str = "word0 word1 word2 ") -> None:
    assert memory.names() == ["model", "model", "model", name]
    assert are_children(memory, name)
    assert memory.output(name) == output
    assert memory.by_name(name).status.status_code is StatusCode.UNSET


def are_children(memory: Memory, name: str) -> bool:
    context = memory.by_name(name).context
    return all(span.parent and context and span.parent.span_id == context.span_id for span in memory.spans()[:-1])


# Generators


def test_returned_generator_span_lasts_until_it_is_consumed(memory: Memory) -> None:
    @traced
    def answer(question: str) -> Iterator[str]:
        return words()

    stream = answer("a")
    assert inspect.isgenerator(stream)
    assert (stream.__name__, stream.__qualname__) == ("words", "words")
    assert memory.spans() == []
    for _ in stream:
        assert not is_current()
    check_stream(memory, "answer")


def test_returned_generator_passes_values_and_exceptions(memory: Memory) -> None:
    def echo() -> Generator[Any, Any, str]:
        received = yield "first"
        try:
            yield received
        except ValueError as error:
            yield f"caught {error}"
        return "done"

    @traced
    def answer() -> Generator[Any, Any, str]:
        return echo()

    stream = answer()
    assert (next(stream), stream.send("sent"), stream.throw(ValueError("x"))) == ("first", "sent", "caught x")
    with pytest.raises(StopIteration) as stop:
        next(stream)
    assert stop.value.value == "done"
    assert memory.output("answer") == "firstsentcaught x"


@pytest.mark.parametrize("item_count", [0, 1])
@pytest.mark.parametrize("end", ["close", "drop"])
def test_returned_generator_early_end_ends_span_without_error(memory: Memory, item_count: int, end: str) -> None:
    @traced
    def answer() -> Generator[str, Any, str]:
        return words()

    stream = answer()
    for _ in range(item_count):
        next(stream)
    if end == "close":
        stream.close()
    else:
        del stream
        gc.collect()
    span = memory.by_name("answer")
    assert (span.status.status_code, memory.output("answer")) == (StatusCode.UNSET, "word0 " if item_count else None)


def test_returned_generator_error_is_recorded_with_partial_output(memory: Memory) -> None:
    def fail_later() -> Iterator[str]:
        yield "a"
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        list(traced(name="answer")(fail_later)())

    @traced(name="returned")
    def answer() -> Iterator[str]:
        return fail_later()

    with pytest.raises(ValueError, match="torn"):
        list(answer())
    for name in "answer", "returned":
        assert memory.by_name(name).status.description == "ValueError: torn"
        assert memory.output(name) == "a"


def test_generator_function_called_with_wrong_arguments_ends_its_span(memory: Memory) -> None:
    with pytest.raises(TypeError, match="argument"):
        list(traced(words)(1, 2, 3))  # type: ignore[call-arg]
    assert memory.only().status.status_code is StatusCode.ERROR


def test_exhausted_generator_is_an_ordinary_result(memory: Memory) -> None:
    stream = words(0)
    list(stream)
    assert traced(name="answer")(lambda: stream)() is stream
    assert memory.names() == ["answer"]


def test_generator_in_a_tuple_is_followed(memory: Memory) -> None:
    @traced
    def view() -> Any:
        return words(), 200, {"Content-Type": "text/event-stream"}

    body, status, _headers = view()
    assert status == 200
    list(body)
    check_stream(memory, "view")


def test_nested_traced_functions_each_have_the_stream(memory: Memory) -> None:
    @traced
    def call_model() -> Iterator[str]:
        return Stream(words())

    @traced
    def outer() -> Iterator[str]:
        return call_model()

    assert list(outer()) == ["word0 ", "word1 ", "word2 "]
    assert memory.output("call_model") == memory.output("outer") == "word0 word1 word2 "
    assert memory.is_child("call_model", "outer")


def test_async_generators_are_followed(memory: Memory) -> None:
    @traced
    def from_function() -> AsyncIterator[str]:
        return awords()

    @traced
    async def from_coroutine() -> AsyncIterator[str]:
        return awords()

    async def main() -> None:
        for name, stream in ("from_function", from_function()), ("from_coroutine", await from_coroutine()):
            assert inspect.isasyncgen(stream)
            async for _ in stream:
                assert not is_current()
            assert memory.output(name) == "word0 word1 word2 "

    asyncio.run(main())
    assert len(memory.spans()) == 8


@pytest.mark.parametrize("item_count", [0, 1])
@pytest.mark.parametrize("end", ["close", "drop", "shutdown"])
def test_async_generator_early_end_ends_span_without_error(memory: Memory, item_count: int, end: str) -> None:
    @traced
    def answer() -> Any:
        return awords()

    streams = []

    async def main() -> None:
        stream = answer()
        for _ in range(item_count):
            await anext(stream)
        if end == "close":
            await stream.aclose()
            assert "answer" in memory.names()
        elif end == "shutdown":
            streams.append(stream)

    asyncio.run(main())
    gc.collect()
    span = memory.by_name("answer")
    assert (span.status.status_code, memory.output("answer")) == (StatusCode.UNSET, "word0 " if item_count else None)


def test_async_generator_made_outside_of_the_loop_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> AsyncIterator[str]:
        return awords()

    async def consume(stream: AsyncIterator[str]) -> None:
        async for _ in stream:
            pass

    asyncio.run(consume(answer()))
    check_stream(memory, "answer")
    answer()
    gc.collect()
    assert memory.names().count("answer") == 2


def test_async_generator_cancelled_consumer_is_no_failure(memory: Memory) -> None:
    async def endless() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    @traced
    def answer() -> AsyncIterator[str]:
        return endless()

    async def consume() -> None:
        async for _ in answer():
            pass

    async def main() -> None:
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (memory.only().status.status_code, memory.output("answer")) == (StatusCode.UNSET, "a")


# Coroutines, awaitables and futures


async def work(result: Any = None) -> Any:
    await asyncio.sleep(0)
    return result or model(0)


class Work:
    def __await__(self) -> Generator[Any, Any, str]:
        return work().__await__()


class AsyncCall:
    async def __call__(self, *arguments: Any) -> Any:
        return await work(*arguments)


@types.coroutine
def old_coroutine() -> Generator[Any, Any, str]:
    result: str = yield from work().__await__()
    return result


@pytest.mark.parametrize(
    ("create", "is_same"),
    [
        (work, False),
        (lambda: asyncio.ensure_future(work()), True),
        (lambda: asyncio.gather(work()), True),
        (Work, True),
        (AsyncCall(), False),
        (old_coroutine, False),
        (functools.partial(work), False),
    ],
)
def test_awaitable_result_ends_span_with_its_result(
    memory: Memory, create: Callable[[], Awaitable[Any]], is_same: bool
) -> None:
    results: list[Any] = []

    @traced
    def answer() -> Awaitable[Any]:
        results.append(create())
        return cast("Awaitable[Any]", results[0])

    async def main() -> Any:
        awaitable = answer()
        assert type(awaitable).__name__ == type(results[0]).__name__
        assert isinstance(awaitable, type(results[0]).__mro__[-2])
        assert inspect.isawaitable(awaitable)
        assert not is_same or awaitable is results[0]
        assert memory.names() == []
        assert await awaitable in ("word0 ", ["word0 "])
        assert not is_current()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert memory.names() == ["model", "answer"]
    assert memory.is_child("model", "answer")
    assert memory.output("answer") in ("word0 ", '["word0 "]')


@pytest.mark.parametrize("function", [AsyncCall(), functools.partial(AsyncCall()), old_coroutine, work])
def test_coroutine_function_stays_one(function: Callable[..., Any]) -> None:
    decorated = traced(function)
    assert inspect.iscoroutinefunction(decorated) or isinstance(function, functools.partial | types.FunctionType)
    assert inspect.iscoroutinefunction(traced(AsyncCall()))
    assert asyncio.run(_await(decorated)) == "word0 "


async def _await(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def test_coroutine_that_returns_a_stream_is_followed(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return work(words())

    async def main() -> list[str]:
        return list(await answer())

    assert asyncio.run(main()) == ["word0 ", "word1 ", "word2 "]
    check_stream(memory, "answer")


@pytest.mark.filterwarnings("ignore:coroutine 'work' was never awaited")
def test_coroutine_never_awaited_ends_span(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return work()

    answer()
    gc.collect()
    assert memory.only().status.status_code is StatusCode.UNSET


def test_task_exception_is_recorded_and_still_reported_by_asyncio(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("torn")

    @traced
    def answer() -> Any:
        return asyncio.ensure_future(fail())

    async def main() -> None:
        answer()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()
    assert memory.only().status.description == "ValueError: torn"
    assert "Task exception was never retrieved" in caplog.text


def test_executor_future_ends_span(memory: Memory) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:

        @traced
        def answer(number: int) -> concurrent.futures.Future[float]:
            return executor.submit(lambda: 1 / number)

        future = answer(2)
        assert (type(future), future.result()) == (concurrent.futures.Future, 0.5)
        with pytest.raises(ZeroDivisionError):
            answer(0).result()
    first, second = memory.spans()
    assert ((first.attributes or {})["output.value"], second.status.status_code) == ("0.5", StatusCode.ERROR)


# Iterators


class Stream:
    """As client libraries have them."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items, self.is_closed = items, False

    def __iter__(self) -> Iterator[Any]:
        yield from self.items

    def __next__(self) -> Any:
        return next(self.items)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_closed = True

    def text(self) -> str:
        return "".join(self)


class OwnIterator:
    def __init__(self) -> None:
        self.items = words()

    def __iter__(self) -> "OwnIterator":
        return self

    def __next__(self) -> str:
        return next(self.items)


class AsyncStream:
    def __init__(self) -> None:
        self.items = awords()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[str]:
        async for item in self.items:
            yield item

    async def __anext__(self) -> str:
        return await anext(self.items)

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.is_closed = True


class OwnAsyncIterator:
    def __init__(self) -> None:
        self.items = awords()

    def __aiter__(self) -> "OwnAsyncIterator":
        return self

    async def __anext__(self) -> str:
        return await anext(self.items)


class Slots:
    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items = words()

    def __iter__(self) -> "Slots":
        return self

    def __next__(self) -> str:
        return next(self.items)


@pytest.mark.parametrize(
    "create",
    [
        lambda: Stream(words()),
        OwnIterator,
        Slots,
        lambda: map(model, range(3)),
        lambda: filter(None, words()),
        lambda: iter(words().__next__, "word3 "),
    ],
)
@pytest.mark.parametrize("consume", [list, lambda items: [next(items) for _ in range(4)]])
def test_iterator_result_is_followed(
    memory: Memory, create: Callable[[], Any], consume: Callable[[Any], list[str]]
) -> None:
    @traced
    def answer() -> Any:
        return create()

    stream = answer()
    assert isinstance(stream, type(create()))
    assert memory.spans() == []
    with contextlib.suppress(StopIteration):
        consume(stream)
    check_stream(memory, "answer")


def test_stream_keeps_identity_class_and_attributes(memory: Memory) -> None:
    original = Stream(words())

    @traced
    def answer() -> Stream:
        return original

    stream = answer()
    assert stream is original
    assert (stream.__class__, isinstance(stream, Stream), stream.is_closed) == (Stream, True, False)
    stream.is_closed = True
    assert vars(original).keys() == {"items", "is_closed"}
    assert stream.text() == "word0 word1 word2 "
    assert type(stream) is Stream
    check_stream(memory, "answer")


@pytest.mark.parametrize("end", ["close", "with", "drop"])
def test_stream_early_end_ends_span_without_error(memory: Memory, end: str) -> None:
    @traced
    def answer() -> Stream:
        return Stream(words())

    stream = answer()
    next(stream)
    if end == "close":
        stream.close()
    elif end == "with":
        with contextlib.suppress(ZeroDivisionError), stream as entered:
            assert entered is stream
            raise ZeroDivisionError
    else:
        del stream
        gc.collect()
    span = memory.by_name("answer")
    assert (span.status.status_code, memory.output("answer")) == (StatusCode.UNSET, "word0 ")


@pytest.mark.parametrize("create", [AsyncStream, OwnAsyncIterator])
def test_async_iterator_result_is_followed(memory: Memory, create: type[Any]) -> None:
    @traced
    async def answer() -> Any:
        return create()

    async def main() -> None:
        stream = await answer()
        assert stream.__class__ is create
        async for _ in stream:
            assert not is_current()
        assert type(stream) is create

    asyncio.run(main())
    check_stream(memory, "answer")


def test_async_stream_closed_by_its_block_ends_span(memory: Memory) -> None:
    @traced
    def answer() -> AsyncStream:
        return AsyncStream()

    async def main() -> None:
        async with answer() as stream:
            await anext(stream)
        assert stream.is_closed
        assert memory.output("answer") == "word0 "
        other = answer()
        await other.close()

    asyncio.run(main())
    assert memory.names() == ["model", "answer", "answer"]


def test_iterator_error_is_recorded(memory: Memory) -> None:
    @traced
    def answer() -> Any:
        return map(int, ["1", "x"])

    with pytest.raises(ValueError, match="invalid literal"):
        list(answer())
    assert memory.only().status.status_code is StatusCode.ERROR
    assert memory.output("answer") == "[1]"


# Context managers


@contextlib.contextmanager
def session(*, fails: bool = False) -> Iterator[str]:
    model(0)
    yield "session"
    model(1)
    if fails:
        raise ValueError("torn")


@contextlib.asynccontextmanager
async def asession() -> AsyncIterator[str]:
    model(0)
    yield "session"
    model(1)


class Manager:
    def __enter__(self) -> str:
        model(0)
        return "session"

    def __exit__(self, *details: object) -> bool:
        model(1)
        return details[0] is KeyError


class AsyncManager:
    async def __aenter__(self) -> str:
        model(0)
        return "session"

    async def __aexit__(self, *details: object) -> None:
        model(1)


@pytest.mark.parametrize("create", [session, Manager, traced(name="answer")(session)])
def test_context_manager_span_lasts_until_its_block_ends(memory: Memory, create: Callable[[], Any]) -> None:
    decorated: Any = create if create not in (session, Manager) else traced(name="answer")(create)
    with decorated() as value:
        assert value == "session"
        model(2)
    assert not is_current()
    assert memory.names() == ["model", "model", "model", "answer"]
    assert are_children(memory, "answer")
    assert memory.output("answer") == "session"


@pytest.mark.parametrize("create", [asession, AsyncManager])
def test_async_context_manager_span_lasts_until_its_block_ends(memory: Memory, create: Callable[[], Any]) -> None:
    @traced
    def answer() -> Any:
        return create()

    async def main() -> None:
        async with answer() as value:
            assert value == "session"
            model(2)
        assert not is_current()

    asyncio.run(main())
    assert memory.names() == ["model", "model", "model", "answer"]
    assert memory.output("answer") == "session"


def test_context_manager_error_of_block_is_recorded_unless_suppressed(memory: Memory) -> None:
    @traced
    def answer() -> Manager:
        return Manager()

    with pytest.raises(ValueError, match="torn"), answer():
        raise ValueError("torn")
    with answer():
        raise KeyError
    statuses = [span.status.status_code for span in memory.spans() if span.name == "answer"]
    assert statuses == [StatusCode.ERROR, StatusCode.UNSET]
    with pytest.raises(ValueError, match="torn"), traced(name="failing")(session)(fails=True):
        pass
    assert memory.by_name("failing").status.description == "ValueError: torn"


def test_context_manager_that_opens_a_stream_records_its_items(memory: Memory) -> None:
    @contextlib.contextmanager
    def open_stream() -> Iterator[Any]:
        yield words()

    @traced
    def answer() -> Any:
        return open_stream()

    with answer() as stream:
        list(stream)
        assert "answer" not in memory.names()
    check_stream(memory, "answer")


def test_context_manager_never_entered_ends_span(memory: Memory) -> None:
    traced(name="answer")(session)()
    gc.collect()
    assert memory.names() == ["answer"]


class Connection(Manager):
    def close(self) -> None: ...


@pytest.mark.parametrize(
    "create",
    [
        Connection,
        lambda: open(__file__),  # noqa: SIM115, PTH123 - closed below
        MagicMock,
        lambda: Manager,
        lambda: trace.get_tracer("x").start_span("span"),
        lambda: [1],
        lambda: concurrent.futures.ThreadPoolExecutor(1),
    ],
)
def test_handles_are_ordinary_results(memory: Memory, create: Callable[[], Any]) -> None:
    results: list[Any] = []

    @traced(capture_outputs=False)
    def answer() -> Any:
        results.append(create())
        return results[0]

    result = answer()
    assert result is results[0]
    assert memory.names() == ["answer"]
    if hasattr(result, "close") and not isinstance(result, MagicMock | type):
        result.close()


class Fluent(OwnIterator):
    @traced
    def __enter__(self) -> "Fluent":
        return self

    def __exit__(self, *details: object) -> None: ...


class AsyncFluent(AsyncManager):
    @traced
    async def __aenter__(self) -> "AsyncFluent":  # type: ignore[override]
        return self


def test_async_method_that_returns_its_object_is_complete(memory: Memory) -> None:
    async def main() -> None:
        async with AsyncFluent():
            assert memory.names() == ["__aenter__"]

    asyncio.run(main())


def test_method_that_returns_its_object_is_complete(memory: Memory) -> None:
    with Fluent() as stream:
        assert memory.names() == ["__enter__"]
        assert type(stream) is Fluent


def test_context_manager_used_as_decorator_ends_its_span(memory: Memory) -> None:
    @traced(name="answer")(session)()
    def work_inside() -> None: ...

    assert memory.names() == ["answer"]
    work_inside()
    assert memory.names() == ["answer", "model", "model"]


class Registry:
    classes: list[type] = []  # noqa: RUF012 - shared on purpose

    def __init_subclass__(cls) -> None:
        Registry.classes.append(cls)


class Registered(Registry):
    def __iter__(self) -> "Registered":
        return self

    def __next__(self) -> str:
        raise StopIteration


def test_no_subclass_of_a_class_that_registers_subclasses(memory: Memory) -> None:
    @traced
    def answer() -> Registered:
        return Registered()

    stream = answer()
    assert isinstance(stream, Registered)
    assert list(stream) == []
    assert Registry.classes == [Registered]
    assert memory.names() == ["answer"]


# Decorated things that are no functions


@traced
class Agent:
    def __init__(self, name: str) -> None:
        self.name = model(0) + name

    @traced  # type: ignore[prop-decorator]
    @property
    def title(self) -> str:
        return self.name.title()

    @traced  # type: ignore[prop-decorator]
    @functools.cached_property
    def name_copy(self) -> str:
        return self.name

    @traced(name="half")
    def ask(self, question: str, style: str) -> str:
        return question + style

    ask_short = traced(functools.partialmethod(ask, style="short"))  # type: ignore[call-overload]


class SubAgent(Agent):
    pass


def test_traced_class_stays_a_class(memory: Memory) -> None:
    agent = Agent("ada")
    assert isinstance(Agent, type)
    assert isinstance(agent, Agent)
    assert memory.names() == ["model", "Agent"]
    assert memory.is_child("model", "Agent")
    SubAgent("bob")
    assert memory.names() == ["model", "Agent", "model"]


def test_traced_descriptors_stay_descriptors(memory: Memory) -> None:
    agent = Agent("ada")
    assert (agent.title, agent.name_copy, agent.name_copy) == ("Word0 Ada", "word0 ada", "word0 ada")
    assert agent.ask_short("q") == "qshort"
    assert memory.names() == ["model", "Agent", "title", "name_copy", "half", "ask"]


def test_trace_context_decorator_covers_a_returned_stream(memory: Memory) -> None:
    sessions: list[Any] = []

    def read() -> Iterator[str]:
        from opentelemetry.context import get_value

        sessions.append(get_value("session.id"))
        yield "a"

    @trace_context(session="s-1")
    def answer() -> Iterator[str]:
        return read()

    for _ in answer():
        assert trace_session() is None
    assert sessions == ["s-1"]


def trace_session() -> Any:
    from opentelemetry.context import get_value

    return get_value("session.id")


def test_long_stream_output_is_cut_and_marked(memory: Memory) -> None:
    @traced
    def answer() -> Iterator[str]:
        return iter(["x" * 1000] * 3000)

    assert len(list(answer())) == 3000
    output = memory.output("answer")
    assert len(output) <= 1 << 20
    assert output.endswith("…")


def test_stream_of_bytes_is_recorded_as_text(memory: Memory) -> None:
    list(traced(name="answer")(lambda: iter(["é".encode()[:1], "é".encode()[1:], b"!"]))())
    assert memory.output("answer") == "é!"
