"""Options of @traced: selection and redaction by name, calls that are not sampled, reducers of streams."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mlflow_otlp_exporter import ConfigurationError, span, traced
from support.memory import Memory


def inputs(memory: Memory) -> Any:
    return json.loads(str(memory.attributes()["input.value"]))


untyped: Any = traced  # for arguments that mypy rejects


def login(user: str, token: str, *, limit: int = 3) -> dict[str, str]:
    return {"user": user, "token": token}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (["user"], {"user": "ada"}),
        (["user", "limit"], {"user": "ada", "limit": 3}),
        (["-token"], {"user": "ada", "limit": 3}),
        (("user", "token", "-token"), {"user": "ada"}),
    ],
)
def test_capture_inputs_selects_parameters(memory: Memory, choice: list[str], expected: dict[str, Any]) -> None:
    assert traced(capture_inputs=choice)(login)("ada", "secret") == {"user": "ada", "token": "secret"}
    assert inputs(memory) == expected


def test_capture_outputs_selects_keys_and_attributes(memory: Memory) -> None:
    @dataclass
    class Reply:
        text: str
        raw: str

    traced(capture_outputs=["user"])(login)("ada", "secret")
    traced(capture_outputs=["-raw"])(lambda: Reply("rain", "secret"))()
    traced(capture_outputs=["text"])(lambda: "secret")()
    outputs = [(finished.attributes or {}).get("output.value") for finished in memory.spans()]
    assert outputs == ['{"user": "ada"}', '{"text": "rain"}', None]


def test_capture_with_an_empty_list_records_nothing(memory: Memory) -> None:
    traced(capture_inputs=[], capture_outputs=[])(login)("ada", "secret")
    assert "secret" not in str(memory.attributes())
    assert "ada" not in str(memory.attributes())


def test_redact_hides_arguments_or_records_what_a_function_returns(memory: Memory) -> None:
    def fail(value: Any) -> Any:
        raise ValueError(value)

    redact: dict[str, Callable[[Any], Any]] = {"user": lambda user: user[:1], "token": fail, "return": len}
    traced(redact=redact)(login)("ada", "secret")
    assert inputs(memory) == {"user": "a", "token": "__REDACTED__", "limit": 3}
    assert memory.attributes()["output.value"] == "2"


def test_redact_with_names_hides_values_and_the_result(memory: Memory) -> None:
    traced(redact=["token", "return"])(login)("ada", token="secret")
    assert inputs(memory) == {"user": "ada", "token": "__REDACTED__", "limit": 3}
    assert memory.attributes()["output.value"] == "__REDACTED__"


def test_redact_of_a_call_with_wrong_arguments_records_none_of_them(memory: Memory) -> None:
    @traced(redact=["token"])
    def check(*, token: str, **others: str) -> None:
        """Takes any name."""

    with pytest.raises(TypeError):
        check("secret")  # type: ignore[call-arg]
    assert "secret" not in str(memory.attributes().get("input.value"))
    assert inputs(memory) == {}


def test_redact_applies_to_each_keyword_of_a_function_with_any_names(memory: Memory) -> None:
    @traced(redact=["api_key"])
    def call(**options: str) -> None:
        """Takes any name."""

    call(api_key="secret", model="m")
    assert inputs(memory) == {"api_key": "__REDACTED__", "model": "m"}


@pytest.mark.parametrize(
    ("decorate", "error", "message"),
    [
        (lambda: untyped("TOOL"), TypeError, r"traced\(\) decorates functions.* not str: pass a kind as"),
        (lambda: untyped(kind=5), TypeError, r"traced\(kind=\) is int"),
        (lambda: untyped(name=5), TypeError, r"traced\(name=\) is int"),
        (lambda: untyped(attributes=[1]), TypeError, r"traced\(attributes=\) is list: expected a mapping"),
        (lambda: untyped(capture_inputs="user"), TypeError, r"traced\(capture_inputs='user'\): expected a boolean or"),
        (lambda: untyped(capture_outputs=3), TypeError, r"traced\(capture_outputs=\) is int"),
        (lambda: untyped(redact="token"), TypeError, r"traced\(redact='token'\)"),
        (lambda: untyped(redact={"token": "x"}), TypeError, r"traced\(redact=\) has a str for 'token'"),
        (lambda: untyped(sampled="no"), TypeError, r"traced\(sampled=\) is str"),
        (lambda: untyped(output_reducer=3), TypeError, r"traced\(output_reducer=\) is int"),
        (
            lambda: untyped(redact=["tokn"])(login),
            ConfigurationError,
            r"traced\(redact=\) of login names tokn: expected parameters of the function \(user, token, limit\)",
        ),
        (lambda: untyped(capture_inputs=["-tokn"])(login), ConfigurationError, r"traced\(capture_inputs=\) of login"),
    ],
)
def test_wrong_option_raises_where_the_decorator_is_applied(
    decorate: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decorate()


def test_sampled_false_records_neither_the_call_nor_calls_inside(memory: Memory) -> None:
    @traced(sampled=False)
    def health() -> str:
        with span("database"):
            return "ok"

    assert health() == "ok"
    with span("request"):
        health()
    assert [finished.name for finished in memory.spans()] == ["request"]


def test_sampled_function_decides_by_the_arguments_of_the_call(memory: Memory) -> None:
    @traced(sampled=lambda path: path != "/health")
    def handle(path: str) -> Iterator[str]:
        with span("step"):
            yield path

    assert [*handle("/health"), *handle("/chat")] == ["/health", "/chat"]
    assert sorted(finished.name for finished in memory.spans()) == ["handle", "step"]


def test_sampled_function_that_raises_is_logged_and_the_call_is_recorded(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    assert traced(sampled=lambda: 1 / 0 > 0)(lambda: "ok")() == "ok"
    assert len(memory.spans()) == 1
    assert caplog.messages == [
        "The sampled= function of <lambda> failed, so its span is recorded: ZeroDivisionError [MLO-708]"
    ]


def test_output_reducer_makes_the_output_of_generators(memory: Memory) -> None:
    @traced(output_reducer=sum)
    def count() -> Iterator[int]:
        yield from (1, 2)

    assert list(count()) == [1, 2]
    assert memory.attributes()["output.value"] == "3"


def test_output_reducer_of_an_async_generator_that_raises_is_logged(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(items: list[str]) -> str:
        raise KeyError(items)

    @traced(output_reducer=fail)
    async def stream() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def main() -> list[str]:
        return [item async for item in stream()]

    assert asyncio.run(main()) == ["a", "b"]
    assert memory.attributes()["output.value"] == "ab"
    assert caplog.messages == ["The output_reducer= of stream failed, so its items are joined: KeyError [MLO-708]"]
