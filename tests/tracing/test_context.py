"""trace_context(): what it says reaches every span that starts inside, and the trace's root."""

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import pytest
from openinference.instrumentation import using_metadata, using_prompt_template, using_session, using_tags, using_user
from openinference.semconv.trace import DocumentAttributes, OpenInferenceMimeTypeValues, SpanAttributes
from opentelemetry import trace
from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, set_span_in_context

from mlflow_otlp_exporter import trace_context
from mlflow_otlp_exporter._internal.common import attribute_names
from mlflow_otlp_exporter._internal.model.destination import Route
from mlflow_otlp_exporter._internal.tracing import context as context_module
from mlflow_otlp_exporter._internal.tracing import routing as routing_module
from mlflow_otlp_exporter._internal.tracing.context import apply_context
from mlflow_otlp_exporter._internal.tracing.routing import closed, route_of


class Stamping(SpanProcessor):
    """What `MLflowSpanProcessor` does with the context, without its exporter."""

    def __init__(self) -> None:
        self.received: tuple[str, ...] = ()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        assert span.context is not None
        apply_context(span, span.context.trace_id, parent_context, self.received)


@pytest.fixture
def processor() -> Stamping:
    return Stamping()


@pytest.fixture
def tracer(processor: Stamping) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    yield provider.get_tracer("tests")
    provider.shutdown()


def attributes(span: trace.Span) -> dict[str, Any]:
    assert isinstance(span, Span)
    span.end()
    return dict(span.attributes or {})


def route(span: trace.Span) -> Route | None:
    return route_of(span.get_span_context().trace_id)


def test_names_are_those_of_openinference() -> None:
    theirs = {
        value
        for owner in (SpanAttributes, DocumentAttributes)
        for name, value in vars(owner).items()
        if not name.startswith("_")
    }
    theirs |= {each.value for each in OpenInferenceMimeTypeValues} | {"reranker.output_documents"}
    ours = {
        value
        for name, value in vars(attribute_names).items()
        if name.isupper() and not str(value).startswith(("mlflow.", "mlflow-", "_"))
    }
    assert len(ours) > 20
    assert ours <= theirs


def test_every_span_inside_and_none_outside(tracer: Tracer) -> None:
    with trace_context(session="s-1", user="ada", metadata={"plan": "pro", "seats": {3}}):
        root = tracer.start_span("root")
        child = tracer.start_span("child", set_span_in_context(root))
    for span in (root, child):
        assert attributes(span) == {"session.id": "s-1", "user.id": "ada", "metadata": '{"plan": "pro", "seats": [3]}'}
    assert attributes(tracer.start_span("outside")) == {}


def test_inner_wins_and_tags_and_metadata_add_up(tracer: Tracer) -> None:
    with (
        trace_context(session="s-1", user="ada", tags=["a", "b"], metadata={"x": 1, "y": 1}),
        trace_context(session="s-2", tags=["b", "c"], metadata={"y": 2}),
    ):
        inner = attributes(tracer.start_span("inner"))
    assert (inner["session.id"], inner["user.id"]) == ("s-2", "ada")
    assert inner["tag.tags"] == ("a", "b", "c")
    assert json.loads(inner["metadata"]) == {"x": 1, "y": 2}
    assert inner["mlflow.traceTag.c"] == "true"


def test_tags_with_values_stand_on_the_root_only(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    with trace_context(tags={"release": "2.3.1", "beta": True, "ids": [1, 2], "mlflow.user": "mallory", "": "x"}):
        root = tracer.start_span("root")
        child = tracer.start_span("child", set_span_in_context(root))
    assert attributes(child) == {}
    assert attributes(root) == {
        "mlflow.traceTag.release": "2.3.1",
        "mlflow.traceTag.beta": "true",
        "mlflow.traceTag.ids": "[1, 2]",
    }
    assert "tags 'mlflow.user', '' are left out" in caplog.text


def test_given_inside_a_running_trace_reaches_its_open_root(tracer: Tracer) -> None:
    with tracer.start_as_current_span("root", attributes={"user.id": "of the app"}) as root:
        with trace_context(session="s-1", user="ada", tags={"release": "1"}):
            child = tracer.start_span("child")
        assert attributes(child)["user.id"] == "ada"
    assert attributes(root) == {
        "user.id": "of the app",
        "session.id": "s-1",
        "mlflow.traceTag.release": "1",
    }


def test_root_that_has_ended_is_left_alone(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    root = tracer.start_span("root")
    root.end()
    with trace.use_span(root), trace_context(tags={"late": "1"}):
        tracer.start_span("late").end()
    assert isinstance(root, Span)
    assert root.attributes == {}
    assert "ended span" not in caplog.text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("greeting/3", [("greeting", "3")]),
        ("prompts:/greeting/3", [("greeting", "3")]),
        (("greeting", 3), [("greeting", "3")]),
        (["greeting/3", ("bye", "1")], [("greeting", "3"), ("bye", "1")]),
        (("greeting/3", "bye/1"), [("greeting", "3"), ("bye", "1")]),
        (type("Prompt", (), {"name": "greeting", "version": 3})(), [("greeting", "3")]),
    ],
)
def test_prompts(tracer: Tracer, prompt: Any, expected: list[tuple[str, str]]) -> None:
    with trace_context(prompt=prompt), trace_context(prompt="greeting/3"):
        found = attributes(tracer.start_span("root"))["mlflow.traceTag.mlflow.linkedPrompts"]
    assert json.loads(found) == [{"name": name, "version": version} for name, version in expected]


@pytest.mark.parametrize("odd", [{"prompt": "greeting"}, {"prompt": 5}, {"metadata": 5}, {"tags": 5}, {"baggage": "x"}])
def test_what_cannot_be_used_is_said_and_does_not_raise(
    tracer: Tracer, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with trace_context(session="s-1", **odd):
        assert attributes(tracer.start_span("root")) == {"session.id": "s-1"}
    assert f"trace_context({next(iter(odd))}=) " in caplog.text


def test_what_the_app_set_itself_wins(tracer: Tracer) -> None:
    with trace_context(session="s-1", user="ada"):
        span = tracer.start_span("root", attributes={"session.id": "of the app"})
        span.set_attribute("user.id", "of the app")
    assert attributes(span) == {"session.id": "of the app", "user.id": "of the app"}


def test_openinferences_own_context_reaches_every_span_and_the_inner_one_wins(tracer: Tracer) -> None:
    with (
        trace_context(session="s-1", tags=["a"], metadata={"x": 1}),
        using_session("s-2"),
        using_user("grace"),
        using_tags(["b"]),
        using_metadata({"y": 2}),
        using_prompt_template(template="Hi {name}", version="v1", variables={"name": "Ada"}),
    ):
        theirs = attributes(tracer.start_span("theirs"))
        with trace_context(session="s-3", tags=["c"], metadata={"z": 3}):
            ours = attributes(tracer.start_span("ours"))
    assert (theirs["session.id"], theirs["user.id"], theirs["tag.tags"]) == ("s-2", "grace", ("b",))
    assert theirs["llm.prompt_template.variables"] == '{"name": "Ada"}'
    assert (ours["session.id"], ours["user.id"], ours["tag.tags"]) == ("s-3", "grace", ("b", "c"))
    assert json.loads(ours["metadata"]) == {"y": 2, "z": 3}
    assert ours["llm.prompt_template.template"] == "Hi {name}"


# Every kind of function


def test_decorator_of_a_function_and_its_name_stays(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    def answer(question: str, *, loud: bool = False) -> tuple[str, trace.Span]:
        """Answers."""
        return question.upper() if loud else question, tracer.start_span("inside")

    said, span = answer("hi", loud=True)
    assert (said, attributes(span)) == ("HI", {"session.id": "s-1"})
    assert (answer.__name__, answer.__doc__) == ("answer", "Answers.")
    assert attributes(tracer.start_span("outside")) == {}


def test_decorator_of_a_coroutine_and_async_with(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    async def answer() -> trace.Span:
        await asyncio.sleep(0)
        return tracer.start_span("inside")

    async def main() -> list[dict[str, Any]]:
        async with trace_context(user="ada"):
            return [attributes(await answer()), attributes(tracer.start_span("after"))]

    assert asyncio.run(main()) == [{"user.id": "ada", "session.id": "s-1"}, {"user.id": "ada"}]


def test_decorator_of_a_generator_is_not_current_between_its_steps(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    def words() -> Generator[trace.Span, str, str]:
        said = yield tracer.start_span("first")
        try:
            with trace_context(user="ada"):
                yield tracer.start_span(said)
        except ValueError:
            yield tracer.start_span("thrown")
        return "done"

    generator = words()
    assert attributes(next(generator)) == {"session.id": "s-1"}
    assert attributes(tracer.start_span("between")) == {}
    assert attributes(generator.send("second")) == {"session.id": "s-1", "user.id": "ada"}
    assert attributes(tracer.start_span("between")) == {}
    assert attributes(generator.throw(ValueError())) == {"session.id": "s-1"}
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "done"


def test_decorator_of_an_async_generator(tracer: Tracer) -> None:
    closed_by: list[str] = []

    @trace_context(session="s-1")
    async def words() -> AsyncGenerator[trace.Span, None]:
        try:
            while True:
                yield tracer.start_span("word")
        finally:
            closed_by.append(str(attributes(tracer.start_span("end")).get("session.id")))

    async def main() -> list[dict[str, Any]]:
        generator = words()
        first = attributes(await anext(generator))
        between = attributes(tracer.start_span("between"))
        second = attributes(await generator.asend(None))
        await generator.aclose()
        return [first, between, second]

    assert asyncio.run(main()) == [{"session.id": "s-1"}, {}, {"session.id": "s-1"}]
    assert closed_by == ["s-1"]


def test_tasks_of_one_instance_do_not_mix(tracer: Tracer) -> None:
    shared = trace_context(session="s-1")

    async def agent(number: int) -> dict[str, Any]:
        with trace_context(user=str(number)):
            await asyncio.sleep(0)
            with shared:
                await asyncio.sleep(0)
                span = tracer.start_span("inside")
        return {**attributes(span), "after": attributes(tracer.start_span("after"))}

    async def main() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(agent, range(50))))

    assert asyncio.run(main()) == [{"user.id": str(number), "session.id": "s-1", "after": {}} for number in range(50)]


def test_another_thread_sees_it_if_the_context_is_carried(tracer: Tracer) -> None:
    found: list[dict[str, Any]] = []

    def work() -> None:
        found.append(attributes(tracer.start_span("in a thread")))

    with trace_context(session="s-1"):
        carried = contextvars.copy_context()
        threads = [threading.Thread(target=work), threading.Thread(target=carried.run, args=(work,))]
        for thread in threads:
            thread.start()
            thread.join()
    assert found == [{}, {"session.id": "s-1"}]


def test_left_elsewhere_than_entered_does_nothing(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    manager = trace_context(session="s-1")
    contextvars.copy_context().run(manager.__enter__)
    with trace_context(user="ada"):
        manager.__exit__(None, None, None)
        assert attributes(tracer.start_span("inside")) == {"user.id": "ada"}
    assert caplog.text == ""


def test_instrumentation_that_replaces_the_context_loses_nothing(tracer: Tracer) -> None:
    # As OpenTelemetry's own of ASGI do it with what they extract from a request.
    with trace_context(session="s-1", tags={"a": "1"}, experiment="support"):
        token = attach(Context())
        try:
            root = tracer.start_span("GET /", Context())
            with trace_context(user="ada"):
                child = tracer.start_span("child", set_span_in_context(root))
            using = set_value("session.id", "s-2", Context())
            other = tracer.start_span("other", using)
        finally:
            detach(token)
    assert route(child) == Route(None, "support")
    assert attributes(child) == {"session.id": "s-1", "user.id": "ada"}
    assert attributes(root) == {"session.id": "s-1", "mlflow.traceTag.a": "1"}
    assert attributes(other)["session.id"] == "s-2"


# Destinations


def test_destination_is_fixed_when_the_root_starts(tracer: Tracer) -> None:
    with trace_context(workspace="team-a", experiment="support"):
        root = tracer.start_span("root")
    with trace.use_span(root), trace_context(experiment="elsewhere"):
        child = tracer.start_span("child")
    assert route(child) == Route("team-a", "support")
    assert attributes(root) == attributes(child) == {}


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ({"experiment": "a"}, {"workspace": "w"}, Route("w", "a")),
        ({"experiment_id": 1, "run_id": "r"}, {"workspace": "w"}, Route("w")),
        ({"workspace": "w", "experiment_id": 1, "run_id": "r"}, {"experiment": "b"}, Route("w", "b")),
        ({"workspace": "w", "experiment": "a"}, {"experiment_id": 7}, Route("w", None, "7")),
        ({"experiment": "a", "run_id": "r"}, {"run_id": "s"}, Route(None, "a", None, "s")),
        ({"experiment": "a", "run_id": "r"}, {"session": "s"}, Route(None, "a", None, "r")),
    ],
)
def test_nested_destinations(tracer: Tracer, outer: dict[str, Any], inner: dict[str, Any], expected: Route) -> None:
    with trace_context(**outer), trace_context(**inner):
        span = tracer.start_span("root")
    assert route(span) == expected
    span.end()


def test_first_use_of_all_is_seen_by_the_trace_that_is_running(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "_in_use", False)
    with tracer.start_as_current_span("root") as root:
        with trace_context(session="s-1", tags={"a": "1"}):
            child = tracer.start_span("child")
            assert attributes(tracer.start_span("of a request", Context()))["session.id"] == "s-1"
        with tracer.start_as_current_span("later") as later:
            pass
    assert attributes(root) == {"session.id": "s-1", "mlflow.traceTag.a": "1"}
    assert (attributes(child), attributes(later)) == ({"session.id": "s-1"}, {})


def test_destination_that_comes_too_late_is_told_once(
    tracer: Tracer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "_told", False)
    with trace_context(experiment="support"):
        root = tracer.start_span("root")
    with trace.use_span(root), trace_context(experiment="support", user="ada"):
        assert caplog.text == ""
    for _ in range(2):
        with trace.use_span(root), trace_context(experiment="elsewhere"):
            pass
    assert caplog.text.count("inside a trace that has begun") == 1
    root.end()


def test_attributes_of_the_root_tell_it_unless_the_context_does(tracer: Tracer) -> None:
    told = {"mlflow.workspace": "team-b", "mlflow.experiment": "mail"}
    by_attributes = tracer.start_span("root", attributes=told)
    with trace_context(experiment="support"):
        by_context = tracer.start_span("root", attributes=told)
    assert (route(by_attributes), route(by_context)) == (Route("team-b", "mail"), Route(None, "support"))


def test_without_any_nothing_is_kept(tracer: Tracer) -> None:
    assert route(tracer.start_span("root")) is None


def test_late_spans_and_a_second_local_root_find_the_way_of_the_first(tracer: Tracer) -> None:
    with trace_context(experiment="support"):
        first = tracer.start_span("first")
    assert isinstance(first, Span)
    first.end()
    closed(first.get_span_context().trace_id)
    assert route(first) == Route(None, "support")
    remote = SpanContext(first.get_span_context().trace_id, 7, is_remote=True, trace_flags=TraceFlags(1))
    with trace_context(experiment="elsewhere"):
        second = tracer.start_span("second", set_span_in_context(NonRecordingSpan(remote)))
    assert route(second) == Route(None, "support")


def test_what_is_kept_is_bounded(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("_OPEN_TRACES", 5), ("_ENDED_TRACES", 3), ("_OPEN_ROOTS", 4)):
        monkeypatch.setattr(routing_module, name, most)
    for kept in (routing_module._open, routing_module._ended, routing_module._roots):
        kept.clear()
    with trace_context(experiment="support"):
        spans = [tracer.start_span("root") for _ in range(20)]
    assert [route(span) is not None for span in spans] == [False] * 15 + [True] * 5
    for span in spans[15:]:
        assert isinstance(span, Span)
        closed(span.get_span_context().trace_id)
    assert [route(span) is not None for span in spans[15:]] == [False, False, True, True, True]
    assert len(routing_module._roots) <= 4
    assert not routing_module._open


# Baggage


def test_nothing_goes_into_the_baggage_unasked() -> None:
    with trace_context(session="s-1", user="ada", experiment="support"):
        assert get_all() == {}


def test_named_values_cross_to_another_process(tracer: Tracer, processor: Stamping) -> None:
    with trace_context(session="s-1", user="ada", workspace="team-a", baggage=("session", "workspace", "run_id")):
        sent = dict(get_all())
    assert sent == {"session.id": "s-1", "mlflow.workspace": "team-a"}
    arrived = Context()
    for name, value in {**sent, "user.id": "mallory"}.items():
        arrived = set_baggage(name, value, arrived)
    ignored = tracer.start_span("receives nothing", arrived)
    processor.received = ("session", "workspace")
    taken = tracer.start_span("receives", arrived)
    assert (attributes(ignored), route(ignored)) == ({}, None)
    assert (attributes(taken), route(taken)) == ({"session.id": "s-1"}, Route("team-a"))
