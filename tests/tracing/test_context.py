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
from mlflow_otlp_exporter._internal.tracing.routing import on_root_end, route_of


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
    """The attributes, without the copy of the session that a root has (tested below)."""
    assert isinstance(span, Span)
    span.end()
    values = dict(span.attributes or {})
    copy = values.pop(attribute_names.TRACE_SESSION, None)
    assert copy in (None, values.get(attribute_names.SESSION_ID))
    return values


def route(span: trace.Span) -> Route | None:
    return route_of(span.get_span_context().trace_id)


def test_attribute_names_match_openinference() -> None:
    theirs = {
        value
        for owner in (SpanAttributes, DocumentAttributes)
        for name, value in vars(owner).items()
        if not name.startswith("_")
    }
    theirs |= {member.value for member in OpenInferenceMimeTypeValues} | {"reranker.output_documents"}
    ours = {
        value
        for name, value in vars(attribute_names).items()
        if name.isupper() and not str(value).startswith(("mlflow.", "mlflow-", "_"))
    }
    assert len(ours) > 20
    assert ours <= theirs


def test_trace_context_reaches_spans_inside_only(tracer: Tracer) -> None:
    with trace_context(session="s-1", user="ada", metadata={"plan": "pro", "seats": {3}}):
        root = tracer.start_span("root")
        child = tracer.start_span("child", set_span_in_context(root))
    for span in (root, child):
        assert attributes(span) == {"session.id": "s-1", "user.id": "ada", "metadata": '{"plan": "pro", "seats": [3]}'}
    assert attributes(tracer.start_span("outside")) == {}


def test_nested_context_overrides_values_and_merges_tags_and_metadata(tracer: Tracer) -> None:
    with (
        trace_context(session="s-1", user="ada", tags=["a", "b"], metadata={"x": 1, "y": 1}),
        trace_context(session="s-2", tags=["b", "c"], metadata={"y": 2}),
    ):
        inner_attributes = attributes(tracer.start_span("inner"))
    assert (inner_attributes["session.id"], inner_attributes["user.id"]) == ("s-2", "ada")
    assert inner_attributes["tag.tags"] == ("a", "b", "c")
    assert json.loads(inner_attributes["metadata"]) == {"x": 1, "y": 2}
    assert inner_attributes["mlflow.traceTag.c"] == "true"


def test_tags_with_values_are_set_on_root_only(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    with trace_context(tags={"release": "2.3.1", "beta": True, "ids": [1, 2], "mlflow.user": "mallory", "": "x"}):
        root = tracer.start_span("root")
        child = tracer.start_span("child", set_span_in_context(root))
    assert attributes(child) == {}
    assert attributes(root) == {
        "mlflow.traceTag.release": "2.3.1",
        "mlflow.traceTag.beta": "true",
        "mlflow.traceTag.ids": "[1, 2]",
    }
    assert "trace_context(tags=) ignores tags 'mlflow.user', ''" in caplog.text


def test_context_inside_running_trace_updates_open_root(tracer: Tracer) -> None:
    with tracer.start_as_current_span("root", attributes={"user.id": "of the app"}) as root:
        with trace_context(session="s-1", user="ada", tags={"release": "1"}):
            child = tracer.start_span("child")
        assert attributes(child)["user.id"] == "ada"
    assert attributes(root) == {
        "user.id": "of the app",
        "session.id": "s-1",
        "mlflow.traceTag.release": "1",
    }


def test_context_after_root_ended_changes_nothing(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
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
def test_prompt_argument_links_prompts(tracer: Tracer, prompt: Any, expected: list[tuple[str, str]]) -> None:
    with trace_context(prompt=prompt), trace_context(prompt="greeting/3"):
        linked_prompts = attributes(tracer.start_span("root"))["mlflow.traceTag.mlflow.linkedPrompts"]
    assert json.loads(linked_prompts) == [{"name": name, "version": version} for name, version in expected]


@pytest.mark.parametrize("odd", [{"prompt": "greeting"}, {"prompt": 5}, {"metadata": 5}, {"tags": 5}, {"baggage": "x"}])
def test_unusable_argument_is_logged_and_does_not_raise(
    tracer: Tracer, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with trace_context(session="s-1", **odd):
        assert attributes(tracer.start_span("root")) == {"session.id": "s-1"}
    assert f"trace_context({next(iter(odd))}=) " in caplog.text


def test_attributes_of_application_win(tracer: Tracer) -> None:
    with trace_context(session="s-1", user="ada"):
        span = tracer.start_span("root", attributes={"session.id": "of the app"})
        span.set_attribute("user.id", "of the app")
    assert attributes(span) == {"session.id": "of the app", "user.id": "of the app"}


def test_root_keeps_its_session_if_a_framework_replaces_the_attribute(tracer: Tracer) -> None:
    with trace_context(session="s-1"):
        root = tracer.start_span("root")
        child = tracer.start_span("child", set_span_in_context(root))
    assert isinstance(root, Span)
    assert isinstance(child, Span)
    root.set_attribute("session.id", "thread")
    assert dict(root.attributes or {}) == {"session.id": "thread", "mlflow.trace.session": "s-1"}
    assert dict(child.attributes or {}) == {"session.id": "s-1"}


def test_openinference_context_managers_nest_with_trace_context(tracer: Tracer) -> None:
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


def test_decorated_function_runs_inside_and_keeps_its_name(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    def answer(question: str, *, loud: bool = False) -> tuple[str, trace.Span]:
        """Answers."""
        return question.upper() if loud else question, tracer.start_span("inside")

    text, span = answer("hi", loud=True)
    assert (text, attributes(span)) == ("HI", {"session.id": "s-1"})
    assert (answer.__name__, answer.__doc__) == ("answer", "Answers.")
    assert attributes(tracer.start_span("outside")) == {}


def test_decorated_coroutine_and_async_with_run_inside(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    async def answer() -> trace.Span:
        await asyncio.sleep(0)
        return tracer.start_span("inside")

    async def main() -> list[dict[str, Any]]:
        async with trace_context(user="ada"):
            return [attributes(await answer()), attributes(tracer.start_span("after"))]

    assert asyncio.run(main()) == [{"user.id": "ada", "session.id": "s-1"}, {"user.id": "ada"}]


def test_decorated_generator_context_is_not_current_between_steps(tracer: Tracer) -> None:
    @trace_context(session="s-1")
    def words() -> Generator[trace.Span, str, str]:
        name = yield tracer.start_span("first")
        try:
            with trace_context(user="ada"):
                yield tracer.start_span(name)
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


def test_decorated_async_generator_context_is_not_current_between_steps(tracer: Tracer) -> None:
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


def test_one_context_instance_in_two_tasks_stays_separate(tracer: Tracer) -> None:
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


def test_thread_with_copied_context_sees_values(tracer: Tracer) -> None:
    attributes_in_thread: list[dict[str, Any]] = []

    def work() -> None:
        attributes_in_thread.append(attributes(tracer.start_span("in a thread")))

    with trace_context(session="s-1"):
        carried = contextvars.copy_context()
        threads = [threading.Thread(target=work), threading.Thread(target=carried.run, args=(work,))]
        for thread in threads:
            thread.start()
            thread.join()
    assert attributes_in_thread == [{}, {"session.id": "s-1"}]


def test_exit_in_another_thread_does_nothing(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    manager = trace_context(session="s-1")
    contextvars.copy_context().run(manager.__enter__)
    with trace_context(user="ada"):
        manager.__exit__(None, None, None)
        assert attributes(tracer.start_span("inside")) == {"user.id": "ada"}
    assert caplog.text == ""


def test_replaced_opentelemetry_context_keeps_values(tracer: Tracer) -> None:
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


def test_destination_is_fixed_when_root_starts(tracer: Tracer) -> None:
    with trace_context(workspace="team-a", experiment="support"):
        root = tracer.start_span("root")
    with trace.use_span(root), trace_context(experiment="elsewhere"):
        child = tracer.start_span("child")
    assert route(child) == Route("team-a", "support")
    assert attributes(root) == attributes(child) == {}


@pytest.mark.parametrize(
    ("outer", "nested", "expected"),
    [
        ({"experiment": "a"}, {"workspace": "w"}, Route("w", "a")),
        ({"experiment_id": 1, "run_id": "r"}, {"workspace": "w"}, Route("w")),
        ({"workspace": "w", "experiment_id": 1, "run_id": "r"}, {"experiment": "b"}, Route("w", "b")),
        ({"workspace": "w", "experiment": "a"}, {"experiment_id": 7}, Route("w", None, "7")),
        ({"experiment": "a", "run_id": "r"}, {"run_id": "s"}, Route(None, "a", None, "s")),
        ({"experiment": "a", "run_id": "r"}, {"session": "s"}, Route(None, "a", None, "r")),
    ],
)
def test_nested_destinations_are_merged(
    tracer: Tracer, outer: dict[str, Any], nested: dict[str, Any], expected: Route
) -> None:
    with trace_context(**outer), trace_context(**nested):
        span = tracer.start_span("root")
    assert route(span) == expected
    span.end()


def test_first_context_of_process_reaches_running_trace(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "_is_used", False)
    with tracer.start_as_current_span("root") as root:
        with trace_context(session="s-1", tags={"a": "1"}):
            child = tracer.start_span("child")
            assert attributes(tracer.start_span("of a request", Context()))["session.id"] == "s-1"
        with tracer.start_as_current_span("later") as later:
            pass
    assert attributes(root) == {"session.id": "s-1", "mlflow.traceTag.a": "1"}
    assert (attributes(child), attributes(later)) == ({"session.id": "s-1"}, {})


def test_late_destination_is_logged_once(
    tracer: Tracer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "_has_warned_late_destination", False)
    with trace_context(experiment="support"):
        root = tracer.start_span("root")
    with trace.use_span(root), trace_context(experiment="support", user="ada"):
        assert caplog.text == ""
    for _ in range(2):
        with trace.use_span(root), trace_context(experiment="elsewhere"):
            pass
    assert caplog.text.count("inside a running trace") == 1
    root.end()


def test_destination_of_context_wins_over_root_attributes(tracer: Tracer) -> None:
    destination = {"mlflow.workspace": "team-b", "mlflow.experiment": "mail"}
    by_attributes = tracer.start_span("root", attributes=destination)
    with trace_context(experiment="support"):
        by_context = tracer.start_span("root", attributes=destination)
    assert (route(by_attributes), route(by_context)) == (Route("team-b", "mail"), Route(None, "support"))


def test_trace_without_destination_stores_no_route(tracer: Tracer) -> None:
    assert route(tracer.start_span("root")) is None


def test_late_span_and_second_local_root_share_route(tracer: Tracer) -> None:
    with trace_context(experiment="support"):
        first = tracer.start_span("first")
    assert isinstance(first, Span)
    first.end()
    on_root_end(first.get_span_context().trace_id)
    assert route(first) == Route(None, "support")
    remote = SpanContext(first.get_span_context().trace_id, 7, is_remote=True, trace_flags=TraceFlags(1))
    with trace_context(experiment="elsewhere"):
        second = tracer.start_span("second", set_span_in_context(NonRecordingSpan(remote)))
    assert route(second) == Route(None, "support")


def test_stored_routes_are_bounded(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, max_count in (("_MAX_OPEN_TRACES", 5), ("_MAX_ENDED_TRACES", 3), ("_MAX_OPEN_ROOTS", 4)):
        monkeypatch.setattr(routing_module, name, max_count)
    for routes in (routing_module._open, routing_module._ended, routing_module._roots):
        routes.clear()
    with trace_context(experiment="support"):
        spans = [tracer.start_span("root") for _ in range(20)]
    assert [route(span) is not None for span in spans] == [False] * 15 + [True] * 5
    for span in spans[15:]:
        assert isinstance(span, Span)
        on_root_end(span.get_span_context().trace_id)
    assert [route(span) is not None for span in spans[15:]] == [False, False, True, True, True]
    assert len(routing_module._roots) <= 4
    assert not routing_module._open


# Baggage


def test_baggage_is_empty_by_default() -> None:
    with trace_context(session="s-1", user="ada", experiment="support"):
        assert get_all() == {}


def test_baggage_values_reach_another_process(tracer: Tracer, processor: Stamping) -> None:
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


def test_context_with_deeply_nested_metadata_of_others_keeps_its_own(tracer: Tracer) -> None:
    token = attach(set_value("metadata", "[" * 100_000))
    try:
        with trace_context(metadata={"x": 1}), tracer.start_as_current_span("a") as span:
            assert json.loads(attributes(span)["metadata"]) == {"x": 1}
    finally:
        detach(token)


def start_with_baggage(tracer: Tracer, processor: Stamping, **values: str) -> Any:
    processor.received = tuple(values)
    arrived = Context()
    for name, value in values.items():
        arrived = set_baggage(context_module.BAGGAGE_KEYS[name], value, arrived)
    return tracer.start_span("receives", arrived)


def test_baggage_names_at_most_a_hundred_experiments_and_workspaces(
    tracer: Tracer, processor: Stamping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(context_module, "_baggage_names", {"mlflow.experiment": set(), "mlflow.workspace": set()})
    monkeypatch.setattr(context_module, "_has_warned_baggage", False)
    for name, field in (("experiment", 1), ("workspace", 0)):
        routes = [route(start_with_baggage(tracer, processor, **{name: f"n-{number}"})) for number in range(500)]
        assert {item[field] for item in routes if item is not None} == {f"n-{number}" for number in range(100)}
        again = route(start_with_baggage(tracer, processor, **{name: "n-7"}))
        assert again is not None
        assert again[field] == "n-7"
    assert len(caplog.records) == 1
    assert "n-100" not in caplog.text


@pytest.mark.parametrize("value", ["x" * 251, "a\nb", "a\x1b[2Jb", "a\u2028b", "a\ud800b"])
def test_baggage_that_is_long_or_not_printable_is_ignored(tracer: Tracer, processor: Stamping, value: str) -> None:
    names = ("session", "user", "workspace", "experiment", "run_id")
    span = start_with_baggage(tracer, processor, **dict.fromkeys(names, value))
    assert (attributes(span), route(span)) == ({}, None)
    span = start_with_baggage(tracer, processor, session="x" * 250)
    assert attributes(span) == {"session.id": "x" * 250}
