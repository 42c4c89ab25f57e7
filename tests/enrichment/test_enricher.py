"""The enricher as a whole: it never raises, changes nothing the second time, and keeps what the application set."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status, StatusCode

from mlflow_otlp_exporter._internal.encoding.span_encoder import SpanEncoder
from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher
from support.random_traces import ANTHROPIC_SDK, span, traces


def enrich_spans(*spans: ReadableSpan, **settings_: Any) -> list[EnrichedSpan]:
    result = Enricher(**settings_).enrich(spans)
    assert all(isinstance(item, EnrichedSpan) for item in result)
    return result  # type: ignore[return-value]  # checked above


def enrich_in_pieces(spans: Sequence[ReadableSpan], size: int) -> list[EnrichedSpan]:
    enricher = Enricher()
    pieces = [enricher.enrich(spans[first : first + size]) for first in range(0, len(spans), size)]
    return [item for piece in pieces for item in piece if isinstance(item, EnrichedSpan)]


def enrich_span(attributes: Mapping[str, Any], **arguments: Any) -> EnrichedSpan:
    return enrich_spans(span(1, attributes, **arguments))[0]


def parse_inputs(enriched: EnrichedSpan) -> Any:
    return json.loads(enriched.attributes["mlflow.spanInputs"])


def parse_outputs(enriched: EnrichedSpan) -> Any:
    return json.loads(enriched.attributes["mlflow.spanOutputs"])


def dump_messages(text: str, role: str = "user") -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
USAGE = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 2}


# One span


@pytest.mark.parametrize(
    "attributes",
    [
        {"error.type": "tool_error", "gen_ai.tool.call.result": "boom"},
        {"gen_ai.tool.call.result": '{"content": [{"type": "text", "text": "boom"}], "isError": true}'},
        {"gen_ai.tool.call.result": '{"content": "boom", "type": "tool", "tool_call_id": "c", "status": "error"}'},
    ],
)
def test_enrich_tool_that_tells_of_an_error_sets_status_and_exception_event(attributes: Mapping[str, Any]) -> None:
    enriched = enrich_span({**TOOL, **attributes})
    assert enriched.status is not None
    assert enriched.status.status_code is StatusCode.ERROR
    assert "boom" in str([dict(event.attributes or {}) for event in enriched.events])


def test_enrich_events_with_content_as_json_shows_chat() -> None:
    user = Event("gen_ai.user.message", {"gen_ai.event.content": '{"role": "user", "content": "Weather?"}'})
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls", "index": 0}
    enriched = enrich_span(CHAT, events=[user, Event("gen_ai.choice", {"gen_ai.event.content": json.dumps(choice)})])
    assert parse_inputs(enriched)["messages"] == [{"role": "user", "content": "Weather?"}]
    assert parse_outputs(enriched)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "search"


def test_enrich_calls_in_completions_of_their_own_makes_one_message_with_both() -> None:
    names = ("search", "fetch")
    calls = {f"gen_ai.completion.{index}.function_call.name": name for index, name in enumerate(names)}
    empty = '[{"role": "assistant", "parts": [], "finish_reason": "tool_calls"}]'
    enriched = enrich_span({**CHAT, "gen_ai.output.messages": empty, **calls})
    (choice,) = parse_outputs(enriched)["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == list(names)


def test_enrich_reads_costs_that_the_source_states() -> None:
    costs = {"gen_ai.cost.total_cost": 3e-5, "gen_ai.cost.input_cost": 1e-5, "gen_ai.cost.output_cost": 2e-5}
    cost = json.loads(enrich_span({**CHAT, **USAGE, **costs}).attributes["mlflow.llm.cost"])
    assert cost == {"input_cost": 1e-5, "output_cost": 2e-5, "total_cost": 3e-5}


def test_enrich_other_span_adds_type_and_trace_name() -> None:
    enriched = enrich_span({"http.request.method": "POST", "url.path": "/chat"}, name="POST /chat")
    assert dict(enriched.attributes) == {
        "http.request.method": "POST",
        "url.path": "/chat",
        "mlflow.spanType": "UNKNOWN",
        "mlflow.traceTag.mlflow.traceName": "POST /chat",
    }
    assert (enriched.name, enriched.status) == ("POST /chat", None)


def test_enrich_keeps_attributes_of_application() -> None:
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
    enriched = enrich_span(own)
    assert {key: enriched.attributes[key] for key in own} == own


def test_enrich_tool_span_takes_name_of_tool_and_keeps_old_name() -> None:
    attributes = {**TOOL, "gen_ai.tool.call.arguments": '{"q": "x"}', "gen_ai.tool.call.result": "found"}
    enriched = enrich_spans(span(2, attributes, parent=1, name="execute_tool search"))[0]
    assert (enriched.name, enriched.attributes["mlflow_otlp.span_name"]) == ("search", "execute_tool search")
    assert (parse_inputs(enriched), parse_outputs(enriched)) == ({"q": "x"}, "found")
    assert enriched.status is not None
    assert enriched.status.is_ok


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
def test_enrich_sets_same_level_as_mlflow_sdk(kind: str | None, level: int | None, *, failed: bool) -> None:
    """MLflow treats a span without a level as DEBUG."""
    status = Status(StatusCode.ERROR) if failed else Status()
    enriched = enrich_span({"openinference.span.kind": kind} if kind else {}, status=status)
    assert enriched.attributes.get("mlflow.spanLogLevel") == level
    assert enrich_span({"mlflow.spanLogLevel": 50}, status=status).attributes["mlflow.spanLogLevel"] == 50


@pytest.mark.parametrize(
    "named",
    [
        {"prompt.id": "greeting", "prompt.version": 2},
        {"prompt.name": "greeting", "prompt.version": "2"},
        {**CHAT, "gen_ai.prompt.name": "greeting", "gen_ai.prompt.version": "2"},
        {"traceloop.prompt.key": "greeting", "traceloop.prompt.version": "2"},
    ],
)
def test_enrich_root_collects_prompts_of_all_spans(named: dict[str, Any]) -> None:
    other = {**CHAT, "gen_ai.prompt.name": "summary", "gen_ai.prompt.version": "1"}
    unversioned = {**CHAT, "gen_ai.prompt.name": "loose"}
    enriched = enrich_spans(
        span(1, {"openinference.span.kind": "AGENT"}),
        span(2, {"openinference.span.kind": "LLM", **named}, parent=1),
        span(3, other, parent=1),
        span(4, named, parent=1),
        span(5, unversioned, parent=1),
    )
    prompts = json.loads(enriched[0].attributes[PROMPTS])
    assert prompts == [{"name": "greeting", "version": "2"}, {"name": "summary", "version": "1"}]
    assert all(PROMPTS not in child.attributes for child in enriched[1:])


def test_enrich_chat_lists_files_that_messages_cannot_hold() -> None:
    references = [f"mlflow-attachment://{number}?content_type={kind}&trace_id=tr-1&size=9" for number, kind in FILES]
    content = [
        {"type": "image_url", "image_url": {"url": references[0]}},
        {"type": "input_audio", "input_audio": {"data": references[1], "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": references[2], "format": "ogg"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": references[3]}},
        {"type": "blob", "modality": "image", "content": references[4]},
    ]
    request = {"messages": [{"role": "user", "content": content}]}
    inputs = parse_inputs(enrich_span({"openinference.span.kind": "LLM", "input.value": json.dumps(request)}))
    assert inputs["files"] == [references[2], references[3]]
    assert inputs["messages"][0]["content"] == [
        content[0],
        content[1],
        {"type": "text", "text": "[audio ogg]"},
        {"type": "text", "text": "[file a.pdf]"},
        {"type": "image_url", "image_url": {"url": references[4]}},
    ]
    assert "files" not in parse_inputs(
        enrich_span(
            {"openinference.span.kind": "LLM", "input.value": '{"messages": [{"role": "user", "content": "hi"}]}'}
        )
    )


_LONG_TEXT = "x" * 2000
_TEXTS = st.text(max_size=20) | st.text(alphabet='"\\\x00\x1f\n\té漢😀\ud800', max_size=20)


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "call", "tool"]), _TEXTS), min_size=1, max_size=6
    )
)
def test_enrich_long_conversation_writes_same_json_as_short_one(messages: list[tuple[str, str]]) -> None:
    attributes: dict[str, Any] = {"openinference.span.kind": "LLM", "llm.model_name": "m"}
    for index, (role, text) in enumerate(messages):
        prefix = f"llm.input_messages.{index}.message."
        attributes[prefix + "role"] = "assistant" if role == "call" else role
        attributes[prefix + "content"] = text + "."
        if role == "call":
            attributes[prefix + "tool_calls.0.tool_call.function.name"] = text
    short = enrich_span(attributes).attributes["mlflow.spanInputs"]
    prefix = f"llm.input_messages.{len(messages)}.message."
    enriched = enrich_span({**attributes, prefix + "role": "user", prefix + "content": _LONG_TEXT})
    inputs = enriched.attributes["mlflow.spanInputs"]
    end = '], "model": "m"}'
    assert short.endswith(end)
    expected = short.removesuffix(end) + f', {{"role": "user", "content": "{_LONG_TEXT}"}}' + end
    assert (inputs.decode() if isinstance(inputs, bytes) else inputs) == expected
    assert isinstance(inputs, bytes) or "\ud800" in expected


def test_enrich_failed_span_adds_missing_exception_event() -> None:
    failed = Status(StatusCode.ERROR, "no such model")
    enriched = enrich_span(
        {**CHAT, "error.type": "NotFound", "gen_ai.input.messages": dump_messages("hi")}, status=failed
    )
    (event,) = enriched.events
    assert (event.name, dict(event.attributes or {})) == (
        "exception",
        {"exception.type": "NotFound", "exception.message": "no such model"},
    )
    assert event.timestamp == 1000
    assert enriched.status is None
    assert json.loads(enriched.attributes["mlflow.chat.messages"]) == [{"role": "user", "content": "hi"}]
    own = Event("exception", {"exception.type": "Own"})
    assert list(enrich_span(CHAT, status=failed, events=[own]).events) == [own]


FILES = enumerate(("image%2Fpng", "audio%2Fwav", "audio%2Fogg", "application%2Fpdf", "image%2Fjpeg"))
PROMPTS = "mlflow.traceTag.mlflow.linkedPrompts"
OPENINFERENCE_USAGE = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 10, "llm.token_count.completion": 2}


@pytest.mark.parametrize(
    ("attributes", "is_there"),
    [
        # MLflow 3.6 counts no tokens of a span that has it, whatever else the span has.
        ({**CHAT, **USAGE}, False),
        (OPENINFERENCE_USAGE, False),
        ({**OPENINFERENCE_USAGE, "llm.token_count.total": 12}, False),
        # Not every MLflow reads these from OpenInference's counts.
        ({**OPENINFERENCE_USAGE, "llm.token_count.total": 20}, True),
        ({**OPENINFERENCE_USAGE, "llm.token_count.prompt_details.cache_read": 4}, True),
        ({**CHAT, **USAGE, "gen_ai.usage.output_tokens": 0}, True),
        ({**CHAT, "mlflow.chat.tokenUsage": '{"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}'}, True),
    ],
)
def test_enrich_omits_mlflow_usage_if_openinference_counts_suffice(attributes: dict[str, Any], is_there: bool) -> None:
    enriched = enrich_span(attributes).attributes
    assert ("mlflow.chat.tokenUsage" in enriched) is is_there
    assert "llm.token_count.prompt" in enriched


def test_enrich_usage_without_output_has_total() -> None:
    enriched = enrich_span({"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 18})
    usage = {"input_tokens": 18, "output_tokens": 0, "total_tokens": 18}
    assert json.loads(enriched.attributes["mlflow.chat.tokenUsage"]) == usage


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"operation.cost": 0.3}, (0.25, 0.05, 0.3)),  # divided by the tokens of input and output
        ({"llm.cost.prompt": 0.1, "llm.cost.completion": 0.2}, (0.1, 0.2, 0.1 + 0.2)),
        ({"llm.cost.total": 0.3, "llm.cost.prompt": 0.1}, (0.1, 0.3 - 0.1, 0.3)),
        ({"gen_ai.usage.cost": 0}, None),  # OpenLIT without a known price
        ({"operation.cost": "much"}, None),
    ],
)
def test_enrich_cost_has_all_three_keys(cost: Mapping[str, Any], expected: tuple[float, ...] | None) -> None:
    cost_json = enrich_span({**CHAT, **USAGE, **cost}).attributes.get("mlflow.llm.cost", "{}")
    assert tuple(json.loads(cost_json).values()) == pytest.approx(expected or ())


def test_enrich_root_omits_reserved_and_framework_tags() -> None:
    metadata = {"tenant": "acme", "langgraph_step": 3, "mlflow.user": "evil", "n": 3, "thread_id": "t-1"}
    enriched = enrich_span(
        {"openinference.span.kind": "CHAIN", "tag.tags": ("prod",), "metadata": json.dumps(metadata)}
    )
    tags = {key: value for key, value in enriched.attributes.items() if key.startswith("mlflow.traceTag.")}
    assert tags == {
        "mlflow.traceTag.mlflow.traceName": "span",
        "mlflow.traceTag.prod": "true",
        "mlflow.traceTag.tenant": "acme",
        "mlflow.traceTag.n": "3",
    }
    assert enriched.attributes["session.id"] == "t-1"


# Several spans


def test_enrich_root_without_texts_takes_those_of_nearest_descendants() -> None:
    root, *_ = enrich_spans(
        span(1, {"http.route": "/chat"}),
        span(2, {"gen_ai.operation.name": "invoke_agent"}, parent=1),
        span(
            3,
            {**CHAT, "gen_ai.input.messages": dump_messages("first?"), "gen_ai.output.messages": "[]"},
            parent=2,
            start=3,
        ),
        span(
            4,
            {
                **CHAT,
                "gen_ai.input.messages": dump_messages("second?"),
                "gen_ai.output.messages": dump_messages("final", "assistant"),
                "gen_ai.conversation.id": "c-1",
                "user.id": "ada",
            },
            parent=2,
            start=50,
        ),
    )
    assert parse_inputs(root) == {"messages": [{"role": "user", "content": "first?"}]}
    assert parse_outputs(root)["choices"][0]["message"] == {"role": "assistant", "content": "final"}
    assert (root.attributes["session.id"], root.attributes["user.id"]) == ("c-1", "ada")
    assert root.attributes["mlflow.spanType"] == "UNKNOWN"


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("case", ["history", "agents", "pipeline", "parallel agents"])
def test_enrich_root_of_several_turns_takes_last_question_and_answer(case: str, size: int) -> None:
    """A pipeline's later prompts are no turns."""
    spans = [span(1, {}, name="session")]
    for number, question in enumerate(("Rain?", "Snow?"), 2):
        start = number if case == "parallel agents" else number * 2000
        if case in ("history", "pipeline"):
            asked = ("Rain?", question) if case == "history" and number > 2 else (question,)
            parts = [[{"type": "text", "content": text}] for text in asked]
            messages = json.dumps([{"role": "user", "parts": items} for items in parts])
            content = {**CHAT, "gen_ai.input.messages": messages}
            content["gen_ai.output.messages"] = dump_messages(f"{question} No.", "assistant")
        else:
            content = {"openinference.span.kind": "AGENT", "input.value": question, "output.value": f"{question} No."}
        spans.append(span(number, content, parent=1, start=start, name="turn"))
    enriched = enrich_in_pieces(spans[::-1], size)
    is_turn = case in ("history", "agents")
    assert parse_inputs(enriched[-1])["messages"][0]["content"] == ("Snow?" if is_turn else "Rain?")
    assert parse_outputs(enriched[-1])["choices"][0]["message"]["content"] == (
        "Rain? No." if case == "parallel agents" else "Snow? No."
    )


def test_enrich_question_and_answer_keep_fields_beside_them() -> None:
    enriched = enrich_span(
        {
            "openinference.span.kind": "AGENT",
            "input.value": '{"question": "Rain?", "user_id": "u-1"}',
            "output.value": '{"answer": "Yes.", "sources": ["a.md"]}',
        }
    )
    assert parse_inputs(enriched) == {"messages": [{"role": "user", "content": "Rain?"}], "user_id": "u-1"}
    outputs = parse_outputs(enriched)
    assert outputs.pop("choices")[0]["message"]["content"] == "Yes."
    assert outputs == {"sources": ["a.md"]}


@pytest.mark.parametrize("own", [{}, {"openinference.span.kind": "CHAIN", "input.value": "{}", "output.value": "null"}])
@pytest.mark.parametrize("size", [1, 10])
def test_enrich_root_without_texts_takes_first_and_last_value_below(own: dict[str, Any], size: int) -> None:
    below = {"openinference.span.kind": "AGENT", "input.value": '{"q": "Rain?"}', "output.value": '{"rain": true}'}
    tool = {**TOOL, "gen_ai.tool.call.arguments": '{"city": "Paris"}', "gen_ai.tool.call.result": "21 C"}
    spans = [span(3, tool, parent=1, start=2000), span(2, below, parent=1), span(1, own)]
    enriched = enrich_in_pieces(spans, size)
    assert (parse_inputs(enriched[-1]), parse_outputs(enriched[-1])) == ({"q": "Rain?"}, "21 C")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"args": ["Paris", "London"], "kwargs": {}}', ["Paris", "London"]),
        ('{"args": [], "kwargs": {"city": "Paris", "days": 3}}', {"city": "Paris", "days": 3}),
        ('{"graph": null, "update": null, "resume": {"ok": true}, "goto": []}', {"resume": {"ok": True}}),
    ],
)
def test_enrich_root_shows_input_without_envelope(value: str, expected: Any) -> None:
    assert parse_inputs(enrich_span({"openinference.span.kind": "CHAIN", "input.value": value})) == expected


def test_enrich_usage_counts_on_model_span_only() -> None:
    usage = {**USAGE, "operation.cost": 0.5}
    agent, call = enrich_spans(
        span(1, {"gen_ai.operation.name": "invoke_agent", **usage}), span(2, {**CHAT, **usage}, parent=1)
    )
    assert "llm.token_count.prompt" in call.attributes
    assert not {"mlflow.chat.tokenUsage", "mlflow.llm.cost", "llm.token_count.prompt"} & set(agent.attributes)
    assert not [key for key in agent.attributes if key.startswith("gen_ai.usage.")]
    assert agent.attributes["gen_ai.aggregated_usage.input_tokens"] == 10
    assert agent.attributes["operation.aggregated_cost"] == 0.5


@pytest.mark.parametrize("cost", [{"operation.cost": 0.5}, {"llm.cost.total": 0.5}])
def test_enrich_cost_of_agent_without_model_spans_is_written(cost: Mapping[str, Any]) -> None:
    """MLflow 3.18 computes no cost for an agent from its tokens."""
    (agent,) = enrich_spans(span(1, {"gen_ai.operation.name": "invoke_agent", **USAGE, **cost}))
    assert json.loads(agent.attributes["mlflow.llm.cost"])["total_cost"] == 0.5
    assert "mlflow.llm.model" not in agent.attributes


def test_enrich_usage_of_agent_without_model_spans_counts() -> None:
    (agent,) = enrich_spans(span(1, {"gen_ai.operation.name": "invoke_agent", **USAGE}))
    assert "llm.token_count.prompt" in agent.attributes


@pytest.mark.parametrize("nested", [True, False])
def test_enrich_duplicate_client_span_counts_no_usage(nested: bool) -> None:
    call = {**CHAT, **USAGE, "gen_ai.response.id": "r-1"}
    instrumented = span(1, {**call, "gen_ai.input.messages": dump_messages("hi")}, scope="instrumentation")
    duplicate = span(2, call, parent=1 if nested else None, trace=1 if nested else 2, scope=ANTHROPIC_SDK)
    first, second = enrich_spans(instrumented, duplicate)
    assert "llm.token_count.prompt" in first.attributes
    assert not {"mlflow.chat.tokenUsage", "llm.token_count.prompt"} & set(second.attributes)
    assert second.attributes["gen_ai.aggregated_usage.input_tokens"] == 10


def test_enrich_single_client_span_counts_usage() -> None:
    (alone,) = enrich_spans(span(1, {**CHAT, **USAGE, "gen_ai.response.id": "r-1"}, scope=ANTHROPIC_SDK))
    assert "llm.token_count.prompt" in alone.attributes


def test_enrich_model_span_takes_tools_of_agent() -> None:
    tools = json.dumps([{"name": "search", "parameters": {"type": "OBJECT", "properties": {"q": {"type": "STRING"}}}}])
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.tool.definitions": tools}
    _, call = enrich_spans(span(1, agent), span(2, CHAT, parent=1))
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
        ({"input.value": "Paris"}, {"city": "Paris"}),  # matched by the value of the call
        ({"input.value": '{"args": ["Paris"], "kwargs": {}}'}, {"city": "Paris"}),
        ({"input.value": '{"kwargs": {"city": "Paris"}}'}, {"city": "Paris"}),
        ({"input.value": '{"city": "Oslo"}', "tool.id": "c1"}, {"city": "Oslo"}),
        ({"input.value": "Oslo"}, "Oslo"),
        ({"output.value": '{"type": "tool", "data": {"content": "x", "tool_call_id": "c1"}}'}, {"city": "Paris"}),
    ],
)
def test_enrich_tool_span_takes_argument_names_from_call(tool: Mapping[str, Any], arguments: Any) -> None:
    parts = [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}}]
    answer = json.dumps([{"role": "assistant", "parts": parts}])
    _, _, tool_span = enrich_spans(
        span(1, {"gen_ai.operation.name": "invoke_agent"}),
        span(2, {**CHAT, "gen_ai.output.messages": answer}, parent=1),
        span(3, {"openinference.span.kind": "TOOL", "tool.name": "weather", **tool}, parent=1),
    )
    assert parse_inputs(tool_span) == arguments


def test_enrich_outer_span_of_calls_becomes_agent() -> None:
    outer, call = enrich_spans(
        span(1, {"ai.operationId": "ai.generateText", "ai.prompt": '{"prompt": "hi"}', "ai.response.text": "yo"}),
        span(2, {"ai.operationId": "ai.generateText.doGenerate", "ai.response.text": "yo"}, parent=1),
    )
    assert (outer.attributes["mlflow.spanType"], call.attributes["mlflow.spanType"]) == ("AGENT", "CHAT_MODEL")
    (alone,) = enrich_spans(span(1, {"ai.operationId": "ai.generateText", "ai.prompt": '{"prompt": "hi"}'}))
    assert alone.attributes["mlflow.spanType"] == "CHAT_MODEL"


def test_enrich_trace_in_pieces_is_cached_until_complete() -> None:
    enricher = Enricher()
    call = {
        **CHAT,
        **USAGE,
        "gen_ai.input.messages": dump_messages("q?"),
        "gen_ai.output.messages": dump_messages("a", "assistant"),
    }
    enricher.enrich([span(3, {**call, "session.id": "s"}, parent=2)])
    enricher.enrich([span(2, {"gen_ai.operation.name": "invoke_agent", **USAGE}, parent=1)])
    (root,) = enricher.enrich([span(1)])
    assert isinstance(root, EnrichedSpan)
    assert parse_inputs(root) == {"messages": [{"role": "user", "content": "q?"}]}
    assert root.attributes["session.id"] == "s"
    assert len(enricher._trace_cache.traces) == 0


# Arbitrary spans


def to_readable_span(enriched: EnrichedSpan) -> ReadableSpan:
    """The enriched span as if it were exported a second time."""
    span = enriched.span
    return ReadableSpan(
        enriched.name,
        span.get_span_context(),
        parent=span.parent,
        attributes=dict(enriched.attributes),
        resource=span.resource,
        events=enriched.events,
        status=enriched.status or span.status,
        instrumentation_scope=span.instrumentation_scope,
        start_time=span.start_time,
        end_time=span.end_time,
    )


def summarize(enriched: EnrichedSpan) -> tuple[Any, ...]:
    return enriched.name, sorted((key, repr(value)) for key, value in enriched.attributes.items()), len(enriched.events)


@settings(max_examples=200, deadline=None)
@given(traces(), st.booleans())
def test_enrich_any_span_succeeds_and_can_be_encoded(spans: list[ReadableSpan], compact: bool) -> None:
    encoder = SpanEncoder()
    for enriched in enrich_spans(*spans, compact=compact):
        encoder.encode(enriched.span, enriched.attributes, name=enriched.name, events=enriched.events)
        if not compact:
            own = enriched.span.attributes or {}
            renamed = ("gen_ai.usage.", "llm.token_count.", "llm.cost.", "operation.cost")
            for key, value in own.items():
                if (key, value) == ("mlflow.spanType", "null"):
                    continue  # MLflow's SDK writes it on spans without a type; the server would display it as a type
                if key == "mlflow.spanType" and isinstance(value, str) and value[:1] == '"':
                    value = value.strip('"')  # noqa: PLW2901 - JSON of MLflow's SDK
                if key == "session.id" and enriched.span.parent is not None:
                    continue  # the spans of a trace get the root's session
                assert enriched.attributes.get(key) == value or key.startswith(renamed) or value != value  # noqa: PLR0124


@settings(max_examples=200, deadline=None)
@given(traces(), st.booleans())
def test_enrich_twice_changes_nothing(spans: list[ReadableSpan], compact: bool) -> None:
    first = enrich_spans(*spans, compact=compact)
    second = enrich_spans(*map(to_readable_span, first), compact=compact)
    assert list(map(summarize, second)) == list(map(summarize, first))


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
def test_enrich_huge_value_takes_bounded_time(key: str, value: str) -> None:
    begin = time.thread_time()
    enrich_span({"openinference.span.kind": "LLM", key: value})
    assert time.thread_time() - begin < 2.0


CALL_PARTS = [{"type": "tool_call", "id": "", "name": "search", "arguments": {"q": "rain"}}]
LONG_TRACES: dict[str, list[dict[str, Any]]] = {
    "models": [{"openinference.span.kind": "LLM"}],
    "models with usage": [{**CHAT, **USAGE}],
    "agents without texts": [{"openinference.span.kind": "AGENT"}],
    "agents and tools": [
        {"openinference.span.kind": "AGENT"},
        {"openinference.span.kind": "LLM"},
        {**TOOL, "gen_ai.tool.definitions": '[{"name": "search"}]'},
    ],
    "outer spans of calls": [{"ai.operationId": "ai.generateText", "ai.prompt": '{"prompt": "hi"}'}],
    "calls with bare values": [
        {**CHAT, "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": CALL_PARTS}])},
        {**TOOL, "gen_ai.tool.call.arguments": "snow"},
    ],
    "tools on each call": [
        {
            **CHAT,
            "gen_ai.tool.definitions": json.dumps([{"name": f"tool-{number}"} for number in range(4)]),
        },
        {**TOOL, "gen_ai.tool.call.arguments": "snow"},
    ],
}


@pytest.mark.parametrize("scope", ["tests", ANTHROPIC_SDK])
@pytest.mark.parametrize("parent", ["span before", "root", "missing"])
@pytest.mark.parametrize("case", LONG_TRACES)
def test_enrich_long_trace_takes_linear_time(case: str, parent: str, scope: str) -> None:
    """Before, 4,000 spans in a chain took 10 s and more: each walked to the root."""
    kinds = LONG_TRACES[case]
    parents = {"root": 1, "missing": 99_999}
    spans = [span(1, kinds[0], scope=scope)] if parent != "missing" else []
    spans += [
        span(number, kinds[number % len(kinds)], parent=parents.get(parent, number - 1), scope=scope)
        for number in range(2, 3001)
    ]
    enricher = Enricher()
    begin = time.thread_time()
    enricher.enrich(spans)
    assert time.thread_time() - begin < 2.0


@pytest.mark.parametrize("reverse", [False, True])
def test_enrich_agent_takes_texts_of_nested_agent_in_any_order(reverse: bool) -> None:
    spans = [
        span(1, {"gen_ai.operation.name": "invoke_agent"}),
        span(2, {"gen_ai.operation.name": "invoke_agent"}, parent=1),
        span(3, {"openinference.span.kind": "CHAIN"}, parent=1, start=1),
        span(4, {**CHAT, "gen_ai.input.messages": dump_messages("inner?")}, parent=2, start=9),
        span(5, {**CHAT, "gen_ai.input.messages": dump_messages("sibling?")}, parent=3, start=2),
    ]
    enriched = {item.span: item for item in enrich_spans(*(reversed(spans) if reverse else spans))}
    assert parse_inputs(enriched[spans[0]]) == {"messages": [{"role": "user", "content": "inner?"}]}


def test_enrich_model_span_takes_tools_of_its_own_agent_only() -> None:
    model, *_ = enrich_spans(
        span(4, CHAT, parent=1),
        span(2, {"gen_ai.operation.name": "invoke_agent"}, parent=1),
        span(3, {**TOOL, "gen_ai.tool.definitions": '[{"name": "nested"}]'}, parent=2),
        span(5, {**TOOL, "gen_ai.tool.definitions": '[{"name": "own"}]'}, parent=1),
        span(1, {"gen_ai.operation.name": "invoke_agent"}),
    )
    tools = json.loads(model.attributes["mlflow.chat.tools"])
    assert [definition["function"]["name"] for definition in tools] == ["own"]


# One call, one count


def read_tokens(enriched: EnrichedSpan) -> dict[str, Any]:
    """The tokens that MLflow counts for the span."""
    attributes = enriched.attributes
    if "mlflow.chat.tokenUsage" in attributes:
        return dict(json.loads(attributes["mlflow.chat.tokenUsage"]))
    names = {"prompt": "input_tokens", "completion": "output_tokens", "total": "total_tokens"}
    counts = {name: attributes.get(f"llm.token_count.{count}") for count, name in names.items()}
    return {name: count for name, count in counts.items() if count is not None}


@pytest.mark.parametrize(
    ("scope", "attributes", "expected_input"),
    [
        ("any", {"gen_ai.usage.cache_read.input_tokens": 6}, 10),  # included
        ("any", {"gen_ai.usage.cache_read.input_tokens": 40}, 50),  # more than all input tokens
        ("any", {"gen_ai.usage.cache_read.input_tokens": 6, "gen_ai.usage.total_tokens": 18}, 16),
        ("any", {"gen_ai.usage.cache_read.input_tokens": 6, "gen_ai.usage.total_tokens": 12}, 10),
        ("opentelemetry.instrumentation.botocore.bedrock-runtime", {"gen_ai.usage.cache_read.input_tokens": 6}, 16),
        (
            "opentelemetry.instrumentation.bedrock",
            {"gen_ai.usage.cache_read.input_tokens": 6, "gen_ai.usage.total_tokens": 12},
            16,
        ),
        ("openinference.instrumentation.agno", {"gen_ai.usage.cache_read.input_tokens": 6}, 10),
        (
            "openinference.instrumentation.agno",
            {"gen_ai.usage.cache_read.input_tokens": 6, "gen_ai.request.model": "claude-sonnet-4-5"},
            16,
        ),
    ],
)
def test_enrich_counts_cached_tokens_among_input_tokens(
    scope: str, attributes: Mapping[str, Any], expected_input: int
) -> None:
    tokens = read_tokens(enrich_span({**CHAT, **USAGE, **attributes}, scope=scope))
    assert (tokens["input_tokens"], tokens["total_tokens"]) == (expected_input, expected_input + 2)


def test_enrich_takes_cached_tokens_that_the_source_left_out_from_the_response() -> None:
    response = {
        "usage": {"inputTokens": 10, "outputTokens": 2, "totalTokens": 18, "cacheReadInputTokens": 6},
    }
    counts = {"llm.token_count.prompt": 10, "llm.token_count.completion": 2, "llm.token_count.total": 18}
    enriched = enrich_span({"openinference.span.kind": "LLM", "output.value": json.dumps(response), **counts})
    assert read_tokens(enriched) == {
        "input_tokens": 16,
        "output_tokens": 2,
        "total_tokens": 18,
        "cache_read_input_tokens": 6,
    }


def test_enrich_writes_tokens_of_the_one_hour_cache() -> None:
    counts = {
        "gen_ai.usage.cache_creation.input_tokens": 8,
        "gen_ai.usage.cache_creation.ephemeral_1h_input_tokens": 5,
    }
    assert read_tokens(enrich_span({**CHAT, **USAGE, **counts}))["cache_creation_input_tokens_above_1hr"] == 5


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("is_split", [False, True])
def test_enrich_layers_of_a_call_counts_once(order: tuple[int, ...], is_split: bool) -> None:
    content = {
        "gen_ai.input.messages": dump_messages("hi"),
        "gen_ai.output.messages": dump_messages("Yes.", "assistant"),
    }
    call = {**CHAT, **USAGE, **content}
    layers = [
        span(1, {}, name="root"),
        span(2, call, parent=1, scope="framework", start=100, end=500),
        span(
            3, {**call, "gen_ai.response.model": "gpt-4o-mini-2024-07-18"}, parent=1, scope="client", start=200, end=400
        ),
    ]
    layers = [layers[index] for index in order]
    enricher = Enricher()
    batches = [[layer] for layer in reversed(layers)] if is_split else [layers]
    results = [item for batch in batches for item in enricher.enrich(batch)]
    enriched = [item for item in results if isinstance(item, EnrichedSpan)]
    assert len([item for item in enriched if read_tokens(item)]) == 1
    if not is_split:
        assert [item.attributes["mlflow.spanType"] for item in enriched].count("CHAT_MODEL") == 1


def test_enrich_sibling_that_repeats_usage_counts_once() -> None:
    call, repeated = {**CHAT, **USAGE}, {"gen_ai.response.model": "gpt-4o-mini", **USAGE}
    spans = [span(1, {}, name="root")]
    for number in range(3):
        start = 1000 * number
        spans.append(span(10 + number, call, parent=1, scope="ag2", start=start, end=start + 500))
        spans.append(span(20 + number, repeated, parent=1, scope="ag2", start=start + 600, end=start + 601))
    assert [bool(read_tokens(item)) for item in enrich_spans(*spans)] == [False] + [True, False] * 3


@pytest.mark.parametrize(
    "changed",
    [
        {"gen_ai.request.model": "claude-sonnet-4-5"},
        {"gen_ai.usage.input_tokens": 11},
        {"gen_ai.response.id": "b"},
    ],
)
def test_enrich_two_calls_at_the_same_time_counts_both(changed: Mapping[str, Any]) -> None:
    call = {**CHAT, **USAGE, "gen_ai.response.id": "a"}
    first = span(2, call, parent=1, scope="one", start=100, end=500)
    second = span(3, {**call, **changed}, parent=1, scope="two", start=200, end=400)
    if "gen_ai.request.model" in changed:
        second = span(3, {**CHAT, **USAGE, **changed}, parent=1, scope="two", start=200, end=400)
    enriched = enrich_spans(span(1, {}, name="root"), first, second)
    assert [bool(read_tokens(item)) for item in enriched] == [False, True, True]


def test_enrich_call_in_a_trace_of_its_own_counts_in_the_larger_trace() -> None:
    call = {**CHAT, **USAGE}
    resource_of = span(9, {})
    framework = span(2, call, parent=1, scope="framework", start=100, end=500)
    client = span(3, call, trace=2, scope="client", start=200, end=400)
    client._resource = framework._resource = resource_of.resource
    enriched = enrich_spans(client, span(1, {}, name="root"), framework)
    assert [bool(read_tokens(item)) for item in enriched] == [False, False, True]
    other_process = span(3, call, trace=2, scope="client", start=200, end=400)
    enriched = enrich_spans(other_process, span(1, {}, name="root"), framework)
    assert [bool(read_tokens(item)) for item in enriched] == [True, False, True]


def test_enrich_later_call_with_repeated_response_id_counts() -> None:
    call = {**CHAT, **USAGE, "gen_ai.response.id": "chatcmpl-0"}
    first = span(2, call, scope="one", start=100, end=500)
    second = span(3, call, trace=2, scope="two", start=10**10, end=10**10 + 400)
    second._resource = first._resource
    assert [bool(read_tokens(item)) for item in enrich_spans(first, second)] == [True, True]


def test_enrich_call_counts_once_beside_a_client_span_in_a_trace_of_its_own() -> None:
    call = {**CHAT, **USAGE, "gen_ai.response.id": "a", "gen_ai.input.messages": dump_messages("hi")}
    described = span(2, call, scope="framework", start=100, end=500)
    client = span(3, {**USAGE, **CHAT, "gen_ai.response.id": "a"}, trace=2, scope=ANTHROPIC_SDK, start=200, end=400)
    client._resource = described._resource
    assert [bool(read_tokens(item)) for item in enrich_spans(client, described)] == [False, True]


def test_enrich_layers_of_a_tool_call_leaves_one_tool_span() -> None:
    call = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
    enriched = enrich_spans(
        span(1, call, name="tools/call search"),
        span(2, {"mcp.method.name": "tools/call"}, name="MCP send tools/call search", parent=1),
        span(3, {**call, "gen_ai.tool.call.result": "found"}, name="tools/call search", parent=2),
        span(4, {**TOOL, "gen_ai.tool.name": "fetch"}, parent=3),
    )
    assert [item.attributes["mlflow.spanType"] for item in enriched] == ["TOOL", "TASK", "TASK", "TOOL"]
    assert parse_outputs(enriched[0]) == "found"


# Frameworks with attributes of their own


def test_enrich_livekit_makes_one_model_span_of_three_layers() -> None:
    layer = {"gen_ai.request.model": "gpt-4o-mini", "lk.retry_count": 0}
    enriched = enrich_spans(
        span(1, {**layer, "lk.chat_ctx": "{}"}, name="llm_node"),
        span(2, {**CHAT, **USAGE, "lk.llm_metrics": "{}"}, name="llm_request", parent=1),
        span(3, layer, name="llm_request_run", parent=2),
    )
    assert [item.attributes["mlflow.spanType"] for item in enriched] == ["TASK", "CHAT_MODEL", "TASK"]


def test_enrich_litellm_reads_usage_user_and_tools_below() -> None:
    usage = "{'completion_tokens': 2, 'prompt_tokens': 10, 'prompt_tokens_details': {'cached_tokens': 4, 'x': None}}"
    call = {**CHAT, **USAGE, "gen_ai.operation.name": "aresponses", "metadata.usage_object": usage, "llm.user": "ada"}
    tools = "[{'type': 'function', 'name': 'search', 'description': 'Finds.\\nFast.', 'parameters': {}}]"
    traffic = span(2, {"llm.None.tools": tools}, name="raw_gen_ai_request", parent=1, scope="litellm")
    (enriched, _) = enrich_spans(span(1, call, name="litellm_request", scope="litellm"), traffic)
    assert enriched.attributes["mlflow.spanType"] in ("LLM", "CHAT_MODEL")
    assert (read_tokens(enriched)["cache_read_input_tokens"], enriched.attributes["user.id"]) == (4, "ada")
    assert json.loads(enriched.attributes["mlflow.chat.tools"])[0]["function"]["name"] == "search"


def test_enrich_llama_index_events_shows_call_tool_and_documents() -> None:
    block = {"block_type": "tool_call", "tool_call_id": "c1", "tool_name": "search", "tool_kwargs": {"q": "x"}}
    question = [{"role": "user", "blocks": [{"block_type": "text", "text": "hi"}]}]
    call = enrich_span(
        {"llamaindex.run_id": "r"},
        name="OpenAI.achat",
        events=[
            Event(
                "LLMChatStartEvent",
                {"messages": json.dumps(question)},
            ),
            Event(
                "LLMChatEndEvent",
                {
                    "response.message.role": "assistant",
                    "response.message.blocks": json.dumps([block]),
                    "response.raw.model": "gpt-4o-mini",
                    "response.raw.usage.prompt_tokens": 10,
                    "response.raw.usage.completion_tokens": 2,
                },
            ),
        ],
    )
    assert (call.attributes["mlflow.spanType"], call.attributes["mlflow.llm.provider"]) == ("CHAT_MODEL", "openai")
    assert parse_inputs(call)["messages"] == [{"role": "user", "content": "hi"}]
    assert parse_outputs(call)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "search"
    assert read_tokens(call)["total_tokens"] == 12
    summary = "ToolCall(tool_name='search', tool_kwargs={'q': 'x'}, tool_id='c1')"
    output = (
        "ToolCallResult(tool_output=ToolOutput(blocks=[TextBlock(block_type='text', text='found')], tool_name='sea..."
    )
    tool = enrich_span(
        {"llamaindex.step.input_summary": summary},
        name="BaseWorkflowAgent.call_tool",
        events=[Event("step.output", {"output": output})],
    )
    assert (tool.name, parse_inputs(tool), parse_outputs(tool)) == ("search", {"q": "x"}, "found")
    nodes = json.dumps([{"node": {"id_": "1", "text": "Spans."}, "score": 0.5}])
    retrieval = enrich_span(
        {}, name="Retriever.retrieve", events=[Event("RetrievalEndEvent", {"nodes": nodes, "str_or_query_bundle": "q"})]
    )
    assert (parse_inputs(retrieval), parse_outputs(retrieval)[0]["page_content"]) == ("q", "Spans.")


def test_session_of_root_replaces_that_of_spans_below() -> None:
    """MLflow takes the session of a trace from the first span that has one."""
    framework = {"openinference.span.kind": "CHAIN", "session.id": "thread"}
    below, helper, root = enrich_spans(
        span(2, {"openinference.span.kind": "CHAIN", "metadata": '{"thread_id": "thread"}'}, parent=1),
        span(3, {"session.id": "context"}, parent=2),
        span(1, {**framework, "mlflow.trace.session": "updated"}),
    )
    assert [item.attributes["session.id"] for item in (below, helper, root)] == ["updated"] * 3
    assert "mlflow.trace.session" not in root.attributes
    helper, root = enrich_spans(span(3, {"session.id": "context"}, parent=1), span(1, framework))
    assert [item.attributes["session.id"] for item in (helper, root)] == ["thread"] * 2
