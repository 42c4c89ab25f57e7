"""span(), current_trace_id() and update_trace()."""

import asyncio
import typing
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from mlflow_otlp_exporter import (
    current_trace_id,
    set_documents,
    set_outputs,
    span,
    trace_context,
    traced,
    types,
    update_trace,
)
from mlflow_otlp_exporter._internal.tracing import spans as spans_module
from mlflow_otlp_exporter.testing import recording
from support.memory import Memory


class Odd:
    def __str__(self) -> str:
        raise ValueError("odd")


def test_span_records_kind_inputs_outputs_and_attributes(memory: Memory) -> None:
    with span("get_weather", kind="TOOL", inputs={"city": "Lyon"}, attributes={"index": 1}) as current:
        assert trace.get_current_span() is current
        set_outputs("rain")
    assert not trace.get_current_span().get_span_context().is_valid
    assert memory.only().name == "get_weather"
    assert memory.attributes() == {
        "openinference.span.kind": "TOOL",
        "tool.name": "get_weather",
        "index": 1,
        "input.value": '{"city": "Lyon"}',
        "input.mime_type": "application/json",
        "output.value": "rain",
        "output.mime_type": "text/plain",
    }


def test_span_with_a_kind_of_mlflow_or_of_the_application_keeps_it(memory: Memory) -> None:
    for kind in ("chat_model", "planner"):
        with span("step", kind=kind):
            pass
    attributes = [dict(finished.attributes or {}) for finished in memory.spans()]
    assert [values["mlflow.spanType"] for values in attributes] == ["CHAT_MODEL", "PLANNER"]
    assert [values["openinference.span.kind"] for values in attributes] == ["LLM", "CHAIN"]


def test_span_that_fails_records_the_exception_and_raises_it(memory: Memory) -> None:
    with pytest.raises(ValueError, match="odd"), span("step"):
        raise ValueError("odd")
    assert memory.only().status.status_code is StatusCode.ERROR
    assert [event.name for event in memory.only().events] == ["exception"]


def test_span_works_in_async_code_and_beside_traced(memory: Memory) -> None:
    @traced
    async def answer() -> None:
        async with span("retrieve", kind="RETRIEVER"):
            set_documents(["rain"])

    async def main() -> None:
        await asyncio.gather(answer(), answer())

    asyncio.run(main())
    spans = {finished.context.span_id: finished for finished in memory.spans() if finished.context}
    retrievers = [finished for finished in spans.values() if finished.name == "retrieve"]
    assert [spans[finished.parent.span_id].name for finished in retrievers if finished.parent] == ["answer"] * 2
    assert (retrievers[0].attributes or {})["retrieval.documents.0.document.content"] == "rain"


def test_span_object_can_be_used_again_and_recursively(memory: Memory) -> None:
    step = span("step")
    with step, step:
        pass
    with step:
        pass
    assert len(memory.spans()) == 3
    assert sum(finished.parent is None for finished in memory.spans()) == 2


def test_span_that_is_left_in_another_context_ends(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    block = span("step")

    async def enter() -> None:
        block.__enter__()

    asyncio.run(enter())
    block.__exit__(None, None, None)
    assert memory.only().end_time
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: span(7), r"span\(name=\) is int: expected a string"),  # type: ignore[arg-type]
        (lambda: span("a", kind=7), r"span\(kind=\) is int"),  # type: ignore[arg-type]
        (lambda: span("a", attributes="b"), r"span\(attributes=\) is str"),  # type: ignore[arg-type]
    ],
)
def test_span_with_a_wrong_argument_raises(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_span_whose_inputs_cannot_be_read_is_recorded(memory: Memory) -> None:
    with span("step", inputs=Odd()):
        pass
    assert memory.only().name == "step"


def test_current_trace_id_is_the_id_of_mlflow(memory: Memory) -> None:
    assert current_trace_id() is None
    with span("step") as current:
        assert current_trace_id() == f"tr-{current.get_span_context().trace_id:032x}"


def test_update_trace_writes_to_the_root_from_any_depth() -> None:
    with recording() as recorded:
        with trace_context(session="s-1", tags={"release": "1"}), span("request"), span("deep"):
            update_trace(tags={"tier": "gold", "release": 2}, session="s-2", user="ada", name="refund")
        trace_ = recorded.trace
    assert trace_.tree == ["refund", "  deep"]
    assert trace_.tags == {"tier": "gold", "release": "2"}
    assert (trace_.session, trace_.user) == ("s-2", "ada")


def test_update_trace_works_without_the_processor_of_this_library(memory: Memory) -> None:
    with span("request"):
        update_trace(tags=["urgent"], name="refund")
    assert memory.only().name == "refund"
    assert memory.attributes()["mlflow.traceTag.urgent"] == "true"


def test_update_trace_outside_of_a_trace_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    spans_module._log_no_trace.cache_clear()
    update_trace(user="ada")
    update_trace(user="ada")
    assert caplog.messages == ["update_trace() has no effect: no span is current [MLO-709]"]


def test_update_trace_with_values_that_raise_is_logged(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    odd: Any = Odd()
    with span("request"):
        update_trace(user=odd)
    assert caplog.messages == ["update_trace() ignores a value: ValueError [MLO-709]"]


def test_kinds_of_the_public_type_are_those_that_are_known() -> None:
    assert {*typing.get_args(types.SpanKind), "UNKNOWN"} == set(spans_module._KNOWN_KINDS)
