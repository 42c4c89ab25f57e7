"""MLflow's scorers: what their functions find in recorded traces of agents, without asking a language model."""

from collections.abc import Mapping
from typing import Any

import pytest

from support.corpus import run_module, truths
from support.mlflow_server import MLflowServer

TRUTHS = truths()
# Agents and retrieval: a trace that is a single call of a model shows all its messages at the root.
AGENTS = sorted(key for key, truth in TRUTHS.items() if truth.keys() & {"tool_calls", "documents"})

Found = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def found(mlflow_server: MLflowServer) -> Found:
    traces: Found = run_module("support.evaluation", "--tracking-uri", mlflow_server.uri)
    return traces


def known(key: str, column: str) -> Any:
    """What must be found; None if it is not known, or never was on the spans."""
    truth = TRUTHS[key]
    return None if column in truth.get("unrecoverable", ()) else truth.get(column)


def stripped(said: str | None) -> str | None:
    return said.strip() if said else said


def test_there_are_agents_of_many_sources() -> None:
    assert len(AGENTS) == 27
    assert len({key.partition("/")[0] for key in AGENTS}) == 17
    for column, count in (("request", 25), ("response", 22), ("tools", 21), ("tool_calls", 23), ("documents", 3)):
        assert sum(known(key, column) is not None for key in AGENTS) == count, column


@pytest.mark.parametrize("key", AGENTS)
def test_request_and_response(key: str, found: Found) -> None:
    for column in ("request", "response"):
        if (wanted := known(key, column)) is not None:
            assert stripped(found[key][column]) == wanted


@pytest.mark.parametrize("key", [key for key in AGENTS if known(key, "tools") is not None])
def test_tools_that_were_offered(key: str, found: Found) -> None:
    assert set(known(key, "tools")) <= set(found[key]["offered"])
    assert found[key]["model_calls"] == 0


@pytest.mark.parametrize("key", [key for key in AGENTS if known(key, "tool_calls") is not None])
def test_tools_that_were_called(key: str, found: Found) -> None:
    calls = known(key, "tool_calls")
    called = found[key]["called"]
    assert sorted(call["name"] for call in called) == sorted(call["name"] for call in calls)
    for call in calls:
        assert any(call.items() <= each.items() for each in called), call
    if failed := TRUTHS[key].get("error_span"):
        assert [each["exception"] for each in called if failed in each["name"] and each["exception"]]
    else:
        assert not any(each["exception"] for each in called)


@pytest.mark.parametrize("key", [key for key in AGENTS if known(key, "documents") is not None])
def test_documents(key: str, found: Found) -> None:
    assert known(key, "documents") in found[key]["documents"]


@pytest.mark.parametrize("key", AGENTS)
def test_conversation(key: str, found: Found) -> None:
    turns = found[key]["conversation"]
    if (request := known(key, "request")) is not None:
        assert turns[0] == {"role": "user", "content": request}
    if (response := known(key, "response")) is not None:
        assert (turns[-1]["role"], turns[-1]["content"].strip()) == ("assistant", response)
    tools = [turn["content"] for turn in turns if turn["role"] == "tool"]
    assert len(tools) == len(known(key, "tool_calls") or [])


def test_a_model_would_be_asked_only_where_no_tool_was_offered(found: Found) -> None:
    """Which shows, too, that the count of questions counts."""
    asked = {key for key, each in found.items() if each["model_calls"]}
    assert asked
    assert not [key for key in asked if known(key, "tools")]


def test_sessions(found: Found) -> None:
    wanted = {key: session for key in TRUTHS if (session := known(key, "session")) is not None}
    assert {key: found[key]["session"] for key in wanted} == wanted
    assert len(wanted) == 18
