"""Which exceptions are failures of a span, and that the application always sees its own."""

import asyncio
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import celery.exceptions
import pytest
import starlette.exceptions
import werkzeug.exceptions
from langgraph.errors import GraphInterrupt, ParentCommand
from langgraph.types import Command
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter import set_documents, set_inputs, set_outputs, trace_context, traced
from mlflow_otlp_exporter._internal.tracing.spans import use_provider
from support.memory import Memory


class Fatal(BaseException):
    """No `Exception`."""


class ProviderError(Exception):
    response: Any = None

    def __str__(self) -> str:
        return str(self.response.text)


class FatalText(Exception):
    def __str__(self) -> str:
        raise Fatal


class EndlessText(Exception):
    def __str__(self) -> str:
        return str(self)


class NoText(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307 - as errors of some libraries do


class HugeText(Exception):
    def __str__(self) -> str:
        return "x" * 10_000_000


def run_function(error: BaseException) -> None:
    @traced
    def fail() -> None:
        raise error

    fail()


def run_coroutine(error: BaseException) -> None:
    @traced
    async def fail() -> None:
        raise error

    asyncio.run(fail())


def run_generator(error: BaseException) -> None:
    @traced
    def fail() -> Iterator[int]:
        yield 1
        raise error

    list(fail())


def run_returned_iterator(error: BaseException) -> None:
    def step() -> int:
        raise error

    list(traced(lambda: iter(step, 0))())


RUNS = [run_function, run_coroutine, run_generator, run_returned_iterator]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ProviderError, "<ProviderError: no text (AttributeError)>"),
        (FatalText, "<FatalText: no text (Fatal)>"),
        (EndlessText, "<EndlessText: no text (RecursionError)>"),
        (NoText, "<NoText: no text (TypeError)>"),
        (HugeText, "x" * 9999 + "…"),
        (Fatal, ""),
    ],
)
def test_exception_whose_text_raises_is_seen_and_recorded(
    memory: Memory, run: Callable[[BaseException], None], kind: type[BaseException], message: str
) -> None:
    error = kind()
    with pytest.raises(kind) as caught:
        run(error)
    assert caught.value is error
    span = memory.only()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, f"{kind.__name__}: {message}")
    attributes = span.events[0].attributes or {}
    assert str(attributes["exception.type"]).endswith(kind.__qualname__)
    assert attributes["exception.stacktrace"]


def make_exception(module: str, *names: str) -> BaseException:
    """Make an exception as another package has it: the last name is the class, the others are its base classes."""
    kind: type[Any] = Exception
    for name in names:
        kind = type(name, (kind,), {"__module__": module})
    return kind()  # type: ignore[no-any-return]


def http_error(package: str, status: int, attribute: str) -> BaseException:
    error = make_exception(f"{package}.web", "HTTPException")
    setattr(error, attribute, status)
    return error


CONTROL_FLOW = [
    SystemExit(),
    SystemExit(0),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    GraphInterrupt(),
    ParentCommand(Command()),
    celery.exceptions.Retry(),
    celery.exceptions.Ignore(),
    celery.exceptions.Reject(),
    make_exception("streamlit.runtime.scriptrunner.exceptions", "ScriptControlException", "RerunException"),
    make_exception("pydantic_ai.exceptions", "ApprovalRequired"),
    make_exception("greenlet", "GreenletExit"),
    make_exception("click.exceptions", "Exit"),
    make_exception("_pytest.outcomes", "Skipped"),
    make_exception("unittest.case", "SkipTest"),
]


@pytest.mark.parametrize("error", CONTROL_FLOW, ids=lambda error: type(error).__name__)
def test_control_flow_is_no_failure(memory: Memory, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run_function(error)
    assert caught.value is error
    assert memory.only().status.status_code is StatusCode.UNSET
    assert memory.only().events == ()


@pytest.mark.parametrize(
    "error",
    [
        starlette.exceptions.HTTPException(404),
        starlette.exceptions.HTTPException(303),
        werkzeug.exceptions.NotFound(),
        http_error("aiohttp", 302, "status"),
        http_error("tornado", 400, "status_code"),
    ],
)
def test_response_below_500_is_recorded_but_no_failure(memory: Memory, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_function(error)
    assert memory.only().status.status_code is StatusCode.UNSET
    assert [event.name for event in memory.only().events] == ["exception"]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        SystemExit("no server"),
        asyncio.CancelledError(),
        starlette.exceptions.HTTPException(503),
        werkzeug.exceptions.InternalServerError(),
        make_exception("_pytest.outcomes", "Failed"),
        make_exception("app.errors", "GraphBubbleUp"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_exception_is_failure(memory: Memory, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_function(error)
    assert memory.only().status.status_code is StatusCode.ERROR


def test_recursion_error_of_the_application_is_seen_and_all_spans_end(memory: Memory) -> None:
    @traced
    def endless(depth: int) -> int:
        return endless(depth + 1)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        with pytest.raises(RecursionError):
            endless(0)
    finally:
        sys.setrecursionlimit(limit)
    assert memory.names().count("endless") > 10
    assert inside_no_span()


def inside_no_span() -> bool:
    from opentelemetry import trace

    return not trace.get_current_span().get_span_context().is_valid


# Other code of the application


class BadFunction:
    def __call__(self, value: int) -> int:
        return value

    @property
    def __signature__(self) -> Any:
        raise Fatal

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        raise Fatal

    @property
    def __name__(self) -> str:
        raise Fatal


def test_callable_whose_attributes_raise_is_traced(memory: Memory) -> None:
    assert traced(kind="TOOL")(BadFunction())(3) == 3
    assert memory.only().name == "BadFunction"


class BadProcessor(SpanProcessor):
    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.where == "start":
            raise Fatal

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "end":
            raise Fatal


@pytest.mark.parametrize("where", ["start", "end"])
def test_processor_of_others_that_raises_does_not_change_the_call(where: str, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BadProcessor(where))
    use_provider(provider)
    try:
        assert traced(name="answer")(lambda: 3)() == 3
        assert list(traced(name="answer")(lambda: iter([3]))()) == [3]
        with pytest.raises(ValueError, match="own"):
            run_function(ValueError("own"))
    finally:
        use_provider(None)
    assert "Span of answer could not be recorded: Fatal [MLO-708]" in caplog.text


class Evil:
    """Raises whatever is asked."""

    def __getattribute__(self, name: str) -> Any:
        raise Fatal

    def __bool__(self) -> bool:
        raise Fatal

    def __len__(self) -> int:
        raise Fatal

    def __eq__(self, other: object) -> bool:
        raise Fatal

    def __hash__(self) -> int:
        raise Fatal

    def __iter__(self) -> Iterator[Any]:
        raise Fatal

    def __str__(self) -> str:
        raise Fatal

    def __repr__(self) -> str:
        raise Fatal


def test_values_whose_methods_raise_do_not_change_the_call(memory: Memory) -> None:
    evil = Evil()
    for kind in "CHAIN", "RETRIEVER":
        assert traced(kind=kind)(lambda value: value)(evil) is evil
        assert traced(kind=kind)(lambda value: [value])(evil)[0] is evil
    assert [span.status.status_code for span in memory.spans()] == [StatusCode.UNSET] * 4


def test_setters_with_values_whose_methods_raise_raise_nothing(memory: Memory) -> None:
    @traced(capture_inputs=False)
    def answer() -> None:
        set_inputs(Evil())
        set_outputs({"evil": Evil()})
        set_documents([Evil()])
        set_documents(Evil())

    answer()
    assert memory.only().status.status_code is StatusCode.UNSET
    assert memory.attributes()["output.value"] == '{"evil": "<Evil: no repr (Fatal)>"}'


@pytest.mark.parametrize(
    "create",
    [
        lambda: {"session": Evil()},
        lambda: {"user": Evil()},
        lambda: {"tags": Evil()},
        lambda: {"tags": {Evil: 1}},
        lambda: {"tags": {"a": Evil()}},
        lambda: {"tags": [Evil()]},
        lambda: {"metadata": {"a": Evil()}},
        lambda: {"metadata": types.MappingProxyType({"a": Evil()})},
        lambda: {"prompt": Evil()},
        lambda: {"prompt": [Evil()]},
        lambda: {"prompt": (Evil(), Evil())},
        lambda: {"baggage": Evil()},
        lambda: {"baggage": [[]]},
        lambda: {"workspace": Evil(), "experiment": Evil()},
        lambda: {"experiment_id": Evil(), "run_id": Evil()},
    ],
)
def test_trace_context_with_values_whose_methods_raise_raises_nothing(
    memory: Memory, create: Callable[[], dict[str, Any]]
) -> None:
    with trace_context(**create()):
        traced(name="answer")(lambda: None)()
    assert memory.only().status.status_code is StatusCode.UNSET


class ChatCompletionChunk:
    @property
    def choices(self) -> list[Any]:
        raise Fatal


def test_stream_items_whose_properties_raise_do_not_change_the_stream(memory: Memory) -> None:
    items = [ChatCompletionChunk(), Evil()]
    received = list(traced(name="answer")(lambda: iter(items))())
    assert [id(item) for item in received] == [id(item) for item in items]
    assert memory.attributes()["output.value"] == '["<ChatCompletionChunk>", "<Evil: no repr (Fatal)>"]'
