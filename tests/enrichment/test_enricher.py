"""Enrichment as a whole: never raises, changes nothing the second time, and lets the application win."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status, StatusCode

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.enrichment import EnrichedSpan, Enricher
from support.odd_traces import ANTHROPIC_SDK, span, traces


def enriched(*spans: ReadableSpan, **settings_: Any) -> list[EnrichedSpan]:
    made = Enricher(**settings_).enrich(spans)
    assert all(isinstance(each, EnrichedSpan) for each in made)
    return made  # type: ignore[return-value]  # just looked at


def one(attributes: Mapping[str, Any], **others: Any) -> EnrichedSpan:
    return enriched(span(1, attributes, **others))[0]


def inputs(found: EnrichedSpan) -> Any:
    return json.loads(found.attributes["mlflow.spanInputs"])


def outputs(found: EnrichedSpan) -> Any:
    return json.loads(found.attributes["mlflow.spanOutputs"])


def said(text: str, role: str = "user") -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
USAGE = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 2}


# One span


def test_span_that_is_not_about_models_gets_a_type_and_the_trace_a_name() -> None:
    found = one({"http.request.method": "POST", "url.path": "/chat"}, name="POST /chat")
    assert dict(found.attributes) == {
        "http.request.method": "POST",
        "url.path": "/chat",
        "mlflow.spanType": "UNKNOWN",
        "mlflow.traceTag.mlflow.traceName": "POST /chat",
    }
    assert (found.name, found.ok) == ("POST /chat", False)


def test_what_the_application_set_wins() -> None:
    own = {
        "mlflow.spanType": "PARSER",
        "mlflow.spanInputs": '"mine"',
        "mlflow.spanOutputs": '"mine too"',
        "mlflow.llm.model": "mine",
        "mlflow.chat.tokenUsage": '{"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}',
        "mlflow.traceTag.mlflow.traceName": "my trace",
        "openinference.span.kind": "LLM",
        "llm.model_name": "theirs",
        "llm.token_count.prompt": 7,
        "llm.token_count.completion": 7,
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "hello",
    }
    found = one(own)
    assert {key: found.attributes[key] for key in own} == own


def test_a_tool_is_named_like_the_tool_and_the_old_name_stays() -> None:
    attributes = {**TOOL, "gen_ai.tool.call.arguments": '{"q": "x"}', "gen_ai.tool.call.result": "found"}
    found = enriched(span(2, attributes, parent=1, name="execute_tool search"))[0]
    assert (found.name, found.attributes["mlflow_otlp.span_name"]) == ("search", "execute_tool search")
    assert (inputs(found), outputs(found), found.ok) == ({"q": "x"}, "found", True)
    kept = enriched(span(2, attributes, parent=1, name="execute_tool search"), rename_tools=False)[0]
    assert kept.name == "execute_tool search"
    assert "mlflow_otlp.span_name" not in kept.attributes


@pytest.mark.parametrize(
    ("kind", "failed", "level"),
    [
        *((kind, False, 20) for kind in ("AGENT", "LLM", "TOOL", "RETRIEVER", "EMBEDDING")),
        *((kind, False, None) for kind in ("CHAIN", "GUARDRAIL", None)),
        ("TOOL", True, 40),
        ("CHAIN", True, 40),
        (None, True, 40),
    ],
)
def test_level_is_that_of_mlflows_sdk(kind: str | None, level: int | None, *, failed: bool) -> None:
    """DEBUG is what MLflow takes a span without one for."""
    status = Status(StatusCode.ERROR) if failed else Status()
    found = one({"openinference.span.kind": kind} if kind else {}, status=status)
    assert found.attributes.get("mlflow.spanLogLevel") == level
    assert one({"mlflow.spanLogLevel": 50}, status=status).attributes["mlflow.spanLogLevel"] == 50


@pytest.mark.parametrize(
    "named",
    [
        {"prompt.id": "greeting", "prompt.version": 2},
        {"prompt.name": "greeting", "prompt.version": "2"},
        {**CHAT, "gen_ai.prompt.name": "greeting", "gen_ai.prompt.version": "2"},
        {"traceloop.prompt.key": "greeting", "traceloop.prompt.version": "2"},
    ],
)
def test_prompts_of_all_spans_are_told_on_the_root(named: dict[str, Any]) -> None:
    other = {**CHAT, "gen_ai.prompt.name": "summary", "gen_ai.prompt.version": "1"}
    unversioned = {**CHAT, "gen_ai.prompt.name": "loose"}
    found = enriched(
        span(1, {"openinference.span.kind": "AGENT"}),
        span(2, {"openinference.span.kind": "LLM", **named}, parent=1),
        span(3, other, parent=1),
        span(4, named, parent=1),
        span(5, unversioned, parent=1),
    )
    prompts = json.loads(found[0].attributes[PROMPTS])
    assert prompts == [{"name": "greeting", "version": "2"}, {"name": "summary", "version": "1"}]
    assert all(PROMPTS not in each.attributes for each in found[1:])


def test_files_that_a_chat_cannot_show_are_shown_beside_it() -> None:
    refs = [f"mlflow-attachment://{number}?content_type={kind}&trace_id=tr-1&size=9" for number, kind in FILES]
    content = [
        {"type": "image_url", "image_url": {"url": refs[0]}},
        {"type": "input_audio", "input_audio": {"data": refs[1], "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": refs[2], "format": "ogg"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": refs[3]}},
        {"type": "blob", "modality": "image", "content": refs[4]},
    ]
    request = {"messages": [{"role": "user", "content": content}]}
    found = inputs(one({"openinference.span.kind": "LLM", "input.value": json.dumps(request)}))
    assert found["files"] == [refs[2], refs[3]]
    assert found["messages"][0]["content"] == [
        content[0],
        content[1],
        {"type": "text", "text": "[audio ogg]"},
        {"type": "text", "text": "[file a.pdf]"},
        {"type": "image_url", "image_url": {"url": refs[4]}},
    ]
    assert "files" not in inputs(
        one({"openinference.span.kind": "LLM", "input.value": '{"messages": [{"role": "user"}]}'})
    )


def test_failed_span_gets_an_exception_unless_it_has_one() -> None:
    failed = Status(StatusCode.ERROR, "no such model")
    found = one({**CHAT, "error.type": "NotFound", "gen_ai.input.messages": said("hi")}, status=failed)
    (event,) = found.events
    assert (event.name, dict(event.attributes or {})) == (
        "exception",
        {"exception.type": "NotFound", "exception.message": "no such model"},
    )
    assert event.timestamp == 1000
    assert not found.ok
    assert json.loads(found.attributes["mlflow.chat.messages"]) == [{"role": "user", "content": "hi"}]
    own = Event("exception", {"exception.type": "Own"})
    assert list(one(CHAT, status=failed, events=[own]).events) == [own]


FILES = enumerate(("image%2Fpng", "audio%2Fwav", "audio%2Fogg", "application%2Fpdf", "image%2Fjpeg"))
PROMPTS = "mlflow.traceTag.mlflow.linkedPrompts"
OPENINFERENCE_USAGE = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 10, "llm.token_count.completion": 2}


@pytest.mark.parametrize(
    ("attributes", "is_there"),
    [
        # MLflow 3.6 counts nothing for a span that has it, whatever else there is.
        ({**CHAT, **USAGE}, False),
        (OPENINFERENCE_USAGE, False),
        ({**OPENINFERENCE_USAGE, "llm.token_count.total": 12}, False),
        # What OpenInference's counts do not tell every MLflow.
        ({**OPENINFERENCE_USAGE, "llm.token_count.total": 20}, True),
        ({**OPENINFERENCE_USAGE, "llm.token_count.prompt_details.cache_read": 4}, True),
        ({**CHAT, **USAGE, "gen_ai.usage.output_tokens": 0}, True),
        ({**CHAT, "mlflow.chat.tokenUsage": '{"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}'}, True),
    ],
)
def test_usage_of_mlflows_is_left_out_where_openinferences_counts_say_it_all(
    attributes: dict[str, Any], is_there: bool
) -> None:
    found = one(attributes).attributes
    assert ("mlflow.chat.tokenUsage" in found) is is_there
    assert "llm.token_count.prompt" in found


def test_usage_has_a_total_even_without_output() -> None:
    found = one({"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 18})
    usage = {"input_tokens": 18, "output_tokens": 0, "total_tokens": 18}
    assert json.loads(found.attributes["mlflow.chat.tokenUsage"]) == usage


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"operation.cost": 0.3}, (0.25, 0.05, 0.3)),  # divided by the tokens on each side
        ({"llm.cost.prompt": 0.1, "llm.cost.completion": 0.2}, (0.1, 0.2, 0.1 + 0.2)),
        ({"llm.cost.total": 0.3, "llm.cost.prompt": 0.1}, (0.1, 0.3 - 0.1, 0.3)),
        ({"gen_ai.usage.cost": 0}, None),  # OpenLIT does not know the price
        ({"operation.cost": "much"}, None),
    ],
)
def test_cost_has_all_three_parts(cost: Mapping[str, Any], expected: tuple[float, ...] | None) -> None:
    found = one({**CHAT, **USAGE, **cost}).attributes.get("mlflow.llm.cost", "{}")
    assert tuple(json.loads(found).values()) == pytest.approx(expected or ())


def test_tags_are_the_applications_and_never_mlflows_own() -> None:
    metadata = {"tenant": "acme", "langgraph_step": 3, "mlflow.user": "evil", "n": 3, "thread_id": "t-1"}
    found = one({"openinference.span.kind": "CHAIN", "tag.tags": ("prod",), "metadata": json.dumps(metadata)})
    tags = {key: value for key, value in found.attributes.items() if key.startswith("mlflow.traceTag.")}
    assert tags == {
        "mlflow.traceTag.mlflow.traceName": "span",
        "mlflow.traceTag.prod": "true",
        "mlflow.traceTag.tenant": "acme",
        "mlflow.traceTag.n": "3",
    }
    assert found.attributes["session.id"] == "t-1"


# Several spans


def test_root_without_words_gets_those_of_its_nearest_descendants() -> None:
    root, *_ = enriched(
        span(1, {"http.route": "/chat"}),
        span(2, {"gen_ai.operation.name": "invoke_agent"}, parent=1),
        span(3, {**CHAT, "gen_ai.input.messages": said("first?"), "gen_ai.output.messages": "[]"}, parent=2, start=3),
        span(
            4,
            {
                **CHAT,
                "gen_ai.input.messages": said("second?"),
                "gen_ai.output.messages": said("final", "assistant"),
                "gen_ai.conversation.id": "c-1",
                "user.id": "ada",
            },
            parent=2,
            start=50,
        ),
    )
    assert inputs(root) == {"messages": [{"role": "user", "content": "first?"}]}
    assert outputs(root)["choices"][0]["message"] == {"role": "assistant", "content": "final"}
    assert (root.attributes["session.id"], root.attributes["user.id"]) == ("c-1", "ada")
    assert root.attributes["mlflow.spanType"] == "UNKNOWN"


def test_usage_counts_where_the_call_was() -> None:
    usage = {**USAGE, "operation.cost": 0.5}
    agent, call = enriched(
        span(1, {"gen_ai.operation.name": "invoke_agent", **usage}), span(2, {**CHAT, **usage}, parent=1)
    )
    assert "llm.token_count.prompt" in call.attributes
    assert not {"mlflow.chat.tokenUsage", "mlflow.llm.cost", "llm.token_count.prompt"} & set(agent.attributes)
    assert not [key for key in agent.attributes if key.startswith("gen_ai.usage.")]
    assert agent.attributes["gen_ai.aggregated_usage.input_tokens"] == 10
    assert agent.attributes["operation.aggregated_cost"] == 0.5


def test_usage_of_an_agent_whose_calls_are_not_there_counts() -> None:
    (agent,) = enriched(span(1, {"gen_ai.operation.name": "invoke_agent", **USAGE}))
    assert "llm.token_count.prompt" in agent.attributes


@pytest.mark.parametrize("nested", [True, False])
def test_span_of_a_client_that_repeats_a_call_counts_nothing(nested: bool) -> None:
    call = {**CHAT, **USAGE, "gen_ai.response.id": "r-1"}
    told = span(1, {**call, "gen_ai.input.messages": said("hi")}, scope="instrumentation")
    again = span(2, call, parent=1 if nested else None, trace=1 if nested else 2, scope=ANTHROPIC_SDK)
    first, second = enriched(told, again)
    assert "llm.token_count.prompt" in first.attributes
    assert not {"mlflow.chat.tokenUsage", "llm.token_count.prompt"} & set(second.attributes)
    assert second.attributes["gen_ai.aggregated_usage.input_tokens"] == 10


def test_span_of_a_client_that_nothing_else_tells_of_counts() -> None:
    (alone,) = enriched(span(1, {**CHAT, **USAGE, "gen_ai.response.id": "r-1"}, scope=ANTHROPIC_SDK))
    assert "llm.token_count.prompt" in alone.attributes


def test_tools_of_an_agent_are_its_models_tools() -> None:
    tools = json.dumps([{"name": "search", "parameters": {"type": "OBJECT", "properties": {"q": {"type": "STRING"}}}}])
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.tool.definitions": tools}
    _, call = enriched(span(1, agent), span(2, CHAT, parent=1))
    assert json.loads(call.attributes["mlflow.chat.tools"]) == [
        {
            "type": "function",
            "function": {
                "name": "search",
                "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
            },
        }
    ]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ({"input.value": "Paris", "tool.id": "c1"}, {"city": "Paris"}),
        ({"input.value": "Paris"}, {"city": "Paris"}),  # by the call's own value
        ({"input.value": '{"args": ["Paris"], "kwargs": {}}'}, {"city": "Paris"}),
        ({"input.value": '{"kwargs": {"city": "Paris"}}'}, {"city": "Paris"}),
        ({"input.value": '{"city": "Oslo"}', "tool.id": "c1"}, {"city": "Oslo"}),
        ({"input.value": "Oslo"}, "Oslo"),
        ({"output.value": '{"type": "tool", "data": {"content": "x", "tool_call_id": "c1"}}'}, {"city": "Paris"}),
    ],
)
def test_arguments_of_a_tool_have_names(tool: Mapping[str, Any], arguments: Any) -> None:
    parts = [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}}]
    answer = json.dumps([{"role": "assistant", "parts": parts}])
    _, _, called = enriched(
        span(1, {"gen_ai.operation.name": "invoke_agent"}),
        span(2, {**CHAT, "gen_ai.output.messages": answer}, parent=1),
        span(3, {"openinference.span.kind": "TOOL", "tool.name": "weather", **tool}, parent=1),
    )
    assert inputs(called) == arguments


def test_outer_span_of_calls_is_an_agent() -> None:
    outer, inner = enriched(
        span(1, {"ai.operationId": "ai.generateText", "ai.prompt": '{"prompt": "hi"}', "ai.response.text": "yo"}),
        span(2, {"ai.operationId": "ai.generateText.doGenerate", "ai.response.text": "yo"}, parent=1),
    )
    assert (outer.attributes["mlflow.spanType"], inner.attributes["mlflow.spanType"]) == ("AGENT", "CHAT_MODEL")
    (alone,) = enriched(span(1, {"ai.operationId": "ai.generateText", "ai.prompt": '{"prompt": "hi"}'}))
    assert alone.attributes["mlflow.spanType"] == "CHAT_MODEL"


def test_trace_that_comes_in_pieces_is_remembered_until_it_is_whole() -> None:
    enricher = Enricher()
    call = {**CHAT, **USAGE, "gen_ai.input.messages": said("q?"), "gen_ai.output.messages": said("a", "assistant")}
    enricher.enrich([span(3, {**call, "session.id": "s"}, parent=2)])
    enricher.enrich([span(2, {"gen_ai.operation.name": "invoke_agent", **USAGE}, parent=1)])
    (root,) = enricher.enrich([span(1)])
    assert isinstance(root, EnrichedSpan)
    assert inputs(root) == {"messages": [{"role": "user", "content": "q?"}]}
    assert root.attributes["session.id"] == "s"
    assert len(enricher._memory) == 0


# Anything at all


def again(found: EnrichedSpan) -> ReadableSpan:
    """An enriched span as one that is exported a second time."""
    old = found.span
    return ReadableSpan(
        found.name,
        old.get_span_context(),
        parent=old.parent,
        attributes=dict(found.attributes),
        resource=old.resource,
        events=found.events,
        status=Status(StatusCode.OK) if found.ok else old.status,
        instrumentation_scope=old.instrumentation_scope,
        start_time=old.start_time,
        end_time=old.end_time,
    )


def shape(found: EnrichedSpan) -> tuple[Any, ...]:
    return found.name, sorted((key, repr(value)) for key, value in found.attributes.items()), len(found.events)


@settings(max_examples=200, deadline=None)
@given(traces(), st.booleans())
def test_anything_is_enriched_and_can_be_encoded(spans: list[ReadableSpan], compact: bool) -> None:
    encoder = SpanEncoder()
    for found in enriched(*spans, compact=compact):
        encoder.encode(found.span, found.attributes, name=found.name, events=found.events)
        if not compact:
            own = found.span.attributes or {}
            renamed = ("gen_ai.usage.", "llm.token_count.", "llm.cost.", "operation.cost")
            for key, value in own.items():
                if (key, value) == ("mlflow.spanType", "null"):
                    continue  # MLflow's SDK says so of a span without a type; the server would take it for one
                assert found.attributes.get(key) == value or key.startswith(renamed) or value != value  # noqa: PLR0124


@settings(max_examples=200, deadline=None)
@given(traces(), st.booleans())
def test_enriching_twice_changes_nothing(spans: list[ReadableSpan], compact: bool) -> None:
    first = enriched(*spans, compact=compact)
    second = enriched(*map(again, first), compact=compact)
    assert list(map(shape, second)) == list(map(shape, first))


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "[" * 100_000,
        '{"messages":' * 5000,
        '{"messages": [' + ",".join(['{"role": "user", "content": "x"}'] * 100_000) + "]}",
        json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "y" * 3_000_000}]}]}),
    ],
    ids=["10 MB of text", "open brackets", "open objects", "100,000 messages", "3 MB message"],
)
@pytest.mark.parametrize("key", ["input.value", "gen_ai.input.messages", "metadata", "gen_ai.tool.definitions"])
def test_huge_values_take_bounded_time(key: str, value: str) -> None:
    begin = time.thread_time()
    one({"openinference.span.kind": "LLM", key: value})
    assert time.thread_time() - begin < 2.0
