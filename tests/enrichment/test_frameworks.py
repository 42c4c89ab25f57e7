"""Readers that are tables of frameworks and coding agents; the spans are written as the sources write them.

Genkit, VoltAgent and Mastra are recorded as well (tests/corpus); the others are not.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import Event

from mlflow_otlp_exporter._internal.enrichment.enricher import EnrichedSpan, Enricher
from support.random_traces import span


def enrich_trace(*members: Any) -> list[EnrichedSpan]:
    return [item for item in Enricher().enrich(members) if isinstance(item, EnrichedSpan)]


def parse(enriched: EnrichedSpan, key: str) -> Any:
    return json.loads(enriched.attributes[f"mlflow.{key}"])


def roles(enriched: EnrichedSpan) -> list[str]:
    messages = parse(enriched, "spanInputs")["messages"]
    choices = parse(enriched, "spanOutputs")["choices"] if "mlflow.spanOutputs" in enriched.attributes else []
    return [message["role"] for message in (*messages, *(choice["message"] for choice in choices))]


GENKIT_CALL = {
    "genkit:type": "action",
    "genkit:metadata:subtype": "model",
    "genkit:name": "googleai/gemini-2.5-flash",
    "genkit:input": json.dumps(
        {
            "messages": [
                {"role": "user", "content": [{"text": "Rain?"}, {"media": {"url": "data:image/png;base64,AA=="}}]},
                {"role": "model", "content": [{"toolRequest": {"name": "look", "ref": "1", "input": {"q": "x"}}}]},
                {"role": "tool", "content": [{"toolResponse": {"name": "look", "ref": "1", "output": "dry"}}]},
            ],
            "tools": [{"name": "look", "description": "Looks.", "inputSchema": {"type": "object"}}],
        }
    ),
    "genkit:output": json.dumps(
        {
            "message": {"role": "model", "content": [{"text": "No."}]},
            "usage": {"inputTokens": 20, "outputTokens": 5},
            "raw": {"model": "m-1", "usage": {"prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 8}}},
        }
    ),
}


def test_genkit_model_call_has_chat_tools_and_cached_tokens() -> None:
    (enriched,) = enrich_trace(span(1, GENKIT_CALL))
    assert roles(enriched) == ["user", "assistant", "tool", "assistant"]
    assert parse(enriched, "spanInputs")["messages"][0]["content"][1]["type"] == "image_url"
    assert [tool["function"]["name"] for tool in parse(enriched, "chat.tools")] == ["look"]
    assert parse(enriched, "chat.tokenUsage")["cache_read_input_tokens"] == 8
    assert enriched.attributes["mlflow.llm.provider"] == "gemini"


def test_genkit_retriever_has_documents_in_parts() -> None:
    attributes = {
        "genkit:type": "action",
        "genkit:metadata:subtype": "retriever",
        "genkit:output": json.dumps({"documents": [{"content": [{"text": "a"}, {"text": "b"}], "metadata": {"n": 1}}]}),
    }
    (enriched,) = enrich_trace(span(1, attributes))
    assert parse(enriched, "spanOutputs") == [{"page_content": "a\nb", "metadata": {"n": 1}}]


def voltagent(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"entity.type": "agent", "span.type": kind, **{key.replace("__", "."): v for key, v in attributes.items()}}


def test_voltagent_model_call_of_several_steps_takes_counts_and_tools_of_agent() -> None:
    tools = json.dumps({"tools": [{"name": "look", "description": "Looks."}]})
    agent: dict[str, Any] = {"entity.type": "agent", "input": "Rain?", "output": "No.", "agent.stateSnapshot": tools}
    agent |= {"usage.prompt_tokens": 128, "usage.completion_tokens": 48, "usage.total_tokens": 176}
    agent |= {"usage.cached_tokens": 32}
    call = voltagent("llm", llm__messages='[{"role": "user", "content": "Rain?"}]', llm__model="gpt-4o-mini")
    call |= {"llm.usage.prompt_tokens": 66, "llm.usage.completion_tokens": 24}
    root, model = enrich_trace(span(1, agent), span(2, call, parent=1))
    assert parse(model, "chat.tokenUsage") == {
        "input_tokens": 128,
        "output_tokens": 48,
        "total_tokens": 176,
        "cache_read_input_tokens": 32,
    }
    assert not any(key.startswith(("usage.", "mlflow.chat.tokenUsage")) for key in root.attributes)
    assert [tool["function"]["name"] for tool in parse(model, "chat.tools")] == ["look"]


def test_agent_with_several_model_calls_keeps_their_counts() -> None:
    """An agent's sum says nothing about a call, if calls are elsewhere below it."""
    call = voltagent("llm", llm__model="gpt-4o-mini") | {
        "llm.usage.prompt_tokens": 66,
        "llm.usage.completion_tokens": 9,
    }
    agent = {"entity.type": "agent", "usage.prompt_tokens": 132, "usage.completion_tokens": 18}
    members = [span(1, agent), span(2, call, parent=1), span(3, {}, parent=1), span(4, call, parent=3, start=2000)]
    _, first, _, second = enrich_trace(*members)
    assert [item.attributes["llm.token_count.prompt"] for item in (first, second)] == [66, 66]


MASTRA_INPUT = '[{"role": "system", "content": "s"}, {"role": "user", "content": "Rain?"}]'
MASTRA_CALLS = [{"toolCallId": "c", "toolName": "look", "args": {"q": "x"}}]


def mastra(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"mastra.span.type": kind, **{f"mastra.{kind}.{key}": value for key, value in attributes.items()}}


def mastra_call(text: str) -> dict[str, Any]:
    message = [{"role": "assistant", "parts": [{"type": "text", "content": text}]}]
    return {"gen_ai.operation.name": "chat", **mastra("model_inference"), "gen_ai.output.messages": json.dumps(message)}


@pytest.mark.parametrize(
    ("text", "calls", "expected"),
    [
        ("No.", [], ["system", "user", "assistant"]),
        ("", MASTRA_CALLS, ["system", "user", "assistant"]),
        ("", [], ["system", "user"]),
    ],
)
def test_mastra_call_takes_messages_of_its_step(text: str, calls: list[Any], expected: list[str]) -> None:
    step = mastra("model_step", input=MASTRA_INPUT, output=json.dumps({"text": text, "toolCalls": calls}))
    _, enriched = enrich_trace(span(2, step, parent=1), span(3, mastra_call(text), parent=2))
    assert roles(enriched) == expected
    if calls:
        (call,) = parse(enriched, "spanOutputs")["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": "look", "arguments": '{"q": "x"}'}


@pytest.mark.parametrize("case", ["two calls", "agent above", "not around it"])
def test_model_call_takes_no_messages_of_span_around_other_calls(case: str) -> None:
    kind = "agent_run" if case == "agent above" else "model_step"
    above = mastra(kind, input=MASTRA_INPUT, output='{"text": "No.", "toolCalls": []}')
    members = [span(2, above, parent=1), span(3, mastra_call("No."), parent=2)]
    if case == "two calls":
        members.append(span(4, mastra_call("Yes."), parent=2))
    elif case == "not around it":
        members[1] = span(3, mastra_call("No."), parent=2, start=900)
    assert "mlflow.spanInputs" not in enrich_trace(*members)[1].attributes


def test_mastra_root_has_identity_and_answer() -> None:
    attributes = mastra("agent_run", input="Rain?", output='{"text": "No.", "files": []}')
    attributes |= {"mastra.metadata.sessionId": "s-1", "mastra.metadata.userId": "u-1", "mastra.metadata.runId": "r"}
    attributes |= {"mastra.tags": '["a"]', "mastra.metadata.tenant": "acme"}
    (enriched,) = enrich_trace(span(1, attributes))
    assert parse(enriched, "spanOutputs")["choices"][0]["message"]["content"] == "No."
    assert (enriched.attributes["session.id"], enriched.attributes["user.id"]) == ("s-1", "u-1")
    tags = {key for key in enriched.attributes if key.startswith("mlflow.traceTag.") and "mlflow.traceName" not in key}
    assert tags == {"mlflow.traceTag.a", "mlflow.traceTag.tenant"}


def test_mastra_workflow_shows_its_mappings() -> None:
    (enriched,) = enrich_trace(span(1, mastra("workflow_run", input='{"city": "Paris"}', output='{"text": "dry"}')))
    assert (parse(enriched, "spanInputs"), parse(enriched, "spanOutputs")) == ({"city": "Paris"}, {"text": "dry"})
    assert enriched.attributes["mlflow.spanType"] == "WORKFLOW"


def test_spring_ai_spans_have_kinds_and_content() -> None:
    events = [
        Event("gen_ai.content.prompt", {"gen_ai.prompt": ["Be terse.", "Rain?"]}),
        Event("gen_ai.content.completion", {"gen_ai.completion": ["No."]}),
    ]
    client = {"gen_ai.operation.name": "framework", "gen_ai.system": "spring_ai", "spring.ai.kind": "chat_client"}
    client["spring.ai.chat.client.conversation.id"] = "c-1"
    tool = {"gen_ai.operation.name": "framework", "spring.ai.kind": "tool_call", "spring.ai.tool.call.result": '"dry"'}
    tool |= {"spring.ai.tool.definition.name": "look", "spring.ai.tool.call.arguments": '{"q": "x"}'}
    store = {"spring.ai.kind": "vector_store", "db.operation.name": "query", "db.vector.query.content": "Rain?"}
    store["db.vector.query.response.documents"] = '["a", "b"]'
    chat = {"gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.usage.input_tokens": "20"}
    root, call, search, model = enrich_trace(
        span(1, client), span(2, tool, parent=1), span(3, store, parent=1), span(4, chat, parent=1, events=events)
    )
    assert parse(root, "spanInputs")["messages"][0]["content"] == "Rain?"
    assert root.attributes["session.id"] == "c-1"
    assert (call.name, parse(call, "spanInputs"), parse(call, "spanOutputs")) == ("look", {"q": "x"}, "dry")
    assert [document["page_content"] for document in parse(search, "spanOutputs")] == ["a", "b"]
    assert parse(model, "chat.tokenUsage")["input_tokens"] == 20


def test_gemini_cli_spans_have_kinds_and_content() -> None:
    prompt = {"gen_ai.operation.name": "user_prompt", "gen_ai.input.messages": "Rain?"}
    contents = '[{"role": "user", "parts": [{"text": "Rain?"}]}]'
    call = {"gen_ai.operation.name": "llm_call", "gen_ai.input.messages": contents, "gen_ai.request.model": "gemini-3"}
    call["gen_ai.output.messages"] = '[{"role": "model", "parts": [{"text": "No."}]}]'
    tool = {"gen_ai.operation.name": "tool_call", "gen_ai.tool.name": "look", "gen_ai.tool.call.id": "1"}
    tool["gen_ai.input.messages"] = '{"request": {"callId": "1", "name": "look", "args": {"q": "x"}}}'
    tool["gen_ai.output.messages"] = '{"llmContent": "dry", "returnDisplay": "dry"}'
    root, model, look = enrich_trace(span(1, prompt), span(2, call, parent=1), span(3, tool, parent=1))
    assert parse(root, "spanOutputs")["choices"][0]["message"]["content"] == "No."
    assert (roles(model), model.attributes["mlflow.llm.provider"]) == (["user", "assistant"], "gemini")
    assert (parse(look, "spanInputs"), parse(look, "spanOutputs")) == ({"q": "x"}, "dry")


def claude(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"span.type": kind, "session.id": "s-1", **attributes}


def test_claude_code_spans_have_kinds_content_and_billed_tokens() -> None:
    interaction = claude("interaction", user_prompt="Rain?")
    request = claude("llm_request", model="claude-opus-5", input_tokens=2, output_tokens=12, cache_read_tokens=80)
    request |= {"cache_creation_tokens": 8, "new_context": "[USER]\nRain?", "response.model_output": "No."}
    tool = claude("tool", tool_name="Bash", tool_use_id="t", tool_input='[TOOL INPUT: Bash]\n{"command": "ls"}')
    output = Event("tool.output", {"output": "a.txt"})
    root, model, bash = enrich_trace(
        span(1, interaction, name="claude_code.interaction"),
        span(2, request, parent=1, name="claude_code.llm_request"),
        span(3, tool, parent=1, name="claude_code.tool", events=[output]),
    )
    assert parse(root, "spanInputs")["messages"][0]["content"] == "Rain?"
    assert parse(root, "spanOutputs")["choices"][0]["message"]["content"] == "No."
    assert roles(model) == ["user", "assistant"]
    usage = parse(model, "chat.tokenUsage")
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["total_tokens"]) == (90, 80, 102)
    assert (bash.name, parse(bash, "spanInputs"), parse(bash, "spanOutputs")) == ("Bash", {"command": "ls"}, "a.txt")
    short = claude("tool", tool_name="Bash", full_command="ls")
    (bash,) = enrich_trace(span(1, short, name="claude_code.tool"))
    assert parse(bash, "spanInputs") == {"command": "ls"}
    (other,) = enrich_trace(span(1, claude("tool", tool_name="x")))
    assert other.attributes["mlflow.spanType"] == "UNKNOWN"


def codex(**attributes: Any) -> Mapping[str, Any]:
    return {"busy_ns": "1", **{key.replace("__", "."): value for key, value in attributes.items()}}


def test_codex_spans_have_kinds_and_tokens_once() -> None:
    session_task = codex(model="gpt-5-codex", codex__turn__token_usage__input_tokens=62, conversation__id="c-1")
    session_task = {
        **session_task,
        "codex.turn.token_usage.output_tokens": 24,
        "codex.turn.token_usage.cached_input_tokens": 16,
    }
    response = codex(codex__usage__total_tokens=86, gen_ai__usage__input_tokens=62, gen_ai__usage__output_tokens=24)
    tool = codex(tool_name="shell", call_id="call_1", codex__tool__phase="dispatch")
    root, model, shell, other = enrich_trace(
        span(1, session_task),
        span(2, response, parent=1),
        span(3, tool, parent=1),
        span(4, codex(tool_name="shell", call_id="call_1", turn_id="t"), parent=1),
    )
    types = [item.attributes["mlflow.spanType"] for item in (root, model, shell, other)]
    assert types == ["AGENT", "LLM", "TOOL", "UNKNOWN"]
    assert "mlflow.chat.tokenUsage" not in root.attributes
    assert (model.attributes["mlflow.llm.model"], model.attributes["mlflow.llm.provider"]) == ("gpt-5-codex", "openai")
    assert (shell.name, root.attributes["session.id"]) == ("shell", "c-1")
