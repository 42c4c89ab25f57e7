"""The functions that MLflow's scorers use read recorded traces of agents, without calls of a language model."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from support.corpus import run_module, truths
from support.evaluation import JUDGED_SOURCES
from support.mlflow_server import MLflowServer

TRUTHS = truths()
# Agents and retrieval only: the root of a trace with a single model call has all its messages.
AGENTS = sorted(key for key, truth in TRUTHS.items() if truth.keys() & {"tool_calls", "documents"})

Readings = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def readings(mlflow_server: MLflowServer) -> Readings:
    traces: Readings = run_module("support.evaluation", "--tracking-uri", mlflow_server.uri)
    return traces


def expected_value(key: str, column: str) -> Any:
    """Return the expected value; None if it is unknown, or the spans never had it."""
    truth = TRUTHS[key]
    return None if column in truth.get("unrecoverable", ()) else truth.get(column)


def expected_request(key: str) -> str | None:
    """Return the request as MLflow's functions return it.

    They use JSON for a response without messages, but `str` for such a request, also for one of MLflow's own SDK. The
    arguments of a traced function stay a mapping nevertheless: the console shows them by name, and the preview as JSON.
    """
    request: str | None = expected_value(key, "request")
    return str(json.loads(request)) if request and request.startswith("{") else request


def strip(text: str | None) -> str | None:
    return text.strip() if text else text


def test_recordings_have_agents_of_29_sources() -> None:
    assert len(AGENTS) == 53
    assert len({key.partition("/")[0] for key in AGENTS}) == 29
    for column, count in (("request", 48), ("response", 40), ("tools", 33), ("tool_calls", 44), ("documents", 9)):
        assert sum(expected_value(key, column) is not None for key in AGENTS) == count, column


@pytest.mark.parametrize("key", AGENTS)
def test_scorer_functions_read_request_and_response(key: str, readings: Readings) -> None:
    for column, text in (("request", expected_request(key)), ("response", expected_value(key, "response"))):
        if text is not None:
            assert strip(readings[key][column]) == text


@pytest.mark.parametrize("key", [key for key in AGENTS if expected_value(key, "tools") is not None])
def test_scorer_functions_read_tool_definitions(key: str, readings: Readings) -> None:
    assert set(expected_value(key, "tools")) <= set(readings[key]["offered"])
    assert readings[key]["model_calls"] == 0


@pytest.mark.parametrize("key", [key for key in AGENTS if expected_value(key, "tool_calls") is not None])
def test_scorer_functions_read_tool_calls(key: str, readings: Readings) -> None:
    calls = expected_value(key, "tool_calls")
    tool_calls = readings[key]["called"]
    assert sorted(call["name"] for call in tool_calls) == sorted(call["name"] for call in calls)
    for call in calls:
        assert any(call.items() <= other.items() for other in tool_calls), call
    if failed := TRUTHS[key].get("error_span"):
        assert [call["exception"] for call in tool_calls if failed in call["name"] and call["exception"]]
    else:
        assert not any(call["exception"] for call in tool_calls)


@pytest.mark.parametrize("key", [key for key in AGENTS if expected_value(key, "documents") is not None])
def test_scorer_functions_read_documents(key: str, readings: Readings) -> None:
    assert expected_value(key, "documents") in readings[key]["documents"]


@pytest.mark.parametrize("key", AGENTS)
def test_scorer_functions_read_the_conversation(key: str, readings: Readings) -> None:
    messages = readings[key]["conversation"]
    if (request := expected_request(key)) is not None:
        assert messages[0] == {"role": "user", "content": request}
    if (response := expected_value(key, "response")) is not None:
        assert (messages[-1]["role"], messages[-1]["content"].strip()) == ("assistant", response)
    tools = [message["content"] for message in messages if message["role"] == "tool"]
    assert len(tools) == len(expected_value(key, "tool_calls") or [])


def test_scorer_functions_call_a_model_only_without_tool_definitions(readings: Readings) -> None:
    """Also shows that the calls are counted."""
    keys = {key for key, reading in readings.items() if reading["model_calls"]}
    assert keys
    assert not [key for key in keys if expected_value(key, "tools")]


def test_scorer_functions_read_sessions(readings: Readings) -> None:
    sessions = {key: session for key in TRUTHS if (session := expected_value(key, "session")) is not None}
    assert {key: readings[key]["session"] for key in sessions} == sessions
    assert sessions


# The content that each scorer's judge needs.
JUDGED = {
    "RelevanceToQuery": ("request", "response"),
    "ToolCallCorrectness": ("request", "tool_calls"),
    "RetrievalGroundedness": ("request", "response", "documents"),
    "ConversationCompleteness": ("session", "request", "response"),
}
JUDGED_TRACES = [
    (key, scorer)
    for key in TRUTHS
    for scorer, columns in JUDGED.items()
    if key.partition("/")[0] in JUDGED_SOURCES and all(expected_value(key, column) for column in columns)
]


def list_texts(key: str, column: str) -> list[str]:
    """Return the texts of an expected value that a judge must see."""
    value: Any = expected_request(key) if column == "request" else expected_value(key, column)
    if column == "tool_calls":
        arguments = [argument for call in value for argument in call.get("arguments", {}).values()]
        return [*map(str, arguments), *(call[name] for call in value for name in ("name", "result") if name in call)]
    if column == "session":
        return []  # the judge gets the conversation
    return list(value) if isinstance(value, list) else [value]


def test_judged_recordings_cover_each_source_and_scorer() -> None:
    pairs = {(key.partition("/")[0], scorer) for key, scorer in JUDGED_TRACES}
    # Vercel's recordings have no documents; LlamaIndex writes no session.
    missing = {("vercel-ai-5", "RetrievalGroundedness"), ("llama-index-otel", "ConversationCompleteness")}
    assert pairs == {(source, scorer) for source in JUDGED_SOURCES for scorer in JUDGED} - missing


@pytest.mark.parametrize(("key", "scorer"), JUDGED_TRACES)
def test_scorer_gives_content_of_the_trace_to_its_judge(key: str, scorer: str, readings: Readings) -> None:
    prompt = readings[key]["judged"][scorer]
    texts = [text for column in JUDGED[scorer] for text in list_texts(key, column)]
    assert texts
    # Some prompts hold JSON.
    assert not [text for text in texts if text not in prompt and json.dumps(text)[1:-1] not in prompt]
